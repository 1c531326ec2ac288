"""OPT: learned positions, of which the table has two rows more, layer norms, biases and a plain MLP with relu.
BioGPT scales its embeddings, and uses gelu; XGLM's table of positions follows from their number."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS
from octavo.models.positions import LearnedPositions
from octavo.models.spec import ModelSpec

LAYER = {
    "attention_in": "self_attn_layer_norm",
    "mlp_in": "final_layer_norm",
    "o": "self_attn.out_proj",
    "up": "fc1",
    "down": "fc2",
}


class OPT(LearnedPositions):
    first = 2
    paths = {
        **PATHS,
        "embed": "model.decoder.embed_tokens",
        "positions": "model.decoder.embed_positions",
        "norm": "model.decoder.final_layer_norm",
        "layer": "model.decoder.layers.{}.",
        **LAYER,
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        names = {
            "intermediate_size": "ffn_dim",
            "hidden_act": "activation_function",
            "initializer_range": "init_std",
            "rms_norm_eps": "layer_norm_eps",
        }
        config = config.family(
            names, activation_function="relu", layer_norm_eps=1e-5, tie_word_embeddings=True, ffn_dim=3072
        )
        for key, other in (("do_layer_norm_before", False), ("_remove_final_layer_norm", True)):
            if config.flag(key, not other) == other:
                raise config.error(key, f"must not be {str(other).lower()}: that is not supported")
        if not config.flag("layer_norm_elementwise_affine", True):
            raise config.error("layer_norm_elementwise_affine", "must be true")
        hidden = config.integer("hidden_size")
        if config.integer("word_embed_proj_dim", hidden) != hidden:
            raise config.error("word_embed_proj_dim", "must be hidden_size: projections are not supported")
        bias = config.flag("enable_bias", True)
        spec = ModelSpec.from_config(config, lambda *_: None)
        return replace(spec, norm="layer", gated=False, qkv_bias=bias, o_bias=bias, mlp_bias=bias)

    def rename(self, name: str) -> str | None:
        """The oldest checkpoints leave out what all names begin with."""
        return super().rename(f"model.{name}" if name.startswith("decoder.") else name)


class BioGpt(LearnedPositions):
    first = 2
    paths = {
        **PATHS,
        "embed": "biogpt.embed_tokens",
        "positions": "biogpt.embed_positions",
        "norm": "biogpt.layer_norm",
        "head": "output_projection",
        "layer": "biogpt.layers.{}.",
        **LAYER,
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        # Its norms have torch's epsilon, and not the config's.
        config = config.family(
            {"rms_norm_eps": "torch_eps"}, torch_eps=1e-5, hidden_act="gelu", tie_word_embeddings=True
        )
        spec = ModelSpec.from_config(config, lambda *_: None)
        if config.flag("scale_embedding", True):
            spec = replace(spec, embedding_scale=spec.hidden_size**0.5)
        return replace(spec, norm="layer", gated=False, qkv_bias=True, o_bias=True, mlp_bias=True)


class XGLM(BioGpt):
    paths = {**PATHS, "positions": "none", "norm": "model.layer_norm", **LAYER}
    ignored_suffixes = ("model.embed_positions.weights",)

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device, max_len: int) -> None:
        super().__init__(spec, dtype, device, max_len)
        half = spec.hidden_size // 2
        rates = torch.exp(torch.arange(half).float() * (-math.log(10000) / (half - 1)))
        angles = torch.arange(spec.max_position + self.first).float()[:, None] * rates
        self.positions.weight_VE.copy_(torch.cat((angles.sin(), angles.cos()), 1))

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        names = {
            "hidden_size": "d_model",
            "num_hidden_layers": "num_layers",
            "num_attention_heads": "attention_heads",
            "intermediate_size": "ffn_dim",
            "hidden_act": "activation_function",
            "initializer_range": "init_std",
        }
        if config.flag("add_cross_attention", False):
            raise config.error("add_cross_attention", "is not supported")
        config = config.family(names, activation_function="gelu")
        if config.integer("hidden_size") % 2:
            raise config.error("hidden_size", "must be even")
        return super().configure(config)

    @property
    def names(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in super().names.items() if tensor is not self.positions.weight_VE}

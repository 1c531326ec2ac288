"""OPT: learned positions, of which the table has two rows more, layer norms, biases and a plain MLP with relu."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS
from octavo.models.positions import LearnedPositions
from octavo.models.spec import ModelSpec


class OPT(LearnedPositions):
    first = 2
    paths = {
        **PATHS,
        "embed": "model.decoder.embed_tokens",
        "positions": "model.decoder.embed_positions",
        "norm": "model.decoder.final_layer_norm",
        "layer": "model.decoder.layers.{}.",
        "attention_in": "self_attn_layer_norm",
        "mlp_in": "final_layer_norm",
        "o": "self_attn.out_proj",
        "up": "fc1",
        "down": "fc2",
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

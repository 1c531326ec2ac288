"""ModernBERT: an encoder with rope, gated MLPs and layer norms without biases; two layers of three see a window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from octavo.layers.norm import NoNorm
from octavo.models.config import ConfigReader
from octavo.models.encoder import Encoder
from octavo.models.pooling.heads import Dense, Head, Norm
from octavo.models.rope import RopeSpec, config_of_kind
from octavo.models.spec import ModelSpec, sliding_layers

FULL, SLIDING = "full_attention", "sliding_attention"


class ModernBert(Encoder):
    paths = {
        "embed": "model.embeddings.tok_embeddings",
        "embed_norm": "model.embeddings.norm",
        "norm": "model.final_norm",
        "head": "",
        "layer": "model.layers.{}.",
        "attention_in": "attn_norm",
        "mlp_in": "mlp_norm",
        "qkv": "attn.Wqkv",
        "o": "attn.Wo",
        "gate_up": "mlp.Wi",
        "down": "mlp.Wo",
    }
    unused = ("head.", "decoder.", "classifier.")

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device, max_len: int) -> None:
        super().__init__(spec, dtype, device, max_len)
        first: Any = self.layers[0]  # its input has just been normed
        first.attention_in = first.norms["attention_in"] = NoNorm()

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        names = {"rms_norm_eps": "norm_eps", "hidden_act": "hidden_activation"}
        config = config.family(names, norm_eps=1e-5, hidden_activation="gelu")
        if (name := config.text("classifier_activation", "gelu")) != "gelu":
            raise config.error("classifier_activation", f"must be gelu, got {name!r:.80}")
        ropes = {
            FULL: config_of_kind(config, FULL, config.number("global_rope_theta", 160000.0, low=1.0)),
            SLIDING: config_of_kind(config, SLIDING, config.number("local_rope_theta", 10000.0, low=1.0)),
        }
        spec = ModelSpec.from_config(ropes[FULL])
        every = config.integer("global_attn_every_n_layers", 3)
        slides = sliding_layers(config, spec.num_layers, lambda layer: layer % every != 0)
        local = RopeSpec.from_config(ropes[SLIDING], spec.head_dim, spec.max_position)
        window = config.integer("local_attention", 128) // 2 + 1  # a token, and half of it on each side
        bias = config.flag("attention_bias", False)
        return replace(
            spec,
            ropes=tuple(local if slide else rope for slide, rope in zip(slides, spec.ropes, strict=True)),
            windows=tuple(window if slide else None for slide in slides),
            norm="layer" if config.flag("norm_bias", False) else "layer_unbiased",
            qkv_bias=bias,
            o_bias=bias,
            mlp_bias=config.flag("mlp_bias", False),
            causal=False,
            tie_embeddings=False,
            head_bias=config.flag("classifier_bias", False),
        )

    def make_classifier(self, labels: int) -> Head:
        spec, size = self.spec, self.spec.hidden_size
        return [
            Dense("head.dense", size, size, spec.head_bias, "gelu", self.device),
            Norm("head.norm", size, spec.norm_eps, spec.norm == "layer", self.device),
            Dense("classifier", size, labels, True, "none", self.device),
        ]

"""Falcon 1 and 2: layer norms, attention and a plain MLP with gelu side by side, few key/value heads, and queries, keys
and values in one tensor, key head by key head. Falcon RW has slopes (ALiBi) in place of a rotation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from octavo.layers.attention import by_head
from octavo.models.bloom import alibi
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.rope import RopeSpec
from octavo.models.spec import ModelSpec

NAMES = {"rms_norm_eps": "layer_norm_epsilon", "hidden_act": "activation", "intermediate_size": "ffn_hidden_size"}
DEFAULTS = {
    "layer_norm_epsilon": 1e-5,
    "activation": "gelu",
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}


class Falcon(Decoder):
    paths = {
        **PATHS,
        "embed": "transformer.word_embeddings",
        "norm": "transformer.ln_f",
        "layer": "transformer.h.{}.",
        "qkv": "self_attention.query_key_value",
        "o": "self_attention.dense",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(NAMES, **DEFAULTS)
        config = config.family(ffn_hidden_size=4 * config.integer("hidden_size"))
        slopes = config.flag("alibi", False)
        new = config.flag("new_decoder_architecture", False)
        heads = config.integer("num_attention_heads", high=2**14)
        if not new and config.flag("multi_query", True):
            kv_heads = 1
        else:
            kv_heads = config.integer("num_kv_heads", heads, high=2**14)
        order = "parallel" if new or config.flag("parallel_attn", True) else "pre"
        if new and config.integer("num_ln_in_parallel_attn", 2, high=2) == 2:
            order = "parallel_norms"
        bias = config.flag("bias", False)
        config = config.family({"num_key_value_heads": "kv_heads"}, kv_heads=kv_heads)
        spec = ModelSpec.from_config(config, (lambda *_: None) if slopes else RopeSpec.from_config)
        if slopes:  # they are scaled like the scores
            spec = replace(spec, slopes=tuple(slope * spec.attention_scale for slope in alibi(heads)))
        spec = replace(spec, norm="layer", gated=False, order=order)
        return replace(spec, qkv_bias=bias, o_bias=bias, mlp_bias=bias)

    def rename(self, name: str) -> str | None:
        """Layers with two norms have names of their own for them."""
        name = name.replace(".ln_attn.", ".input_layernorm.").replace(".ln_mlp.", ".post_attention_layernorm.")
        return super().rename(name)

    def qkv_order(self) -> Callable[[Tensor], Tensor]:
        return by_head(self.spec.num_kv_heads, self.spec.head_dim)

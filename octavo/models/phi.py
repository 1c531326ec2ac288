"""Phi-1, 1.5 and 2: attention and a plain MLP side by side on one layer norm; biases everywhere, the head too.
Persimmon has them one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from octavo.layers.attention import by_head
from octavo.models.blocks import Parallel
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.spec import ModelSpec


class Phi(Decoder):
    layer_class = Parallel
    paths = {
        **PATHS,
        "norm": "model.final_layernorm",
        "o": "self_attn.dense",
        "q_norm": "self_attn.q_layernorm",
        "k_norm": "self_attn.k_layernorm",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        defaults = {"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "hidden_act": "gelu_new"}
        config = config.family({"rms_norm_eps": "layer_norm_eps"}, **defaults)
        spec = replace(ModelSpec.from_config(config), norm="layer", gated=False)
        if config.flag("qk_layernorm", False):
            spec = replace(spec, qk_norm="shared_layer")
        return replace(spec, qkv_bias=True, o_bias=True, mlp_bias=True, head_bias=True)


class Persimmon(Decoder):
    """With relu squared; q, k and v in one tensor, head by head."""

    paths = {
        **PATHS,
        "norm": "model.final_layernorm",
        "qkv": "self_attn.query_key_value",
        "o": "self_attn.dense",
        "q_norm": "self_attn.q_layernorm",
        "k_norm": "self_attn.k_layernorm",
        "up": "mlp.dense_h_to_4h",
        "down": "mlp.dense_4h_to_h",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        defaults = {"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "hidden_act": "relu2"}
        spec = ModelSpec.from_config(config.family({"rms_norm_eps": "layer_norm_eps"}, **defaults))
        if config.flag("qk_layernorm", True):
            spec = replace(spec, qk_norm="shared_layer")
        return replace(spec, norm="layer", gated=False, qkv_bias=True, o_bias=True, mlp_bias=True)

    def qkv_order(self) -> Callable[[Tensor], Tensor]:
        return by_head(self.spec.num_kv_heads, self.spec.head_dim)

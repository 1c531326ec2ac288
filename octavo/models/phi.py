"""Phi-1, 1.5 and 2: attention and a plain MLP side by side on one layer norm; biases everywhere, the head too."""

from __future__ import annotations

from dataclasses import replace

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
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        defaults = {"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "hidden_act": "gelu_new"}
        config = config.family({"rms_norm_eps": "layer_norm_eps"}, **defaults)
        if config.flag("qk_layernorm", False):
            raise config.error("qk_layernorm", "is not supported")
        spec = replace(ModelSpec.from_config(config), norm="layer", gated=False)
        return replace(spec, qkv_bias=True, o_bias=True, mlp_bias=True, head_bias=True)

"""StarCoder2: layer norms, biases everywhere, and a plain MLP with gelu."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.spec import ModelSpec, sliding_window


class Starcoder2(Decoder):
    paths = {**PATHS, "up": "mlp.c_fc", "down": "mlp.c_proj"}

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        defaults = {"hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "tie_word_embeddings": True}
        config = config.family({"rms_norm_eps": "norm_epsilon"}, **defaults)
        spec = ModelSpec.from_config(config)
        bias = config.flag("use_bias", True)
        windows = (sliding_window(config, None),) * spec.num_layers
        return replace(spec, norm="layer", gated=False, windows=windows, qkv_bias=bias, o_bias=bias, mlp_bias=bias)

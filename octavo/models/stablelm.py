"""StableLM 2: Llama with layer norms, that rotates a quarter of each head."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import Decoder
from octavo.models.spec import ModelSpec


class StableLm(Decoder):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family({"rms_norm_eps": "layer_norm_eps"}, layer_norm_eps=1e-5, partial_rotary_factor=0.25)
        for key in ("qk_layernorm", "use_parallel_residual"):  # of the 12B model
            if config.flag(key, False):
                raise config.error(key, "is not supported")
        return replace(ModelSpec.from_config(config), norm="layer", qkv_bias=config.flag("use_qkv_bias", False))

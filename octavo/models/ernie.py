"""ERNIE 4.5 (dense): Llama that rotates neighbours, with one switch for all biases."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import Decoder
from octavo.models.rope import RopeSpec
from octavo.models.spec import ModelSpec


class Ernie(Decoder):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(tie_word_embeddings=True, rope_theta=5e5, head_dim=128)
        spec = ModelSpec.from_config(config, RopeSpec.interleaved_from)
        bias = config.flag("use_bias", False)
        return replace(spec, qkv_bias=bias, o_bias=bias, mlp_bias=bias)

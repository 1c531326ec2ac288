"""Llama and the families that differ from it only in where they have biases."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import Decoder
from octavo.models.spec import ModelSpec


class Llama(Decoder):
    """Optional biases, one switch for all of attention; no sliding window whatever the config says."""

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        bias = config.flag("attention_bias", False)
        return replace(super().configure(config), qkv_bias=bias, o_bias=bias, mlp_bias=config.flag("mlp_bias", False))


class InternLM3(Decoder):
    """A bias for queries, keys and values, another for all other linears; transformers 5 renamed the keys."""

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        qkv_bias = config.flag("qkv_bias", config.flag("attention_bias", False))
        bias = config.flag("bias", config.flag("mlp_bias", False))
        return replace(super().configure(config), qkv_bias=qkv_bias, o_bias=bias, mlp_bias=bias)


class SeedOss(Llama):
    """Attention's output has a switch of its own."""

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        qkv_bias = config.flag("attention_bias", True)
        o_bias = config.flag("attention_out_bias", False)
        return replace(super().configure(config), qkv_bias=qkv_bias, o_bias=o_bias)

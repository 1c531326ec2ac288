"""Qwen3: Qwen2 with norms of query and key heads and a head size of its own; biases are off by default."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import Decoder
from octavo.models.qwen2 import qwen_windows
from octavo.models.spec import ModelSpec


class Qwen3(Decoder):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(head_dim=128)
        bias = config.flag("attention_bias", False)
        return qwen_windows(config, replace(super().configure(config), qkv_bias=bias, o_bias=bias, qk_norm="head"))

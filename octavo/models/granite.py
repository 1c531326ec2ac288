"""Granite 3 (dense): Llama with four multipliers."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.llama import Llama
from octavo.models.spec import ModelSpec


class Granite(Llama):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        return replace(
            super().configure(config),
            embedding_scale=config.number("embedding_multiplier", 1.0),
            residual_scale=config.number("residual_multiplier", 1.0),
            attention_scale=config.number("attention_multiplier", 1.0),
            logit_scale=1.0 / config.number("logits_scaling", 1.0),
        )

"""Granite 3 (dense): Llama with four multipliers. HyperCLOVA X has them too, and a norm after each part."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS
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


class HyperCLOVAX(Granite):
    """What divides Granite's logits multiplies here."""

    paths = {**PATHS, "attention_out": "post_norm1", "mlp_out": "post_norm2"}

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        spec = super().configure(config)
        return replace(
            spec,
            order="sandwich" if config.flag("use_post_norm", True) else "pre",
            attention_scale=config.number("attention_multiplier", spec.head_dim**-0.5),
            logit_scale=config.number("logits_scaling", 1.0),
        )

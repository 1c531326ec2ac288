"""Mistral: Llama without biases, with one sliding window for all layers; Ministral chooses it by layer."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import Decoder
from octavo.models.spec import ModelSpec, layer_windows, sliding_window


class Mistral(Decoder):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        spec = super().configure(config)
        return replace(spec, windows=(sliding_window(config),) * spec.num_layers)


class Ministral(Decoder):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        spec = super().configure(config)
        return replace(spec, windows=layer_windows(config, spec.num_layers, lambda layer: True))

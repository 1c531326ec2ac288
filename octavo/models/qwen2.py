"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and windows in some layers if asked for."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import Decoder
from octavo.models.spec import ModelSpec, layer_windows


class Qwen2(Decoder):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        return qwen_windows(config, replace(super().configure(config), qkv_bias=True))


def qwen_windows(config: ConfigReader, spec: ModelSpec) -> ModelSpec:
    """A window counts only with `use_sliding_window`; most configs carry one that does not."""
    if not config.flag("use_sliding_window", False):
        return spec
    first = config.integer("max_window_layers", 28, low=0)
    return replace(spec, windows=layer_windows(config, spec.num_layers, lambda layer: layer >= first))

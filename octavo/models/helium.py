"""Helium: Llama that rotates neighbours, with norms that are rounded once. CWM: Llama with windows in three layers of
four."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.llama import Llama
from octavo.models.spec import ModelSpec, layer_windows


class Helium(Llama):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        spec = super().configure(config.family(rms_norm_eps=1e-8, head_dim=128))
        ropes = tuple(rope and replace(rope, interleaved=True) for rope in spec.ropes)
        return replace(spec, norm="rms_wide", ropes=ropes, o_bias=False)


class Cwm(Llama):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        scaled = {
            "rope_type": "llama3",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        }
        if not config.has("rope_parameters") and not config.has("rope_scaling"):
            config = config.family(rope_parameters=scaled)
        config = config.family(rms_norm_eps=1e-5, head_dim=128, sliding_window=8192)
        spec = super().configure(config)
        return replace(spec, windows=layer_windows(config, spec.num_layers, lambda layer: layer % 4 != 0))

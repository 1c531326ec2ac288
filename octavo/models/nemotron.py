"""Nemotron 3 and 4, Minitron: layer norms whose weights are stored less one, a plain MLP with relu squared, rotation of
half of each head. Arcee and Jais 2 have that MLP too, with an RMS norm and with a usual layer norm."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.llama import Llama
from octavo.models.spec import ModelSpec


class Arcee(Llama):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        return replace(super().configure(config.family(hidden_act="relu2", rms_norm_eps=1e-5)), gated=False)


class Jais2(Arcee):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        defaults = {"layer_norm_eps": 1e-5, "attention_bias": True, "mlp_bias": True}
        return replace(super().configure(config.family({"rms_norm_eps": "layer_norm_eps"}, **defaults)), norm="layer")


class Nemotron(Arcee):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family({"rms_norm_eps": "norm_eps"}, norm_eps=1e-5, partial_rotary_factor=0.5)
        return replace(super().configure(config), norm="layer_plus_one")

"""Llama with DeepSeek V3's experts: GLM-4.5, which rotates half of each head, Solar Open,
and dots.llm1."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import Decoder
from octavo.models.experts import beyond, read_sigmoid
from octavo.models.spec import ModelSpec, layer_windows


class Glm4Moe(Decoder):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(rms_norm_eps=1e-5)
        if not config.section("rope_parameters").has("partial_rotary_factor"):
            config = config.family(partial_rotary_factor=0.5)
        spec = replace(super().configure(config), qkv_bias=config.flag("attention_bias", False))
        if config.flag("use_qk_norm", False):
            spec = replace(spec, qk_norm="head")
        return replace(spec, experts=read_sigmoid(config, spec, 1, True, 1.0))

    def rename(self, name: str) -> str | None:
        return None if beyond(name, self.spec.num_layers) else super().rename(name)


class Dots1(Decoder):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        bias = config.flag("attention_bias", False)
        spec = replace(super().configure(config), qk_norm="head", qkv_bias=bias, o_bias=bias)
        first = config.integer("max_window_layers", 62, low=0)
        windows = layer_windows(config, spec.num_layers, lambda layer: layer >= first)
        return replace(spec, windows=windows, experts=read_sigmoid(config, spec, 0, False, 1.0))


class SolarOpen(Decoder):
    """Experts in every layer."""

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(rms_norm_eps=1e-5, head_dim=128, rope_theta=1e6, moe_intermediate_size=1280)
        config = config.family(intermediate_size=config.integer("moe_intermediate_size", high=2**22))
        spec = replace(super().configure(config), qkv_bias=config.flag("attention_bias", False))
        experts = read_sigmoid(config.family(n_routed_experts=128, num_experts_per_tok=8), spec, 0, True, 1.0)
        return replace(spec, experts=replace(experts, layers=(True,) * spec.num_layers))

"""Llama with DeepSeek V3's experts: GLM-4.5, which rotates half of each head, Solar Open,
HunYuan 3 and dots.llm1."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.experts import beyond, read_sigmoid, sparse_layers
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


class HunYuan3(Glm4Moe):
    """Norms of heads, one dense layer, one switch for attention's biases."""

    paths = {
        **PATHS,
        "router": "mlp.router.gate",
        "correction": "mlp.expert_bias",
        "shared_gate": "mlp.shared_mlp.gate_proj",
        "shared_up": "mlp.shared_mlp.up_proj",
        "shared_down": "mlp.shared_mlp.down_proj",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        names = {
            "n_routed_experts": "num_local_experts" if config.has("num_local_experts") else "num_experts",
            "n_shared_experts": "num_shared_experts",
            "routed_scaling_factor": "router_scaling_factor",
        }
        defaults = {"rms_norm_eps": 1e-5, "head_dim": 128, "rope_theta": 11158840.0, "num_experts_per_tok": 8}
        config = config.family(names, **defaults, moe_intermediate_size=1536)
        if config.flag("mlp_bias", False):
            raise config.error("mlp_bias", "is not supported")
        bias = config.flag("attention_bias", False)
        spec = replace(ModelSpec.from_config(config), qk_norm="head", qkv_bias=bias, o_bias=bias)
        experts = read_sigmoid(config, spec, 1, True, 2.826)
        return replace(spec, experts=replace(experts, layers=sparse_layers(config, spec.num_layers, experts.layers)))

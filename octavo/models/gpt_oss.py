"""GPT-OSS: attention sinks, a window in every second layer, and experts whose gate is clamped, in MXFP4 on the hub."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.experts import read_experts
from octavo.models.spec import ModelSpec, all_but_every, layer_windows
from octavo.quant.mxfp4 import BLOCK


class GptOss(Decoder):
    quantised = ("mxfp4",)
    paths = {
        **PATHS,
        "router": "mlp.router",
        "experts_gate_up": "mlp.experts.gate_up_proj",
        "experts_down": "mlp.experts.down_proj",
        "experts_gate_up_bias": "mlp.experts.gate_up_proj_bias",
        "experts_down_bias": "mlp.experts.down_proj_bias",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(rms_norm_eps=1e-5, head_dim=64, rope_theta=150000.0, sliding_window=128)
        bias = config.flag("attention_bias", True)
        spec = replace(super().configure(config), norm="rms_wide", qkv_bias=bias, o_bias=bias, sinks=True)
        packed = config.has("quantization_config")
        if packed and (spec.hidden_size % BLOCK or spec.intermediate_size % BLOCK):
            raise config.error("quantization_config", f"needs sizes that are multiples of {BLOCK}")
        experts = read_experts(config, spec, "num_local_experts", inner="intermediate_size", score="chosen")
        experts = replace(
            experts,
            bias=True,
            interleaved=True,
            transposed=True,
            packed=packed,
            clamp=(config.number("swiglu_alpha", 1.702), config.number("swiglu_limit", 7.0)),
        )
        return replace(spec, windows=layer_windows(config, spec.num_layers, all_but_every(2)), experts=experts)

"""OLMo: norms without weights. OLMo 2: norms after attention and MLP only, and over all query and all key heads at
once; OLMo 3 adds windows, and scales the rope of its other layers alone."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.blocks import PostNorm
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.experts import read_experts
from octavo.models.rope import RopeSpec, config_of_kind
from octavo.models.spec import ModelSpec, all_but_every, layer_windows, sliding_layers


def read_clip(config: ConfigReader) -> float | None:
    return config.number("clip_qkv") if config.has("clip_qkv") else None


class Olmo(Decoder):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        bias = config.flag("attention_bias", False)
        config = config.family(rms_norm_eps=1e-5)
        spec = super().configure(config)
        return replace(spec, norm="layer_plain", qkv_clip=read_clip(config), qkv_bias=bias, o_bias=bias)


class Olmo2(Decoder):
    layer_class = PostNorm
    paths = {**PATHS, "attention_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        bias = config.flag("attention_bias", False)
        spec = ModelSpec.from_config(config.family(rms_norm_eps=1e-5))
        return replace(spec, norm="rms_wide", qk_norm="full", qkv_bias=bias, o_bias=bias)


class FlexOlmo(Olmo2):
    """With experts in every layer."""

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(rms_norm_eps=1e-6, rope_theta=5e5, num_experts=7, num_experts_per_tok=5)
        spec = super().configure(config)
        renormalize = config.flag("norm_topk_prob", False)
        experts = read_experts(config, spec, "num_experts", inner="intermediate_size", renormalize=renormalize)
        return replace(spec, experts=experts)


class Olmo3(Olmo2):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        theta = config.number("rope_theta", 5e5, low=1.0)
        full, local = (config_of_kind(config, f"{kind}_attention", theta) for kind in ("full", "sliding"))
        spec = super().configure(full)
        sliding = sliding_layers(config, spec.num_layers, all_but_every(4))
        rope = RopeSpec.from_config(local, spec.head_dim, config.integer("max_position_embeddings", high=2**30))
        return replace(
            spec,
            ropes=tuple(rope if slides else other for slides, other in zip(sliding, spec.ropes, strict=True)),
            windows=layer_windows(config, spec.num_layers, all_but_every(4)),
        )

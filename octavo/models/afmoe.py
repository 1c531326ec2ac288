"""AFMoE (Trinity): norms before and after each part and of heads, attention that is gated, windows but in every fourth
layer, which sees no positions; experts scored by sigmoids and chosen with a bias, beside shared ones."""

from __future__ import annotations

from dataclasses import replace

from octavo.layers.attention import GatedAttention
from octavo.models.blocks import Sandwich
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.experts import read_experts
from octavo.models.spec import ModelSpec, all_but_every, layer_windows


class Afmoe(Decoder):
    layer_class = Sandwich
    attention_class = GatedAttention
    paths = {
        **PATHS,
        "attention_gate": "self_attn.gate_proj",
        "attention_out": "post_attention_layernorm",
        "mlp_in": "pre_mlp_layernorm",
        "mlp_out": "post_mlp_layernorm",
        "router": "mlp.router.gate",
        "correction": "mlp.expert_bias",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        for key, known in (("attention_bias", False), ("route_norm", True)):
            if config.flag(key, known) is not known:
                raise config.error(key, f"must be {str(known).lower()}")
        for key, only in (("score_func", "sigmoid"), ("num_expert_groups", 1), ("n_group", 1)):
            if config.raw(key, only) != only:
                raise config.error(key, f"must be {only}")
        config = config.family(rms_norm_eps=1e-5, head_dim=128, sliding_window=1024, num_experts=64)
        config = config.family(num_experts_per_tok=6, moe_intermediate_size=1408)
        spec = super().configure(config)
        windows = layer_windows(config, spec.num_layers, all_but_every(config.integer("global_attn_every_n_layers", 4)))
        dense = config.integer("num_dense_layers", 1, low=0)
        layers = [layer >= dense for layer in range(spec.num_layers)]
        experts = read_experts(config, spec, "num_experts", layers=layers, score="sigmoid", renormalize=True)
        routing = replace(experts.routing, scale=config.number("route_scale", 1.0))
        shared = config.integer("num_shared_experts", 2, low=0, high=2**10) * experts.inner_size
        return replace(
            spec,
            norm="rms_wide",
            qk_norm="head",
            windows=windows,
            ropes=tuple(rope if window else None for rope, window in zip(spec.ropes, windows, strict=True)),
            embedding_scale=spec.hidden_size**0.5 if config.flag("mup_enabled", False) else 1.0,
            experts=replace(experts, routing=routing, shared_size=shared, correction=1),
        )

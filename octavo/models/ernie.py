"""ERNIE 4.5: Llama that rotates neighbours, with one switch for all biases; with experts too."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.experts import read_experts
from octavo.models.rope import RopeSpec
from octavo.models.spec import ModelSpec, own_head_dim


class Ernie(Decoder):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(tie_word_embeddings=True, rope_theta=5e5, head_dim=128)
        spec = ModelSpec.from_config(config, RopeSpec.interleaved_from)
        bias = config.flag("use_bias", False)
        return replace(spec, qkv_bias=bias, o_bias=bias, mlp_bias=bias)


class ErnieMoe(Ernie):
    """Experts from some layer on, chosen with a bias, and shared ones."""

    paths = {**PATHS, "correction": "mlp.moe_statics.e_score_correction_bias"}

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(moe_num_experts=64, moe_k=6, moe_intermediate_size=1536, head_dim=own_head_dim(config))
        spec = super().configure(config)
        start = config.integer("moe_layer_start_index", 1, low=0)
        end = config.integer("moe_layer_end_index", -1, low=-1)
        end = spec.num_layers - 1 if end == -1 else end
        every = config.integer("moe_layer_interval", 1)
        layers = [start <= layer <= end and (layer + 1) % every == 0 for layer in range(spec.num_layers)]
        experts = read_experts(config, spec, "moe_num_experts", top_k="moe_k", layers=layers, renormalize=True)
        shared = config.integer("moe_num_shared_experts", 2, low=0, high=2**10) * experts.inner_size
        return replace(spec, experts=replace(experts, shared_size=shared, wide_router=True, correction=2))

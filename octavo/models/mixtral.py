"""Mixtral: Mistral with experts in every layer, two of eight for a token; Granite's likewise, with multipliers."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.experts import read_experts
from octavo.models.granite import Granite
from octavo.models.spec import ModelSpec, sliding_window


class Mixtral(Decoder):
    paths = {
        **PATHS,
        "router": "block_sparse_moe.gate",
        "expert_gate": "block_sparse_moe.experts.{}.w1",
        "expert_up": "block_sparse_moe.experts.{}.w3",
        "expert_down": "block_sparse_moe.experts.{}.w2",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(num_local_experts=8, num_experts_per_tok=2)
        spec = super().configure(config)
        experts = read_experts(config, spec, "num_local_experts", inner="intermediate_size", renormalize=True)
        return replace(spec, windows=(sliding_window(config, None),) * spec.num_layers, experts=experts)


class GraniteMoe(Granite):
    """Weights are a softmax over the chosen experts' logits."""

    paths = {
        **PATHS,
        "router": "block_sparse_moe.router.layer",
        "experts_gate_up": "block_sparse_moe.input_linear.weight",
        "experts_down": "block_sparse_moe.output_linear.weight",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(num_local_experts=8, num_experts_per_tok=2)
        spec = super().configure(config)
        experts = read_experts(config, spec, "num_local_experts", inner="intermediate_size", score="chosen")
        return replace(spec, experts=experts)

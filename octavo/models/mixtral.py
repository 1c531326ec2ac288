"""Mixtral: Mistral with experts in every layer; MiniMax M2, Phi-3.5-MoE and Granite's, with experts likewise."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.experts import read_experts
from octavo.models.granite import Granite, with_windows
from octavo.models.rope import RopeSpec, rope_section
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


class MiniMaxM2(Decoder):
    """Rotation of a part of each head, norms over all heads, sigmoids with a bias for choosing."""

    paths = {**Mixtral.paths, "correction": "block_sparse_moe.e_score_correction_bias"}

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(head_dim=128, num_local_experts=256, num_experts_per_tok=8)
        if config.has("rotary_dim") and not config.has("partial_rotary_factor"):
            part = config.integer("rotary_dim", high=2**12) / config.integer("head_dim", high=2**12)
            config = config.family(partial_rotary_factor=part)
        spec = replace(super().configure(config), qk_norm="full")
        experts = read_experts(
            config, spec, "num_local_experts", inner="intermediate_size", score="sigmoid", renormalize=True
        )
        return replace(spec, experts=replace(experts, correction=1))


class PhiMoe(Decoder):
    """Layer norms, biases, longrope; two experts, each weighed among those whose logits are near its own."""

    paths = Mixtral.paths

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(rms_norm_eps=1e-5, num_local_experts=16, num_experts_per_tok=2, rope_theta=1e6)
        if config.integer("num_experts_per_tok") != 2:
            raise config.error("num_experts_per_tok", "must be 2 for sparsemixer")
        spec = ModelSpec.from_config(config, _phi_rope)
        bias = config.flag("attention_bias", False)
        spec = replace(spec, norm="layer", qkv_bias=bias, o_bias=bias, head_bias=config.flag("lm_head_bias", False))
        experts = read_experts(config, spec, "num_local_experts", inner="intermediate_size", score="sparsemixer")
        routing = replace(experts.routing, jitter=config.number("router_jitter_noise", 0.01, low=-1.0))
        windows = (sliding_window(config, None),) * spec.num_layers
        return replace(spec, windows=windows, experts=replace(experts, routing=routing))


def _phi_rope(config: ConfigReader, head_dim: int, max_position: int) -> RopeSpec:
    """The config gives what cosines and sines are multiplied with, for short and for long contexts.

    transformers 5 forgets the long factors here; Microsoft's own code, and ours, take them as for Phi-3.
    """
    rope = RopeSpec.from_config(config, head_dim, max_position)
    if rope.kind == "default":
        return rope
    short, long = (rope_section(config).number(f"{kind}_mscale") for kind in ("short", "long"))
    if short != long:
        raise config.error(
            "rope_scaling", f"has short_mscale {short:g} and long_mscale {long:g}: two are not supported"
        )
    return replace(rope, attention_factor=short)


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


class GraniteMoeShared(GraniteMoe):
    """Beside the experts an MLP that all tokens see."""

    paths = {
        **GraniteMoe.paths,
        "shared_gate_up": "shared_mlp.input_linear",
        "shared_down": "shared_mlp.output_linear",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        spec = super().configure(config)
        assert spec.experts is not None
        shared = config.integer("shared_intermediate_size", 0, low=0, high=2**22)
        return replace(spec, experts=replace(spec.experts, shared_size=shared))


class GraniteMoeSWA(GraniteMoeShared):
    paths = {
        **GraniteMoeShared.paths,
        "router": "block_sparse_moe.router",
        "experts_gate_up": "block_sparse_moe.experts.gate_up_proj",
        "experts_down": "block_sparse_moe.experts.down_proj",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        return with_windows(config, super().configure(config))

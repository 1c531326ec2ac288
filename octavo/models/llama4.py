"""Llama 4 (text): three layers of four rotate neighbours and see the chunk of tokens that they are in; the others see
all, no positions, and scale their queries by position. Experts see a token that its score has scaled."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from octavo.layers.attention import Attention
from octavo.layers.moe import MixtureOfExperts
from octavo.layers.qk_norm import QKNorm
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.experts import read_experts
from octavo.models.rope import RopeSpec
from octavo.models.spec import ExpertsSpec, ModelSpec


class Llama4(Decoder):
    paths = {
        **PATHS,
        "gate": "feed_forward.gate_proj",
        "up": "feed_forward.up_proj",
        "down": "feed_forward.down_proj",
        "router": "feed_forward.router",
        "experts_gate_up": "feed_forward.experts.gate_up_proj",
        "experts_down": "feed_forward.experts.down_proj",
        "shared_gate": "feed_forward.shared_expert.gate_proj",
        "shared_up": "feed_forward.shared_expert.up_proj",
        "shared_down": "feed_forward.shared_expert.down_proj",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        defaults = {"rope_theta": 5e5, "rms_norm_eps": 1e-5, "head_dim": 128, "num_local_experts": 16}
        config = config.family(None, **defaults, intermediate_size_mlp=16384, num_experts_per_tok=1)
        spec = ModelSpec.from_config(
            config.family({"intermediate_size": "intermediate_size_mlp"}), RopeSpec.interleaved_from
        )
        bias = config.flag("attention_bias", False)
        every = config.integer("no_rope_layer_interval", 4)
        usual = [int((layer + 1) % every != 0) for layer in range(spec.num_layers)]
        rotated = config.raw("no_rope_layers", usual) or usual
        if type(rotated) is not list or len(rotated) < spec.num_layers or any(flag not in (0, 1) for flag in rotated):
            raise config.error("no_rope_layers", f"must have a 0 or 1 for each of {spec.num_layers} layers")
        chunk = config.integer("attention_chunk_size", 8192, high=2**30)
        kinds = ["chunked_attention" if flag else "full_attention" for flag in rotated]
        kinds = config.texts("layer_types") if config.has("layer_types") else kinds
        if len(kinds) < spec.num_layers or not set(kinds) <= {"chunked_attention", "full_attention"}:
            raise config.error("layer_types", "must say chunked_attention or full_attention for each layer")
        scale = None
        if config.flag("attn_temperature_tuning", True):
            scale = (config.number("attn_scale", 0.1), config.integer("floor_scale", 8192, high=2**30))
        return replace(
            spec,
            chunked=True,
            ropes=tuple(rope if flag else None for rope, flag in zip(spec.ropes, rotated, strict=False)),
            windows=tuple(chunk if kind == "chunked_attention" else None for kind in kinds[: spec.num_layers]),
            query_scale=scale,
            qk_norm="head" if config.flag("use_qk_norm", True) else None,
            qk_norm_late=True,
            qkv_bias=bias,
            o_bias=bias,
            experts=_experts(config, spec),
        )

    def make_attention(self, layer: int) -> Attention:
        attention = super().make_attention(layer)
        assert isinstance(attention, Attention)
        if self.spec.ropes[layer] is None:
            attention.norm = None
            if self.spec.query_scale is not None:
                beta, length = self.spec.query_scale
                passed_P = torch.arange(1, self.max_len + 1, device=self.device) // length
                attention.scales_P = (1 + beta * torch.log1p(passed_P.float())).to(self.dtype)
        return attention

    def make_qk_norm(self) -> QKNorm | None:
        spec = self.spec
        if spec.qk_norm is None:
            return None
        heads = (spec.num_heads, spec.num_kv_heads)
        return QKNorm(heads, spec.head_dim, spec.norm_eps, self.dtype, self.device, plain=True, late=True)

    def make_experts(self, experts: ExpertsSpec) -> MixtureOfExperts:
        made = super().make_experts(experts)
        return ScaledExperts(made.router, made.experts, made.shared)


class ScaledExperts(MixtureOfExperts):
    """One expert for a token, which is multiplied by the sigmoid of its logit before, so that its weight is one."""

    __slots__ = ()

    def __call__(self, x_TE: Tensor) -> Tensor:
        assert self.experts.backend is not None, "finish() comes first"
        shared_TE = None if self.shared is None else self.shared(x_TE)
        logits_TX = self.router(x_TE)
        scores_T1 = torch.sigmoid(logits_TX.amax(-1, keepdim=True).float()).to(x_TE.dtype)
        return self.experts.backend(x_TE * scores_T1, logits_TX, None, shared_TE)


def _experts(config: ConfigReader, spec: ModelSpec) -> ExpertsSpec:
    step = config.integer("interleave_moe_layer_step", 1)
    chosen = config.raw("moe_layers", list(range(step - 1, spec.num_layers, step)))
    if type(chosen) is not list or any(type(layer) is not int for layer in chosen):
        raise config.error("moe_layers", f"must be a list of layers, got {chosen!r:.80}")
    if config.integer("num_experts_per_tok") != 1:
        raise config.error("num_experts_per_tok", "must be 1")
    layers = [layer in chosen for layer in range(spec.num_layers)]
    experts = read_experts(config, spec, "num_local_experts", inner="intermediate_size", layers=layers, score="chosen")
    return replace(experts, shared_size=experts.inner_size, transposed=True)

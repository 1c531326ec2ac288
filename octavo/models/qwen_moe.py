"""Qwen2 and Qwen3 with experts, in all layers or in some; Mellum 2; OLMoE."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.experts import read_experts, sparse_layers
from octavo.models.olmo import read_clip
from octavo.models.qwen2 import Qwen2
from octavo.models.qwen3 import Qwen3
from octavo.models.rope import RopeSpec, config_of_kind
from octavo.models.spec import ExpertsSpec, ModelSpec, layer_windows, own_head_dim, sliding_window


def _experts(config: ConfigReader, spec: ModelSpec) -> ExpertsSpec:
    step = config.integer("decoder_sparse_step", 1)
    without = config.raw("mlp_only_layers", [])
    if type(without) is not list or any(type(layer) is not int for layer in without):
        raise config.error("mlp_only_layers", f"must be a list of layers, got {without!r:.80}")
    layers = [layer not in without and (layer + 1) % step == 0 for layer in range(spec.num_layers)]
    renormalize = config.flag("norm_topk_prob", False)
    return read_experts(config, spec, "num_experts", layers=layers, renormalize=renormalize)


class Qwen2Moe(Qwen2):
    """Beside the experts an MLP that all tokens see, weighed by a sigmoid."""

    paths = {
        **PATHS,
        "shared_gate": "mlp.shared_expert.gate_proj",
        "shared_up": "mlp.shared_expert.up_proj",
        "shared_down": "mlp.shared_expert.down_proj",
        "shared_router": "mlp.shared_expert_gate",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(num_experts=60, num_experts_per_tok=4, moe_intermediate_size=1408)
        spec = replace(super().configure(config), qkv_bias=config.flag("qkv_bias", True))
        shared = config.integer("shared_expert_intermediate_size", 5632, high=2**22)
        return replace(spec, experts=replace(_experts(config, spec), shared_size=shared, shared_gate=True))


class Qwen3Moe(Qwen3):
    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        if config.has("num_local_experts"):  # as transformers 5 saves it
            config = config.family({"num_experts": "num_local_experts"})
        config = config.family(num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768)
        config = config.family(head_dim=own_head_dim(config))  # other than in Qwen3
        spec = super().configure(config)
        if config.flag("use_sliding_window", False):  # of all layers, other than in Qwen3
            spec = replace(spec, windows=(sliding_window(config),) * spec.num_layers)
        return replace(spec, experts=_experts(config, spec))


class Mellum(Qwen3):
    """Which layers have windows, with a rope of their own, and which have experts, is said of each."""

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        names = {"num_experts": "num_local_experts"} if config.has("num_local_experts") else {}
        config = config.family(names, sliding_window=1024, num_experts_per_tok=8, moe_intermediate_size=896)
        local = config_of_kind(config, "sliding_attention", 1e4)
        spec = super().configure(config_of_kind(config, "full_attention", 5e5).family(use_sliding_window=False))
        rope = RopeSpec.from_config(local, spec.head_dim, config.integer("max_position_embeddings", high=2**30))
        windows = layer_windows(config, spec.num_layers, lambda layer: False)
        experts = read_experts(config, spec, "num_experts", renormalize=config.flag("norm_topk_prob", True))
        layers = sparse_layers(config, spec.num_layers, experts.layers)
        ropes = tuple(rope if window else full for window, full in zip(windows, spec.ropes, strict=True))
        return replace(spec, windows=windows, ropes=ropes, experts=replace(experts, layers=layers))

    def rename(self, name: str) -> str | None:
        return None if name.startswith("mtp.") else super().rename(name)  # it drafts further tokens


class Olmoe(Decoder):
    """Norms over all query and all key heads at once."""

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        config = config.family(rms_norm_eps=1e-5, num_experts=64, num_experts_per_tok=8)
        bias = config.flag("attention_bias", False)
        spec = replace(super().configure(config), qk_norm="full", qkv_bias=bias, o_bias=bias)
        spec = replace(spec, qkv_clip=read_clip(config))
        renormalize = config.flag("norm_topk_prob", False)
        experts = read_experts(config, spec, "num_experts", inner="intermediate_size", renormalize=renormalize)
        return replace(spec, experts=experts)

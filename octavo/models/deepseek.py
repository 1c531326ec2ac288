"""DeepSeek V2 and V3: latent attention, and experts beside shared ones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

from octavo.attention.base import AttendOptions
from octavo.layers.latent import LatentAttention
from octavo.layers.rope import Rope
from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.experts import after_dense, beyond, read_experts, read_groups, read_sigmoid, sparse_layers
from octavo.models.rope import RopeSpec, rope_section
from octavo.models.spec import ExpertsSpec, LatentSpec, ModelSpec


class DeepseekV2(Decoder):
    dense: ClassVar[int] = 0  # layers without experts, where the config does not say
    paths = {
        **PATHS,
        "q_a": "self_attn.q_a_proj",
        "q_a_norm": "self_attn.q_a_layernorm",
        "q_b": "self_attn.q_b_proj",
        "kv_a": "self_attn.kv_a_proj_with_mqa",
        "kv_a_norm": "self_attn.kv_a_layernorm",
        "kv_b": "self_attn.kv_b_proj",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        latent = LatentSpec(
            rank=config.integer("kv_lora_rank"),
            rope_dim=config.integer("qk_rope_head_dim", high=2**12),
            nope_dim=config.integer("qk_nope_head_dim", high=2**12),
            value_dim=config.integer("v_head_dim", high=2**12),
            query_rank=config.integer("q_lora_rank") if config.has("q_lora_rank") else None,
        )
        neighbours = config.flag("rope_interleave", True)

        def read_rope(config: ConfigReader, head_dim: int, max_position: int) -> RopeSpec:
            rope = RopeSpec.from_config(config, latent.rope_dim, max_position)
            return replace(rope, interleaved=neighbours)

        # The head size that some configs give is that of the turned part.
        spec = ModelSpec.from_config(config.family(head_dim=latent.rope_dim), read_rope)
        spec = replace(
            spec,
            latent=latent,
            num_kv_heads=1,
            head_dim=latent.rank + latent.rope_dim,
            attention_scale=(latent.nope_dim + latent.rope_dim) ** -0.5 * _longer(config),
            qkv_bias=config.flag("attention_bias", False),
        )
        some = any(after_dense(config, spec.num_layers, cls.dense))
        return replace(spec, experts=cls.experts(config, spec) if some else None)

    @classmethod
    def experts(cls, config: ConfigReader, spec: ModelSpec) -> ExpertsSpec:
        config = config.family(n_routed_experts=64, moe_intermediate_size=1407)
        method = config.text("topk_method", "greedy")
        if method not in ("greedy", "group_limited_greedy"):
            raise config.error("topk_method", f"must be greedy or group_limited_greedy, got {method!r:.80}")
        experts = read_experts(config, spec, "n_routed_experts", layers=after_dense(config, spec.num_layers, cls.dense))
        if method != "greedy":
            experts = read_groups(config, experts, 1)
        # transformers reads norm_topk_prob of V2 and does not heed it.
        scale = config.number("routed_scaling_factor", 1.0)
        shared = config.integer("n_shared_experts", 2, low=0, high=2**10) * experts.inner_size
        return replace(experts, routing=replace(experts.routing, scale=scale), shared_size=shared, wide_router=True)

    def rename(self, name: str) -> str | None:
        return None if beyond(name, self.spec.num_layers) else super().rename(name)

    def make_rope(self, rope: RopeSpec) -> Rope:
        return Rope(
            rope.frequencies(self.max_len),
            rope.attention_factor,
            rope.rotary_dim,
            self.max_len,
            self.dtype,
            self.device,
            rope.interleaved,
        )

    def make_attention(self, layer: int) -> LatentAttention:
        spec = self.spec
        latent, rope = spec.latent, spec.ropes[layer]
        assert latent is not None and rope is not None
        return LatentAttention(
            layer,
            spec.hidden_size,
            spec.num_heads,
            (latent.rank, latent.rope_dim, latent.nope_dim, latent.value_dim),
            latent.query_rank,
            self.ropes[rope],
            AttendOptions(spec.attention_scale, spec.windows[layer], spec.score_softcap),
            spec.qkv_bias,
            LATENT_EPS,
            self.dtype,
            self.device,
        )


LATENT_EPS = 1e-6  # of the norms inside the attention, whatever the config's is


class Youtu(DeepseekV2):
    """As V2 without experts."""

    dense = 2**12

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        return super().configure(config.family(tie_word_embeddings=True))


class MiniCPM3(Youtu):
    """With multipliers of embeddings, residual and logits."""

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        own = config.integer("hidden_size") // config.integer("num_attention_heads", high=2**14)
        defaults = {"kv_lora_rank": 256, "q_lora_rank": 768, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32}
        spec = super().configure(config.family(None, **defaults, v_head_dim=own, rope_interleave=False))
        depth = spec.num_layers**0.5
        return replace(
            spec,
            embedding_scale=config.number("scale_emb", 12.0),
            residual_scale=config.number("scale_depth", 1.4) / depth,
            logit_scale=config.integer("dim_model_base", 256) / spec.hidden_size,
        )


class DeepseekV3(DeepseekV2):
    """As V2, but for how experts are chosen."""

    dense = 3

    @classmethod
    def experts(cls, config: ConfigReader, spec: ModelSpec) -> ExpertsSpec:
        config = config.family(n_routed_experts=256, num_experts_per_tok=8, moe_intermediate_size=2048)
        if not config.has("n_group"):
            config = config.family(n_group=8, topk_group=4)
        return read_sigmoid(config, spec, cls.dense, True, 2.5)


class Glm4MoeLite(DeepseekV3):
    """As V3; which layers have experts may be said of each."""

    dense = 1

    @classmethod
    def experts(cls, config: ConfigReader, spec: ModelSpec) -> ExpertsSpec:
        experts = read_sigmoid(config, spec, cls.dense, True, 1.8)
        return replace(experts, layers=sparse_layers(config, spec.num_layers, experts.layers))


def _longer(config: ConfigReader) -> float:
    """What YaRN multiplies scores with, where the config says `mscale_all_dim`."""
    scaling = rope_section(config)
    kind = scaling.text("rope_type" if scaling.has("rope_type") else "type", "default")
    if kind == "default" or not scaling.raw("mscale_all_dim", 0):
        return 1.0
    factor, weight = scaling.number("factor"), scaling.number("mscale_all_dim")
    return (0.1 * weight * math.log(factor) + 1.0) ** 2 if factor > 1 else 1.0

"""HunYuan: norms of query and key heads after they are rotated, by a base that `alpha` stretches; with experts too."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.decoder import PATHS, Decoder
from octavo.models.experts import read_experts
from octavo.models.rope import RopeSpec, rope_section
from octavo.models.spec import ModelSpec


class HunYuan(Decoder):
    paths = {**PATHS, "q_norm": "self_attn.query_layernorm", "k_norm": "self_attn.key_layernorm"}

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        for key, known in (("use_qk_norm", True), ("use_cla", False)):
            if config.flag(key, known) is not known:
                raise config.error(key, f"must be {str(known).lower()}")
        spec = ModelSpec.from_config(config.family(rms_norm_eps=1e-5), _read_rope)
        bias = config.flag("attention_bias", False)
        return replace(spec, qk_norm="head", qk_norm_late=True, qkv_bias=bias, o_bias=bias)


class HunYuanMoe(HunYuan):
    """Beside the experts an MLP that all tokens see; what configs give layer by layer is the same in all."""

    paths = {
        **HunYuan.paths,
        "router": "mlp.gate.wg",
        "shared_gate": "mlp.shared_mlp.gate_proj",
        "shared_up": "mlp.shared_mlp.up_proj",
        "shared_down": "mlp.shared_mlp.down_proj",
    }

    @classmethod
    def configure(cls, config: ConfigReader) -> ModelSpec:
        spec = super().configure(config)
        inner = spec.intermediate_size
        known = {"num_experts": 1, "moe_topk": 1, "num_shared_expert": 1, "moe_intermediate_size": inner}
        numbers = {key: _same(config, key, default) for key, default in known.items()}
        config = ConfigReader(numbers, config.where)
        if numbers["num_shared_expert"] != 1 or numbers["moe_intermediate_size"] != inner:
            raise config.error("num_shared_expert", f"and moe_intermediate_size must be 1 and {inner}")
        experts = read_experts(config, spec, "num_experts", top_k="moe_topk", renormalize=True)
        return replace(spec, experts=replace(experts, shared_size=inner, wide_router=True))


def _same(config: ConfigReader, key: str, default: int) -> int:
    """A number, or the one that a list has for all layers."""
    value = config.raw(key, default)
    if type(value) is list and value and all(item == value[0] for item in value):
        value = value[0]
    if type(value) is not int:
        raise config.error(key, f"must be an integer, the same for all layers, got {value!r:.80}")
    return value


def _read_rope(config: ConfigReader, head_dim: int, max_position: int) -> RopeSpec:
    scaling = rope_section(config)
    if not scaling.raw("alpha", 0):
        return RopeSpec.from_config(config, head_dim, max_position)
    # It is called dynamic, but depends on no length.
    theta = (scaling if scaling.has("rope_theta") else config).number("rope_theta", 1e4, low=1.0)
    theta *= scaling.number("alpha") ** (head_dim / (head_dim - 2))
    return RopeSpec("default", theta, head_dim, max_position, max_position)

"""What configs say of experts, in the keys that most families share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from octavo.models.config import ConfigReader
from octavo.models.spec import ExpertsSpec, ModelSpec
from octavo.moe.base import Routing, Score


def read_experts(
    config: ConfigReader,
    spec: ModelSpec,
    count: str,
    *,
    inner: str = "moe_intermediate_size",
    top_k: str = "num_experts_per_tok",
    layers: Sequence[bool] = (),  # which have experts; none given: all
    score: Score = "softmax",
    renormalize: bool = False,
) -> ExpertsSpec:
    """`count`, `inner` and `top_k` are the keys of numbers that families call otherwise."""
    experts = config.integer(count, high=2**14)
    routing = Routing(experts, config.integer(top_k, high=experts), score, renormalize)
    return ExpertsSpec(routing, config.integer(inner, high=2**22), tuple(layers) or (True,) * spec.num_layers)


def after_dense(config: ConfigReader, num_layers: int, default: int = 0) -> list[bool]:
    """The first layers have none, `first_k_dense_replace` of them."""
    dense = config.integer("first_k_dense_replace", default, low=0, high=2**12)
    return [layer >= dense for layer in range(num_layers)]


def sparse_layers(config: ConfigReader, num_layers: int, otherwise: Sequence[bool]) -> tuple[bool, ...]:
    """Which have experts, as `mlp_layer_types` says; without it, `otherwise`."""
    if not config.has("mlp_layer_types"):
        return tuple(otherwise)
    types = config.texts("mlp_layer_types")
    if len(types) != num_layers or not set(types) <= {"dense", "sparse"}:
        raise config.error("mlp_layer_types", f"must say dense or sparse for each of {num_layers} layers")
    return tuple(kind == "sparse" for kind in types)


def read_groups(config: ConfigReader, experts: ExpertsSpec, best: int) -> ExpertsSpec:
    """With DeepSeek's `n_group` and `topk_group`: `best` experts of a group say how good it is."""
    routing = experts.routing
    groups = config.integer("n_group", 1, high=routing.num_experts)
    kept = config.integer("topk_group", groups, high=groups)
    size = routing.num_experts // groups
    if routing.num_experts % groups:
        raise config.error("n_group", f"must divide the {routing.num_experts} experts, got {groups}")
    if groups > 1 and (size < best or kept * size < routing.top_k):
        raise config.error("topk_group", f"leaves too few experts: {kept} groups of {size} for {routing.top_k}")
    return replace(experts, routing=replace(routing, groups=groups, kept_groups=kept, group_best=best))


def read_sigmoid(config: ConfigReader, spec: ModelSpec, dense: int, renormalize: bool, scale: float) -> ExpertsSpec:
    """DeepSeek V3's, and what follows it: sigmoids, a bias for choosing, groups, shared experts. The numbers are
    defaults of keys."""
    layers = after_dense(config, spec.num_layers, dense)
    renormalize = config.flag("norm_topk_prob", renormalize)
    experts = read_experts(config, spec, "n_routed_experts", layers=layers, score="sigmoid", renormalize=renormalize)
    experts = read_groups(config, experts, 2)
    shared = config.integer("n_shared_experts", 1, low=0, high=2**10)
    return replace(
        experts,
        routing=replace(experts.routing, scale=config.number("routed_scaling_factor", scale)),
        shared_size=shared * experts.inner_size,
        wide_router=True,
        correction=1,
    )


def beyond(name: str, num_layers: int) -> bool:
    """Whether a tensor is of a layer after the last: those that draft further tokens are no part of the model."""
    prefix = "model.layers."
    number = name.removeprefix(prefix).split(".", 1)[0] if name.startswith(prefix) else ""
    return number.isdecimal() and int(number) >= num_layers

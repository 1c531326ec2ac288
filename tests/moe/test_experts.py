"""Experts: routing and products of every backend against a loop over tokens; choices of kernels."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from octavo.core.errors import ConfigError
from octavo.kernels import moe_route
from octavo.moe import forms, select, triton_backend
from octavo.moe.base import ExpertWeights, MoeSpec, Routing
from octavo.moe.forms import Grouped, Pairs, Tiles
from octavo.moe.routing import route
from octavo.moe.torch_backend import TorchExperts, gated
from octavo.moe.triton_backend import TritonExperts
from octavo.quant.schemes import Plain

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PLAIN = Routing(5, 2)
ROUTINGS = {
    "softmax": PLAIN,
    "normed": replace(PLAIN, renormalize=True),
    "all": Routing(3, 3, scale=2.5),
    "one": Routing(6, 1, "sigmoid"),
    "chosen": Routing(7, 3, "chosen"),
    "sigmoid": Routing(8, 3, "sigmoid", True, 1.7),
    "best": Routing(12, 3, "softmax", False, 1.7, 4, 2, 1),
    "groups": Routing(12, 4, "sigmoid", True, 2.5, 4, 3, 2),
    "sparse": Routing(7, 2, "sparsemixer", jitter=0.2),
    "odd-groups": Routing(15, 4, "sigmoid", True, 2.5, 3, 2, 2),
}
SMALL = [Pairs(rows=8, block=16, warps=1), Pairs(rows=16, block=32, warps=1), Tiles(16, 16, 16, 1, 2)]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(DEVICE, dtype)


def by_hand(logits: list[float], bias: list[float], routing: Routing) -> dict[int, float]:
    """Experts and weights of a token, from the rules as they are written down."""
    exact = torch.tensor(logits, dtype=torch.float64)
    if routing.score == "sparsemixer":
        found, left = {}, dict(enumerate(logits))
        for _ in range(routing.top_k):
            top = max(left.values())
            near = [x for x in left.values() if (top - x) / max(abs(x), top) <= 2 * routing.jitter]
            found[max(left, key=lambda i: left[i])] = 1 / sum(math.exp(x - top) for x in near)
            left = {i: x for i, x in left.items() if i not in found}
        return found
    scores = {"softmax": exact.softmax(0), "sigmoid": exact.sigmoid(), "chosen": exact}[routing.score].tolist()
    choice = {i: score + add for i, (score, add) in enumerate(zip(scores, bias, strict=True))}
    size = routing.num_experts // routing.groups
    if routing.groups > 1:
        good = [
            sum(sorted((choice[g * size + i] for i in range(size)), reverse=True)[: routing.group_best])
            for g in range(routing.groups)
        ]
        kept = sorted(range(routing.groups), key=lambda g: -good[g])[: routing.kept_groups]
        choice = {i: value for i, value in choice.items() if i // size in kept}
    chosen = sorted(choice, key=lambda i: -choice[i])[: routing.top_k]
    weights = torch.tensor([scores[i] for i in chosen], dtype=torch.float64)
    if routing.score == "chosen":
        weights = weights.softmax(0)
    if routing.renormalize:
        weights = weights / weights.sum()
    return dict(zip(chosen, (weights * routing.scale).tolist(), strict=True))


def routed(weights_TK, experts_TK) -> list[dict[int, float]]:
    return [dict(zip(e, w, strict=True)) for e, w in zip(experts_TK.tolist(), weights_TK.tolist(), strict=True)]


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("biased", [False, True])
def test_routing(name: str, biased: bool) -> None:
    routing, tokens = ROUTINGS[name], 9
    logits, bias = (
        2 * draw(tokens, routing.num_experts),
        draw(routing.num_experts, seed=1) if biased and name != "sparse" else None,
    )
    zeros = [0.0] * routing.num_experts
    wanted = [by_hand(row, zeros if bias is None else bias.tolist(), routing) for row in logits.tolist()]
    rows = 4
    launched = moe_route.route(logits, bias, routing, aligned=True, rows=rows)
    for got in (routed(*route(logits, bias, routing)), routed(launched.weights_TK, launched.experts_TK)):
        assert [set(token) for token in got] == [set(token) for token in wanted]
        for token, right in zip(got, wanted, strict=True):
            assert token == pytest.approx(right, rel=1e-5)
    # Rows of an expert lie together, all of them once, in tiles that cover them.
    experts = launched.experts_TK.flatten().tolist()
    order = launched.order_P.tolist()
    assert sorted(order) == list(range(len(experts)))
    assert [experts[pair] for pair in order] == sorted(experts)
    places = [launched.starts_X.tolist()[e] + r for e, r in zip(experts, launched.ranks_TK.tolist(), strict=True)]
    assert [order[place] for place in places] == list(range(len(experts)))
    assert launched.ends_X.tolist() == [sum(e <= x for e in experts) for x in range(routing.num_experts)]
    tiles = [tile for tile in launched.tiles.tolist() if tile[0] >= 0]
    covered = [(e, first + i) for e, first, count, _ in tiles for i in range(count)]
    assert covered == [(experts[pair], place) for place, pair in enumerate(order)]
    assert all(1 <= tile[2] <= rows for tile in tiles)
    assert not moe_route._counters(DEVICE).any()


def test_a_row_that_is_no_number_stays_within_the_experts() -> None:
    logits = torch.full((2, 5), torch.nan, device=DEVICE)
    logits[1] = torch.inf
    found = moe_route.route(logits, None, PLAIN, aligned=True, rows=4)
    assert ((found.experts_TK >= 0) & (found.experts_TK < 5)).all()
    assert found.ends_X[-1] == 4


def make(routing: Routing = PLAIN, hidden: int = 40, inner: int = 24, dtype: torch.dtype = torch.float32, **options):
    spec = MoeSpec(routing, hidden, inner, options.pop("activation", "silu"), dtype, DEVICE, **options)
    x = routing.num_experts
    weights = ExpertWeights(
        Plain(0.2 * draw(x * 2 * inner, hidden, seed=2, dtype=dtype)),
        Plain(0.2 * draw(x * hidden, inner, seed=3, dtype=dtype)),
        draw(x, 2 * inner, seed=4, dtype=dtype) if spec.bias else None,
        draw(x, hidden, seed=5, dtype=dtype) if spec.bias else None,
    )
    return spec, weights


def inputs(spec: MoeSpec, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x_TE, shared_TE = draw(tokens, spec.hidden_size, seed=6, dtype=spec.dtype), draw(tokens, spec.hidden_size, seed=7)
    logits_TX, bias_X = 2 * draw(tokens, spec.routing.num_experts, seed=8), 0.1 * draw(spec.routing.num_experts, seed=9)
    return x_TE, logits_TX, bias_X, shared_TE.to(spec.dtype)


def reference(spec: MoeSpec, weights: ExpertWeights, x_TE, logits_TX, bias_X, shared_TE) -> torch.Tensor:
    """In float64, a token and an expert at a time."""
    out = shared_TE.double()
    x = spec.routing.num_experts
    gate_up_XGE = weights.gate_up.dequantize(torch.float64).view(x, -1, spec.hidden_size)
    down_XEI = weights.down.dequantize(torch.float64).view(x, -1, spec.inner_size)
    for token, chosen in enumerate(routed(*route(logits_TX, bias_X, spec.routing))):
        for expert, weight in chosen.items():
            gate_up = gate_up_XGE[expert] @ x_TE[token].double()
            if weights.gate_up_bias_XG is not None:
                gate_up = gate_up + weights.gate_up_bias_XG[expert]
            y = down_XEI[expert] @ gated(gate_up[None], spec)[0]
            if weights.down_bias_XE is not None:
                y = y + weights.down_bias_XE[expert]
            out[token] += weight * y
    return out


WAYS = {
    "silu": {},
    "gelu": {"activation": "gelu"},
    "gelu_tanh": {"activation": "gelu_tanh"},
    "oss": {"activation": "clamped", "bias": True, "interleaved": True, "clamp": (1.702, 1.0)},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", [None, *SMALL], ids=["torch", "pairs", "wide-pairs", "tiles"])
def test_experts(way: str, form) -> None:
    spec, weights = make(**WAYS[way])
    given = inputs(spec, 11 if form is None or isinstance(form, Tiles) else 1 if "gelu" in way else 3)
    wanted = reference(spec, weights, *given)
    got = TorchExperts(spec, weights)(*given) if form is None else TritonExperts(spec, weights).compute(form, *given)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", [None, *SMALL], ids=["torch", "pairs", "wide-pairs", "tiles"])
def test_half_precision(form, dtype) -> None:
    if form is not None and isinstance(form, Tiles) and dtype == torch.bfloat16 and DEVICE.type == "cpu":
        pytest.skip("Triton's interpreter cannot multiply bfloat16")
    spec, weights = make(dtype=dtype)
    given = inputs(spec, 4)
    backend = TorchExperts(spec, weights) if form is None else TritonExperts(spec, weights)
    got = backend(*given) if form is None else backend.compute(form, *given)
    assert got.dtype == dtype
    near = 4e-2 if dtype == torch.bfloat16 else 4e-3
    torch.testing.assert_close(got.double(), reference(spec, weights, *given), rtol=near, atol=near)


def by_expert(x_PI: torch.Tensor, weight_XOI: torch.Tensor, ends_X: torch.Tensor) -> torch.Tensor:
    """torch's grouped product, expert by expert."""
    parts = x_PI.tensor_split(ends_X.cpu().long()[:-1])
    return torch.cat([part @ weight.T for part, weight in zip(parts, weight_XOI, strict=True)])


@pytest.mark.parametrize("way", WAYS)
def test_grouped_products(way: str, monkeypatch) -> None:
    monkeypatch.setattr(triton_backend, "grouped_mm", by_expert)
    spec, weights = make(**WAYS[way])
    given = inputs(spec, 11)
    got = TritonExperts(spec, weights).compute(Grouped(), *given)
    torch.testing.assert_close(got.double(), reference(spec, weights, *given), rtol=1e-4, atol=1e-4)


def test_without_shared_experts_and_with_one_token_in_an_empty_step() -> None:
    spec, weights = make(Routing(5, 2, "softmax", True))
    x_TE, logits_TX, _, shared_TE = inputs(spec, 3)
    wanted = reference(spec, weights, x_TE, logits_TX, None, torch.zeros_like(shared_TE))
    for form in SMALL:
        got = TritonExperts(spec, weights).compute(form, x_TE, logits_TX, None, None)
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [*SMALL, Grouped()], ids=["pairs", "wide-pairs", "tiles", "grouped"])
@pytest.mark.parametrize("wrong", ["gate_up", "down", "gate_up_bias_XG", "down_bias_XE", "x", "shared"])
def test_a_wrong_input_is_seen(form, wrong: str, monkeypatch) -> None:
    monkeypatch.setattr(triton_backend, "grouped_mm", by_expert)
    spec, weights = make(Routing(3, 3), 16, 16, bias="bias" in wrong)  # every expert is used
    x_TE, logits_TX, bias_X, shared_TE = inputs(spec, 2)
    wanted = reference(spec, weights, x_TE, logits_TX, bias_X, shared_TE)
    spoiled = {"x": x_TE, "shared": shared_TE}[wrong] if wrong in ("x", "shared") else getattr(weights, wrong)
    spoiled = spoiled.weight_NK if isinstance(spoiled, Plain) else spoiled
    spoiled.view(-1)[-1] += 3.0
    got = TritonExperts(spec, weights).compute(form, x_TE, logits_TX, bias_X, shared_TE)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)


def test_forms_by_roofline() -> None:
    qwen, mixtral = Routing(128, 8), Routing(8, 2)
    assert isinstance(forms.by_roofline(1, mixtral, True), Pairs)
    assert isinstance(forms.by_roofline(8, qwen, True), Pairs)
    assert forms.by_roofline(9, qwen, True) == Tiles(16)
    assert forms.by_roofline(2, mixtral, True) == Pairs()
    assert forms.by_roofline(3, mixtral, True) == Tiles(16)
    assert forms.by_roofline(16384, qwen, True) == Grouped()
    assert isinstance(forms.by_roofline(16384, qwen, False), Tiles)


@pytest.mark.parametrize("room", [64 << 10, 99 << 10, 163 << 10, 227 << 10])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_forms_fit_into_shared_memory(room: int, itemsize: int) -> None:
    for tokens in (1, 9, 64, 512, 4096):
        form = forms.fit(forms.by_roofline(tokens, Routing(128, 8), False), itemsize, room)
        if isinstance(form, Tiles):
            assert form.stages * form.block * (2 * form.rows + form.tile) * itemsize <= room
            assert form.stages >= 2 and form.block >= 32 and form.rows >= 16
    assert forms.fit(Tiles(16), 2, 227 << 10) == Tiles(16)
    assert forms.fit(Pairs(), 4, 1) == Pairs()


def test_tuned_forms(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(forms, "TUNED", tmp_path)
    forms.tuned.cache_clear()
    found = {"5,24,40": {"64": forms.write(Tiles(32)), "8": forms.write(Pairs(8)), "9999": {"kind": "grouped"}}}
    (tmp_path / "A_GPU.json").write_text(json.dumps(found))
    ask = lambda tokens, grouped=True: forms.choose(tokens, PLAIN, 24, 40, "A GPU", grouped)  # noqa: E731
    assert (ask(1), ask(8), ask(9), ask(65)) == (Pairs(8), Pairs(8), Tiles(32), Grouped())
    assert ask(65, grouped=False) == forms.by_roofline(65, PLAIN, False)
    assert ask(10000) == forms.by_roofline(10000, PLAIN, True)
    forms.tuned.cache_clear()


def test_what_is_kept_in_the_repository_can_be_read() -> None:
    for path in forms.TUNED.glob("*.json"):
        for entries in json.loads(path.read_text(encoding="utf-8")).values():
            assert all(int(most) > 0 and forms.read(entry) for most, entry in entries.items())


def test_selection_says_why() -> None:
    spec = replace(make()[0], device=torch.device("cpu"))
    found, lost = select.select_experts(spec)
    assert found is TorchExperts and lost == ("triton cannot: it needs a GPU, not cpu",)
    assert "GPUs" in str(triton_backend.why_not_grouped(spec))
    with pytest.raises(ConfigError, match="it cannot compute in torch.int8"):
        select.select_experts(replace(spec, dtype=torch.int8))

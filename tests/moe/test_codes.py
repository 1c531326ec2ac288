"""Experts whose weights are codes: every kind through every kernel, against the decoded weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from octavo.kernels import moe_codes
from octavo.kernels.codes import CodeMatrix
from octavo.moe import forms, triton_backend
from octavo.moe.base import ExpertWeights, MoeSpec, Routing
from octavo.moe.forms import Grouped, Pairs, Tiles
from octavo.moe.torch_backend import TorchExperts
from octavo.moe.triton_backend import Matrix, TritonExperts, why_not_codes
from octavo.quant.mxfp4 import Mxfp4
from octavo.quant.pack import to_fp8, to_int4, to_int8
from octavo.quant.schemes import Float8, Integers, Plain, Scheme, Table, pack_halves
from tests.moe.test_experts import DEVICE, WAYS, by_expert, draw, inputs, make, reference


def fp8_groups(weight: torch.Tensor, group: int) -> Float8:
    rows, columns = weight.shape
    found = to_fp8(weight.view(-1, group))
    return Float8(found.code_NK.view(rows, columns), found.scale_NG.view(rows, -1))


def mxfp4(weight: torch.Tensor) -> Mxfp4:
    """Any codes, and scales that differ from group to group."""
    generator = torch.Generator().manual_seed(len(weight))
    rows, columns = weight.shape
    code = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, generator=generator)
    scale = torch.randint(118, 124, (rows, columns // 32), dtype=torch.uint8, generator=generator)
    return Mxfp4(code.to(DEVICE), scale.to(DEVICE))


def drifting(weight: torch.Tensor) -> Integers:
    """int8 with an offset that is no whole number of scales."""
    scheme = to_int8(weight)
    return replace(scheme, offset_NG=scheme.scale_NG * 1.37)


def half_offsets(weight: torch.Tensor) -> Integers:
    scheme = to_int4(weight, 32)
    return replace(scheme, offset_NG=scheme.offset_NG - 0.3 * scheme.scale_NG)


KINDS = {
    "fp8": to_fp8,
    "fp8-blocks": lambda weight: fp8_groups(weight, 32),
    "fp8-odd": lambda weight: fp8_groups(weight, 48 if weight.shape[1] % 48 == 0 else 16),
    "int8": to_int8,
    "int8-offset": drifting,
    "int4-32": lambda weight: to_int4(weight, 32),
    "int4-64": lambda weight: to_int4(weight, min(64, weight.shape[1])),
    "int4-float-offsets": half_offsets,
    "mxfp4": mxfp4,
}
# Blocks that are as large as a group, larger, and, with 192 and 128 columns, no divisors of a row.
FORMS = {
    "pairs": Pairs(rows=32, block=64, warps=1),
    "wide-pairs": Pairs(rows=64, block=256, warps=1),
    "tiles": Tiles(16, 64, 64, 1, 2),
    "wide-tiles": Tiles(16, 32, 256, 1, 2),
}


def quantised(kind: str, hidden: int = 192, inner: int = 32, **options) -> tuple[MoeSpec, ExpertWeights]:
    spec, weights = make(options.pop("routing", Routing(2, 2)), hidden, inner, **options)
    coded = [KINDS[kind](scheme.dequantize(torch.float32)) for scheme in (weights.gate_up, weights.down)]
    return spec, replace(weights, gate_up=coded[0], down=coded[1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_kernels(kind: str, form: str) -> None:
    spec, weights = quantised(kind)
    given = inputs(spec, 1 if "pairs" in form else 5)
    experts = TritonExperts(spec, weights)
    assert experts.stored != "plain"
    got = experts.compute(FORMS[form], *given)
    torch.testing.assert_close(got.double(), reference(spec, weights, *given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["fp8", "int4-64", "mxfp4"])
@pytest.mark.parametrize("form", ["pairs", "wide-tiles"])
def test_a_gate_of_gpt_oss_and_halves(kind: str, form: str) -> None:
    """Rows of gate and up that alternate, biases, and a layout of 128 columns; in float16."""
    spec, weights = quantised(kind, 128, 64, dtype=torch.float16, **WAYS["oss"])
    given = inputs(spec, 1)
    got = TritonExperts(spec, weights).compute(FORMS[form], *given)
    torch.testing.assert_close(got.double(), reference(spec, weights, *given), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("kind", "way"),
    [("fp8", {}), ("fp8-blocks", {}), ("int8", {}), ("int4-64", {}), ("mxfp4", {}), ("mxfp4", WAYS["oss"])],
)
def test_decoded_for_torch_s_grouped_product(kind: str, way: dict[str, Any], monkeypatch) -> None:
    monkeypatch.setattr(triton_backend, "grouped_mm", by_expert)
    spec, weights = quantised(kind, **way)
    given = inputs(spec, 9)
    got = TritonExperts(spec, weights).compute(Grouped(), *given)
    torch.testing.assert_close(got.double(), reference(spec, weights, *given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["pairs", "tiles"])
@pytest.mark.parametrize(
    ("kind", "wrong", "which"),
    [
        ("fp8", "code", "down"),
        ("fp8", "scale", "gate_up"),
        ("fp8", "scale", "down"),
        ("fp8-blocks", "scale", "gate_up"),
        ("int8-offset", "offset", "down"),
        ("int4-32", "code", "gate_up"),
        ("int4-32", "scale", "down"),
        ("int4-float-offsets", "offset", "gate_up"),
        ("mxfp4", "code", "down"),
        ("mxfp4", "scale", "gate_up"),
    ],
)
def test_one_wrong_code_or_scale_is_seen(kind: str, wrong: str, which: str, form: str) -> None:
    spec, weights = quantised(kind, 64, 32)
    given = inputs(spec, 2)
    wanted = reference(spec, weights, *given)
    experts = TritonExperts(spec, weights)
    codes = getattr(experts, which).codes
    spoiled = {"code": codes.code_NP, "scale": codes.scale_GN, "offset": codes.offset_GN}[wrong]
    assert spoiled is not None
    raw = spoiled.view(-1)[-1:].view(torch.uint8)
    raw[-1] ^= 0x44 if wrong == "code" else 0x06  # of the last row of the last expert, its last columns
    got = experts.compute(FORMS[form], *given)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("columns", [32, 64, 96, 256])
def test_mxfp4_as_a_matrix_of_codes(columns: int) -> None:
    scheme = mxfp4(torch.empty(5, columns))
    assert torch.equal(
        CodeMatrix.of_mxfp4(scheme.code_NP, scheme.scale_NG).dequantize(), scheme.dequantize(torch.float32)
    )


def test_bytes_are_those_of_the_codes() -> None:
    spec, weights = quantised("int4-64")
    experts = TritonExperts(spec, weights)
    numbers = weights.gate_up.shape[0] * 192 + weights.down.shape[0] * 32
    assert experts.nbytes < numbers * (0.5 + (4 + 1) / 32)
    assert numbers // 2 < experts.nbytes
    assert Matrix.of(Plain(draw(4, 64)), spec).nbytes == 4 * 64 * 4


def test_what_no_kernel_reads_is_decoded() -> None:
    spec = make(Routing(3, 2), 64, 64)[0]
    order = torch.arange(64, device=DEVICE).flip(0)
    table = Table(pack_halves(torch.zeros(4, 64, device=DEVICE)), torch.ones(4, 1, device=DEVICE), draw(16))
    ordered = replace(to_int8(draw(4, 64)), order_K=order)
    narrow = fp8_groups(draw(4, 64), 8)
    for scheme, reason in ((table, "reads"), (ordered, "order"), (narrow, "16"), (to_int4(draw(4, 64), 16), "32")):
        assert reason in str(why_not_codes(scheme, spec.device))
        matrix = Matrix.of(scheme, spec)
        assert matrix.codes is None and matrix.constants is moe_codes.PLAIN
        assert torch.equal(matrix.weight, scheme.dequantize(torch.float32))


@pytest.mark.parametrize("kind", ["fp8", "int8", "int4-64", "mxfp4"])
def test_torch(kind: str) -> None:
    """int8 and int4 stay so on a CPU that can; other kinds are decoded."""
    spec, weights = quantised(kind, 128, 64)
    spec = replace(spec, device=torch.device("cpu"))
    coded = [scheme.to(spec.device) for scheme in (weights.gate_up, weights.down)]
    weights = replace(weights, gate_up=coded[0], down=coded[1])
    given = [tensor.cpu() for tensor in inputs(spec, 7)]
    experts = TorchExperts(spec, weights)
    wanted = reference(spec, weights, *given)
    near = 0.03 if kind == "int8" else 1e-4  # activations are rounded
    assert (experts(*given) - wanted).norm() < near * wanted.norm()
    whole = sum(scheme.shape[0] * scheme.shape[1] * 4 for scheme in coded)
    assert experts.nbytes == whole if kind in ("fp8", "mxfp4") else experts.nbytes < 0.3 * whole


def test_forms() -> None:
    qwen = Routing(128, 8)
    assert forms.choose(1, qwen, 768, 2048, "none", True, "fp8") == Pairs()
    assert forms.choose(4, qwen, 768, 2048, "none", True, "int8") == Pairs()
    assert isinstance(forms.choose(4, qwen, 768, 2048, "none", True, "int4"), Tiles)
    assert isinstance(forms.choose(64, qwen, 768, 2048, "none", True, "fp8"), Tiles)
    assert forms.choose(16384, qwen, 768, 2048, "none", True, "int4") == Grouped()
    assert isinstance(forms.choose(16384, qwen, 768, 2048, "none", False, "mxfp4"), Tiles)
    assert forms.fit(Tiles(16, block=128), 2, 110 << 10, 0.5, 128) == Tiles(16, block=128)
    assert forms.fit(Tiles(16, block=128), 4, 1, 1, 128).block == 128
    assert forms.shape_key(qwen, 768, 2048, "fp8") == "128,768,2048,fp8"


def test_schemes_know_their_rows() -> None:
    scheme: Scheme = mxfp4(torch.empty(6, 64))
    part = scheme.map_rows(lambda tensor: tensor[2:5])
    assert torch.equal(part.dequantize(torch.float32), scheme.dequantize(torch.float32)[2:5])

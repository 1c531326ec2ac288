"""Schemes stand for the numbers that they were made of; methods compute what schemes stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.kernels import cpu_int4, cpu_int8
from octavo.quant.methods import Int4OnCpu, Int8, select_method
from octavo.quant.pack import pack_bits, quantize, to_fp8, to_int4, to_int8, unpack_bits
from octavo.quant.schemes import Integers, Plain, Scheme, Table, join, pack_halves
from tests.quant.layouts import words

CPU = torch.device("cpu")


def matrix(rows: int = 64, columns: int = 128) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


@given(st.integers(1, 8), st.data())
@settings(max_examples=60, deadline=None)
def test_streams_of_bits(bits: int, data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=70))
    packed = pack_bits(torch.tensor(numbers), bits)
    assert packed.tolist() == [int(word) for word in words(numbers, bits)]
    assert unpack_bits(packed, bits)[: len(numbers)].tolist() == numbers


@pytest.mark.parametrize(("method", "step"), [("fp8", 2**-4), ("int8", 1 / 254), ("int4", 1 / 15)])
def test_rounding_is_to_nearest(method: str, step: float) -> None:
    weight = matrix()
    scheme = quantize(weight, method)
    spread = weight.abs().amax(1, keepdim=True) * (2 if method == "int4" else 1)
    error = (scheme.dequantize(torch.float32) - weight).abs()
    assert (error <= spread * step * 1.001).all()
    again = quantize(scheme.dequantize(torch.float32), method)
    torch.testing.assert_close(again.dequantize(torch.float32), scheme.dequantize(torch.float32))
    assert scheme.nbytes < weight.nbytes * (0.3 if method != "int4" else 0.2)


def test_columns_that_no_group_divides_stay(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(quantize(matrix(8, 40), "int4"), Plain)
    assert isinstance(quantize(matrix(8, 96), "int4"), Integers)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_int8_sums_are_exact(rows: int) -> None:
    scheme = to_int8(matrix())
    x = matrix(rows)
    found = Int8(scheme, torch.float32)(x)
    scale = x.abs().amax(1, keepdim=True).double() / 127
    codes = torch.round(x / scale.float()).long()
    exact = (codes @ scheme.code_NP.t().long()).double() * scale * scheme.scale_NG.t().double()
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


def test_int8_without_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    scheme, x = to_int8(matrix()), matrix(3)
    packed = Int8(scheme, torch.float32)(x)
    monkeypatch.setattr(cpu_int8, "_works", lambda: False)
    assert torch.equal(Int8(scheme, torch.float32)(x), packed)


def test_int8_with_a_measured_scale() -> None:
    made = to_int8(matrix())
    scheme = Integers(made.code_NP, made.scale_NG, input_scale=torch.tensor(0.02))
    x = matrix(5)
    codes = (x / 0.02).round().clamp(-127, 127)
    expected = codes * 0.02 @ scheme.dequantize(torch.float32).t()
    torch.testing.assert_close(Int8(scheme, torch.float32)(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_on_cpu(group: int) -> None:
    scheme = to_int4(matrix(), group)
    x = matrix(5)
    assert select_method(scheme, torch.float32, CPU)[0] is Int4OnCpu
    found = Int4OnCpu(scheme, torch.float32)(x)
    torch.testing.assert_close(found, x @ scheme.dequantize(torch.float32).t(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rows", [384, 80])  # of W: a tile of 256, and a part of one; not in blocks of 64
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int4_on_cpu_for_many_rows(dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = matrix(rows, 256) + 0.5  # offsets matter
    scheme = to_int4(weight, 64)
    x = matrix(130, 256).to(dtype)
    exact = x.float() @ scheme.dequantize(torch.float32).t()
    found = Int4OnCpu(scheme, dtype)(x)
    assert found.dtype == dtype
    error = 1e-6 if dtype == torch.float32 else 0.01
    assert (found.float() - exact).norm() < error * exact.norm()

    # Halves that are somewhere else are noticed, and left to torch.
    def swapped(byte_BKP: torch.Tensor, code_KBW: torch.Tensor) -> None:
        code_KBW.copy_(torch.cat((byte_BKP >> 4, byte_BKP & 15), -1).transpose(0, 1))

    monkeypatch.setattr(cpu_int4, "decode_halves", swapped)
    cpu_int4._layout_is_known.cache_clear()
    try:
        found = Int4OnCpu(scheme, dtype)(x)
    finally:
        cpu_int4._layout_is_known.cache_clear()
    assert (found.float() - exact).norm() < error * exact.norm()


def some(order: bool = False) -> list[Scheme]:
    weight = matrix()
    table = Table(pack_halves(torch.randint(0, 16, weight.shape)), torch.ones(64, 2), torch.linspace(-1, 1, 16))
    int4 = to_int4(weight, 32)
    order_K = torch.randperm(128, generator=torch.Generator().manual_seed(1))
    ordered = Integers(int4.code_NP, int4.scale_NG, int4.offset_NG, order_K)
    return [to_fp8(weight), to_int8(weight), int4, table, Plain(weight), ordered]


@pytest.mark.parametrize("scheme", some(), ids=lambda scheme: scheme.kind)
def test_rows_are_cut_and_joined(scheme: Scheme) -> None:
    """What fused layers and shards rest on."""
    whole = scheme.dequantize(torch.float32)
    parts = [scheme.map_rows(lambda t, a=a, b=b: t[a:b]) for a, b in ((0, 8), (8, 40), (40, 64))]
    (joined,) = join(parts)
    assert torch.equal(joined.dequantize(torch.float32), whole)
    assert torch.equal(torch.cat([part.dequantize(torch.float32) for part in parts]), whole)


def test_what_differs_is_not_joined() -> None:
    schemes = some()
    assert len(join(schemes)) == len(schemes)
    one, other = schemes[-1], schemes[-1]
    assert isinstance(other, Integers) and other.order_K is not None
    turned = Integers(other.code_NP, other.scale_NG, other.offset_NG, other.order_K.flip(0))
    assert len(join([one, turned])) == 2


def test_order_of_columns() -> None:
    scheme = some()[-1]
    assert isinstance(scheme, Integers) and scheme.order_K is not None
    stored = Integers(scheme.code_NP, scheme.scale_NG, scheme.offset_NG).dequantize(torch.float32)
    x = np.asarray(matrix(3))
    expected = x[:, scheme.order_K.numpy()] @ stored.numpy().T
    np.testing.assert_allclose(x @ scheme.dequantize(torch.float32).numpy().T, expected, rtol=1e-4, atol=1e-4)

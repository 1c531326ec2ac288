"""Packed weights give what float64 gives, for every shape of input; what cannot be packed is left alone."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels import cpu_linear
from octavo.kernels.cpu_linear import LEAST, PackedLinear, pack_linear

TOLERANCE = {torch.bfloat16: 6e-3, torch.float32: 2e-6}

needs_onednn = pytest.mark.skipif(not cpu_linear._works(torch.float32), reason="this torch cannot pack weights")


def weight_of(dtype: torch.dtype, out_size: int = 1030, in_size: int = 1027) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(out_size, in_size, generator=generator).to(dtype)


def packed(weight: torch.Tensor) -> PackedLinear:
    if not cpu_linear._works(weight.dtype):
        pytest.skip(f"this CPU has no {weight.dtype}")
    found = pack_linear(weight)
    assert found is not None
    return found


def check(linear: PackedLinear, weight: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> None:
    y = linear(x, bias)
    expected = x.double() @ weight.double().T
    if bias is not None:
        expected = expected + bias.double()
    assert y.dtype == x.dtype and y.shape == expected.shape
    error = (y.double() - expected).norm() / expected.norm()
    assert error < TOLERANCE[x.dtype], error


@needs_onednn
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_equal_to_float64(dtype, with_bias):
    weight = weight_of(dtype)
    linear = packed(weight)
    bias = torch.linspace(-30, 30, 1030).to(dtype) if with_bias else None
    for shape in [(1,), (2,), (3,), (4,), (17,), (64,), (300,), (), (1, 1), (2, 3)]:
        check(linear, weight, torch.randn(*shape, 1027).to(dtype), bias)


@needs_onednn
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_views_as_input(dtype):
    weight = weight_of(dtype)
    linear = packed(weight)
    for x in (torch.randn(1027, 5).to(dtype).T, torch.randn(5, 1500).to(dtype)[:, 200:1227]):
        check(linear, weight, x, None)


@needs_onednn
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_no_rows(dtype):
    assert packed(weight_of(dtype))(torch.empty(0, 1027, dtype=dtype)).shape == (0, 1030)


@needs_onednn
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_weight_comes_back(dtype):
    weight = weight_of(dtype)
    linear = packed(weight.clone())
    assert torch.equal(linear.weight(), weight)
    assert (linear.out_size, linear.in_size) == weight.shape


@needs_onednn
def test_a_planted_error_is_seen():
    weight = weight_of(torch.float32)
    linear = packed(weight)
    weight[3, 5] += 1
    with pytest.raises(AssertionError):
        check(linear, weight, torch.ones(2, 1027), None)


def test_what_is_not_packed():
    assert pack_linear(weight_of(torch.float16)) is None
    assert pack_linear(weight_of(torch.float32, LEAST[torch.float32] // 1024 - 1, 1024)) is None
    assert pack_linear(torch.empty(2048, 2048, device="meta")) is None


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, NotImplementedError])
def test_without_the_operators_nothing_is_packed(monkeypatch, error):
    def missing(self, weight):
        raise error("no such operator")

    monkeypatch.setattr(PackedLinear, "__init__", missing)
    cpu_linear._works.cache_clear()
    try:
        assert pack_linear(weight_of(torch.bfloat16)) is None
    finally:
        cpu_linear._works.cache_clear()


def test_operators_that_compute_something_else_are_not_used(monkeypatch):
    monkeypatch.setattr(PackedLinear, "__call__", lambda self, x, bias=None: torch.zeros(*x.shape[:-1], self.out_size))
    cpu_linear._works.cache_clear()
    try:
        assert pack_linear(weight_of(torch.float32)) is None
    finally:
        cpu_linear._works.cache_clear()

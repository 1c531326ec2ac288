"""Quantised layers whose inputs a norm or a gate rounds in passing, as on a GPU, against the decoded matrices."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from octavo.kernels import elementwise
from octavo.layers.linear import Linear
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.quant.methods import Codes
from octavo.quant.pack import to_int4, to_int8
from octavo.quant.schemes import Integers

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = torch.float16
HIDDEN, INNER = 128, 256


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def quantise(linear: Linear, scheme: Integers) -> torch.Tensor:
    """The layer computes with codes, in the interpreter where there is no GPU. Returns the matrix."""
    method = Codes(scheme, HALF)
    method.few.serves, method.few.processors = True, 4
    linear.methods, linear.skinny = [method], None
    return scheme.dequantize(torch.float32)


def parts(kind: str) -> tuple[RMSNorm, GatedMLP, torch.Tensor, torch.Tensor]:
    norm = RMSNorm(HIDDEN, 1e-5, HALF, DEVICE)
    norm.kernels = elementwise
    norm.weight_E = (1 + draw(HIDDEN, seed=3) / 8).to(HALF)
    mlp = GatedMLP(HIDDEN, INNER, "silu", False, HALF, DEVICE)
    mlp.kernels = elementwise
    made = to_int8 if kind == "int8" else lambda weight: to_int4(weight, 128)
    gate_up = quantise(mlp.gate_up, made(draw(2 * INNER, HIDDEN, seed=1) / 8))
    return norm, mlp, gate_up, quantise(mlp.down, made(draw(HIDDEN, INNER, seed=2) / 8))


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_norm_and_a_gate_round_for_what_follows(kind: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    norm, mlp, gate_up, down = parts(kind)
    x, stream = draw(tokens, HIDDEN, seed=4).to(HALF), draw(tokens, HIDDEN, seed=5).to(HALF)
    grown = (stream + x).float()
    normed = grown * grown.square().mean(1, keepdim=True).add(1e-5).rsqrt() * norm.weight_E.float()
    gate, up = F.linear(normed, gate_up).chunk(2, 1)
    wanted = F.linear(F.silu(gate) * up, down)
    monkeypatch.setattr(Codes, "__call__", lambda *asked: pytest.fail("x came without being rounded"))
    y, after = mlp.after(norm, x, stream)
    torch.testing.assert_close(after.float(), grown, rtol=1e-3, atol=1e-3)
    assert (y.float() - wanted).norm() < 4e-3 * wanted.norm()
    mlp.down.methods[0].codes.scale_GN[0] *= 1.1  # a planted error
    wrong, _ = mlp.after(norm, x, stream - x)
    assert (wrong.float() - wanted).norm() > 2e-2 * wanted.norm()


def test_a_layer_with_a_bias_adds_it_to_rows_in_codes() -> None:
    linear = Linear(HIDDEN, 64, True, HALF, DEVICE)
    weight = quantise(linear, to_int8(draw(64, HIDDEN, seed=6)))
    assert linear.bias is not None
    linear.bias += 3
    norm = RMSNorm(HIDDEN, 1e-5, HALF, DEVICE)
    norm.kernels = elementwise
    x = draw(2, HIDDEN, seed=7).to(HALF)
    y, stream = linear.after(norm, x, None)
    normed = x.float() * x.float().square().mean(1, keepdim=True).add(1e-5).rsqrt()
    assert (y.float() - F.linear(normed, weight) - 3).norm() < 4e-3 * F.linear(normed, weight).norm()
    assert stream is x


def test_matrices_of_their_own_are_not_rounded_for() -> None:
    """Two methods in one layer: each rounds for itself."""
    linear = Linear(HIDDEN, 64, False, HALF, DEVICE)
    quantise(linear, to_int8(draw(64, HIDDEN, seed=6)))
    assert linear.rounding(1) is not None
    linear.methods = linear.methods * 2
    assert linear.rounding(1) is None

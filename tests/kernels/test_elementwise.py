"""The kernels between matrix products against the torch layers that say what they compute."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from octavo.kernels import elementwise
from octavo.layers.norm import QKNorm
from octavo.layers.rope import Rope

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def formula(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype) * weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [32, 100])
def test_add_rms_norm(dtype, size):
    x, residual, weight = draw(3, size, dtype=dtype), draw(3, size, dtype=dtype, seed=1), draw(size, dtype=dtype)
    stream = x + residual
    got, grown = elementwise.add_rms_norm(x, residual.clone(), weight, 1e-5)
    assert torch.equal(grown, stream)
    torch.testing.assert_close(got, formula(stream, weight, 1e-5))
    got, first = elementwise.add_rms_norm(x, None, weight, 1e-5)
    assert first is x
    torch.testing.assert_close(got, formula(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 1500])
def test_silu_mul(dtype, size):
    gate_up = draw(3, 2 * size, dtype=dtype)
    gate, up = gate_up.chunk(2, -1)
    torch.testing.assert_close(elementwise.silu_mul(gate_up), F.silu(gate) * up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "half"), [(4, 2, 16, 8), (7, 1, 40, 20), (3, 3, 24, 8)])
@pytest.mark.parametrize("normed", [False, True])
def test_rotate_and_write(dtype, heads, kv_heads, dim, half, normed):
    check_rotation(dtype, heads, kv_heads, dim, half, normed)


def check_rotation(dtype, heads, kv_heads, dim, half, normed, spoil=lambda arguments: None):
    tokens, size, blocks = 5, 4, 6
    frequencies = 1.0 / 100 ** (torch.arange(half) / half)
    rope = Rope(frequencies, 1.0, dim, 64, dtype, DEVICE)
    norm = QKNorm(heads, kv_heads, dim, 1e-6, dtype, DEVICE)
    norm.q_D.copy_(draw(dim, seed=2))
    norm.k_D.copy_(draw(dim, seed=3))
    norm.finish()
    qkv = draw(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    positions = torch.tensor([3, 0, 63, 17, 5], device=DEVICE)
    slots = torch.tensor([2, 22, -1, 7, 0], device=DEVICE)
    keys, values = (draw(blocks, size, kv_heads, dim, dtype=dtype, seed=s) for s in (4, 5))

    qk, v = qkv.view(tokens, -1, dim).split([heads + kv_heads, kv_heads], 1)
    turned = rope(norm(qk) if normed else qk, rope.rows(positions))
    wanted_keys, wanted_values = keys.clone(), values.clone()
    there = slots >= 0
    wanted_keys.flatten(0, 1)[slots[there]] = turned[there, heads:]
    wanted_values.flatten(0, 1)[slots[there]] = v[there]

    arguments = {"positions_T": positions, "slots_T": slots, "half": half}
    spoil(arguments)
    weights = (norm.q_D, norm.k_D, 1e-6) if normed else None
    got = elementwise.rotate_and_write(
        qkv, rope.table_P1D, cache=(keys, values), heads=heads, norm=weights, **arguments
    )
    # Torch rounds the products that it adds, the kernel their sum.
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-3, "atol": 2e-3}
    torch.testing.assert_close(got, turned[:, :heads], **near)
    torch.testing.assert_close(keys, wanted_keys, **near)
    assert torch.equal(values, wanted_values)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda arguments: arguments["positions_T"].add_(1),
        lambda arguments: arguments["slots_T"].add_(1),
        lambda arguments: arguments.update(half=4),
    ],
)
def test_a_wrong_rotation_is_seen(spoil):
    with pytest.raises(AssertionError):
        check_rotation(torch.float32, 4, 2, 16, 8, True, spoil)


def test_a_wrong_norm_is_seen():
    x, weight = draw(3, 32), draw(32, seed=1)
    got, _ = elementwise.add_rms_norm(x, None, weight, 0.5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(got, formula(x, weight, 1e-5))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(elementwise.silu_mul(draw(2, 32).roll(1, -1)), elementwise.silu_mul(draw(2, 32)))

"""The kernels between matrix products against the torch layers that say what they compute."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from octavo.kernels import elementwise, kv_cache
from octavo.layers.mlp import ACTIVATIONS
from octavo.layers.qk_norm import QKNorm
from octavo.layers.rope import Rope
from octavo.models.spec import GATES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float, wide: bool = False) -> torch.Tensor:
    """The formula: rounded before it is weighted, or with `wide` only after."""
    found = x.float() * (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
    return (found * weight.float()).to(x.dtype) if wide else found.to(x.dtype) * weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [32, 100])
@pytest.mark.parametrize(("wide", "scale"), [(False, 1.0), (True, 0.5)])
def test_add_rms_norm(dtype, size, wide, scale):
    x, residual, weight = draw(3, size, dtype=dtype), draw(3, size, dtype=dtype, seed=1), draw(size, dtype=dtype)
    stream = residual + scale * x
    got, grown = elementwise.add_rms_norm(x, residual.clone(), weight, 1e-5, scale, wide)
    assert torch.equal(grown, stream)
    torch.testing.assert_close(got, normed(stream, weight, 1e-5, wide))
    got, first = elementwise.add_rms_norm(x, None, weight.float(), 1e-5, scale, wide)
    assert first is x
    torch.testing.assert_close(got, normed(x, weight, 1e-5, wide))


def test_wide_norms_round_once():
    """In half precision the two roundings differ somewhere, and each kernel is that of its formula."""
    x, weight = draw(40, 64, dtype=torch.float16), 1 + draw(64, seed=1)
    for wide in (False, True):
        got, _ = elementwise.add_rms_norm(x, None, weight.to(x.dtype), 1e-5, 1.0, wide)
        same, other = (normed(x, weight.to(x.dtype), 1e-5, w) for w in (wide, not wide))
        assert (got != same).float().mean() < 0.01 < (got != other).float().mean()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wide", [False, True])
def test_rms_norm_add(dtype, wide):
    x, stream, weight = draw(3, 100, dtype=dtype), draw(3, 100, dtype=dtype, seed=1), draw(100)
    wanted = stream + 0.5 * normed(x, weight.to(dtype), 1e-5, wide)
    grown = elementwise.rms_norm_add(x, stream.clone(), weight.to(dtype), 1e-5, 0.5, wide)
    torch.testing.assert_close(grown, wanted)
    following = draw(100, dtype=dtype, seed=2)
    got, same = elementwise.rms_norm_add_rms_norm(x, stream, weight.to(dtype), following, 1e-5, 0.5, wide)
    assert same is stream
    assert torch.equal(same, grown)
    torch.testing.assert_close(got, normed(grown, following, 1e-5, wide))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_in_place_of_rows_that_lie_apart(dtype):
    rows, weight = draw(3, 100, dtype=dtype), draw(40)
    wanted = rows.clone()
    wanted[:, 20:60] = normed(rows[:, 20:60], weight, 1e-5, True)
    elementwise.rms_norm_(rows[:, 20:60], weight, 1e-5, True)
    torch.testing.assert_close(rows, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [32, 100])
@pytest.mark.parametrize("biased", [False, True])
def test_add_layer_norm(dtype, size, biased):
    x, residual, weight = 3 + draw(3, size, dtype=dtype), draw(3, size, dtype=dtype, seed=1), draw(size, dtype=dtype)
    bias = draw(size, dtype=dtype, seed=2) if biased else None
    stream = residual + x
    got, grown = elementwise.add_layer_norm(x, residual.clone(), weight, bias, 1e-5)
    assert torch.equal(grown, stream)
    torch.testing.assert_close(got, F.layer_norm(stream, (size,), weight, bias, 1e-5))
    got, first = elementwise.add_layer_norm(x, None, weight, bias, 1e-5)
    assert first is x
    torch.testing.assert_close(got, F.layer_norm(x, (size,), weight, bias, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", GATES)
@pytest.mark.parametrize("size", [16, 1500])
def test_gate(dtype, activation, size):
    gate_up = 2 * draw(3, 2 * size, dtype=dtype)
    gate, up = gate_up.chunk(2, -1)
    torch.testing.assert_close(elementwise.gate(gate_up, activation), ACTIVATIONS[activation](gate) * up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_cap(dtype, softcap):
    logits = 5 * draw(3, 1500, dtype=dtype)
    wanted = logits.float() * 0.7
    wanted = (wanted if softcap is None else softcap * torch.tanh(wanted / softcap)).to(dtype)
    got = elementwise.cap(logits, 0.7, softcap)
    assert got is logits
    torch.testing.assert_close(got, wanted)


SHAPES = [(4, 2, 16, 8), (7, 1, 40, 20), (3, 3, 24, 8), (2, 1, 16, 0)]  # H, K, D, pairs that turn


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "half"), SHAPES)
@pytest.mark.parametrize("norm", [None, "rms", "wide", "late"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotate_and_write(dtype, heads, kv_heads, dim, half, norm, interleaved):
    if half or not interleaved:
        check_rotation(dtype, heads, kv_heads, dim, half, norm, interleaved)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotate_and_quantise(interleaved):
    """As `write` of what is not quantised, but for values on the edge between two integers."""
    heads, kv_heads, dim, half = 5, 2, 16, 8
    rope = Rope(1.0 / 100 ** (torch.arange(half) / half), 1.0, dim, 64, torch.float32, DEVICE, interleaved)
    qkv = draw(4, (heads + 2 * kv_heads) * dim, dtype=torch.float32)
    slots = torch.tensor([2, 7, -1, 0], device=DEVICE)
    where = (torch.tensor([3, 0, 63, 17], device=DEVICE), slots)
    turning = (rope.table_P1D, half, interleaved)
    plain = [torch.zeros(2, 4, kv_heads, dim, device=DEVICE) for _ in range(2)]
    q = elementwise.rotate_and_write(qkv, turning, *where, tuple(plain), heads, None)
    kept = [torch.full((2, 4, kv_heads, dim), 9, dtype=torch.int8, device=DEVICE) for _ in range(2)]
    scales = torch.full((2, kv_heads, 4, 2), 3.0, dtype=torch.float16, device=DEVICE)
    assert torch.equal(elementwise.rotate_and_write(qkv, turning, *where, (*kept, scales), heads, None), q)
    for values, found, scale in zip(plain, kept, kv_cache.of_slots(scales), strict=True):
        wanted, wanted_scale = kv_cache.quantise(values, torch.int8)
        for slot in range(8):
            block = (slot // 4, slot % 4)
            if slot in slots:
                assert (found[block].int() - wanted[block].int()).abs().max() <= 1
                torch.testing.assert_close(scale[block], wanted_scale[block], rtol=1e-3, atol=0)
            else:
                assert (found[block] == 9).all() and (scale[block] == 3).all()


def check_rotation(dtype, heads, kv_heads, dim, half, normed, interleaved, spoil=lambda arguments: None):
    tokens, size, blocks = 5, 4, 6
    frequencies = 1.0 / 100 ** (torch.arange(half) / max(half, 1))
    rope = Rope(frequencies, 1.0, dim, 64, dtype, DEVICE, interleaved)
    wide = normed == "wide"
    late = normed == "late"
    norm = QKNorm((heads, kv_heads), dim, 1e-6, dtype, DEVICE, wide=wide, offset=float(wide), late=late)
    norm.q_D.copy_(draw(dim, seed=2))
    norm.k_D.copy_(draw(dim, seed=3))
    norm.finish()
    qkv = draw(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    positions = torch.tensor([3, 0, 63, 17, 5], device=DEVICE)
    slots = torch.tensor([2, 22, -1, 7, 0], device=DEVICE)
    keys, values = (draw(blocks, size, kv_heads, dim, dtype=dtype, seed=s) for s in (4, 5))

    qk, v = qkv.view(tokens, -1, dim).split([heads + kv_heads, kv_heads], 1)
    turned = norm(qk) if normed and not late else qk
    turned = rope(turned, rope.rows(positions)) if half else turned
    turned = norm(turned) if late else turned
    wanted_keys, wanted_values = keys.clone(), values.clone()
    there = slots >= 0
    wanted_keys.flatten(0, 1)[slots[there]] = turned[there, heads:]
    wanted_values.flatten(0, 1)[slots[there]] = v[there]

    arguments = {"positions_T": positions, "slots_T": slots}
    arguments |= {"rope": (rope.table_P1D, half, interleaved) if half else None}
    spoil(arguments)
    weights = (norm.q_D, norm.k_D, 1e-6, wide, late) if normed else None
    got = elementwise.rotate_and_write(qkv, cache=(keys, values), heads=heads, norm=weights, **arguments)
    # Torch rounds the products that it adds, the kernel their sum.
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-3, "atol": 4e-3}
    torch.testing.assert_close(got, turned[:, :heads], **near)
    torch.testing.assert_close(keys, wanted_keys, **near)
    assert torch.equal(values, wanted_values)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda arguments: arguments["positions_T"].add_(1),
        lambda arguments: arguments["slots_T"].add_(1),
        lambda arguments: arguments.update(rope=(arguments["rope"][0], 4, False)),
        lambda arguments: arguments.update(rope=(arguments["rope"][0], 8, True)),
        lambda arguments: arguments.update(rope=None),
    ],
)
def test_a_wrong_rotation_is_seen(spoil):
    with pytest.raises(AssertionError):
        check_rotation(torch.float32, 4, 2, 16, 8, "rms", False, spoil)


def test_a_wrong_norm_or_gate_is_seen():
    x, weight = draw(3, 32), draw(32, seed=1)
    got, _ = elementwise.add_rms_norm(x, None, weight, 0.5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(got, normed(x, weight, 1e-5))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(got, elementwise.add_layer_norm(x, None, weight, None, 0.5)[0])
    with pytest.raises(AssertionError):
        torch.testing.assert_close(elementwise.gate(draw(2, 32), "silu"), elementwise.gate(draw(2, 32), "gelu"))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(elementwise.gate(draw(2, 32), "gelu_tanh"), elementwise.gate(draw(2, 32), "gelu"))

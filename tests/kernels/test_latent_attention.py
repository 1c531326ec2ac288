"""Latent attention's kernels against the reference: in the interpreter without a GPU, on the GPU where there is one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from octavo.attention.base import AttendOptions
from octavo.attention.latent_backend import LatentAttention
from octavo.attention.select import select_backend
from octavo.core.errors import ConfigError
from octavo.kernels.paged_attention import reference
from octavo.layers.latent import LatentAttention as LatentLayer
from octavo.layers.rope import Rope
from tests.kernels.paged import fill, make_spec, make_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MIXED = [(1, 1), (1, 40), (1, 130), (5, 5), (3, 35), (9, 64)]


def latent_spec(heads=4, rank=24, rope=8, dtype=torch.float32, block_size=16):
    spec = make_spec(heads, 1, rank + rope, dtype, DEVICE, block_size)
    return dataclasses.replace(spec, latent_dim=rank, windows=(None,))


def run(spec, steps, parts=1, spoil=None):
    """(what the kernels give, what the reference gives)."""
    options = AttendOptions(1.2 * spec.head_dim**-0.5)
    backend = LatentAttention(spec, 40)
    backend.parts = parts
    backend._units = backend._units.new_zeros(backend._count(spec.max_num_seqs) + 16, 8)
    places = parts * 4 // 3 + backend.groups
    backend._partial = backend._partial.new_empty(places, *backend._partial.shape[1:])
    backend._weight = backend._weight.new_empty(places, backend.group)
    fill(backend.latents)
    batch, q, k, _ = make_step(spec, steps, 40)
    latents = backend.latents[0].clone()
    written = batch.slots_T >= 0
    latents.flatten(0, 1)[batch.slots_T[written]] = k[written, 0]
    rows = latents.float().unsqueeze(2)
    where = (batch.query_start_N1, batch.context_lens_N, batch.block_table_NB)
    wanted = reference(q, rows, rows, *where, options.scale, None)[..., : spec.latent_dim]
    if spoil is not None:
        spoil(batch, backend)
    backend.plan(batch)
    backend.write(0, k, k, batch)
    got = backend.attend(0, q, batch, options)
    assert torch.equal(backend.latents[0], latents) or spoil is not None
    assert not backend._counter.any() or spoil is not None
    return got.double().view_as(wanted), wanted


def error(got, wanted) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize(("heads", "rank", "rope"), [(4, 24, 8), (3, 32, 16), (1, 16, 4)])
@pytest.mark.parametrize("parts", [1, 9])  # contexts whole, and divided
def test_mixed_steps(heads, rank, rope, parts):
    assert error(*run(latent_spec(heads, rank, rope), MIXED, parts)) < 1e-5


def test_heads_in_groups():
    spec = latent_spec(66, 16, 16)
    assert LatentAttention(spec, 1).group == 22
    assert error(*run(spec, [(1, 40), (1, 70), (4, 9)], 5)) < 1e-5


def test_half_precision():
    assert error(*run(latent_spec(dtype=torch.float16), MIXED, 7)) < 2e-3


@pytest.mark.parametrize("block_size", [1, 5, 32])
def test_block_sizes(block_size):
    assert error(*run(latent_spec(2, block_size=block_size), [(1, 3), (4, 9), (1, 1)])) < 1e-5


def test_what_was_not_written_is_not_read():
    def poison(batch, backend):
        old, size = backend.latents.clone().flatten(1, 2), backend.spec.block_size
        backend.poison(torch.arange(backend.latents.shape[1], device=DEVICE))
        for context, table in zip(batch.context_lens_N.tolist(), batch.block_table_NB, strict=True):
            positions = torch.arange(context, device=DEVICE)
            slots = table[positions // size].long() * size + positions % size
            backend.latents.flatten(1, 2)[:, slots] = old[:, slots]

    assert error(*run(latent_spec(), MIXED, 7, poison)) < 1e-5


@pytest.mark.parametrize("parts", [1, 12])
def test_padding_is_not_written_and_gives_zeros(parts):
    def spill(batch, backend):
        backend.latents.flatten(1, 2)[0, batch.block_table_NB[0, 0] * 16] = torch.nan  # where an empty table points

    got, wanted = run(latent_spec(), [(1, 0), (1, 70), (1, 0), (1, 3)], parts, spill)
    assert error(got, wanted) < 1e-5
    assert not got[[0, 2]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("spoil", [None, "positions", "slots", "norm", "pairs"])
def test_turn_and_write(dtype, interleaved, spoil):
    """One kernel against the layer's own torch."""
    heads, rank, rope_dim, nope_dim = 5, 24, 8, 16
    rope = Rope(1.0 / 100 ** (torch.arange(4) / 4), 1.0, rope_dim, 64, dtype, torch.device(DEVICE), interleaved)
    sizes = (rank, rope_dim, nope_dim, 12)
    layer = LatentLayer(0, 32, heads, sizes, None, rope, AttendOptions(0.2), False, 1e-6, dtype, torch.device(DEVICE))
    layer.kv_norm.weight_E.copy_(torch.rand(rank) + 0.5)
    layer.kv_norm.finish()
    backend = LatentAttention(latent_spec(heads, rank, rope_dim, dtype), 8)
    batch, *_ = make_step(backend.spec, [(1, 20), (5, 9)], 8)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(6, heads * (nope_dim + rope_dim) + rank + rope_dim, generator=generator).to(DEVICE, dtype)
    q, latents = qkv.split([heads * (nope_dim + rope_dim), rank + rope_dim], 1)
    q_THX = q.view(6, heads, -1)
    batch.attention = backend
    layer.kv_norm.kernels = None
    wanted = layer._in_torch(q_THX, latents, {rope: rope.rows(batch.positions_T)}, batch)
    cache = backend.latents.clone()
    backend.latents.zero_()
    if spoil == "positions":
        batch.positions_T = batch.positions_T + 1
    elif spoil == "slots":
        batch.slots_T = batch.slots_T.roll(1)
    elif spoil == "norm":
        layer.kv_norm.eps = 0.5
    elif spoil == "pairs":
        rope.interleaved = not interleaved
    got = layer._fused(q_THX, latents, None, batch)
    near = 1e-5 if dtype == torch.float32 else 4e-3
    same = torch.allclose(got[..., rank:], wanted[..., rank:], near, near) and torch.allclose(
        backend.latents, cache, near, near
    )
    assert same == (spoil is None)


def later(batch, backend):
    batch.context_lens_N -= 1


def other_blocks(batch, backend):
    batch.block_table_NB = batch.block_table_NB.roll(1, 0)


def shifted(batch, backend):
    batch.slots_T = batch.slots_T.roll(1)


def no_turned_part(batch, backend):
    backend.latents[..., backend.spec.latent_dim :] = 0


@pytest.mark.parametrize("spoil", [later, other_blocks, shifted, no_turned_part])
def test_planted_errors_are_seen(spoil):
    assert error(*run(latent_spec(), [(1, 40), (1, 41), (6, 36), (6, 37)], spoil=spoil)) > 1e-2


def test_copies_read_all_sources_first():
    backend = LatentAttention(latent_spec(), 4)
    fill(backend.latents)
    before = backend.latents.clone()
    backend.copy_blocks(torch.tensor([0, 1], device=DEVICE), torch.tensor([1, 2], device=DEVICE))
    assert torch.equal(backend.latents[:, [1, 2]], before[:, [0, 1]])


def test_who_serves_latents():
    found, lost = select_backend("auto", dataclasses.replace(latent_spec(), device=torch.device("cpu")))
    assert found.name == "torch"
    with pytest.raises(ConfigError, match="keys and values are no latents"):
        select_backend("latent", make_spec(4, 2, 16))
    windowed = dataclasses.replace(latent_spec(), windows=(None, 8), device=torch.device("cuda"))
    assert "windows" in (LatentAttention.supports(windowed) or "")

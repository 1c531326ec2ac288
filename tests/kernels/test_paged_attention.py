"""The Triton kernels against their reference: in the interpreter without a GPU, on the GPU where there is one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from octavo.attention.base import AttendOptions
from octavo.attention.triton_backend import TritonAttention
from octavo.kernels.paged_attention import reference
from tests.kernels.paged import fill, make_spec, make_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MIXED = [(1, 1), (1, 40), (1, 70), (5, 5), (3, 35), (9, 64)]


def run(spec, steps, window=None, softcap=None, programs=1, seed=0, spoil=None):
    """(what the kernels give, what the reference gives)."""
    spec = dataclasses.replace(spec, windows=(window,))
    options = AttendOptions(1.2 * spec.head_dim**-0.5, window, softcap)
    backend = TritonAttention(spec, 40)
    backend._allocate(programs)
    fill(backend.keys, backend.values)
    batch, q, k, v = make_step(spec, steps, 40, seed)
    keys, values = backend.keys[0].clone(), backend.values[0].clone()
    written = batch.slots_T >= 0
    keys.flatten(0, 1)[batch.slots_T[written]] = k[written]
    values.flatten(0, 1)[batch.slots_T[written]] = v[written]
    wanted = reference(
        q,
        keys,
        values,
        batch.query_start_N1,
        batch.context_lens_N,
        batch.block_table_NB,
        options.scale,
        window,
        softcap,
    )
    if spoil is not None:
        spoil(batch, backend)
    backend.plan(batch)
    backend.write(0, k, v, batch)
    got = backend.attend(0, q, batch, options)
    assert torch.equal(backend.keys[0], keys) or spoil is not None
    assert torch.equal(backend.values[0], values) or spoil is not None
    assert not backend._counter.any() or spoil is not None
    return got.double().view_as(wanted), wanted


def error(got, wanted) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (3, 1, 40), (7, 1, 64), (2, 2, 32)])
@pytest.mark.parametrize("programs", [1, 3, 30])  # few with many pairs each, and pairs that are divided
def test_mixed_steps(heads, kv_heads, dim, programs):
    assert error(*run(make_spec(heads, kv_heads, dim, device=DEVICE), MIXED, programs=programs)) < 1e-5


@pytest.mark.parametrize("programs", [1, 7])
@pytest.mark.parametrize("window", [1, 7, 33])
def test_windows(window, programs):
    assert error(*run(make_spec(4, 2, 16, device=DEVICE), MIXED, window, programs=programs)) < 1e-5


@pytest.mark.parametrize("window", [None, 9])
def test_soft_cap(window):
    assert error(*run(make_spec(4, 2, 16, device=DEVICE), MIXED, window, 0.7, programs=7)) < 1e-5


def test_half_precision():
    assert error(*run(make_spec(4, 2, 16, torch.float16, DEVICE), MIXED, programs=7)) < 2e-3


@pytest.mark.parametrize("block_size", [1, 5, 32])
def test_block_sizes(block_size):
    steps = [(1, 3), (4, 9), (1, 1)]
    assert error(*run(make_spec(2, 1, 16, device=DEVICE, block_size=block_size), steps)) < 1e-5


def test_more_query_tiles_than_one():
    assert error(*run(make_spec(8, 1, 16, device=DEVICE), [(1, 9), (20, 20), (17, 50), (2, 2)])) < 1e-5


@pytest.mark.parametrize("programs", [1, 5, 40])
def test_padding_is_not_written_and_gives_zeros(programs):
    """A captured step has sequences of context 0, here in front, between and behind others."""

    def spill(batch, backend):
        backend.keys.flatten(1, 2)[0, batch.block_table_NB[0, 0] * 16] = torch.nan  # where an empty table points

    steps = [(1, 0), (1, 70), (1, 0), (1, 3), (1, 0), (1, 0)]
    got, wanted = run(make_spec(4, 2, 16, device=DEVICE), steps, programs=programs, spoil=spill)
    assert error(got, wanted) < 1e-5
    assert not got[[0, 2, 4, 5]].any()


@pytest.mark.parametrize("seed", range(3))
def test_contexts_are_divided_evenly(seed):
    """Every tile of every pair is somebody's, nobody has more than the quota, and shares follow each other."""
    rng = torch.Generator().manual_seed(seed)
    contexts = torch.randint(0, 900, (11,), generator=rng, dtype=torch.int32).to(DEVICE)
    spec = dataclasses.replace(make_spec(4, 2, 16, device=DEVICE), windows=(None, 100), max_num_seqs=16)
    backend = TritonAttention(spec, 1)
    backend._allocate(13)
    batch, *_ = make_step(spec, [(1, 1)] * 11, 11)
    batch.context_lens_N = contexts
    backend.plan(batch)
    for window, work in backend._work.items():
        first = torch.clamp(contexts - (window or 10**6), min=0) // backend.tile
        tiles = torch.clamp(-(-contexts // backend.tile) - first, min=1) * spec.num_kv_heads
        starts = torch.cat((tiles.new_zeros(1), tiles.cumsum(0)))
        sequence, context, skip, count, _ = work.T[:5]
        quota = -(-int(tiles.sum()) // 13)
        assert (work[:, 4] == quota).all() and count.max() <= quota
        assert count.clamp(min=0).sum() == tiles.sum()
        busy = count > 0
        assert torch.equal(contexts[sequence[busy].long()], context[busy])
        assert torch.equal((starts[sequence.long()] + skip)[busy], torch.arange(13, device=DEVICE)[busy] * quota)


def later(batch, backend):
    batch.context_lens_N -= 1


def other_blocks(batch, backend):
    batch.block_table_NB = batch.block_table_NB.roll(1, 0)


def shifted(batch, backend):
    batch.slots_T = batch.slots_T.roll(1)


@pytest.mark.parametrize("spoil", [later, other_blocks, shifted])
def test_planted_errors_are_seen(spoil):
    steps = [(1, 40), (1, 41), (6, 36), (6, 37)]
    assert error(*run(make_spec(4, 2, 16, device=DEVICE), steps, spoil=spoil)) > 1e-2


@pytest.mark.parametrize("column", range(4))
def test_an_error_in_the_plan_is_seen(column):
    def spoil(batch, backend):
        def plan(batch):
            TritonAttention.plan(backend, batch)
            backend._work[None][1, column] -= 1

        backend.plan = plan

    steps = [(1, 70), (1, 140), (1, 90)]
    assert error(*run(make_spec(4, 2, 16, device=DEVICE), steps, programs=2, spoil=spoil)) > 1e-3


def test_an_option_that_is_off_is_seen():
    spec = make_spec(4, 2, 16, device=DEVICE)
    assert error(run(spec, MIXED, 8)[0], run(spec, MIXED, 7)[1]) > 1e-2
    assert error(run(spec, MIXED, None, 0.7)[0], run(spec, MIXED, None, 0.8)[1]) > 1e-2


def test_copies_read_all_sources_first():
    spec = make_spec(2, 1, 16, device=DEVICE)
    backend = TritonAttention(spec, 4)
    fill(backend.keys, backend.values)
    before = backend.keys.clone()
    backend.copy_blocks(torch.tensor([0, 1], device=DEVICE), torch.tensor([1, 2], device=DEVICE))
    assert torch.equal(backend.keys[:, [1, 2]], before[:, [0, 1]])

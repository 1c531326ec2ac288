"""The Triton kernels against their reference: in the interpreter without a GPU, on the GPU where there is one."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch

from octavo.attention.base import AttendOptions
from octavo.attention.triton_backend import DecodeForm, TritonAttention
from octavo.kernels import kv_cache
from octavo.kernels.paged_attention import reference
from tests.kernels.paged import fill, make_spec, make_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MIXED = [(1, 1), (1, 40), (1, 70), (5, 5), (3, 35), (9, 64)]


def run(spec, steps, window=None, softcap=None, parts=1, seed=0, spoil=None, sinks=None, slopes=None, size=1.0):
    """(what the kernels give, what the reference gives)."""
    spec = dataclasses.replace(spec, windows=(window,))
    options = AttendOptions(1.2 * spec.head_dim**-0.5, window, softcap, sinks, slopes)
    backend = TritonAttention(spec, 40)
    form = DecodeForm(parts, 1, backend.tile, 4, 3)
    backend._allocate(form, form)
    fill(*backend.caches)
    batch, q, k, v = make_step(spec, steps, 40, seed)
    v = v * size
    keys, values, *kept = (cache.clone() for cache in backend.cache(0))
    scales = kv_cache.of_slots(kept[0]) if kept else ()
    if spec.quantised:
        k, v = (whole(x, spec) for x in (k, v))
    written = batch.slots_T >= 0
    for i, (cache, new) in enumerate(((keys, k), (values, v))):
        if spec.quantised:
            new, scale = kv_cache.quantise(new, spec.cache_dtype)
            slots = batch.slots_T[written]
            scales[i][slots // spec.block_size, slots % spec.block_size] = scale[written]
        bits = cache.view(torch.uint8)  # torch cannot index all types
        bits.flatten(0, 1)[batch.slots_T[written]] = new.to(cache.dtype)[written].view(torch.uint8)
    true = (keys, values)
    if spec.quantised:
        true = tuple(kv_cache.dequantise(*both, torch.float32) for both in zip(true, scales, strict=True))
    wanted = reference(
        q,
        *true,
        batch.query_start_N1,
        batch.context_lens_N,
        batch.block_table_NB,
        options.scale,
        window,
        softcap,
        sinks,
        slopes,
        spec.chunked,
    )
    if spoil is not None:
        spoil(batch, backend)
    backend.plan(batch)
    backend.write(0, k, v, batch)
    got = backend.attend(0, q, batch, options)
    for found, cache in zip(backend.cache(0), (keys, values, *kept), strict=True):
        assert torch.equal(found.view(torch.uint8), cache.view(torch.uint8)) or spoil is not None
    assert not backend._counter.any() or spoil is not None
    return got.double().view_as(wanted), wanted


def error(got, wanted) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (3, 1, 40), (7, 1, 64), (2, 2, 32)])
@pytest.mark.parametrize("parts", [1, 5, 30])  # pairs whole, and divided
def test_mixed_steps(heads, kv_heads, dim, parts):
    assert error(*run(make_spec(heads, kv_heads, dim, device=DEVICE), MIXED, parts=parts)) < 1e-5


@pytest.mark.parametrize("parts", [1, 7])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (9, None), (None, 1.5)])
def test_sinks(window, softcap, parts):
    sinks = torch.tensor([0.5, -20.0, 3.0, 40.0], device=DEVICE)
    spec = make_spec(4, 2, 16, device=DEVICE)
    got, wanted = run(spec, MIXED, window, softcap, parts, sinks=sinks)
    assert error(got, wanted) < 1e-5
    assert error(got, run(spec, MIXED, window, softcap, parts)[1]) > 0.1


@pytest.mark.parametrize("parts", [1, 7])
@pytest.mark.parametrize("window", [None, 9])
def test_slopes(window, parts):
    slopes = torch.tensor([0.5, 0.01, 2.0, 0.1], device=DEVICE)
    spec = make_spec(4, 2, 16, device=DEVICE)
    got, wanted = run(spec, MIXED, window, None, parts, slopes=slopes)
    assert error(got, wanted) < 1e-5
    assert error(got, run(spec, MIXED, window, None, parts, slopes=slopes.flip(0))[1]) > 0.1


@pytest.mark.parametrize("parts", [1, 7])
@pytest.mark.parametrize("window", [1, 7, 33])
def test_windows(window, parts):
    assert error(*run(make_spec(4, 2, 16, device=DEVICE), MIXED, window, parts=parts)) < 1e-5


@pytest.mark.parametrize("parts", [1, 7])
@pytest.mark.parametrize("chunk", [1, 8, 33])
def test_chunks(chunk, parts):
    spec = make_spec(4, 2, 16, device=DEVICE)
    got, wanted = run(dataclasses.replace(spec, chunked=True), MIXED, chunk, parts=parts)
    assert error(got, wanted) < 1e-5
    assert chunk == 1 or error(got, run(spec, MIXED, chunk)[1]) > 0.1


@pytest.mark.parametrize("window", [7, 33])
def test_blocks_before_a_window_are_not_read(window):
    """They may be another sequence's by now: neither its numbers nor their not being numbers matter."""

    def lose(batch, backend):
        for counts, context, table in zip(here, batch.context_lens_N.tolist(), batch.block_table_NB, strict=True):
            lost = table[: max(0, context - counts - window + 1) // 16].long()
            backend.keys[:, lost] = backend.values[:, lost] = torch.nan

    steps = sorted(MIXED, key=lambda step: step[0] != 1)
    here = [count for count, _ in steps]
    got, wanted = run(make_spec(4, 2, 16, device=DEVICE), steps, window, parts=7, spoil=lose)
    assert error(got, wanted) < 1e-5


@pytest.mark.parametrize("window", [None, 9])
def test_soft_cap(window):
    assert error(*run(make_spec(4, 2, 16, device=DEVICE), MIXED, window, 0.7, parts=7)) < 1e-5


def test_half_precision():
    assert error(*run(make_spec(4, 2, 16, torch.float16, DEVICE), MIXED, parts=7)) < 2e-3


def whole(x, spec):
    """Values that the cache's type holds exactly: the interpreter does not round to eight bits as a GPU does."""
    kept, scale = kv_cache.quantise(x, spec.cache_dtype)
    top = kv_cache.largest(spec.cache_dtype)
    kept = torch.cat((torch.full_like(kept[..., :1].float(), top), kept[..., 1:].float()), -1)
    return kept * (2.0 ** scale.float().log2().round()).unsqueeze(-1)


@pytest.mark.parametrize("dtype", kv_cache.DTYPES, ids=str)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (9, 0.7)])
def test_quantised_cache(dtype, window, softcap):
    """What is read is what was kept, exactly: only the type of the weights rounds."""
    spec = dataclasses.replace(make_spec(4, 2, 16, torch.float32, DEVICE), kv_dtype=dtype)
    assert error(*run(spec, MIXED, window, softcap, parts=7)) < 1e-5


@pytest.mark.parametrize("which", [0, 1])
def test_a_wrong_scale_is_seen(which):
    spec = dataclasses.replace(make_spec(4, 2, 16, torch.float32, DEVICE), kv_dtype=torch.int8)
    spoil = lambda batch, backend: kv_cache.of_slots(backend.scales)[which].mul_(2)  # noqa: E731
    assert error(*run(spec, [(1, 40), (6, 36)], spoil=spoil)) > 1e-2


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_small_and_large_values_of_a_quantised_cache(size):
    """Weights times scales are multiplied in float16."""
    spec = dataclasses.replace(make_spec(4, 2, 16, torch.float16, DEVICE), kv_dtype=torch.int8)
    got, wanted = run(spec, MIXED, parts=7, size=size)
    assert error(got, wanted) < 2e-3


@pytest.mark.parametrize("block_size", [1, 5, 32])
def test_block_sizes(block_size):
    steps = [(1, 3), (4, 9), (1, 1)]
    assert error(*run(make_spec(2, 1, 16, device=DEVICE, block_size=block_size), steps)) < 1e-5


def test_more_query_tiles_than_one():
    assert error(*run(make_spec(8, 1, 16, device=DEVICE), [(1, 9), (20, 20), (17, 50), (2, 2)])) < 1e-5


@pytest.mark.parametrize("kv_dtype", [None, *kv_cache.DTYPES], ids=str)
@pytest.mark.parametrize("window", [None, 9])
def test_what_was_not_written_is_not_read(kv_dtype, window):
    """A block comes as its last owner left it, perhaps with what is no number, and is read from its beginning."""

    def poison(batch, backend):
        keep = [cache.clone() for cache in backend.caches]
        backend.poison(torch.arange(backend.keys.shape[1], device=DEVICE))
        for context, table in zip(batch.context_lens_N.tolist(), batch.block_table_NB, strict=True):
            positions = torch.arange(context, device=DEVICE)
            blocks, places = table[positions // 16].long(), positions % 16
            for cache, old in zip(backend.caches, keep, strict=True):
                new, old = (c.view(torch.uint8).unflatten(-1, (c.shape[-1], -1)) for c in (cache, old))
                at = (0, blocks, places) if cache.shape[2] == 16 else (0, blocks, slice(None), places)
                new[at] = old[at]

    spec = dataclasses.replace(make_spec(4, 2, 16, device=DEVICE), kv_dtype=kv_dtype)
    got, wanted = run(spec, MIXED, window, parts=7, spoil=poison)
    assert error(got, wanted) < 1e-5


@pytest.mark.parametrize("parts", [1, 5, 40])
def test_padding_is_not_written_and_gives_zeros(parts):
    """A captured step has sequences of context 0, here in front, between and behind others."""

    def spill(batch, backend):
        backend.keys.flatten(1, 2)[0, batch.block_table_NB[0, 0] * 16] = torch.nan  # where an empty table points

    steps = [(1, 0), (1, 70), (1, 0), (1, 3), (1, 0), (1, 0)]
    got, wanted = run(make_spec(4, 2, 16, device=DEVICE), steps, parts=parts, spoil=spill)
    assert error(got, wanted) < 1e-5
    assert not got[[0, 2, 4, 5]].any()


@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_contexts_are_divided_evenly(seed, least):
    """Every token of every pair is in one part, no part has much more than its share, and room is never exceeded."""
    rng = torch.Generator().manual_seed(seed)
    contexts = torch.randint(0, 900, (11,), generator=rng, dtype=torch.int32).to(DEVICE)
    spec = dataclasses.replace(make_spec(4, 2, 16, device=DEVICE), windows=(None, 100), max_num_seqs=16)
    backend = TritonAttention(spec, 1)
    form = DecodeForm(13, least, backend.tile, 4, 3)
    backend._allocate(form, form)
    batch, *_ = make_step(spec, [(1, 1)] * 11, 11)
    batch.context_lens_N = contexts
    backend.plan(batch)
    for window, units in backend._lists.items():
        first = [max(0, c - (window or c)) // backend.tile for c in contexts.tolist()]
        total = 2 * sum(-(-c // backend.tile) - f for c, f in zip(contexts.tolist(), first, strict=True))
        share = max(-(-total // 13), least)
        busy = [row for row in units[: backend._units(11)].tolist() if row[0] >= 0]
        assert [row[0] for row in busy] == sorted(row[0] for row in busy)
        places = []
        for pair in range(22):
            rows = [row for row in busy if row[0] == pair]
            context = int(contexts[pair // 2])
            assert [row[5] for row in rows] == list(range(rows[0][4]))
            assert [row[3:5] for row in rows] == [[context, len(rows)]] * len(rows)
            edges = [row[1] for row in rows] + [rows[-1][2]]
            assert edges == [first[pair // 2] * backend.tile, *(row[2] for row in rows)]
            assert edges[-1] == context
            assert max(end - begin for begin, end in pairwise(edges)) <= 1.5 * share * backend.tile
            assert len(rows) == 1 or context >= 1.5 * share
            places += [row[6] + row[5] for row in rows if len(rows) > 1]
        assert places == list(range(len(places))) and len(places) <= len(backend._partial)


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


@pytest.mark.parametrize(("column", "by"), [(0, -1), (1, 64), (2, -5), (3, -9), (5, 1), (6, 1)])
def test_an_error_in_the_list_is_seen(column, by):
    window = 9 if column == 3 else None

    def spoil(batch, backend):
        def plan(batch):
            TritonAttention.plan(backend, batch)
            backend._lists[window][2, column] += by

        backend.plan = plan

    steps = [(1, 70), (1, 140), (1, 90)]
    got, wanted = run(make_spec(4, 2, 16, device=DEVICE), steps, window, parts=30, spoil=spoil)
    assert not error(got, wanted) < 1e-3  # no number either, where nobody wrote


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

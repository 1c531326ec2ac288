"""The attention backends of an NVIDIA GPU against the reference, at the sizes of real models."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from octavo.attention.base import AttendOptions
from octavo.attention.hopper_backend import HopperAttention
from octavo.attention.triton_backend import TritonAttention
from octavo.kernels import kv_cache
from octavo.kernels.paged_attention import reference
from tests.kernels.paged import fill, make_spec, make_step

pytestmark = pytest.mark.gpu

BLOCKS = 1200
STEPS = [(1, 1), (1, 17), (1, 4000), (1, 700), (40, 40), (300, 2000), (513, 513), (129, 1111), (2, 130)]


def made(backend, spec):
    reason = backend.supports(spec)
    if reason is not None:
        pytest.skip(reason)
    return backend(spec, BLOCKS)


def wanted_of(backend, batch, q, options):
    keys, values, *scales = backend.cache(0)
    if scales:
        of_keys, of_values = kv_cache.of_slots(scales[0])
        keys, values = (kv_cache.dequantise(*kept, torch.float32) for kept in ((keys, of_keys), (values, of_values)))
    return reference(
        q,
        keys.float(),
        values.float(),
        batch.query_start_N1,
        batch.context_lens_N,
        batch.block_table_NB,
        options.scale,
        options.window,
        options.softcap,
    )


def error(got, wanted) -> float:
    return ((got.double().view_as(wanted) - wanted).norm() / wanted.norm()).item()


def forget_the_rest(backend, batch) -> None:
    """Whatever others left behind the contexts is no number."""
    used = torch.zeros(BLOCKS * backend.spec.block_size, dtype=torch.bool, device="cuda")
    for context, row in zip(batch.context_lens_N.tolist(), batch.block_table_NB.long(), strict=True):
        position = torch.arange(context, device="cuda")
        used[
            row[position // backend.spec.block_size] * backend.spec.block_size + position % backend.spec.block_size
        ] = True
    for cache in (backend.keys[0], backend.values[0]):
        cache.flatten(0, 1)[~used] = torch.nan


SHAPES = [(32, 8, 128), (7, 1, 128), (8, 8, 64), (64, 4, 64), (8, 2, 80), (12, 4, 96), (8, 4, 256)]


@pytest.mark.parametrize("backend", [TritonAttention, HopperAttention])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dtype"),
    [*((*shape, torch.bfloat16) for shape in SHAPES), (32, 8, 128, torch.float16)],
)
def test_mixed_steps(backend, heads, kv_heads, dim, dtype):
    spec = make_spec(heads, kv_heads, dim, dtype, torch.device("cuda"))
    backend = made(backend, spec)
    fill(backend.keys, backend.values)
    batch, q, k, v = make_step(spec, STEPS, BLOCKS)
    forget_the_rest(backend, batch)
    options = AttendOptions(dim**-0.5)
    backend.plan(batch)
    backend.write(0, k, v, batch)
    got = backend.attend(0, q, batch, options)
    wanted = wanted_of(backend, batch, q, options)
    assert error(got, wanted) < (4e-3 if dtype == torch.bfloat16 else 1e-3)
    rows = (got.double().view_as(wanted) - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    assert rows.max() < 2e-2
    batch.context_lens_N -= 1
    backend.plan(batch)
    assert not error(backend.attend(0, q, batch, options), wanted) < 5e-3


@pytest.mark.parametrize(
    "options", [AttendOptions(0.1, 100), AttendOptions(0.1, None, 20.0), AttendOptions(0.1, 513, 5.0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [64, 256])
def test_windows_and_soft_caps(options, dtype, dim):
    spec = dataclasses.replace(make_spec(8, 4, dim, dtype, torch.device("cuda")), windows=(options.window,))
    backend = made(TritonAttention, spec)
    fill(backend.keys, backend.values)
    batch, q, k, v = make_step(spec, STEPS, BLOCKS)
    backend.plan(batch)
    backend.write(0, k, v, batch)
    got = backend.attend(0, q, batch, options)
    assert error(got, wanted_of(backend, batch, q, options)) < (1e-5 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("dtype", kv_cache.DTYPES, ids=str)
def test_a_quantised_cache(dtype):
    spec = make_spec(32, 8, 128, torch.bfloat16, torch.device("cuda"))
    spec = dataclasses.replace(spec, kv_dtype=dtype)
    backend = made(TritonAttention, spec)
    batch, q, k, v = make_step(spec, STEPS, BLOCKS)
    whole, _, keys, values = make_step(spec, [(context, context) for _, context in STEPS if context > 1], BLOCKS, 1)
    whole.slots_T = torch.randperm(BLOCKS * 16, device="cuda")[: len(keys)]
    backend.write(0, keys, values, whole)
    backend.plan(batch)
    backend.write(0, k, v, batch)
    kept = backend.keys[0].flatten(0, 1).view(torch.uint8)[batch.slots_T].view(dtype)
    scale = kv_cache.of_slots(backend.scales[0])[0][batch.slots_T // 16, batch.slots_T % 16]
    assert error(kv_cache.dequantise(kept, scale, torch.float64), k.double()) < (
        0.03 if dtype.is_floating_point else 0.01
    )
    got = backend.attend(0, q, batch, AttendOptions(128**-0.5))
    assert error(got, wanted_of(backend, batch, q, AttendOptions(128**-0.5))) < 4e-3


def test_a_decode_step_is_captured_once_for_all_lengths():
    """The lists are made in the graph; sequences that are not there have context 0 and slot -1."""
    spec = make_spec(32, 8, 128, torch.bfloat16, torch.device("cuda"))
    backend = made(TritonAttention, spec)
    fill(backend.keys, backend.values)
    options = AttendOptions(128**-0.5)
    batch, q, k, v = make_step(spec, [(1, 900)] * 16, BLOCKS)

    def step():
        backend.plan(batch)
        backend.write(0, k, v, batch)
        return backend.attend(0, q, batch, options)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for lengths in ([1] * 16, [900] * 3 + [0] * 13, [0] * 15 + [880], list(range(3, 900, 56))[:16]):
        new, *_ = make_step(spec, [(1, length) for length in lengths], BLOCKS, seed=len(lengths))
        batch.context_lens_N.copy_(new.context_lens_N)
        batch.slots_T.copy_(new.slots_T)
        batch.block_table_NB.zero_()
        batch.block_table_NB[:, : new.block_table_NB.shape[1]] = new.block_table_NB
        out.fill_(torch.nan)
        graph.replay()
        assert error(out, wanted_of(backend, batch, q, options)) < 4e-3
        assert not backend._counter.any()

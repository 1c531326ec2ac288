"""The Triton kernels against their reference: in the interpreter without a GPU, on the GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from octavo.attention.base import AttendOptions
from octavo.attention.triton_backend import TritonAttention
from octavo.kernels.paged_attention import reference
from tests.kernels.paged import fill, make_spec, make_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MIXED = [(1, 1), (1, 40), (1, 70), (5, 5), (3, 35), (9, 64)]


def run(spec, steps, window=None, num_sms=1, seed=0, spoil=None):
    """(what the kernels give, what the reference gives)."""
    backend = TritonAttention(spec, 40)
    backend.num_sms = num_sms
    fill(backend.keys, backend.values)
    batch, q, k, v = make_step(spec, steps, 40, seed)
    keys, values = backend.keys[0].clone(), backend.values[0].clone()
    keys.flatten(0, 1)[batch.slots_T], values.flatten(0, 1)[batch.slots_T] = k, v
    wanted = reference(
        q, keys, values, batch.query_start_N1, batch.context_lens_N, batch.block_table_NB, spec.head_dim**-0.5, window
    )
    if spoil is not None:
        spoil(batch)
    backend.plan(batch)
    backend.write(0, k, v, batch)
    got = backend.attend(0, q, batch, AttendOptions(spec.head_dim**-0.5, window))
    assert torch.equal(backend.keys[0], keys) or spoil is not None
    assert torch.equal(backend.values[0], values) or spoil is not None
    return got.double().view_as(wanted), wanted


def error(got, wanted) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (3, 1, 40), (7, 1, 64), (2, 2, 32)])
@pytest.mark.parametrize("num_sms", [1, 8])  # one part a context, and several
def test_mixed_steps(heads, kv_heads, dim, num_sms):
    assert error(*run(make_spec(heads, kv_heads, dim, device=DEVICE), MIXED, num_sms=num_sms)) < 1e-5


@pytest.mark.parametrize("window", [1, 7, 33])
def test_windows(window):
    assert error(*run(make_spec(4, 2, 16, device=DEVICE), MIXED, window, num_sms=8)) < 1e-5


def test_half_precision():
    assert error(*run(make_spec(4, 2, 16, torch.float16, DEVICE), MIXED, num_sms=8)) < 2e-3


@pytest.mark.parametrize("block_size", [1, 5, 32])
def test_block_sizes(block_size):
    steps = [(1, 3), (4, 9), (1, 1)]
    assert error(*run(make_spec(2, 1, 16, device=DEVICE, block_size=block_size), steps)) < 1e-5


def test_more_query_tiles_than_one():
    assert error(*run(make_spec(8, 1, 16, device=DEVICE), [(1, 9), (20, 20), (17, 50), (2, 2)])) < 1e-5


def later(batch):
    batch.context_lens_N -= 1


def other_blocks(batch):
    batch.block_table_NB = batch.block_table_NB.roll(1, 0)


def shifted(batch):
    batch.slots_T = batch.slots_T.roll(1)


@pytest.mark.parametrize("spoil", [later, other_blocks, shifted])
def test_planted_errors_are_seen(spoil):
    steps = [(1, 40), (1, 41), (6, 36), (6, 37)]
    assert error(*run(make_spec(4, 2, 16, device=DEVICE), steps, spoil=spoil)) > 1e-2


def test_a_window_that_is_off_by_one_is_seen():
    spec = make_spec(4, 2, 16, device=DEVICE)
    assert error(run(spec, MIXED, 8)[0], run(spec, MIXED, 7)[1]) > 1e-2


def test_copies_read_all_sources_first():
    spec = make_spec(2, 1, 16, device=DEVICE)
    backend = TritonAttention(spec, 4)
    fill(backend.keys, backend.values)
    before = backend.keys.clone()
    backend.copy_blocks(torch.tensor([0, 1], device=DEVICE), torch.tensor([1, 2], device=DEVICE))
    assert torch.equal(backend.keys[:, [1, 2]], before[:, [0, 1]])

"""Attention over whole prompts: every sequence of a step is attended to as if it were alone, in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from octavo.attention.base import AttendOptions, AttentionSpec, ForwardBatch
from octavo.attention.varlen_torch import TorchVarlen
from octavo.kernels.varlen_attention import reference

LENGTHS = ([5], [1, 1, 1], [40, 3, 200, 41, 39, 3, 1, 130], [7] * 6, [300])


def make_batch(backend: object, lengths: list[int]) -> ForwardBatch:
    starts = torch.tensor([0, *itertools.accumulate(lengths)])
    counts = torch.tensor(lengths)
    positions = torch.cat([torch.arange(n) for n in lengths])
    nothing = torch.empty(0, dtype=torch.int64)
    return ForwardBatch(
        positions, positions, nothing, starts, counts, nothing, 0, max(lengths), max(lengths), backend,
        query_lens=lengths, context_lens=lengths,
    )  # fmt: skip


def make_spec(heads: int, kv_heads: int, dim: int, device: str = "cpu", dtype: torch.dtype = torch.float32):
    return AttentionSpec(1, heads, kv_heads, dim, dtype, torch.device(device), 16, 512)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 17])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_sequences_are_alone(lengths: list[int], causal: bool, window: int | None, softcap: float | None):
    generator = torch.Generator().manual_seed(len(lengths))
    for heads, kv_heads in ((4, 4), (4, 2)):
        backend = TorchVarlen(make_spec(heads, kv_heads, 16))
        batch = make_batch(backend, lengths)
        backend.plan(batch)
        # As a model gives them: parts of one product, whose heads are not next to each other.
        joint = torch.randn(sum(lengths), heads + 2 * kv_heads, 16, generator=generator)
        q, k, v = joint.split_with_sizes((heads, kv_heads, kv_heads), 1)
        options = AttendOptions(0.25, window, softcap, causal=causal)
        for _ in range(2):  # the plan serves all layers
            backend.write(0, k, v, batch)
            found = backend.attend(0, q, batch, options)
        expected = reference(q, k, v, batch.query_start_N1, 0.25, causal, window, softcap)
        np.testing.assert_allclose(found, expected.flatten(1), atol=2e-6)


def test_padding_is_bounded():
    backend = TorchVarlen(make_spec(4, 4, 16))
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 400, 200).tolist()
    batch = make_batch(backend, lengths)
    backend.plan(batch)
    computed = sum(group.number * group.longest for group in batch.plan.groups)
    assert computed - sum(lengths) < sum(lengths) / 4 and len(batch.plan.groups) < 40

"""Masks of grammars: what they forbid, whose rows they touch, and that nothing of them is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.core.params import SamplingParams
from octavo.core.plan import RowJoin
from octavo.sampling.sampler import Sampler

V = 100  # no multiple of 32, nor of 8
NOTHING = (np.empty(0, np.int32), np.empty(0, np.int32))


def words(allowed: list[list[int]]) -> np.ndarray:
    """Masks in which every bit past the vocabulary is set: they must not matter."""
    bits = np.zeros((len(allowed), 128), np.uint8)
    bits[:, V:] = 1
    for row, tokens in enumerate(allowed):
        bits[row, tokens] = 1
    return np.packbits(bits, axis=1, bitorder="little").view(np.int32)


def sampler(*rows: tuple[SamplingParams, bool], stop_ids: tuple[int, ...] = ()) -> Sampler:
    found = Sampler(len(rows), V, "cpu")
    for row, (params, masked) in enumerate(rows):
        found.join(RowJoin(row, params, row, np.zeros(1, np.int32), 1, list(stop_ids), masked))
    return found


def sample(found: Sampler, logits: torch.Tensor, position: int = 1) -> list[int]:
    count = len(logits)
    rows = torch.arange(count)
    positions = torch.full((count,), position)
    before = logits.clone()
    tokens = found.sample(logits, rows, positions, np.arange(count, dtype=np.int32), NOTHING, False).tokens_S
    assert torch.equal(logits.nan_to_num(7.0), before.nan_to_num(7.0)), "the logits are not as they were"
    return tokens.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=5.0),
        SamplingParams(temperature=5.0, top_p=0.9),
        SamplingParams(temperature=5.0, top_k=7),
        SamplingParams(temperature=0.0, repetition_penalty=2.0, logit_bias={3: 100.0}),
    ],
    ids=["greedy", "all", "top_p", "top_k", "edited"],
)
def test_only_what_is_allowed(params: SamplingParams, dtype: torch.dtype):
    found = sampler(*[(params, True)] * 3, (params, False))
    for step in range(20):
        allowed = [[step], [step, 99], [5, 31, 32, 63, 64]]
        found.write_masks(np.arange(3, dtype=np.int32), words(allowed))
        tokens = sample(found, torch.randn(4, V, dtype=dtype), step + 1)
        assert all(token in ids for token, ids in zip(tokens, allowed, strict=False))


def test_neighbours_sample_as_ever():
    params = SamplingParams(temperature=1.0)
    plain, mixed = sampler((params, False), (params, False)), sampler((params, True), (params, False))
    mixed.write_masks(np.zeros(1, np.int32), words([[1, 2]]))
    for step in range(1, 20):
        logits = torch.randn(2, V)
        assert sample(plain, logits, step)[1] == sample(mixed, logits, step)[1]


def test_the_next_owner_of_a_row_is_free():
    found = sampler((SamplingParams(temperature=0.0), True))
    found.write_masks(np.zeros(1, np.int32), words([[1]]))
    logits = torch.zeros(1, V)
    logits[0, 50] = 1
    assert sample(found, logits) == [1]
    found.join(RowJoin(0, SamplingParams(temperature=0.0), 0, np.zeros(1, np.int32), 1, []))
    assert sample(found, logits) == [50]
    found.grammars.apply(masked := logits.clone(), torch.zeros(1, dtype=torch.int64))
    assert torch.equal(masked, logits), "its mask is still there"


def test_an_only_token_is_chosen_whatever_is_against_it():
    """min_tokens, a bad word and logit_bias forbid less strongly than a grammar."""
    params = SamplingParams(temperature=0.0, min_tokens=9, logit_bias={7: -100.0})
    found = sampler((params, True), stop_ids=(7,))
    found.write_masks(np.zeros(1, np.int32), words([[7]]))
    assert sample(found, torch.randn(1, V)) == [7]
    banned = (np.zeros(1, np.int32), np.array([7], np.int32))
    logits = torch.randn(1, V)
    rows, positions = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    assert found.sample(logits, rows, positions, np.zeros(1, np.int32), banned, False).tokens_S.tolist() == [7]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_found_out(bad: float):
    found = sampler((SamplingParams(temperature=0.0), True), (SamplingParams(temperature=1.0), True))
    found.write_masks(np.arange(2, dtype=np.int32), words([[1, 2], [1, 2]]))
    logits = torch.randn(2, V)
    logits[:, 50] = bad
    assert sample(found, logits) == [-1, -1]

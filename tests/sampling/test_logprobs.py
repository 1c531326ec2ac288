"""Logprobs of the raw distribution: the token itself, then the likeliest in order, and ranks."""

import numpy as np
import pytest
import torch

from octavo.core.params import SamplingParams
from octavo.sampling.sampler import Sampler
from tests.sampling.reference import join, step


def logits(rows: int, vocab: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [40, 3000, 32000])
def test_they_are_of_the_raw_distribution(vocab: int, dtype: torch.dtype) -> None:
    x = logits(2, vocab, dtype)
    sampler = Sampler(2, vocab, "cpu")
    order = x[0].float().argsort(descending=True).tolist()
    edits = {"logit_bias": {order[0]: -100.0}, "min_tokens": 3, "repetition_penalty": 1.5, "frequency_penalty": 1.0}
    params = SamplingParams(temperature=0.7, top_k=3, logprobs=5, **edits)
    sampler.join(join(1, params, prompt=order[:3], stop_ids=[order[1]]))
    sampler.join(join(0, SamplingParams(temperature=0)))
    sampled = step(sampler, x, [1, 0], [3, 1], banned=[(0, order[2])])
    found = sampled.logprobs
    assert found is not None
    token = int(sampled.tokens_S[0])
    assert token not in order[:3]
    wanted = torch.log_softmax(x[0].double(), -1)
    assert found.index_M.tolist() == [0]
    assert found.ids_MK[0, 0] == token and found.ids_MK.dtype == torch.int32
    torch.testing.assert_close(found.logprobs_MK[0, 1:].double(), wanted.topk(5).values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(wanted[found.ids_MK[0].long()], found.logprobs_MK[0].double(), atol=1e-5, rtol=1e-5)
    assert found.ranks_M[0] == 1 + (wanted > wanted[token]).sum()
    assert found.logprobs_MK.dtype == torch.float32


def test_only_rows_that_asked_and_the_most_that_one_asked_for() -> None:
    x = logits(5, 3000)
    sampler = Sampler(5, 3000, "cpu")
    for row, asked in enumerate([None, 0, None, 7, 2]):
        sampler.join(join(row, SamplingParams(temperature=0, logprobs=asked)))
    found = step(sampler, x, [4, 0, 1, 3, 2], [1] * 5).logprobs
    assert found is not None and found.index_M.tolist() == [0, 2, 3]
    assert found.index_M.dtype == np.int32
    assert found.ids_MK.shape == found.logprobs_MK.shape == (3, 8)
    assert found.ranks_M.tolist() == [1, 1, 1]
    assert torch.equal(found.ids_MK[:, 0], found.ids_MK[:, 1])
    alone = step(sampler, x[:1], [1], [1]).logprobs
    assert alone is not None and alone.ids_MK.shape == (1, 1)
    assert step(sampler, x[:2], [0, 2], [1, 1]).logprobs is None


def test_more_rows_than_are_worked_on_at_once() -> None:
    x = logits(9, 40)
    sampler = Sampler(9, 40, "cpu")
    for row in range(9):
        sampler.join(join(row, SamplingParams(temperature=1.0, logprobs=3)))
    whole = step(sampler, x, list(range(9)), [1] * 9)
    sampler.chunk_rows = 2
    sampler._batch = None
    parts = step(sampler, x, list(range(9)), [1] * 9)
    assert torch.equal(whole.tokens_S, parts.tokens_S)
    assert whole.logprobs is not None and parts.logprobs is not None
    assert torch.equal(whole.logprobs.logprobs_MK, parts.logprobs.logprobs_MK)
    assert torch.equal(whole.logprobs.ids_MK, parts.logprobs.ids_MK)


@pytest.mark.parametrize("k", [0, 1, 20])
def test_prompt_logprobs(k: int) -> None:
    x = logits(30, 500)
    targets = torch.arange(30) * 16
    index = np.arange(30, dtype=np.int32) * 2
    sampler = Sampler(1, 500, "cpu")
    sampler.chunk_rows = 7
    found = sampler.prompt_logprobs(x, targets, k, index)
    wanted = torch.log_softmax(x.double(), -1)
    own = wanted.gather(1, targets[:, None])
    assert found.index_M is index
    assert torch.equal(found.ids_MK, torch.cat((targets[:, None], wanted.topk(k).indices), 1).int())
    torch.testing.assert_close(
        found.logprobs_MK.double(), torch.cat((own, wanted.topk(k).values), 1), atol=1e-5, rtol=0
    )
    assert torch.equal(found.ranks_M, 1 + (wanted > own).sum(-1).int())


def test_tokens_alike_share_a_rank() -> None:
    found = Sampler(1, 4, "cpu").prompt_logprobs(
        torch.tensor([[2.0, 1.0, 2.0, 0.0]] * 4), torch.arange(4), 2, np.arange(4, dtype=np.int32)
    )
    assert found.ranks_M.tolist() == [1, 3, 1, 4]


def test_a_row_that_is_not_finite_does_no_harm() -> None:
    x = logits(2, 300)
    x[0, 5] = float("nan")
    sampler = Sampler(2, 300, "cpu")
    for row in range(2):
        sampler.join(join(row, SamplingParams(temperature=0, logprobs=2)))
    sampled = step(sampler, x, [0, 1], [1, 1])
    assert sampled.tokens_S.tolist() == [-1, int(x[1].argmax())]
    assert sampled.logprobs is not None and torch.isfinite(sampled.logprobs.logprobs_MK[1]).all()

"""logit_bias, allowed_token_ids, min_tokens and banned tokens."""

import pytest
import torch

from octavo.core.params import SamplingParams
from octavo.sampling.sampler import Sampler
from tests.sampling.reference import edited, join, step

V = 600


def logits(rows: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(0)).to(dtype) * 4


def greedy(x: torch.Tensor, params: SamplingParams, position: int = 1, banned=(), **given) -> int:
    sampler = Sampler(1, V, "cpu")
    sampler.join(join(0, params, **given))
    return int(step(sampler, x, [0], [position], banned).tokens_S[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logit_bias(dtype: torch.dtype) -> None:
    x = logits(dtype=dtype)
    best = int(x.float().argmax())
    for bias in ({5: 100.0}, {best: -100.0}, {best: -3.0, 17: 2.5}, {t: -50.0 for t in range(400)}):
        params = SamplingParams(temperature=0, logit_bias=bias)
        assert greedy(x, params) == edited(x[0].float(), params).argmax()


def test_bias_is_not_rounded_to_the_type_of_the_logits() -> None:
    x = torch.zeros(1, V, dtype=torch.bfloat16)
    x[0, 3] = 100.0
    x[0, 4] = 100.0
    assert greedy(x, SamplingParams(temperature=0, logit_bias={4: 0.01})) == 4


@pytest.mark.parametrize("allowed", [[7], [3, 400, 599], list(range(0, V, 2))])
def test_allowed_token_ids(allowed: list[int]) -> None:
    x = logits()
    params = SamplingParams(temperature=0, allowed_token_ids=allowed)
    assert greedy(x, params) == edited(x[0], params).argmax()
    sampler = Sampler(1, V, "cpu")
    sampler.join(join(0, SamplingParams(temperature=2.0, allowed_token_ids=allowed)))
    drawn = {int(step(sampler, x, [0], [position]).tokens_S[0]) for position in range(100)}
    assert drawn <= set(allowed)


def test_no_stop_id_before_min_tokens() -> None:
    x = logits()
    order = x[0].argsort(descending=True).tolist()
    stop_ids = order[:3]
    params = SamplingParams(temperature=0, min_tokens=4)
    sampler = Sampler(1, V, "cpu")
    sampler.join(join(0, params, prompt=[1, 2, 3], stop_ids=stop_ids))
    tokens = [int(step(sampler, x, [0], [position], steady=position > 3).tokens_S[0]) for position in range(3, 9)]
    assert tokens == [order[3]] * 4 + [order[0]] * 2


def test_min_tokens_are_counted_from_the_prompt_after_a_preemption() -> None:
    x = logits()
    best, second = x[0].topk(2).indices.tolist()
    params = SamplingParams(temperature=0, min_tokens=3)
    given = {"prompt": [1, 2], "answer": [5, 6], "stop_ids": [best]}
    assert greedy(x, params, position=4, **given) == second
    assert greedy(x, params, position=5, **given) == best


def test_rows_of_different_numbers_of_stop_ids() -> None:
    x = logits().repeat(3, 1)
    order = x[0].argsort(descending=True).tolist()
    sampler = Sampler(3, V, "cpu")
    params = SamplingParams(temperature=0, min_tokens=4)
    sampler.join(join(0, params, stop_ids=order[:1]))
    sampler.join(join(1, SamplingParams(temperature=0), stop_ids=order[:2]))
    sampler.join(join(2, params, stop_ids=order[:20]))
    assert step(sampler, x, [2, 1, 0], [1, 1, 1]).tokens_S.tolist() == [order[20], order[0], order[1]]


def test_stop_ids_of_a_short_list_are_all_that_is_masked() -> None:
    x = torch.zeros(2, V)
    x[0, 0], x[1, 599] = 10.0, 10.0
    sampler = Sampler(2, V, "cpu")
    for row in range(2):
        sampler.join(join(row, SamplingParams(temperature=0, min_tokens=5), stop_ids=[5, 6]))
    assert step(sampler, x, [0, 1], [1, 1]).tokens_S.tolist() == [0, 599]


def test_banned_pairs_name_places_in_the_batch() -> None:
    x = logits().repeat(3, 1)
    order = x[0].argsort(descending=True).tolist()
    sampler = Sampler(5, V, "cpu")
    for row in range(5):
        sampler.join(join(row, SamplingParams(temperature=0)))
    banned = [(0, order[0]), (2, order[0]), (2, order[1]), (2, order[1])]
    assert step(sampler, x, [4, 0, 2], [1, 1, 1], banned).tokens_S.tolist() == [order[1], order[0], order[2]]
    assert step(sampler, x, [4, 0, 2], [2, 2, 2], steady=True).tokens_S.tolist() == [order[0]] * 3


def test_everything_together() -> None:
    x = logits()
    order = x[0].argsort(descending=True).tolist()
    params = SamplingParams(
        temperature=0,
        allowed_token_ids=order[:50],
        logit_bias={order[0]: 1.0, order[9]: 2.0, order[300]: 100.0},
        min_tokens=2,
    )
    wanted = edited(x[0], params, stop_ids=order[:2], banned=order[2:4])
    token = greedy(x, params, banned=[(0, order[2]), (0, order[3])], stop_ids=order[:2])
    assert token == wanted.argmax()


@pytest.mark.parametrize("temperature", [0.0, 1e-4, 1.0, 100.0])
@pytest.mark.parametrize("cut", [{}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.5}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_request_that_forbids_everything_still_gets_a_token(
    temperature: float, cut: dict, dtype: torch.dtype
) -> None:
    """Of those it allows: what is merely not wanted now gives way to what is not allowed at all."""
    params = SamplingParams(temperature=temperature, allowed_token_ids=[7, 9], min_tokens=4, **cut)
    for banned in ([], [(0, 9)]):
        assert greedy(logits(dtype=dtype), params, banned=banned, stop_ids=[7, 9]) in (7, 9)
    everything = [(0, token) for token in range(V)]
    assert 0 <= greedy(logits(dtype=dtype), SamplingParams(temperature=temperature, **cut), banned=everything) < V


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_masks_do_not_hide_that_a_row_is_not_finite(bad: float) -> None:
    x = logits()
    x[0, 8] = bad
    assert greedy(x, SamplingParams(temperature=0, allowed_token_ids=[1, 2])) == -1
    assert greedy(x, SamplingParams(temperature=0, min_tokens=3), stop_ids=[8]) == -1
    assert greedy(x, SamplingParams(temperature=0), banned=[(0, 8)]) == -1
    assert greedy(x, SamplingParams(temperature=1.0, logit_bias={8: -100.0})) == -1


def test_padding_of_the_model_stays_masked() -> None:
    """-inf in the logits is no fault."""
    x = logits()
    x[0, 300:] = float("-inf")
    best = int(x[0].argmax())
    assert greedy(x, SamplingParams(temperature=0)) == best
    assert greedy(x, SamplingParams(temperature=0, logit_bias={500: 100.0})) == best
    assert 0 <= greedy(x, SamplingParams(temperature=5.0)) < 300

"""Penalties follow a plain recount of prompt and answer, step after step."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.params import SamplingParams
from octavo.sampling.sampler import Sampler
from tests.sampling.reference import edited, join, step

V = 300


def logits(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 3


def generate(sampler: Sampler, rows: list[int], lengths: list[int], steps: int, seed: int = 0) -> list[list[int]]:
    """Tokens of each row, where the logits of a step depend on the step and the row alone."""
    answers: list[list[int]] = [[] for _ in rows]
    for turn in range(steps):
        x = torch.stack([logits(64, seed + turn)[row] for row in rows])
        tokens = step(sampler, x, rows, [n + turn for n in lengths], steady=turn > 0).tokens_S.tolist()
        for answer, token in zip(answers, tokens, strict=True):
            answer.append(token)
    return answers


@settings(max_examples=40, deadline=None)
@given(
    repetition=st.sampled_from([0.3, 1.0, 1.1, 2.0]),
    frequency=st.sampled_from([-2.0, 0.0, 0.5, 2.0]),
    presence=st.sampled_from([-2.0, 0.0, 1.5]),
    prompt=st.lists(st.integers(0, V - 1), min_size=1, max_size=40),
    answer=st.lists(st.integers(0, 9), max_size=20),
    seed=st.integers(0, 99),
)
def test_a_row_follows_the_reference(repetition, frequency, presence, prompt, answer, seed) -> None:
    params = SamplingParams(
        temperature=0, repetition_penalty=repetition, frequency_penalty=frequency, presence_penalty=presence
    )
    sampler = Sampler(1, V, "cpu")
    sampler.join(join(0, params, prompt, answer))
    answer = list(answer)
    for turn in range(6):
        x = logits(1, seed + turn)
        token = int(step(sampler, x, [0], [len(prompt) + len(answer)]).tokens_S[0])
        wanted = edited(x[0], params, prompt, answer)
        assert wanted[token] >= wanted.max() - 1e-5
        answer.append(token)


def test_a_long_answer_is_counted_to_its_end() -> None:
    """Longer than the list a row starts with, and all of one token."""
    sampler = Sampler(2, V, "cpu")
    sampler.join(join(0, SamplingParams(temperature=0, frequency_penalty=0.01)))
    x = torch.zeros(1, V)
    x[0, 5] = 10.0
    tokens = [int(step(sampler, x, [0], [1 + turn], steady=turn > 0).tokens_S[0]) for turn in range(1005)]
    # At 0.01 each it takes a thousand to bring 10 down to 0, and then the others come, each once.
    assert tokens[:999] == [5] * 999
    assert 5 not in tokens[1002:] and len(set(tokens[1002:])) == 3


def test_a_preempted_row_goes_on_as_if_it_had_not_been() -> None:
    params = SamplingParams(temperature=0, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.7)
    prompt = [5, 6, 7, 5, 5]
    whole = Sampler(4, V, "cpu")
    whole.join(join(2, params, prompt))
    wanted = generate(whole, [2], [5], 12)[0]
    parts = Sampler(4, V, "cpu")
    parts.join(join(2, params, prompt))
    first = generate(parts, [2], [5], 5)[0]
    parts.join(join(0, params, [1, 2, 3]))
    parts.join(join(2, params, prompt, first))
    second = generate(parts, [2], [10], 7, seed=5)[0]
    assert first + second == wanted


def test_neighbours_with_and_without_penalties_do_not_meet() -> None:
    strong = SamplingParams(temperature=0, frequency_penalty=2.0, presence_penalty=2.0, repetition_penalty=2.0)
    weak = SamplingParams(temperature=0, repetition_penalty=1.05)
    biased = SamplingParams(temperature=0, logit_bias={3: 1.0})
    given = {0: strong, 1: SamplingParams(temperature=0), 2: weak, 3: biased, 4: strong}
    rows = [3, 0, 4, 1, 2]
    together = Sampler(5, V, "cpu")
    for row, params in given.items():
        together.join(join(row, params, prompt=[row] * (row + 1)))
    answers = generate(together, rows, [row + 1 for row in rows], 20)
    for row, answer in zip(rows, answers, strict=True):
        alone = Sampler(5, V, "cpu")
        alone.join(join(row, given[row], prompt=[row] * (row + 1)))
        assert generate(alone, [row], [row + 1], 20)[0] == answer


def test_memory_is_for_rows_that_ask() -> None:
    sampler = Sampler(512, V, "cpu")
    for row in range(100):
        sampler.join(join(row, SamplingParams(temperature=0)))
    penalties = sampler.edits[2]
    assert penalties.counts_PV.numel() == 0
    for row in range(10):
        sampler.join(join(row, SamplingParams(temperature=0, presence_penalty=1.0)))
    assert 11 <= len(penalties.counts_PV) <= 20
    for row in range(10):  # the rows' next owners want none, so other rows get their slots
        sampler.join(join(row, SamplingParams(temperature=0)))
        sampler.join(join(100 + row, SamplingParams(temperature=0, presence_penalty=1.0)))
    assert len(penalties.counts_PV) <= 20
    for row in range(10):
        sampler.join(join(row, SamplingParams(temperature=0, presence_penalty=1.0)))
    held = sampler.table.ints[[*range(10), *range(100, 110)], penalties.slot]
    assert len(set(held.tolist()) - {0}) == 20, "no two rows share a slot"


def test_the_next_owner_starts_with_clean_counts() -> None:
    """Also for a token that it says itself later."""
    params = SamplingParams(temperature=0, frequency_penalty=1.0)
    sampler = Sampler(1, V, "cpu")
    x = torch.zeros(1, V)
    x[0, 5], x[0, 6] = 9.5, 7.0
    for _ in range(2):
        sampler.join(join(0, params))
        tokens = [int(step(sampler, x, [0], [1 + turn]).tokens_S[0]) for turn in range(6)]
        assert tokens == [5, 5, 5, 6, 5, 6]


def test_a_row_without_penalties_may_be_far_along() -> None:
    sampler = Sampler(2, V, "cpu")
    sampler.join(join(0, SamplingParams(temperature=0, presence_penalty=1.0)))
    sampler.join(join(1, SamplingParams(temperature=0, logit_bias={4: 0.5})))
    x = logits(2, 0)
    wanted = [int(x[0].argmax()), int((x[1] + 0.5 * (torch.arange(V) == 4)).argmax())]
    assert step(sampler, x, [0, 1], [1, 100_000]).tokens_S.tolist() == wanted


@pytest.mark.parametrize("penalty", ["repetition_penalty", "frequency_penalty", "presence_penalty"])
def test_repetition_heeds_the_prompt_and_the_others_do_not(penalty: str) -> None:
    x = torch.zeros(1, V)
    x[0, 4], x[0, 9] = 2.0, 1.5
    sampler = Sampler(1, V, "cpu")
    sampler.join(join(0, SamplingParams(temperature=0, **{penalty: 2.0}), prompt=[4]))
    assert int(step(sampler, x, [0], [1]).tokens_S[0]) == (9 if penalty == "repetition_penalty" else 4)


def test_repetition_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    x = logits(1, 3)
    prompt = np.random.default_rng(0).integers(0, V, 50).tolist()
    wanted = transformers.RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt]), x.clone())
    found = edited(x[0], SamplingParams(repetition_penalty=1.7), prompt)
    torch.testing.assert_close(torch.tensor(found).float(), wanted[0])

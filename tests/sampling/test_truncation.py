"""min_p, top_k and top_p keep the tokens of the sorted reference, and draw them with its probabilities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.params import SamplingParams
from octavo.sampling import truncation
from tests.sampling.reference import draws, p_value, probabilities

PEAKED = (torch.randn(40, generator=torch.Generator().manual_seed(1)) * 3).tolist()
FLAT = (torch.randn(300, generator=torch.Generator().manual_seed(2)) / 2).tolist()
TIED = [0.0, 1.0, 1.0, 1.0, 2.0, -1.0, 2.0, 1.0]
WIDE = (torch.randn(3000, generator=torch.Generator().manual_seed(3)) * 2).tolist()

ASKED = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 30, "temperature": 2.0},
    {"top_k": -1},
    {"top_k": 10**9},
    {"top_p": 0.9},
    {"top_p": 0.5, "temperature": 1.5},
    {"top_p": 0.05},
    {"top_p": 1e-300},
    {"top_p": 0.999999},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"min_p": 0.05, "top_p": 0.7},
    {"min_p": 0.05, "top_k": 7},
    {"top_k": 12, "top_p": 0.8},
    {"top_k": 12, "top_p": 0.8, "min_p": 0.1, "temperature": 1.3},
    {"top_k": 2, "top_p": 0.01},
    {"top_k": 3, "top_p": 1e-300},
]


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("logits", [PEAKED, FLAT, TIED, WIDE], ids=["peaked", "flat", "tied", "wide"])
def test_frequencies_are_those_of_the_reference(logits: list[float], asked: dict) -> None:
    params = SamplingParams(**asked)
    wanted = probabilities(logits, params)
    count = 4000 if len(logits) < 1000 else 500
    tokens = draws(logits, params, count, seed=len(logits))
    counts = np.bincount(tokens, minlength=len(logits))
    assert p_value(counts, wanted) > 1e-4
    if (kept := np.flatnonzero(wanted > 20 / count)).size:
        assert (counts[kept] > 0).all(), "a kept token is never drawn"


@settings(max_examples=150, deadline=None)
@given(
    logits=st.lists(st.integers(-12, 12).map(lambda n: n / 4), min_size=1, max_size=40),
    temperature=st.floats(0.2, 4.0),
    top_k=st.integers(0, 45),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.99)),
    min_p=st.one_of(st.just(0.0), st.floats(0.01, 1.0)),
)
def test_only_kept_tokens_are_drawn(logits, temperature, top_k, top_p, min_p) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    wanted = probabilities(logits, params)
    # Where a cut falls within rounding of a token, either side of it is right.
    shifts = (-1e-5, 1e-5)
    variants = [
        params.clone(top_p=min(1.0, top_p + a), min_p=min(1.0, max(0.0, min_p + b))) for a in shifts for b in shifts
    ]
    wanted = np.maximum(wanted, np.max([probabilities(logits, variant) for variant in variants], 0))
    drawn = set(draws(logits, params, 64).tolist())
    assert drawn <= set(np.flatnonzero(wanted).tolist())


def test_large_k_is_exact_too() -> None:
    logits = torch.randn(60000, generator=torch.Generator().manual_seed(5)) / 3
    for k in (250, 1000, 20000):
        tokens = draws(logits, SamplingParams(top_k=k), 200)
        assert logits[tokens].min() >= logits.sort(descending=True).values[k - 1]


def test_ties_with_the_last_kept_token_are_kept() -> None:
    assert set(draws(TIED, SamplingParams(top_k=1), 200)) == {4, 6}
    assert set(draws(TIED, SamplingParams(top_k=3), 400)) == {1, 2, 3, 4, 6, 7}
    assert set(draws(TIED, SamplingParams(top_p=0.01), 200)) == {4, 6}
    assert set(draws([0.0] * 300, SamplingParams(top_p=0.5), 6000)) == set(range(300))


@pytest.mark.parametrize("top_p", [0.9, 0.5, 0.05])
def test_rejections_are_as_few_as_promised(top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most Poisson(ln(1 / top_p)) on average, whatever the distribution."""
    drawn = 0
    draw = truncation.draw

    def counting(p: torch.Tensor, masses: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal drawn
        drawn += len(p)
        return draw(p, masses, keys)

    monkeypatch.setattr(truncation, "draw", counting)
    draws(FLAT, SamplingParams(top_p=top_p), 2000)
    assert drawn / 2000 - 1 < 1.1 * math.log(1 / top_p)


def test_candidates_depend_on_k_alone() -> None:
    assert [truncation.candidates_for(k) for k in (1, 8, 9, 24, 25, 50, 56, 57)] == [16, 16, 32, 32, 64, 64, 64, 128]


def test_planted_errors_are_caught() -> None:
    """A slightly different cut or temperature does not pass for the one that was asked."""
    logits = torch.linspace(0, 3, 60).tolist()
    counts = np.bincount(draws(logits, SamplingParams(top_p=0.9), 12000), minlength=60)
    assert p_value(counts, probabilities(logits, SamplingParams(top_p=0.9))) > 1e-4
    for wrong in ({"top_p": 0.93}, {"top_p": 0.87}, {"top_p": 0.9, "temperature": 1.3}, {"min_p": 0.3}, {"top_k": 40}):
        other = probabilities(logits, SamplingParams(**wrong))
        assert counts[other == 0].sum() > 0 or p_value(counts, other) < 1e-4

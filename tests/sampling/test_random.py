"""Random numbers: the generator is the one it says it is, and seeds, positions and counters are independent."""

import numpy as np
import pytest
import torch

from octavo.core.params import SamplingParams
from octavo.sampling.random import exponentials, key_of, later, race, streams
from tests.sampling.reference import draws, p_value


def test_the_generator_is_splitmix64() -> None:
    # The first numbers of the published generator for the seed 1234567.
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    numbers = streams(torch.full((5,), 1234567), torch.arange(1, 6))
    assert [n % 2**64 for n in numbers.tolist()] == known


def test_seeds_of_any_size_have_keys() -> None:
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 2**64 - 1]
    keys = [key_of(seed) for seed in seeds]
    assert key_of(-1) == key_of(2**64 - 1)
    assert len(set(keys)) == len(seeds) - 1 and 0 not in keys
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_keys_of_neighbouring_seeds_differ_in_half_their_bits() -> None:
    differing = [bin((key_of(seed) ^ key_of(seed + 1)) % 2**64).count("1") for seed in range(1000)]
    assert 31 < np.mean(differing) < 33


def bins(numbers: torch.Tensor, count: int = 64) -> np.ndarray:
    """Exponential numbers as counts of equally likely bins."""
    return np.bincount((torch.exp(-numbers.double()) * count).long().clamp(max=count - 1).flatten(), minlength=count)


@pytest.mark.parametrize("axis", ["counters", "positions", "seeds", "turns"])
def test_exponentials_are_exponential_along_each_axis(axis: str) -> None:
    count = 1 << 15
    one, many = torch.zeros(1, dtype=torch.int64), torch.arange(count)
    if axis == "counters":
        numbers = exponentials(streams(one, one), many)
    elif axis == "positions":
        numbers = exponentials(streams(one, many), one)
    elif axis == "seeds":
        numbers = exponentials(streams(torch.tensor([key_of(seed) for seed in range(count)]), one), one)
    else:
        keys = streams(one, one)
        numbers = torch.stack([exponentials(later(keys, turn), one) for turn in range(1, 4096)])
    assert p_value(bins(numbers), np.full(64, 1 / 64)) > 1e-3
    assert len(numbers.unique()) > 0.99 * numbers.numel()


@pytest.mark.parametrize("shift", [1, 2, 256])
@pytest.mark.parametrize("axis", [0, 1])
def test_neighbours_are_independent(axis: int, shift: int) -> None:
    """Pairs of numbers, `shift` apart along counters or positions, fill the square evenly."""
    keys = streams(torch.zeros(600, dtype=torch.int64), torch.arange(600))
    uniform = torch.exp(-exponentials(keys, torch.arange(600)).double())
    a, b = uniform.narrow(axis, 0, 600 - shift), uniform.narrow(axis, shift, 600 - shift)
    cells = (a * 16).long().clamp(max=15) * 16 + (b * 16).long().clamp(max=15)
    assert p_value(np.bincount(cells.flatten(), minlength=256), np.full(256, 1 / 256)) > 1e-3


def test_small_exponentials_are_fine() -> None:
    """The winner of a race is small: it must not come from a coarse grid."""
    numbers = exponentials(streams(torch.zeros(64, dtype=torch.int64), torch.arange(64)), torch.arange(1 << 16))
    smallest = numbers.min(1).values
    assert len(smallest.unique()) == 64
    assert (smallest > 0).all() and smallest.max() < 1e-3
    assert torch.isfinite(numbers).all()


def test_race_is_proportional_to_weight() -> None:
    weights = torch.tensor([0.0, 1.0, 2.0, 5.0, 1e-12])
    keys = streams(torch.zeros(20000, dtype=torch.int64), torch.arange(20000))
    winners = race(weights.expand(20000, -1), exponentials(keys, torch.arange(5)))
    assert p_value(np.bincount(winners, minlength=5), np.array([0, 1, 2, 5, 1e-12]) / (8 + 1e-12)) > 1e-3


@pytest.mark.parametrize("asked", [{}, {"top_p": 0.99}, {"top_k": 500}])
def test_a_token_hardly_moves_when_logits_do(asked: dict) -> None:
    """With 500 tokens alike, a relative change of 1% reorders them all, and moves about one draw in a hundred."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.full((4096,), -30.0)
    logits[torch.randperm(4096, generator=generator)[:500]] = 1.0
    params = SamplingParams(temperature=1.0, **asked)
    changed = draws(logits, params, 2000) != draws(logits + 0.01 * torch.randn(4096, generator=generator), params, 2000)
    assert 2 < changed.sum() < 80


def test_planted_errors_are_caught() -> None:
    """The tests above have the power to see small faults."""
    numbers = exponentials(
        streams(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)), torch.arange(1 << 15)
    )
    assert p_value(bins(numbers * 1.05), np.full(64, 1 / 64)) < 1e-3
    tokens = draws([0.0, 0.0, 1.0], SamplingParams(temperature=1.0), 20000)
    wrong = np.exp([0.0, 0.0, 1.06])
    assert p_value(np.bincount(tokens, minlength=3), wrong / wrong.sum()) < 1e-3

"""Arrival times: the load that was asked for, and the shape of its gaps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from octavo.bench.traffic import Ramp, arrival_times
from octavo.core.errors import ConfigError


def draw(count: int, rate: float, burstiness: float, ramp: Ramp | None = None, seed: int = 0) -> np.ndarray:
    return arrival_times(count, rate, burstiness, np.random.default_rng(seed), ramp)[0]


def test_all_at_once() -> None:
    assert draw(4, math.inf, 1.0).tolist() == [0, 0, 0, 0]


def test_a_beat() -> None:
    assert draw(4, 2.0, math.inf) == pytest.approx([0.5, 1.0, 1.5, 2.0])


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_are_gamma_distributed(burstiness: float) -> None:
    times = draw(20_000, 10.0, burstiness)
    assert times[-1] == pytest.approx(2000.0)  # whatever was drawn
    gaps = np.diff(times)
    assert gaps.min() >= 0
    # The deviation of a gamma distribution is its mean over the root of its shape.
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)


def test_seeds() -> None:
    assert (draw(10, 3.0, 1.0) == draw(10, 3.0, 1.0)).all()
    assert (draw(10, 3.0, 1.0) != draw(10, 3.0, 1.0, seed=1)).any()


def test_ramps() -> None:
    linear = Ramp("linear", 2.0, 10.0)
    assert linear.rates(5).tolist() == [2, 4, 6, 8, 10]
    assert Ramp("exponential", 1.0, 16.0).rates(5) == pytest.approx([1, 2, 4, 8, 16])
    assert linear.rates(1).tolist() == [2]
    times, rates = arrival_times(5, math.inf, math.inf, np.random.default_rng(0), linear)
    assert np.diff(times) == pytest.approx(1 / rates[1:])


def test_what_cannot_be() -> None:
    for rate, burstiness in ((0.0, 1.0), (-1.0, 1.0), (1.0, 0.0)):
        with pytest.raises(ConfigError):
            draw(3, rate, burstiness)
    for ramp in (("linear", 0.0, 5.0), ("linear", 6.0, 5.0), ("steep", 1.0, 5.0)):
        with pytest.raises(ConfigError):
            Ramp(*ramp)

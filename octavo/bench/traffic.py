"""When requests are sent: all at once, at a rate with gamma-distributed gaps, or at a rate that grows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.core.errors import ConfigError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ramp:
    """The rate grows from `start` to `end` requests a second over the run, by addition or by multiplication."""

    strategy: str  # linear, exponential
    start: float
    end: float

    def __post_init__(self) -> None:
        if self.strategy not in ("linear", "exponential"):
            raise ConfigError(f"ramp-up-strategy must be linear or exponential, got {self.strategy!r}")
        if not 0 < self.start <= self.end:
            raise ConfigError(f"ramp-up: 0 < start <= end must hold, got {self.start:g} and {self.end:g}")

    def rates(self, count: int) -> Floats:
        progress = np.arange(count) / max(count - 1, 1)
        if self.strategy == "linear":
            return self.start + (self.end - self.start) * progress
        return self.start * (self.end / self.start) ** progress


def arrival_times(
    count: int, rate: float, burstiness: float, rng: np.random.Generator, ramp: Ramp | None = None
) -> tuple[Floats, Floats]:
    """(seconds after the start, requests a second at that moment) of each request.

    A gap is drawn from the gamma distribution of shape `burstiness` and mean 1 / rate: 1 is a Poisson process, less is
    burstier, inf is a beat. At a constant rate the gaps are scaled so that the last request leaves at count / rate:
    runs with different seeds then offer the same load.
    """
    if rate <= 0 or burstiness <= 0:
        raise ConfigError(f"request-rate and burstiness must be above 0, got {rate:g} and {burstiness:g}")
    rates = np.full(count, rate) if ramp is None else ramp.rates(count)
    if np.isinf(rates[0]):
        return np.zeros(count), rates
    gaps = 1 / rates if np.isinf(burstiness) else rng.gamma(burstiness, 1 / (rates * burstiness))
    times = np.cumsum(gaps)
    if ramp is None:
        times *= count / rate / times[-1]
    return times, rates

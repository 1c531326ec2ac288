"""When to plan the next step: as late as the device allows, so that it holds whatever has come until then.

With a step in flight the next one is planned while it runs. Planned as soon as possible, it would leave out every
request that comes during the rest of the step, and each would wait for a whole step more; planned too late, the device
would have nothing to do. How long a step takes is told by the shortest of the last ones of about as many tokens, how
long planning takes by the longest of the last ones: an error of either plans too early, which costs nobody anything
but some milliseconds of a new request.
"""

from __future__ import annotations

import math
from collections import deque

LAST = 8  # steps of a size that are remembered
KINDS = 4  # of sizes, to a doubling of a step's tokens
DECAY = 0.9  # of the longest planning, with each step
MARGIN = 0.0005  # seconds that a step is planned before it has to be


class Rhythm:
    def __init__(self) -> None:
        self._under_way: deque[tuple[int, float]] = deque()  # kind of the step, and when it was handed to the device
        self._seconds: dict[int, deque[float]] = {}  # that steps of a kind took
        self._planning = 0.0  # seconds
        self._ended = 0.0  # when the last step did, as far as the host saw

    def started(self, tokens: int, begun: float, now: float) -> None:
        """A step of so many tokens has been handed to the device; its planning began at `begun`."""
        self._planning = max(now - begun, DECAY * self._planning)
        self._under_way.append((round(KINDS * math.log2(tokens)), now))

    def ended(self, now: float) -> None:
        """The earliest of the steps under way has ended."""
        kind, started = self._under_way.popleft()
        self._seconds.setdefault(kind, deque(maxlen=LAST)).append(now - max(started, self._ended))
        self._ended = now

    def slack(self, now: float) -> float:
        """Seconds until the next step should be planned; not positive: now."""
        if len(self._under_way) != 1:
            return 0.0
        kind, started = self._under_way[0]
        if kind not in self._seconds:
            return 0.0
        end = max(started, self._ended) + min(self._seconds[kind])
        return end - self._planning - MARGIN - now

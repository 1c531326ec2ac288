"""How often what has died is started again: at once, then after 1, 2, 4 … 60 seconds; and when that is enough."""

from __future__ import annotations

import time
from collections import deque

MAX_DEATHS, DEATHS_SECONDS = 5, 600.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


class Restarts:
    def __init__(self) -> None:
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)

    def __bool__(self) -> bool:
        """Something has died already."""
        return bool(self._deaths)

    def pause(self) -> float | None:
        """It has died: seconds to wait before it is started again; None if it will not live."""
        now = time.monotonic()
        self._deaths.append(now)
        recent = sum(now - death < DEATHS_SECONDS for death in self._deaths)
        if recent == MAX_DEATHS:
            return None
        return 0.0 if recent == 1 else min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (recent - 2))

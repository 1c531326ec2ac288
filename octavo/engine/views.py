"""Pictures of the engine for those who watch it: one is asked for at a time, and serves all who ask meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from octavo.core.picture import Picture

FRESH_SECONDS = 0.2  # that a picture is shown to whoever asks before another is taken


class Views:
    def __init__(self) -> None:
        self._asked: asyncio.Future[Picture] | None = None
        self._last: Picture | None = None
        self._taken = 0.0

    async def get(self, ask: Callable[[], None]) -> Picture:
        """`ask` makes the engine take a picture, and `show` or `lose` follows."""
        if self._last is not None and time.monotonic() - self._taken < FRESH_SECONDS:
            return self._last
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
            ask()
        return await asyncio.shield(self._asked)

    def show(self, picture: Picture) -> None:
        self._last, self._taken = picture, time.monotonic()
        if self._asked is not None and not self._asked.done():
            self._asked.set_result(picture)
        self._asked = None

    def lose(self, cause: Exception) -> None:
        """The engine is gone, and will not answer."""
        self._last = None
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(cause)
            self._asked.exception()  # perhaps nobody waits any more
        self._asked = None

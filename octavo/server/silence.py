"""Comments in event streams that have nothing to say for a while, so that nobody on the way takes them for dead.

A line that begins with a colon is a comment: clients skip it, proxies count it as life. One task looks at all streams,
so that a stream pays for it with one look at the clock an event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from octavo.server.http import Exchange

QUIET_SECONDS = 15.0  # common proxies give up after 30 or 60
LOOK_SECONDS = 1.0
KEEP_ALIVE = b": keep-alive\n\n"
RESTARTING = b": engine restarting\n\n"


class Silence:
    def __init__(self) -> None:
        self._streams: set[Exchange] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def kept(self, exchange: Exchange) -> Iterator[None]:
        """While the exchange sends events."""
        self._streams.add(exchange)
        try:
            yield
        finally:
            self._streams.discard(exchange)

    async def watch(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            before = time.monotonic() - QUIET_SECONDS
            self._say(KEEP_ALIVE, [each for each in self._streams if (each.quiet_since or before) < before])

    def restarting(self) -> None:
        """The engine has died. A stream that has not begun may still become an ordinary error: it hears nothing."""
        self._say(RESTARTING, [each for each in self._streams if each.started])

    def _say(self, comment: bytes, streams: list[Exchange]) -> None:
        for exchange in streams:
            task = asyncio.create_task(exchange.comment(comment))  # a client may be slow to read
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

"""What the bodies of requests take of memory, while they are read and until their requests have been served.

A body may be a thousand times as long as a usual one, and a client may take minutes to send it; so all of them
together are bounded, and whoever comes when there is no room is told to come again. The beginning of a body is free:
ordinary requests get in also while a few clients hold all the room there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from octavo.core import collector
from octavo.core.errors import BodiesTooLarge

ALL_BYTES = 512 << 20
FREE_BYTES = 64 << 10
LARGE_BYTES = 1 << 20  # what is made of a body that long leaves holes that the C library would keep

Grow = Callable[[int], None]


class Bodies:
    def __init__(self, most: int = ALL_BYTES) -> None:
        self.most, self.held = most, 0

    @contextmanager
    def room(self) -> Iterator[Grow]:
        """For one body: a function that is told how long it has become, and raises BodiesTooLarge."""
        length = 0

        def grow(to: int) -> None:
            nonlocal length
            more = max(0, to - FREE_BYTES) - max(0, length - FREE_BYTES)
            if more > 0 and self.held + more > self.most:
                raise BodiesTooLarge("The bodies of other requests take all the room there is; try again later.")
            self.held += more
            length = to

        try:
            yield grow
        finally:
            large = length > LARGE_BYTES
            grow(0)
            if large:
                asyncio.get_running_loop().run_in_executor(None, collector.trim)

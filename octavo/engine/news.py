"""How the outputs of a request reach who waits for them: an asyncio.Event for one waiter, at a third of its price.

With a thousand streams a step has news for a thousand of them, and nothing else happens in the event loop meanwhile. A
stream that brings a `Sink` is not even woken: its outputs are handed over in the pass over the step.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from octavo.core.outputs import RequestOutput
from octavo.engine.outputs import RequestState


class Sink(Protocol):
    def ready(self) -> bool:
        """It can take an output now; otherwise the waiter is woken, which takes it when it can."""
        ...

    def take(self, output: RequestOutput) -> None: ...


class News:
    """`set` may come at any time; `wait` returns once for all sets since it last returned.

    A sink is given outputs while its request's task waits, so that whatever was handed to the task comes before them,
    and never the last one. What it raises is raised by `wait`.
    """

    __slots__ = ("_error", "_here", "_loop", "_sink", "_state", "_waiter")

    def __init__(self, state: RequestState, sink: Sink | None = None) -> None:
        self._state, self._sink = state, sink
        self._here = False
        self._error: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        if self._waiter is None:
            self._here = True
        elif not self._sunk() and not self._waiter.done():
            self._here = True
            self._waiter.set_result(None)

    def _sunk(self) -> bool:
        state, sink = self._state, self._sink
        if sink is None or state.finished or state.failure or self._error or not sink.ready():
            return False
        try:
            output = state.output()
            if output is None:  # the news are of something else
                return False
            sink.take(output)
        except Exception as error:  # of this request, which must end: the others have no part in it
            self._error = error
            return False
        return True

    async def wait(self) -> None:
        assert self._waiter is None, "one waiter only"
        if not self._here:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._here = False
        if self._error is not None:
            raise self._error

"""Responses that can be asked for again: bounded in number, in bytes and in time, each seen only by who made it."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from octavo.core.errors import RequestError
from octavo.server.http import Exchange
from octavo.server.responses import protocol as p

MAX_BYTES = 64 * 2**20  # of all that is kept, as JSON
_encode = msgspec.json.Encoder().encode


class ResponseNotFound(RequestError):
    status = 404
    code = "not_found"


@dataclass(slots=True)
class Run:
    """An answer that is made in the background, and its events for those who asked for a stream."""

    exchange: Exchange
    events: list[bytes] = field(default_factory=list)
    over: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def tell(self, event: bytes | None = None) -> None:
        if event is not None:
            self.events.append(event)
        self.news.set()
        self.news = asyncio.Event()

    async def follow(self, start: int) -> AsyncGenerator[bytes, None]:
        """The events from number `start` on, as they come."""
        while True:
            news, end, over = self.news, len(self.events), self.over
            for event in self.events[start:end]:
                yield event
            start = max(start, end)
            if over:
                return
            await news.wait()


@dataclass(slots=True)
class Stored:
    response: p.ResponseObject
    owner: bytes
    items: Sequence[p.InputItem]  # all that the answer followed
    run: Run | None = None
    expires: float = 0.0
    size: int = 0
    made: list[str] = field(default_factory=list)  # the ids of its items

    def continued(self) -> list[p.InputItem]:
        """What the next answer follows: these items, and this answer."""
        return [*self.items, *(as_input(item) for item in self.response.output)]


class ResponseStore:
    """The oldest is forgotten first, and any after `seconds`; what is still being made stays."""

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.seconds = seconds
        self.bytes = 0
        self._clock = clock
        self._kept: OrderedDict[str, Stored] = OrderedDict()
        self._made: dict[str, str] = {}  # the response that an item came with

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, stored: Stored) -> None:
        """Keeps it, or keeps it as it is now."""
        self._drop(stored.response.id)
        stored.expires = self._clock() + self.seconds
        events = stored.run.events if stored.run is not None else []
        stored.size = len(_encode((stored.response, stored.items))) + sum(map(len, events))
        self._kept[stored.response.id] = stored
        stored.made = [item.id for item in stored.response.output]
        self._made.update((id, stored.response.id) for id in stored.made)
        self.bytes += stored.size
        self._trim()

    def get(self, id: str, owner: bytes, param: str = "response_id") -> Stored:
        self._trim()
        stored = self._kept.get(id)
        if stored is None or stored.owner != owner:
            raise ResponseNotFound("There is no response of this id, or it is kept no longer.", param)
        return stored

    def delete(self, id: str, owner: bytes) -> Stored:
        stored = self.get(id, owner)
        self._drop(id)
        return stored

    def find_item(self, id: str, owner: bytes) -> p.InputItem | None:
        """An item by its id."""
        stored = self._kept.get(self._made.get(id, ""))
        if stored is None or stored.owner != owner:
            return None
        return next(as_input(item) for item in stored.response.output if item.id == id)

    def running(self) -> list[Stored]:
        return [stored for stored in self._kept.values() if stored.run is not None and not stored.run.over]

    def _trim(self) -> None:
        now = self._clock()
        for id, stored in list(self._kept.items()):
            full = len(self._kept) > self.most or self.bytes > MAX_BYTES
            if not full and stored.expires > now:
                return
            if stored.run is None or stored.run.over:
                self._drop(id)

    def _drop(self, id: str) -> None:
        stored = self._kept.pop(id, None)
        if stored is not None:
            self.bytes -= stored.size
            for item in stored.made:
                self._made.pop(item, None)


def as_input(item: p.OutputItem) -> p.InputItem:
    """What was an answer, as it is told to the model again."""
    return msgspec.convert(msgspec.to_builtins(item), p.InputItem)

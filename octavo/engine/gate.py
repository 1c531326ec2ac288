"""Who may run beside whom, after the engine has died: requests that were in its last step are suspects.

A crash names the requests of the step it happened in. Those that it names once go on like all others; those that are
named twice run alone, one after the other, while the others wait here; whoever is named a third time is refused for a
while, by its fingerprint: a keyed hash of its prompt and parameters. Whose request has ended well is cleared.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

import msgspec

from octavo.engine.outputs import RequestState

ALONE, REFUSED = 2, 3  # crashes
MEMORY_SECONDS, MEMORY_SIZE = 600.0, 4096
MAX_ALONE = 8  # that wait to run alone: one crash of a large batch says little of each


class Suspects:
    def __init__(self) -> None:
        self._key = os.urandom(16)
        self._crashes: OrderedDict[str, tuple[int, float]] = OrderedDict()  # by fingerprint: how many, when the last

    def __bool__(self) -> bool:
        return bool(self._crashes)

    def fingerprint(self, state: RequestState) -> str:
        hash = hashlib.blake2b(state.request.prompt, digest_size=8, key=self._key)
        hash.update(msgspec.msgpack.encode(state.request.params))
        return hash.hexdigest()

    def crashes(self, state: RequestState) -> int:
        """In how many this request, or one like it, was suspected."""
        if not self._crashes:
            return 0
        found, last = self._crashes.get(self.fingerprint(state), (0, 0.0))
        return found if time.monotonic() - last < MEMORY_SECONDS else 0

    def suspect(self, states: list[RequestState]) -> None:
        """A crash happened in a step with these. Equal requests are one."""
        for name, state in {self.fingerprint(state): state for state in states}.items():
            self._crashes[name] = (self.crashes(state) + 1, time.monotonic())
            self._crashes.move_to_end(name)
            if len(self._crashes) > MEMORY_SIZE:
                self._crashes.popitem(last=False)

    def clear(self, state: RequestState) -> None:
        if self._crashes:
            self._crashes.pop(self.fingerprint(state), None)


class Gate:
    """Sends requests to the engine when their time has come."""

    def __init__(self, suspects: Suspects, send: Callable[[list[RequestState]], None]) -> None:
        self._suspects, self._send = suspects, send
        self._sent: dict[int, RequestState] = {}
        self._alone: RequestState | None = None
        self._quiet: deque[RequestState] = deque()  # that are to run alone
        self._held: list[RequestState] = []  # that wait for those

    def submit(self, states: Iterable[RequestState]) -> None:
        now = []
        for state in states:
            if self._suspects and self._suspects.crashes(state) >= ALONE:
                self._quiet.append(state)
            elif self._alone is not None or self._quiet:
                self._held.append(state)
            else:
                now.append(state)
        self._pass(now)
        self._turn()

    def leave(self, state: RequestState) -> None:
        """It has ended, or its client has left."""
        if self._sent.pop(state.request.uid, None) is None:
            self._quiet = deque(each for each in self._quiet if each is not state)
            self._held = [each for each in self._held if each is not state]
        if self._alone is state:
            self._alone = None
        if self._quiet or self._held:
            self._turn()

    def empty(self) -> None:
        """The engine is gone, and with it what was sent."""
        self._sent.clear()
        self._quiet.clear()
        self._held.clear()
        self._alone = None

    def _turn(self) -> None:
        if self._alone is not None:
            return
        if self._quiet:
            if not self._sent:
                self._alone = self._quiet.popleft()
                self._pass([self._alone])
        elif self._held:
            held, self._held = self._held, []
            self._pass(held)

    def _pass(self, states: list[RequestState]) -> None:
        if states:
            self._sent.update((state.request.uid, state) for state in states)
            self._send(states)

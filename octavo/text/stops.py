"""Stop strings, found in a text that arrives in pieces, in time linear in the text.

An Aho-Corasick automaton over characters: its state is the longest suffix of the text that begins some stop string.
The match that ends first wins, and of those that end together the longest: so what is found never depends on how the
text was cut into pieces. `hold[state]` is how many of the last characters may still become part of a stop string.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache


class StopAutomaton:
    def __init__(self, stops: tuple[str, ...]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._fail = [0]
        self._found: list[str | None] = [None]  # the longest stop string that ends in this state
        self.hold = [0]
        depth = [0]
        for stop in stops:
            state = 0
            for char in stop:
                if char not in self._next[state]:
                    self._next[state][char] = len(self._next)
                    self._next.append({})
                    self._fail.append(0)
                    self._found.append(None)
                    self.hold.append(0)
                    depth.append(depth[state] + 1)
                state = self._next[state][char]
            self._found[state] = stop
        self.starts = frozenset(self._next[0])
        queue = deque(self._next[0].values())
        while queue:  # by depth, so that the state failed to is complete
            state = queue.popleft()
            fail = self._fail[state]
            self._found[state] = self._found[state] or self._found[fail]
            # A state without successors is a whole stop string: only a shorter suffix can still grow.
            self.hold[state] = depth[state] if self._next[state] else self.hold[fail]
            for char, child in self._next[state].items():
                self._fail[child] = self._step(fail, char)
                queue.append(child)

    def _step(self, state: int, char: str) -> int:
        while char not in self._next[state]:
            if state == 0:
                return 0
            state = self._fail[state]
        return self._next[state][char]

    def scan(self, text: str, state: int, ignore: float = 0) -> tuple[int, int, str | None]:
        """(new state, end in `text`, stop string) of the first match that ends after `ignore` characters, or
        (new state, len(text), None)."""
        if state == 0 and self.starts.isdisjoint(text):
            return 0, len(text), None
        for i, char in enumerate(text, 1):
            state = self._step(state, char)
            found = self._found[state]
            if found is not None and i > ignore:
                return state, i, found
        return state, len(text), None


@lru_cache(maxsize=256)
def stop_automaton(stops: tuple[str, ...]) -> StopAutomaton:
    """Shared by all requests with the same stop strings; it is never written to after it is built."""
    return StopAutomaton(stops)

"""Finds out because of whom a step cannot be prepared, when the error does not say.

All that were in the step are put back; then halves of them run apart from everyone else, and halves of the half that
fails again, until the one that fails alone is found. Who has got two tokens in such a trial has passed: the first comes
of a chunk, the second of a decode.
"""

from __future__ import annotations

from collections.abc import Iterator

_TOKENS = 2


class Trials:
    def __init__(self) -> None:
        # The last group is on trial. Each member with the length at which it has passed.
        self._groups: list[dict[int, int]] = []

    @property
    def active(self) -> bool:
        return bool(self._groups)

    def failed(self, lengths: dict[int, int]) -> int | None:
        """A step of these sequences (uids, with their known tokens) has failed: whose fault it is, or None as yet."""
        if self._groups:
            rest = {uid: length for uid, length in self._groups.pop().items() if uid not in lengths}
            if rest:
                self._groups.append(rest)
        if len(lengths) == 1:
            return next(iter(lengths))
        targets = [(uid, length + _TOKENS) for uid, length in lengths.items()]
        half = len(targets) // 2
        self._groups += [dict(targets[half:]), dict(targets[:half])]
        return None

    def allows(self, uid: int) -> bool:
        return not self._groups or uid in self._groups[-1]

    def passed(self, lengths: Iterator[tuple[int, int]]) -> list[int]:
        """Those of the running sequences that need not be watched any longer: they make room for the others."""
        group = self._groups[-1]
        done = [uid for uid, length in lengths if length >= group.get(uid, 0)]
        for uid in done:
            self.forget(uid)
        return done

    def forget(self, uid: int) -> None:
        for group in self._groups:
            group.pop(uid, None)
        self._groups = [group for group in self._groups if group]

"""Sequences that wait, in the order of service (`Sequence.key`). A preempted one keeps its place."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from octavo.scheduler.sequence import Sequence

_Key = tuple[int, int, int, int]


class WaitingQueue:
    def __init__(self) -> None:
        self._keys: list[_Key] = []
        self._sequences: list[Sequence] = []
        self.version = 0  # changes with every addition

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def __getitem__(self, index: int) -> Sequence:
        return self._sequences[index]

    def __contains__(self, uid: object) -> bool:
        return any(seq.uid == uid for seq in self._sequences)

    def add(self, seq: Sequence) -> None:
        index = bisect_left(self._keys, seq.key)
        self._keys.insert(index, seq.key)
        self._sequences.insert(index, seq)
        self.version += 1

    def remove(self, seq: Sequence) -> None:
        index = bisect_left(self._keys, seq.key)
        assert self._sequences[index] is seq, "the sequence does not wait here"
        del self._keys[index], self._sequences[index]

    def check_integrity(self) -> None:
        assert self._keys == sorted(set(self._keys)), "the queue is out of order"
        assert self._keys == [seq.key for seq in self._sequences], "keys and sequences differ"
        assert all(seq.row == -1 for seq in self._sequences), "a waiting sequence owns a row"

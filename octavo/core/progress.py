"""What the engine does now, in memory that its front reads: health is progress, not an answer to a question.

    progress = Progress(descriptor)                # the engine: a descriptor from Progress.allocate()
    progress.enter(Phase.STEP, budget=8.0)         # at each step and phase; some hundred nanoseconds
    progress.name(uids)                            # whose tokens the steps compute, when that changes

    record = Progress(descriptor).read()           # the front, also after the engine's death
    record.overdue                                 # seconds past the budget; negative while all is well

An engine that is stopped, hangs in a kernel or spins writes nothing, and what it wrote last tells what it was at. A
long step is no fault: it says beforehand how long it may take. The clock is the machine's: both processes read it.
"""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

MAX_UIDS = 4096
_VERSION, _STEP, _PHASE, _BUDGET, _SINCE, _TOKENS, _COUNT, _UIDS = range(8)
_SIZE = 8 * (_UIDS + MAX_UIDS)
_TRIES = 100


class Phase(IntEnum):
    START = 0  # it imports, and opens its device
    IDLE = 1  # it waits for requests, and says so every other second
    STEP = 2
    PREPARE = 3  # it compiles or records what later steps need
    LOAD = 4  # it reads weights: each tensor is a sign of life
    ALLOCATE = 5  # it measures memory, and takes its own
    WARM_UP = 6  # it runs the largest step

    @property
    def words(self) -> str:
        """What it was to do."""
        return _WORDS[self]


_WORDS = {
    Phase.START: "start and open its device",
    Phase.IDLE: "look for requests",
    Phase.STEP: "run a step",
    Phase.PREPARE: "prepare later steps",
    Phase.LOAD: "load the weights",
    Phase.ALLOCATE: "measure and take memory",
    Phase.WARM_UP: "run the largest step for the first time",
}
# Seconds of each phase until the engine is ready; with LOAD, from one tensor to the next.
START_BUDGETS = {Phase.START: 180.0, Phase.LOAD: 300.0, Phase.ALLOCATE: 600.0, Phase.WARM_UP: 600.0}


@dataclass(frozen=True, slots=True)
class Record:
    step: int
    phase: Phase
    budget: float  # seconds that the phase may take
    age: float  # seconds since the last word
    tokens: int  # computed by the step
    uids: list[int]  # sequences of the last plan

    @property
    def overdue(self) -> float:
        return self.age - self.budget


class Progress:
    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, _SIZE)
        self._words = memoryview(self._map).cast("q")

    @staticmethod
    def allocate() -> int:
        """A descriptor of such memory, without a name, to be inherited by the engine."""
        descriptor = os.memfd_create("octavo-progress")
        os.ftruncate(descriptor, _SIZE)
        return descriptor

    def enter(self, phase: Phase, budget: float, tokens: int = 0) -> None:
        words = self._words
        words[_VERSION] += 1  # odd: being written
        words[_STEP] += phase is Phase.STEP
        words[_PHASE] = phase
        words[_BUDGET] = int(budget * 1e9)
        words[_SINCE] = time.monotonic_ns()
        words[_TOKENS] = tokens
        words[_VERSION] += 1

    def name(self, uids: npt.NDArray[np.int64]) -> None:
        count = min(len(uids), MAX_UIDS)
        words = self._words
        words[_VERSION] += 1
        words[_COUNT] = count
        words[_UIDS : _UIDS + count] = memoryview(uids[:count].tobytes()).cast("q")
        words[_VERSION] += 1

    def read(self) -> Record:
        words = self._words
        for _ in range(_TRIES):  # one that died while it wrote leaves the number odd: then it is what it is
            before = words[_VERSION]
            found = words[: _UIDS + MAX_UIDS].tobytes()
            if before % 2 == 0 and words[_VERSION] == before:
                break
        head = np.frombuffer(found, np.int64)
        since, count = int(head[_SINCE]), min(int(head[_COUNT]), MAX_UIDS)
        age = (time.monotonic_ns() - since) / 1e9 if since else 0.0
        return Record(
            step=int(head[_STEP]),
            phase=Phase(int(head[_PHASE])),
            budget=int(head[_BUDGET]) / 1e9 if since else float("inf"),
            age=age,
            tokens=int(head[_TOKENS]),
            uids=head[_UIDS : _UIDS + count].tolist(),
        )


class StepBudget:
    """How long a step of so many tokens may take, judged by the last ones of its size: sizes are powers of two.

    One larger than any so far may compile kernels, allocate, or be the first that attends so far back. What that took
    says nothing about the steps of other sizes, or a frozen engine would look busy for minutes.
    """

    FLOOR, FIRST, SLACK = 8.0, 120.0, 10.0

    def __init__(self) -> None:
        self._lately = [0.0] * 64  # seconds of the slowest steps lately, by size; 0: none so far

    def of(self, tokens: int) -> float:
        lately, size = self._lately, tokens.bit_length()
        seconds = lately[size]
        if not seconds:
            larger = next((i for i in range(size, len(lately)) if lately[i]), None)
            if larger is None:
                return self.FIRST
            seconds = max(lately[larger] * 2.0 ** (size - larger), *lately[:size])
        return max(self.FLOOR, self.SLACK * seconds)

    def took(self, tokens: int, seconds: float) -> None:
        size = tokens.bit_length()
        self._lately[size] = max(seconds, 0.8 * self._lately[size])

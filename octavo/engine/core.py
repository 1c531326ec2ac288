"""The engine core: scheduler and runner in one loop, with one step in flight.

The offline API drives it in process, the server through `octavo.engine.process`; both see the same outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from octavo.core.config import EngineConfig
from octavo.core.outputs import Stats, StepOutputs
from octavo.core.picture import Pace, Picture
from octavo.core.plan import LongArray, PoolingPlan, StepPlan
from octavo.core.progress import Phase
from octavo.core.request import EngineRequest
from octavo.engine.build import EngineInfo, build
from octavo.engine.build_pooling import build_pooling, reads
from octavo.engine.rhythm import Rhythm

AUDIT_STEPS = 1000  # between two looks at the bookkeeping while there is work
WAIT_SECONDS = 0.005  # for a grammar, where no row has anything else to do


Plan = StepPlan | PoolingPlan


class Planner(Protocol):
    """A scheduler: `octavo.scheduler.scheduler.Scheduler`, or `octavo.scheduler.pooling`'s."""

    def add(self, request: EngineRequest) -> None: ...
    def abort(self, uids: list[int]) -> None: ...
    @property
    def has_work(self) -> bool: ...
    @property
    def stuck(self) -> bool:
        """Something waits, and nothing runs that could make room for it."""

    def expect_grammar(self) -> None: ...
    def schedule(self) -> Any: ...
    def update(self, plan: Any, result: Any) -> StepOutputs: ...
    def wait(self, seconds: float) -> StepOutputs | None: ...
    def retreat(self, plan: Any, error: Exception, exhausted: bool) -> None: ...
    def audit(self) -> int: ...
    def uids_of(self, plan: Any) -> LongArray:
        """Of the sequences that are computed."""

    def take_stats(self) -> Stats: ...
    def picture(self, pace: Pace) -> Picture: ...
    def describe(self) -> str: ...
    def check_integrity(self) -> None: ...


class Handle(Protocol):
    def wait(self) -> Any: ...


class Doer(Protocol):
    """A runner: `octavo.runner.runner.Runner`, or `octavo.runner.pooling`'s."""

    def execute(self, plan: Any) -> Handle: ...
    def recover(self, error: Exception) -> bool: ...
    def prepare(self) -> bool: ...


class EngineCore:
    def __init__(self, scheduler: Planner, runner: Doer, info: EngineInfo, overlap: bool) -> None:
        self.scheduler, self.runner, self.info, self.overlap = scheduler, runner, info, overlap
        self.on_plan: Callable[[Plan, Planner], None] | None = None  # told of each step before it runs
        self._flight: tuple[Plan, Handle] | None = None
        self._steps = 0  # since the bookkeeping was looked at
        self._rhythm = Rhythm()

    @classmethod
    def start(
        cls, config: EngineConfig, folder: Path, enter: Callable[[Phase], None] = lambda phase: None
    ) -> EngineCore:
        """`enter` hears how far it is."""
        if reads(config, folder):
            return cls(*build_pooling(config, folder, enter))
        return cls(*build(config, folder, enter))

    def add(self, request: EngineRequest) -> None:
        self.scheduler.add(request)

    def abort(self, uids: list[int]) -> None:
        self.scheduler.abort(uids)

    def expect_grammar(self) -> None:
        """A request with a grammar will come."""
        self.scheduler.expect_grammar()

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._flight is not None

    def step(self) -> StepOutputs | None:
        """One turn of the loop: starts the next step, then takes in the one before. None if no step ended."""
        plan: Plan | None = None
        done: tuple[Plan, Handle] | None = None
        begun = time.monotonic()
        try:
            plan = self.scheduler.schedule()
            if plan is not None:
                if self.on_plan is not None:
                    self.on_plan(plan, self.scheduler)
                done = plan, self.runner.execute(plan)
                self._rhythm.started(plan.num_tokens, begun, time.monotonic())
        except Exception as error:  # up to here nothing has happened that cannot be done again
            return self._retreat(plan, error)
        self._steps += done is not None
        if self._steps >= AUDIT_STEPS:
            self._audit()
        if self.overlap:
            done, self._flight = self._flight, done
        if done is None:
            return self.scheduler.wait(WAIT_SECONDS) if plan is None else None
        return self._take_in(*done)

    def _take_in(self, plan: Plan, handle: Handle) -> StepOutputs:
        result = handle.wait()
        self._rhythm.ended(time.monotonic())
        return self.scheduler.update(plan, result)

    @property
    def slack(self) -> float:
        """Seconds that may be waited for more to come before the next step, while one is under way."""
        return self._rhythm.slack(time.monotonic()) if self._flight is not None else 0.0

    def prepare(self) -> bool:
        """Without work: does something that a later step would have to. False if there is nothing left to do."""
        if self._steps:
            self._audit()
            return True
        return self.runner.prepare()

    def _retreat(self, plan: Plan | None, error: Exception) -> StepOutputs | None:
        """Takes in the step under way, as if the one that failed had not been tried."""
        exhausted = self.runner.recover(error)
        outputs = None
        if self._flight is not None:
            flight, self._flight = self._flight, None
            outputs = self._take_in(*flight)
        self.scheduler.retreat(plan, error, exhausted)
        return outputs

    def _audit(self) -> None:
        self._steps = 0
        self.scheduler.audit()

    def report(self) -> StepOutputs:
        """Statistics without a step, for when an abort has left nothing to do."""
        return StepOutputs(stats=self.scheduler.take_stats())

    @property
    def stuck(self) -> bool:
        """Something waits, and nothing runs that could make room for it."""
        return self._flight is None and self.scheduler.stuck

    def picture(self, pace: Pace) -> Picture:
        return self.scheduler.picture(pace)

    def describe(self) -> str:
        """The scheduler's state in a line, for a report."""
        return self.scheduler.describe()

    def check_integrity(self) -> None:
        self.scheduler.check_integrity()

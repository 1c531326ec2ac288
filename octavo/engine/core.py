"""The engine core: scheduler and runner in one loop, with one step in flight.

The offline API drives it in process, the server through `octavo.engine.process`; both see the same outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.core.config import EngineConfig
from octavo.core.outputs import StepOutputs
from octavo.core.picture import Pace, Picture
from octavo.core.plan import StepPlan
from octavo.core.progress import Phase
from octavo.core.request import EngineRequest
from octavo.engine.build import EngineInfo, build
from octavo.scheduler.picture import take_picture
from octavo.scheduler.report import describe
from octavo.scheduler.rows import RowTable
from octavo.scheduler.scheduler import Scheduler

if TYPE_CHECKING:
    from octavo.runner.runner import Runner, StepHandle


AUDIT_STEPS = 1000  # between two looks at the bookkeeping while there is work
WAIT_SECONDS = 0.005  # for a grammar, where no row has anything else to do


class EngineCore:
    def __init__(self, scheduler: Scheduler, runner: Runner, info: EngineInfo, overlap: bool) -> None:
        self.scheduler, self.runner, self.info, self.overlap = scheduler, runner, info, overlap
        self.on_plan: Callable[[StepPlan, RowTable], None] | None = None  # told of each step before it runs
        self._flight: tuple[StepPlan, StepHandle] | None = None
        self._steps = 0  # since the bookkeeping was looked at

    @classmethod
    def start(
        cls, config: EngineConfig, folder: Path, enter: Callable[[Phase], None] = lambda phase: None
    ) -> EngineCore:
        """`enter` hears how far it is."""
        return cls(*build(config, folder, enter))

    def add(self, request: EngineRequest) -> None:
        self.scheduler.add(request)

    def abort(self, uids: list[int]) -> None:
        self.scheduler.abort(uids)

    def expect_grammar(self) -> None:
        """A request with a grammar will come."""
        if self.scheduler.grammars is not None:
            self.scheduler.grammars.start()

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._flight is not None

    def step(self) -> StepOutputs | None:
        """One turn of the loop: starts the next step, then takes in the one before. None if no step ended."""
        plan: StepPlan | None = None
        done: tuple[StepPlan, StepHandle] | None = None
        try:
            plan = self.scheduler.schedule()
            if plan is not None:
                if self.on_plan is not None:
                    self.on_plan(plan, self.scheduler.rows)
                done = plan, self.runner.execute(plan)
        except Exception as error:  # up to here nothing has happened that cannot be done again
            return self._retreat(plan, error)
        self._steps += done is not None
        if self._steps >= AUDIT_STEPS:
            self._audit()
        if self.overlap:
            done, self._flight = self._flight, done
        if done is None:
            return self.scheduler.wait(WAIT_SECONDS) if plan is None else None
        plan, handle = done
        return self.scheduler.update(plan, handle.wait())

    def prepare(self) -> bool:
        """Without work: does something that a later step would have to. False if there is nothing left to do."""
        if self._steps:
            self._audit()
            return True
        return self.runner.prepare()

    def _retreat(self, plan: StepPlan | None, error: Exception) -> StepOutputs | None:
        """Takes in the step under way, as if the one that failed had not been tried."""
        exhausted = self.runner.recover(error)
        outputs = None
        if self._flight is not None:
            (before, handle), self._flight = self._flight, None
            outputs = self.scheduler.update(before, handle.wait())
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
        return self._flight is None and bool(self.scheduler.waiting) and not self.scheduler.rows.num_active

    def picture(self, pace: Pace) -> Picture:
        return take_picture(self.scheduler, pace)

    def describe(self) -> str:
        """The scheduler's state in a line, for a report."""
        return describe(self.scheduler)

    def check_integrity(self) -> None:
        self.scheduler.check_integrity()

"""The engine process with faults, chosen by OCTAVO_TEST_FAULT, and with less patience than the real one's.

`install` makes AsyncLLM start it. Loading a model takes a while on a busy machine: only what is to hang is hurried.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

import octavo.models.loader
from octavo.core.plan import StepPlan
from octavo.core.progress import START_BUDGETS, Phase, StepBudget
from octavo.engine import link, process
from octavo.scheduler.scheduler import Scheduler

FAULT = "OCTAVO_TEST_FAULT"
SECONDS = 3.0


def install(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(link, "MODULE", __name__)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv(FAULT, fault)


def load_forever(*args: object, **options: object) -> None:
    time.sleep(3600)


def spin_in_schedule(self: Scheduler) -> StepPlan | None:
    while self.waiting:
        pass
    return None


def plan_nothing(self: Scheduler) -> StepPlan | None:
    return None


def main() -> int:
    match os.environ[FAULT]:
        case "hurried":
            StepBudget.FLOOR = StepBudget.FIRST = process.IDLE_BUDGET = SECONDS
        case "load":
            START_BUDGETS[Phase.LOAD] = 1.0
            octavo.models.loader.load_model = load_forever
        case "spin":
            process.IDLE_BUDGET = 1.0
            process.BEAT_SECONDS = 0.2
            Scheduler.schedule = spin_in_schedule  # type: ignore[method-assign]
        case "nothing":
            Scheduler.schedule = plan_nothing  # type: ignore[method-assign]
    return process.main()


if __name__ == "__main__":
    sys.exit(main())

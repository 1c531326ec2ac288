"""What there is to do about an engine that dies or hangs: how it is found out, and what is written down of it."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.core import crash
from octavo.core.log import event
from octavo.core.progress import Record

if TYPE_CHECKING:
    from octavo.engine.link import Link

WATCH_SECONDS = 0.25  # between two looks at its progress


@dataclass(frozen=True, slots=True)
class Recovery:
    """What happens when the engine dies or hangs."""

    resume: str = "off"  # which requests `AsyncLLM.restart` goes on with: greedy (and those with a seed), all, off
    watchdog: float = 60.0  # seconds without progress after which the process is killed; longer if it said so
    reports: Path = field(default_factory=crash.report_folder)


class Watchdog:
    """Sees whether an engine makes progress, from its first moment on; ends it when it has made none for too long."""

    def __init__(self, link: Link, limit: float) -> None:
        self._link, self._limit = link, limit
        self.stalled = False  # it takes longer for what it does than it said
        self.reason = ""  # why it was ended

    async def run(self) -> None:
        """Until it had to end the process."""
        last = time.monotonic()
        while not self.reason:
            await asyncio.sleep(WATCH_SECONDS)
            now = time.monotonic()
            late, last = now - last > 4 * WATCH_SECONDS, now
            record = self._link.progress.read()
            overdue = record.overdue > 0
            if overdue and late:  # perhaps all of us were stopped, as containers are: it has its turn first
                continue
            if overdue != self.stalled:
                self.stalled = overdue
                event(
                    "engine_stalled" if overdue else "engine_goes_on",
                    logging.WARNING,
                    step=record.step,
                    phase=record.phase.name.lower(),
                    seconds=round(record.age, 1),
                )
            if overdue and record.age > self._limit:
                self.reason = (
                    f"it made no progress for {record.age:.0f} s while it was to {record.phase.words} "
                    f"(the process was {self._link.state() or 'gone'})"
                )
                await self._link.strike()


async def report(link: Link, recovery: Recovery, cause: str, status: int, record: Record, **facts: Any) -> None:
    """Writes down what is known of an engine that is gone; `record` is its progress at its end."""
    lines, stacks = link.last_words()
    await asyncio.to_thread(
        crash.write_report,
        recovery.reports,
        "engine",
        cause,
        status,
        progress={
            "step": record.step,
            "phase": record.phase.name.lower(),
            "rows": len(record.uids),
            "tokens": record.tokens,
            "budget_seconds": round(record.budget, 3),
            "seconds_since": round(record.age, 3),
            "process_state": facts.pop("process_state", ""),
        },
        **facts,
        last_log_lines=lines,
        stacks=stacks,
    )

"""What is done about a step that could not be prepared: everybody goes back, and whoever is to blame fails.

Nothing of such a step counts. Its rows are put back like preempted ones, to go on from what is known, mostly from their
own blocks. Where the error does not say whose it is, trials find out (`Trials`). Where memory did not suffice, the next
steps are smaller, for a while; the largest request fails when that was not enough.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from octavo.core.errors import RowFault
from octavo.core.outputs import Fault
from octavo.core.plan import StepPlan
from octavo.scheduler.sequence import Sequence
from octavo.scheduler.trials import Trials

if TYPE_CHECKING:
    from octavo.scheduler.scheduler import Scheduler

log = logging.getLogger(__name__)

SHRINKS = 3  # times that a step is halved for want of memory, before its largest sequence fails
REGROWTH = 64  # steps after which a step that was halved is doubled again


class Recovery:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._most = scheduler.config.max_tokens_per_step
        self._least = max(1, self._most >> SHRINKS)
        self._good_steps = 0
        self.budget = self._most  # tokens of a step
        self.trials = Trials()

    def retreat(self, plan: StepPlan | None, error: Exception, exhausted: bool) -> None:
        """The step could not be prepared (`plan`: as far as it was made), and none after it is under way.
        `exhausted`: for want of memory. Raises the error again if there is nobody without whom it could go better."""
        table = self._scheduler.rows
        rows = range(table.max_rows) if plan is None else plan.rows_N.tolist()
        inside = [seq for row in rows if (seq := table.owner[row]) is not None]
        culprit = table.owner[error.row] if isinstance(error, RowFault) else None
        for owner in table.owner:
            if owner is not None:
                self._scheduler.put_back(owner.row)
        if plan is None and not inside:
            raise error
        if exhausted:
            culprit = self._shrink(inside)
        elif culprit is None and inside:
            uid = self.trials.failed({seq.uid: len(seq.tokens) for seq in inside})
            culprit = next((seq for seq in inside if seq.uid == uid), None)
        labels = [seq.request.label for seq in (inside if culprit is None else [culprit])]
        log.error("a step could not be prepared because of %s", ", ".join(map(repr, labels[:64])), exc_info=error)
        if culprit is not None:
            self._scheduler.fail(culprit, Fault.NO_MEMORY if exhausted else Fault.INTERNAL)

    def _shrink(self, inside: list[Sequence]) -> Sequence | None:
        """Halves the next steps; whoever has to fail if that has been done already."""
        smallest = self.budget <= self._least or len(inside) == 1
        self.budget = max(self._least, self.budget // 2)
        self._good_steps = 0
        return max(inside, key=lambda seq: len(seq.tokens), default=None) if smallest else None

    def step_done(self) -> None:
        if self.budget < self._most:
            self._good_steps += 1
            if self._good_steps % REGROWTH == 0:
                self.budget = min(self._most, 2 * self.budget)

    def end_trials(self) -> None:
        """Those that have passed make room for the others."""
        table = self._scheduler.rows
        running = {seq.uid: seq for seq in table.owner if seq is not None}
        for uid in self.trials.passed((uid, int(table.length[seq.row])) for uid, seq in running.items()):
            self._scheduler.put_back(running[uid].row)

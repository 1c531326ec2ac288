"""Turns for tenants by the tokens that they use: start-time fair queueing.

Each tenant has an account of virtual time. A request starts where its tenant's last one ended, but not before now, and
ends as much later as it is expected to cost; who starts first is served first. So a tenant that asks for much waits
behind its own requests, and one that asks for little is served next, however long the other's queue is. What a request
did cost is settled when it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

OUTPUT_WEIGHT = 2  # a generated token costs a step of its own; those of a prompt share one
FIRST_GUESS = 128.0  # tokens of an answer, until the tenant has had some
_MEMORY = 0.9  # how much of the mean the answers before the last one make


@dataclass(slots=True)
class _Tenant:
    end: int = 0  # of its last request, in virtual time
    start: int = 0  # of its last request: its own are served in their order
    answer: float = FIRST_GUESS  # mean length of its answers


class FairShare:
    def __init__(self) -> None:
        self.now = 0
        self._tenants: dict[str, _Tenant] = {}

    def arrive(self, name: str, prompt: int, most: int, n: int) -> tuple[int, int]:
        """(start, cost of each of n answers) of a request with `prompt` tokens and answers of at most `most`."""
        tenant = self._tenants.setdefault(name, _Tenant())
        answer = OUTPUT_WEIGHT * round(min(float(most), tenant.answer))
        tenant.start = max(self.now, tenant.start, tenant.end)
        tenant.end = tenant.start + prompt + n * answer
        return tenant.start, answer

    def begin(self, start: int) -> None:
        """A request that starts then is served: nobody may come before it any more."""
        self.now = max(self.now, start)

    def settle(self, name: str, cost: int, used: int, answer: int | None) -> None:
        """It was charged `cost` and has used `used`; an `answer` that was not aborted tells what to expect."""
        tenant = self._tenants[name]
        tenant.end += used - cost
        if answer is not None:
            tenant.answer = _MEMORY * tenant.answer + (1 - _MEMORY) * answer

"""What leaves the scheduler: logprobs by the uids that clients know, and its state in a line."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from octavo.core.outputs import Logprobs, StepOutputs
from octavo.core.plan import IntArray, LogprobRows, StepPlan
from octavo.scheduler.rows import RowTable

if TYPE_CHECKING:
    from octavo.scheduler.scheduler import Scheduler

BoolArray = npt.NDArray[np.bool_]


def pack_logprobs(found: LogprobRows, plan: StepPlan, alive_S: BoolArray, rows: RowTable) -> Logprobs | None:
    """The sampled tokens' logprobs, but for rows that have changed owner since the plan."""
    return _pack(found, plan.rows_N[plan.sampled_S], alive_S, rows)


def pack_prompt_logprobs(found: LogprobRows, plan: StepPlan, alive_N: BoolArray, rows: RowTable) -> Logprobs | None:
    """Those of prompt tokens that were not told before: a sequence may have been preempted and computed again."""
    counts = plan.counts_N[plan.num_decodes :]
    owners_C = np.repeat(plan.rows_N[plan.num_decodes :], counts)
    fresh_C = np.repeat(alive_N[plan.num_decodes :], counts)
    at = 0
    chunks = np.stack((plan.rows_N, plan.starts_N, plan.counts_N))[:, plan.num_decodes :]
    for row, start, count in chunks.T.tolist():
        seq = rows.owner[row]
        if seq is not None and fresh_C[at]:
            fresh_C[at : at + min(max(0, seq.told - start), count)] = False
            fresh_C[at + max(0, seq.prompt_len - 1 - start) : at + count] = False
            seq.told = max(seq.told, start + count)
        at += count
    return _pack(found, owners_C, fresh_C, rows)


def _pack(found: LogprobRows, owners: IntArray, alive: BoolArray, rows: RowTable) -> Logprobs | None:
    keep = alive[found.index_M]
    if not keep.any():
        return None
    return Logprobs(
        uids=rows.uid[owners[found.index_M[keep]]].tolist(),
        width=found.ids_MK.shape[1],
        ids=found.ids_MK[keep].tobytes(),
        values=found.logprobs_MK[keep].tobytes(),
        ranks=found.ranks_M[keep].tobytes(),
    )


def add_certain(outputs: StepOutputs, uid: int, token: int) -> None:
    """The logprobs of a token that was not sampled but set."""
    found = outputs.logprobs
    assert found is not None, "a row that asks for logprobs was sampled without"
    found.uids.append(uid)
    found.ids += np.full(found.width, token, np.int32).tobytes()
    found.values += np.zeros(found.width, np.float32).tobytes()
    found.ranks += np.int32(1).tobytes()


def describe(scheduler: Scheduler) -> str:
    """What waits and what there is for it, for the report of a scheduler that plans nothing."""
    pool, rows = scheduler.cache.pool, scheduler.rows
    waiting = [
        f"{seq.uid}: {len(seq.tokens)} of {seq.limit} tokens, passed {seq.passed} times, preempted {seq.preemptions}"
        for seq in islice(scheduler.waiting, 8)
    ]
    return (
        f"{rows.num_active} of {rows.max_rows} rows in use; of {pool.num_blocks} blocks {pool.num_held} held and "
        f"{pool.num_cached} cached; {len(scheduler.waiting)} wait ({'; '.join(waiting)})"
    )

"""The scheduler of models that read: budgets, order, what is given up, and steps that fail."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.core.outputs import Fault, FinishReason
from octavo.core.picture import Pace
from octavo.core.plan import PoolingPlan, PoolingResult
from octavo.core.pooling import PoolingParams
from octavo.core.request import EngineRequest, pack_ids
from octavo.engine.intake import READING
from octavo.scheduler.pooling import PoolingScheduler


def request(uid: int, length: int = 4, priority: int = 0, tenant: str = "", types: bytes = b"") -> EngineRequest:
    return EngineRequest(
        uid, pack_ids([uid] * length), READING, 0, [], [], priority, tenant=tenant, label=str(uid),
        pooling=PoolingParams(), token_types=types,
    )  # fmt: skip


def result(plan: PoolingPlan) -> PoolingResult:
    return PoolingResult([np.array([uid], np.float32) for uid in plan.uids_N])


def run(scheduler: PoolingScheduler) -> list[list[int]]:
    """Steps until nothing is left, as the uids of each."""
    steps = []
    while (plan := scheduler.schedule()) is not None:
        scheduler.check_integrity()
        outputs = scheduler.update(plan, result(plan))
        scheduler.check_integrity()
        assert [(p.uid, np.frombuffer(p.values, np.float32)[0]) for p in outputs.pooled] == [
            (uid, float(uid)) for uid in plan.uids_N
        ]
        steps.append(plan.uids_N.tolist())
    assert not scheduler.has_work
    return steps


def test_budgets_and_order():
    scheduler = PoolingScheduler(max_tokens=10, max_sequences=3)
    for uid, length in enumerate((4, 5, 2, 30, 1, 1, 1, 1), 1):
        scheduler.add(request(uid, length, priority=-uid))  # priorities mean nothing here
    plan = scheduler.schedule()
    assert plan is not None and plan.uids_N.tolist() == [1, 2] and plan.tokens_T.tolist() == [1] * 4 + [2] * 5
    second = scheduler.schedule()  # while the first runs
    assert second is not None and second.uids_N.tolist() == [3]
    picture = scheduler.picture(Pace())
    assert (picture.num_running, picture.num_waiting) == (3, 5)
    assert [sight.uid for sight in picture.waiting] == [4, 5, 6, 7, 8]
    scheduler.update(plan, result(plan))
    assert scheduler.update(second, result(second)).stats.waiting == 5
    assert run(scheduler) == [[4], [5, 6, 7], [8]]


@pytest.mark.parametrize("policy,expected", [("priority", [5, 4, 3, 2, 1]), ("fair", [1, 5, 2, 3, 4])])
def test_policies(policy: str, expected: list[int]):
    scheduler = PoolingScheduler(max_tokens=4, max_sequences=1, policy=policy)
    for uid in range(1, 6):
        scheduler.add(request(uid, priority=-uid * (policy != "fair"), tenant="b" if uid == 5 else "a"))
    assert sum(run(scheduler), []) == expected


def test_what_is_given_up():
    scheduler = PoolingScheduler(max_tokens=8, max_sequences=8)
    for uid in (1, 2, 3):
        scheduler.add(request(uid))
    plan = scheduler.schedule()
    assert plan is not None
    scheduler.abort([1, 3, 77])
    scheduler.check_integrity()
    outputs = scheduler.update(plan, result(plan))
    assert [end.uid for end in outputs.finished] == [2] and not scheduler.has_work
    assert scheduler.schedule() is None


def test_types_of_tokens():
    scheduler = PoolingScheduler(max_tokens=99, max_sequences=8)
    scheduler.add(request(1, 2))
    scheduler.add(request(2, 3, types=bytes([0, 1, 1])))
    plan = scheduler.schedule()
    assert plan is not None and plan.types_T is not None and plan.types_T.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("exhausted", [False, True])
def test_whoever_fails_alone_fails(exhausted: bool):
    scheduler = PoolingScheduler(max_tokens=100, max_sequences=100)
    for uid in range(1, 12):
        scheduler.add(request(uid))
    ended: dict[int, FinishReason] = {}
    faults = set()
    steps = 0
    while scheduler.has_work:
        plan = scheduler.schedule()
        if plan is None:
            outputs = scheduler.wait(0.0)
            assert outputs is not None
        elif 7 in plan.uids_N:
            scheduler.retreat(plan, ValueError("seven"), exhausted)
            continue
        else:
            outputs = scheduler.update(plan, result(plan))
        scheduler.check_integrity()
        steps += 1
        ended |= {end.uid: end.reason for end in outputs.finished}
        faults |= {end.fault for end in outputs.finished if end.reason is FinishReason.ERROR}
    assert ended == {uid: FinishReason.ERROR if uid == 7 else FinishReason.STOP for uid in range(1, 12)}
    assert faults == {Fault.NO_MEMORY if exhausted else Fault.INTERNAL} and steps <= 6
    with pytest.raises(ValueError, match="nobody"):
        scheduler.retreat(None, ValueError("nobody"), False)


def test_what_is_not_finite():
    scheduler = PoolingScheduler(max_tokens=100, max_sequences=100)
    scheduler.add(request(1))
    scheduler.add(request(2))
    plan = scheduler.schedule()
    assert plan is not None
    outputs = scheduler.update(plan, PoolingResult([np.ones(2, np.float32), np.array([1, np.nan], np.float32)]))
    assert [(end.uid, end.reason) for end in outputs.finished] == [(1, FinishReason.STOP), (2, FinishReason.ERROR)]
    assert outputs.finished[1].fault is Fault.NAN_LOGITS and [pooled.uid for pooled in outputs.pooled] == [1]

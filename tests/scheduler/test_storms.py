"""Many requests on the stamped runner: aborts in every phase, priorities that change, faults, broken bookkeeping."""

from __future__ import annotations

import random

import pytest

from octavo.core.plan import StepPlan, StepResult
from octavo.core.request import EngineRequest
from octavo.scheduler.scheduler import MAX_PASSED
from tests.scheduler.test_model import build, make, seeds_of
from tests.stamped_runner import Engine, reference

Wanted = dict[int, tuple[list[int], str]]


class Traffic:
    """Random requests, and what their answers must be."""

    def __init__(self, engine: Engine, seed: int, capacity: int) -> None:
        self.engine, self.random, self.capacity = engine, random.Random(seed), capacity
        self.uid, self.wanted, self.gone = 1, {}, set()
        self.wanted: Wanted = {}

    def add(self, **fields: object) -> EngineRequest:
        draw = self.random
        head, length = draw.randrange(3), draw.randrange(1, 40)
        prompt = ([head] * 6 + [head, 1, 2, 3] * 9)[:length] + [draw.randrange(20) for _ in range(draw.randrange(4))]
        n = draw.choice([1, 1, 1, 2, 3])
        options = {
            "n": n, "seed": self.uid, "stop": draw.choice([(), (), (3, 7)]), "priority": draw.randrange(3),
            "salt": draw.choice(["", "", "a"]), "stream": draw.random() < 0.7, "skip": draw.random() < 0.2,
            "thinking": draw.choice([None, None, None, 5]),
        }  # fmt: skip
        most = min(draw.randrange(1, 40), self.capacity - len(prompt))
        request = make(self.uid, prompt, most, **{**options, **fields})
        self.uid += n
        self.engine.scheduler.add(request)
        for uid, seed in seeds_of(self.engine, request).items():
            self.wanted[uid] = reference(request, seed)
        return request

    def abort(self, count: int) -> None:
        """Some of the live ones, in whichever phase they are."""
        live = [uid for uid in self.wanted if uid in self.engine.scheduler._sequences]
        gone = self.random.sample(live, min(count, len(live)))
        self.engine.scheduler.abort(gone)
        self.gone.update(gone)

    def check(self) -> None:
        engine = self.engine
        engine.drain(10_000_000)
        scheduler = engine.scheduler
        scheduler.check_integrity()
        assert scheduler.audit() == 0
        assert scheduler.num_live == 0 and scheduler.rows.num_active == 0 and not scheduler.waiting
        assert scheduler.cache.pool.num_held == 0, "blocks are left over"
        assert scheduler.cache.pool.available == scheduler.cache.pool.num_blocks
        for uid, (answer, reason) in self.wanted.items():
            got = engine.answers.get(uid, [])
            if uid in self.gone:
                assert got == answer[: len(got)]
            else:
                assert (got, engine.finished[uid]) == (answer, reason)


def soak(requests: int, seed: int, overlap: bool) -> Engine:
    """A tenth of the room that the running ones want: half of them are preempted."""
    engine = build(24, 4, 8, 24, 5, overlap, "priority")
    traffic = Traffic(engine, seed, 24 * 4)
    draw = traffic.random
    while traffic.uid <= requests:
        for _ in range(draw.randrange(6)):
            traffic.add()
        for _ in range(draw.randrange(8)):
            engine.step()
        if draw.random() < 0.6:
            traffic.abort(draw.randrange(4))
    traffic.check()
    assert 0.15 * requests < len(traffic.gone) < 0.5 * requests
    assert engine.preemptions > requests // 10
    return engine


@pytest.mark.parametrize("overlap", [False, True])
def test_random_aborts(overlap: bool):
    soak(500, 0, overlap)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ten_thousand_random_aborts(seed: int):
    soak(10_000, seed, bool(seed % 2))


@pytest.mark.slow
def test_stamps_of_a_million_steps():
    done, seed = 0, 0
    while done < 1_000_000:
        done += soak(300, seed, bool(seed % 2)).steps
        seed += 1


def test_priority_flips():
    """64 blocks, 500 requests that all are there at once, and whose urgency turns around again and again."""
    engine = build(64, 4, 16, 32, 0, True, "priority")
    traffic = Traffic(engine, 7, 64 * 4)
    for i in range(500):
        traffic.add(priority=i % 7 - (i // 7) % 5, n=1)
        if i % 3 == 0:
            engine.step()
    traffic.check()
    assert engine.preemptions > 50


def test_what_fits_only_alone_is_not_starved():
    """Small requests come in every step; the large one has all blocks to itself before long."""
    engine = build(16, 4, 8, 16)
    traffic = Traffic(engine, 1, 64)
    for _ in range(8):
        traffic.add(n=1)
    large = make(1000, [9] * 50, 14, seed=1)
    engine.scheduler.add(large)
    small = 1001
    while 1000 not in engine.finished:
        engine.scheduler.add(make(small, [small % 50], 2, seed=1))
        small += 1
        engine.step()
        assert small < 1001 + 40 * MAX_PASSED, "it waits for ever"
    engine.drain()


class Faulty(Exception):
    pass


@pytest.mark.parametrize("overlap", [False, True])
def test_steps_that_fail(overlap: bool):
    """Any step may fail, with or without someone to blame, for want of memory or not; aborts beside it."""
    engine = build(24, 4, 8, 24, 5, overlap, "priority")
    traffic = Traffic(engine, 3, 96)
    draw, scheduler, execute = traffic.random, engine.scheduler, engine.runner.execute
    cursed: set[int] = set()

    def failing(plan: StepPlan) -> StepResult:
        owners = [scheduler.rows.owned(row).uid for row in plan.rows_N.tolist()]
        if cursed & set(owners) or draw.random() < 0.05:
            raise Faulty
        return execute(plan)

    def step() -> None:
        plan = scheduler.schedule()
        done = None
        try:
            done = None if plan is None else (plan, failing(plan))
        except Faulty as error:
            engine.runner.previous_rows = None
            if engine.flight is not None:
                engine._take(*engine.flight)
                engine.flight = None
            scheduler.retreat(plan, error, draw.random() < 0.3)
            return
        if overlap:
            done, engine.flight = engine.flight, done
        if done is not None:
            engine._take(*done)
        elif plan is None:
            outputs = scheduler.wait(0)
            for end in outputs.finished if outputs is not None else ():
                engine.finished[end.uid] = str(end.reason)

    for _ in range(120):
        request = traffic.add()
        if draw.random() < 0.1:
            cursed.add(request.uid)
        for _ in range(draw.randrange(8)):
            step()
        scheduler.check_integrity()
        if draw.random() < 0.2:
            traffic.abort(1)
    turns = 0
    while scheduler.has_work or engine.flight is not None:
        step()
        turns += 1
        assert turns < 50_000, "no end"
    scheduler.check_integrity()
    assert scheduler.cache.pool.num_held == 0 and scheduler.rows.num_active == 0
    innocent = 0
    for uid, (answer, reason) in traffic.wanted.items():
        got = engine.answers.get(uid, [])
        if uid in traffic.gone:
            continue
        if uid in cursed:
            assert engine.finished[uid] == "error"
        elif engine.finished[uid] == "error":
            innocent += 1  # alone in a step that failed, or the largest of one that found no memory
        else:
            assert (got, engine.finished[uid]) == (answer, reason)
    assert innocent < len(traffic.wanted) // 3


def break_refs(engine: Engine) -> None:
    held = engine.scheduler.cache.table[engine.scheduler.rows.owner.index(_running(engine)), 0]
    engine.scheduler.cache.pool.refs[held] += 1


def break_free_list(engine: Engine) -> None:
    pool, row = engine.scheduler.cache.pool, _running(engine).row
    pool._free[pool._num_free] = engine.scheduler.cache.table[row, 0]  # a block that is held
    pool._num_free += 1


def lose_a_block(engine: Engine) -> None:
    engine.scheduler.cache.pool._num_free -= 1


def break_index(engine: Engine) -> None:
    index = engine.scheduler.cache.index
    del index._block_of[next(iter(index._block_of))]


def _running(engine: Engine):
    return next(seq for seq in engine.scheduler.rows.owner if seq is not None)


@pytest.mark.parametrize("damage", [break_refs, break_free_list, lose_a_block, break_index])
@pytest.mark.parametrize("overlap", [False, True])
def test_broken_bookkeeping_is_taken_out_of_use(damage, overlap: bool):
    engine = build(40, 4, 8, 24, 5, overlap)
    traffic = Traffic(engine, 5, 80)
    for _ in range(6):
        traffic.add(n=1, skip=False)
    for _ in range(12):
        engine.step()
    assert engine.scheduler.audit() == 0
    engine.scheduler.waiting.check_integrity()
    damage(engine)
    if __debug__:  # the audit does not need asserts
        with pytest.raises(AssertionError):
            engine.scheduler.cache.check_integrity()
    assert 1 <= engine.scheduler.audit() <= 2
    engine.scheduler.check_integrity()
    for _ in range(30):
        traffic.add(n=1)
    engine.drain()
    engine.scheduler.check_integrity()
    pool = engine.scheduler.cache.pool
    assert pool.num_quarantined >= 1 and pool.available == pool.num_blocks - pool.num_quarantined
    for uid, (answer, reason) in traffic.wanted.items():
        assert (engine.answers[uid], engine.finished[uid]) == (answer, reason)

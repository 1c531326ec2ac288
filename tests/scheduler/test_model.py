"""Scheduler and cache against the stamped runner, in random walks over everything that may happen to a request."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from octavo.core.config import CacheConfig, SchedulerConfig
from octavo.core.params import SamplingParams
from octavo.core.request import EngineRequest, pack_ids
from octavo.scheduler.scheduler import Scheduler
from tests.stamped_runner import Engine, StampedRunner, reference


def build(
    num_blocks=12, block_size=4, rows=5, budget=16, chunk=0, overlap=True, policy="fcfs", caching=True, cost=0.0,
    windows=(None,),
) -> Engine:  # fmt: skip
    cache = CacheConfig(num_blocks, block_size, rows, num_blocks * block_size, caching, windows=windows)
    scheduler = Scheduler(SchedulerConfig(budget, chunk, cost, policy), cache)
    return Engine(scheduler, StampedRunner(cache), overlap)


def make(
    uid, prompt, max_tokens=8, *, n=1, stop=(), seed=0, priority=0, salt="", stream=True, min_tokens=0, skip=False,
    thinking=None,
):  # fmt: skip
    """`thinking` is a budget; token 1 begins reasoning, and token 2 ends it."""
    params = SamplingParams(
        n=n, seed=seed, max_tokens=max_tokens, min_tokens=min_tokens, skip_reading_prefix_cache=skip,
        thinking_token_budget=thinking,
    )  # fmt: skip
    request = EngineRequest(uid, pack_ids(prompt), params, max_tokens, list(stop), [], priority, salt, "", stream)
    request.thinking = [] if thinking is None else [1, 2]
    return request


def seeds_of(engine: Engine, request: EngineRequest) -> dict[int, int]:
    return {uid: engine.scheduler._sequences[uid].seed for uid in range(request.uid, request.uid + request.params.n)}


class Walk(RuleBasedStateMachine):
    """Add, abort, fork (n > 1), step, under a cache of a few blocks, so that preemption is common."""

    totals = {"steps": 0, "preemptions": 0, "hits": 0, "forks": 0, "aborts": 0, "reads": 0}

    @initialize(
        blocks=st.integers(3, 16),
        block_size=st.sampled_from([1, 2, 4]),
        rows=st.integers(1, 6),
        extra=st.integers(0, 12),
        chunk=st.sampled_from([0, 1, 3, 7]),
        overlap=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority", "fair"]),
        caching=st.sampled_from([True, True, True, False]),
        cost=st.sampled_from([0.0, 1.0, 9.0]),
    )
    def start(self, blocks, block_size, rows, extra, chunk, overlap, policy, caching, cost):
        self.engine = build(blocks, block_size, rows, rows + extra, chunk, overlap, policy, caching, cost)
        self.begin()

    def begin(self):
        self.capacity = self.engine.scheduler.cache.config.capacity
        self.uid = 1
        self.wanted: dict[int, tuple[list[int], str]] = {}
        self.aborted: set[int] = set()

    @rule(
        head=st.integers(0, 2),
        length=st.integers(1, 40),
        most=st.integers(1, 60),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        stops=st.sampled_from([(), (), (3, 7, 11)]),
        priority=st.integers(-1, 1),
        salt=st.sampled_from(["", "", "a"]),
        stream=st.booleans(),
        skip=st.sampled_from([False, False, False, True]),
        thinking=st.sampled_from([None, None, 1, 2, 5, 20]),
        data=st.integers(0, 3),
    )
    def add(self, head, length, most, n, stops, priority, salt, stream, skip, thinking, data):
        # Prompts begin alike often enough for the prefix cache to matter.
        prompt = ([head] * 5 + [head, 1, 2, 3] * 10)[: max(1, length - data)] + [10 + data] * min(data, length - 1)
        most = min(most, self.capacity - len(prompt))
        if most < 1:
            return
        request = make(
            self.uid,
            prompt,
            most,
            n=n,
            stop=stops,
            seed=self.uid,
            priority=priority,
            salt=salt,
            stream=stream,
            skip=skip,
            thinking=thinking,
        )
        self.uid += n
        self.engine.scheduler.add(request)
        for uid, seed in seeds_of(self.engine, request).items():
            self.wanted[uid] = reference(request, seed)
        self.totals["forks"] += n - 1

    @rule(count=st.integers(1, 24))
    def step(self, count):
        for _ in range(count):
            self.engine.step()

    @precondition(lambda self: self.wanted)
    @rule(data=st.data())
    def abort(self, data):
        uids = data.draw(st.lists(st.sampled_from(sorted(self.wanted)), max_size=3))
        self.engine.scheduler.abort(uids)
        self.totals["aborts"] += len(uids)
        self.aborted |= {uid for uid in uids if uid not in self.engine.finished}

    @invariant()
    def sound(self):
        if hasattr(self, "engine"):
            self.engine.scheduler.check_integrity()

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        engine = self.engine
        engine.drain()
        engine.scheduler.check_integrity()
        assert engine.scheduler.num_live == 0
        assert engine.scheduler.rows.num_active == 0, "rows are left over"
        assert engine.scheduler.cache.pool.num_held == 0, "blocks are left over"
        for uid, (answer, reason) in self.wanted.items():
            got = engine.answers.get(uid, [])
            if uid in self.aborted:
                assert uid not in engine.finished and got == answer[: len(got)]
            else:
                assert engine.finished[uid] == reason
                assert got == answer
        self.totals["steps"] += engine.steps
        self.totals["preemptions"] += engine.preemptions
        self.totals["hits"] += sum(engine.cached.values())
        self.totals["reads"] += engine.runner.reads


def test_random_walks():
    Walk.totals = dict.fromkeys(Walk.totals, 0)
    run_state_machine_as_test(
        Walk,
        settings=settings(
            max_examples=700,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )
    assert Walk.totals["steps"] >= 200_000, Walk.totals
    # The walks must have been where it hurts.
    assert min(Walk.totals.values()) > 100, Walk.totals


def walk_far(walk: type[Walk], steps: int) -> None:
    """Other walks each time: what fails is printed so that it can be done again."""
    anew = settings(max_examples=300, stateful_step_count=60, deadline=None, database=None, print_blob=True,
                    suppress_health_check=list(HealthCheck))  # fmt: skip
    Walk.totals = dict.fromkeys(Walk.totals, 0)
    while Walk.totals["steps"] < steps:
        run_state_machine_as_test(walk, settings=anew)
    assert min(Walk.totals.values()) > 1000, Walk.totals


@pytest.mark.slow
def test_a_million_steps():
    walk_far(Walk, 800_000)


@pytest.mark.slow
def test_a_million_steps_with_windows():
    walk_far(WindowWalk, 200_000)


class WindowWalk(Walk):
    """The same with groups of layers, some or all of which have windows."""

    @initialize(
        windows=st.sampled_from([(3,), (8,), (None, 4), (None, 1, 1), (None, 5, 9), (None, None, 6)]),
        pages=st.integers(12, 48),
        block_size=st.sampled_from([1, 2, 4]),
        rows=st.integers(1, 6),
        extra=st.integers(0, 12),
        chunk=st.sampled_from([0, 1, 3, 7]),
        overlap=st.booleans(),
        caching=st.sampled_from([True, True, True, False]),
    )
    def start(self, windows, pages, block_size, rows, extra, chunk, overlap, caching):
        self.engine = build(
            pages, block_size, rows, rows + extra, chunk, overlap, caching=caching, windows=windows
        )  # fmt: skip
        self.begin()


def test_random_walks_with_windows():
    Walk.totals = dict.fromkeys(Walk.totals, 0)
    run_state_machine_as_test(
        WindowWalk,
        settings=settings(
            max_examples=120,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )
    assert min(Walk.totals.values()) > 100, Walk.totals

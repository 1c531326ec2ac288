"""What the scheduler promises, one promise a test, on the stamped runner."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.core.config import CacheConfig, SchedulerConfig
from octavo.core.params import SamplingParams
from octavo.core.plan import LogprobRows, StepResult
from octavo.core.request import EngineRequest, pack_ids
from octavo.scheduler.scheduler import MAX_PASSED, Scheduler
from tests.scheduler.test_model import build, make, seeds_of
from tests.stamped_runner import reference


def finish_order(engine, *requests):
    for request in requests:
        engine.scheduler.add(request)
    order = []
    while engine.scheduler.has_work or engine.flight:
        before = set(engine.finished)
        engine.step()
        order += [uid for uid in engine.finished if uid not in before]
    engine.scheduler.check_integrity()
    return order


def test_decodes_come_first_and_prompts_fill_the_budget():
    engine = build(num_blocks=40, rows=4, budget=10, chunk=10, overlap=False)
    engine.scheduler.add(make(1, [1, 2, 3], 20))
    engine.step()
    engine.scheduler.add(make(2, list(range(1, 25)), 20))
    plan = engine.scheduler.schedule()
    assert plan.num_decodes == 1
    assert plan.counts_N.tolist() == [1, 9]


def test_first_come_first_served():
    engine = build(num_blocks=64, rows=1)
    assert finish_order(engine, *(make(uid, [uid] * 4, 5) for uid in (1, 2, 3))) == [1, 2, 3]


def test_priority_goes_first():
    requests = [make(1, [1] * 4, 5, priority=1), make(2, [2] * 4, 5, priority=0), make(3, [3] * 4, 5, priority=-1)]
    assert finish_order(build(rows=1, policy="priority"), *requests) == [3, 2, 1]
    assert finish_order(build(rows=1, policy="fcfs"), *requests) == [1, 2, 3]


def test_the_last_in_order_is_preempted_and_its_answer_is_the_same():
    engine = build(num_blocks=6, block_size=4, rows=3, budget=16)
    requests = [make(uid, [uid] * 6, 14) for uid in (1, 2, 3)]
    wanted = {r.uid: reference(r, 0)[0] for r in requests}
    for request in requests:
        engine.scheduler.add(request)
    engine.drain()
    assert engine.preemptions > 0
    assert list(engine.finished)[0] == 1, "the first was held up by a later one"
    assert {uid: len(answer) for uid, answer in engine.answers.items()} == {1: 14, 2: 14, 3: 14}
    assert engine.answers == wanted


def test_a_large_request_does_not_block_the_queue_and_is_not_starved():
    engine = build(num_blocks=16, block_size=4, rows=4, budget=64, overlap=False)
    engine.scheduler.add(make(1, [1] * 4, 12))
    engine.step()
    engine.scheduler.add(make(2, [2] * 60, 4))  # needs the whole cache
    uid, finished_when = 3, None
    for step in range(2000):
        while len(engine.scheduler.waiting) < 3:
            engine.scheduler.add(make(uid, [uid % 40] * 4, 4))
            uid += 1
        engine.step()
        if step == 10:
            assert engine.finished, "small requests wait behind the large one"
        if 2 in engine.finished:
            finished_when = step
            break
    assert finished_when is not None, "the large request starved"
    small_before = [u for u in engine.finished if u > 2]
    assert len(small_before) <= MAX_PASSED + 4


@pytest.mark.parametrize("when", ["waiting", "prompt", "decoding", "fork"])
def test_abort_frees_everything_in_one_step(when):
    engine = build(num_blocks=32, rows=4, budget=8, chunk=4)
    request = make(5, list(range(1, 20)), 10, n=2 if when == "fork" else 1)
    engine.scheduler.add(request)
    for _ in range({"waiting": 0, "prompt": 2, "decoding": 9, "fork": 3}[when]):
        engine.step()
    engine.scheduler.abort([5, 6])
    assert engine.scheduler.num_live == 0
    assert engine.scheduler.rows.num_active == 0
    assert engine.scheduler.cache.pool.num_held == 0
    engine.scheduler.check_integrity()
    engine.drain()
    assert not engine.finished


def test_a_block_is_a_hit_only_after_its_step_has_ended():
    engine = build(num_blocks=32, rows=4, budget=64, overlap=True)
    engine.scheduler.add(make(1, [7] * 17, 4))
    engine.step()  # the prompt is being computed
    engine.scheduler.add(make(2, [7] * 17, 4))
    engine.step()
    assert engine.scheduler.rows.owned(engine.scheduler._sequences[2].row).num_cached == 0
    engine.scheduler.add(make(3, [7] * 17, 4))
    engine.step()
    assert engine.scheduler._sequences[3].num_cached == 16
    engine.drain()


def test_answers_are_kept_for_the_next_turn():
    engine = build(num_blocks=32, rows=2, budget=64)
    first = make(1, [9] * 6, 10)
    engine.scheduler.add(first)
    engine.drain()
    second = make(2, [9] * 6 + engine.answers[1] + [4], 3)
    engine.scheduler.add(second)
    engine.drain()
    assert engine.cached[2] == 12  # 15 of the 16 tokens have KV: three whole blocks of 4


def test_salts_do_not_share():
    engine = build(num_blocks=32, rows=2, budget=64)
    for uid, salt in ((1, "a"), (2, "b"), (3, "a")):
        engine.scheduler.add(make(uid, [9] * 9, 3, salt=salt))
        engine.drain()
    assert engine.cached == {1: 0, 2: 0, 3: 8}


def test_forks_share_the_prompt():
    engine = build(num_blocks=40, block_size=4, rows=5, budget=64)
    request = make(1, [3] * 18, 4, n=4)
    engine.scheduler.add(request)
    seeds = seeds_of(engine, request)
    most = 0
    while engine.scheduler.has_work:
        engine.step()
        most = max(most, engine.scheduler.cache.pool.num_held)
    engine.drain()
    # Four shared blocks; then each of the four has a copy of the last one and at most one more.
    assert most <= 4 + 4 * 2
    assert engine.answers == {uid: reference(request, seed)[0] for uid, seed in seeds.items()}


def test_unseeded_requests_differ_and_engines_with_one_seed_agree():
    def draw(seed):
        cache = CacheConfig(16, 4, 4, 64)
        scheduler = Scheduler(SchedulerConfig(16, seed=seed), cache)
        for uid in (1, 2):
            scheduler.add(EngineRequest(uid, pack_ids([1]), SamplingParams(), 4, [], []))
        return [scheduler._sequences[uid].seed for uid in (1, 2)]

    assert len(set(draw(0))) == 2
    assert draw(0) == draw(0) != draw(1)


def test_waste_stays_below_two_percent_on_a_chat_like_mix():
    """Lognormal lengths with medians of 150 tokens in and 190 out, 64 at a time, blocks of 16."""
    rng = np.random.default_rng(0)
    cache = CacheConfig(8192, 16, 64, 4096)
    scheduler = Scheduler(SchedulerConfig(2048), cache)
    uid, waste = 1, []
    for step in range(3000):
        while len(scheduler.waiting) < 4:
            prompt, answer = (int(x) for x in np.clip(rng.lognormal(np.log([150, 190]), 0.8), 4, 1500))
            params = SamplingParams(max_tokens=answer, ignore_eos=True)
            scheduler.add(EngineRequest(uid, pack_ids(rng.integers(0, 30000, prompt)), params, answer, [], []))
            uid += 1
        plan = scheduler.schedule()
        outputs = scheduler.update(plan, StepResult(np.full(len(plan.sampled_S), 5, np.int32)))
        if step > 500:
            waste.append(outputs.stats.kv_waste)
    assert scheduler.rows.num_active == 64
    assert 0 < np.mean(waste) <= 0.02


def test_a_row_that_is_not_finite_fails_alone():
    engine = build(num_blocks=32, rows=4, budget=64, overlap=False)
    for uid in (1, 2):
        engine.scheduler.add(make(uid, [uid] * 5, 6))
    engine.step()
    plan = engine.scheduler.schedule()
    result = engine.runner.execute(plan)
    result.tokens_S[0] = -1
    engine._take(plan, result)
    engine.drain()
    assert engine.finished == {1: "error", 2: "length"}


def chunks_of(engine, uid: int) -> list[int]:
    """Tokens of the prompt that each step computes until it is done."""
    counts = []
    while (seq := engine.scheduler._sequences[uid]).row < 0 or not engine.scheduler.rows.length[
        seq.row
    ] > seq.prompt_len:
        plan = engine.scheduler.schedule()
        here = plan.counts_N[plan.rows_N == seq.row]
        counts.append(int(here.sum()))
        engine._take(plan, engine.runner.execute(plan))
    return counts


def test_a_long_prompt_takes_a_share_of_the_steps_of_those_who_generate():
    engine = build(num_blocks=200, rows=4, budget=64, overlap=False)
    engine.scheduler.add(make(1, [1] * 200, 2))
    assert chunks_of(engine, 1) == [64, 64, 64, 8]  # alone it has whole steps
    engine.drain()
    engine.scheduler.add(make(2, [2] * 5, 60))
    engine.step()
    engine.scheduler.add(make(3, [3] * 100, 2))
    engine.scheduler.add(make(4, [4] * 20, 2))
    plan = engine.scheduler.schedule()
    assert plan.counts_N.tolist() == [1, 16, 16]  # and the short prompt behind it goes on at once
    engine._take(plan, engine.runner.execute(plan))
    engine.drain()


def test_chunks_shrink_as_attention_costs_more():
    engine = build(num_blocks=400, rows=4, budget=64, overlap=False, cost=100.0)
    engine.scheduler.add(make(1, [1] * 1000, 2))
    chunks = chunks_of(engine, 1)
    assert sum(chunks) == 1000 and chunks[:-1] == sorted(chunks[:-1], reverse=True)
    done = 0
    for count in chunks[:-1]:
        assert 64 * 0.8 <= max(count, count * (done + count / 2) / 100) <= 64
        done += count
    assert chunks[0] == 64 > chunks[3]
    engine.drain()


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_ended_when_its_budget_is_spent(overlap, stream):
    def answer(prompt, budget, most=12):
        engine = build(num_blocks=40, overlap=overlap)
        request = make(1, prompt, most, thinking=budget, seed=3, stream=stream)
        engine.scheduler.add(request)
        engine.drain()
        engine.scheduler.check_integrity()
        assert engine.answers[1] == reference(request, 3)[0]
        assert engine.preemptions == 0
        return engine.answers[1]

    free = answer([5, 1], None)
    assert not {1, 2} & set(free)
    for budget in (1, 3, 10):
        found = answer([5, 1], budget)
        assert found[: budget + 1] == free[:budget] + [2] and len(found) == 12
    for budget in (11, 12, 100):  # no room for more than the end
        assert answer([5, 1], budget) == free
    assert answer([5, 1, 2], 3) == answer([5, 1, 2], None)  # ended by the prompt
    assert answer([1] + [5] * 20, 3) == answer([1] + [5] * 20, None)  # of something else


def test_a_token_that_is_set_has_certain_logprobs():
    scheduler = Scheduler(SchedulerConfig(16), CacheConfig(8, 4, 2, 32))
    params = SamplingParams(max_tokens=8, logprobs=1, thinking_token_budget=1)
    scheduler.add(EngineRequest(1, pack_ids([5, 1]), params, 8, [], [], thinking=[1, 2]))
    plan = scheduler.schedule()
    assert plan is not None
    rows = LogprobRows(*(np.array(x, t) for x, t in [([0], "i4"), ([[7, 9]], "i4"), ([[-2, -1]], "f4"), ([3], "i4")]))
    outputs = scheduler.update(plan, StepResult(np.array([7], np.int32), rows))
    assert np.frombuffer(outputs.uids, np.int64).tolist() == [1, 1]
    assert np.frombuffer(outputs.tokens, np.int32).tolist() == [7, 2]
    assert outputs.logprobs is not None and outputs.logprobs.uids == [1, 1]
    assert np.frombuffer(outputs.logprobs.ids, np.int32).tolist() == [7, 9, 2, 2]
    assert np.frombuffer(outputs.logprobs.values, np.float32).tolist() == [-2, -1, 0, 0]
    assert np.frombuffer(outputs.logprobs.ranks, np.int32).tolist() == [3, 1]
    assert scheduler.schedule().chunk_tokens_C[-1] == 2

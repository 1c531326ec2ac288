"""Groups of layers with windows: pages come and go on time, and nothing that is read is ever another's."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.cache.manager import KVCacheManager
from octavo.core.config import CacheConfig
from octavo.scheduler.scheduler import Scheduler
from tests.scheduler.test_model import build, make, seeds_of
from tests.scheduler.test_storms import Traffic
from tests.stamped_runner import Engine, reference


def run(engine: Engine, *requests) -> None:
    wanted = {}
    for request in requests:
        engine.scheduler.add(request)
        wanted |= {uid: reference(request, seed)[0] for uid, seed in seeds_of(engine, request).items()}
    engine.drain()
    engine.scheduler.check_integrity()
    assert {uid: engine.answers[uid] for uid in wanted} == wanted


@pytest.mark.parametrize("overlap", [False, True])
def test_what_no_token_sees_is_given_back(overlap):
    engine = build(400, 16, 2, 256, overlap=overlap, windows=(None, 64))
    cache, request = engine.scheduler.cache, make(1, [3] * 3500, 596)
    engine.scheduler.add(request)
    most = 0
    while engine.step():
        begin, end = (int(blocks[0]) for blocks in cache.spans(slice(0, 1), 1))
        written = int(engine.scheduler.rows.written[0])
        chunks = 0 if written >= 3500 else 1 + overlap  # that are under way
        assert end - begin <= 64 // 16 + 2 + chunks * (256 // 16)
        most = max(most, int(cache.held[0]))
    assert most == 4096 // 16 and engine.answers[1] == reference(request, 0)[0]


@pytest.mark.parametrize("windows", [(8,), (None, 8), (None, 5, 9)])
def test_hits_equal_cold_answers(windows):
    engine = build(120, 4, 2, 16, overlap=True, windows=windows)
    prompt = [i % 7 for i in range(43)]
    run(engine, make(1, prompt, 9))
    run(engine, make(2, prompt, 9))
    assert engine.cached[2] == 40
    run(engine, make(3, prompt[:21] + [9] * 20, 9))  # the pages that it sees were let go long before the first ended
    assert engine.cached[3] == 20
    run(engine, make(4, prompt + engine.answers[1] + [1], 9))  # what followed was published as it left
    assert engine.cached[4] >= 48


def test_a_hit_needs_what_the_next_token_sees():
    config = CacheConfig(20, 4, 2, 40, windows=(None, 6))
    cache = KVCacheManager(config)
    hashes = [bytes([i]) * 16 for i in range(8)]
    cache.admit(0, 8, cache.nothing)
    cache.reach(0, 32)
    cache.publish(0, hashes, 32)
    assert cache.lookup(hashes).blocks == 8
    assert [len(pages) for pages in cache.lookup(hashes).pages] == [8, 2]
    lost = cache.tables[1][0, 4:6].copy()
    cache.release(0)
    cache.index.forget(lost)
    cache.pool.published[lost] = False
    assert cache.lookup(hashes).blocks == 8
    assert cache.lookup(hashes[:7]).blocks == 4  # the token at 28 sees block 5, the one at 20 block 4
    assert [len(pages) for pages in cache.lookup(hashes[:7]).pages] == [4, 2]


def test_what_is_withdrawn_is_no_hit():
    cache = KVCacheManager(CacheConfig(20, 4, 2, 40, windows=(6,)))
    hashes = [bytes([i]) * 16 for i in range(8)]
    cache.admit(0, 8, cache.nothing)
    cache.reach(0, 32)
    cache.publish(0, hashes, 32)
    cache.let_go(np.array([0]), np.array([32]))
    assert cache.lookup(hashes[:4]).blocks == 4 and cache.pool.num_cached == 6
    cache.withdraw(0, hashes)
    cache.check_integrity()
    assert cache.pool.num_cached == 0
    assert not any(cache.lookup(hashes[:count]).blocks for count in range(9))


def test_forks_copy_a_page_of_each_group():
    engine = build(60, 4, 6, 32, overlap=True, windows=(None, 6, 6))
    run(engine, make(1, list(range(18)), 12, n=4))
    assert engine.scheduler.cache.pool.num_held == 0


def test_prompts_that_wait_for_each_other(monkeypatch):
    """Each has begun and none finds a page to go on: the last one makes room."""
    starved = [0]
    plain = Scheduler._starved

    def counted(self):
        starved[0] += plain(self)
        return plain(self)

    monkeypatch.setattr(Scheduler, "_starved", counted)
    engine = build(20, 2, 4, 16, chunk=3, overlap=True, caching=False, windows=(12, 12))
    run(engine, *(make(uid, [uid] * 19, 2) for uid in range(1, 5)))
    assert starved[0] > 0 and engine.preemptions > 0


@pytest.mark.parametrize(("windows", "pages"), [((6, 6), 14), ((None, 6), 34), ((None, 5, 5), 48)])
def test_a_storm(windows, pages):
    """A tenth of the room that the running ones want."""
    engine = build(pages, 4, 8, 24, 5, True, "priority", windows=windows)
    traffic = Traffic(engine, 5, engine.scheduler.cache.config.capacity)
    draw = traffic.random
    while traffic.uid <= 300:
        for _ in range(draw.randrange(6)):
            traffic.add()
        for _ in range(draw.randrange(8)):
            engine.step()
        if draw.random() < 0.6:
            traffic.abort(draw.randrange(4))
    traffic.check()
    assert engine.preemptions > 2


def test_capacity_counts_what_a_window_keeps():
    assert CacheConfig(100, 16, 4, 10**6).capacity == 1600
    assert CacheConfig(100, 16, 4, 10**6, windows=(None, 64)).capacity == 94 * 16
    assert CacheConfig(6, 16, 4, 4096, windows=(64,)).capacity == 4096
    assert CacheConfig(5, 16, 4, 4096, windows=(64,)).capacity == 80


def let_go_too_much(monkeypatch):
    plain = KVCacheManager._lowest
    monkeypatch.setattr(KVCacheManager, "_lowest", lambda self, tokens, window: plain(self, tokens, window - 4))
    give = KVCacheManager.let_go
    monkeypatch.setattr(KVCacheManager, "let_go", lambda self, rows, written: give(self, rows, written + 5))


def hit_without_looking(monkeypatch):
    monkeypatch.setattr(KVCacheManager, "_lowest", lambda self, tokens, window: tokens // self.block_size)


@pytest.mark.parametrize("spoil", [let_go_too_much, hit_without_looking])
def test_planted_errors_are_seen(monkeypatch, spoil):
    spoil(monkeypatch)
    with pytest.raises(AssertionError):
        test_hits_equal_cold_answers((None, 8))

"""Turns of tenants: by tokens, not by requests; nobody waits for another's queue; nobody saves up turns."""

from __future__ import annotations

from collections import Counter

from octavo.scheduler.fairness import FairShare
from tests.scheduler.test_model import build, make


def run(engine, requests, steps=10_000):
    """The tenants whose answers ended within so many steps, in order, and the tokens of each tenant."""
    owners = {request.uid: request.tenant for request in requests}
    for request in requests:
        engine.scheduler.add(request)
    for _ in range(steps):
        if not (engine.scheduler.has_work or engine.flight):
            break
        engine.step()
    engine.scheduler.check_integrity()
    tokens = Counter()
    for uid in engine.finished:
        tokens[owners[uid]] += len(engine.answers[uid])
    return [owners[uid] for uid in engine.finished], tokens


def request(uid, tenant, most=8):
    made = make(uid, [uid % 50 + 1] * 4, most)
    made.tenant = tenant
    return made


def test_a_long_queue_of_one_does_not_keep_another_waiting():
    crowd = [request(uid, "a") for uid in range(1, 41)]
    late = [request(uid, "b") for uid in range(41, 45)]
    fair, _ = run(build(rows=2, policy="fair"), crowd + late)
    assert fair[:8].count("b") >= 3 and len(fair) == 44
    unfair, _ = run(build(rows=2, policy="fcfs"), crowd + late)
    assert unfair[:40] == ["a"] * 40


def test_shares_are_of_tokens():
    """One asks for long answers, the other for short ones: each gets half of the tokens, not of the requests."""
    requests = []
    for uid in range(1, 1201, 12):
        requests.append(request(uid, "long", most=30))
        requests += [request(uid + i, "short", most=5) for i in range(1, 12)]
    order, tokens = run(build(num_blocks=100, rows=4, budget=64, policy="fair"), requests, 1200)
    assert 0 < len(order) < len(requests)
    assert 0.6 < tokens["long"] / tokens["short"] < 1.6
    counts = Counter(order)
    assert counts["short"] > 3 * counts["long"]


def test_priority_comes_first():
    engine = build(rows=1, policy="fair")
    requests = [request(1, "a"), request(2, "a"), request(3, "b")]
    requests[1].priority = -1
    order, _ = run(engine, requests)
    assert order == ["a", "a", "b"]


def test_who_was_away_has_saved_nothing():
    fair = FairShare()
    for _ in range(10):
        start, _ = fair.arrive("busy", 10, 10, 1)
        fair.begin(start)
    first, _ = fair.arrive("new", 10, 10, 1)
    assert first == fair.now  # now, not at the beginning of time
    later, _ = fair.arrive("new", 10, 10, 1)
    assert later > first


def test_accounts_are_settled():
    fair = FairShare()
    _, cost = fair.arrive("a", 100, 1000, 1)
    assert cost == 2 * 128  # a guess
    fair.settle("a", 100 + cost, 10, None)  # aborted
    assert fair.arrive("a", 0, 0, 1)[0] == 10
    for _ in range(60):
        _, cost = fair.arrive("a", 0, 1000, 1)
        fair.settle("a", cost, 2 * 5, 5)
    assert fair.arrive("a", 0, 1000, 1)[1] == 10  # what its answers have been like

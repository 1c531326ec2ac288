"""When the next step is planned: late, but never so late that the device waits."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.progress import Progress
from octavo.engine.ipc import Add
from octavo.engine.process import EngineProcess
from octavo.engine.rhythm import MARGIN, Rhythm


def run(step: float, planning: float, steps: int) -> tuple[Rhythm, float]:
    """After so many steps, one begun behind the other, with one under way; and the time when that began."""
    rhythm = Rhythm()
    rhythm.started(64, -planning, 0.0)
    for i in range(1, steps + 1):
        rhythm.started(64, i * step - planning - 1e-4, i * step - 1e-4)
        rhythm.ended(i * step)
    return rhythm, steps * step


def test_nothing_is_waited_for_before_anything_is_known():
    rhythm = Rhythm()
    assert rhythm.slack(0.0) <= 0
    rhythm.started(64, 0.0, 0.001)
    assert rhythm.slack(0.001) <= 0
    rhythm.started(64, 0.002, 0.003)
    rhythm.ended(0.010)
    assert rhythm.slack(0.010) > 0
    rhythm.started(64, 0.012, 0.013)
    assert rhythm.slack(0.013) <= 0, "two are under way"
    rhythm.ended(0.020)
    rhythm.ended(0.030)
    assert rhythm.slack(0.030) <= 0, "none is"


def test_the_slack_ends_a_planning_before_the_step():
    rhythm, begin = run(step=0.010, planning=0.002, steps=5)
    assert rhythm.slack(begin) == pytest.approx(0.010 - 0.002 - MARGIN)
    assert rhythm.slack(begin + 0.006) == pytest.approx(0.004 - 0.002 - MARGIN)
    assert rhythm.slack(begin + 0.009) < 0


def test_steps_of_other_sizes_tell_nothing():
    rhythm, begin = run(step=0.010, planning=0.002, steps=5)
    rhythm.started(1024, begin + 0.007, begin + 0.009)
    rhythm.ended(begin + 0.010)
    assert rhythm.slack(begin + 0.010) <= 0


def test_a_long_planning_is_forgotten_in_time():
    rhythm, begin = run(step=0.010, planning=0.002, steps=5)
    rhythm.started(64, begin, begin + 1.0)  # something had to be compiled
    rhythm.ended(begin + 0.010)
    assert rhythm.slack(begin + 1.0) < 0
    now = begin + 1.0
    for _ in range(80):
        rhythm.started(64, now, now + 0.002)
        now += 0.010
        rhythm.ended(now)
    assert 0 < rhythm.slack(now) < 0.010 - 0.002


@given(st.floats(0.001, 0.1), st.lists(st.floats(0.0, MARGIN), min_size=10, max_size=40), st.floats(0.0, 0.5))
def test_the_device_never_waits(seconds, delays, share):
    """The engine's loop, with a device whose steps take so long; planning takes a share of that, or a little more."""
    rhythm, now, free = Rhythm(), 0.0, 0.0
    for turn, delay in enumerate(delays):
        now += max(rhythm.slack(now), 0.0)
        begun, now = now, now + share * seconds + delay
        assert turn < 2 or now <= free + 1e-9
        rhythm.started(64, begun, now)
        before, free = free, max(free, now) + seconds
        if turn:
            now = max(now, before)
            rhythm.ended(now)


class Core:
    """As much of an engine core as waits for messages, with a step under way for a while."""

    has_work = True

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.added: list[object] = []

    @property
    def slack(self) -> float:
        return self.end - time.monotonic()

    def add(self, request: object) -> None:
        self.added.append(request)


def test_what_comes_while_a_step_runs_is_in_the_next_plan():
    here, there = socket.socketpair()
    engine, core = EngineProcess(here, Progress(Progress.allocate())), Core(2.0)
    timer = threading.Timer(0.2, lambda: engine._inbox.put(Add(["a request"])))  # type: ignore[list-item]
    timer.start()
    assert engine._take_messages(core)  # type: ignore[arg-type]
    assert core.added == ["a request"] and core.slack <= 0
    timer.join()
    core = Core(-1.0)
    assert engine._take_messages(core) and not core.added  # type: ignore[arg-type]
    here.close()
    there.close()

"""What an engine says of its progress, as its front reads it; how long steps may take; how often to start again."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from octavo.core import crash, log, restarts
from octavo.core.config import EngineConfig
from octavo.core.progress import MAX_UIDS, Phase, Progress, StepBudget
from octavo.core.restarts import Restarts
from tests.server.conftest import own_log


def test_a_record_is_read_as_it_was_written():
    descriptor = Progress.allocate()
    writer, reader = Progress(descriptor), Progress(descriptor)
    assert reader.read().overdue == float("-inf")  # nothing was said yet
    writer.name(np.array([5, 2**40], np.int64))
    writer.enter(Phase.STEP, 60.0, tokens=12)
    record = reader.read()
    assert (record.step, record.phase, record.tokens, record.uids) == (1, Phase.STEP, 12, [5, 2**40])
    assert -60 < record.overdue < 0
    writer.enter(Phase.IDLE, 0.0)
    assert reader.read().overdue > 0 and reader.read().step == 1
    writer.name(np.arange(2 * MAX_UIDS))
    assert len(reader.read().uids) == MAX_UIDS
    os.close(descriptor)


def test_a_long_step_may_be_long_and_a_short_one_not():
    budget = StepBudget()
    assert budget.of(1) == StepBudget.FIRST
    budget.took(1, 0.01)
    assert budget.of(1) == StepBudget.FLOOR
    assert budget.of(2048) == StepBudget.FIRST
    budget.took(2048, 20.0)
    assert budget.of(2048) > 60 and budget.of(1) == StepBudget.FLOOR
    budget.took(1, 6.0)  # a large model on a slow machine
    assert budget.of(1) == 60.0
    for _ in range(20):
        budget.took(1, 0.01)
    assert budget.of(1) == StepBudget.FLOOR


def test_a_slow_first_step_says_nothing_about_large_ones():
    """It compiles: who freezes in a step of hundreds of tokens is to be seen all the same."""
    budget = StepBudget()
    budget.took(2, 3.0)
    budget.took(400, 0.1)
    assert budget.of(331) == StepBudget.FLOOR and budget.of(2) == 30.0
    assert budget.of(20) == 30.0  # no step of this size so far: at least as long as a small one
    budget.took(4000, 50.0)
    assert budget.of(1000) == 125.0  # at least its share of a large one
    assert budget.of(5000) == StepBudget.FIRST


def test_pauses_between_restarts(monkeypatch: pytest.MonkeyPatch):
    clock = [1000.0]
    monkeypatch.setattr(restarts.time, "monotonic", lambda: clock[0])
    found = Restarts()
    assert [found.pause() for _ in range(5)] == [0.0, 1.0, 2.0, 4.0, None]
    clock[0] += restarts.DEATHS_SECONDS + 1
    assert found.pause() == 0.0


def test_a_report_tells_what_to_do_and_no_secrets(tmp_path: Path):
    config = crash.plain_config(EngineConfig(model="m", seed=3))
    assert config == {"model": "m", "seed": 3}
    path = crash.write_report(
        tmp_path, "engine", "killed by SIGKILL", -signal.SIGKILL, config=config, suspects=[{"id": "a"}], stacks=["x y"]
    )
    assert path is not None and path.stat().st_mode & 0o77 == 0
    report = json.loads((path / "report.json").read_text())
    assert report["suspects"] == [{"id": "a"}] and "dmesg" in report["remedies"][0]
    text = (path / "report.md").read_text()
    assert "killed by SIGKILL" in text and "x y" in text
    for _ in range(crash.KEPT + 3):
        crash.write_report(tmp_path, "engine", "x", 1)
    assert len(list(tmp_path.iterdir())) == crash.KEPT
    (tmp_path / "file").write_text("")
    assert crash.write_report(tmp_path / "file", "engine", "x", 1) is None  # nothing can be written there


@pytest.mark.parametrize(
    ("status", "text", "word"),
    [
        (1, "torch.OutOfMemoryError: CUDA out of memory", "--gpu-memory-utilization"),
        (1, "CUDA error: an illegal memory access", "Xid"),
        (-9, "it made no progress for 60 s", "--watchdog-timeout"),
        (-11, "", "Native code"),
        (1, "KeyError", "Report it"),
    ],
)
def test_remedies(status: int, text: str, word: str):
    assert word in " ".join(crash.remedies(status, text))


def test_the_last_lines_of_a_log_are_kept():
    descriptor = os.memfd_create("log")
    with own_log(), open(os.devnull, "w") as nowhere:
        log.setup("info", stream=nowhere)
        log.remember(descriptor)
        for i in range(3000):
            log.event("line", logging.INFO, number=i)
        lines = log.tail(descriptor)
    assert lines[-1].endswith("number=2999") and len(lines) == 100
    assert len(log.tail_bytes(descriptor)) <= log.TAIL_BYTES
    os.close(descriptor)

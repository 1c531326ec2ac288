"""What a runner does about a device that fails, with one that is none."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from octavo import LLM
from octavo.runner.memory import edits_of_rows
from octavo.runner.recorder import Recorder
from octavo.sampling.state import RowTable
from tests.engine.conftest import Reference


def test_recovering_waits_for_the_device(llama: Reference, monkeypatch: pytest.MonkeyPatch):
    """What was queued has to end before rows are given away; a device that is lost ends the engine with its error."""
    runner = LLM(str(llama.folder), num_kv_blocks=16)._core.runner
    done: list[str] = []
    monkeypatch.setattr(runner, "device", SimpleNamespace(type="cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("empty cache"))
    assert runner.recover(torch.OutOfMemoryError("CUDA out of memory")) is True
    assert done == ["synchronize", "empty cache"]
    assert runner.recover(ValueError("a fault")) is False
    assert done == ["synchronize", "empty cache", "synchronize"]

    def lost(device: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    error = ValueError("what was seen first")
    with pytest.raises(ValueError, match="what was seen first") as caught:
        runner.recover(error)
    assert caught.value is error


class FakeGraph:
    """Its capture ends with an error if anything went wrong in it, as CUDA's does."""

    def __init__(self) -> None:
        self.state = "new"

    def capture_begin(self, **options: Any) -> None:
        self.state = "capturing"

    def capture_end(self) -> None:
        self.state = "ended"
        if graphs_fail:
            raise RuntimeError("operation failed due to a previous error during capture")


graphs_fail = True


def test_a_recording_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    made: list[FakeGraph] = []
    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)

    def make() -> FakeGraph:
        made.append(FakeGraph())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", make)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 1)
    recorder = Recorder(torch.device("cpu"))

    def work() -> None:
        if made[-1].state == "capturing":
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        recorder.record(work)
    assert made[-1].state == "ended", "the stream would record what comes after it"
    assert recorder.try_to_record("a step", work) is None
    assert "a step could not be recorded" in caplog.text
    monkeypatch.setitem(globals(), "graphs_fail", False)
    assert recorder.try_to_record("a step", lambda: None) is made[-1]


def test_what_rows_with_penalties_own(monkeypatch: pytest.MonkeyPatch):
    """The ledger reserves what the sampler on a GPU takes when all rows have penalties and lists of allowed tokens."""
    import numpy as np

    from octavo import SamplingParams, kernels  # noqa: F401 (the fused sampler needs kernels)
    from octavo.core.plan import RowJoin
    from octavo.sampling.fused import Fused
    from octavo.sampling.state import Mode

    rows, vocab = 6, 640
    fused = Fused(vocab, RowTable(rows, torch.device("cpu")))
    params = SamplingParams(repetition_penalty=1.1, allowed_token_ids=[3, 5])
    for row in range(rows):
        fused.join(RowJoin(row, params, 0, np.arange(5, dtype=np.int32), 5, []), Mode.GREEDY, 1)
    owned = sum(tensor.nbytes for tensors in fused._owned.values() for tensor in tensors)
    assert owned == edits_of_rows(rows, vocab)

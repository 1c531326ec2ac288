"""The engine process: `python -m octavo.engine.process FD`, started by `AsyncLLM` with one end of a socket pair.

The main thread runs the engine core and nothing else. A thread reads requests, a thread writes outputs, so neither
a slow front nor a large message delays a step. When the front is gone, so is the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec

import octavo.core.log
from octavo.core import collector, guard
from octavo.core.child import die_with_parent, read_frame
from octavo.core.config import EngineConfig
from octavo.core.errors import EngineError, OctavoError
from octavo.core.outputs import StepOutputs
from octavo.core.picture import Pace
from octavo.core.progress import START_BUDGETS, Phase, Progress, StepBudget
from octavo.engine.core import EngineCore, Plan, Planner
from octavo.engine.ipc import (
    Abort,
    Add,
    Codec,
    ExpectGrammar,
    Failed,
    FromEngine,
    Look,
    Ready,
    Seen,
    Start,
    Step,
    ToEngine,
)

log = logging.getLogger(__name__)


BEAT_SECONDS = 2.0  # between two signs of life of an engine without work
IDLE_BUDGET, PREPARE_BUDGET = 8.0, 300.0
ORPHAN_SECONDS = 2.0  # that an engine without a front has for the step that is under way
MAX_FRUITLESS = 1000  # turns of the loop in which something waits, nothing runs and nothing is planned


class EngineProcess:
    def __init__(self, sock: socket.socket, progress: Progress) -> None:
        self._sock = sock
        self._progress = progress
        self._budget = StepBudget()
        self._pace = Pace()
        self._fruitless = 0
        self._turned = 0.0  # when the last step ended, or what it waits for had come
        self._starting = threading.Lock()
        self._codec = Codec()
        self._inbox: SimpleQueue[ToEngine | None] = SimpleQueue()
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="writer", daemon=True)

    def run(self, config: EngineConfig, folder: Path) -> int:
        """Serves until the front closes its end; the exit status."""
        self._writer.start()
        try:
            core = EngineCore.start(config, folder, self._on_start)
        except Exception as error:
            if not isinstance(error, OctavoError):
                log.exception("the engine cannot start")
            self._send(Failed(str(error) or type(error).__name__, isinstance(error, OctavoError)))
            return self._close(1)
        core.on_plan = self._on_plan
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        collector.settle()
        self._send(Ready(core.info))
        try:
            while self._take_messages(core):
                outputs = self._step(core)
                if outputs is not None:
                    self._send(Step(outputs))
        except Exception as error:
            log.exception("the engine failed")
            self._send(Failed(f"{type(error).__name__}: {error}", False))
            return self._close(1)
        return self._close(0)

    def _on_start(self, phase: Phase) -> None:
        with self._starting:  # tensors are loaded by several threads
            self._progress.enter(phase, START_BUDGETS[phase])

    def _step(self, core: EngineCore) -> StepOutputs | None:
        self._planned = 0
        outputs = core.step()
        begun, self._turned = self._turned, time.monotonic()
        if self._planned:
            seconds = self._turned - begun
            self._budget.took(self._planned, seconds)
            self._pace.ran(self._planned, seconds)
        if outputs is not None:
            self._pace.told(outputs.stats)
        stuck = outputs is None and not self._planned and core.stuck
        self._fruitless = self._fruitless + 1 if stuck else 0
        if self._fruitless == MAX_FRUITLESS:
            raise EngineError(f"requests wait, none runs, and none can be planned: {core.describe()}")
        return outputs

    def _on_plan(self, plan: Plan, scheduler: Planner) -> None:
        """A step is about to run: says so, and for whom."""
        self._planned = plan.num_tokens
        self._pace.sampled += plan.num_sampled
        if not plan.steady:
            self._progress.name(scheduler.uids_of(plan))
        self._progress.enter(Phase.STEP, self._budget.of(plan.num_tokens), plan.num_tokens)

    def _take_messages(self, core: EngineCore) -> bool:
        """Hands on what has come; waits for something if there is no work, or none that presses. False when the front
        is gone."""
        while True:
            while not core.has_work and self._inbox.empty() and self._prepare(core):
                pass
            self._progress.enter(Phase.IDLE, IDLE_BUDGET)
            busy = core.has_work
            patience = core.slack if busy else BEAT_SECONDS
            try:
                message = self._inbox.get(patience > 0, max(patience, 0))
            except Empty:
                if busy:
                    return True
                continue
            if not busy:
                self._turned = time.monotonic()
            match message:
                case Add(requests):
                    for request in requests:
                        core.add(request)
                case Abort(uids):
                    core.abort(uids)
                    if not core.has_work:
                        self._send(Step(core.report()))
                case ExpectGrammar():
                    core.expect_grammar()
                case Look():
                    self._send(Seen(core.picture(self._pace)))
                case None:
                    return False

    def _prepare(self, core: EngineCore) -> bool:
        self._progress.enter(Phase.PREPARE, PREPARE_BUDGET)
        return core.prepare()

    def _send(self, message: FromEngine) -> None:
        self._outbox.put(self._codec.frame(message))

    def _close(self, status: int) -> int:
        """Waits until all that was said has been written."""
        self._outbox.put(None)
        self._writer.join(timeout=5)
        return status

    def _read(self) -> None:
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            while (frame := read_frame(self._sock)) is not None:
                self._inbox.put(self._codec.to_engine.decode(frame))
        self._inbox.put(None)
        time.sleep(ORPHAN_SECONDS)
        os._exit(1)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (frame := self._outbox.get()) is not None:
                self._sock.sendall(frame)


def main() -> int:
    sock = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(sock)
    frame = read_frame(sock)
    if frame is None:
        return 1
    start = msgspec.msgpack.decode(frame, type=Start)
    guard.install()
    octavo.core.log.setup(start.log_level, start.log_format)
    octavo.core.log.remember(start.log)
    faulthandler.enable(start.stacks)
    faulthandler.register(signal.SIGUSR1, start.stacks)
    return EngineProcess(sock, Progress(start.progress)).run(start.config, Path(start.folder))


if __name__ == "__main__":
    sys.exit(main())

"""The engine process: `python -m octavo.engine.process FD`, started by `AsyncLLM` with one end of a socket pair.

The main thread runs the engine core and nothing else. A thread reads requests, a thread writes outputs, so neither
a slow front nor a large message delays a step. When the front is gone, so is the process.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec

import octavo.core.log
from octavo.core import collector, guard
from octavo.core.child import die_with_parent, read_frame
from octavo.core.config import EngineConfig
from octavo.core.errors import OctavoError
from octavo.engine.core import EngineCore
from octavo.engine.ipc import Abort, Add, Codec, ExpectGrammar, Failed, FromEngine, Ready, Start, Step, ToEngine

log = logging.getLogger(__name__)


class EngineProcess:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._codec = Codec()
        self._inbox: SimpleQueue[ToEngine | None] = SimpleQueue()
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="writer", daemon=True)

    def run(self, config: EngineConfig, folder: Path) -> int:
        """Serves until the front closes its end; the exit status."""
        self._writer.start()
        try:
            core = EngineCore.start(config, folder)
        except Exception as error:
            if not isinstance(error, OctavoError):
                log.exception("the engine cannot start")
            self._send(Failed(str(error) or type(error).__name__, isinstance(error, OctavoError)))
            return self._close(1)
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        collector.settle()
        self._send(Ready(core.info))
        try:
            while self._take_messages(core):
                outputs = core.step()
                if outputs is not None:
                    self._send(Step(outputs))
        except Exception as error:
            log.exception("the engine failed")
            self._send(Failed(f"{type(error).__name__}: {error}", False))
            return self._close(1)
        return self._close(0)

    def _take_messages(self, core: EngineCore) -> bool:
        """Hands on what has come; waits for something if there is no work. False when the front is gone."""
        while True:
            while not core.has_work and self._inbox.empty() and core.prepare():
                pass
            try:
                message = self._inbox.get(block=not core.has_work)
            except Empty:
                return True
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
                case None:
                    return False

    def _send(self, message: FromEngine) -> None:
        self._outbox.put(self._codec.frame(message))

    def _close(self, status: int) -> int:
        """Waits until all that was said has been written."""
        self._outbox.put(None)
        self._writer.join(timeout=5)
        return status

    def _read(self) -> None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            while (frame := read_frame(self._sock)) is not None:
                self._inbox.put(self._codec.to_engine.decode(frame))
        self._inbox.put(None)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (frame := self._outbox.get()) is not None:
                self._sock.sendall(frame)


def main() -> int:
    die_with_parent()
    sock = socket.socket(fileno=int(sys.argv[1]))
    frame = read_frame(sock)
    if frame is None:
        return 1
    start = msgspec.msgpack.decode(frame, type=Start)
    guard.install()
    octavo.core.log.setup(start.log_level, start.log_format)
    return EngineProcess(sock).run(start.config, Path(start.folder))


if __name__ == "__main__":
    sys.exit(main())

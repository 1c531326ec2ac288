"""The front's side of the checkers: whether a grammar can be enforced, found out within a second or two.

    checker = Checker(tokenizer_folder, vocab_size)
    source = checker.check(asked)      # RequestError with the path of what is at fault

Blocks, and may be called from several threads; each of them keeps a process of its own. What was found out is kept:
a grammar is compiled once, and so is a wrong one. A process that dies, as any may, is replaced once before its grammar
is taken for the cause; and what was too much for it is tried again after a while.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from pathlib import Path

import msgspec

from octavo.core.child import Child, frame, read_frame
from octavo.core.errors import EngineUnavailable, Overloaded, RequestError
from octavo.core.structured import StructuredOutputs
from octavo.grammar.messages import Check, Checked, Start

PROCESS = "octavo.grammar.process"
START_SECONDS = 60.0  # to load the tokenizer; 128k tokens take about one
COMPILE_SECONDS = 2.0  # that it may work on a grammar
BUSY_SECONDS = 20.0  # that this may take where others take the machine's time
BAD_SECONDS = 60.0  # that a grammar which took too long is refused without another try
KEPT_BYTES = 64 << 20
TOO_COMPLEX = "grammar_too_complex"
# One allocator arena: address space is what the limit on memory counts.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class _Worker:
    """One checker process, started when it is needed and again after it was killed."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._child: Child | None = None

    def check(self, data: bytes) -> Checked:
        if self._child is not None and not self._child.alive:
            self.close()
        for _ in range(2):
            child = self._child or self._open()
            try:
                if _tell(child, data) and not child.answers(COMPILE_SECONDS, BUSY_SECONDS):
                    break
                if (found := _hear(child)) is not None:
                    return found
            except TimeoutError:
                self.close()
                raise Overloaded("the machine is too busy to compile a grammar; try again later") from None
            self.close()
        self.close()
        return Checked(error="it takes too long, or too much memory, to compile", code=TOO_COMPLEX)

    def start(self) -> None:
        with contextlib.suppress(RequestError, EngineUnavailable, TimeoutError):  # who needs it will be told
            if self._child is None:
                self._open()

    def _open(self) -> Child:
        child = self._child = Child(PROCESS, ENVIRONMENT)
        child.sock.settimeout(START_SECONDS)
        found = _hear(child) if _tell(child, msgspec.msgpack.encode(self._start)) else None
        if found is None or found.error:
            self.close()
            raise RequestError(found.error) if found else EngineUnavailable("the grammar compiler does not start")
        return child

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


def _tell(child: Child, data: bytes) -> bool:
    """False if nobody is there to hear it."""
    with contextlib.suppress(OSError):
        child.sock.sendall(frame(data))
        return True
    return False


def _hear(child: Child) -> Checked | None:
    """The answer; None if the process has died."""
    try:
        answer = read_frame(child.sock)
    except OSError:
        return None
    return None if answer is None else msgspec.msgpack.decode(answer, type=Checked)


class Checker:
    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._start = Start(str(folder), vocab_size)
        self._known: OrderedDict[bytes, Checked] = OrderedDict()
        self._bytes = 0
        self._bad_until: dict[bytes, float] = {}  # of those that were too complex
        self._lock = threading.Lock()
        self._workers: dict[int, _Worker] = {}  # by thread

    def known(self, asked: StructuredOutputs) -> str | None:
        """The grammar, if that can be told at once."""
        with self._lock:
            found = self._find(_key(asked))
        return None if found is None else _source(asked, found)

    def _find(self, key: bytes) -> Checked | None:
        found = self._known.get(key)
        if found is not None and found.code == TOO_COMPLEX and time.monotonic() > self._bad_until.get(key, 0.0):
            self._drop(key)
            return None
        return found

    def start(self) -> None:
        """Starts the process that works for this thread, so that the first grammar need not wait for it."""
        with self._lock:
            worker = self._workers.setdefault(threading.get_ident(), _Worker(self._start))
        worker.start()

    def check(self, asked: StructuredOutputs) -> str:
        key = _key(asked)
        with self._lock:
            found = self._find(key)
            if found is not None:
                self._known.move_to_end(key)
            worker = self._workers.setdefault(threading.get_ident(), _Worker(self._start))
        if found is None:
            found = worker.check(msgspec.msgpack.encode(Check(asked)))
            with self._lock:
                self._keep(key, found)
        return _source(asked, found)

    def _keep(self, key: bytes, found: Checked) -> None:
        if key not in self._known:
            self._known[key] = found
            self._bytes += len(key) + len(found.source)
            if found.code == TOO_COMPLEX:
                self._bad_until[key] = time.monotonic() + BAD_SECONDS
        while self._bytes > KEPT_BYTES:
            self._drop(next(iter(self._known)))

    def _drop(self, key: bytes) -> None:
        self._bytes -= len(key) + len(self._known.pop(key).source)
        self._bad_until.pop(key, None)

    def close(self) -> None:
        with self._lock:
            for worker in self._workers.values():
                worker.close()
            self._workers.clear()


def _key(asked: StructuredOutputs) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.replace(asked, param="-"))


def _source(asked: StructuredOutputs, found: Checked) -> str:
    if not found.error:
        return found.source
    param = asked.name(found.path)
    raise RequestError(f"{param}: {found.error}", param, found.code)

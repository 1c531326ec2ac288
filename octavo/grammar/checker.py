"""The front's side of the checkers: whether a grammar can be enforced, found out within a second or two.

    checker = Checker(tokenizer_folder, vocab_size)
    source = checker.check(asked)      # RequestError with the path of what is at fault

Blocks, and may be called from several threads; each of them keeps a process of its own. What was found out is kept:
a grammar is compiled once, and so is a wrong one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import msgspec

from octavo.core.child import Child, frame, read_frame
from octavo.core.errors import EngineUnavailable, RequestError
from octavo.core.structured import StructuredOutputs
from octavo.grammar.messages import Check, Checked, Start

PROCESS = "octavo.grammar.process"
START_SECONDS = 60.0  # to load the tokenizer; 128k tokens take about one
COMPILE_SECONDS = 2.0
KEPT_BYTES = 64 << 20
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
        child = self._child or self._open()
        found = _ask(child, data, COMPILE_SECONDS)
        if found is None:
            self.close()
            return Checked(error="it takes too long, or too much memory, to compile", code="grammar_too_complex")
        return found

    def _open(self) -> Child:
        child = self._child = Child(PROCESS, ENVIRONMENT)
        found = _ask(child, msgspec.msgpack.encode(self._start), START_SECONDS)
        if found is None or found.error:
            self.close()
            raise RequestError(found.error) if found else EngineUnavailable("the grammar compiler does not start")
        return child

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


def _ask(child: Child, data: bytes, seconds: float) -> Checked | None:
    """The answer; None if there is none in time, or the process has died of it."""
    child.sock.settimeout(seconds)
    try:
        child.sock.sendall(frame(data))
        answer = read_frame(child.sock)
    except OSError:
        return None
    return None if answer is None else msgspec.msgpack.decode(answer, type=Checked)


class Checker:
    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._start = Start(str(folder), vocab_size)
        self._known: OrderedDict[bytes, Checked] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._workers: dict[int, _Worker] = {}  # by thread

    def known(self, asked: StructuredOutputs) -> str | None:
        """The grammar, if that can be told at once."""
        with self._lock:
            found = self._known.get(_key(asked))
        return None if found is None else _source(asked, found)

    def check(self, asked: StructuredOutputs) -> str:
        key = _key(asked)
        with self._lock:
            found = self._known.get(key)
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
        while self._bytes > KEPT_BYTES:
            old, dropped = self._known.popitem(last=False)
            self._bytes -= len(old) + len(dropped.source)

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

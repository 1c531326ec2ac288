"""The front's side of the checkers: whether a grammar can be enforced, found out within a second or two.

    checker = Checker(tokenizer_folder, vocab_size)
    source = checker.check(asked)      # RequestError with the path of what is at fault

Blocks, and may be called from several threads; each of them keeps a process of its own. What was found out is kept:
a grammar is compiled once, and so is a wrong one. A process that dies, as any may, is replaced once before its grammar
is taken for the cause; and what was too much for it is tried again after a while.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from pathlib import Path

import msgspec

from octavo.core.child import Worker
from octavo.core.errors import RequestError
from octavo.core.structured import StructuredOutputs
from octavo.grammar.messages import Check, Checked, Start

PROCESS = "octavo.grammar.process"
COMPILE_SECONDS = 2.0  # that it may work on a grammar
BAD_SECONDS = 60.0  # that a grammar which took too long is refused without another try
KEPT_BYTES = 64 << 20
TOO_COMPLEX = "grammar_too_complex"
TOO_MUCH = Checked(error="it takes too long, or too much memory, to compile", code=TOO_COMPLEX)
# One allocator arena: address space is what the limit on memory counts.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Checker:
    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._start = msgspec.msgpack.encode(Start(str(folder), vocab_size))
        self._known: OrderedDict[bytes, Checked] = OrderedDict()
        self._bytes = 0
        self._bad_until: dict[bytes, float] = {}  # of those that were too complex
        self._lock = threading.Lock()
        self._workers: dict[int, Worker] = {}  # by thread

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
            worker = self._worker()
        worker.start()

    def check(self, asked: StructuredOutputs) -> str:
        key = _key(asked)
        with self._lock:
            found = self._find(key)
            if found is not None:
                self._known.move_to_end(key)
            worker = self._worker()
        if found is None:
            answer = worker.ask(msgspec.msgpack.encode(Check(asked)), COMPILE_SECONDS)
            found = TOO_MUCH if answer is None else msgspec.msgpack.decode(answer, type=Checked)
            with self._lock:
                self._keep(key, found)
        return _source(asked, found)

    def _worker(self) -> Worker:
        """The one of this thread."""
        number = threading.get_ident()
        if number not in self._workers:
            self._workers[number] = Worker(PROCESS, ENVIRONMENT, self._start, "compile a grammar")
        return self._workers[number]

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

"""A grammar process: `python -m octavo.grammar.process FD`.

What strangers write as grammars is looked at here only. There are two kinds of such processes. A *checker* belongs to
the front: it translates and compiles what a user asks for, one at a time, with bounded memory, and is killed when that
takes too long. A *matcher* belongs to the engine: it follows the answers of all rows that have a grammar, which a
checker has passed, and writes the masks of the tokens that may come next into memory that both share. So no grammar
can stall a step or end the engine, and no lock of Python is held while masks are computed.
"""

from __future__ import annotations

import mmap
import os
import resource
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from octavo.core import guard
from octavo.core.child import bound_memory, die_with_parent, frame, read_frame
from octavo.core.errors import OctavoError
from octavo.grammar.messages import (
    Advance,
    Check,
    Checked,
    Close,
    Define,
    Forget,
    News,
    Open,
    Start,
    State,
    ToGrammars,
)
from octavo.grammar.schema import GrammarError
from octavo.grammar.source import translate
from octavo.grammar.vocabulary import Vocabulary
from octavo.text.tokenizer import load_tokenizer

CHECKER_BYTES = 512 << 20  # beside the vocabulary
MATCHER_BYTES = 16 << 30
COMPILERS = 2  # as many as there are checkers: what one of them passes, one of these compiles again
MAX_THREADS = 8


class Grammar:
    """One that a checker has passed; compiled when it is first opened."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._fresh: Any = None

    def matcher(self, vocabulary: Vocabulary) -> Any:
        with self._lock:
            if self._fresh is None:
                self._fresh = vocabulary.matcher(self._source)
                self._fresh.compute_bitmask()  # what the lexer learns by it goes into every copy
            return self._fresh.deep_copy()


@dataclass(slots=True)
class Slot:
    """A row that has a grammar."""

    epoch: int
    matcher: Any
    allowed: npt.NDArray[np.int32] | None
    keep_going: bool

    @property
    def plain(self) -> bool:
        """Its masks are those of the grammar."""
        return self.allowed is None and not self.keep_going


class Matcher:
    def __init__(self, sock: socket.socket, vocabulary: Vocabulary, start: Start) -> None:
        from llguidance import LLExecutor

        self._sock = sock
        self._vocabulary = vocabulary
        self._executor: Any = LLExecutor(max(1, min(MAX_THREADS, (os.cpu_count() or 2) // 2)))
        words = -(-start.vocab_size // 32)
        shared = mmap.mmap(start.memory, start.rows * words * 4)
        self._masks: npt.NDArray[np.int32] = np.frombuffer(shared, np.int32).reshape(start.rows, words)
        self._own = np.zeros((start.rows, vocabulary.words), np.int32)
        self._tail = np.int32(-1 if start.vocab_size % 32 == 0 else (1 << start.vocab_size % 32) - 1)
        self._slots: dict[int, Slot] = {}
        self._opening: dict[int, int] = {}  # row: epoch
        self._lock = threading.Lock()  # of the two dicts, the masks of rows that open, and the socket's sending side
        self._grammars: dict[int, Grammar] = {}
        self._jobs: SimpleQueue[tuple[Open, Grammar]] = SimpleQueue()

    def run(self) -> None:
        for _ in range(COMPILERS):
            threading.Thread(target=self._compile, daemon=True).start()
        decoder = msgspec.msgpack.Decoder(ToGrammars)
        while (data := read_frame(self._sock)) is not None:
            match decoder.decode(data):
                case Advance(rows, tokens):
                    self._advance(np.frombuffer(rows, np.int32).tolist(), np.frombuffer(tokens, np.int32).tolist())
                case Open() as job:
                    with self._lock:
                        self._slots.pop(job.row, None)
                        self._opening[job.row] = job.epoch
                    self._jobs.put((job, self._grammars[job.key]))
                case Close(row):
                    with self._lock:
                        self._slots.pop(row, None)
                        self._opening.pop(row, None)
                case Define(key, source):
                    self._grammars[key] = Grammar(source)
                case Forget(key):
                    del self._grammars[key]

    def _advance(self, rows: list[int], tokens: list[int]) -> None:
        slots = [self._slots[row] for row in rows]
        self._executor.consume_token_par([(slot.matcher, token) for slot, token in zip(slots, tokens, strict=True)])
        going = [(slot.matcher, row) for slot, row in zip(slots, rows, strict=True) if not slot.matcher.is_stopped()]
        if going:
            own = self._own
            self._executor.unsafe_compute_mask_ptr(going, own.ctypes.data, own.shape[1] * 4, len(own))
        states, error = np.zeros(len(rows), np.uint8), ""
        plain = []  # rows whose masks are as they were computed
        for i, (slot, row) in enumerate(zip(slots, rows, strict=True)):
            if slot.plain and not slot.matcher.is_stopped() and not slot.matcher.is_accepting():
                plain.append(row)
                continue
            states[i], why = self._publish(slot, row)
            error = error or why
        self._masks[plain] = self._own[plain, : self._masks.shape[1]]
        self._masks[plain, -1] &= self._tail
        self._say(rows, [slot.epoch for slot in slots], states, error)

    def _publish(self, slot: Slot, row: int) -> tuple[State, str]:
        """The row's mask, computed before, goes into the shared memory."""
        matcher, own = slot.matcher, self._own[row]
        if matcher.is_error():
            return State.FAILED, "the grammar became too complex for this answer"
        if self._vocabulary.ends(matcher, own):
            return State.COMPLETE, ""
        if slot.keep_going:
            own &= ~self._vocabulary.eos
        if slot.allowed is not None:
            own &= slot.allowed
        shared = self._masks[row]
        shared[:] = own[: len(shared)]
        shared[-1] &= self._tail
        if not shared.any():
            return State.FAILED, "no token is left that the grammar and allowed_token_ids both allow"
        return State.READY, ""

    def _compile(self) -> None:
        while True:
            job, grammar = self._jobs.get()
            slot = self._prepare(job, grammar)
            buffer = np.zeros(self._vocabulary.words, np.int32)
            if not slot.matcher.is_stopped():
                slot.matcher.unsafe_compute_mask_ptr(buffer.ctypes.data, buffer.nbytes)
            with self._lock:
                if self._opening.get(job.row) != job.epoch:
                    continue  # the sequence has left
                del self._opening[job.row]
                self._own[job.row] = buffer
                state, error = self._publish(slot, job.row)
                self._slots[job.row] = slot
            self._say([job.row], [job.epoch], np.array([state], np.uint8), error)

    def _prepare(self, job: Open, grammar: Grammar) -> Slot:
        """A matcher for the job, where its sequence stands."""
        matcher = grammar.matcher(self._vocabulary)
        if job.tokens:
            matcher.consume_tokens(np.frombuffer(job.tokens, np.int32).tolist())
        allowed = None if job.allowed is None else self._vocabulary.mask_of(job.allowed)
        return Slot(job.epoch, matcher, allowed, job.keep_going)

    def _say(self, rows: list[int], epochs: list[int], states: npt.NDArray[np.uint8], error: str) -> None:
        news = News(np.array(rows, np.int32).tobytes(), np.array(epochs, np.int32).tobytes(), states.tobytes(), error)
        data = frame(msgspec.msgpack.encode(news))
        with self._lock:
            self._sock.sendall(data)


def check(vocabulary: Vocabulary, job: Check) -> Checked:
    try:
        return Checked(translate(job.asked, vocabulary))
    except GrammarError as error:
        return Checked(error=error.message, path=error.path, code=error.code)
    except RecursionError:
        return Checked(error="it is nested too deeply", code="grammar_too_complex")


def main() -> int:
    sock = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(sock)
    guard.install()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data = read_frame(sock)
    if data is None:
        return 1
    start = msgspec.msgpack.decode(data, type=Start)
    try:
        vocabulary = Vocabulary(load_tokenizer(Path(start.folder)), start.vocab_size)
    except OctavoError as error:
        sock.sendall(frame(str(error).encode()))
        return 1
    sock.sendall(frame(b""))
    bound_memory(MATCHER_BYTES if start.rows else CHECKER_BYTES)
    if start.rows:
        Matcher(sock, vocabulary, start).run()
        return 0
    while (data := read_frame(sock)) is not None:
        found = check(vocabulary, msgspec.msgpack.decode(data, type=Check))
        sock.sendall(frame(msgspec.msgpack.encode(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

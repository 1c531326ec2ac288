"""The engine's side of the matcher: for each row that has a grammar, which tokens may come next.

    grammars.open(row, epoch, request, generated)     # a sequence takes a row
    grammars.advance(rows, epochs, tokens)            # after each step that gave it a token
    for row, state, error in grammars.poll(seconds):  # READY: masks[row] is good until the next advance
    grammars.close(row)                               # it leaves

Nothing here blocks for longer than it is told to. The process is started with the first grammar. When it dies, or
does not answer, all rows that have a grammar fail, and it is started again for the next one.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import select
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from octavo.core.child import HEADER, Child, frame
from octavo.core.request import EngineRequest
from octavo.grammar.checker import PROCESS
from octavo.grammar.messages import Advance, Close, Define, Forget, News, Open, Start, State, ToGrammars

log = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int32]
COMPILED = 128  # grammars that are kept compiled
PATIENCE = 30.0  # seconds without a word after which the process is taken for dead; a mask takes milliseconds
START_PATIENCE = 120.0
LOST = "the process that follows grammars was lost"


class Grammars:
    def __init__(self, folder: Path, vocab_size: int, max_rows: int) -> None:
        self._start = Start(str(folder), vocab_size, max_rows)
        self.masks: IntArray = np.zeros((0, -(-vocab_size // 32)), np.int32)
        self._epochs: dict[int, int] = {}  # of the rows that are open
        self._awaited: dict[int, float] = {}  # rows whose state is under way, and since when
        self._opening: set[int] = set()  # those of them whose grammar is compiled first
        self._keys: OrderedDict[str, int] = OrderedDict()  # grammars that the process has
        self._next_key = 0
        self._heard = 0.0  # when it last said something
        self._child: Child | None = None
        self._started = False  # the process has said that it is there
        self._out, self._in = bytearray(), bytearray()
        self._news = msgspec.msgpack.Decoder(News)

    @property
    def num_open(self) -> int:
        """Rows that are followed."""
        return len(self._epochs)

    @property
    def pending(self) -> bool:
        """Some row's state is under way."""
        return bool(self._awaited)

    def start(self) -> None:
        """Starts the process, unless it is there."""
        if self._child is not None and not self._epochs and not self._child.alive:
            self.shutdown()  # it has died while nobody needed it
        if self._child is None:
            self._spawn()

    def open(self, row: int, epoch: int, request: EngineRequest, generated: IntArray) -> None:
        self.start()
        self._epochs[row] = epoch
        self._awaited[row] = time.monotonic()
        self._opening.add(row)
        params, key = request.params, self._key(request.grammar)
        self._send(Open(row, epoch, key, generated.tobytes(), params.ignore_eos, params.allowed_token_ids))

    def _key(self, source: str) -> int:
        key = self._keys.get(source)
        if key is None:
            key = self._keys[source] = self._next_key
            self._next_key += 1
            self._send(Define(key, source))
            if len(self._keys) > COMPILED:
                self._send(Forget(self._keys.popitem(last=False)[1]))
        self._keys.move_to_end(source)
        return key

    def advance(self, rows: IntArray, tokens: IntArray) -> None:
        now = time.monotonic()
        self._awaited.update((row, now) for row in rows.tolist())
        self._send(Advance(rows.tobytes(), tokens.tobytes()))

    def close(self, row: int) -> None:
        if self._epochs.pop(row, None) is not None:
            self._awaited.pop(row, None)
            self._opening.discard(row)
            self._send(Close(row))

    def poll(self, seconds: float) -> Iterator[tuple[int, State, str]]:
        """What has become known. Waits up to `seconds` for rows that have only to advance: compiling may take long."""
        deadline = time.monotonic() + seconds
        while self._child is not None:
            yield from self._take()
            left = deadline - time.monotonic() if len(self._awaited) > len(self._opening) else 0.0
            if left <= 0 or not self._wait(left):
                break
        if self._awaited:
            yield from self._look_after()

    def wait(self, seconds: float) -> None:
        """Until something may have become known."""
        if self._awaited:
            self._wait(seconds)

    def _wait(self, seconds: float) -> bool:
        if self._child is None:
            return False
        sock = self._child.sock
        ready, _, _ = select.select([sock], [sock] if self._out else [], [], seconds)
        self._flush()
        return bool(ready)

    def shutdown(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None
        self._out.clear()
        self._in.clear()
        self._keys.clear()

    def _spawn(self) -> None:
        size = self._start.rows * self.masks.shape[1] * 4
        descriptor = os.memfd_create("octavo-masks", 0)
        os.ftruncate(descriptor, size)
        self.masks = np.frombuffer(mmap.mmap(descriptor, size), np.int32).reshape(self._start.rows, -1)
        self._child = Child(PROCESS, {}, descriptor)
        self._child.sock.setblocking(False)
        os.close(descriptor)
        self._started = False
        self._out += frame(msgspec.msgpack.encode(msgspec.structs.replace(self._start, memory=descriptor)))

    def _send(self, message: ToGrammars) -> None:
        self._out += frame(msgspec.msgpack.encode(message))
        self._flush()

    def _flush(self) -> None:
        if self._child is None:
            return
        with contextlib.suppress(OSError):  # full: later; gone: reading tells
            while self._out:
                del self._out[: self._child.sock.send(self._out)]

    def _take(self) -> Iterator[tuple[int, State, str]]:
        """What has come in."""
        assert self._child is not None
        self._flush()
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    data = self._child.sock.recv(1 << 16)
                except ConnectionError:
                    data = b""
                if not data:
                    yield from self._lose("it ended")
                    return
                self._in += data
                self._heard = time.monotonic()
        while len(self._in) >= HEADER.size:
            (size,) = HEADER.unpack_from(self._in)
            if len(self._in) < HEADER.size + size:
                break
            data = bytes(self._in[HEADER.size : HEADER.size + size])
            del self._in[: HEADER.size + size]
            if self._started:
                yield from self._read(self._news.decode(data))
                continue
            self._started = True
            if data:  # why it cannot work
                yield from self._lose(data.decode())
                return

    def _read(self, news: News) -> Iterator[tuple[int, State, str]]:
        rows, epochs = np.frombuffer(news.rows, np.int32).tolist(), np.frombuffer(news.epochs, np.int32).tolist()
        for row, epoch, state in zip(rows, epochs, news.states, strict=True):
            if self._epochs.get(row) == epoch:  # not of a former owner
                self._awaited.pop(row, None)
                self._opening.discard(row)
                yield row, State(state), news.error

    def _look_after(self) -> Iterator[tuple[int, State, str]]:
        if self._child is None:
            yield from self._lose("it cannot be started")
            return
        # Many grammars may wait to be compiled, but one after the other is done.
        since = max(self._heard, next(iter(self._awaited.values())))
        if time.monotonic() - since > (PATIENCE if self._started else START_PATIENCE):
            yield from self._lose("it did not answer")

    def _lose(self, reason: str) -> Iterator[tuple[int, State, str]]:
        log.error("grammars: the process was lost: %s", reason)
        self.shutdown()
        rows = list(self._epochs)
        self._epochs.clear()
        self._awaited.clear()
        self._opening.clear()
        for row in rows:
            yield row, State.FAILED, LOST

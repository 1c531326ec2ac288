"""Processes of ours that speak over a socket pair: how they are started and ended, and the frames they exchange.

A `Worker` keeps one for work that strangers could make endless: it is killed for that, and started again.

A frame is 4 bytes of length, then the message.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from pathlib import Path

from octavo.core import log
from octavo.core.errors import EngineError, EngineUnavailable, OctavoError, Overloaded

MAX_FRAME = 64 << 20  # a batch of 256 prompts of 64k tokens; more is an error of ours
HEADER = struct.Struct("<I")
_PR_SET_PDEATHSIG = 1
# A child takes no modules from the current folder, which may be a stranger's model; and it is as strict as we are.
FLAGS = ("-P", *(["-O"] if sys.flags.optimize else []))


READY, ALIVE, STOP = b"R", b".", b"S"  # what a supervisor and its front say to each other
START_SECONDS = 60.0  # that a worker has to start; a tokenizer of 128k tokens takes about one
BUSY_SECONDS = 20.0  # that an answer may take where others take the machine's time


class Child:
    """`python -m MODULE FD` with one end of a socket pair; it is killed by `close`, or when nobody holds this."""

    def __init__(self, module: str, environment: Mapping[str, str], *descriptors: int) -> None:
        self.sock, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *FLAGS, "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno(), *descriptors],
                stdin=subprocess.DEVNULL,
                cwd=working_folder(),
                env={**os.environ, **environment},
            )
        self.close = weakref.finalize(self, _end, self._process, self.sock)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def answers(self, seconds: float, most: float) -> bool:
        """Waits until it has said something, or is gone; False if it has worked for `seconds` without a word.

        Its own time counts, where the system tells it: a busy machine is no fault of the work. TimeoutError when
        `most` seconds have passed meanwhile.
        """
        ready, begin, used = select.poll(), time.monotonic(), self._seconds_used()
        ready.register(self.sock, select.POLLIN)
        left = seconds
        while not ready.poll(1000 * left):
            passed = time.monotonic() - begin
            worked = passed if used is None else (self._seconds_used() or 0.0) - used
            if worked >= seconds:
                return False
            if passed >= most:
                raise TimeoutError
            left = max(0.05, min(seconds - worked, most - passed))
        return True

    def _seconds_used(self) -> float | None:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return None


class Worker:
    """A process that answers one question at a time, started when there is one and again after it was killed.

    Its first frame is `start`. It answers that with an empty one, or with the reason why it cannot work.
    """

    def __init__(self, module: str, environment: Mapping[str, str], start: bytes, work: str) -> None:
        """`work` is what errors call that which it does."""
        self._module, self._environment, self._start, self._work = module, environment, start, work
        self._child: Child | None = None

    def ask(self, data: bytes, seconds: float) -> bytearray | None:
        """The answer; None if that took it more than `seconds` of its own time, or its life.

        Any process may die, so one that does is replaced once before the question is taken for the cause.
        """
        if self._child is not None and not self._child.alive:
            self.close()
        for _ in range(2):
            child = self._child or self._open()
            try:
                child.sock.sendall(frame(data))
                if not child.answers(seconds, BUSY_SECONDS):
                    break
                if (found := read_frame(child.sock)) is not None:
                    return found
            except TimeoutError:
                self.close()
                raise Overloaded(f"the machine is too busy to {self._work}; try again later") from None
            except OSError:
                pass
            self.close()
        self.close()
        return None

    def start(self) -> None:
        with contextlib.suppress(OctavoError):  # who needs it will be told
            if self._child is None:
                self._open()

    def _open(self) -> Child:
        child = self._child = Child(self._module, self._environment)
        child.sock.settimeout(START_SECONDS)
        found = None
        with contextlib.suppress(OSError):
            child.sock.sendall(frame(self._start))
            found = read_frame(child.sock)
        if found is None or found:
            self.close()
            log.event("worker", logging.ERROR, work=self._work, reason=found.decode() if found else "it ended")
            raise EngineUnavailable(f"the process that has to {self._work} does not start")
        return child

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


def bound_memory(more: int) -> None:
    """From here on, this process takes not more than this beyond what is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def working_folder() -> str | None:
    """Where a child runs: where we do, unless that was deleted, which libraries do not expect when they are loaded."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return "/"
    return None


def _end(process: subprocess.Popen[bytes], sock: socket.socket) -> None:
    sock.close()
    process.kill()
    process.wait()


def die_with_parent(sock: socket.socket) -> None:
    """Linux: SIGKILL when the parent ends, whatever this process is doing. The socket pair serves elsewhere.

    A parent that has ended before we asked for that is known by its end of the pair: the kernel closes it first.
    Ctrl-C, a terminal that closes and a service manager reach the whole group: the parent decides when its children
    end.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    closed = select.poll()
    closed.register(sock, 0)  # nothing but that the other end is closed, whatever may still be read
    if closed.poll(0):
        os._exit(1)


def frame(data: bytes) -> bytes:
    if len(data) > MAX_FRAME:
        raise EngineError(f"a message of {len(data)} bytes is larger than a frame may be")
    return HEADER.pack(len(data)) + data


def read_frame(sock: socket.socket) -> bytearray | None:
    """The next frame, or None when the other side is gone."""
    header = _read(sock, HEADER.size)
    if header is None:
        return None
    (size,) = HEADER.unpack(header)
    if size > MAX_FRAME:
        return None
    return _read(sock, size)


def _read(sock: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = sock.recv_into(view)
        if count == 0:
            return None
        view = view[count:]
    return data

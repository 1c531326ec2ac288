"""Processes of ours that speak over a socket pair: how they are started and ended, and the frames they exchange.

A frame is 4 bytes of length, then the message.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
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

from octavo.core.errors import EngineError

MAX_FRAME = 64 << 20  # a batch of 256 prompts of 64k tokens; more is an error of ours
HEADER = struct.Struct("<I")
_PR_SET_PDEATHSIG = 1
# A child takes no modules from the current folder, which may be a stranger's model; and it is as strict as we are.
FLAGS = ("-P", *(["-O"] if sys.flags.optimize else []))


READY, ALIVE, STOP = b"R", b".", b"S"  # what a supervisor and its front say to each other


class Child:
    """`python -m MODULE FD` with one end of a socket pair; it is killed by `close`, or when nobody holds this."""

    def __init__(self, module: str, environment: Mapping[str, str], *descriptors: int) -> None:
        self.sock, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *FLAGS, "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno(), *descriptors],
                stdin=subprocess.DEVNULL,
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

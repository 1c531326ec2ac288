"""The parent of `octavo serve`: holds the port, runs the front, and starts it again when it has died.

    supervisor ── front (HTTP, tokenizers) ─┬─ engine ── grammar matcher
                                            ├─ grammar checker
                                            └─ renderer of chats

It imports neither HTTP nor torch, has one thread and does nothing but wait, so nothing that a client sends can end it.
The front is a fork of it, taken before there is anything to inherit: so it needs no command line with keys in it.
They share a socket pair. The front says that it is alive and, once, that it is ready; the supervisor hands on the
signals that end it: a terminal and a service manager send theirs to the whole group, and a front that heard them
twice would take that for "at once". Whoever finds the pair closed is alone and ends; the kernel does the same to a
process that cannot look (PR_SET_PDEATHSIG). What loses its parent becomes the supervisor's own child
(PR_SET_CHILD_SUBREAPER), so that it knows when the memory of a dead front's engine is free.

A front that ends by itself has had its reasons: its status is ours. One that is killed, or fails, is started again.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from octavo.core import log
from octavo.core.child import READY, STOP, die_with_parent
from octavo.core.crash import cause_of, write_report
from octavo.core.errors import OctavoError
from octavo.core.restarts import MAX_DEATHS, Restarts

FAILED = 70  # sysexits.h: an internal error of software
ORPHAN_SECONDS = 1.0  # that what a dead front leaves has to end by itself
_PR_SET_CHILD_SUBREAPER = 36

Front = Callable[[socket.socket], int]


def supervise(front: Front, reports: Path, watchdog: float = 60.0) -> int:
    """The exit status. In the front's process it returns what `front` does, with its end of the socket pair."""
    return Supervisor(front, reports, watchdog).run()


class Supervisor:
    def __init__(self, front: Front, reports: Path, watchdog: float) -> None:
        self._front, self._reports, self._watchdog = front, reports, watchdog
        self._signals = 0  # that asked us to end
        self._told = 0  # of them, those that the front has heard of
        self._ready = False  # some front was, once
        self._restarts = Restarts()

    def run(self) -> int:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        before = {number: signal.signal(number, self._on_signal) for number in self._ends()}
        self._wake, wake = socket.socketpair()
        for each in (self._wake, wake):
            each.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # so that it wakes us
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        while True:
            ours, theirs = socket.socketpair()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for each in (ours, self._wake, wake):
                    each.close()
                die_with_parent(theirs)
                return self._run_front(theirs)
            theirs.close()
            with ours:
                status, reason = self._watch(pid, ours)
            self._reap()
            if status >= 0 and status != FAILED:
                break
            cause = reason or cause_of(status, "it failed; the log has the stack" if status == FAILED else "")
            write_report(self._reports, "front", cause, status)
            pause = self._restarts.pause() if self._ready and not self._signals else None
            if pause is None:
                log.say(f"octavo: the server's front ended: {cause}" + self._why_no_more())
                status = 1
                break
            log.event("front_restart", logging.ERROR, in_seconds=pause)
            if not self._sleep(pause):
                status = 0
                break
        for number, handler in before.items():
            signal.signal(number, handler)
        return status

    def _run_front(self, control: socket.socket) -> int:
        try:
            return self._front(control)
        except (OctavoError, KeyboardInterrupt):
            raise
        except Exception:
            log.say(traceback.format_exc())
            return FAILED

    def _why_no_more(self) -> str:
        if self._signals:
            return ""
        return f"; it died {MAX_DEATHS} times in ten minutes" if self._ready else " before it was ready"

    def _watch(self, pid: int, sock: socket.socket) -> tuple[int, str]:
        """Until the front has ended: its status (negative: the signal), and why if we have ended it."""
        heard = closed = None
        reason, self._told = "", 0
        while True:
            if (status := _ended(pid)) is not None:
                return status, reason
            while self._told < self._signals:
                self._told += 1
                with contextlib.suppress(OSError):
                    sock.send(STOP)
            select.select([self._wake] if closed else [sock, self._wake], [], [], 1.0)
            self._drain_wake()
            now = time.monotonic()
            with contextlib.suppress(BlockingIOError, ConnectionError):
                said = b"" if closed else sock.recv(4096, socket.MSG_DONTWAIT)
                if said:
                    heard, self._ready = now, self._ready or READY in said
                else:
                    closed = closed or now  # it is ending, or lost
            if closed is not None and now - closed > self._watchdog:
                reason = reason or "it does not end"
            if closed is None and heard is not None and now - heard > self._watchdog:
                reason = reason or f"it made no progress for {self._watchdog:g} s"
            if reason:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Waits for what the front left behind, its engine above all, and kills what does not end."""
        deadline = time.monotonic() + ORPHAN_SECONDS
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                if time.monotonic() > deadline:
                    for orphan in _children():
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(orphan, signal.SIGKILL)
                time.sleep(0.01)

    def _sleep(self, seconds: float) -> bool:
        """False if a signal came meanwhile."""
        end = time.monotonic() + seconds
        while not self._signals and (left := end - time.monotonic()) > 0:
            select.select([self._wake], [], [], left)
            self._drain_wake()
        return not self._signals

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(4096)

    def _ends(self) -> list[signal.Signals]:
        """The signals that end us. `nohup` has the one of a closed terminal ignored, and is obeyed."""
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        return [signal.SIGTERM, signal.SIGINT, *([] if ignored else [signal.SIGHUP])]

    def _on_signal(self, number: int, frame: object) -> None:
        # A terminal that closes may say so twice, and some managers say it after SIGTERM: it never asks for haste.
        self._signals = max(self._signals, 1) if number == signal.SIGHUP else self._signals + 1


def _ended(pid: int) -> int | None:
    """Its status once it has ended; the negative number of the signal that ended it. Others that have are let go."""
    while True:
        found, status = os.waitpid(-1, os.WNOHANG)
        if found == pid:
            return os.waitstatus_to_exitcode(status)
        if found == 0:
            return None


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []

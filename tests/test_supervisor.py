"""The parent of the server, with fronts that do nothing but live and die."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.conftest import wait_for
from tests.server.test_end_to_end import children, is_running

PROGRAM = """
import os, signal, subprocess, sys, time
from pathlib import Path
from octavo.core import restarts
from octavo.core.child import ALIVE, READY, STOP
from octavo.core.errors import ConfigError
from octavo.supervisor import supervise

restarts.FIRST_PAUSE = 0.01
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests' own parent has it ignored
mode, folder = sys.argv[1], Path(sys.argv[2])

def front(control):
    if mode == "refuse":
        raise ConfigError("there is no such model")
    if mode == "early":
        os.kill(os.getpid(), 9)
    if mode == "wait":  # what a front leaves behind
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"], stderr=subprocess.DEVNULL)
    control.send(ALIVE + READY)
    (folder / f"front-{os.getpid()}").touch()
    if mode == "loop":
        raise RuntimeError("a fault")
    stops = 0
    while data := control.recv(16):
        stops += data.count(STOP)
        if stops == 2 or mode == "quick":
            return stops
    os._exit(3)

try:
    sys.exit(supervise(front, folder / "reports", 1.5 if mode == "frozen" else 60.0))
except ConfigError as error:
    sys.exit(f"octavo: {error}")
"""

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started = []

    def run(mode: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, mode, str(tmp_path)]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def fronts(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("front-")) for path in folder.glob("front-*")]


def test_a_front_that_is_killed_is_started_again(start: Start, tmp_path: Path):
    process = start("wait")
    wait_for(lambda: fronts(tmp_path), 60)
    (first,) = fronts(tmp_path)
    wait_for(lambda: children(first), 60)
    (orphan,) = children(first)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len(fronts(tmp_path)) == 2, 60)
    assert not is_running(first) and not is_running(orphan)  # nothing of the old front holds memory any more
    assert process.poll() is None
    (report,) = (tmp_path / "reports").iterdir()
    assert "killed by SIGKILL" in (report / "report.md").read_text()


def test_signals_are_handed_on_one_by_one(start: Start, tmp_path: Path):
    process = start("wait")
    wait_for(lambda: fronts(tmp_path), 60)
    process.send_signal(signal.SIGINT)
    (front,) = fronts(tmp_path)
    os.kill(front, signal.SIGINT)  # as a terminal does to the whole group
    os.kill(front, signal.SIGTERM)
    assert is_running(front)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 2


def test_a_terminal_that_closes_may_say_so_twice(start: Start, tmp_path: Path):
    process = start("wait")
    wait_for(lambda: fronts(tmp_path), 60)
    (front,) = fronts(tmp_path)
    os.kill(front, signal.SIGHUP)
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
    assert process.wait(60) == 2  # of which the front heard the first, and SIGTERM


def test_a_parent_that_died_first():
    """A child that was not yet able to ask to be killed with its parent ends once it can, whatever it was sent."""
    program = "import socket, sys; from octavo.core.child import die_with_parent; s = socket.socket(fileno=0);"
    program += "die_with_parent(s); print('alive')"
    for closed in (True, False):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall(b"what to do")
            if closed:
                ours.close()
            done = subprocess.run([sys.executable, "-c", program], stdin=theirs, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == ((1, "") if closed else (0, "alive\n"))


def test_nothing_outlives_the_supervisor(start: Start, tmp_path: Path):
    process = start("wait")
    wait_for(lambda: fronts(tmp_path), 60)
    (front,) = fronts(tmp_path)
    process.kill()
    wait_for(lambda: not is_running(front), 60)


def test_a_front_that_cannot_start_is_not_started_again(start: Start, tmp_path: Path):
    process = start("refuse")
    assert process.wait(60) == 1 and process.stderr is not None
    assert process.stderr.read() == "octavo: there is no such model\n"
    process = start("early")
    assert process.wait(60) == 1 and process.stderr is not None
    assert "killed by SIGKILL before it was ready" in process.stderr.read()
    assert fronts(tmp_path) == []


def test_a_front_that_dies_again_and_again(start: Start, tmp_path: Path):
    process = start("loop")
    assert process.wait(60) == 1 and process.stderr is not None
    said = process.stderr.read()
    assert "it died 5 times in ten minutes" in said and "RuntimeError: a fault" in said
    assert len(fronts(tmp_path)) == 5


def test_a_front_that_is_frozen(start: Start, tmp_path: Path):
    process = start("frozen")
    wait_for(lambda: len(fronts(tmp_path)) == 2, 60)  # it says nothing more after its first word
    assert process.poll() is None
    reports = list((tmp_path / "reports").glob("*/report.md"))
    assert "no progress for 1.5 s" in reports[0].read_text()

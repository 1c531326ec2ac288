"""Section G: each process of a server is killed, or frozen, under streams. What can go on goes on, all others end.

The short form has few streams and kills; the full one has two hundred, and freezes processes as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.subject import AUTH, CANARY, LEFT, SECONDS, Subject, family
from tests.server.conftest import wait_for
from tests.server.test_end_to_end import is_running, status

FORM = {"prompt": "Once", "max_tokens": 150, "temperature": 0, "stream": True, "guided_regex": "[a-z ]{100}"}
SAMPLED = {**CANARY, "temperature": 1.0}
KINDS = ("engine", "matcher", "checker", "renderer", "front")
BROKEN = "the connection broke"


def process(subject: Subject, kind: str) -> int:
    """Of this kind. Matchers and checkers run the same program, for different parents."""
    pids = family(subject.process.pid)
    if kind == "supervisor":
        return subject.process.pid
    front = next(pid for pid in pids if status(pid).get("PPid") == str(subject.process.pid))
    if kind == "front":
        return front
    engine = next(pid for pid, what in pids.items() if "octavo.engine.process" in what)
    parent = engine if kind == "matcher" else front
    wanted = {"engine": "octavo.engine.process", "renderer": "octavo.text.render_process"}
    runs = wanted.get(kind, "octavo.grammar.process")
    return next(pid for pid, what in pids.items() if runs in what and status(pid).get("PPid") == str(parent))


async def stream(client: httpx.AsyncClient, body: dict[str, Any], begun: list[int]) -> str:
    """The text of an answer, or how it failed."""
    text, done = "", False
    try:
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                return str(json.loads(await answer.aread())["error"]["code"])
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    data = json.loads(line.removeprefix("data: "))
                    if "error" in data:
                        return str(data["error"]["code"])
                    begun[0] += not text
                    text += data["choices"][0]["text"]
    except httpx.TransportError:
        return BROKEN
    return text if done else BROKEN


def under_streams(subject: Subject, bodies: list[dict[str, Any]], act: Callable[[], None]) -> list[str]:
    """What becomes of streams if this happens when a third of them have begun. Nobody waits for ever."""

    async def main() -> list[str]:
        limits, begun = httpx.Limits(max_connections=None), [0]
        async with httpx.AsyncClient(base_url=subject.url, headers=AUTH, limits=limits, timeout=300) as client:
            tasks = [asyncio.create_task(stream(client, body, begun)) for body in bodies]
            while 3 * begun[0] < len(bodies):
                await asyncio.sleep(0.005)
            await asyncio.to_thread(act)
            return await asyncio.wait_for(asyncio.gather(*tasks), 300)

    return asyncio.run(main())


def make(folder: Path) -> Subject:
    folder.mkdir()
    subject = Subject(folder, "--crash-dir", str(folder / "crashes"), "--watchdog-timeout", "10")
    subject.form = under_streams(subject, [FORM], lambda: None)[0]
    return subject


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    subject = make(tmp_path_factory.mktemp("killed") / "server")
    yield subject
    subject.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Subject]:
    subject = make(tmp_path / "server")
    yield subject
    with contextlib.suppress(ProcessLookupError):
        subject.process.send_signal(signal.SIGCONT)
    subject.close()


def check_streams(subject: Subject, kind: str, bodies: list[dict[str, Any]], found: list[str]) -> None:
    for body, text in zip(bodies, found, strict=True):
        if kind in ("front", "supervisor"):
            expected = {BROKEN, subject.reference} if body is CANARY else {BROKEN, text}
        elif body is CANARY:
            expected = {subject.reference}
        elif body is FORM:
            expected = {subject.form, *(["engine_unavailable"] if kind == "matcher" else [])}
        else:  # nobody knows how it would have gone on
            expected = {text} - {BROKEN}
        assert text in expected, (kind, body, text)


def strike(subject: Subject, kind: str, number: int, streams: int) -> None:
    """The case, and P0 after it, as far as it can hold: processes are others, and so is what they have open."""
    before, pid = subject.snapshot(), process(subject, kind)
    bodies = [(CANARY, FORM, CANARY, SAMPLED)[i % 4] for i in range(streams)]
    others: list[str] = []

    def act() -> None:
        os.kill(pid, number)
        if kind in ("checker", "renderer"):  # a grammar that nobody has seen needs the one, any chat the other
            form = {"prompt": "x", "max_tokens": 4, "guided_regex": f"[a-z]{{{number}}}"}
            chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
            asked = ("/v1/completions", form) if kind == "checker" else ("/v1/chat/completions", chat)
            answer = subject.post(*asked)
            others.append("" if answer.status_code == 200 else answer.json()["error"]["code"])

    found = under_streams(subject, bodies, act)
    check_streams(subject, kind, bodies, found)
    assert set(others) <= ({""} if number == signal.SIGKILL else {"", "server_overloaded"})
    if kind == "engine":
        assert "engine_unavailable" in found
    wait_for(lambda: subject.request("GET", "/readyz").status_code == 200, SECONDS)
    wait_for(lambda: not is_running(pid), SECONDS)
    assert under_streams(subject, [CANARY, FORM], lambda: None) == [subject.reference, subject.form]
    wait_for(lambda: not [name for name in LEFT if subject.state()[name]], SECONDS)
    after = subject.snapshot()
    assert after.files == before.files and len(after.segments) == len(before.segments)
    assert after.pids[0] == before.pids[0] or kind == "front"
    assert after.pids[1] == before.pids[1] or kind in ("front", "engine")
    subject.lines(before.log)


@pytest.mark.parametrize("kind", KINDS)
def test_G1_kill(killed: Subject, kind: str) -> None:
    strike(killed, kind, signal.SIGKILL, 12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_G1_kill_under_two_hundred_streams(own: Subject, kind: str) -> None:
    strike(own, kind, signal.SIGKILL, 200)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_G2_freeze_under_two_hundred_streams(own: Subject, kind: str) -> None:
    strike(own, kind, signal.SIGSTOP, 200)


@pytest.mark.slow
def test_G4_kill_the_supervisor(own: Subject) -> None:
    """Nothing outlives it, and the port is free."""
    pids = family(own.process.pid)
    bodies = [CANARY] * 200
    found = under_streams(own, bodies, own.process.kill)
    check_streams(own, "supervisor", bodies, found)
    own.process.wait()
    wait_for(lambda: not any(map(is_running, pids)), SECONDS)
    with pytest.raises(OSError):
        own.connect()


@pytest.mark.slow
def test_G2_freeze_the_supervisor(own: Subject) -> None:
    """It does nothing but wait: nobody notices."""
    before = own.snapshot()
    bodies = [(CANARY, FORM, CANARY, SAMPLED)[i % 4] for i in range(200)]
    found = under_streams(own, bodies, lambda: own.process.send_signal(signal.SIGSTOP))
    check_streams(own, "none", bodies, found)
    assert own.request("GET", "/readyz").status_code == 200
    own.process.send_signal(signal.SIGCONT)
    own.check(before)

"""Sections H and I: more than there is room for, clients that leave and clients that do not read."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.subject import AUTH, CANARIES, CANARY, SECONDS, Subject
from tests.faults.test_processes import under_streams
from tests.server.conftest import error_of, read_answer, wait_for


def abort_at_random(subject: Subject, count: int, seed: int) -> tuple[int, int]:
    """Requests of all kinds, 30 % of which leave: before, in or after their body, in the queue, in the answer."""
    rng, lock = random.Random(seed), threading.Lock()
    plans = iter([(i, rng.random(), rng.random()) for i in range(count)])
    done = [0, 0]

    def one(i: int, fate: float, when: float) -> None:
        body: dict[str, Any] = {
            "prompt": f"number {i % 50} " * (1 + i % 40),
            "max_tokens": 1 + i % 30,
            "ignore_eos": True,
        }
        body |= {"stream": True} if i % 2 else {}
        body |= {"n": 2, "seed": i} if i % 5 == 0 else {}
        body |= {"guided_regex": f"[a-z]{{{1 + i % 9}}}", "ignore_eos": False} if i % 7 == 0 else {}
        data = json.dumps(body).encode()
        head = subject.head("/v1/completions", b"Content-Length: %d" % len(data), b"Connection: close")
        with subject.connect() as sock:
            if fate < 0.1:
                sock.sendall((head + data)[: int(when * len(head + data))])
            elif fate < 0.3:
                sock.sendall(head + data)
                sock.settimeout(0.001 + when * 0.2)
                with contextlib.suppress(OSError):
                    sock.recv(100)
            else:
                sock.sendall(head + data)
                sock.settimeout(SECONDS)
                answer = b""
                while chunk := sock.recv(65536):
                    answer += chunk
                assert answer.startswith(b"HTTP/1.1 200") and b'"error"' not in answer, answer[-500:]
                done[0] += 1
                return
        done[1] += 1

    def run() -> None:
        while True:
            with lock:
                plan = next(plans, None)
            if plan is None:
                return
            one(*plan)

    threads = [threading.Thread(target=run) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done[0], done[1]


def test_H1_random_aborts(subject: Subject) -> None:
    complete, left = abort_at_random(subject, 150, 0)
    assert complete + left == 150 and left > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_H1_ten_thousand_random_aborts(subject: Subject, seed: int) -> None:
    complete, left = abort_at_random(subject, 10_000, seed)
    assert complete + left == 10_000 and left > 2_500


@pytest.mark.slow
def test_H1_random_aborts_of_the_preempted(tmp_path: Path) -> None:
    """A cache of four canaries: what runs has to make room, again and again."""
    subject = Subject(tmp_path, "--num-kv-blocks", "32")
    try:
        abort_at_random(subject, 200, 0)  # what grows at the beginning has grown
        before = subject.snapshot()
        with subject.canaries():
            assert sum(abort_at_random(subject, 2000, 4)) == 2000
        subject.check(before)
        preempted = re.search(r"^vllm:num_preemptions_total\S* (\d+)", subject.request("GET", "/metrics").text, re.M)
        assert preempted is not None and int(preempted[1]) > 100
    finally:
        assert subject.close() == 0


def test_H7_deadlines(subject: Subject) -> None:
    body = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "deadline_ms": 50}
    error_of(subject.post("/v1/completions", body), 504, "deadline_exceeded", "deadline_ms")


def silent(subject: Subject, count: int, tokens: int = 1900) -> list[socket.socket]:
    """Clients that ask for long streams and never read."""
    socks = []
    data = json.dumps(
        {"prompt": "x", "max_tokens": tokens, "ignore_eos": True, "stream": True, "logprobs": 20}
    ).encode()
    for _ in range(count):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", subject.port))
        sock.sendall(subject.head("/v1/completions", b"Content-Length: %d" % len(data)) + data)
        socks.append(sock)
    return socks


def test_I1_clients_that_do_not_read(subject: Subject) -> None:
    """Others are served meanwhile; when they leave, all is free."""
    socks = silent(subject, 8)
    try:
        wait_for(lambda: len(subject.state()["requests"]) >= 8, SECONDS)
        assert subject.post("/v1/completions", {"prompt": "x", "max_tokens": 8}).status_code == 200
    finally:
        for sock in socks:
            sock.close()


@pytest.mark.slow
def test_I1_a_stall_of_thirty_seconds(subject: Subject) -> None:
    socks = silent(subject, 200, 600)
    try:
        wait_for(lambda: len(subject.state()["requests"]) >= 200, SECONDS)
        wait_for(lambda: len(subject.state()["requests"]) <= CANARIES, 900)
    finally:
        for sock in socks:
            sock.close()


def test_I8_many_streams(subject: Subject) -> None:
    """Connections beyond the running ones wait their turn; idle ones cost nothing."""
    idle = [subject.connect() for _ in range(200)]
    try:
        texts: list[str] = []
        threads = [threading.Thread(target=lambda: texts.append(subject.stream())) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == [subject.reference] * 24
        idle[0].sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(idle[0]).startswith(b"HTTP/1.1 200")
    finally:
        for sock in idle:
            sock.close()


@pytest.mark.slow
def test_I8_a_thousand_streams(subject: Subject) -> None:
    """At once, on a connection each; the front may have the descriptors whatever the shell allows."""
    found = under_streams(subject, [{**CANARY, "max_tokens": 40}] * 900, lambda: None)
    assert set(found) == {found[0]} and subject.reference.startswith(found[0])


def test_B13_lengths(subject: Subject) -> None:
    room = 2048
    ids = [5] * room
    with httpx.Client(base_url=subject.url, headers={**AUTH, "Connection": "close"}, timeout=SECONDS) as client:
        most = client.get("/v1/models").json()["data"][0]["max_model_len"]
        assert most == room
        for length, status in ((most - 1, 200), (most, 400), (most + 1, 400)):
            answer = client.post("/v1/completions", json={"prompt": ids[:1] * length, "max_tokens": 1})
            assert answer.status_code == status, (length, answer.text)

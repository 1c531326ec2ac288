"""Replicas that are replaced one after the other under load, behind a balancer that looks at their readiness."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import httpx
import pytest

from octavo.core.config import EngineConfig
from octavo.server.config import ServerConfig
from tests.server.conftest import Running, wait_for
from tests.server.fake_engine import FakeLLM


class Balancer:
    """What nginx does: turns over the replicas that are ready; another one after 503 or a refused connection."""

    def __init__(self) -> None:
        self.replicas: list[Running] = []
        self._turns = itertools.count()

    def add(self) -> Running:
        # uvicorn's loggers and ours belong to the process: replicas say only what is an error.
        running = Running(FakeLLM(delay=0.002), ServerConfig(port=0, log_level="error"), EngineConfig())
        running.start()
        self.replicas.append(running)
        return running

    def ask(self, client: httpx.Client, body: dict[str, Any]) -> str:
        for _ in range(20):
            replica = self.replicas[next(self._turns) % len(self.replicas)]
            try:
                if client.get(f"{replica.url}/readyz").status_code != 200:
                    continue
                answer = client.post(f"{replica.url}/v1/completions", json=body)
            except httpx.ConnectError:
                continue
            if answer.status_code == 503 and answer.headers["retry-after"]:
                continue
            assert answer.status_code == 200, answer.text
            return answer.text
        raise AssertionError("nobody was ready")


def roll(rounds: int, per_second: float) -> tuple[int, list[Exception]]:
    """Replaces all replicas `rounds` times; how many were answered, and what failed."""
    balancer, stop = Balancer(), threading.Event()
    answered, errors = itertools.count(), []

    def client() -> None:
        with httpx.Client(timeout=60) as http:
            while not stop.is_set():
                begin = time.monotonic()
                for stream in (True, False):
                    try:
                        text = balancer.ask(http, {"prompt": "count", "max_tokens": 40, "stream": stream})
                        assert not stream or text.endswith("data: [DONE]\n\n")
                        next(answered)
                    except Exception as error:
                        errors.append(error)
                stop.wait(max(0.0, 2 * clients / per_second - (time.monotonic() - begin)))

    clients = 4
    for _ in range(3):
        balancer.add()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3 * rounds):
            balancer.add()
            old = balancer.replicas[0]
            old.signal()
            wait_for(lambda old=old: old.status is not None, 60)  # type: ignore[misc]
            assert old.status == 0 and old.llm is not None and not old.llm.aborted
            balancer.replicas.remove(old)
            time.sleep(0.1)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
        for replica in balancer.replicas:
            replica.stop()
    return next(answered), errors


def test_replicas_are_replaced_under_load() -> None:
    answered, errors = roll(1, 50)
    assert not errors and answered > 10, errors


@pytest.mark.slow
def test_replicas_are_replaced_again_and_again() -> None:
    answered, errors = roll(40, 50)
    assert not errors and answered > 500, errors

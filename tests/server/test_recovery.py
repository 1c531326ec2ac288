"""`octavo serve` with a real engine, whose processes are killed: what clients, probes and the machine see."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.builders import CHAT_TEMPLATE, make_model
from tests.server.conftest import wait_for
from tests.server.test_end_to_end import MESSAGES, Served, children, is_running

TEMPLATE = "{% for tool in tools or [] %}<tool_call>{{ tool | tojson }}{% endfor %}" + CHAT_TEMPLATE
TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}},
}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "minItems": 40}}}
FIELDS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 0, "ignore_eos": True},
    "several": {"n": 3, "seed": 4, "ignore_eos": True},
    "logprobs": {"temperature": 0, "logprobs": True, "top_logprobs": 3, "ignore_eos": True},
    "form": {"temperature": 0, "response_format": FORM},
    "tools": {"temperature": 0, "tools": [TOOL], "tool_choice": "required", "max_tokens": 250},
    "stops": {"temperature": 0, "stop": ["zzzz", "qqq"], "ignore_eos": True},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = make_model(tmp_path_factory.mktemp("model"))
    (model / "chat_template.jinja").write_text(TEMPLATE)
    running = Served(model)
    yield running
    running.process.send_signal(signal.SIGTERM)
    try:
        assert running.process.wait(60) == 0
    finally:
        running.process.kill()
        running.process.wait()


async def chat(http: httpx.AsyncClient, fields: dict[str, Any], begun: list[str] | None = None) -> Any:
    """What a stream tells, choice by choice, usage at -1 and comments at -2; the error if it ends with one."""
    body = {
        "messages": MESSAGES,
        "max_tokens": 380,
        "stream": True,
        **fields,
        "stream_options": {"include_usage": True},
    }
    text: dict[int, Any] = {}
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith(":"):
                text[-2] = [*text.get(-2, []), line]
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                return event["error"]["code"]
            if event.get("usage"):
                text[-1] = (event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"])
            for choice in event["choices"]:
                if begun is not None:
                    begun.append(choice["delta"].get("content") or "")
                known = text.setdefault(choice["index"], ["", "", [], None])
                known[0] += choice["delta"].get("content") or ""
                for call in choice["delta"].get("tool_calls") or ():
                    known[1] += (call["function"].get("name") or "") + call["function"]["arguments"]
                known[2] += [row["token"] for row in (choice.get("logprobs") or {}).get("content") or ()]
                known[3] = choice["finish_reason"] or known[3]
    return text


def together(served: Served, jobs: list[dict[str, Any]], disturb: Any = None) -> list[Any]:
    """The answers to all at once; `disturb` is called when they are under way."""

    async def main() -> list[Any]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=served.url, limits=limits, timeout=120) as http:
            begun: list[list[str]] = [[] for _ in jobs]
            tasks = [asyncio.create_task(chat(http, job, said)) for job, said in zip(jobs, begun, strict=True)]
            if disturb is not None:
                while not all(len(said) > 3 or task.done() for said, task in zip(begun, tasks, strict=True)):
                    await asyncio.sleep(0.005)
                assert not all(task.done() for task in tasks)
                await asyncio.to_thread(disturb)
            return await asyncio.gather(*tasks)

    return asyncio.run(main())


def test_streams_go_on_when_the_engine_is_killed(served: Served) -> None:
    """Word for word as if nothing had happened, with calls, forms and logprobs; who cannot go on hears of it."""
    names = list(FIELDS)
    expected = dict(zip(names, together(served, [FIELDS[name] for name in names]), strict=True))
    pid = served.engine()

    def kill() -> None:
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: served.http.get("/readyz").status_code == 503, 60)
        assert served.http.get("/livez").status_code == 200
        refused = served.http.post("/v1/completions", json={"prompt": "x"})
        assert refused.json()["error"]["code"] == "engine_unavailable" and refused.headers["retry-after"]

    jobs = [FIELDS[names[i % len(names)]] for i in range(24)]
    sampled = {"temperature": 1.0, "ignore_eos": True}
    *found, lost = together(served, [*jobs, sampled], kill)
    assert lost == "engine_unavailable"
    comments = [answer.pop(-2, None) for answer in found]
    assert any(comments) and all(each in (None, [": engine restarting"]) for each in comments)
    for i, answer in enumerate(found):
        assert answer == expected[names[i % len(names)]], names[i % len(names)]
    assert not is_running(pid) and served.engine() != pid


def test_a_front_that_is_killed_takes_its_engine_along_and_comes_back(served: Served) -> None:
    front, engine = served.front(), served.engine()
    os.kill(front, signal.SIGKILL)
    wait_for(lambda: not is_running(engine), 60)
    wait_for(lambda: served.http.get("/readyz").status_code == 200, 60)
    assert served.process.poll() is None and served.front() != front
    answer = served.client.completions.create(model=served.model, prompt="The quick", max_tokens=3)
    assert answer.choices[0].text


def is_free(port: int) -> bool:
    with socket.socket() as sock, contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        return True
    return False


def test_nothing_outlives_the_supervisor(tmp_path: Path) -> None:
    served = Served(make_model(tmp_path))
    family = [served.front(), served.engine()]
    served.process.kill()
    served.process.wait()
    wait_for(lambda: not any(map(is_running, family)), 60)
    wait_for(lambda: is_free(int(served.url.rpartition(":")[2])), 60)  # threads may end after their process's first
    assert not children(served.process.pid)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "octavo.cli.main", "serve", str(tmp_path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("octavo: ") and "config.json" in done.stderr


@pytest.mark.slow
def test_two_hundred_streams_and_a_killed_engine(served: Served) -> None:
    job = {**FIELDS["plain"], "max_tokens": 120}
    expected = together(served, [job])
    found = together(served, [job] * 200, lambda: os.kill(served.engine(), signal.SIGKILL))
    for answer in found:
        answer.pop(-2, None)
    assert found == expected * 200


def test_an_engine_that_dies_during_a_drain(served: Served) -> None:
    """What runs is finished all the same. The last test: it ends the server that the others share."""

    def disturb() -> None:
        served.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "server_draining" in served.http.get("/readyz").text, 60)
        os.kill(served.engine(), signal.SIGKILL)
        refused = served.http.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503 and refused.headers["retry-after"]

    answers = together(served, [FIELDS["plain"]] * 4, disturb)
    for answer in answers:
        answer.pop(-2, None)
    assert all(answer[-1][1] == 380 for answer in answers) and answers == answers[:1] * 4
    assert served.process.wait(60) == 0

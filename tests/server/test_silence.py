"""Comments in streams that wait: who gets them, and that clients do not see them."""

from __future__ import annotations

import json

import httpx
import pytest

from octavo.server import silence
from tests.server.conftest import Running, StartServer, error_of, wait_for
from tests.server.fake_engine import FakeLLM

KEEP_ALIVE = ": keep-alive"


@pytest.fixture
def slow(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> Running:
    """Each token takes longer than a stream may be silent."""
    monkeypatch.setattr(silence, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(silence, "LOOK_SECONDS", 0.02)
    return start_server(FakeLLM(delay=0.4))


def lines(server: Running, path: str, body: object) -> list[str]:
    answer = server.post(path, body)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    return answer.text.splitlines()


def test_a_silent_stream_is_kept_alive(slow: Running) -> None:
    found = lines(slow, "/v1/completions", {"prompt": "say:abc", "stream": True})
    assert found[0] == KEEP_ALIVE  # before the first token
    assert KEEP_ALIVE in found[found.index(next(line for line in found if line.startswith("data: "))) :]
    assert found[-2:] == ["data: [DONE]", ""]
    data = [json.loads(line[6:]) for line in found if line.startswith("data: {")]
    assert "".join(each["choices"][0]["text"] for each in data) == "abc"
    message = {"model": "fake", "max_tokens": 9, "messages": [{"role": "user", "content": "say:hi"}], "stream": True}
    assert KEEP_ALIVE in lines(slow, "/v1/messages", message)


def test_clients_do_not_see_comments(slow: Running) -> None:
    stream = slow.client().chat.completions.create(
        model="fake", messages=[{"role": "user", "content": "say:abc"}], stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "abc"


def test_an_answer_that_is_not_streamed_has_none(slow: Running) -> None:
    assert slow.complete("say:ab").json()["choices"][0]["text"] == "ab"
    error_of(slow.complete("say:ab", stream=True, max_tokens=-1), 400, "invalid_value", "max_tokens")


def test_an_error_after_a_comment_is_an_event(slow: Running) -> None:
    assert slow.llm is not None
    slow.llm.delay = 60.0
    body = {"prompt": "say:abc", "stream": True}
    with httpx.stream("POST", f"{slow.url}/v1/completions", json=body, timeout=20) as response:
        found = response.iter_lines()
        assert next(found) == KEEP_ALIVE
        slow.call(slow.llm.crash)
        rest = [line for line in found if line.startswith("data: ")]
    assert [json.loads(line[6:])["error"]["code"] for line in rest] == ["engine_unavailable"]
    slow.llm.revive()
    wait_for(lambda: slow.get("/readyz").status_code == 200)


def test_a_death_is_told_once_to_streams_that_have_begun(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.05))
    body = {"prompt": "count", "stream": True, "max_tokens": 4000}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        found = response.iter_lines()
        assert next(found).startswith("data: ")
        server.call(server.serving.app.silence.restarting)
        assert all(line.startswith("data: ") or not line for line in iter(found.__next__, ": engine restarting"))
        assert not any(next(found).startswith(":") for _ in range(6))

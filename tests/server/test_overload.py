"""More than can be served: refused early, with the time to come back; one key's crowd does not shut out the others."""

from __future__ import annotations

import threading
from typing import Any

import openai
import pytest

from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.server.config import ServerConfig
from tests.server.conftest import StartServer, error_of, wait_for
from tests.server.fake_engine import FakeLLM


def test_a_full_queue_is_told_before_the_body_is_read(start_server: StartServer) -> None:
    server = start_server(FakeLLM(most=0))
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        answer = server.raw(head.encode())  # the body never comes
        assert answer.startswith(b"HTTP/1.1 503") and b"\r\nretry-after: 1\r\n" in answer
    assert server.post("/tokenize", {"prompt": "x"}).status_code == 200  # that takes no place
    assert 'admission_rejections_total{model_name="fake",reason="server_overloaded"} 4' in server.get("/metrics").text


def test_retry_after_is_computed(start_server: StartServer) -> None:
    server = start_server(FakeLLM(most=0))
    assert server.llm is not None
    for waiting, pace, seconds in ((0, 1.0, 1), (40, 0.5, 10), (10_000, 1.0, 120)):
        server.llm.stats.waiting = waiting
        server.serving.app.metrics.pace = pace
        response = server.complete()
        error_of(response, 503, "server_overloaded")
        assert response.headers["retry-after"] == str(seconds)


def test_requests_of_one_key(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.01), api_key=("a", "b"), max_requests_per_key=2)
    a, b = ({"Authorization": f"Bearer {key}"} for key in "ab")
    threads = [
        threading.Thread(target=server.complete, args=("count",), kwargs={"max_tokens": 200, "headers": a})
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(server.serving.app.live) == 2)
    response = server.complete(headers=a)
    error = error_of(response, 429, "rate_limit_exceeded")
    assert error["type"] == "rate_limit_error" and response.headers["retry-after"] == "1"
    with pytest.raises(openai.RateLimitError):
        server.client(api_key="a").completions.create(model="fake", prompt="x")
    assert server.complete("say:x", headers=b).status_code == 200
    for thread in threads:
        thread.join()
    assert server.complete("say:x", headers=a).status_code == 200
    assert not +server.serving.app.of_key


def test_the_engine_hears_whose_request_it_is(start_server: StartServer) -> None:
    seen: list[Any] = []

    class Listening(FakeLLM):
        def generate(self, *args: Any, **options: Any) -> Any:
            seen.append((options["tenant"], options["queue_seconds"], options["priority"]))
            return super().generate(*args, **options)

    engine = EngineConfig(scheduling_policy="fair")
    server = start_server(Listening(), engine=engine, api_key=("a", "b"), max_queue_seconds=5.0)
    server.complete(headers={"Authorization": "Bearer b"}, priority=-3)
    assert seen == [("2", 5.0, -3)]
    plain = start_server(Listening())
    plain.complete()
    assert seen[1:] == [("", None, 0)]


@pytest.mark.parametrize("name", ["max_requests_per_key", "max_queue_seconds"])
def test_bad_limits(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        ServerConfig(**{name: -1})  # type: ignore[arg-type]

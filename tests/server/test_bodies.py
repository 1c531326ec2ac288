"""What bodies take: memory, which is bounded, and time, in which others are served."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from octavo.core.errors import BodiesTooLarge
from octavo.server import fields
from octavo.server.bodies import FREE_BYTES, Bodies
from tests.server.conftest import StartServer, error_of, read_answer, wait_for


def test_the_room_is_that_of_all_bodies() -> None:
    bodies = Bodies(most=1000)
    with bodies.room() as first, bodies.room() as second:
        first(FREE_BYTES + 400)
        first(FREE_BYTES + 900)
        second(FREE_BYTES)
        assert bodies.held == 900
        with pytest.raises(BodiesTooLarge):
            second(FREE_BYTES + 101)
        second(FREE_BYTES + 100)
        assert bodies.held == 1000
        first(0)  # it was too long in itself, and is read to its end only
        assert bodies.held == 100
    assert bodies.held == 0


def test_bodies_on_their_way_are_bounded(start_server: StartServer) -> None:
    """Who sends a large body slowly keeps out other large ones, not small ones; and only for as long as it stays."""
    server = start_server()
    server.serving.app.bodies.most = 1_000_000
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n"
    with server.connect() as slow:
        slow.sendall(head + b'{"prompt": "' + b"x" * 800_000)
        wait_for(lambda: server.serving.app.bodies.held > 700_000)
        with server.connect() as second:
            second.sendall(head + b'{"prompt": "' + b"x" * 800_000)
            answer = read_answer(second)
        assert answer.startswith(b"HTTP/1.1 503") and b'"server_overloaded"' in answer
        assert b"retry-after: " in answer.lower() and b"connection: close" in answer.lower()
        assert server.complete().status_code == 200
    wait_for(lambda: server.serving.app.bodies.held == 0)
    assert server.complete("x" * 800_000).status_code == 400
    assert server.serving.app.bodies.held == 0


def test_long_bodies_are_read_beside_the_event_loop(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    decode = fields.decode

    def watched(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return decode(*args)

    monkeypatch.setattr(fields, "decode", watched)
    message = [{"role": "user", "content": "say:x"}]
    for path, body in (
        ("/v1/completions", {"prompt": "say:x"}),
        ("/v1/chat/completions", {"messages": message}),
        ("/v1/responses", {"input": "say:x"}),
        ("/v1/messages", {"messages": message, "max_tokens": 5}),
        ("/v1/messages/count_tokens", {"messages": message}),
        ("/tokenize", {"prompt": "say:x"}),
        ("/detokenize", {"tokens": [1]}),
    ):
        for more, works in (({}, False), ({"unknown": [0] * 100_000}, True)):
            threads.clear()
            assert server.post(path, {**body, **more}).status_code == 200
            assert [name.startswith("work") for name in threads] == [works], path


def test_more_messages_than_tokens(server: Any) -> None:
    """To render a hundred thousand of them takes seconds, and cannot succeed."""
    many = [{"role": "user", "content": ""}] * 5000
    answer = server.post("/v1/chat/completions", {"messages": many})
    error_of(answer, 400, "context_length_exceeded", "messages")
    error_of(server.post("/v1/responses", {"input": many}), 400, "context_length_exceeded", "input")

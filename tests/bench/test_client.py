"""The client against bytes on a socket: how streams may look, and how they fail."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from octavo.bench.client import Outcome, Target, send
from octavo.core.errors import ConfigError

Script = list[bytes | float]  # what is sent, and pauses in seconds


def ask(script: Script, timeout: float = 20.0) -> tuple[Outcome, bytes]:
    """(what came of it, the request)."""
    seen = b""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen = await reader.readuntil(b"\r\n\r\n")
        seen += await reader.readexactly(2)
        for item in script:
            if isinstance(item, float):
                await asyncio.sleep(item)
            else:
                writer.write(item)
                await asyncio.sleep(0)
        writer.close()

    async def run() -> Outcome:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        target = Target.parse(f"http://127.0.0.1:{port}/v1/completions", (("X-Of", "all"),))
        async with server:
            return await send(target, b"{}", 3, (("X-Request-Id", "r1"),), timeout)

    return asyncio.run(run()), seen


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value: Any, end: bytes = b"\n\n") -> bytes:
    return b"data: " + json.dumps(value).encode() + end


def text(word: str) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "text": word, "finish_reason": None}], "usage": None}


def chat(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 9, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}},
}


def test_a_stream() -> None:
    events = [event(text("a")), event(text("b")), event(text("")), event(USAGE), b"data: [DONE]\n\n"]
    script: Script = [HEAD]
    for one in events:
        script += [chunk(one), 0.01]
    outcome, request = ask([*script, END])
    assert outcome.success and outcome.text == "ab"
    assert (outcome.prompt_len, outcome.cached_len, outcome.output_len) == (9, 4, 7)
    assert 0 < outcome.ttft < outcome.latency and len(outcome.itls) == 2
    assert outcome.latency == pytest.approx(outcome.ttft + sum(outcome.itls))
    head = request.decode().split("\r\n")
    assert head[0] == "POST /v1/completions HTTP/1.1"
    assert {"X-Of: all", "X-Request-Id: r1", "Content-Length: 2", "Content-Type: application/json"} <= set(head)


def test_however_it_is_cut() -> None:
    body = (
        b": ping\n\n" + event(text("ä"), b"\r\n\r\n") + b"event: x\n" + event(text("b")) + b"data:" + event(USAGE)[6:]
    )
    for size in (1, 7, len(body)):
        pieces = [chunk(body[i : i + size]) for i in range(0, len(body), size)]
        outcome, _ = ask([HEAD, *pieces, END])
        assert (outcome.error, outcome.text, outcome.output_len, len(outcome.itls)) == ("", "äb", 7, 1)
    plain = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert ask([plain, body])[0].text == "äb"


def test_chats() -> None:
    events = [chat(role="assistant", content=""), chat(reasoning="hm"), chat(content="a"), chat(tool_calls=[{}])]
    outcome, _ = ask([HEAD, *(chunk(event(one)) for one in events), END])
    assert outcome.success and outcome.text == "hma"
    assert len(outcome.itls) == 2  # who speaks is no token
    assert outcome.output_len == 0  # the server did not say


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nlate"], "503: late"),
        ([HEAD, chunk(event(text("a")))], "the connection was closed before the answer was complete"),
        ([], "the connection was closed before the answer was complete"),
        ([HEAD, chunk(event(text("a"))), chunk(event({"error": {"message": "dead"}})), END], '{"message":"dead"}'),
        ([HEAD, chunk(b"data: [DONE]\n\n"), END], "the answer has no tokens"),
        ([HEAD, chunk(b'data: {"choices": 3}\n\n'), END], "not understood: Expected"),
        ([b"SSH-2.0-x\r\n\r\n"], "not understood"),
        ([HEAD, chunk(event(text("a"))), 30.0], "no whole answer after 0.2 s"),
    ],
)
def test_failures(script: Script, error: str) -> None:
    outcome, _ = ask(script, timeout=0.2)
    assert not outcome.success and error in outcome.error


def test_nobody_listens() -> None:
    outcome = asyncio.run(send(Target("127.0.0.1", 1, "/"), b"{}", 3))
    assert "cannot connect to 127.0.0.1:1" in outcome.error and outcome.prompt_len == 3


def test_urls() -> None:
    target = Target.parse("https://example.org/v1/completions", insecure=True)
    assert (target.host, target.port, target.path) == ("example.org", 443, "/v1/completions")
    assert target.tls is not None and not target.tls.check_hostname
    assert Target.parse("http://[::1]:8000").encode(b"").startswith(b"POST / HTTP/1.1\r\nHost: [::1]:8000\r\n")
    for url in ("example.org", "ftp://x", "http://", "http://x:port"):
        with pytest.raises(ConfigError, match="URL"):
            Target.parse(url)

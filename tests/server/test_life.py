"""Streams from their first byte to their last: clients that leave or do not read, engines that die, the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from octavo.core import restarts
from octavo.core.config import EngineConfig
from octavo.core.errors import EngineError
from octavo.core.outputs import RequestOutput
from octavo.server import serve, sockets, transport
from octavo.server.completions import CompletionAnswer
from octavo.server.config import ServerConfig
from tests.server.conftest import Running, StartServer, error_of, events, read_answer, wait_for
from tests.server.fake_engine import FakeLLM

COUNT = {"prompt": "count", "max_tokens": 4000, "stream": True}


def request(body: Any, path: str = "/v1/completions") -> bytes:
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


@contextmanager
def stream(server: Running, **fields: Any) -> Iterator[Iterator[str]]:
    """The lines of a streamed completion, of which one has been read."""
    with httpx.stream("POST", f"{server.url}/v1/completions", json={**COUNT, **fields}, timeout=20) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        yield lines


def live(server: Running) -> int:
    return int(server.call(lambda: len(server.serving.app.live)))


# -- a client leaves


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_ends_its_request(start_server: StartServer, streams: bool) -> None:
    server = start_server(FakeLLM(delay=0.005))
    assert server.llm is not None
    with server.connect() as sock:
        sock.sendall(request({**COUNT, "stream": streams, "n": 3}))
        wait_for(lambda: live(server) == 1)
        if streams:
            assert sock.recv(100)
    server.idle()
    assert len(server.llm.aborted) == 1
    assert 'finished_reason="abort"' in server.get("/metrics").text


def test_a_client_that_leaves_one_of_many_prompts(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.005))
    with server.connect() as sock:
        sock.sendall(request({**COUNT, "prompt": ["a", "b", "c"]}))
        assert sock.recv(100)
    server.idle()
    assert server.llm is not None and len(server.llm.aborted) == 3


def test_leaving_leaves_nothing_behind(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.002))

    def tasks() -> int:
        return int(server.call(lambda: len(asyncio.all_tasks())))

    before = tasks()
    socks = [server.connect() for _ in range(50)]
    for i, sock in enumerate(socks):
        sock.sendall(request({**COUNT, "n": 2, "stream": i % 2 == 0}))
    wait_for(lambda: live(server) == 50)
    for sock in socks:
        sock.close()
    server.idle()
    wait_for(lambda: tasks() <= before)


def test_the_others_go_on(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.002))
    with stream(server, max_tokens=300) as lines:
        for _ in range(10):
            with server.connect() as sock:
                sock.sendall(request(COUNT))
                assert sock.recv(100)
        assert list(lines)[-2:] == ["data: [DONE]", ""]


# -- a client does not read


def test_a_client_that_does_not_read_is_dropped(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "STALL_SECONDS", 0.3)
    server = start_server(FakeLLM(max_model_len=1_000_000))
    assert server.llm is not None
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(request({**COUNT, "max_tokens": 900_000, "return_token_ids": True}))
        wait_for(lambda: live(server) == 1)

        def held() -> list[int]:
            connections = server.serving.http.server_state.connections
            return [c.transport.get_write_buffer_size() for c in connections if c.flow.write_paused]

        wait_for(lambda: server.call(held))
        assert max(server.call(held)) < 256 * 1024
        assert server.chat().status_code == 200  # nobody else waits
        server.idle()
    assert len(server.llm.aborted) == 1


@pytest.mark.parametrize("fields", [{"prompt": "count"}, {"prompt": ["count"] * 3}, {"prompt": "count", "n": 3}])
def test_a_slow_reader_gets_everything(start_server: StartServer, fields: dict[str, Any]) -> None:
    """And in order, however often the connection's buffer was full between two pieces."""
    server = start_server(FakeLLM(max_model_len=20_000))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.port))
        sock.settimeout(10)
        asked = {**COUNT, **fields, "max_tokens": 2000}
        sock.sendall(request(asked).replace(b"Host", b"Connection: close\r\nHost"))
        time.sleep(0.3)
        data, chunks = b"", 0
        while chunk := sock.recv(65536):
            data, chunks = data + chunk, chunks + 1
            if chunks % 20 == 0:
                time.sleep(0.01)
    whole = server.complete(**{**fields, "max_tokens": 2000}).json()["choices"]
    lines = dechunked(data)
    assert data.endswith(b"0\r\n\r\n") and lines[-1] == "data: [DONE]"
    texts = [""] * len(whole)
    for line in lines[:-1]:
        choice = json.loads(line[6:])["choices"][0]
        texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole]


def dechunked(data: bytes) -> list[str]:
    """The events of a raw answer in chunked encoding."""
    rest, body = data.partition(b"\r\n\r\n")[2], b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if int(size, 16) == 0:
            return [line for line in body.decode().split("\n\n") if line]
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]


# -- many clients


def test_two_hundred_streams_at_once(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.005))

    async def one(client: openai.AsyncOpenAI, i: int) -> str:
        chunks = await client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": f"say:number {i} 👋"}], stream=True
        )
        return "".join([c.choices[0].delta.content or "" async for c in chunks])

    async def all_of_them() -> list[str]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=30) as http:
            client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", http_client=http, max_retries=0)
            return await asyncio.gather(*(one(client, i) for i in range(200)))

    assert asyncio.run(all_of_them()) == [f"number {i} 👋" for i in range(200)]
    server.idle()


def test_a_full_queue(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.01, most=2))
    with stream(server), stream(server):
        response = server.chat()
        error = error_of(response, 503, "server_overloaded")
        assert error["type"] == "server_error"
        assert int(response.headers["retry-after"]) >= 1
    server.idle()
    assert server.chat().status_code == 200
    assert 'vllm:admission_rejections_total{model_name="fake",reason="server_overloaded"} 1.0' in (
        server.get("/metrics").text
    )


# -- the engine dies


def test_a_dead_engine(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.005))
    assert server.llm is not None
    llm = server.llm
    whole: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: whole.append(server.complete("count", max_tokens=4000)))
    waiting.start()
    wait_for(lambda: live(server) == 1)
    with stream(server) as lines:
        server.call(llm.crash)
        rest = [line for line in lines if line]
        assert "[DONE]" not in rest[-1]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "engine_unavailable"
    waiting.join(5)
    error_of(whole[0], 503, "engine_unavailable")
    assert server.get("/livez").status_code == 200
    error_of(server.get("/readyz"), 503, "engine_unavailable")
    error_of(server.get("/health"), 503, "engine_unavailable")
    response = server.chat()
    error_of(response, 503, "engine_unavailable")
    assert response.headers["retry-after"]
    server.idle()
    server.call(llm.revive)
    wait_for(lambda: server.get("/readyz").status_code == 200)
    assert server.chat().status_code == 200
    assert "vllm:request_prompt_tokens_count" in server.get("/metrics").text


def test_an_engine_that_dies_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(restarts, "FIRST_PAUSE", 0.01)
    starts: list[float] = []

    class Mortal(FakeLLM):
        async def restart(self) -> None:
            starts.append(time.monotonic())
            if len(starts) == 3:
                raise EngineError("no memory")
            self.ready = True
            asyncio.get_running_loop().call_later(0.01, self.crash)

    async def start(engine: EngineConfig, server: ServerConfig) -> FakeLLM:
        llm = Mortal()
        await llm.restart()
        return llm

    serving = serve.Serving(EngineConfig(), ServerConfig(port=0, log_level="error"), start)
    with sockets.bind("127.0.0.1", 0) as sock, pytest.raises(EngineError, match="5 times in 10 minutes"):
        asyncio.run(serving.run(sock))
    assert len(starts) == 5
    pauses = [after - before for before, after in zip(starts, starts[1:], strict=False)]
    assert all(pause >= least for pause, least in zip(pauses, (0.0, 0.01, 0.02, 0.04), strict=True))


def test_the_openai_client_raises_when_a_stream_breaks(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.005))
    chunks = server.client().completions.create(model="fake", prompt="count", max_tokens=4000, stream=True)
    next(iter(chunks))
    assert server.llm is not None
    server.call(server.llm.crash)
    with pytest.raises(openai.APIError, match="engine stopped"):
        list(chunks)


def test_a_fault_in_mid_stream(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.01))
    assert server.llm is not None
    llm = server.llm

    def break_it() -> None:
        llm.broken = KeyError("secret")

    with stream(server) as lines:
        server.call(break_it)
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "internal_error"
    assert "secret" not in rest[-1]
    server.idle()


def test_a_fault_in_a_step_is_one_streams_own(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are written in the pass over a step, in which all streams have a part."""
    server = start_server(FakeLLM(delay=0.01))
    broken: list[CompletionAnswer] = []
    armed = threading.Event()
    write = CompletionAnswer.write

    def faulty(answer: CompletionAnswer, prompt: int, output: RequestOutput) -> bytes:
        if armed.is_set() and broken in ([], [answer]):
            broken[:] = [answer]
            raise KeyError("secret")
        return write(answer, prompt, output)

    monkeypatch.setattr(CompletionAnswer, "write", faulty)
    with stream(server, max_tokens=200) as ours, stream(server, max_tokens=200) as theirs:
        armed.set()
        ends = [[line for line in lines if line][-1].removeprefix("data: ") for lines in (ours, theirs)]
    assert "[DONE]" in ends
    (failed,) = (end for end in ends if end != "[DONE]")
    assert json.loads(failed)["error"]["code"] == "internal_error" and "secret" not in failed
    server.idle()


def test_a_connection_that_fails_is_one_streams_own(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start_server(FakeLLM(delay=0.01))
    broken: list[transport.Body] = []
    armed = threading.Event()
    write = transport.Body.write

    def faulty(body: transport.Body, chunk: bytes) -> None:
        if armed.is_set() and broken in ([], [body]):
            broken[:] = [body]
            raise RuntimeError("the handler is closed")
        write(body, chunk)

    monkeypatch.setattr(transport.Body, "write", faulty)
    ends = []
    with stream(server, max_tokens=200) as ours, stream(server, max_tokens=200) as theirs:
        armed.set()
        for lines in (ours, theirs):
            with contextlib.suppress(httpx.RemoteProtocolError):
                ends += [line for line in lines if line == "data: [DONE]"]
    assert broken and ends == ["data: [DONE]"]
    server.idle()


def test_while_the_model_loads(start_server: StartServer) -> None:
    server = start_server(loading=True)
    assert server.get("/livez").status_code == 200
    error_of(server.get("/readyz"), 503, "engine_unavailable")
    error_of(server.get("/v1/models"), 503, "engine_unavailable")
    response = server.post("/v1/completions", {"prompt": "x"})
    error_of(response, 503, "engine_unavailable")
    assert "http_requests_total" in server.get("/metrics").text
    server.llm = FakeLLM()
    wait_for(lambda: server.get("/readyz").status_code == 200)
    assert server.chat().status_code == 200


# -- the server stops


def test_drain(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.005))
    assert server.llm is not None
    texts: list[str] = []
    with stream(server, max_tokens=200) as lines, server.connect() as idle:
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(idle)
        queued = threading.Thread(target=lambda: texts.append(server.complete("say:end", n=1).text))
        server.signal()
        wait_for(lambda: server.get("/readyz").status_code == 503)
        error_of(server.get("/readyz"), 503, "server_draining")
        response = server.chat()  # the listener is open still
        error_of(response, 503, "server_draining")
        assert response.headers["retry-after"] and response.headers["connection"] == "close"
        assert server.get("/livez").status_code == 200
        queued.start()
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert server.join() == 0
    assert server.llm.aborted == []
    queued.join(5)
    with pytest.raises(OSError):
        server.connect()


def refuses(server: Running) -> bool:
    """The listener is closed."""
    with contextlib.suppress(OSError), server.connect():
        return False
    return True


def test_kept_connections_end_with_an_answer(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client sends on one just as the server stops is answered, so that it asks a replica, and not lost."""
    monkeypatch.setattr(transport, "LEAVE_SECONDS", 60.0)
    server = start_server()
    with server.connect() as kept:
        kept.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP/1.1 200" in read_answer(kept)
        server.signal()
        wait_for(lambda: refuses(server))
        kept.sendall(request({"prompt": "x"}))
        head, _, body = read_answer(kept).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503") and head.lower().count(b"connection: close") == 1
        assert b"server_draining" in body and kept.recv(1) == b""
        assert server.join() == 0


def test_a_drain_that_takes_too_long(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.01), shutdown_timeout=0.2)
    whole: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: whole.append(server.complete("count", max_tokens=4000)))
    waiting.start()
    wait_for(lambda: live(server) == 1)
    with stream(server) as lines:
        server.signal()
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "server_draining"
    waiting.join(5)
    error_of(whole[0], 503, "server_draining")
    assert server.join() == 0


def test_a_second_signal_ends_at_once(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.01))
    begin = time.monotonic()
    with stream(server) as lines:
        server.signal()
        server.signal()
        assert "[DONE]" not in "".join(lines)
    assert server.join() == 1
    assert time.monotonic() - begin < 10


def test_a_stop_while_the_model_loads(start_server: StartServer) -> None:
    server = start_server(loading=True)
    server.signal()
    assert server.join() == 0


def test_events_have_the_form_that_clients_read(server: Running) -> None:
    response = server.complete("say:hi", stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    found = events(response.text)
    assert found[-1] == "[DONE]"
    assert [e["choices"][0]["text"] for e in found[:-1]] == ["h", "i", ""]
    assert {e["object"] for e in found[:-1]} == {"text_completion"}
    # An error before the first byte is an ordinary answer.
    error_of(server.complete("say:hi", stream=True, temperature=-1), 400, "invalid_value", "temperature")
    error_of(server.complete("x" * 9000, stream=True), 400, "context_length_exceeded", "prompt")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "count", "stream": True}),
        ("/v1/responses", {"input": "count"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "count"}], "max_tokens": 4000, "stream": True}),
    ],
)
def test_a_client_of_another_dialect_that_leaves(start_server: StartServer, path: str, body: Any) -> None:
    server = start_server(FakeLLM(delay=0.005))
    assert server.llm is not None
    with server.connect() as sock:
        sock.sendall(request(body, path))
        wait_for(lambda: live(server) == 1)
        if "stream" in body:
            assert sock.recv(100)
    server.idle()
    assert len(server.llm.aborted) == 1
    assert len(server.serving.app.responses.store) == 0


def test_who_listens_to_a_background_response_may_leave(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.005))
    id = server.post("/v1/responses", {"input": "say:" + "x" * 60, "background": True, "stream": True}).text
    id = re.findall(r"resp_[0-9a-f]+", id)[0]
    assert server.get(f"/v1/responses/{id}").json()["status"] == "completed"
    with server.connect() as sock:
        sock.sendall(request({"input": "say:" + "y" * 100, "background": True, "stream": True}, "/v1/responses"))
        found = re.findall(rb"resp_[0-9a-f]+", sock.recv(4000))[0].decode()
    wait_for(lambda: server.get(f"/v1/responses/{found}").json()["status"] == "completed")
    assert server.llm is not None and server.llm.aborted == []
    server.idle()

"""A real uvicorn on a real socket in a thread, with the scripted engine behind it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
import uvloop

from octavo.core.config import EngineConfig
from octavo.server.config import ServerConfig
from octavo.server.pooling.routes import READING
from octavo.server.serve import Serving
from octavo.server.sockets import bind
from tests.server.fake_engine import FakeLLM
from tests.server.fake_pooler import FakePooler


@functools.cache
def _pool(port: int, verify: Any = True) -> httpx.Client:
    """One for each server: making a client loads the system's certificates, which takes longer than most tests."""
    return httpx.Client(timeout=20, verify=verify)


class Running:
    """A server that runs in a thread of the test's process; `call` runs a function in its event loop."""

    def __init__(
        self, llm: FakeLLM | None, server: ServerConfig, engine: EngineConfig, scheme: str = "http", verify: Any = True
    ) -> None:
        self.llm = llm
        self.sock = bind(server.host, server.port)
        self.port: int = self.sock.getsockname()[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.verify = verify
        self.status: int | None = None
        self.may_start = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(server, engine), daemon=True)

    def _run(self, server: ServerConfig, engine: EngineConfig) -> None:
        with self.sock, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            self.loop = runner.get_loop()
            self.serving = Serving(engine, server, self._start)
            self.serving.handle_signals = lambda: None  # type: ignore[method-assign]  # only a main thread can
            self.status = runner.run(self.serving.run(self.sock))

    async def _start(self, engine: EngineConfig, server: ServerConfig) -> Any:
        while self.llm is None or not self.llm.ready:
            await asyncio.sleep(0.01)
        return self.llm

    def start(self) -> None:
        self._thread.start()
        wait_for(lambda: self.get("/livez").status_code == 200)
        if self.llm is not None:
            wait_for(lambda: self.get("/readyz").status_code == 200)

    def call(self, function: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(5)

    def signal(self) -> None:
        self.call(self.serving.on_signal)

    def stop(self) -> None:
        if self.verify is not True:
            _pool(self.port, self.verify).close()  # a server waits for idle connections under TLS to say goodbye
        if self._thread.is_alive():
            self.signal()
            with contextlib.suppress(Exception):
                self.signal()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def join(self, seconds: float = 10) -> int | None:
        self._thread.join(seconds)
        return self.status

    def idle(self) -> None:
        """Waits until nothing of a request is left: in the application, in the engine, in the event loop."""
        assert self.llm is not None
        llm = self.llm

        def quiet() -> bool:
            return not (self.serving.app.live or llm.live or llm.reading or len(llm.outputs))

        wait_for(lambda: self.call(quiet))

    # -- clients

    def client(self, api_key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, http_client=_pool(self.port), timeout=20
        )

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return _pool(self.port, self.verify).post(self.url + path, content=content, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return _pool(self.port, self.verify).get(self.url + path, **options)

    def chat(self, say: str = "hello", **fields: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": f"say:{say}"}], **fields})

    def complete(self, prompt: Any = "say:hello", *, headers: Any = None, **fields: Any) -> httpx.Response:
        return self.post("/v1/completions", {"prompt": prompt, **fields}, headers=headers)

    def raw(self, data: bytes, seconds: float = 5.0) -> bytes:
        """Sends bytes, returns all that comes back until the server closes or is quiet."""
        with self.connect() as sock:
            sock.settimeout(seconds)
            with contextlib.suppress(OSError):
                sock.sendall(data)
            return read_answer(sock)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


def read_answer(sock: socket.socket) -> bytes:
    """One HTTP answer with a content-length, or all until the connection closes."""
    data = b""
    with contextlib.suppress(OSError):
        while chunk := sock.recv(65536):
            data += chunk
            head, found, body = data.partition(b"\r\n\r\n")
            for line in head.lower().split(b"\r\n"):
                if found and line.startswith(b"content-length:") and len(body) >= int(line.split(b":")[1]):
                    return data
    return data


def events(text: str) -> list[Any]:
    """The data of server-sent events; [DONE] stays a string."""
    assert text.endswith("\n\n")
    found = []
    for line in text.removesuffix("\n\n").split("\n\n"):
        assert line.startswith("data: "), line
        data = line.removeprefix("data: ")
        found.append(data if data == "[DONE]" else json.loads(data))
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.005)


def error_of(response: httpx.Response, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """Checks the one shape of errors, and that nothing of us leaks through it."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param), error
    for leak in ("Traceback", "0x7f", os.sep + "octavo", "msgspec", 'File "'):
        assert leak not in response.text
    return error


@contextlib.contextmanager
def own_log() -> Iterator[None]:
    """Puts the loggers back as they were: `log.setup` takes them away from pytest."""
    loggers = [logging.getLogger(name) for name in ("octavo", "uvicorn.error")]
    before = [(each, each.handlers[:], each.level, each.propagate) for each in loggers]
    yield
    for each, handlers, level, propagate in before:
        each.handlers[:], each.propagate = handlers, propagate
        each.setLevel(level)


StartServer = Callable[..., Running]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts servers that end with the test: start_server(llm, engine=EngineConfig(...), host=..., ...)."""
    started: list[Running] = []

    def start(llm: FakeLLM | None = None, *, engine: EngineConfig | None = None, loading: bool = False, **options: Any):
        client = {name: options.pop(name) for name in ("scheme", "verify") if name in options}
        config = ServerConfig(**{"port": 0, "log_level": "error", **options})
        running = Running(None if loading else llm or FakeLLM(), config, engine or EngineConfig(), **client)
        started.append(running)
        running.start()
        return running

    yield start
    for running in started:
        running.stop()


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """One server for the tests of a module that leave it as they find it."""
    running = Running(FakeLLM(), ServerConfig(port=0, log_level="error"), EngineConfig())
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def shared_reader() -> Iterator[Running]:
    """The same with an engine that reads and does not write."""
    running = Running(FakePooler(), ServerConfig(port=0, log_level="error"), EngineConfig())
    running.start()
    yield running
    running.stop()


@pytest.fixture
def able(path: str, request: pytest.FixtureRequest) -> Iterator[Running]:
    """The server that can answer `path`, of a test that has it as a parameter."""
    running = request.getfixturevalue("shared_reader" if path in READING else "shared")
    yield running
    running.idle()


@pytest.fixture
def server(shared: Running) -> Iterator[Running]:
    yield shared
    shared.idle()

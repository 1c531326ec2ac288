"""`octavo serve`: the socket, then HTTP, then the engine; and the way back down.

The port is taken first, so that a wrong one costs no model load. HTTP answers while the model loads, and while an
engine that died is started again, which goes on with the requests that it can (`--resume-requests`); the clients of
others get an error. SIGTERM or Ctrl-C drains (readiness is 503 at once, the listener stays open, running answers
finish); a second one ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import shlex
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
import uvicorn

from octavo.core import collector, guard, log
from octavo.core.child import ALIVE, READY, STOP
from octavo.core.config import EngineConfig
from octavo.core.crash import report_folder
from octavo.core.errors import ConfigError, Draining, EngineError, OctavoError
from octavo.core.restarts import DEATHS_SECONDS, MAX_DEATHS, Restarts
from octavo.server.admin import Admin, private_folder
from octavo.server.app import App
from octavo.server.config import ServerConfig
from octavo.server.engine import Engine
from octavo.server.sockets import bind_unix, listen
from octavo.server.transport import Connection
from octavo.version import VERSION

POLL_SECONDS = 0.25  # between two looks at whether the engine is alive
BEAT_SECONDS = 2.0  # between two signs of life for the supervisor
WORKERS = 4  # threads for what takes longer than the event loop may wait: long bodies, texts, files
DESCRIPTORS = 1 << 17  # each connection needs one
CLOSE_SECONDS = 5  # that connections have to send what is left, once every answer is complete
KEEP_ALIVE_SECONDS = 75  # longer than the pools of common clients keep an idle connection

R = TypeVar("R")
StartEngine = Callable[[EngineConfig, ServerConfig], Awaitable[Engine]]


def serve(engine: EngineConfig, server: ServerConfig, start: StartEngine | None = None) -> int:
    """Runs until a signal, in one process but for the engine; returns the exit status. OctavoError if it cannot start.

    `octavo serve` has a supervisor around this (`octavo.supervisor`).
    """
    with listen(server) as sock:
        return front(engine, server, sock, None, start)


def front(
    engine: EngineConfig,
    server: ServerConfig,
    sock: socket.socket,
    control: socket.socket | None,
    start: StartEngine | None = None,
) -> int:
    """Serves at a socket that is listening. `control` is the front's end of its supervisor's pair."""
    import uvloop

    log.setup(server.log_level, server.log_format)
    guard.install()
    allow_connections()
    check_tls(server)
    if server.admin_socket is not None:
        private_folder(server.admin_socket)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Serving(engine, server, start or start_engine, control).run(sock))


def allow_connections() -> None:
    """As many descriptors as we may have: shells and service managers give 1,024 to whoever does not ask."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, DESCRIPTORS)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def check_tls(server: ServerConfig) -> None:
    """A ConfigError now, and not when a model has been loaded."""
    if server.ssl_certfile is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(server.ssl_certfile, server.ssl_keyfile)
    except OSError as error:
        raise ConfigError(
            f"--ssl-certfile {server.ssl_certfile}, --ssl-keyfile {server.ssl_keyfile}: {error}"
        ) from None


async def start_engine(engine: EngineConfig, server: ServerConfig) -> Engine:
    from octavo.engine.async_llm import AsyncLLM
    from octavo.engine.recovery import Recovery

    recovery = Recovery(server.resume_requests, server.watchdog_timeout, report_folder(server.crash_dir))
    llm = await AsyncLLM.start(engine, log_level=server.log_level, log_format=server.log_format, recovery=recovery)
    collector.settle()
    llm.prepare()
    return llm


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: it would close the listener at the first signal."""

    @classmethod
    def of(cls, app: App | Admin, **options: str | None) -> Server:
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=CLOSE_SECONDS,
            **options,  # type: ignore[arg-type]
        )
        return cls(config)

    stopping = False  # nobody will serve at these sockets after us

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for sock in sockets or [] if self.stopping else []:
            with contextlib.suppress(OSError):  # a supervisor holds it too: clients would wait where nobody accepts
                sock.shutdown(socket.SHUT_RDWR)
        if self.force_exit:
            for connection in list(self.server_state.connections):
                assert isinstance(connection, Connection)
                connection.leave()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Serving:
    def __init__(
        self, engine: EngineConfig, server: ServerConfig, start: StartEngine, control: socket.socket | None = None
    ) -> None:
        self.engine = engine
        self.control = control
        self.server = server
        self.start = start
        self.app = App(server, engine)
        self.llm: Engine | None = None
        self.stop = asyncio.Event()
        self.kill = asyncio.Event()

    async def run(self, sock: socket.socket) -> int:
        # asyncio's own pool has up to 32 threads: the event loop would wait for each of them in turn.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(WORKERS, "work"))
        url = base_url(sock, self.server)
        log.say(f"Octavo {VERSION} at {url}: loading {self.engine.model or 'the demo model'}")
        operator = bind_unix(self.server.admin_socket) if self.server.admin_socket is not None else None
        self.handle_signals()
        tls = {"ssl_keyfile": self.server.ssl_keyfile, "ssl_certfile": self.server.ssl_certfile}
        self.http = Server.of(self.app, **tls)
        listening = asyncio.create_task(self.http.serve(sockets=[sock]))
        admin = asyncio.create_task(self._administer(operator)) if operator is not None else None
        keeping = asyncio.create_task(self._keep_engine(url))
        speaking = asyncio.create_task(self.app.silence.watch())
        try:
            await first(asyncio.shield(keeping), self.stop)
            if self.app.service is not None:
                seconds = self.server.shutdown_timeout
                log.say(f"Stopping: running requests have {seconds:g} s. Once more to stop at once.")
                await first(self._drain(keeping), self.kill)
                self.app.abort(Draining("The server was stopped."))
        finally:
            keeping.cancel()
            speaking.cancel()
            await asyncio.gather(keeping, speaking, return_exceptions=True)
            self.http.stopping = self.stop.is_set()
            self.http.should_exit = True
            self.http.force_exit = self.kill.is_set() or self.app.service is None
            await listening
            if admin is not None:
                admin.cancel()
                await asyncio.gather(admin, return_exceptions=True)
            await self.app.close()
            if self.llm is not None:
                await self.llm.shutdown()
        return 1 if self.kill.is_set() else 0

    async def _keep_engine(self, url: str) -> None:
        """Starts the engine, and again whenever it has died; EngineError when it dies too often.

        An engine that cannot be started at all is the user's to mend: that error is raised at once.
        """
        began = time.monotonic()
        self.llm = llm = await self.start(self.engine, self.server)
        await self.app.attach(llm).check_template()
        log.say(f"Ready in {time.monotonic() - began:.1f} s. Try:\n\n{curl(url, self.app)}\n")
        if self.control is not None:
            self.control.send(READY)
        restarts = Restarts()
        while True:
            while llm.alive:
                await asyncio.sleep(POLL_SECONDS)
            self.app.silence.restarting()
            while not llm.alive:
                pause = restarts.pause()
                if pause is None:
                    raise EngineError(f"the engine stopped {MAX_DEATHS} times in {DEATHS_SECONDS / 60:g} minutes")
                log.event("engine_restart", logging.ERROR, in_seconds=pause)
                await asyncio.sleep(pause)
                try:
                    await llm.restart()
                except OctavoError as error:
                    log.event("engine_start", logging.ERROR, reason=str(error))
            self.app.batches.resume()

    async def _drain(self, keeping: asyncio.Task[None]) -> None:
        """Until the running requests have ended; an engine that dies meanwhile is started again for them."""
        draining = asyncio.create_task(self.app.drain(self.server.shutdown_timeout))
        try:
            await asyncio.wait({draining, keeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not draining.done():
                self.app.abort(Draining("The server was stopped."))
            draining.cancel()

    async def _administer(self, sock: socket.socket) -> None:
        """Listens on the operator's socket until it is cancelled."""
        http = Server.of(Admin(self.app, self.stop.set))
        with sock:
            try:
                await http.serve(sockets=[sock])
            finally:
                Path(sock.getsockname()).unlink(missing_ok=True)
                http.force_exit = True
                await http.shutdown(sockets=[sock])

    def handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        if self.control is None:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.on_signal)
            return
        self.control.setblocking(False)
        loop.add_reader(self.control, self._on_control)
        self._beat(loop, self.control)

    def _on_control(self) -> None:
        assert self.control is not None
        said = self.control.recv(64)
        if not said:  # our parent is gone, and we with it
            os._exit(1)
        for _ in range(said.count(STOP)):
            self.on_signal()

    def _beat(self, loop: asyncio.AbstractEventLoop, control: socket.socket) -> None:
        """Tells the supervisor that the event loop turns."""
        with contextlib.suppress(OSError):
            control.send(ALIVE)
        loop.call_later(BEAT_SECONDS, self._beat, loop, control)

    def on_signal(self) -> None:
        if self.stop.is_set():
            self.kill.set()
        self.stop.set()


async def first(work: Awaitable[R], event: asyncio.Event) -> R | None:
    """The result of `work`; None, with the work cancelled, if the event comes before it."""
    task = asyncio.ensure_future(work)
    waiter = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, waiter):
            each.cancel()
        await asyncio.gather(task, waiter, return_exceptions=True)


def base_url(sock: socket.socket, server: ServerConfig) -> str:
    if server.uds is not None:
        return f"unix:{server.uds}"
    host, port = sock.getsockname()[:2]
    scheme = "http" if server.ssl_certfile is None else "https"
    return f"{scheme}://[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{scheme}://{host}:{port}"


def curl(url: str, app: App) -> str:
    """A request to copy. The key is not printed: it would end in a log."""
    assert app.service is not None
    body: dict[str, object] = {"model": app.service.names[0]}
    able = app.service.llm.info.supported_tasks
    if "embed" in able:
        path, body["input"] = "/v1/embeddings", "Once upon a time"
    elif "score" in able:
        path, body["query"], body["documents"] = (
            "/v1/rerank",
            "What is an octavo?",
            ["A sheet folded thrice.", "A fish."],
        )
    elif "generate" not in able:
        path, body["input"] = "/v1/classify" if "classify" in able else "/pooling", "Once upon a time"
    elif app.service.llm.tokenizer.chat_template:
        path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": "Hello! Who are you?"}]
    else:
        path, body["prompt"] = "/v1/completions", "Once upon a time"
    key = ' -H "Authorization: Bearer $OCTAVO_API_KEY"' if app.server.api_key else ""
    url = url.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
    if url.startswith("unix:"):
        url = f"--unix-socket {shlex.quote(url.removeprefix('unix:'))} http://localhost"
    data = shlex.quote(msgspec.json.encode(body).decode())
    return f"  curl {url}{path}{key} -H 'Content-Type: application/json' -d {data}"

"""The application: a table of routes, and around each request the key, the body, the error shape, the log, the metrics.

It is an ASGI application that can answer before there is an engine (`/livez` is 200 then, all work 503) and after a
stop was asked for (`drain`): running answers finish, new work is refused with Retry-After so that a balancer moves on.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

from octavo.core import log
from octavo.core.config import EngineConfig
from octavo.core.errors import (
    Draining,
    EngineError,
    EngineUnavailable,
    InternalError,
    MethodNotAllowed,
    Overloaded,
    QueueTimeout,
    RateLimited,
    RequestError,
    RouteNotFound,
    ServerError,
)
from octavo.server.auth import Keys
from octavo.server.batch.batches import Batches
from octavo.server.batch.files import Files, Folder
from octavo.server.batch.lines import Lines
from octavo.server.bodies import Bodies
from octavo.server.chat import chat_completions
from octavo.server.completions import completions
from octavo.server.config import ServerConfig
from octavo.server.engine import Engine
from octavo.server.http import (
    CLOSE,
    EVENTS,
    ClientGone,
    Dialect,
    Exchange,
    Receive,
    Response,
    Scope,
    Send,
    Stream,
    Work,
    json_response,
)
from octavo.server.messages.routes import Anthropic, count_tokens, messages, model_info, model_infos
from octavo.server.metrics import Metrics
from octavo.server.origins import Origins
from octavo.server.pages import STATE_PATH, pages, state
from octavo.server.pooling.routes import READING
from octavo.server.protocol import ModelList
from octavo.server.responses.routes import Responses
from octavo.server.responses.store import ResponseStore
from octavo.server.service import Service
from octavo.server.silence import Silence
from octavo.server.tokens import detokenize, tokenize, tokenizer_info
from octavo.server.tracing import Tracer
from octavo.version import VERSION

_HEADER_NAMES = re.compile(rb"[A-Za-z0-9, _-]{1,1000}")
MAX_HINTED = 64  # characters of a wrong path that are compared with ours
ABORT_SECONDS = 5.0  # to tell the clients of a drain that took too long

Call = Callable[[Exchange], Awaitable[Response | Stream]]
Info = Callable[[Exchange], Response]


@dataclass(frozen=True, slots=True)
class Route:
    """`work` has a body and needs the engine; `call` needs what we keep; `info` tells at once what we know.

    Only a `public` route is open without a key.
    """

    method: str
    path: str  # with at most one {name}, which becomes the exchange's `argument`
    work: Work | None = None
    call: Call | None = None
    info: Info | None = None
    queues: bool = False  # it makes the engine generate: refused at once when the queue is full
    public: bool = False  # a probe: it would fill the log, too
    quiet: bool = False  # asked again and again: the log has only its errors
    dialect: Dialect = field(default_factory=Dialect)

    def pattern(self) -> re.Pattern[str]:
        """What the path may be. The name of a model may hold slashes."""
        head, name, tail = re.split(r"\{(\w+)\}", self.path)
        return re.compile(re.escape(head) + ("(.+)" if name == "model" else "([^/]+)") + re.escape(tail))


class App:
    def __init__(self, server: ServerConfig, engine: EngineConfig) -> None:
        self.server = server
        self.engine = engine
        self.folder = Folder(server.data_dir)
        self.tracer = Tracer(server.otlp_traces_endpoint) if server.otlp_traces_endpoint else None
        self.origins = Origins(server)
        self.keys = Keys(server.api_key, self.folder.pepper())
        self.metrics = Metrics(server.compat)
        self.silence = Silence()
        self.bodies = Bodies()
        self.service: Service | None = None
        self.draining = False
        self.of_key: Counter[bytes] = Counter()  # requests that each key has now
        self.live: set[Exchange] = set()  # requests that the engine works for
        self.idle = asyncio.Event()
        self.idle.set()
        self.responses = Responses(
            ResponseStore(server.max_stored_responses, server.stored_response_seconds), self.busy
        )
        responses = self.responses
        self.files = files = Files(self.folder, server.max_data_bytes)
        work: dict[str, Work] = {
            "/v1/chat/completions": chat_completions,
            "/v1/completions": completions,
            "/v1/responses": responses.create,
            **READING,
        }
        lines = Lines(work, self.available, self.busy)
        self.batches = batches = Batches(files, lines, server.max_body_bytes)
        self.routes = (
            Route("POST", "/v1/chat/completions", work=chat_completions, queues=True),
            Route("POST", "/v1/completions", work=completions, queues=True),
            Route("POST", "/v1/responses", work=responses.create, queues=True),
            Route("GET", "/v1/responses/{response_id}", call=responses.get),
            Route("DELETE", "/v1/responses/{response_id}", call=responses.delete),
            Route("POST", "/v1/responses/{response_id}/cancel", call=responses.cancel),
            Route("GET", "/v1/responses/{response_id}/input_items", call=responses.input_items),
            Route("POST", "/v1/messages", work=messages, queues=True, dialect=Anthropic()),
            Route("POST", "/v1/messages/count_tokens", work=count_tokens, dialect=Anthropic()),
            *(Route("POST", path, work=each, queues=True) for path, each in READING.items()),
            Route("POST", "/v1/files", call=files.upload),
            Route("GET", "/v1/files", call=files.list),
            Route("GET", "/v1/files/{file_id}", call=files.get),
            Route("DELETE", "/v1/files/{file_id}", call=files.delete),
            Route("GET", "/v1/files/{file_id}/content", call=files.content),
            Route("POST", "/v1/batches", call=batches.create),
            Route("GET", "/v1/batches", call=batches.list),
            Route("GET", "/v1/batches/{batch_id}", call=batches.get),
            Route("POST", "/v1/batches/{batch_id}/cancel", call=batches.cancel),
            Route("GET", "/v1/models", info=self.models),
            Route("GET", "/v1/models/{model}", info=self.model),
            Route("POST", "/tokenize", work=tokenize),
            Route("POST", "/detokenize", work=detokenize),
            Route("GET", "/tokenizer_info", info=self.tokenizer_info),
            Route("GET", STATE_PATH, call=partial(state, self), quiet=True),
            Route("GET", "/livez", info=self.livez, public=True),
            Route("GET", "/readyz", info=self.readyz, public=True),
            Route("GET", "/health", info=self.readyz, public=True),
            Route("GET", "/metrics", info=self.render_metrics),
            Route("GET", "/version", info=self.version),
            Route("GET", "/openapi.json", info=self.openapi),
        )
        self._table: dict[str, dict[str, Route]] = {}
        static = [Route("GET", path, info=page, public=True) for path, page in pages()] if server.console else []
        for route in (*self.routes, *static):
            self._table.setdefault(route.path, {})[route.method] = route
        self._patterns = {route.path: route.pattern() for route in self.routes if "{" in route.path}

    def attach(self, llm: Engine) -> Service:
        """From here on there is an engine."""
        self.service = Service(llm, self.server, self.engine, self.metrics, self.keys)
        self.batches.resume()
        return self.service

    async def close(self) -> None:
        """After the last request: nothing goes on, and nothing is left that need not be."""
        await self.batches.close()
        self.folder.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)

    async def drain(self, seconds: float) -> None:
        """Refuses new work; returns when the running answers are complete, or were ended after `seconds`."""
        self.draining = True
        try:
            async with asyncio.timeout(seconds):
                await self.idle.wait()
        except TimeoutError:
            self.abort(Draining("The server stopped before the answer was complete."))
            try:
                async with asyncio.timeout(ABORT_SECONDS):
                    await self.idle.wait()
            except TimeoutError:
                log.event("drain", logging.WARNING, still_running=len(self.live))

    def abort(self, cause: RequestError) -> None:
        for exchange in list(self.live):
            exchange.interrupt(cause)

    # -- one request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        if self.draining:  # the next request belongs to a replica
            exchange.extra.append(CLOSE)
        route = self._match(exchange)
        if isinstance(route, Route):
            exchange.dialect = route.dialect
        error: RequestError | None = None
        try:
            if not await self._cross_origin(exchange, route):
                await self._serve(exchange, route)
        except ClientGone:
            pass
        except asyncio.CancelledError:
            if exchange.cause is None or exchange.task is None:
                raise
            exchange.task.uncancel()
            if isinstance(exchange.cause, RequestError):
                error = exchange.cause
        except RequestError as found:
            error = found
            if isinstance(found, Overloaded | QueueTimeout | RateLimited) and self.service is not None:
                found.retry_after = self.service.retry_after()
        except EngineError as found:
            log.event("engine_error", logging.ERROR, error=found, id=exchange.request_id)
            error = EngineUnavailable("The engine stopped; it is being restarted.")
        except Exception as found:
            log.event("internal_error", logging.ERROR, error=found, id=exchange.request_id)
            error = InternalError()
        if error is not None:
            await exchange.fail(error)
        self._record(exchange, route, error)

    async def _cross_origin(self, exchange: Exchange, route: Route | RequestError) -> bool:
        """Tells a browser whether a page of another origin may read the answer. True if that was all it asked."""
        origin = exchange.header(b"origin")
        if origin is None or not self.origins.allowed & {origin, b"*"}:
            return False
        exchange.extra += [
            (b"access-control-allow-origin", b"*" if b"*" in self.origins.allowed else origin),
            (b"access-control-expose-headers", b"x-request-id, x-octavo-ignored, request-id, retry-after"),
            (b"vary", b"origin"),
        ]
        if exchange.method != "OPTIONS" or exchange.header(b"access-control-request-method") is None:
            return False
        headers = exchange.header(b"access-control-request-headers") or b""
        asked = [(b"access-control-allow-methods", b"GET, POST, DELETE"), (b"access-control-max-age", b"600")]
        if _HEADER_NAMES.fullmatch(headers):
            asked.append((b"access-control-allow-headers", headers))
        await exchange.respond(Response(b"", headers=asked))
        return True

    async def _serve(self, exchange: Exchange, route: Route | RequestError) -> None:
        if isinstance(route, RequestError) or not route.public:
            self.origins.check(exchange.header(b"origin"), exchange.header(b"host"))
            exchange.key = self.keys.check(exchange.header(b"authorization"), exchange.header(b"x-api-key"))
        if isinstance(route, RequestError):  # which paths there are is not for strangers
            raise self._hint(exchange.path) if isinstance(route, RouteNotFound) else route
        if route.info is not None:
            await exchange.respond(route.info(exchange))
        elif route.call is not None:
            answer = await route.call(exchange)
            with exchange.watched():
                await self._answer(exchange, answer)
        elif route.work is not None:
            if exchange.header(b"x-data-parallel-rank") not in (None, b"0"):
                raise RequestError("There is one engine here: its rank is 0.", "x-data-parallel-rank")
            with self._admitted(exchange) if route.queues else nullcontext():
                await self._work(route.work, exchange)

    @contextmanager
    def _admitted(self, exchange: Exchange) -> Iterator[None]:
        """A place for a request to the engine, before its body is read; an error if there is none."""
        self.available().llm.check_room()
        most, key = self.server.max_requests_per_key, exchange.key
        if most and self.of_key[key] >= most:
            raise RateLimited(f"This key has {most} requests at a time; wait until one of them ends.")
        self.of_key[key] += 1
        try:
            yield
        finally:
            self.of_key[key] -= 1

    async def _work(self, work: Work, exchange: Exchange) -> None:
        self.available()
        with self.bodies.room() as grow:
            body = await exchange.body(self.server.max_body_bytes, grow)
            service = self.available()  # still, or again
            with self.busy(exchange), exchange.watched():
                await self._answer(exchange, await work(service, exchange, body))

    async def _answer(self, exchange: Exchange, answer: Response | Stream) -> None:
        if isinstance(answer, Response):
            await exchange.respond(answer)
        else:
            speaks = self.silence.kept(exchange) if answer.media_type == EVENTS else nullcontext()
            async with aclosing(answer.events):
                with speaks:
                    await exchange.stream(answer)

    @contextmanager
    def busy(self, exchange: Exchange) -> Iterator[None]:
        """While the engine works for this exchange: a drain waits for it, and may interrupt it."""
        self.live.add(exchange)
        self.idle.clear()
        try:
            yield
        finally:
            self.live.discard(exchange)
            if not self.live:
                self.idle.set()

    def available(self) -> Service:
        """The engine at work; an error if there is none, or no new work is taken."""
        if self.draining:
            raise Draining("The server is shutting down.")
        if self.service is None:
            raise EngineUnavailable("The model is being loaded.")
        if not self.service.llm.ready:
            dead = not self.service.llm.alive
            raise EngineUnavailable("The engine is being restarted." if dead else "The engine makes no progress.")
        return self.service

    def _match(self, exchange: Exchange) -> Route | RequestError:
        path = exchange.path.removeprefix(self.server.root_path)
        methods = self._table.get(path) if "{" not in path else None
        if methods is None:
            for name, pattern in self._patterns.items():
                if found := pattern.fullmatch(path):
                    methods, exchange.argument = self._table[name], found[1]
                    break
        if methods is None:
            return RouteNotFound("There is nothing at this path.")
        route = methods.get("GET" if exchange.method == "HEAD" else exchange.method)
        if route is None:
            return MethodNotAllowed(sorted(methods))
        return route

    def _hint(self, path: str) -> RouteNotFound:
        """Nothing is at the path; perhaps something is at one like it."""
        known = [name for name in self._table if name != "/" and not name.startswith("/console")]
        near = difflib.get_close_matches(path[:MAX_HINTED], known, n=1, cutoff=0.7)
        what = f"did you mean {near[0]}?" if near else "GET /openapi.json lists what there is."
        return RouteNotFound(f"There is nothing at this path; {what}")

    def _record(self, exchange: Exchange, route: Route | RequestError, error: RequestError | None) -> None:
        seconds = time.monotonic() - exchange.start
        status = exchange.status or 499  # nginx's number for a client that left before it was answered
        known = route if isinstance(route, Route) else None
        self.metrics.on_http(exchange.method, known.path if known else "unmatched", status, seconds)
        works = known is not None and known.info is None and not known.quiet
        if works and status in (429, 503) and error is not None:
            self.metrics.rejected[error.code] += 1
        if self.tracer is not None and known is not None and works:
            self.tracer.record(exchange, known.path, status, error)
        if known is not None and (known.public or (error is None and (not works or self.server.disable_log_requests))):
            return
        log.event(
            "request",
            logging.WARNING if isinstance(error, ServerError) else logging.INFO,
            id=exchange.request_id,
            method=exchange.method,
            path=known.path if known else exchange.path,
            status=status,
            ms=round(seconds * 1000, 1),
            code=error.code if error is not None else None,
            param=error.param if error is not None else None,
            gone=True if isinstance(exchange.cause, ClientGone) else None,
            **exchange.fields,
        )

    # -- what can be known of the server

    def livez(self, exchange: Exchange) -> Response:
        return json_response({"status": "alive"})

    def readyz(self, exchange: Exchange) -> Response:
        self.available()
        return json_response({"status": "ready"})

    def version(self, exchange: Exchange) -> Response:
        return json_response({"version": VERSION})

    def openapi(self, exchange: Exchange) -> Response:
        from octavo.server.openapi import document

        return json_response(document(self.server.root_path))

    def render_metrics(self, exchange: Exchange) -> Response:
        return Response(self.metrics.render(), media_type=b"text/plain; version=0.0.4; charset=utf-8")

    def models(self, exchange: Exchange) -> Response:
        cards = self._loaded().cards()
        return json_response(model_infos(cards) if _for_anthropic(exchange) else ModelList(cards))

    def model(self, exchange: Exchange) -> Response:
        for card in self._loaded().cards():
            if card.id == exchange.argument:
                return json_response(model_info(card) if _for_anthropic(exchange) else card)
        raise self._loaded().unknown_model()

    def tokenizer_info(self, exchange: Exchange) -> Response:
        return json_response(tokenizer_info(self._loaded()))

    def _loaded(self) -> Service:
        if self.service is None:
            raise EngineUnavailable("The model is being loaded.")
        return self.service


def _for_anthropic(exchange: Exchange) -> bool:
    """Two APIs have the path /v1/models; Anthropic's clients say which they mean."""
    return exchange.header(b"anthropic-version") is not None

"""HTTP as the routes see it: an `Exchange` comes in, a `Response` or a `Stream` goes out, errors are raised.

This is the whole web framework. The routes need a table, a body with limits, one error shape and server-sent
events; for a streamed token, a general framework's layers would cost more than everything else we do with it.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

import msgspec

from octavo.core.errors import (
    BodiesTooLarge,
    BodyTimeout,
    DeadlineExceeded,
    Draining,
    MethodNotAllowed,
    RequestError,
    RequestTooLarge,
    ServerError,
    UnsupportedEncoding,
)
from octavo.server.fields import named
from octavo.server.tracing import Answered

if TYPE_CHECKING:
    from octavo.server.service import Service

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

BODY_SECONDS = 30.0  # a body has this long, and a second more for every
BODY_BYTES_PER_SECOND = 16 * 1024
# A client that is still sending does not read an answer: this many times the limit is read and thrown away first.
DISCARD_FACTOR = 8
OUTLET = "octavo.outlet"  # the extension of ASGI by which the transport hands over an `Outlet`
BLANK = msgspec.Raw(b"\0")  # a byte that no JSON has
DONE = b"data: [DONE]\n\n"
EVENTS = b"text/event-stream; charset=utf-8"
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_SECONDS = re.compile(rb"[0-9]{1,7}(\.[0-9]{1,6})?")
CLOSE: Header = (b"connection", b"close")


@dataclass(slots=True)
class Response:
    body: bytes
    status: int = 200
    media_type: bytes = b"application/json"
    headers: list[Header] = field(default_factory=list)


@dataclass(slots=True)
class Stream:
    """Server-sent events. Nothing is sent before the first item, so an error until then is an ordinary answer.

    Where the first item takes so long that a comment comes before it (server/silence.py), the error is an event.
    """

    events: AsyncGenerator[bytes, None]
    end: bytes = DONE
    media_type: bytes = EVENTS


class Outlet(Protocol):
    """The body of an answer, for those who cannot wait as `Send` does."""

    def open(self) -> bool:
        """The body has begun, and its client reads."""
        ...

    def write(self, chunk: bytes) -> None: ...


class Dialect:
    """What differs between the APIs that routes speak, beside their bodies: OpenAI's shape of errors, or another's."""

    def headers(self, request_id: str) -> list[Header]:
        return []

    def body(self, error: RequestError, request_id: str) -> bytes:
        return error_body(error)

    def event(self, error: RequestError, request_id: str) -> bytes:
        """The last event of a stream that cannot go on; nothing follows it."""
        return event(error_body(error))


# A route's work: it has the service that stands for the engine, and the body.
Work = Callable[["Service", "Exchange", bytes], Awaitable[Response | Stream]]


class ClientGone(Exception):
    """The client closed the connection; nobody is there to answer."""


class Exchange:
    """One request and what becomes of it. Slots are filled in as it is served and read by the log and the metrics."""

    __slots__ = (
        "answered",
        "argument",
        "cause",
        "dialect",
        "extra",
        "fields",
        "headers",
        "ignored",
        "key",
        "method",
        "named",
        "outlet",
        "path",
        "query",
        "quiet_since",
        "receive",
        "request_id",
        "send",
        "start",
        "started",
        "status",
        "task",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: list[Header] = scope["headers"]
        self.query: dict[str, str] = _query(scope.get("query_string", b""))
        self.receive = receive
        self.send = send
        self.outlet: Outlet | None = scope.get("extensions", {}).get(OUTLET)
        self.start = time.monotonic()
        self.task = asyncio.current_task()
        given = self.header(b"x-request-id")
        self.named = given is not None and REQUEST_ID.fullmatch(given) is not None
        self.request_id = given.decode() if given and self.named else uuid.uuid4().hex
        self.dialect = Dialect()
        self.extra: list[Header] = []
        self.cause: Exception | None = None  # why the task was cancelled
        self.started = False  # the head of the answer is out
        self.status = 0
        self.quiet_since: float | None = None  # since when a stream waits for its next event
        self.argument = ""  # what the route's path leaves open
        self.key = b""  # the API key that opened the door
        self.ignored = ""  # names of the fields that were accepted and have no effect
        self.fields: dict[str, Any] = {}  # for the log line
        self.answered: list[Answered] = []  # for the trace

    @classmethod
    def detached(cls, key: bytes, request_id: str) -> Exchange:
        """One that no connection waits for: a line of a batch, an answer in the background."""
        scope = {"method": "POST", "path": "", "headers": [(b"x-request-id", request_id.encode())]}
        found = cls(scope, _nobody, _nobody)
        found.key = key
        return found

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)

    def ignore(self, names: list[str]) -> None:
        """These fields were accepted and have no effect: the header says so."""
        self.ignored = ",".join(filter(None, (self.ignored, named(names))))

    def take_id(self, given: str | None) -> None:
        """The id that the body gives, unless a header gave one."""
        if given is not None and not self.named:
            self.request_id = given

    def interrupt(self, cause: Exception) -> None:
        """Ends the request wherever it stands, as if `cause` had been raised there."""
        if self.cause is None and self.task is not None:
            self.cause = cause
            self.task.cancel()

    def timeout(self) -> float | None:
        """How many seconds the client gives us in a header, if it does."""
        given = self.header(b"x-request-timeout")
        if given is None:
            return None
        if not _SECONDS.fullmatch(given) or not float(given):
            raise RequestError("x-request-timeout must be a number of seconds above 0.", "x-request-timeout")
        return float(given)

    @contextmanager
    def limited(self, seconds: float | None) -> Iterator[None]:
        """Interrupts the request `seconds` after it came."""
        if seconds is None:
            yield
            return
        left = self.start + seconds - time.monotonic()
        error = DeadlineExceeded(f"The answer was not complete after {seconds:g} s.", "deadline_ms")
        timer = asyncio.get_running_loop().call_later(max(0.0, left), self.interrupt, error)
        try:
            yield
        finally:
            timer.cancel()

    def _check_encoding(self) -> None:
        if (self.header(b"content-encoding") or b"identity").lower() != b"identity":
            raise UnsupportedEncoding("Compressed bodies are not unpacked; send the body as it is.")

    async def body(self, limit: int, grow: Callable[[int], None] = lambda length: None) -> bytes:
        """The whole body: RequestTooLarge over the limit; a client slower than the floor is taken for gone.

        `grow` is told how long it has become, and may raise.
        """
        self._check_encoding()
        declared = self.header(b"content-length")
        size = int(declared) if declared else 0  # httptools has checked that it is a number
        refused = size > limit * DISCARD_FACTOR
        parts: list[bytes] = []
        received, more = 0, True
        try:
            async with asyncio.timeout(BODY_SECONDS) as deadline:
                begin = deadline.when() or 0.0
                while more and not refused:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    received += len(message["body"])
                    more = message["more_body"]
                    if received <= limit:
                        grow(received)
                        parts.append(message["body"])
                    else:
                        parts.clear()
                        grow(0)
                        refused = received > limit * DISCARD_FACTOR
                    if more:
                        deadline.reschedule(begin + received / BODY_BYTES_PER_SECOND)
        except TimeoutError:
            raise BodyTimeout("The body did not arrive in time.") from None
        if refused or received > limit:
            raise RequestTooLarge(f"The body may have {limit} bytes.")
        return b"".join(parts)

    async def upload(self, limit: int) -> AsyncGenerator[bytes, None]:
        """A body that is not kept in memory, piece by piece; RequestTooLarge as soon as it is over the limit."""
        self._check_encoding()
        received, more, begin = 0, True, time.monotonic()
        while more:
            left = begin + BODY_SECONDS + received / BODY_BYTES_PER_SECOND - time.monotonic()
            try:
                message = await asyncio.wait_for(self.receive(), max(0.0, left))
            except TimeoutError:
                raise BodyTimeout("The body did not arrive in time.") from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            received += len(message["body"])
            more = message["more_body"]
            if received > limit:
                raise RequestTooLarge(f"The body may have {limit} bytes.")
            yield message["body"]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Interrupts the request when its client leaves. Only after the body: both read from `receive`."""
        watcher = asyncio.get_running_loop().create_task(self._watch())
        try:
            yield
        finally:
            watcher.cancel()

    async def _watch(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.interrupt(ClientGone())

    async def respond(self, response: Response) -> None:
        body = response.body
        headers = [(b"content-length", str(len(body)).encode())]
        await self._start(response.status, response.media_type, headers + response.headers)
        await self.send({"type": "http.response.body", "body": body})

    async def stream(self, stream: Stream) -> None:
        self.quiet_since = time.monotonic()
        try:
            async for chunk in stream.events:
                self.quiet_since = None
                if not self.started:
                    await self._start_stream(stream.media_type)
                await self.send({"type": "http.response.body", "body": chunk, "more_body": True})
                self.quiet_since = time.monotonic()
        finally:
            self.quiet_since = None
        if not self.started:  # whoever takes up a stream at its end gets nothing more
            await self._start_stream(stream.media_type)
        await self.send({"type": "http.response.body", "body": stream.end})

    def ready(self) -> bool:
        """A stream waits for its next event, and its client reads: what is pushed now is sent, in its place."""
        return self.quiet_since is not None and self.started and self.outlet is not None and self.outlet.open()

    def push(self, chunk: bytes) -> None:
        """An event of a stream that is `ready`, without a wait and so without a task."""
        if self.outlet is None:
            raise RuntimeError("only what is ready can be pushed to")
        self.quiet_since = time.monotonic()
        self.outlet.write(chunk)

    async def comment(self, text: bytes) -> None:
        """A line of server-sent events that clients skip, if the stream waits for an event."""
        if self.quiet_since is None:
            return
        self.quiet_since = time.monotonic()
        if not self.started:
            await self._start_stream(EVENTS)
        await self.send({"type": "http.response.body", "body": text, "more_body": True})

    async def _start_stream(self, media_type: bytes) -> None:
        # A proxy that collected the answer would undo the streaming: x-accel-buffering tells nginx so.
        headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await self._start(200, media_type, headers)

    async def fail(self, error: RequestError) -> None:
        """The error as an answer, or as the last event of a stream, which then has no [DONE]."""
        if self.started:
            await self.send({"type": "http.response.body", "body": self.dialect.event(error, self.request_id)})
            return
        headers: list[Header] = []
        if isinstance(error, ServerError) and error.retry_after is not None:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if isinstance(error, (BodyTimeout, BodiesTooLarge, RequestTooLarge, UnsupportedEncoding, Draining)):
            headers += [] if CLOSE in self.extra else [CLOSE]  # the rest of the body is not wanted; or we are going
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", ", ".join(error.allowed).encode()))
        body = self.dialect.body(error, self.request_id)
        await self.respond(Response(body, error.status, headers=headers))

    async def _start(self, status: int, media_type: bytes, headers: list[Header]) -> None:
        headers += [(b"content-type", media_type), (b"x-request-id", self.request_id.encode())]
        headers += self.extra + self.dialect.headers(self.request_id)
        if self.ignored:
            headers.append((b"x-octavo-ignored", self.ignored.encode()))
        self.started = True
        self.status = status
        await self.send({"type": "http.response.start", "status": status, "headers": headers})


async def _nobody(*message: Message) -> Any:
    raise AssertionError("a detached exchange has no connection")


_encode = msgspec.json.Encoder().encode


def error_body(error: RequestError) -> bytes:
    """The one shape of every error, here and in OpenAI's API."""
    shape = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    try:
        return _encode({"error": shape})
    except UnicodeEncodeError:  # half a character that the client sent and the message quotes
        return _encode({"error": {**shape, "message": error.message.encode(errors="replace").decode()}})


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


class Form:
    """A server-sent event that differs from others in one text, the BLANK of `value`: the rest is encoded once."""

    def __init__(self, value: Any) -> None:
        self._head, blank, self._tail = event(_encode(value)).partition(BLANK)
        if not blank:
            raise ValueError("nothing is left to be filled in")

    def filled(self, text: str) -> bytes:
        return self._head + _encode(text) + self._tail


def named_event(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


def _query(text: bytes) -> dict[str, str]:
    """The parameters after the ?; of two with one name, the last."""
    try:
        found = parse_qs(text.decode(), keep_blank_values=True, max_num_fields=64, errors="replace")
    except ValueError:
        return {}
    return {name: values[-1] for name, values in found.items()}


def json_response(value: Any, status: int = 200) -> Response:
    return Response(_encode(value), status)

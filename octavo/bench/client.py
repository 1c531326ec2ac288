"""A light HTTP client for load tests: one request, one stream of events, the times at which its tokens came.

It is a protocol on the event loop and no library lies between, because the server must be the bottleneck: a chunk
costs it a C parser's call and the decoding of a few fields. Each request has a connection of its own, and its time
includes making it.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from octavo.core.errors import ConfigError

TIMEOUT = 6 * 3600.0  # of a whole answer, in seconds


@dataclass(slots=True)
class Outcome:
    """What came of a request. Times are seconds; `start` is of the monotonic clock."""

    prompt_len: int = 0
    cached_len: int = 0  # of the prompt, if the server says
    output_len: int = 0  # 0 if the server did not say
    start: float = 0.0
    ttft: float = 0.0  # 0 if no token came
    itls: list[float] = field(default_factory=list)  # between chunks
    latency: float = 0.0  # to the last token
    text: str = ""
    error: str = ""  # empty on success
    whole: bool = False  # the answer came in one piece, which is no text: embeddings

    @property
    def success(self) -> bool:
        return not self.error


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        return self.content or self.reasoning or self.reasoning_content or ""


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens: int | None = 0


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None  # whatever shape a server gives it


_EVENTS = msgspec.json.Decoder(_Event)


class _Exchange(asyncio.Protocol):
    """One request on one connection."""

    def __init__(self, request: bytes, outcome: Outcome, done: asyncio.Future[None]) -> None:
        self.request, self.outcome, self.done = request, outcome, done
        self.parser = httptools.HttpResponseParser(self)
        self.rest = b""  # of a line that has not come whole
        self.body = bytearray()  # of an answer that is not a stream
        self.texts: list[str] = []
        self.chunks = 0
        self.last = outcome.start
        self.transport: asyncio.Transport | None = None

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are of no class of asyncio
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:  # of the answer's head, or raised below
            self.end(f"the answer was not understood: {error.__context__ or error}")

    def connection_lost(self, error: Exception | None) -> None:
        self.end("the connection was closed before the answer was complete")

    # The answer, called by the parser

    def on_body(self, body: bytes) -> None:
        if self.outcome.whole or self.parser.get_status_code() != 200:
            self.body += body
            return
        now = time.perf_counter()
        *lines, self.rest = (self.rest + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and line[5:8].lstrip().startswith(b"{"):
                self.on_event(_EVENTS.decode(line[5:]), now)

    def on_event(self, event: _Event, now: float) -> None:
        if event.error is not None:
            self.end(msgspec.json.encode(event.error).decode())
        if event.usage is not None:
            self.outcome.output_len = event.usage.completion_tokens or 0
            self.outcome.prompt_len = event.usage.prompt_tokens or self.outcome.prompt_len
            if event.usage.prompt_tokens_details is not None:
                self.outcome.cached_len = event.usage.prompt_tokens_details.cached_tokens or 0
        if not event.choices:
            return
        first = event.choices[0]
        if first.delta is not None and first.delta.role and not first.delta.text:
            return  # says who will speak; no token
        if self.chunks == 0:
            self.outcome.ttft = now - self.outcome.start
        else:
            self.outcome.itls.append(now - self.last)
        self.chunks += 1
        self.last = now
        self.texts.append(first.text or (first.delta.text if first.delta is not None else ""))

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        if status == 200 and self.outcome.whole:
            self.last = time.perf_counter()
            self.chunks = 1
            self.outcome.ttft = self.last - self.outcome.start
            self.on_event(_EVENTS.decode(self.body), self.last)
        self.end("" if status == 200 else f"{status}: {self.body[:300].decode(errors='replace')}")

    def end(self, error: str) -> None:
        if self.done.done():
            return
        outcome = self.outcome
        outcome.error = error or ("" if self.chunks else "the answer has no tokens")
        outcome.latency = self.last - outcome.start
        outcome.text = "".join(self.texts)
        self.done.set_result(None)
        if self.transport is not None:
            self.transport.close()


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go."""

    host: str
    port: int
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    tls: ssl.SSLContext | None = None

    @classmethod
    def parse(cls, url: str, headers: tuple[tuple[str, str], ...] = (), insecure: bool = False) -> Target:
        """`insecure`: any certificate will do."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{url!r} is not a URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is not a URL that begins with http:// or https:// and a host")
        tls = None
        if parts.scheme == "https":
            tls = ssl.create_default_context()
            if insecure:
                tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        return cls(parts.hostname, port or (80 if tls is None else 443), parts.path or "/", headers, tls)

    def encode(self, body: bytes, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {host}:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in (*self.headers, *headers)),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def send(
    target: Target,
    body: bytes,
    prompt_len: int,
    headers: tuple[tuple[str, str], ...] = (),
    timeout: float = TIMEOUT,
    whole: bool = False,
) -> Outcome:
    """Sends a request and reads its answer to the end: a stream, or, `whole`, what is none.

    A failure is in the outcome, never raised.
    """
    outcome = Outcome(prompt_len=prompt_len, start=time.perf_counter(), whole=whole)
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    request = target.encode(body, headers)
    transport = None
    try:
        async with asyncio.timeout(timeout) as limit:
            transport, _ = await loop.create_connection(
                lambda: _Exchange(request, outcome, done), target.host, target.port, ssl=target.tls
            )
            await done
    except OSError as error:  # TimeoutError is one
        late = limit.expired()
        outcome.error = (
            f"no whole answer after {timeout:g} s"
            if late
            else f"cannot connect to {target.host}:{target.port}: {error}"
        )
    finally:
        if transport is not None:
            transport.close()
    return outcome

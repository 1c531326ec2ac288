"""A light HTTP client for load tests: one request, one stream of events, the times at which its tokens came.

It is a protocol on the event loop and no library lies between, because the server must be the bottleneck: a chunk
costs it a C parser's call and the decoding of a few fields.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass, field

import httptools
import msgspec


@dataclass(slots=True)
class Outcome:
    """What came of a request. Times are seconds; `start` is of the monotonic clock."""

    prompt_len: int = 0
    output_len: int = 0
    start: float = 0.0
    ttft: float = 0.0  # 0 if no token came
    itls: list[float] = field(default_factory=list)
    latency: float = 0.0
    text: str = ""
    error: str = ""  # empty on success

    @property
    def success(self) -> bool:
        return not self.error


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


class _Exchange(asyncio.Protocol):
    """One request on one connection."""

    def __init__(self, request: bytes, outcome: Outcome, done: asyncio.Future[None], keep_text: bool) -> None:
        self.request, self.outcome, self.done, self.keep_text = request, outcome, done, keep_text
        self.parser = httptools.HttpResponseParser(self)
        self.decoder = msgspec.json.Decoder(_Event)
        self.rest = b""  # of an event that has not come whole
        self.failure = b""  # body of an answer that is not a stream
        self.texts: list[str] = []
        self.chunks = 0
        self.last = 0.0
        self.usage: int | None = None
        self.transport: asyncio.Transport | None = None

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.outcome.start = self.last = time.perf_counter()
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, msgspec.DecodeError) as error:
            self.end(f"not understood: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self.end("the connection was closed before the answer was complete")

    # The answer, called by the parser

    def on_body(self, body: bytes) -> None:
        if self.parser.get_status_code() != 200:
            self.failure += body
            return
        now = time.perf_counter()
        *events, self.rest = (self.rest + body).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: {"):
                self.on_event(self.decoder.decode(event[6:]), now)

    def on_event(self, event: _Event, now: float) -> None:
        if event.error is not None:
            self.end(bytes(event.error).decode(errors="replace"))
        if event.usage is not None:
            self.usage = event.usage.completion_tokens
            self.outcome.prompt_len = event.usage.prompt_tokens or self.outcome.prompt_len
        if not event.choices:
            return
        if self.chunks == 0:
            self.outcome.ttft = now - self.outcome.start
        else:
            self.outcome.itls.append(now - self.last)
        self.chunks += 1
        self.last = now
        if self.keep_text:
            self.texts += [c.text or (c.delta and c.delta.content) or "" for c in event.choices]

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        self.end("" if status == 200 else f"{status}: {self.failure[:300].decode(errors='replace')}")

    def end(self, error: str) -> None:
        if self.done.done():
            return
        outcome = self.outcome
        outcome.error = error or ("" if self.chunks else "the answer has no tokens")
        outcome.latency = self.last - outcome.start
        outcome.output_len = self.chunks if self.usage is None else self.usage
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

    def encode(self, body: bytes) -> bytes:
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def send(target: Target, body: bytes, prompt_len: int, keep_text: bool = False) -> Outcome:
    """Sends a streaming request and reads its answer to the end. A failure is in the outcome, never raised."""
    outcome = Outcome(prompt_len=prompt_len, start=time.perf_counter())
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    transport = None
    try:
        transport, _ = await loop.create_connection(
            lambda: _Exchange(target.encode(body), outcome, done, keep_text), target.host, target.port, ssl=target.tls
        )
        await done
    except OSError as error:
        outcome.error = f"cannot connect to {target.host}:{target.port}: {error}"
    finally:
        if transport is not None:
            transport.close()
    return outcome

"""The connection under HTTP: uvicorn's httptools protocol, with the limits that it leaves to a proxy.

A head (request line and headers) has 64 KiB, 256 headers and 10 seconds. A client that stops reading blocks the
writer once the transport's buffer is full (uvicorn awaits its drain); after 30 seconds of that the connection is
dropped, which the application sees as a disconnect. What is not HTTP at all is answered in our error shape.

After an answer, the rest of a body that nobody reads has 10 seconds. What follows a body (trailers, extensions of
chunks) is bounded like a head and thrown away: it must not become part of the headers that were checked. An offer to
speak another protocol (`Upgrade`) is ignored, and the request served as if it had not been made.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from octavo.core import log
from octavo.server.http import OUTLET

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
HEAD_SECONDS = 10.0
STALL_SECONDS = 30.0
UNREAD_SECONDS = 10.0
LEAVE_SECONDS = 2.0  # that a connection without a request outlives the listener
MAX_PIPELINED = 64  # requests on one connection that wait for the answer to the one before
_OFFERS = (b"upgrade", b"http2-settings")  # headers that belong to an offer to speak another protocol

REFUSALS = {
    400: ("Bad Request", "invalid_value", "The request is not valid HTTP."),
    431: (
        "Request Header Fields Too Large",
        "request_too_large",
        f"The request line and headers may have {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers.",
    ),
}


class Parser:
    """httptools' parser, to which an offer to speak another protocol is none.

    llhttp takes whatever follows such a head for the other protocol. Clients that make the offer with every request
    (Java's do) send an ordinary body after it: so the head is read a second time, without the offer.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._renew()

    def _renew(self) -> None:
        self._parser = httptools.HttpRequestParser(self._connection)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def feed_data(self, data: bytes) -> None:
        rest = memoryview(data)
        while True:
            try:
                self._parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as offer:
                rest = rest[offer.args[0] :]
                head = self._connection.head_without_offer()
                self._renew()
                self._parser.feed_data(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


class Body:
    """The body of an answer that has begun, past ASGI's messages: for `octavo.server.http.Outlet`."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def open(self) -> bool:
        return not (self._cycle.flow.write_paused or self._cycle.disconnected)

    def write(self, chunk: bytes) -> None:
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))


class Connection(HttpToolsProtocol):
    """One client. Between requests `in_head` is true: the next bytes belong to a head."""

    in_head = True
    head_bytes = 0
    idle_bytes = 0  # since the last byte of a body: of trailers, or between chunks
    offered = False  # the head that was read last offers another protocol
    refusal = 400
    head_timer: asyncio.TimerHandle | None = None
    stall_timer: asyncio.TimerHandle | None = None
    unread_timer: asyncio.TimerHandle | None = None
    running: RequestResponseCycle | None = None  # the request that is served; `cycle` is the last that has come

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parser = Parser(self)  # type: ignore[assignment]

    # -- the head: its size, its time

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.head_timer = self.loop.call_later(HEAD_SECONDS, self.drop, "slow_head")

    def data_received(self, data: bytes) -> None:
        if self.in_head:
            room = MAX_HEAD_BYTES - self.head_bytes
            self.head_bytes += len(data)
            if len(data) > room:  # the rest may be body: it is only too long if the head does not end before it
                super().data_received(data[:room])
                if self.transport.is_closing():
                    return
                if self.in_head:
                    self.refuse(431)
                    return
                data = data[room:]
        else:
            self.idle_bytes += len(data)
        super().data_received(data)
        if self.idle_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.refuse(431)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.offered = False
        if self.head_timer is None:
            self.head_timer = self.loop.call_later(HEAD_SECONDS, self.drop, "slow_head")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_head:  # a trailer
            return
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self.refusal = 431
            raise ValueError("too many headers")  # httptools stops, and data_received above it refuses

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("this is no proxy")
            self.offered = True
            return
        self._check_head()
        self.in_head = False
        self.idle_bytes = 0
        self._cancel("head_timer")
        if len(self.pipeline) >= MAX_PIPELINED:
            self.drop("pipelined")
            raise ValueError("too many requests wait")
        super().on_headers_complete()

    def head_without_offer(self) -> bytes:
        """The head that was read last, which is sound, as it would be had the client not offered another protocol."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [method + b" " + self.url + b" HTTP/" + version]
        for name, value in self.headers:
            if name == b"connection":
                kept = [each for each in value.split(b",") if each.strip().lower() not in _OFFERS]
                value = b",".join(kept)
            if name not in _OFFERS:
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _check_head(self) -> None:
        """llhttp refuses what two parsers may part differently, but for this: a proxy may read it in another way."""
        names = [name for name, _ in self.headers]
        if names.count(b"host") > 1:
            raise ValueError("two hosts")
        if b"transfer-encoding" in names:
            coding = next(value for name, value in self.headers if name == b"transfer-encoding")
            if coding.strip().lower() != b"chunked" or self.parser.get_http_version() == "1.0":
                raise ValueError("a coding that is not read here")

    def on_body(self, body: bytes) -> None:
        self.idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.offered:
            return
        self.in_head = True
        self.head_bytes = self.idle_bytes = 0
        self._cancel("unread_timer")
        super().on_message_complete()

    # -- requests that wait for others, and answers that do not wait for their request

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.running = cycle
        cycle.scope["extensions"] = {OUTLET: Body(cycle)}  # type: ignore[dict-item]
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.in_head and self.cycle.response_complete and not self.transport.is_closing():
            self.unread_timer = self.loop.call_later(UNREAD_SECONDS, self.drop, "unread_body")

    # -- what is not HTTP

    def send_400_response(self, msg: str) -> None:
        self.refuse(self.refusal)

    def refuse(self, status: int) -> None:
        """Answers without the application and closes. An answer that has begun is cut: nothing may mix with it."""
        self._cancel("head_timer")
        if self.transport.is_closing():
            return
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()
            return
        reason, code, message = REFUSALS[status]
        request_id = uuid.uuid4().hex
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        body = msgspec.json.encode({"error": error})
        head = (
            f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
        log.event("refused", logging.WARNING, id=request_id, status=status, code=code)

    # -- a client that does not read

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.stall_timer is None:
            self.stall_timer = self.loop.call_later(STALL_SECONDS, self.drop, "stalled_reader")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel("stall_timer")

    # -- the end

    def shutdown(self) -> None:
        """The listener is closed. On a connection that is kept, or new, a request may be on its way.

        It is still answered, if only to be sent to a replica, and the answer ends the connection.
        """
        if self._idle:
            self.loop.call_later(LEAVE_SECONDS, self.leave)
        else:
            super().shutdown()

    def leave(self) -> None:
        """Closes, unless an answer is being written, which then does."""
        if self._idle:
            self.transport.close()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def drop(self, why: str) -> None:
        log.event("dropped", logging.WARNING, why=why)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in ("head_timer", "stall_timer", "unread_timer"):
            self._cancel(timer)
        running = self.running
        if running is not None and running is not self.cycle and not running.response_complete:
            running.disconnected = True  # uvicorn tells only the last request that has come
            running.message_event.set()
        super().connection_lost(exc)

    def _cancel(self, timer: str) -> None:
        handle: asyncio.TimerHandle | None = getattr(self, timer)
        if handle is not None:
            handle.cancel()
            setattr(self, timer, None)

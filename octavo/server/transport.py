"""The connection under HTTP: uvicorn's httptools protocol, with the limits that it leaves to a proxy.

A head (request line and headers) has 64 KiB, 256 headers and 10 seconds. A client that stops reading blocks the
writer once the transport's buffer is full (uvicorn awaits its drain); after 30 seconds of that the connection is
dropped, which the application sees as a disconnect. What is not HTTP at all is answered in our error shape.
"""

from __future__ import annotations

import asyncio
import logging
import uuid

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from octavo.core import log

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
HEAD_SECONDS = 10.0
STALL_SECONDS = 30.0

REFUSALS = {
    400: ("Bad Request", "invalid_value", "The request is not valid HTTP."),
    431: (
        "Request Header Fields Too Large",
        "request_too_large",
        f"The request line and headers may have {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers.",
    ),
}


class Connection(HttpToolsProtocol):
    """One client. Between requests `in_head` is true: the next bytes belong to a head."""

    in_head = True
    head_bytes = 0
    refusal = 400
    head_timer: asyncio.TimerHandle | None = None
    stall_timer: asyncio.TimerHandle | None = None

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
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self.head_timer is None:
            self.head_timer = self.loop.call_later(HEAD_SECONDS, self.drop, "slow_head")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self.refusal = 431
            raise ValueError("too many headers")  # httptools stops, and data_received above it refuses

    def on_headers_complete(self) -> None:
        self._check_head()
        self.in_head = False
        self._cancel_head_timer()
        super().on_headers_complete()

    def _check_head(self) -> None:
        """llhttp refuses what two parsers may part differently, but for this: a proxy may read it in another way."""
        names = [name for name, _ in self.headers]
        if names.count(b"host") > 1:
            raise ValueError("two hosts")
        if b"transfer-encoding" in names:
            coding = next(value for name, value in self.headers if name == b"transfer-encoding")
            if coding.strip().lower() != b"chunked" or self.parser.get_http_version() == "1.0":
                raise ValueError("a coding that is not read here")

    def on_message_complete(self) -> None:
        self.in_head = True
        self.head_bytes = 0
        super().on_message_complete()

    # -- what is not HTTP

    def send_400_response(self, msg: str) -> None:
        self.refuse(self.refusal)

    def refuse(self, status: int) -> None:
        """Answers without the application and closes. An answer that has begun is cut: nothing may mix with it."""
        self._cancel_head_timer()
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
        self._cancel_stall_timer()

    # -- the end

    def drop(self, why: str) -> None:
        log.event("dropped", logging.WARNING, why=why)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_timer()
        self._cancel_stall_timer()
        super().connection_lost(exc)

    def _cancel_head_timer(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _cancel_stall_timer(self) -> None:
        if self.stall_timer is not None:
            self.stall_timer.cancel()
            self.stall_timer = None

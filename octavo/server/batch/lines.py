"""One line of a batch: a request that no connection waits for, answered by the route that it names."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from octavo.core import log
from octavo.core.errors import (
    Draining,
    EngineError,
    EngineUnavailable,
    InternalError,
    Overloaded,
    RequestError,
)
from octavo.server.batch.protocol import BatchError, LineAnswer, RequestLine, ResultLine
from octavo.server.http import Exchange, Stream, Work, error_body
from octavo.server.service import Service

NOT_NOW = (EngineUnavailable, Overloaded, Draining)  # a line can wait, unlike a client
PAUSE_SECONDS = 0.5  # between two looks at whether the engine is there
MAX_LINES = 50_000  # as in OpenAI's API
MAX_ERRORS = 100  # that are told of one file
_decoder = msgspec.json.Decoder(RequestLine)
_encode = msgspec.json.Encoder().encode


class Lines:
    """Answers lines. `available` gives the engine or raises; `busy` says that it works for an exchange."""

    def __init__(
        self,
        routes: Mapping[str, Work],
        available: Callable[[], Service],
        busy: Callable[[Exchange], AbstractContextManager[None]],
    ) -> None:
        self.routes = routes
        self._available = available
        self._busy = busy

    async def answer(self, line: RequestLine, key: bytes) -> ResultLine:
        """The result of a line. Waits while there is no engine, or no room in its queue."""
        id = f"batch_req_{uuid.uuid4().hex}"
        while True:
            try:
                status, body = await self._perform(line, key, id)
            except NOT_NOW:
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            return ResultLine(id, line.custom_id, LineAnswer(status, id, msgspec.Raw(body)))

    async def _perform(self, line: RequestLine, key: bytes, id: str) -> tuple[int, bytes]:
        exchange = Exchange.detached(key, id)
        try:
            service = self._available()
            with self._busy(exchange):
                answer = await self.routes[line.url](service, exchange, bytes(line.body))
            if isinstance(answer, Stream):
                await answer.events.aclose()
                raise RequestError("A line of a batch cannot be streamed.", "stream")
            return answer.status, answer.body
        except NOT_NOW:
            raise
        except RequestError as found:
            error = found
        except asyncio.CancelledError:
            if not isinstance(exchange.cause, RequestError) or exchange.task is None:
                raise
            exchange.task.uncancel()
            if isinstance(exchange.cause, NOT_NOW):
                raise exchange.cause from None
            error = exchange.cause
        except EngineError as found:
            raise EngineUnavailable(str(found)) from found
        except Exception as found:
            log.event("internal_error", logging.ERROR, error=found, id=id)
            error = InternalError()
        return error.status, error_body(error)


def read_lines(path: Path, longest: int) -> Iterator[tuple[int, bytes]]:
    """(number, text) of the lines that are not empty; a longer line is cut, and then no JSON."""
    with path.open("rb") as file:
        number = 0
        while data := file.readline(longest + 1):
            number += 1
            rest = data
            while len(rest) > longest and not rest.endswith(b"\n"):
                rest = file.readline(longest + 1)
            if data.strip():
                yield number, data


def read_line(data: bytes) -> RequestLine:
    return _decoder.decode(data)


def check_lines(lines: Iterable[tuple[int, bytes]], urls: Iterable[str], longest: int) -> tuple[int, list[BatchError]]:
    """How many lines there are, and what is wrong with them."""
    errors: list[BatchError] = []
    seen: set[str] = set()
    total = 0
    for number, data in lines:
        total += 1
        if len(errors) == MAX_ERRORS:
            break
        if total > MAX_LINES:
            errors.append(BatchError("too_many_lines", f"A batch may have {MAX_LINES} lines.", number))
            break
        try:
            line = read_line(data)
        except (msgspec.DecodeError, RecursionError) as error:
            reason = str(error) if isinstance(error, msgspec.ValidationError) else "The line is not valid JSON."
            if len(data) > longest:
                reason = f"A line may have {longest} bytes."
            errors.append(BatchError("invalid_line", reason, number))
            continue
        if line.custom_id in seen:
            errors.append(BatchError("duplicate_custom_id", "Another line has this custom_id.", number, "custom_id"))
        if line.url not in urls:
            errors.append(BatchError("mismatched_url", "The url is not that of the batch.", number, "url"))
        if not bytes(line.body).lstrip().startswith(b"{"):
            errors.append(BatchError("invalid_line", "The body is not an object.", number, "body"))
        seen.add(line.custom_id)
    if total == 0:
        errors.append(BatchError("empty_file", "The file has no lines."))
    return total, errors


def encode_line(result: ResultLine) -> bytes:
    return _encode(result) + b"\n"

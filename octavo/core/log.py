"""The log: one escaped line an event, as text or as JSON.

    log.setup("info", "json")                       # once, in a process that owns its standard error
    log.event("request", id="req-1", status=200)    # anywhere

Everything goes through the standard logger `octavo`, so a program that embeds us can route it as it likes; without
`setup` only warnings are shown. Field values may come from outside: control characters are escaped and long values
are cut, so that no client can forge a line or flood the log. Prompts, answers and keys are never logged.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import time
from typing import Any, TextIO

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
MAX_FIELD = 256  # characters of a string; a traceback may be longer
MAX_TRACEBACK = 8192
TAIL_BYTES = 32 << 10

logger = logging.getLogger("octavo")


def setup(level: str = "info", format: str = "text", stream: TextIO | None = None) -> None:
    """Sends our log, and uvicorn's errors, to `stream` (default: standard error). Safe to call again."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    for name, floor in (("octavo", level.upper()), ("uvicorn.error", "ERROR")):
        target = logging.getLogger(name)
        target.handlers[:] = [handler]
        target.setLevel(floor)
        target.propagate = False


def say(text: str) -> None:
    """To the person who started us, not in the log's form. Nothing depends on whether anybody still reads it."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def hold_standard_streams() -> None:
    """Opens those that were closed on nothing; a socket would have their numbers, and be written to as if it were they.

    To be called before anything else is opened. Python leaves the names of closed streams at None.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def remember(descriptor: int) -> None:
    """The last lines go to this file in memory, too, for whoever writes the report of our end."""
    handler = logging.StreamHandler(_Tail(descriptor))
    handler.setFormatter(TextLines())
    logger.addHandler(handler)


class _Tail(io.TextIOBase):
    """Keeps the last `TAIL_BYTES` of what is written, or a little less."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._size = descriptor, 0

    def write(self, text: str) -> int:
        data = text.encode(errors="replace")[-TAIL_BYTES:]
        if self._size + len(data) > TAIL_BYTES:
            data = tail_bytes(self._descriptor)[-TAIL_BYTES // 2 :] + data
            self._size = 0
            os.ftruncate(self._descriptor, 0)
        self._size += os.pwrite(self._descriptor, data, self._size)
        return len(text)


def tail_bytes(descriptor: int) -> bytes:
    return os.pread(descriptor, 2 * TAIL_BYTES, 0)


def tail(descriptor: int, count: int = 100) -> list[str]:
    """The last lines that a process has remembered."""
    return tail_bytes(descriptor).decode(errors="replace").splitlines()[-count:]


def event(name: str, level: int = logging.INFO, *, error: BaseException | None = None, **fields: Any) -> None:
    """Writes one line. Fields that are None are left out; `error` adds its traceback."""
    if logger.isEnabledFor(level):
        logger.log(level, name, exc_info=error, extra={"fields": fields})


class _Lines(logging.Formatter):
    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        found = {k: _plain(v) for k, v in getattr(record, "fields", {}).items() if v is not None}
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)[-MAX_TRACEBACK:]
        return found


class TextLines(_Lines):
    """12:30:01.123 INFO request id=req-1 status=200"""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        head = f"{clock}.{int(record.msecs):03d} {record.levelname} {_escape(record.getMessage())}"
        return " ".join([head, *(f"{name}={_quote(value)}" for name, value in self.fields(record).items())])


class JsonLines(_Lines):
    """{"time": 1700000000.123, "level": "info", "event": "request", "id": "req-1", "status": 200}"""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps({**line, **self.fields(record)})


def _plain(value: Any) -> bool | int | float | str:
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return round(value, 6)
    text = str(value)
    return text if len(text) <= MAX_FIELD else text[: MAX_FIELD - 3] + "..."


def _escape(text: str) -> str:
    """Text that prints as it reads: no line ends, no terminal sequences, no marks that reverse what follows."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _quote(value: bool | int | float | str) -> str:
    """A value that cannot be taken for another field: quoted unless it is one plain word."""
    if not isinstance(value, str):
        return str(value)
    plain = value != "" and value.isascii() and value.isprintable() and not any(c in value for c in " =\"'\\")
    return value if plain else json.dumps(value).replace("\x7f", "\\u007f")

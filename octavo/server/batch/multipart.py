"""multipart/form-data as it arrives: small fields into memory, one file to disk, all within limits."""

from __future__ import annotations

import re
from typing import BinaryIO

from octavo.core.errors import RequestError, RequestTooLarge

MAX_HEAD = 4096  # bytes of the headers of a part
MAX_FIELD = 4096  # bytes of a field that is not the file
MAX_PARTS = 32
MAX_TYPE = 512  # bytes of the content-type, which may be made to be hard to match
_BOUNDARY = re.compile(
    rb'multipart/form-data\s*;.*?boundary="?([0-9A-Za-z\'()+_,./:=? -]{1,70}?)"?\s*(?:;.*)?', re.I | re.S
)
_NAME = re.compile(rb'[;\s]name="([^"]*)"')
_FILENAME = re.compile(rb'[;\s]filename="((?:[^"\\]|\\.)*)"')


class Multipart:
    """Give it the body in pieces with `feed`, then call `finish`. The part named "file" goes to `target`."""

    def __init__(self, content_type: bytes, target: BinaryIO, limit: int) -> None:
        found = _BOUNDARY.fullmatch(content_type[:MAX_TYPE])
        if found is None:
            raise RequestError("Send a form: content-type multipart/form-data with a boundary.", "file")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.size = 0
        self._target = target
        self._limit = limit
        self._mark = b"\r\n--" + found[1]
        self._buffer = b"\r\n"  # so that the first boundary looks like the others
        self._part: str | None = None  # the name of the part that is read; None before and between parts
        self._value = b""
        self._parts = 0
        self._over = False

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while not self._over and (self._head() if self._part is None else self._body()):
            pass
        if self._over:
            self._buffer = b""

    def finish(self) -> None:
        if not self._over:
            raise RequestError("The form ends before its last boundary.", "file")
        if self.filename is None:
            raise RequestError("The form has no file.", "file")

    def _head(self) -> bool:
        """Reads a boundary and the headers after it; False if they have not come yet."""
        begin = len(self._mark)
        if len(self._buffer) < begin + 2:
            return False
        if not self._buffer.startswith(self._mark):
            raise RequestError("The form does not begin with its boundary.", "file")
        if self._buffer.startswith(b"--", begin):
            self._over = True
            return False
        end = self._buffer.find(b"\r\n\r\n", begin)
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                raise RequestError("The headers of a part of the form are too long.", "file")
            return False
        head = self._buffer[begin:end]
        name, filename = _NAME.search(head), _FILENAME.search(head)
        self._parts += 1
        if name is None or self._parts > MAX_PARTS:
            raise RequestError(f"A form may have {MAX_PARTS} parts, each with a name.", "file")
        self._part, self._value = name[1].decode(errors="replace"), b""
        if self._part == "file":
            if self.filename is not None:
                raise RequestError("The form has two files.", "file")
            text = filename[1].decode(errors="replace") if filename else ""
            self.filename = "".join(c for c in text if c.isprintable())[:255] or "upload"
        self._buffer = self._buffer[end + 4 :]
        return True

    def _body(self) -> bool:
        """Reads what has come of a part; False if its end has not."""
        end = self._buffer.find(self._mark)
        if end < 0:
            keep = len(self._mark) - 1
            self._take(self._buffer[:-keep])
            self._buffer = self._buffer[-keep:]
            return False
        self._take(self._buffer[:end])
        if self._part is not None and self._part != "file":
            self.fields[self._part] = self._value.decode(errors="replace")
        self._buffer, self._part = self._buffer[end:], None
        return True

    def _take(self, data: bytes) -> None:
        if self._part == "file":
            self.size += len(data)
            if self.size > self._limit:
                raise RequestTooLarge(f"A file may have {self._limit} bytes now.", "file")
            self._target.write(data)
        else:
            self._value += data
            if len(self._value) > MAX_FIELD:
                raise RequestError(f"A field of the form may have {MAX_FIELD} bytes.", "file")

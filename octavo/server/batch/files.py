"""/v1/files: what clients uploaded and what batches wrote, in a private folder of bounded size.

Without --data-dir the folder is made when it is first needed and is gone when the server ends. Nothing that a client
says becomes part of a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import heapq
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from octavo.core import log
from octavo.core.errors import ConfigError, RequestError, RequestTooLarge, StorageUnavailable
from octavo.server.batch.multipart import Multipart
from octavo.server.batch.protocol import FileDeleted, FileList, FileObject, KeptFile
from octavo.server.fields import decimal
from octavo.server.http import Exchange, Response, Stream, json_response
from octavo.server.lists import page

MAX_FILES = 10_000
PIECE = 256 * 1024
_ID = re.compile(r"(?:file|batch)-[0-9a-f]{32}")


class FileNotKnown(RequestError):
    status = 404
    code = "not_found"


class StorageFull(RequestTooLarge):
    code = "storage_full"


class Folder:
    """The private folder. One server has it at a time."""

    def __init__(self, path: str | None) -> None:
        self.lasting = path is not None
        self._path = Path(path) if path is not None else None
        self._lock: int | None = None
        if self._path is not None:
            self._open(self._path)

    @property
    def path(self) -> Path:
        if self._path is None:
            self._path = Path(tempfile.mkdtemp(prefix="octavo-"))
            self._open(self._path)
        return self._path

    def _open(self, path: Path) -> None:
        try:
            for each in (path, path / "files", path / "batches"):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"--data-dir {path}: another server uses it") from None
        except OSError as error:
            raise ConfigError(f"--data-dir {path}: {error.strerror or error}") from None

    def pepper(self) -> bytes:
        """What makes the names of tenants; it must last as long as what they own."""
        if not self.lasting:
            return secrets.token_bytes(16)
        path = self.path / "pepper"
        if not path.exists():
            write(path, secrets.token_bytes(16))
        return path.read_bytes()

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
            if not self.lasting:
                shutil.rmtree(self.path, ignore_errors=True)


def write(path: Path, data: bytes) -> None:
    """The whole file or the old one, whatever happens meanwhile."""
    new = path.with_suffix(".new")
    with private(new) as file:
        file.write(data)
    new.replace(path)


def private(path: Path, mode: str = "wb") -> BinaryIO:
    found = open(path, mode, opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
    return found  # type: ignore[return-value]


@contextlib.contextmanager
def storing() -> Iterator[None]:
    """What the disk refuses becomes an error that clients may see."""
    try:
        yield
    except OSError as error:
        log.event("storage", logging.ERROR, error=error)
        raise StorageUnavailable("The server cannot store this now; try again later.") from None


class Files:
    def __init__(self, folder: Folder, limit: int) -> None:
        self.folder = folder
        self.limit = limit  # bytes of all files
        self.size = 0  # of all of them
        self._coming = 0  # bytes that are being uploaded
        self._known: dict[str, KeptFile] = {}
        self._expiries: list[tuple[int, str]] = []  # a heap
        if folder.lasting:
            for path in sorted((folder.path / "files").glob("*.json")):
                with contextlib.suppress(msgspec.DecodeError, OSError):
                    kept = msgspec.json.decode(path.read_bytes(), type=KeptFile)
                    if _ID.fullmatch(kept.file.id) and self.path(kept.file.id).is_file():
                        self._know(kept)

    def path(self, id: str) -> Path:
        if not _ID.fullmatch(id):  # it comes from our own records, but becomes a path
            raise FileNotKnown("There is no file of this id.", "file_id")
        return self.folder.path / "files" / id

    def _know(self, kept: KeptFile) -> None:
        self._known[kept.file.id] = kept
        self.size += kept.file.bytes
        if kept.file.expires_at is not None:
            heapq.heappush(self._expiries, (kept.file.expires_at, kept.file.id))

    def find(self, id: str, owner: bytes, param: str = "file_id") -> FileObject:
        self._expire()
        kept = self._known.get(id)
        if kept is None or kept.owner != owner:
            raise FileNotKnown("There is no file of this id.", param)
        return kept.file

    def add(self, path: Path, owner: bytes, filename: str, purpose: str, seconds: int | None = None) -> FileObject:
        """Takes a file that was written elsewhere in the folder."""
        now = int(time.time())
        id = f"file-{uuid.uuid4().hex}"
        expires = None if seconds is None else now + seconds
        size = path.stat().st_size
        file = FileObject(id=id, bytes=size, created_at=now, filename=filename, purpose=purpose, expires_at=expires)
        path.replace(self.path(id))
        kept = KeptFile(file, owner)
        try:
            write(self.path(id).with_suffix(".json"), msgspec.json.encode(kept))
        except OSError:
            self.path(id).unlink(missing_ok=True)  # without its record nobody would ever find it
            raise
        self._know(kept)
        return file

    def remove(self, id: str) -> None:
        self.size -= self._known.pop(id).file.bytes
        for path in (self.path(id), self.path(id).with_suffix(".json")):
            path.unlink(missing_ok=True)

    def _expire(self) -> None:
        now = time.time()
        while self._expiries and self._expiries[0][0] <= now:
            _, id = heapq.heappop(self._expiries)
            if id in self._known:
                self.remove(id)

    # -- routes

    async def upload(self, exchange: Exchange) -> Response:
        self._expire()
        room = self.limit - self.size
        if room <= 0 or len(self._known) >= MAX_FILES:
            raise StorageFull("There is no room for more files: delete some.", "file")
        with storing():
            file = await self._store(exchange, room)
        return json_response(file)

    async def _store(self, exchange: Exchange, room: int) -> FileObject:
        path = self.folder.path / f"upload-{uuid.uuid4().hex}"
        taken = 0
        try:
            with private(path) as target:
                form = Multipart(exchange.header(b"content-type") or b"", target, room)
                async for data in exchange.upload(room + 64 * 1024):
                    await asyncio.to_thread(form.feed, data)  # a busy disk makes a writer wait
                    self._coming += form.size - taken
                    taken = form.size
                    if self.size + self._coming > self.limit:  # others come at the same time
                        raise StorageFull("There is no room for more files: delete some.", "file")
                form.finish()
            purpose = form.fields.get("purpose", "")
            if purpose != "batch":
                raise RequestError("purpose must be batch.", "purpose")
            unknown = set(form.fields) - {"purpose", "expires_after[anchor]", "expires_after[seconds]"}
            exchange.ignore(sorted(unknown))
            return self.add(path, exchange.key, form.filename or "upload", purpose, _lifetime(form.fields))
        finally:
            self._coming -= taken
            path.unlink(missing_ok=True)

    async def list(self, exchange: Exchange) -> Response:
        self._expire()
        found = [kept.file for kept in self._known.values() if kept.owner == exchange.key]
        if (purpose := exchange.query.get("purpose")) is not None:
            found = [file for file in found if file.purpose == purpose]
        if exchange.query.get("order", "desc") == "desc":
            found.reverse()
        return json_response(page(exchange, found, FileList, 10_000))

    async def get(self, exchange: Exchange) -> Response:
        return json_response(self.find(exchange.argument, exchange.key))

    async def delete(self, exchange: Exchange) -> Response:
        self.find(exchange.argument, exchange.key)
        self.remove(exchange.argument)
        return json_response(FileDeleted(exchange.argument))

    async def content(self, exchange: Exchange) -> Stream:
        file = self.find(exchange.argument, exchange.key)
        return Stream(_pieces(self.path(file.id)), end=b"", media_type=b"application/octet-stream")


async def _pieces(path: Path) -> AsyncGenerator[bytes, None]:
    with path.open("rb") as file:
        data: Any = await asyncio.to_thread(file.read, PIECE)
        yield data
        while data:
            data = await asyncio.to_thread(file.read, PIECE)
            yield data


def _lifetime(fields: dict[str, str]) -> int | None:
    given = fields.get("expires_after[seconds]")
    if given is None:
        return None
    seconds = decimal(given, 3600, 2_592_000)
    if seconds is None:
        raise RequestError("expires_after[seconds] must be in [3600, 2592000].", "expires_after[seconds]")
    return seconds

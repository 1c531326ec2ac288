"""/v1/files: what clients uploaded and what batches wrote, in a private folder of bounded size.

Without --data-dir the folder is made when it is first needed and is gone when the server ends. Nothing that a client
says becomes part of a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from octavo.core.errors import ConfigError, RequestError, RequestTooLarge
from octavo.server.batch.multipart import Multipart
from octavo.server.batch.protocol import FileDeleted, FileList, FileObject, KeptFile
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


class Files:
    def __init__(self, folder: Folder, limit: int) -> None:
        self.folder = folder
        self.limit = limit  # bytes of all files
        self._known: dict[str, KeptFile] = {}
        if folder.lasting:
            for path in sorted((folder.path / "files").glob("*.json")):
                with contextlib.suppress(msgspec.DecodeError, OSError):
                    kept = msgspec.json.decode(path.read_bytes(), type=KeptFile)
                    if _ID.fullmatch(kept.file.id) and self.path(kept.file.id).is_file():
                        self._known[kept.file.id] = kept

    def path(self, id: str) -> Path:
        if not _ID.fullmatch(id):  # it comes from our own records, but becomes a path
            raise FileNotKnown("There is no file of this id.", "file_id")
        return self.folder.path / "files" / id

    @property
    def size(self) -> int:
        self._expire()
        return sum(kept.file.bytes for kept in self._known.values())

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
        kept = self._known[id] = KeptFile(file, owner)
        write(self.path(id).with_suffix(".json"), msgspec.json.encode(kept))
        return file

    def remove(self, id: str) -> None:
        del self._known[id]
        for path in (self.path(id), self.path(id).with_suffix(".json")):
            path.unlink(missing_ok=True)

    def _expire(self) -> None:
        now = time.time()
        for id in [id for id, kept in self._known.items() if (kept.file.expires_at or now + 1) <= now]:
            self.remove(id)

    # -- routes

    async def upload(self, exchange: Exchange) -> Response:
        room = self.limit - self.size
        if room <= 0 or len(self._known) >= MAX_FILES:
            raise StorageFull("There is no room for more files: delete some.", "file")
        path = self.folder.path / f"upload-{uuid.uuid4().hex}"
        try:
            with private(path) as target:
                form = Multipart(exchange.header(b"content-type") or b"", target, room)
                async for data in exchange.upload(room + 64 * 1024):
                    form.feed(data)
                form.finish()
            purpose = form.fields.get("purpose", "")
            if purpose != "batch":
                raise RequestError("purpose must be batch.", "purpose")
            unknown = set(form.fields) - {"purpose", "expires_after[anchor]", "expires_after[seconds]"}
            exchange.ignore(sorted(unknown))
            if form.size > self.limit - self.size:  # others came meanwhile
                raise StorageFull("There is no room for more files: delete some.", "file")
            file = self.add(path, exchange.key, form.filename or "upload", purpose, _lifetime(form.fields))
        finally:
            path.unlink(missing_ok=True)
        return json_response(file)

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
    if not given.isdecimal() or not 3600 <= int(given[:9]) <= 2_592_000:
        raise RequestError("expires_after[seconds] must be in [3600, 2592000].", "expires_after[seconds]")
    return int(given)

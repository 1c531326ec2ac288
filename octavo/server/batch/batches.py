"""/v1/batches: the lines of an uploaded file are answered, many at a time, and their answers become files.

A batch is written to the folder whenever its status changes, and its answers as they come: with --data-dir, a server
that is started again goes on with the lines that have none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from octavo.core import log
from octavo.core.errors import RequestError
from octavo.server import fields
from octavo.server.batch.files import Files, private, storing, write
from octavo.server.batch.lines import Lines, check_lines, encode_line, read_line, read_lines
from octavo.server.batch.protocol import (
    BatchError,
    BatchErrors,
    BatchList,
    BatchObject,
    BatchRequest,
    BatchStatus,
    Counts,
    DoneLine,
    KeptBatch,
    LineError,
    ResultLine,
)
from octavo.server.http import Exchange, Response, json_response
from octavo.server.lists import page

MAX_OPEN = 64  # batches that are worked on
MAX_KEPT = 1000
AT_ONCE = 64  # lines of all batches that the engine has at a time
MAX_REQUEST = 64 << 10  # bytes of a request for a batch
OVER = ("failed", "completed", "expired", "cancelled")


class BatchNotFound(RequestError):
    status = 404
    code = "not_found"


class Batches:
    def __init__(self, files: Files, lines: Lines, max_line: int) -> None:
        self.files = files
        self.lines = lines
        self.max_line = max_line
        self._kept: dict[str, KeptBatch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(AT_ONCE)
        self._written: dict[str, int] = {}  # bytes of answers that are not files yet, by batch
        if files.folder.lasting:
            self._read()

    def _read(self) -> None:
        found = []
        for path in (self.files.folder.path / "batches").glob("*.json"):
            with contextlib.suppress(msgspec.DecodeError, OSError):
                kept = msgspec.json.decode(path.read_bytes(), type=KeptBatch)
                if kept.batch.id == path.stem:
                    found.append(kept)
        for kept in sorted(found, key=lambda kept: (kept.batch.created_at, kept.batch.id)):
            self._kept[kept.batch.id] = kept

    def resume(self) -> None:
        """Goes on with what is not over. Safe to call again."""
        for id, kept in self._kept.items():
            if kept.batch.status not in OVER and id not in self._tasks:
                self._start(kept)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- routes

    async def create(self, exchange: Exchange) -> Response:
        body = await exchange.body(MAX_REQUEST)
        request, _, exchange.ignored = await fields.read(body, BatchRequest)
        file = self.files.find(request.input_file_id, exchange.key, "input_file_id")
        if file.purpose != "batch":
            raise RequestError("The file's purpose is not batch.", "input_file_id")
        if len(self._tasks) >= MAX_OPEN:
            raise RequestError(f"{MAX_OPEN} batches are worked on: wait for one of them.", None, "too_many_batches")
        now = int(time.time())
        number, unit = int(request.completion_window[:-1]), request.completion_window[-1]
        batch = BatchObject(
            id=f"batch-{uuid.uuid4().hex}",
            endpoint=request.endpoint,
            input_file_id=request.input_file_id,
            completion_window=request.completion_window,
            status="validating",
            created_at=now,
            expires_at=now + number * (3600 if unit == "h" else 60),
            request_counts=Counts(),
            metadata=request.metadata,
        )
        kept = KeptBatch(batch, exchange.key)
        with storing():
            self._save(kept)
        self._kept[batch.id] = kept
        self._forget()
        answer = json_response(batch)
        self._start(kept)
        return answer

    async def list(self, exchange: Exchange) -> Response:
        found = [kept.batch for kept in reversed(self._kept.values()) if kept.owner == exchange.key]
        return json_response(page(exchange, found, BatchList))

    async def get(self, exchange: Exchange) -> Response:
        return json_response(self._find(exchange).batch)

    async def cancel(self, exchange: Exchange) -> Response:
        kept = self._find(exchange)
        batch, task = kept.batch, self._tasks.get(kept.batch.id)
        if batch.status in OVER or task is None:
            raise RequestError(f"The batch is {batch.status}.", "batch_id")
        if batch.status == "cancelling":  # once is enough: what has no answer is being written down
            return json_response(batch)
        batch.status, batch.cancelling_at = "cancelling", int(time.time())
        with storing():
            self._save(kept)
        answer = json_response(batch)
        task.cancel()
        return answer

    def _find(self, exchange: Exchange) -> KeptBatch:
        kept = self._kept.get(exchange.argument)
        if kept is None or kept.owner != exchange.key:
            raise BatchNotFound("There is no batch of this id.", "batch_id")
        return kept

    # -- the work

    def _start(self, kept: KeptBatch) -> None:
        id = kept.batch.id
        task = self._tasks[id] = asyncio.create_task(self._run(kept), name=id)
        task.add_done_callback(lambda _: self._tasks.pop(id, None))

    async def _run(self, kept: KeptBatch) -> None:
        try:
            await self._conduct(kept)
        except Exception as error:
            log.event("internal_error", logging.ERROR, error=error, id=kept.batch.id)
            kept.batch.errors = BatchErrors([_cause(error)])
            self._change(kept, "failed")
        finally:
            self._written.pop(kept.batch.id, None)

    async def _conduct(self, kept: KeptBatch) -> None:
        batch = kept.batch
        try:
            if batch.status == "validating" and not await self._validate(kept):
                return
            if batch.status != "cancelling":
                async with asyncio.timeout(max(0.0, batch.expires_at - time.time())):
                    await self._answer_all(kept)
            await self._finish(kept, "cancelled" if batch.status == "cancelling" else "completed")
        except TimeoutError:
            await self._finish(kept, "expired")
        except asyncio.CancelledError:
            if batch.status != "cancelling":  # the server ends: the next one goes on, if there is a folder for it
                raise
            await self._finish(kept, "cancelled")

    async def _validate(self, kept: KeptBatch) -> bool:
        batch = kept.batch
        path = self.files.path(batch.input_file_id)
        if not path.is_file():  # deleted meanwhile
            batch.errors = BatchErrors([BatchError("invalid_file", "The input file is not there any more.")])
            self._change(kept, "failed")
            return False
        urls, longest = (batch.endpoint,), self.max_line
        total, errors = await asyncio.to_thread(lambda: check_lines(read_lines(path, longest), urls, longest))
        if errors:
            batch.errors = BatchErrors(errors)
            self._change(kept, "failed")
            return False
        batch.request_counts.total = total
        self._change(kept, "in_progress")
        return True

    async def _answer_all(self, kept: KeptBatch) -> None:
        batch, counts = kept.batch, kept.batch.request_counts
        good, bad = self._results(batch.id)
        fine, wrong_ones = await asyncio.to_thread(lambda: (read_done(good), read_done(bad)))
        counts.completed, counts.failed = len(fine), len(wrong_ones)
        done = fine | wrong_ones
        self._written[batch.id] = sum(path.stat().st_size for path in (good, bad) if path.is_file())
        with private(good, "ab") as right, private(bad, "ab") as wrong:

            async def one(data: bytes) -> None:
                try:
                    line = read_line(data)
                    result = full(line.custom_id) if self._full() else await self.lines.answer(line, kept.owner)
                finally:
                    self._room.release()
                self._written[batch.id] += record(result, counts, right, wrong)

            # Few tasks at a time: a file may have thousands of lines.
            lines = read_lines(self.files.path(batch.input_file_id), self.max_line)
            async with asyncio.TaskGroup() as group:
                while (data := await asyncio.to_thread(next_line, lines, done)) is not None:
                    await self._room.acquire()
                    group.create_task(one(data))

    async def _finish(self, kept: KeptBatch, status: BatchStatus) -> None:
        """Makes files of the answers. What has none is named in the file of errors."""
        batch = kept.batch
        good, bad = self._results(batch.id)
        if status != "completed":
            await asyncio.to_thread(self._add_missing, kept, status)
        batch.finalizing_at = int(time.time())
        if good.is_file() and good.stat().st_size:
            file = self.files.add(good, kept.owner, f"{batch.id}_output.jsonl", "batch_output")
            batch.output_file_id = file.id
        if bad.is_file() and bad.stat().st_size:
            batch.error_file_id = self.files.add(bad, kept.owner, f"{batch.id}_error.jsonl", "batch_output").id
        for path in (good, bad):
            path.unlink(missing_ok=True)
        self._change(kept, status)

    def _add_missing(self, kept: KeptBatch, status: str) -> None:
        good, bad = self._results(kept.batch.id)
        done = read_done(good) | read_done(bad)
        code = "batch_expired" if status == "expired" else "batch_cancelled"
        with private(bad, "ab") as wrong, contextlib.suppress(OSError):
            for _, data in read_lines(self.files.path(kept.batch.input_file_id), self.max_line):
                custom_id = read_line(data).custom_id
                if custom_id not in done:
                    error = LineError(code, "The line was not answered before the batch ended.")
                    result = ResultLine(f"batch_req_{uuid.uuid4().hex}", custom_id, None, error)
                    record(result, kept.batch.request_counts, wrong, wrong)

    def _change(self, kept: KeptBatch, status: BatchStatus) -> None:
        batch = kept.batch
        batch.status = status
        setattr(batch, f"{status}_at", int(time.time()))
        try:
            self._save(kept)
        except OSError as error:  # it is what it is for as long as this server runs
            log.event("storage", logging.ERROR, error=error, id=batch.id)
        counts = batch.request_counts
        log.event("batch", id=batch.id, status=status, total=counts.total, failed=counts.failed)

    def _save(self, kept: KeptBatch) -> None:
        path = self.files.folder.path / "batches" / f"{kept.batch.id}.json"
        write(path, msgspec.json.encode(kept))

    def _full(self) -> bool:
        """Whether files, and the answers that are to become files, take all the room there is."""
        return self.files.size + sum(self._written.values()) >= self.files.limit

    def _results(self, id: str) -> tuple[Path, Path]:
        """Where the answers are collected: those of status 200, and the others."""
        folder = self.files.folder.path / "batches"
        return folder / f"{id}.good", folder / f"{id}.bad"

    def _forget(self) -> None:
        for id in [id for id, kept in self._kept.items() if kept.batch.status in OVER][: len(self._kept) - MAX_KEPT]:
            del self._kept[id]
            (self.files.folder.path / "batches" / f"{id}.json").unlink(missing_ok=True)


def _cause(error: Exception) -> BatchError:
    """What its owner hears of why a batch could not go on."""
    causes = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
    if all(isinstance(cause, OSError) for cause in causes):
        return BatchError("storage_unavailable", "The server cannot store the answers.")
    return BatchError("internal_error", "The server had an internal error.")


def full(custom_id: str) -> ResultLine:
    error = LineError("storage_full", "There is no room for more answers: delete files.")
    return ResultLine(f"batch_req_{uuid.uuid4().hex}", custom_id, None, error)


def next_line(lines: Iterator[tuple[int, bytes]], done: set[str]) -> bytes | None:
    """The next that has no answer."""
    return next((data for _, data in lines if not done or read_line(data).custom_id not in done), None)


def record(result: ResultLine, counts: Counts, right: BinaryIO, wrong: BinaryIO) -> int:
    """Writes it, and returns its length."""
    fine = result.response is not None and result.response.status_code == 200
    if fine:
        counts.completed += 1
    else:
        counts.failed += 1
    target = right if fine else wrong
    line = encode_line(result)
    target.write(line)
    target.flush()
    return len(line)


def read_done(path: Path) -> set[str]:
    """The custom ids in a file of results. A last line that was cut when a server ended is taken out of it."""
    done: set[str] = set()
    if not path.is_file():
        return done
    whole = 0
    with path.open("rb") as file:
        for data in lines_of(file):
            try:
                done.add(msgspec.json.decode(data, type=DoneLine).custom_id)
            except msgspec.DecodeError:
                break
            whole += len(data)
    if whole < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(whole)
    return done


def lines_of(file: Iterable[bytes]) -> Iterable[bytes]:
    return (data for data in file if data.endswith(b"\n"))

"""`octavo run-batch -i FILE.jsonl -o OUT.jsonl`: a batch file answered by an engine of its own, without a server."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO

from octavo.core import log
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError, EngineError
from octavo.server.auth import Keys
from octavo.server.batch.lines import Lines, check_lines, encode_line, read_line, read_lines
from octavo.server.batch.protocol import Counts, ResultLine
from octavo.server.chat import chat_completions
from octavo.server.completions import completions
from octavo.server.config import ServerConfig
from octavo.server.engine import Engine
from octavo.server.http import Work
from octavo.server.metrics import Metrics
from octavo.server.pooling.routes import READING
from octavo.server.responses.routes import Responses
from octavo.server.responses.store import ResponseStore
from octavo.server.serve import POLL_SECONDS, start_engine
from octavo.server.service import Service

AT_ONCE = 1024  # lines that the engine has at a time
ROUTES: dict[str, Work] = {
    "/v1/chat/completions": chat_completions,
    "/v1/completions": completions,
    **READING,
    "/v1/responses": Responses(ResponseStore(0, 0.0), lambda exchange: contextlib.nullcontext()).create,
}


def run_batch(
    engine: EngineConfig,
    server: ServerConfig,
    source: Path,
    target: Path,
    start: Callable[[EngineConfig, ServerConfig], Awaitable[Engine]] = start_engine,
) -> int:
    """Writes the answers in the order of the lines. ConfigError for a file that is no batch."""
    log.setup(server.log_level, server.log_format)
    try:
        total, errors = check_lines(read_lines(source, server.max_body_bytes), ROUTES, server.max_body_bytes)
        if errors:
            where = f"{source}:{errors[0].line}" if errors[0].line else str(source)
            raise ConfigError(f"{where}: {errors[0].message}")
        with target.open("wb") as out:
            counts = asyncio.run(_run(engine, server, source, out, start))
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    print(f"{total} lines: {counts.completed} answered, {counts.failed} failed; see {target}", file=sys.stderr)
    return 0


async def _run(
    engine: EngineConfig,
    server: ServerConfig,
    source: Path,
    out: BinaryIO,
    start: Callable[[EngineConfig, ServerConfig], Awaitable[Engine]],
) -> Counts:
    llm = await start(engine, server)
    try:
        service = Service(llm, server, engine, Metrics(), Keys(()))
        await service.check_template()
        lines = Lines(ROUTES, lambda: service, lambda exchange: contextlib.nullcontext())
        work = asyncio.create_task(_answer_all(lines, source, server.max_body_bytes, out))
        while not work.done():
            if not llm.ready:  # nobody starts another: lines would wait for it forever
                work.cancel()
                raise EngineError("the engine stopped; the answers so far are in the file")
            await asyncio.wait([work], timeout=POLL_SECONDS)
        return work.result()
    finally:
        await llm.shutdown()


async def _answer_all(lines: Lines, source: Path, longest: int, out: BinaryIO) -> Counts:
    counts = Counts()
    tasks: deque[asyncio.Task[ResultLine]] = deque()

    async def write_first() -> None:
        result = await tasks[0]
        tasks.popleft()
        fine = result.response is not None and result.response.status_code == 200
        counts.completed += fine
        counts.failed += not fine
        out.write(encode_line(result))

    async with asyncio.TaskGroup() as group:
        for _, data in read_lines(source, longest):
            counts.total += 1
            tasks.append(group.create_task(lines.answer(read_line(data), b"")))
            if len(tasks) >= AT_ONCE:
                await write_first()
        while tasks:
            await write_first()
    return counts

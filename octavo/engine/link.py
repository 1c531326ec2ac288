"""One life of the engine process, as its front sees it: started, spoken with, watched, and buried.

What the process writes into memory that both hold outlives it: its progress, its last log lines, and the stacks that
it left when it was struck down (`faulthandler`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from pathlib import Path

import msgspec

from octavo.core.child import FLAGS, HEADER, MAX_FRAME
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError, EngineError
from octavo.core.log import tail
from octavo.core.progress import Progress
from octavo.engine.build import EngineInfo
from octavo.engine.ipc import Codec, Failed, FromEngine, Ready, Start, ToEngine

# OpenMP's threads spin while they wait for each other, by default for milliseconds: on two cores beside other processes
# a decode step's products took 65 ms so, and 5 ms with this; alone it makes no difference (bench/cpu_kernels.py).
ENVIRONMENT = {"GOMP_SPINCOUNT": "3000"}
DUMP_SECONDS = 0.5  # that a process that hangs has to write down its stacks
STACKS_BYTES = 64 << 10


class Link:
    """Made by `open`. `info` is what the engine said of itself."""

    info: EngineInfo

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._process, self._reader, self._writer = process, reader, writer
        self._codec = Codec()
        self.progress: Progress
        self._log = self._stacks = -1

    @classmethod
    async def open(cls, config: EngineConfig, folder: Path, log_level: str, log_format: str) -> Link:
        """Starts the process and returns when it can answer. ConfigError if it cannot be started as asked."""
        memory = (Progress.allocate(), os.memfd_create("octavo-log"), os.memfd_create("octavo-stacks"))
        try:
            return await cls._open(Start(config, str(folder), log_level, log_format, *memory))
        except BaseException:
            for descriptor in memory[1:]:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            raise
        finally:
            os.close(memory[0])  # mapped by now

    @classmethod
    async def _open(cls, start: Start) -> Link:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *FLAGS, "-m", "octavo.engine.process", str(theirs.fileno())),
                pass_fds=[theirs.fileno(), start.progress, start.log, start.stacks],
                env={**ENVIRONMENT, **os.environ},
            )
        link = cls(process, *await asyncio.open_connection(sock=ours, limit=MAX_FRAME))
        link.progress, link._log, link._stacks = Progress(start.progress), start.log, start.stacks
        try:
            link._writer.write(link._codec.frame(start))
            message = await link.receive()
            if not isinstance(message, Ready):
                reason = message.message if isinstance(message, Failed) else "its process ended; see the log"
                known = isinstance(message, Failed) and message.config
                raise ConfigError(reason) if known else EngineError(f"the engine cannot start: {reason}")
        except BaseException:
            await link.end(patience=0)
            raise
        link.info = message.info
        return link

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        self._writer.write(self._codec.frame(message))

    async def receive(self) -> FromEngine | None:
        """The next message of the engine; None when its end is closed."""
        try:
            (size,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            if size > MAX_FRAME:
                return None
            message: FromEngine = self._codec.from_engine.decode(await self._reader.readexactly(size))
            return message
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
            return None

    async def strike(self) -> None:
        """Ends a process that hangs, which may write down first where it stands."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)
            await asyncio.sleep(DUMP_SECONDS)
            self._process.kill()

    async def end(self, patience: float) -> int:
        """Its exit status, negative for a signal. When this returns the process is gone, with all that it held."""
        self._writer.close()
        try:
            await asyncio.wait_for(self._process.wait(), patience)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        status = self._process.returncode
        assert status is not None, "a process that was waited for has a status"
        return status

    def state(self) -> str:
        """What the kernel says of the process, as "T (stopped)"."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("State:"):
                    return line.removeprefix("State:").strip()
        return ""

    def last_words(self) -> tuple[list[str], list[str]]:
        """Its last log lines, and the stacks it left. Once, after its end."""
        stacks = os.pread(self._stacks, STACKS_BYTES, 0).decode(errors="replace").splitlines()
        lines = tail(self._log)
        self.forget()
        return lines, stacks

    def forget(self) -> None:
        """Lets go of what the process left."""
        for descriptor in (self._log, self._stacks):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._log = self._stacks = -1

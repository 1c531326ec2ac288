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

from octavo.core.child import FLAGS, HEADER, MAX_FRAME, working_folder
from octavo.core.config import EngineConfig
from octavo.core.crash import plain_config
from octavo.core.errors import ConfigError, EngineError
from octavo.core.log import tail
from octavo.core.progress import START_BUDGETS, Phase, Progress
from octavo.engine.build import EngineInfo
from octavo.engine.ipc import Codec, Failed, FromEngine, Ready, Start, ToEngine
from octavo.engine.recovery import Recovery, Watchdog, report

# OpenMP's threads spin while they wait for each other, by default for milliseconds: on two cores beside other processes
# a decode step's products took 65 ms so, and 5 ms with this; alone it makes no difference (bench/cpu_kernels.py).
ENVIRONMENT = {"GOMP_SPINCOUNT": "3000"}
MODULE = "octavo.engine.process"
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
    async def open(
        cls, config: EngineConfig, folder: Path, log_level: str, log_format: str, recovery: Recovery
    ) -> Link:
        """Starts the process and returns when it can answer.

        ConfigError if it cannot be started as asked, EngineError if it fails, or hangs on the way (with a report).
        """
        memory = (Progress.allocate(), os.memfd_create("octavo-log"), os.memfd_create("octavo-stacks"))
        start = Start(config, str(folder), log_level, log_format, *memory)
        try:
            link = await cls._spawn(start)
        except BaseException:
            for descriptor in memory[1:]:
                os.close(descriptor)
            raise
        finally:
            os.close(memory[0])  # mapped by now
        try:
            link.info = await link._begin(start, recovery)
        except BaseException:
            await link.end(patience=0)
            link.forget()
            raise
        return link

    @classmethod
    async def _spawn(cls, start: Start) -> Link:
        progress = Progress(start.progress)
        progress.enter(Phase.START, START_BUDGETS[Phase.START])  # until the process says so itself
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *FLAGS, "-m", MODULE, str(theirs.fileno())),
                pass_fds=[theirs.fileno(), start.progress, start.log, start.stacks],
                cwd=working_folder(),
                env={**ENVIRONMENT, **os.environ},
            )
        link = cls(process, *await asyncio.open_connection(sock=ours, limit=MAX_FRAME))
        link.progress, link._log, link._stacks = progress, start.log, start.stacks
        return link

    async def _begin(self, start: Start, recovery: Recovery) -> EngineInfo:
        """Tells the process what it is to be, and waits until it is."""
        watchdog = Watchdog(self, recovery.watchdog)
        watching = asyncio.create_task(watchdog.run(), name="engine-start")
        try:
            self._writer.write(self._codec.frame(start))
            message = await self.receive()
        finally:
            watching.cancel()
        if isinstance(message, Ready):
            return message.info
        if isinstance(message, Failed):
            if message.config:
                raise ConfigError(message.message)
            raise EngineError(f"the engine cannot start: {message.message}")
        if not watchdog.reason:
            raise EngineError("the engine cannot start: its process ended; see the log")
        record = self.progress.read()
        status = await self.end(patience=0)
        await report(self, recovery, watchdog.reason, status, record, config=plain_config(start.config))
        raise EngineError(f"the engine cannot start: {watchdog.reason}")

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

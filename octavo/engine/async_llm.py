"""The engine behind asyncio: a process that runs the core, and streams of outputs from it.

    engine = await AsyncLLM.start(EngineConfig(model="..."))
    async for output in engine.generate("Once upon", SamplingParams(max_tokens=64), request_id="1"):
        ...
    await engine.shutdown()

Tokenizing and detokenizing happen here, so that the engine's process does nothing but steps. A request whose
generator is closed before its end is aborted in the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from octavo.core.child import FLAGS, HEADER, MAX_FRAME
from octavo.core.config import EngineConfig
from octavo.core.errors import (
    ConfigError,
    EngineError,
    EngineUnavailable,
    ModelError,
    Overloaded,
    QueueTimeout,
    RequestError,
)
from octavo.core.hub import resolve_model
from octavo.core.outputs import RequestOutput, Stats, StepOutputs
from octavo.core.params import SamplingParams
from octavo.core.structured import StructuredOutputs
from octavo.engine.build import EngineInfo
from octavo.engine.defaults import read_generation_config
from octavo.engine.intake import Intake
from octavo.engine.ipc import Abort, Add, Codec, ExpectGrammar, Failed, Ready, Start, Step, ToEngine
from octavo.engine.news import News
from octavo.engine.outputs import OutputProcessor, RequestState
from octavo.grammar.checker import Checker
from octavo.grammar.rows import LOST
from octavo.text.tokenizer import Tokenizer, load_tokenizer

log = logging.getLogger(__name__)

# OpenMP's threads spin while they wait for each other, by default for milliseconds: on two cores beside other processes
# a decode step's products took 65 ms so, and 5 ms with this; alone it makes no difference (bench/cpu_kernels.py).
ENVIRONMENT = {"GOMP_SPINCOUNT": "3000"}
EXIT_SECONDS = 5.0  # that the engine process has to end when it is told to
LATE = "the request waited too long for its turn; try again later"
DEMO_NAME = "octavo-demo"  # what the model is called when none was named
# Texts longer than this are tokenized in a thread: 64k characters take about 20 ms, and the event loop must not wait.
LONG_TEXT = 1 << 14
# Grammars that are compiled at once, and that may wait for it: each takes milliseconds, and two seconds at worst.
CHECKERS, MAX_CHECKS = 2, 64


class AsyncLLM:
    """Made by `start`. `ready` is False once the engine process has died; every request then fails with 503."""

    def __init__(
        self,
        config: EngineConfig,
        folder: Path,
        tokenizer: Tokenizer,
        info: EngineInfo,
        process: Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.config = config
        self.model_name = config.model or DEMO_NAME
        self.tokenizer = tokenizer
        self.info = info
        self.max_model_len = info.max_model_len
        self.generation_config: dict[str, Any] = read_generation_config(folder)
        self.stats = Stats(kv_total_blocks=info.num_blocks)
        self.listeners: list[Callable[[Stats], None]] = []
        self._intake = Intake(tokenizer, info)
        self._checker = Checker(_tokenizer_place(config, folder), info.vocab_size)
        self._checks = ThreadPoolExecutor(CHECKERS, "grammar")
        self._num_checks = 0
        self._outputs = OutputProcessor(tokenizer)
        self._news: dict[int, News] = {}  # by the uid of the request
        self._codec = Codec()
        self._process, self._reader, self._writer = process, reader, writer
        self._failure: str | None = None
        self._task = asyncio.create_task(self._receive(), name="engine-outputs")

    @classmethod
    async def start(cls, config: EngineConfig, *, log_level: str = "info", log_format: str = "text") -> AsyncLLM:
        """Starts the engine process and returns when it can answer. ConfigError if it cannot be started as asked."""
        folder = await asyncio.to_thread(resolve_model, config.model, config.revision)
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} has no config.json: it does not hold a model")
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *FLAGS, "-m", "octavo.engine.process", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                env={**ENVIRONMENT, **os.environ},
            )
        reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_FRAME)
        try:
            writer.write(Codec().frame(Start(config, str(folder), log_level, log_format)))
            tokenizer = await asyncio.to_thread(load_tokenizer, _tokenizer_place(config, folder))
            message = await _read_message(reader, Codec())
            if not isinstance(message, Ready):
                reason = message.message if isinstance(message, Failed) else "its process ended; see the log"
                known = isinstance(message, Failed) and message.config
                raise ConfigError(reason) if known else EngineError(f"the engine cannot start: {reason}")
        except BaseException:
            writer.close()
            await _end(process, patience=0)
            raise
        return cls(config, folder, tokenizer, message.info, process, reader, writer)

    @property
    def ready(self) -> bool:
        """The engine process is alive."""
        return self._failure is None

    @property
    def num_live(self) -> int:
        """Requests that are waiting or running."""
        return len(self._news)

    @property
    def pid(self) -> int:
        """Of the engine process."""
        return self._process.pid

    async def generate(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        cache_salt: str = "",
        prompt_param: str = "prompt",
        add_special_tokens: bool = True,
        tenant: str = "",
        queue_seconds: float | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Streams outputs as `params.output_kind` says; what comes faster than it is taken is merged.

        Raises RequestError before the first item if the request is refused, QueueTimeout if its first step has not
        ended after `queue_seconds`, EngineUnavailable at any time if the engine dies.
        """
        arrival = time.monotonic()
        self.check_room()
        if isinstance(prompt, str) and len(prompt) > LONG_TEXT:
            ids = await asyncio.to_thread(self._intake.encode, prompt, prompt_param, add_special_tokens)
            self.check_room()
        else:
            ids = self._intake.encode(prompt, prompt_param, add_special_tokens)
        grammar = await self._grammar(params.structured_outputs) if params.structured_outputs is not None else ""
        request = self._intake.build(
            ids,
            params,
            priority=priority,
            salt=cache_salt,
            label=request_id,
            param=prompt_param,
            grammar=grammar,
            tenant=tenant,
        )
        text = prompt if isinstance(prompt, str) else None
        state = RequestState(request_id, request, self.tokenizer, text, arrival)
        news = self._news[request.uid] = News()
        self._outputs.add(state)
        timer = None
        if queue_seconds is not None:
            timer = asyncio.get_running_loop().call_later(queue_seconds, self._overdue, state, news)
        try:
            self._send(Add([request]))
            while not state.finished:
                await news.wait()
                if self._failure is not None and not state.finished:
                    raise EngineUnavailable("the engine stopped while it answered; try again")
                if state.failure == LATE:
                    raise QueueTimeout(LATE)
                if state.failure:
                    raise EngineUnavailable(LOST) if state.failure == LOST else _too_complex(state.failure)
                output = state.output()
                if output is not None:
                    yield output
            output = state.output()  # what came while the last one was being sent
            if output is not None:
                yield output
        finally:
            if timer is not None:
                timer.cancel()
            del self._news[request.uid]
            alive = self._outputs.drop(state)
            if alive:
                self._send(Abort(alive))

    async def _grammar(self, asked: StructuredOutputs) -> str:
        found = self._checker.known(asked)
        if found is not None:
            return found
        if self._num_checks >= MAX_CHECKS:
            raise Overloaded("too many grammars wait to be compiled; try again later")
        self._num_checks += 1
        self._send(ExpectGrammar())
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._checks, self._checker.check, asked)
        finally:
            self._num_checks -= 1
        self.check_room()
        return found

    def _overdue(self, state: RequestState, news: News) -> None:
        if state.metrics.scheduled_time is None and not state.failure:
            state.failure = LATE
            news.set()

    def check_room(self) -> None:
        """Raises Overloaded if a new request would be refused now."""
        if self._failure is not None:
            raise EngineUnavailable("the engine is not running")
        if len(self._news) >= self.info.max_num_seqs + self.config.max_num_queued_reqs:
            raise Overloaded(f"{len(self._news)} requests are being served or wait; try again later")

    def _send(self, message: ToEngine) -> None:
        if self._failure is None:
            self._writer.write(self._codec.frame(message))

    async def _receive(self) -> None:
        reason = "its process ended"
        try:
            while (message := await _read_message(self._reader, self._codec)) is not None:
                if isinstance(message, Step):
                    self._take(message.outputs)
                elif isinstance(message, Failed):
                    reason = message.message
        except Exception:  # a fault of ours in taking a step's outputs: nobody would be served any more
            log.exception("the front of the engine failed")
            reason = "its outputs could not be taken"
        self._failure = reason
        log.error("the engine stopped: %s", reason)
        for news in self._news.values():
            news.set()

    def _take(self, outputs: StepOutputs) -> None:
        self.stats = outputs.stats
        changed, aborts = self._outputs.process(outputs)
        if aborts:
            self._send(Abort(aborts))
        for state in changed:
            news = self._news.get(state.request.uid)
            if news is not None:
                news.set()
        for listener in self.listeners:
            listener(outputs.stats)

    async def shutdown(self) -> None:
        """Ends the engine process. Requests that are still running fail."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._failure = self._failure or "it was shut down"
        for news in self._news.values():
            news.set()
        self._checks.shutdown(wait=False, cancel_futures=True)
        self._checker.close()
        self._writer.close()
        await _end(self._process)


def _tokenizer_place(config: EngineConfig, folder: Path) -> Path:
    return folder if config.tokenizer is None else resolve_model(config.tokenizer)


def _too_complex(detail: str) -> RequestError:
    return RequestError(f"structured_outputs: {detail}", "structured_outputs", "grammar_too_complex")


async def _read_message(reader: asyncio.StreamReader, codec: Codec) -> Ready | Step | Failed | None:
    """The next message of the engine; None when its end is closed."""
    try:
        (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
        if size > MAX_FRAME:
            return None
        message: Ready | Step | Failed = codec.from_engine.decode(await reader.readexactly(size))
        return message
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def _end(process: Process, patience: float = EXIT_SECONDS) -> None:
    try:
        await asyncio.wait_for(process.wait(), patience)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

"""The engine behind asyncio: a process that runs the core, and streams of outputs from it.

    engine = await AsyncLLM.start(EngineConfig(model="..."))
    async for output in engine.generate("Once upon", SamplingParams(max_tokens=64), request_id="1"):
        ...
    await engine.shutdown()

Tokenizing and detokenizing happen here, so that the engine's process does nothing but steps. A request whose
generator is closed before its end is aborted in the engine.

When the process dies, `alive` is False, and requests fail; unless `Recovery.resume` lets them wait for `restart`, which
starts another process that goes on with them from the tokens that have been told. Randomness is a function of seed and
position, so that the answer is the one that it would have been, and its client knows nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from octavo.core import crash
from octavo.core.config import EngineConfig
from octavo.core.errors import (
    EngineUnavailable,
    ModelError,
    Overloaded,
    Quarantined,
    QueueTimeout,
)
from octavo.core.hub import model_folder, tokenizer_folder
from octavo.core.log import event
from octavo.core.outputs import RequestOutput, Stats, StepOutputs
from octavo.core.params import SamplingParams
from octavo.core.picture import Picture
from octavo.core.pooling import PoolingOutput, PoolingParams, PoolingRequestOutput
from octavo.core.structured import StructuredOutputs
from octavo.engine.cost import Ledger, cost_of
from octavo.engine.defaults import read_generation_config
from octavo.engine.gate import ALONE, MAX_ALONE, REFUSED, Gate, Suspects
from octavo.engine.intake import Intake
from octavo.engine.ipc import Abort, Add, ExpectGrammar, Failed, Look, Seen, Step, ToEngine
from octavo.engine.link import Link
from octavo.engine.news import News, Sink
from octavo.engine.outputs import OutputProcessor, RequestState
from octavo.engine.recovery import Recovery, Watchdog, report
from octavo.engine.renderings import Renderings
from octavo.engine.views import Views
from octavo.grammar.checker import Checker
from octavo.text.renderer import Chat
from octavo.text.tokenizer import Tokenizer, load_tokenizer

log = logging.getLogger(__name__)

EXIT_SECONDS = 5.0  # that the engine process has to end when it is told to
REAP_SECONDS = 0.5  # that it has when its end of the socket is closed: it is dying
MAX_RESUMES = 2  # engines that may die under a request: it may be what kills them
DIED = "the engine stopped while it answered; try again"
QUARANTINED = "the engine died several times while it worked on this request; it is refused for a while"
LATE = "the request waited too long for its turn; try again later"
DEMO_NAME = "octavo-demo"  # what the model is called when none was named
# Texts longer than this are tokenized in a thread: 64k characters take about 20 ms, and the event loop must not wait.
LONG_TEXT = 1 << 14
# Grammars that are compiled at once, and that may wait for it: each takes milliseconds, and two seconds at worst.
CHECKERS, MAX_CHECKS = 2, 64


class LogConfig(NamedTuple):
    level: str
    format: str


class AsyncLLM:
    """Made by `start`. `alive` is False once the engine process has died, `ready` also while it makes no progress."""

    def __init__(
        self, config: EngineConfig, folder: Path, tokenizer: Tokenizer, link: Link, recovery: Recovery, log: LogConfig
    ) -> None:
        self.config, self.recovery = config, recovery
        self._folder, self._link, self._log = folder, link, log
        info = link.info
        self.model_name = config.model or DEMO_NAME
        self.tokenizer = tokenizer
        self.info = info
        self.max_model_len = info.max_model_len
        self.generation_config: dict[str, Any] = read_generation_config(folder)
        self.stats = Stats(kv_total_blocks=info.num_blocks)
        self.listeners: list[Callable[[Stats], None]] = []
        self._intake = Intake(tokenizer, info)
        self._checker = Checker(tokenizer_folder(config, folder), info.vocab_size)
        self._checks = ThreadPoolExecutor(CHECKERS, "grammar")
        self._num_checks = 0
        self._renderings = Renderings(tokenizer.chat_template)
        self._outputs = OutputProcessor(tokenizer)
        self._ledger = Ledger()
        self._news: dict[int, News] = {}  # by the uid of the request
        self._suspects = Suspects()
        self._views = Views()
        self._gate = Gate(self._suspects, self._add)
        self._live_since()

    @classmethod
    async def start(
        cls,
        config: EngineConfig,
        *,
        log_level: str = "info",
        log_format: str = "text",
        recovery: Recovery | None = None,
    ) -> AsyncLLM:
        """Starts the engine process and returns when it can answer. ConfigError if it cannot be started as asked."""
        folder = await asyncio.to_thread(model_folder, config)
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} has no config.json: it does not hold a model")
        form, recovery = LogConfig(log_level, log_format), recovery or Recovery()
        tokenizer = asyncio.create_task(asyncio.to_thread(load_tokenizer, tokenizer_folder(config, folder)))
        try:
            link = await Link.open(config, folder, *form, recovery)
        except BaseException:
            tokenizer.cancel()
            raise
        try:
            return cls(config, folder, await tokenizer, link, recovery, form)
        except BaseException:
            await link.end(patience=0)
            raise

    def _live_since(self) -> None:
        """From here on the process of `_link` is the engine."""
        self._failure: str | None = None
        self._watchdog = Watchdog(self._link, self.recovery.watchdog)
        self._task = asyncio.create_task(self._receive(), name="engine-outputs")
        self._watcher = asyncio.create_task(self._watchdog.run(), name="engine-progress")

    @property
    def alive(self) -> bool:
        """The engine process is there."""
        return self._failure is None

    @property
    def ready(self) -> bool:
        """The engine process is there, and takes no longer for what it does than it said."""
        return self._failure is None and not self._watchdog.stalled

    @property
    def supported_tasks(self) -> list[str]:
        """generate, or tasks of octavo.core.pooling."""
        return self.info.supported_tasks

    @property
    def num_live(self) -> int:
        """Requests that are waiting or running."""
        return len(self._news)

    @property
    def reserved_bytes(self) -> int:
        """What the live requests may come to hold (octavo.engine.cost)."""
        return self._ledger.reserved

    @property
    def pid(self) -> int:
        """Of the engine process."""
        return self._link.pid

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
        sink: Sink | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Streams outputs as `params.output_kind` says; what comes faster than it is taken is merged.

        What a `sink` can take is given to it as soon as its step is over, and is not yielded.

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
        if self.recovery.resume == "all" and params.seed is None and not params.greedy:
            params = params.clone(seed=secrets.randbits(63))
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
        with self._served(state, queue_seconds, sink) as news:
            while not state.finished:
                await news.wait()
                if state.failure:
                    raise state.failure
                output = state.output()
                if output is not None:
                    yield output
            if state.failure:
                raise state.failure
            output = state.output()  # what came while the last one was being sent
            if output is not None:
                yield output

    async def pool(
        self,
        prompt: str | list[int] | tuple[str, str],
        params: PoolingParams,
        *,
        request_id: str,
        priority: int = 0,
        prompt_param: str | tuple[str, str] = "input",
        add_special_tokens: bool = True,
        truncate_prompt_tokens: int | None = None,
        truncation_side: str = "right",
        tenant: str = "",
        queue_seconds: float | None = None,
    ) -> PoolingRequestOutput[PoolingOutput]:
        """What the model makes of a text, of token ids, or of two texts that it reads as a pair.

        A text that is too long is cut to `truncate_prompt_tokens` (-1: the model's context) at its right or left end,
        or refused without them. Raises as `generate` does; cancelled, it is aborted.
        """
        arrival = time.monotonic()
        self.check_room()
        texts = (prompt,) if isinstance(prompt, str) else prompt
        names = (prompt_param,) if isinstance(prompt_param, str) else prompt_param
        types = b""
        if isinstance(texts, tuple):
            cut = (texts, names, truncate_prompt_tokens, truncation_side == "left")
            if sum(map(len, texts)) > LONG_TEXT:
                ids, types = await asyncio.to_thread(self._intake.read, *cut, add_special_tokens)
                self.check_room()
            else:
                ids, types = self._intake.read(*cut, add_special_tokens)
        else:
            ids = self._intake.encode(texts, names[0])
        request = self._intake.build_pooling(
            ids, params, token_types=types, priority=priority, label=request_id, param=names[-1], tenant=tenant
        )
        text = prompt if isinstance(prompt, str) else None
        state = RequestState(request_id, request, self.tokenizer, text, arrival)
        with self._served(state, queue_seconds) as news:
            while not state.finished and not state.failure:
                await news.wait()
        if state.failure:
            raise state.failure
        return state.pooling_output()

    @contextlib.contextmanager
    def _served(self, state: RequestState, queue_seconds: float | None, sink: Sink | None = None) -> Iterator[News]:
        """While this lasts, the engine works on the request; what there is of it is told by the `News`."""
        request = state.request
        self._check_suspicion(state)
        cost = cost_of(request, self.info.vocab_size)
        self._ledger.reserve(cost)
        news = self._news[request.uid] = News(state, sink)
        self._outputs.add(state)
        timer = None
        if queue_seconds is not None:
            timer = asyncio.get_running_loop().call_later(queue_seconds, self._overdue, state, news)
        try:
            self._gate.submit([state])
            yield news
        finally:
            if timer is not None:
                timer.cancel()
            self._ledger.release(cost)
            del self._news[request.uid]
            alive = self._outputs.drop(state)
            if alive:
                self._send(Abort(alive))
            elif not state.failure:
                self._suspects.clear(state)
            self._gate.leave(state)

    def _check_suspicion(self, state: RequestState) -> None:
        if self._suspects and self._suspects.crashes(state) >= REFUSED:
            raise Quarantined(QUARANTINED)

    async def look(self) -> Picture:
        """The engine as it stands, at most `views.FRESH_SECONDS` ago; EngineUnavailable if it is not there."""
        if self._failure is not None:
            raise EngineUnavailable("the engine is not running")
        return await self._views.get(lambda: self._send(Look()))

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

    async def render(self, chat: Chat, size: int) -> str:
        """A chat of about `size` characters as a prompt. RequestError if it cannot be rendered."""
        return await self._renderings.render(chat, size)

    def prepare(self) -> None:
        """Starts what works beside us, so that the first who needs it need not wait: for chats and for grammars."""
        if self.tokenizer.chat_template:
            self._renderings.start()
        if "generate" in self.supported_tasks:
            self._send(ExpectGrammar())
            self._checks.submit(self._checker.start)

    def _overdue(self, state: RequestState, news: News) -> None:
        if state.metrics.scheduled_time is None and not state.failure:
            state.failure = QueueTimeout(LATE)
            news.set()

    def check_room(self) -> None:
        """Raises Overloaded if a new request would be refused now."""
        if self._failure is not None:
            raise EngineUnavailable("the engine is not running")
        if len(self._outputs) >= self.info.max_num_seqs + self.config.max_num_queued_reqs:
            raise Overloaded(f"{len(self._outputs)} answers are on their way or wait; try again later")

    def _send(self, message: ToEngine) -> None:
        if self._failure is None:
            self._link.send(message)

    def _add(self, states: list[RequestState]) -> None:
        self._send(Add([state.resumed() if state.lost else state.request for state in states]))

    async def _receive(self) -> None:
        reason = ""
        try:
            while (message := await self._link.receive()) is not None:
                if isinstance(message, Step):
                    self._take(message.outputs)
                elif isinstance(message, Seen):
                    self._views.show(message.picture)
                elif isinstance(message, Failed):
                    reason = message.message
        except Exception:  # a fault of ours in taking a step's outputs: nobody would be served any more
            log.exception("the front of the engine failed")
            reason = "its outputs could not be taken"
        reason = self._watchdog.reason or reason
        self._failure = reason or "its process ended"
        self._views.lose(EngineUnavailable(DIED))
        self._watcher.cancel()
        record, state = self._link.progress.read(), self._link.state()
        suspects = self._outputs.find(record.uids)
        self._lose(suspects)
        status = await self._link.end(REAP_SECONDS)
        self._failure = cause = crash.cause_of(status, reason)
        await report(
            self._link,
            self.recovery,
            cause,
            status,
            record,
            process_state=state,
            suspects=[{"id": s.request_id, "fingerprint": self._suspects.fingerprint(s)} for s in suspects],
            device=f"{self.info.device}, {self.info.dtype}, attention {self.info.attention}",
            config=crash.plain_config(self.config),
            memory=dict(self.info.ledger),
        )

    def _lose(self, suspects: list[RequestState]) -> None:
        """The engine is gone: requests fail, or wait for another."""
        self._suspects.suspect(suspects)
        self._gate.empty()
        self.stats = Stats(kv_total_blocks=self.info.num_blocks)
        for listener in self.listeners:
            listener(self.stats)
        quiet = 0
        for state in self._outputs.find(list(self._news)):
            crashes = self._suspects.crashes(state)
            quiet += crashes == ALONE
            if crashes >= REFUSED:
                state.failure = state.failure or Quarantined(QUARANTINED)
            elif not self._may_resume(state) or (crashes == ALONE and quiet > MAX_ALONE):
                state.failure = state.failure or EngineUnavailable(DIED)
            state.lost = True
        for state in self._outputs.find(list(self._news)):
            if state.failure:
                self._news[state.request.uid].set()

    def _may_resume(self, state: RequestState) -> bool:
        fixed = state.params.greedy or state.params.seed is not None or state.request.pooling is not None
        return self.recovery.resume != "off" and fixed and state.resumes < MAX_RESUMES

    async def restart(self) -> None:
        """After the engine's death: another process, which goes on with what may be gone on with."""
        await self._task
        self._link = await Link.open(self.config, self._folder, *self._log, self.recovery)
        self.info = self._intake.info = self._link.info
        self._live_since()
        waiting = [state for state in self._outputs.find(list(self._news)) if not state.failure]
        if waiting:
            event("requests_resumed", count=len(waiting))
        self._gate.submit(waiting)

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
        for task in (self._task, self._watcher):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._failure = self._failure or "it was shut down"
        self._views.lose(EngineUnavailable(DIED))
        for state in self._outputs.find(list(self._news)):
            state.failure = state.failure or EngineUnavailable(DIED)
            self._news[state.request.uid].set()
        self._checks.shutdown(wait=False, cancel_futures=True)
        self._checker.close()
        self._renderings.close()
        await self._link.end(EXIT_SECONDS)
        self._link.forget()

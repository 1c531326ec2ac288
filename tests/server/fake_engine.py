"""An engine that follows a script, so that all that HTTP does is tested without a model.

Requests are checked and outputs are made by the engine's own front (`Intake`, `OutputProcessor`); only the tokens come
from here. A token is a byte. The model says what follows the last "say:" of the prompt (answer i to n > 1 adds " #i")
and ends; without one it counts "0 1 2 3 …" until its limit. Each step takes `delay` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers

from octavo.core.errors import EngineUnavailable, Overloaded
from octavo.core.outputs import Finished, FinishReason, Logprobs, RequestOutput, Stats, StepOutputs
from octavo.core.params import SamplingParams
from octavo.core.picture import CacheMap, Pace, Picture
from octavo.engine.build import EngineInfo
from octavo.engine.intake import Intake
from octavo.engine.news import News, Sink
from octavo.engine.outputs import OutputProcessor, RequestState
from octavo.text.chat import ChatTemplate
from octavo.text.renderer import Chat
from octavo.text.tokenizer import FastBackend, Tokenizer

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WIDTH = 21  # columns of logprobs: the token itself and twenty more


def make_tokenizer(template: str | None = TEMPLATE, special: Sequence[str] = ()) -> Tokenizer:
    """Every byte is a token; then come "<end>" and other special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = FastTokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(["<end>", *special])
    templates = {} if template is None else {"default": template}
    return Tokenizer(
        FastBackend(fast), special_tokens={"eos_token": "<end>"}, chat_template=ChatTemplate(templates, {})
    )


class Script:
    """One answer: its tokens, and how far it is."""

    def __init__(self, uid: int, tokens: list[int], endless: bool, limit: int) -> None:
        self.uid = uid
        self.tokens = tokens
        self.endless = endless
        self.limit = limit
        self.said: list[int] = []

    def step(self, eos: int) -> tuple[int | None, FinishReason | None]:
        if len(self.said) >= self.limit:
            return None, FinishReason.LENGTH
        at = len(self.said)
        token = self.tokens[at % len(self.tokens)] if self.endless or at < len(self.tokens) else eos
        self.said.append(token)
        if token == eos:
            return token, FinishReason.STOP
        return token, FinishReason.LENGTH if len(self.said) == self.limit else None


class FakeLLM:
    def __init__(
        self,
        *,
        delay: float = 0.0,
        max_model_len: int = 4096,
        capacity: int | None = None,
        most: int = 10_000,
        template: str | None = TEMPLATE,
        generation_config: dict[str, Any] | None = None,
        model_name: str = "fake",
        special: Sequence[str] = (),
    ) -> None:
        self.tokenizer = make_tokenizer(template, special)
        self.model_name = model_name
        self.max_model_len = max_model_len
        self.generation_config = generation_config or {}
        self.delay = delay
        self.most = most
        self.stats = Stats(kv_total_blocks=100)
        self.listeners: list[Callable[[Stats], None]] = []
        self.ready = True
        self.reserved_bytes = 0
        self.may_restart = asyncio.Event()
        self.aborted: list[str] = []
        self.seen: list[Any] = []  # the parameters of all requests that were taken
        self.salts: list[str] = []
        self.priorities: list[int] = []
        self.reading = 0  # texts that a FakePooler reads now
        self.broken: Exception | None = None  # raised by every request from now on
        self.info = EngineInfo(
            max_model_len=max_model_len,
            kv_capacity=capacity or max_model_len,
            vocab_size=self.tokenizer.vocab_size,
            num_blocks=100,
            block_size=16,
            max_num_seqs=most,
            max_num_batched_tokens=2048,
            prefix_caching=True,
            device="cpu",
            dtype="float32",
            attention="none",
            phases=[],
            ledger=[],
        )
        self.intake = Intake(self.tokenizer, self.info)
        self.outputs = OutputProcessor(self.tokenizer)
        self.live: dict[int, tuple[RequestState, list[Script]]] = {}
        self.news: dict[int, News] = {}
        self.task: asyncio.Task[None] | None = None

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
        arrival = time.monotonic()
        self.check()
        self.check_room()
        ids = self.intake.encode(prompt, prompt_param, add_special_tokens)
        grammar = "any" if params.structured_outputs is not None else ""
        request = self.intake.build(
            ids, params, priority=priority, salt=cache_salt, param=prompt_param, grammar=grammar
        )
        self.seen.append(params)
        self.salts.append(cache_salt)
        self.priorities.append(priority)
        state = RequestState(request_id, request, self.tokenizer, None, arrival)
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        scripts = [self.script(request.uid + i, text, i, request.max_tokens) for i in range(params.n)]
        self.live[request.uid] = (state, scripts)
        self.news[request.uid] = News(state, sink)
        self.outputs.add(state)
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self.run())
        try:
            while True:
                finished = state.finished
                output = state.output()
                if output is not None:
                    yield output
                elif finished:
                    return
                else:
                    await self.news[request.uid].wait()
                    if not state.finished:
                        self.check()
        finally:
            del self.live[request.uid]
            del self.news[request.uid]
            if self.outputs.drop(state):
                self.aborted.append(request_id)

    def check_room(self) -> None:
        if len(self.live) + self.reading >= self.most:
            raise Overloaded("the queue is full")

    def check(self) -> None:
        if self.broken is not None:
            raise self.broken
        if not self.ready:
            raise EngineUnavailable("the engine stopped while it answered; try again")

    def script(self, uid: int, prompt: str, index: int, limit: int) -> Script:
        _, said, text = prompt.rpartition("say:")
        text = text.partition("\n<assistant>")[0] if said else "0 1 2 3 4 5 6 7 8 9 "
        tokens = self.tokenizer.encode(text + (f" #{index}" if said and index else ""))
        return Script(uid, tokens, not said, limit)

    def crash(self) -> None:
        """As when the engine process dies: every request fails, and so do all later ones."""
        self.ready = False
        self.wake()

    def wake(self) -> None:
        for news in self.news.values():
            news.set()

    @property
    def alive(self) -> bool:
        return self.ready

    def revive(self) -> None:
        """From now on a restart succeeds."""
        self.may_restart.set()

    async def restart(self) -> None:
        await self.may_restart.wait()
        self.ready = True

    async def run(self) -> None:
        """The steps of the engine, while there is anything to do."""
        while self.ready and any(not state.finished for state, _ in self.live.values()):
            await asyncio.sleep(self.delay)
            if self.broken is not None:
                self.wake()
            elif self.ready:
                self.step()

    def step(self) -> None:
        self.take(self.make())

    def make(self) -> StepOutputs:
        """What an engine would send after a step."""
        uids, tokens, out = [], [], StepOutputs()
        logprobs: list[tuple[int, int]] = []
        prompts: list[tuple[int, int]] = []
        prefilled = sampled = 0
        for uid, (state, scripts) in self.live.items():
            if not scripts[0].said and not state.metrics.scheduled_time:
                state.metrics.scheduled_time = time.monotonic()
                out.started.append((uid, min(16, len(state.prompt_ids) - 1)))
                prefilled += len(state.prompt_ids)
                if state.params.prompt_logprobs is not None:
                    prompts += [(uid, token) for token in state.prompt_ids[1:]]
            for script in scripts:
                if state.answers[script.uid - uid].finish_reason is not None:
                    continue
                token, reason = script.step(self.tokenizer.eos_id or 0)
                if token is not None:
                    sampled += 1
                    if state.params.logprobs is not None:
                        logprobs.append((script.uid, token))
                    if state.request.stream:
                        uids.append(script.uid)
                        tokens.append(token)
                if reason is not None:
                    stop = token if reason is FinishReason.STOP and token is not None else -1
                    said = b"" if state.request.stream else np.array(script.said, np.int32).tobytes()
                    out.finished.append(Finished(script.uid, reason, stop, len(script.said), said))
        out.uids, out.tokens = np.array(uids, np.int64).tobytes(), np.array(tokens, np.int32).tobytes()
        out.logprobs, out.prompt_logprobs = self.rows(logprobs), self.rows(prompts)
        answers = [answer for state, _ in self.live.values() for answer in state.answers]
        running = sum(answer.finish_reason is None for answer in answers) - len(out.finished)
        hits = sum(cached for _, cached in out.started)
        out.stats = self.stats = Stats(
            running=running, kv_used_blocks=running, kv_total_blocks=100, prefix_queries=prefilled, prefix_hits=hits,
            step_tokens=prefilled + sampled,
        )  # fmt: skip
        return out

    def take(self, out: StepOutputs) -> None:
        """What the server does with it."""
        changed, _ = self.outputs.process(out)
        for state in changed:
            if (event := self.news.get(state.request.uid)) is not None:
                event.set()
        for listener in self.listeners:
            listener(out.stats)

    def rows(self, found: list[tuple[int, int]]) -> Logprobs | None:
        """Token t has logprob -0.5 and rank 1, but for "e", of rank 4; the others follow at -1, -2, …"""
        if not found:
            return None
        vocab, e = self.tokenizer.vocab_size, self.tokenizer.encode("e")[0]
        ids, values, ranks = [], [], []
        for _, token in found:
            others = [(token + 1 + i) % vocab for i in range(WIDTH - 1)]
            rank = 4 if token == e else 1
            likeliest = others[: rank - 1] + [token] + others[rank - 1 :]
            scores = [-0.5 - i for i in range(WIDTH)]
            ids.append([token, *likeliest[: WIDTH - 1]])
            values.append([scores[rank - 1], *scores[: WIDTH - 1]])
            ranks.append(rank)
        return Logprobs(
            [uid for uid, _ in found],
            WIDTH,
            np.array(ids, np.int32).tobytes(),
            np.array(values, np.float32).tobytes(),
            np.array(ranks, np.int32).tobytes(),
        )

    async def render(self, chat: Chat, size: int) -> str:
        return self.tokenizer.chat_template.render(**msgspec.structs.asdict(chat))

    async def look(self) -> Picture:
        self.check()
        cells = bytes(200)
        cache_map = CacheMap(1, 100, cells, cells, cells, bytes(100), bytes(100), b"\xff" * 200)
        return Picture(len(self.live), 0, 100, 0, 0, 0, 16, Pace(), [], [], cache_map)

    async def shutdown(self) -> None:
        self.crash()
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()

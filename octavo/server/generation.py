"""From a request to its answers: sampling parameters, one engine request a prompt, and what the metrics count."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from octavo.core.errors import EngineUnavailable, InternalError, NanLogits, RequestError
from octavo.core.outputs import CompletionOutput, RequestMetrics, RequestOutput, TokenLogprobs
from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.engine.news import Sink
from octavo.server.beams import beam_params, beam_search
from octavo.server.http import Exchange
from octavo.server.protocol import (
    CompletionTokensDetails,
    GenerationRequest,
    PromptLogprob,
    PromptLogprobs,
    PromptTokensDetails,
    RequestTimings,
    StreamOptions,
    Usage,
)
from octavo.server.service import Prompt, Service
from octavo.server.structured import structured_outputs
from octavo.server.tracing import Answered
from octavo.version import VERSION

FINGERPRINT = f"octavo-{VERSION}"
_SAMPLING = (
    *("n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("seed", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens", "logit_bias"),
    *("allowed_token_ids", "bad_words", "prompt_logprobs", "skip_special_tokens", "spaces_between_special_tokens"),
    "thinking_token_budget",
)
LEAST_LOGPROB = -9999.0  # JSON has no -inf: what OpenAI says of a token that could not have been sampled
# How far answers to one prompt may run ahead of a client that reads slowly; the transport bounds the rest.
PENDING_OUTPUTS = 16
Queue = asyncio.Queue[tuple[int, RequestOutput] | Exception | None]
Write = Callable[[int, RequestOutput], bytes]  # the events of an output of one of the prompts; b"" if it says nothing


def sampling_params(request: GenerationRequest, service: Service, **values: Any) -> SamplingParams:
    """What the client asked for over what the model prefers; `values` are what the two routes spell apart."""
    asked = {name: value for name in _SAMPLING if (value := getattr(request, name)) is not None}
    values["structured_outputs"] = structured_outputs(request, service.form_options)
    if request.cache_prompt is False:
        values["skip_reading_prefix_cache"] = True
    kind = RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY
    return SamplingParams(**{**service.defaults, **asked, **values, "output_kind": kind})


def stream_options(request: GenerationRequest, service: Service) -> StreamOptions:
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options needs stream to be true.", "stream_options")
    found = request.stream_options or StreamOptions()
    return replace(found, include_usage=found.include_usage or service.server.enable_force_include_usage)


class Generation:
    """The answers to one HTTP request, which may bring several prompts; they all have the same parameters."""

    def __init__(
        self,
        service: Service,
        exchange: Exchange,
        request: GenerationRequest,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        kind: str,
        prompt_param: str,
        add_special_tokens: bool,
    ) -> None:
        service.check_priority(request.priority)
        self.beams = beam_params(request, params)
        if self.beams is not None and request.temperature:
            exchange.ignore(["temperature"])  # beams are ranked by the model's own logprobs
        self.id = f"{kind}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = service.model(request.model)
        self.params = params
        self.prompts = prompts
        self.completion_tokens = 0
        self.prompt_tokens = [0] * len(prompts)  # known with the first output
        self.cached_tokens = [0] * len(prompts)
        self.metrics, self.outbox = service.metrics, service.outbox
        self._service = service
        self.exchange = exchange
        self._priority = request.priority
        self._deadline = exchange.timeout() if request.deadline_ms is None else request.deadline_ms / 1000
        wanted = request.include_metrics or service.server.enable_per_request_metrics
        self._wants_times = bool(wanted) and len(prompts) == 1
        self.names_ids = bool(request.return_tokens_as_token_ids) or service.server.return_tokens_as_token_ids
        self._times: RequestMetrics | None = None
        self.interval = request.stream_interval or 1
        self._salt = service.keys.salt(exchange.key, request.cache_salt or "")
        self._prompt_param = prompt_param
        self._add_special_tokens = add_special_tokens
        # Of several prompts, whose answers come one after the other.
        self.queue: Queue | None = None

    async def stream(self, write: Write) -> AsyncGenerator[bytes, None]:
        """What `write` makes of the outputs, as they come, but for what could be sent at once, which has been."""
        async with aclosing(self.outputs(write)) as outputs:
            async for prompt, output in outputs:
                if data := write(prompt, output):
                    yield data

    async def outputs(self, write: Write | None = None) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """(prompt, output) as they come; an error before the first ends all of them.

        With `write`, those that can be written and sent in the pass over their step do not come here.
        """
        with self.exchange.limited(self._deadline):
            try:
                if len(self.prompts) == 1:
                    async with aclosing(self._answer(0, write)) as answer:
                        async for output in answer:
                            yield 0, output
                else:
                    async with aclosing(self._all(write)) as outputs:
                        async for item in outputs:
                            yield item
            finally:
                self._meter()

    def _meter(self) -> None:
        number = self._service.keys.number(self.exchange.key)
        if number:
            self.exchange.fields["key"] = number
            used = (sum(self.prompt_tokens), sum(self.cached_tokens), self.completion_tokens)
            self.metrics.on_key(number, *used)

    def timings(self) -> RequestTimings | UnsetType:
        """What `include_metrics` asks for, once the answer is complete. It has no meaning for several answers."""
        times = self._times
        if not self._wants_times or times is None or times.finished_time is None or self.params.n > 1:
            return UNSET
        found = RequestTimings()
        if times.scheduled_time is not None:
            found.queue_time_ms = _ms(times.scheduled_time - times.arrival_time)
        if times.first_token_time is not None:
            seconds = times.finished_time - times.first_token_time
            found.time_to_first_token_ms = _ms(times.first_token_time - times.arrival_time)
            found.generation_time_ms = _ms(seconds)
            if self.completion_tokens > 1 and seconds > 0:
                found.mean_itl_ms = _ms(seconds / (self.completion_tokens - 1))
                found.tokens_per_second = round((self.completion_tokens - 1) / seconds, 3)
        return found

    async def _all(self, write: Write | None) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """The answers to several prompts, as they come."""
        self.queue = queue = Queue(PENDING_OUTPUTS)
        tasks = []
        try:
            for i in range(len(self.prompts)):
                tasks.append(asyncio.create_task(self._pump(i, write, queue)))
                await asyncio.sleep(0)  # it tokenizes its prompt: between them others have their turn
            running = len(tasks)
            while running:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, prompt: int, write: Write | None, queue: Queue) -> None:
        try:
            async with aclosing(self._answer(prompt, write)) as answer:
                async for output in answer:
                    await queue.put((prompt, output))
            await queue.put(None)
        except Exception as error:  # handed to the request, whose task logs and answers it
            await queue.put(error)

    async def _answer(self, prompt: int, write: Write | None) -> AsyncGenerator[RequestOutput, None]:
        told = _Told(self, prompt, write)
        sink = None if write is None else told
        answer = self._beams(prompt) if self.beams else self._generate(self.prompts[prompt], self.params, sink)
        try:
            async with aclosing(answer):
                async for output in answer:
                    due = told.count(output)
                    if due is not None:
                        yield due
        except NanLogits:
            self.metrics.corrupted += 1
            raise
        finally:
            told.close()

    def _generate(
        self, prompt: Prompt, params: SamplingParams, sink: Sink | None = None
    ) -> AsyncGenerator[RequestOutput, None]:
        return self._service.llm.generate(
            prompt,
            params,
            request_id=self.exchange.request_id,
            priority=self._priority,
            cache_salt=self._salt,
            prompt_param=self._prompt_param,
            add_special_tokens=self._add_special_tokens,
            tenant=self._service.keys.number(self.exchange.key),
            queue_seconds=self._service.server.max_queue_seconds or None,
            sink=sink,
        )

    async def _beams(self, prompt: int) -> AsyncGenerator[RequestOutput, None]:
        assert self.beams is not None
        given, llm = self.prompts[prompt], self._service.llm
        ids = await self._service.encode(given, self._add_special_tokens) if isinstance(given, str) else given
        room = llm.max_model_len - len(ids)
        params = replace(self.beams)
        yield await beam_search(self._generate, llm.tokenizer, ids, params, room, self.exchange.request_id)

    def usage(self, completion_tokens: int | None = None, reasoning_tokens: int | None = None) -> Usage:
        prompt = sum(self.prompt_tokens)
        completion = self.completion_tokens if completion_tokens is None else completion_tokens
        usage = Usage(prompt, completion, prompt + completion, PromptTokensDetails(sum(self.cached_tokens)))
        if reasoning_tokens is not None:
            usage.completion_tokens_details = CompletionTokensDetails(min(reasoning_tokens, completion))
        return usage

    def begun(self, prompt: int, output: RequestOutput) -> None:
        """The first output for a prompt is there."""
        self.prompt_tokens[prompt] = len(output.prompt_token_ids)
        self.cached_tokens[prompt] = output.num_cached_tokens
        self.metrics.on_start(self.prompt_tokens[prompt], self.params)

    def finished(self, prompt: int, output: RequestOutput, tokens: list[int], reasons: dict[int, str]) -> None:
        """All answers to a prompt, of `tokens` tokens, are complete."""
        self.cached_tokens[prompt] = output.num_cached_tokens
        self._times = output.metrics
        self.metrics.on_finish(output, tokens, reasons.values())
        self._log(output, reasons)
        found = (len(output.prompt_token_ids), output.num_cached_tokens, sum(tokens))
        self.exchange.answered.append(Answered(self.id, self.model, self.params, output.metrics, *found))

    def _log(self, output: RequestOutput, reasons: dict[int, str]) -> None:
        first = output.metrics.first_token_time
        fields = self.exchange.fields
        fields["prompt_tokens"] = sum(self.prompt_tokens)
        fields["cached_tokens"] = sum(self.cached_tokens)
        fields["completion_tokens"] = self.completion_tokens
        fields["finish"] = ",".join(sorted(set(reasons.values())))
        if first is not None:
            fields.setdefault("first_token_ms", round((first - output.metrics.arrival_time) * 1000, 1))


class _Told:
    """What has come of the answers to one prompt; as a sink of the engine's, it sends what can be sent at once."""

    def __init__(self, run: Generation, prompt: int, write: Write | None) -> None:
        self._run, self._prompt, self._write = run, prompt, write
        self._exchange, self._queue, self._outbox = run.exchange, run.queue, run.outbox
        self._metrics = run.metrics
        self._streams = run.params.output_kind is RequestOutputKind.DELTA
        self._interval = run.interval if self._streams else 1
        self._tokens = [0] * run.params.n
        self._reasons: dict[int, str] = {}
        self._last = [0.0] * run.params.n  # when each answer's last piece came
        self._held: RequestOutput | None = None
        self._begun = self._finished = False

    def ready(self) -> bool:
        return self._exchange.ready() and (self._queue is None or self._queue.empty())

    def take(self, output: RequestOutput) -> None:
        assert self._write is not None, "nothing goes to a sink that cannot write"
        due = self.count(output)
        if due is not None and (data := self._write(self._prompt, due)):
            self._outbox.put(self._exchange, data)

    def count(self, output: RequestOutput) -> RequestOutput | None:
        """What is to be told now, by the interval that the client asked for."""
        run, metrics = self._run, self._metrics
        if not self._begun:
            self._begun = True
            run.begun(self._prompt, output)
        now = time.monotonic()
        for piece in output.outputs:
            index, count = piece.index, len(piece.token_ids)
            self._tokens[index] += count
            run.completion_tokens += count
            metrics.generation_tokens += count
            if self._streams and count:
                if self._last[index]:
                    metrics.inter_token.observe(now - self._last[index])
                self._last[index] = now
            if piece.finish_reason is not None:
                self._reasons[index] = finish_reason(piece)
        if output.finished:
            self._finished = True
            run.finished(self._prompt, output, self._tokens, self._reasons)
        return output if self._interval == 1 else self._due(output)

    def _due(self, output: RequestOutput) -> RequestOutput | None:
        held = self._held = output if self._held is None else merged(self._held, output)
        come = sum(self._tokens)
        sent = come - sum(len(piece.token_ids) for piece in held.outputs)
        if not (output.finished or not sent or come - sent >= self._interval):
            return None
        self._held = None
        return held

    def close(self) -> None:
        if self._begun and not self._finished:
            self._metrics.finished["abort"] += self._run.params.n


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def merged(first: RequestOutput, second: RequestOutput) -> RequestOutput:
    """Two outputs of a stream, as if they had come at once."""
    pieces = {piece.index: piece for piece in first.outputs}
    for piece in second.outputs:
        known = pieces.get(piece.index)
        if known is None:
            pieces[piece.index] = piece
            continue
        known.text += piece.text
        known.token_ids = known.token_ids + piece.token_ids
        if known.logprobs is not None and piece.logprobs is not None:
            known.logprobs = known.logprobs + piece.logprobs
        known.cumulative_logprob = piece.cumulative_logprob
        known.finish_reason, known.stop_reason = piece.finish_reason, piece.stop_reason
    second.outputs = list(pieces.values())
    return second


def finish_reason(piece: CompletionOutput) -> str:
    """stop or length; an answer that ended otherwise is an error of ours."""
    if piece.finish_reason == "error":
        raise InternalError
    if piece.finish_reason == "abort":
        raise EngineUnavailable("The answer was aborted by the server.")
    assert piece.finish_reason is not None
    return piece.finish_reason


def token_text(service: Service, token_id: int, decoded: str | None, as_ids: bool) -> str:
    """A token as logprobs name it. `decoded` is None where it is part of a character."""
    if as_ids:
        return f"token_id:{token_id}"
    if decoded is None:
        return service.llm.tokenizer.token_bytes(token_id).decode(errors="replace")
    return decoded


def prompt_logprobs(rows: Sequence[TokenLogprobs | None]) -> PromptLogprobs:
    return [
        None
        if row is None
        else {
            str(i): PromptLogprob(max(found.logprob, LEAST_LOGPROB), found.rank, found.decoded_token)
            for i, found in row.items()
        }
        for row in rows
    ]

"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from octavo.core.errors import RequestError
from octavo.core.outputs import CompletionOutput, RequestOutput, TokenLogprobs
from octavo.core.params import SamplingParams
from octavo.server import fields
from octavo.server.generation import (
    FINGERPRINT,
    LEAST_LOGPROB,
    Generation,
    prompt_logprobs,
    sampling_params,
    stream_options,
    token_text,
)
from octavo.server.http import BLANK, Exchange, Form, Response, Stream, event, json_response
from octavo.server.infill import fill_in
from octavo.server.protocol import (
    MAX_ANSWERS,
    MAX_PROMPTS,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    StreamOptions,
)
from octavo.server.service import Prompt, Service

_encode = msgspec.json.Encoder().encode


async def completions(service: Service, exchange: Exchange, body: bytes) -> Response | Stream:
    request, _, exchange.ignored = await fields.read(body, CompletionRequest)
    exchange.take_id(request.request_id)
    service.require(request.model, "generate")
    options = stream_options(request, service)
    params = _params(service, request)
    special = request.add_special_tokens
    given = read_prompts(request.prompt, "prompt", MAX_PROMPTS)
    if len(given) * params.n > MAX_ANSWERS:
        raise RequestError(f"{len(given)} prompts with n = {params.n} are more than {MAX_ANSWERS} answers.", "n")
    if request.suffix:
        given = [_between(service, request, prompt) for prompt in given]
    prompts = []
    for prompt in given:
        prompts.append(await service.truncate(prompt, request, params.max_tokens, special))
        await asyncio.sleep(0)  # each may be a text to tokenize: between them others have their turn
    run = Generation(
        *(service, exchange, request, prompts, params),
        kind="cmpl",
        prompt_param="prompt",
        add_special_tokens=special,
    )
    answer = CompletionAnswer(service, request, run, options)
    if request.stream:
        return Stream(answer.events())
    return json_response(await answer.whole())


def _params(service: Service, request: CompletionRequest) -> SamplingParams:
    n = 1 if request.n is None else request.n
    values: dict[str, Any] = {"n": n}
    if request.max_tokens != 0:
        values["logprobs"] = request.logprobs
    if request.max_tokens is not None:
        values["max_tokens"] = request.max_tokens
    if request.echo and (request.logprobs is not None or request.max_tokens == 0) and request.prompt_logprobs is None:
        values["prompt_logprobs"] = request.logprobs or 0
    params = sampling_params(request, service, **values)
    if request.best_of is None or request.best_of == n:
        return params
    if request.best_of < n:
        raise RequestError(f"best_of ({request.best_of}) is less than n ({n}).", "best_of")
    if request.stream:
        raise RequestError("best_of cannot be streamed: the best is known at the end.", "best_of")
    return params.clone(n=request.best_of, logprobs=params.logprobs or 0)


def read_prompts(given: str | Sequence[str | int | list[int]], param: str, most: int) -> list[Prompt]:
    """One text, or list of token ids, a prompt, from any of the four forms that the field `param` may have."""
    if isinstance(given, str):
        return [_prompt(given, param)]
    kinds = {type(item) for item in given}
    if len(kinds) != 1:
        raise RequestError(f"{param} must be a string, or a list that is not empty and all of one kind.", param)
    if kinds == {int}:
        return [_prompt(given, param)]
    if len(given) > most:
        raise RequestError(f"{param} may be a list of {most}, got {len(given)}.", param)
    return [_prompt(item, f"{param}[{i}]") for i, item in enumerate(given)]


def _between(service: Service, request: CompletionRequest, prompt: Prompt) -> str:
    """The prompt for what stands between it and the suffix."""
    if not isinstance(prompt, str) or request.echo:
        raise RequestError("suffix needs a prompt that is text, and no echo.", "suffix")
    return fill_in(service.llm.tokenizer, prompt, request.suffix or "")


def _prompt(given: Any, param: str) -> Prompt:
    if not given:
        raise RequestError(f"{param} must not be empty.", param)
    if not isinstance(given, str) and not all(type(i) is int and 0 <= i < 2**31 for i in given):
        raise RequestError(f"{param} holds what is no token id.", param)
    return given  # type: ignore[no-any-return]


class CompletionAnswer:
    """Formats what a generation yields, whole or as events. Choice p * n + i is answer i to prompt p."""

    def __init__(self, service: Service, request: CompletionRequest, run: Generation, options: StreamOptions) -> None:
        self.service = service
        self.request = request
        self.run = run
        self.options = options
        self.n = request.n or 1
        choices = len(run.prompts) * self.n
        self.offsets = [0] * choices  # characters of each choice that were sent
        self.counts = [0] * choices  # tokens
        self.begun = [False] * choices
        self.forms: dict[int, Form] = {}
        # Chunks say more than their text: how many tokens there are, which they are, or how likely.
        counts = options.include_usage and options.continuous_usage_stats
        self.detailed = bool(counts or request.return_token_ids or request.logprobs is not None)

    async def whole(self) -> Completion:
        finals: dict[int, RequestOutput] = {}
        async with aclosing(self.run.outputs()) as outputs:
            async for prompt, output in outputs:
                finals[prompt] = output
        choices = []
        for prompt, output in sorted(finals.items()):
            pieces = sorted(output.outputs, key=lambda piece: piece.index)
            if len(pieces) > self.n:
                pieces = sorted(pieces, key=mean_logprob, reverse=True)[: self.n]
            for i, piece in enumerate(pieces):
                choice = self.choice(prompt * self.n + i, piece)
                self.add_prompt(choice, prompt, output)
                choices.append(choice)
        return self.completion(choices, usage=self.run.usage(), metrics=self.run.timings())

    async def events(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self.run.stream(self.write)) as events:
            async for data in events:
                yield data
        if self.options.include_usage:
            yield event(_encode(self.completion([], usage=self.run.usage())))

    def write(self, prompt: int, output: RequestOutput) -> bytes:
        """What an output says, as events."""
        events = []
        for piece in output.outputs:
            index = prompt * self.n + piece.index
            self.counts[index] += len(piece.token_ids)
            if self.begun[index] and piece.finish_reason is None and not self.detailed:
                events.append(self.form(index).filled(piece.text))
                continue
            choice = self.choice(index, piece)
            if not self.begun[index]:
                self.begun[index] = True
                self.add_prompt(choice, prompt, output)
            chunk = self.completion([choice])
            if self.options.include_usage:
                chunk.usage = self.run.usage(self.counts[index]) if self.options.continuous_usage_stats else None
            if output.finished:
                chunk.metrics = self.run.timings()
            events.append(event(_encode(chunk)))
        return b"".join(events)

    def form(self, index: int) -> Form:
        """The chunk in which a choice says some text."""
        found = self.forms.get(index)
        if found is None:
            blank: Any = BLANK
            chunk = self.completion([CompletionChoice(index, blank)])
            if self.options.include_usage:
                chunk.usage = None
            found = self.forms[index] = Form(chunk)
        return found

    def completion(self, choices: list[CompletionChoice], **values: Any) -> Completion:
        run = self.run
        return Completion(
            id=run.id,
            created=run.created,
            model=run.model,
            system_fingerprint=FINGERPRINT,
            choices=choices,
            **values,
        )

    def choice(self, index: int, piece: CompletionOutput) -> CompletionChoice:
        asked = self.request
        choice = CompletionChoice(index, piece.text, finish_reason=piece.finish_reason)
        if piece.finish_reason is not None:
            choice.stop_reason = piece.stop_reason
        if asked.return_token_ids:
            choice.token_ids = piece.token_ids
        if asked.logprobs is not None and piece.logprobs is not None and (piece.token_ids or not asked.stream):
            choice.logprobs = CompletionLogprobs([], [], [], [])
            for token_id, row in zip(piece.token_ids, piece.logprobs, strict=True):
                self.add_logprob(choice.logprobs, token_id, row, asked.logprobs, index)
        return choice

    def add_prompt(self, choice: CompletionChoice, prompt: int, output: RequestOutput) -> None:
        """What was asked to be known of the prompt, with the first piece of each of its answers."""
        ids, asked = output.prompt_token_ids, self.request
        if asked.return_token_ids:
            choice.prompt_token_ids = ids
        if asked.prompt_logprobs is not None and output.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs(output.prompt_logprobs)
        if not asked.echo:
            return
        choice.text = self.prompt_text(prompt, ids) + choice.text
        if asked.logprobs is None or output.prompt_logprobs is None:
            return
        index, answer = choice.index, choice.logprobs
        self.offsets[index] = 0
        both = choice.logprobs = CompletionLogprobs([], [], [], [])
        for token_id, row in zip(ids, output.prompt_logprobs, strict=True):
            self.add_logprob(both, token_id, row, asked.logprobs, index)
        if answer is not None:
            shift = self.offsets[index]
            both.text_offset += [shift + offset for offset in answer.text_offset]
            both.token_logprobs += answer.token_logprobs
            both.tokens += answer.tokens
            both.top_logprobs += answer.top_logprobs
            self.offsets[index] = shift + sum(map(len, answer.tokens))

    def add_logprob(
        self, to: CompletionLogprobs, token_id: int, row: TokenLogprobs | None, most: int, index: int
    ) -> None:
        as_ids = self.run.names_ids
        if row is None:  # the first token of a prompt follows from nothing
            text = token_text(self.service, token_id, None, as_ids)
            logprob, top = None, None
        else:
            names = {i: token_text(self.service, i, found.decoded_token, as_ids) for i, found in row.items()}
            text = names[token_id]
            logprob = max(row[token_id].logprob, LEAST_LOGPROB)
            top = {
                names[i]: max(found.logprob, LEAST_LOGPROB)
                for i, found in row.items()
                if i == token_id or (found.rank or 1) <= most
            }
        to.text_offset.append(self.offsets[index])
        to.token_logprobs.append(logprob)
        to.tokens.append(text)
        to.top_logprobs.append(top)
        self.offsets[index] += len(text)

    def prompt_text(self, prompt: int, ids: list[int]) -> str:
        given = self.run.prompts[prompt]
        return given if isinstance(given, str) else self.service.llm.tokenizer.decode(ids)


def mean_logprob(piece: CompletionOutput) -> float:
    """How `best_of` ranks answers: logprob per token."""
    return (piece.cumulative_logprob or 0.0) / max(1, len(piece.token_ids))

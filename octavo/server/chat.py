"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import UNSET

from octavo.core.errors import RequestError
from octavo.core.outputs import CompletionOutput, RequestOutput, TokenLogprobs
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
from octavo.server.http import Exchange, Response, Stream, event, json_response
from octavo.server.protocol import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    ChatRequest,
    Delta,
    TokenLogprob,
    TopLogprob,
)
from octavo.server.service import Service, offload

_encode = msgspec.json.Encoder().encode


async def chat_completions(service: Service, exchange: Exchange, body: bytes) -> Response | Stream:
    request, tree, exchange.ignored = fields.decode(body, ChatRequest)
    exchange.take_id(request.request_id)
    service.model(request.model)
    options = stream_options(request)
    params = _params(service, request)
    messages: list[dict[str, Any]] = tree["messages"]
    text = await offload(len(body), lambda: _render(service, request, messages))
    special = request.add_special_tokens
    prompt = await service.truncate(text, request, params.max_tokens, special)
    run = Generation(
        *(service, exchange, request, [prompt], params),
        kind="chatcmpl",
        prompt_param="messages",
        add_special_tokens=special,
    )
    answer = _Answer(service, request, run, text, _echoed(request, messages))
    if request.stream:
        return Stream(answer.events(options.include_usage, options.include_usage and options.continuous_usage_stats))
    return json_response(await answer.whole())


def _params(service: Service, request: ChatRequest) -> Any:
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true.", "top_logprobs")
    name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    values: dict[str, Any] = {"max_tokens": getattr(request, name)}
    if request.logprobs:
        values["logprobs"] = request.top_logprobs or 0
    try:
        return sampling_params(request, service.defaults, **values)
    except RequestError as error:
        if error.param == "max_tokens":
            error.param = name
        raise


def _render(service: Service, request: ChatRequest, messages: list[dict[str, Any]]) -> str:
    goes_on = request.continue_final_message
    return service.render(
        messages,
        documents=request.documents,
        add_generation_prompt=not goes_on if request.add_generation_prompt is None else request.add_generation_prompt,
        continue_final_message=goes_on,
        variables=request.chat_template_kwargs,
    )


def _echoed(request: ChatRequest, messages: list[dict[str, Any]]) -> str:
    """What vLLM's `echo` puts before an answer: the last message, where the answer continues its speaker's words."""
    last = messages[-1]
    if not request.echo or last["role"] != "assistant" or not isinstance(last.get("content"), str):
        return ""
    return str(last["content"])


class _Answer:
    """Formats what a generation yields, whole or as events."""

    def __init__(self, service: Service, request: ChatRequest, run: Generation, text: str, echo: str) -> None:
        self.service = service
        self.request = request
        self.run = run
        self.text = text
        self.echo = echo

    async def whole(self) -> ChatCompletion:
        run, request = self.run, self.request
        async with aclosing(run.outputs()) as outputs:
            async for _, output in outputs:
                final = output
        choices = [
            ChatChoice(
                index=piece.index,
                message=ChatMessage(self.echo + piece.text),
                logprobs=self.logprobs(piece),
                finish_reason=str(piece.finish_reason),
                stop_reason=piece.stop_reason,
                token_ids=piece.token_ids if request.return_token_ids else UNSET,
            )
            for piece in sorted(final.outputs, key=lambda piece: piece.index)
        ]
        answer = ChatCompletion(run.id, run.created, run.model, choices, run.usage(), FINGERPRINT)
        self.add_prompt(answer, final)
        return answer

    async def events(self, include_usage: bool, continuous: bool) -> AsyncGenerator[bytes, None]:
        run = self.run
        counts = [0] * run.params.n

        def chunk(choice: ChatChunkChoice) -> ChatChunk:
            found = self.chunk([choice])
            if include_usage:  # null in all but the last, as OpenAI has it
                found.usage = run.usage(counts[choice.index]) if continuous else None
            return found

        begun = False
        async with aclosing(run.outputs()) as outputs:
            async for _, output in outputs:
                chunks: list[ChatChunk] = []
                if not begun:
                    begun = True
                    role = Delta("assistant", self.echo)
                    chunks = [chunk(ChatChunkChoice(i, role)) for i in range(run.params.n)]
                    self.add_prompt(chunks[0], output)
                for piece in output.outputs:
                    counts[piece.index] += len(piece.token_ids)
                    chunks += map(chunk, self.choices(piece))
                if chunks:
                    yield b"".join([event(_encode(each)) for each in chunks])
        if include_usage:
            last = self.chunk([])
            last.usage = run.usage()
            yield event(_encode(last))

    def chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(self.run.id, self.run.created, self.run.model, choices, FINGERPRINT)

    def choices(self, piece: CompletionOutput) -> list[ChatChunkChoice]:
        """What one piece of an answer says: some content, and that it has ended."""
        found = []
        logprobs = self.logprobs(piece)
        ids = piece.token_ids if self.request.return_token_ids and piece.token_ids else UNSET
        if piece.text or logprobs is not None or ids is not UNSET:
            found.append(ChatChunkChoice(piece.index, Delta(content=piece.text), logprobs, token_ids=ids))
        if piece.finish_reason is not None:
            end = ChatChunkChoice(piece.index, Delta(), None, piece.finish_reason, piece.stop_reason)
            found.append(end)
        return found

    def logprobs(self, piece: CompletionOutput) -> ChatLogprobs | None:
        if piece.logprobs is None or (self.request.stream and not piece.token_ids):
            return None
        rows = zip(piece.token_ids, piece.logprobs, strict=True)
        return ChatLogprobs([self.token_logprob(token_id, row) for token_id, row in rows])

    def token_logprob(self, token_id: int, row: TokenLogprobs) -> TokenLogprob:
        most = self.request.top_logprobs or 0
        ranked = sorted((found.rank or 1, token) for token, found in row.items())
        top = [self.top(token, row) for rank, token in ranked if rank <= most]
        chosen = self.top(token_id, row)
        return TokenLogprob(chosen.token, chosen.logprob, chosen.bytes, top)

    def top(self, token_id: int, row: TokenLogprobs) -> TopLogprob:
        found = row[token_id]
        text = token_text(self.service, token_id, found.decoded_token, bool(self.request.return_tokens_as_token_ids))
        data = self.service.llm.tokenizer.token_bytes(token_id)
        return TopLogprob(text, max(found.logprob, LEAST_LOGPROB), list(data))

    def add_prompt(self, answer: ChatCompletion | ChatChunk, output: RequestOutput) -> None:
        """What was asked to be known about the prompt: with the answer, or with the first chunk."""
        if self.request.prompt_logprobs is not None and output.prompt_logprobs is not None:
            answer.prompt_logprobs = prompt_logprobs(output.prompt_logprobs)
        if self.request.return_token_ids:
            answer.prompt_token_ids = output.prompt_token_ids
        if self.request.return_prompt_text:
            answer.prompt_text = self.text

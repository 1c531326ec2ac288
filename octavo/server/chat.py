"""POST /v1/chat/completions, and the chat that other routes speak in their own words.

`begin` checks a request and returns its `ChatAnswer`, which gives the whole `ChatCompletion` or its chunks: the routes
of other dialects (/v1/responses, /v1/messages) translate their requests to it and its answers back.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import cached_property
from typing import Any

import msgspec
from msgspec import UNSET

from octavo.core.errors import ContextLengthExceeded, RequestError
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
from octavo.server.protocol import (
    CalledCustom,
    CalledFunction,
    CalledTool,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    ChatRequest,
    CustomDelta,
    Delta,
    FunctionDelta,
    StreamOptions,
    TokenLogprob,
    ToolDelta,
    TopLogprob,
    Usage,
)
from octavo.server.service import Service
from octavo.server.tools import Reader, Toolbox, enforce, toolbox, with_tool_calls
from octavo.text.parsing import base as parsing
from octavo.text.parsing.base import Call, Parsed
from octavo.text.parsing.custom import Inputs

_encode = msgspec.json.Encoder().encode


async def chat_completions(service: Service, exchange: Exchange, body: bytes) -> Response | Stream:
    request, tree, exchange.ignored = await fields.read(body, ChatRequest)
    exchange.take_id(request.request_id)
    answer = await begin(service, exchange, request, tree, len(body))
    return Stream(_events(answer)) if request.stream else json_response(await answer.whole())


async def begin(
    service: Service, exchange: Exchange, request: ChatRequest, tree: dict[str, Any], size: int
) -> ChatAnswer:
    """Checks a request, of which `tree` is the plain data, about `size` characters long, and renders its prompt."""
    service.require(request.model, "generate")
    options = stream_options(request, service)
    tools = toolbox(request, tree, service)
    reader = Reader(service, tools.functions, request.skip_special_tokens)
    params = _params(service, request, reader)
    if len(request.messages) > service.llm.max_model_len:  # each takes a token at least; to render them takes long
        raise ContextLengthExceeded("There are more messages than the model's context has tokens.", "messages")
    messages = with_tool_calls(tree["messages"])
    variables, unused = _variables(service, request)
    exchange.ignored = ",".join(filter(None, (exchange.ignored, unused)))
    text = await _render(service, request, messages, tools.shown, variables, size)
    params = enforce(params, tools, reader.parser(text), service.template_text)
    special = request.add_special_tokens
    prompt = await service.truncate(text, request, params.max_tokens, special)
    run = Generation(
        *(service, exchange, request, [prompt], params),
        kind="chatcmpl",
        prompt_param="messages",
        add_special_tokens=special,
    )
    return ChatAnswer(service, request, run, text, _echoed(request, messages), options, tools, reader)


async def _events(answer: ChatAnswer) -> AsyncGenerator[bytes, None]:
    async with aclosing(answer.run.stream(answer.write)) as events:
        async for data in events:
            yield data
    for chunk in await answer.last():
        yield event(_encode(chunk))


def _params(service: Service, request: ChatRequest, reader: Reader) -> SamplingParams:
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true.", "top_logprobs")
    name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    values: dict[str, Any] = {"max_tokens": getattr(request, name)}
    if request.logprobs:
        values["logprobs"] = request.top_logprobs or 0
    if reader.raw:
        values["skip_special_tokens"] = False
    if (thinking := service.format.thinking) is not None:
        values["thinking_marks"] = [thinking.begin, thinking.end]
    try:
        return sampling_params(request, service, **values)
    except RequestError as error:
        if error.param == "max_tokens":
            error.param = name
        raise


def _variables(service: Service, request: ChatRequest) -> tuple[dict[str, Any], str]:
    """What the chat template is told beside the messages, and the field that it has no use for, if there is one."""
    effort, given = request.reasoning_effort, request.chat_template_kwargs or {}
    if effort is None:
        return given, ""
    thinks = effort != "none"
    known = {"reasoning_effort": effort, "enable_thinking": thinks, "thinking": thinks}
    used = any(name in service.template_text for name in ("reasoning_effort", "enable_thinking", "thinking"))
    return {**known, **given}, "" if used else "reasoning_effort"


async def _render(
    service: Service,
    request: ChatRequest,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    variables: dict[str, Any],
    size: int,
) -> str:
    goes_on = request.continue_final_message
    return await service.render(
        size,
        messages,
        tools=tools,
        documents=request.documents,
        add_generation_prompt=not goes_on if request.add_generation_prompt is None else request.add_generation_prompt,
        continue_final_message=goes_on,
        variables=variables,
    )


def _echoed(request: ChatRequest, messages: list[dict[str, Any]]) -> str:
    """What vLLM's `echo` puts before an answer: the last message, where the answer continues its speaker's words."""
    last = messages[-1]
    if not request.echo or last["role"] != "assistant" or not isinstance(last.get("content"), str):
        return ""
    return str(last["content"])


class ChatAnswer:
    """Formats what a generation yields, whole or in chunks."""

    def __init__(
        self,
        service: Service,
        request: ChatRequest,
        run: Generation,
        text: str,
        echo: str,
        options: StreamOptions,
        tools: Toolbox,
        reader: Reader,
    ) -> None:
        self.service = service
        self.request = request
        self.run = run
        self.text = text
        self.echo = echo
        self.options = options
        self.tools = tools
        self.parsers = [reader.parser(text) for _ in range(run.params.n)]
        # Nothing reads the text: all that an answer says is content.
        self.plain = not tools.customs and all(parser is None for parser in self.parsers)
        self.parsed = [Parsed() for _ in self.parsers]
        self.inputs = [Inputs(tools.customs) for _ in self.parsers]
        self.counts = [0] * run.params.n  # tokens of each answer so far
        self.begun = False
        # Chunks say more than what is told: how many tokens there are, which they are, or how likely.
        counts = options.include_usage and options.continuous_usage_stats
        self.detailed = bool(counts or request.return_token_ids or request.logprobs)

    async def whole(self) -> ChatCompletion:
        run, request = self.run, self.request
        async with aclosing(run.outputs()) as outputs:
            async for _, output in outputs:
                final = output
        choices = []
        for piece in sorted(final.outputs, key=lambda piece: piece.index):
            self.read(piece)
            choice = ChatChoice(
                index=piece.index,
                message=self.message(self.parsed[piece.index]),
                logprobs=self.logprobs(piece),
                finish_reason=self.finish_reason(piece),
                stop_reason=piece.stop_reason,
                token_ids=piece.token_ids if request.return_token_ids else UNSET,
            )
            choices.append(choice)
        answer = ChatCompletion(
            id=run.id,
            created=run.created,
            model=run.model,
            system_fingerprint=FINGERPRINT,
            choices=choices,
            usage=await self.usage(),
        )
        answer.metrics = run.timings()
        self.add_prompt(answer, final)
        return answer

    def read(self, piece: CompletionOutput) -> list[parsing.Delta]:
        """What a piece of an answer says. Of calls that were not to be made at once, only the first is told."""
        parser = self.parsers[piece.index]
        if parser is None:
            told = [parsing.Delta("content", piece.text)] if piece.text else []
        else:
            told = parser.feed(piece.text) + (parser.finish() if piece.finish_reason is not None else [])
            told = [delta for delta in told if self.tools.parallel or delta.index == 0]
        if self.tools.customs:
            told = self.inputs[piece.index].read(told, piece.finish_reason is not None)
        for delta in told:
            if delta.kind != "content" or not self.request.stream:  # content that was sent is needed no more
                self.parsed[piece.index].add(delta)
        if piece.finish_reason is not None:
            self.count_calls(piece.index)
        return told

    def message(self, parsed: Parsed) -> ChatMessage:
        calls = [self.called(call) for call in parsed.calls]
        silent = not parsed.content and (parsed.calls or parsed.reasoning)
        message = ChatMessage(None if silent else self.echo + parsed.content)
        if parsed.reasoning and self.request.include_reasoning is not False:
            message.reasoning = message.reasoning_content = parsed.reasoning
        if parsed.calls and self.tools.legacy:
            message.function_call = CalledFunction(parsed.calls[0].name, parsed.calls[0].arguments)
        elif calls:
            message.tool_calls = calls
        return message

    def called(self, call: Call) -> CalledTool:
        if call.name in self.tools.customs:
            return CalledTool(id=call.id, type="custom", custom=CalledCustom(call.name, call.arguments))
        return CalledTool(id=call.id, function=CalledFunction(call.name, call.arguments))

    def finish_reason(self, piece: CompletionOutput) -> str:
        if piece.finish_reason == "stop" and self.parsed[piece.index].calls:
            return "function_call" if self.tools.legacy else "tool_calls"
        return str(piece.finish_reason)

    def count_calls(self, index: int) -> None:
        """An answer to a request with tools is complete."""
        if self.tools.functions:
            mode = "streaming" if self.request.stream else "non_streaming"
            outcome = "tool_call" if self.parsed[index].calls else "no_tool_call"
            self.service.metrics.tool_calls[mode, outcome] += 1

    async def usage(self) -> Usage:
        """Of all answers. Reasoning is counted by its text: where it ends in the tokens depends on the format."""
        texts = [parsed.reasoning for parsed in self.parsed if parsed.reasoning]
        counts = [len(await self.service.encode(text, False)) for text in texts]
        return self.run.usage(reasoning_tokens=sum(counts))

    def chunks(self, output: RequestOutput) -> list[ChatChunk]:
        """What an output says."""
        run, chunks = self.run, []
        if not self.begun:
            self.begun = True
            role = Delta("assistant", self.echo)
            chunks = [self.chunk(ChatChunkChoice(i, role)) for i in range(run.params.n)]
            self.add_prompt(chunks[0], output)
        for piece in output.outputs:
            self.counts[piece.index] += len(piece.token_ids)
            chunks += map(self.chunk, self.choices(piece, self.read(piece)))
            if output.finished:
                chunks[-1].metrics = run.timings()
        return chunks

    def write(self, _: int, output: RequestOutput) -> bytes:
        """Its chunks as events; those of content alone are not made, but filled in."""
        if self.detailed or output.finished or not self.begun:
            return b"".join([event(_encode(chunk)) for chunk in self.chunks(output)])
        events = []
        for piece in output.outputs:
            if self.plain and piece.finish_reason is None:
                if piece.text:
                    events.append(self.contents[piece.index].filled(piece.text))
                continue
            told = self.read(piece)
            if piece.finish_reason is None and len(told) == 1 and told[0].kind == "content":
                events.append(self.contents[piece.index].filled(told[0].text))
            else:
                events += [event(_encode(self.chunk(choice))) for choice in self.choices(piece, told)]
        return b"".join(events)

    @cached_property
    def contents(self) -> list[Form]:
        """The chunk in which each answer says some content."""
        blank: Any = BLANK
        return [Form(self.chunk(ChatChunkChoice(i, Delta(content=blank)))) for i in range(self.run.params.n)]

    async def last(self) -> list[ChatChunk]:
        """What is told when all has been."""
        if not self.options.include_usage:
            return []
        last = self.chunk()
        last.usage = await self.usage()
        return [last]

    def chunk(self, choice: ChatChunkChoice | None = None) -> ChatChunk:
        run, options = self.run, self.options
        found = ChatChunk(
            id=run.id,
            created=run.created,
            model=run.model,
            system_fingerprint=FINGERPRINT,
            choices=[] if choice is None else [choice],
        )
        if choice is not None and options.include_usage:  # null in all but the last, as OpenAI has it
            found.usage = run.usage(self.counts[choice.index]) if options.continuous_usage_stats else None
        return found

    def choices(self, piece: CompletionOutput, told: list[parsing.Delta]) -> list[ChatChunkChoice]:
        """What one piece of an answer says: what was `told` by it, and that it has ended."""
        deltas = [self.delta(each, piece.index) for each in told]
        shown = [delta for delta in deltas if delta is not None]
        logprobs = self.logprobs(piece)
        ids = piece.token_ids if self.request.return_token_ids and piece.token_ids else UNSET
        if not shown and (logprobs is not None or ids is not UNSET):
            shown = [Delta(content="")]
        found = [ChatChunkChoice(piece.index, delta) for delta in shown]
        if found:
            found[0].logprobs, found[0].token_ids = logprobs, ids
        if piece.finish_reason is not None:
            reason = self.finish_reason(piece)
            found.append(ChatChunkChoice(piece.index, Delta(), None, reason, piece.stop_reason))
        return found

    def delta(self, told: parsing.Delta, index: int) -> Delta | None:
        """Something that answer `index` says."""
        if told.kind == "content":
            return Delta(content=told.text)
        if told.kind == "reasoning":
            hidden = self.request.include_reasoning is False
            return None if hidden else Delta(reasoning=told.text, reasoning_content=told.text)
        name = UNSET if told.name is None else told.name
        if self.tools.legacy:
            return Delta(function_call=FunctionDelta(name=name, arguments=told.text))
        call = ToolDelta(index=told.index)
        custom = self.inputs[index].custom(told.index)
        if custom:
            call.custom = CustomDelta(name=name, input=told.text)
        else:
            call.function = FunctionDelta(name=name, arguments=told.text)
        if told.id is not None:
            call.id, call.type = told.id, "custom" if custom else "function"
        return Delta(tool_calls=[call])

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
        text = token_text(self.service, token_id, found.decoded_token, self.run.names_ids)
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

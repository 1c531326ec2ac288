"""From the chunks of a chat to Anthropic's events, and to the whole message that they build."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import msgspec

from octavo.core.outputs import RequestOutput
from octavo.server.chat import ChatAnswer
from octavo.server.messages import protocol as p
from octavo.server.protocol import ChatChunkChoice, FunctionDelta, ToolDelta, Usage

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageBuilder:
    """Reads the chunks of one answer; blocks follow each other, and only the last is open."""

    def __init__(self, answer: ChatAnswer) -> None:
        self.answer = answer
        run = answer.run
        id = "msg_" + run.id.removeprefix("chatcmpl-")
        self.message = p.MessageAnswer(id=id, model=run.model, content=[], usage=p.MessageUsage(0, 0, 0))
        self.open = ""  # the kind of the open block: text, thinking, or a call's number
        self.arguments = ""  # of the open call
        self.begun = False

    def events(self, output: RequestOutput) -> Iterator[p.MessageEvent]:
        """What an output says."""
        if not self.begun:
            self.begun = True
            self.message.usage = usage(self.answer.run.usage(0))
            yield p.MessageStart(msgspec.structs.replace(self.message, content=[]))
            yield p.Ping()
        for chunk in self.answer.chunks(output):
            for choice in chunk.choices:
                yield from self.read(choice)

    async def last(self) -> list[p.MessageEvent]:
        """What is told when all has been."""
        self.message.usage = usage(await self.answer.usage())
        end = p.EndDelta(str(self.message.stop_reason), self.message.stop_sequence)
        return [p.MessageDelta(end, self.message.usage), p.MessageStop()]

    async def whole(self) -> p.MessageAnswer:
        async with aclosing(self.answer.run.outputs()) as outputs:
            async for _, output in outputs:
                for _ in self.events(output):
                    pass
        await self.last()
        return self.message

    def read(self, choice: ChatChunkChoice) -> Iterator[p.MessageEvent]:
        delta = choice.delta
        if delta.reasoning:
            yield from self.say("thinking", delta.reasoning)
        if delta.content:
            yield from self.say("text", delta.content)
        for call in delta.tool_calls or ():
            yield from self.call(call)
        if choice.finish_reason is not None:
            yield from self.close()
            if not self.message.content:  # clients expect a block
                yield from self.begin("text", p.Text(""))
                yield from self.close()
            self.end(choice)

    def say(self, kind: str, text: str) -> Iterator[p.MessageEvent]:
        if self.open != kind:
            yield from self.close()
            yield from self.begin(kind, p.Text("") if kind == "text" else p.Thinking("", ""))
        block = self.message.content[-1]
        index = len(self.message.content) - 1
        if isinstance(block, p.Text):
            block.text += text
            yield p.BlockDelta(index, p.TextDelta(text))
        elif isinstance(block, p.Thinking):
            block.thinking += text
            yield p.BlockDelta(index, p.ThinkingDelta(text))

    def call(self, call: ToolDelta) -> Iterator[p.MessageEvent]:
        kind, function = str(call.index), call.function
        assert isinstance(function, FunctionDelta), "these clients know no other tools"
        if self.open != kind:
            yield from self.close()
            yield from self.begin(kind, p.ToolUse(call.id or "", function.name or "", {}))
        if function.arguments:
            self.arguments += function.arguments
            yield p.BlockDelta(len(self.message.content) - 1, p.InputDelta(function.arguments))

    def begin(self, kind: str, block: p.AnswerBlock) -> Iterator[p.MessageEvent]:
        self.open, self.arguments = kind, ""
        self.message.content.append(block)
        yield p.BlockStart(len(self.message.content) - 1, msgspec.structs.replace(block))

    def close(self) -> Iterator[p.MessageEvent]:
        if not self.open:
            return
        block, index = self.message.content[-1], len(self.message.content) - 1
        if isinstance(block, p.ToolUse):
            block.input = arguments(self.arguments)
        elif isinstance(block, p.Thinking):
            yield p.BlockDelta(index, p.SignatureDelta(""))
        self.open = ""
        yield p.BlockStop(index)

    def end(self, choice: ChatChunkChoice) -> None:
        reason: Any = _STOP_REASONS[str(choice.finish_reason)]
        if reason == "end_turn" and isinstance(choice.stop_reason, str):
            reason, self.message.stop_sequence = "stop_sequence", choice.stop_reason
        self.message.stop_reason = reason


def arguments(text: str) -> dict[str, Any]:
    """What a call is given. What a model wrote need not be an object, or whole: then it is kept as text."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"arguments": text}


def usage(found: Usage) -> p.MessageUsage:
    """Anthropic counts the tokens that came from the cache apart."""
    cached = found.prompt_tokens_details.cached_tokens
    return p.MessageUsage(found.prompt_tokens - cached, found.completion_tokens, cached)

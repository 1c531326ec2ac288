"""From the chunks of a chat to the events of a response, and to the whole that they build."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from msgspec import UNSET
from msgspec.structs import replace

from octavo.core.errors import RequestError
from octavo.core.outputs import RequestOutput
from octavo.server.chat import ChatAnswer
from octavo.server.protocol import ChatChunkChoice, TokenLogprob, ToolDelta, Usage
from octavo.server.responses import protocol as p


class ResponseBuilder:
    """Reads the chunks of one answer; items follow each other, and only the last is open."""

    def __init__(self, response: p.ResponseObject, answer: ChatAnswer) -> None:
        self.response = response
        self.answer = answer
        self.sequence = 0
        self.open = ""  # the kind of the open item: message, reasoning, or a call's number
        self.logprobs: list[TokenLogprob] = []  # of tokens whose text has not come yet

    def next(self) -> int:
        self.sequence += 1
        return self.sequence - 1

    def snapshot(self) -> p.ResponseObject:
        return replace(self.response, output=list(self.response.output))

    def events(self, output: RequestOutput) -> Iterator[p.AnyEvent]:
        """What an output says."""
        response = self.response
        if not self.sequence:  # an error before this is an ordinary answer
            yield p.Created(self.next(), self.snapshot())
            if response.status == "queued":
                yield p.Queued(self.next(), self.snapshot())
            response.status = "in_progress"
            yield p.InProgress(self.next(), self.snapshot())
        for chunk in self.answer.chunks(output):
            for choice in chunk.choices:
                yield from self.read(choice)

    async def last(self) -> p.AnyEvent:
        """What is told when all has been; the response is complete from then on."""
        response = self.response
        response.usage = usage(await self.answer.usage())
        if response.incomplete_details is not None:
            response.status = "incomplete"
            return p.Incomplete(self.next(), self.snapshot())
        response.status, response.completed_at = "completed", int(time.time())
        return p.Completed(self.next(), self.snapshot())

    def failed(self, error: RequestError) -> p.Failed:
        self.response.status = "failed"
        self.response.error = p.ResponseFailure(error.code, error.message)
        return p.Failed(self.next(), self.snapshot())

    def read(self, choice: ChatChunkChoice) -> Iterator[p.AnyEvent]:
        delta = choice.delta
        if delta.reasoning:
            yield from self.reason(delta.reasoning)
        if delta.content is not UNSET:
            if choice.logprobs is not None:
                self.logprobs += choice.logprobs.content
            if delta.content:
                yield from self.say(delta.content)
        for call in delta.tool_calls or ():
            yield from self.call(call)
        if choice.finish_reason is not None:
            if choice.finish_reason == "length":
                self.response.incomplete_details = p.IncompleteDetails("max_output_tokens")
            if not self.response.output:  # clients expect a message
                yield from self.begin("message", p.OutputMessage(_id("msg"), "in_progress", []), p.OutputText(""))
            yield from self.close("incomplete" if choice.finish_reason == "length" else "completed")

    # -- items

    @property
    def place(self) -> tuple[int, str]:
        """The index and the id of the open item."""
        return len(self.response.output) - 1, self.response.output[-1].id

    def say(self, text: str) -> Iterator[p.AnyEvent]:
        if self.open != "message":
            yield from self.begin("message", p.OutputMessage(_id("msg"), "in_progress", []), p.OutputText(""))
        item = self.response.output[-1]
        assert isinstance(item, p.OutputMessage)
        found, self.logprobs = self.logprobs, []
        item.content[0].text += text
        item.content[0].logprobs += found
        index, id = self.place
        yield p.TextDelta(self.next(), index, id, 0, text, found)

    def reason(self, text: str) -> Iterator[p.AnyEvent]:
        if self.open != "reasoning":
            yield from self.begin("reasoning", p.ReasoningItem(_id("rs"), "in_progress", []), p.ReasoningText(""))
        item = self.response.output[-1]
        assert isinstance(item, p.ReasoningItem)
        item.content[0].text += text
        index, id = self.place
        yield p.ReasoningDelta(self.next(), index, id, 0, text)

    def call(self, call: ToolDelta) -> Iterator[p.AnyEvent]:
        kind, function, custom = str(call.index), call.function, call.custom
        if self.open != kind:
            name, call_id = (custom.name if custom else function.name if function else "") or "", call.id or ""
            new = p.CustomCallItem if custom else p.FunctionCallItem
            yield from self.begin(kind, new(_id("ctc" if custom else "fc"), "in_progress", call_id, name, ""))
        item, (index, id) = self.response.output[-1], self.place
        if isinstance(item, p.CustomCallItem) and custom and custom.input:
            item.input += custom.input
            yield p.InputDelta(self.next(), index, id, custom.input)
        elif isinstance(item, p.FunctionCallItem) and function and function.arguments:
            item.arguments += function.arguments
            yield p.ArgumentsDelta(self.next(), index, id, function.arguments)

    def begin(self, kind: str, item: Any, part: Any = None) -> Iterator[p.AnyEvent]:
        yield from self.close("completed")
        self.open = kind
        self.response.output.append(item)
        index, id = self.place
        yield p.ItemAdded(self.next(), index, item if part is None else replace(item, content=[]))
        if part is not None:
            item.content.append(part)
            yield p.PartAdded(self.next(), index, id, 0, replace(part))

    def close(self, status: str) -> Iterator[p.AnyEvent]:
        if not self.open:
            return
        item, (index, id) = self.response.output[-1], self.place
        item.status, self.open = status, ""
        if isinstance(item, p.OutputMessage):
            part = item.content[0]
            part.logprobs += self.logprobs
            self.logprobs = []
            yield p.TextDone(self.next(), index, id, 0, part.text, part.logprobs)
            yield p.PartDone(self.next(), index, id, 0, part)
        elif isinstance(item, p.ReasoningItem):
            yield p.ReasoningDone(self.next(), index, id, 0, item.content[0].text)
            yield p.PartDone(self.next(), index, id, 0, item.content[0])
        elif isinstance(item, p.CustomCallItem):
            yield p.InputDone(self.next(), index, id, item.input)
        else:
            yield p.ArgumentsDone(self.next(), index, id, item.name, item.arguments)
        yield p.ItemDone(self.next(), index, item)


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def usage(found: Usage) -> p.ResponseUsage:
    details = found.completion_tokens_details
    return p.ResponseUsage(
        found.prompt_tokens,
        p.InputTokensDetails(found.prompt_tokens_details.cached_tokens),
        found.completion_tokens,
        p.OutputTokensDetails(0 if details is UNSET else details.reasoning_tokens),
        found.total_tokens,
    )

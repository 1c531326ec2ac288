"""POST /v1/responses, and what can be done with a response afterwards."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, aclosing
from typing import Any

import msgspec

from octavo.core import log
from octavo.core.errors import ContextLengthExceeded, EngineError, EngineUnavailable, InternalError, RequestError
from octavo.core.outputs import RequestOutput
from octavo.server import fields
from octavo.server.chat import ChatAnswer, begin
from octavo.server.http import ClientGone, Exchange, Response, Stream, json_response, named_event
from octavo.server.lists import page
from octavo.server.protocol import ChatRequest
from octavo.server.responses import protocol as p
from octavo.server.responses.answer import ResponseBuilder
from octavo.server.responses.request import NAMES, read_input, to_chat, unused
from octavo.server.responses.store import ResponseStore, Run, Stored
from octavo.server.service import Service

_encode = msgspec.json.Encoder().encode
Busy = Callable[[Exchange], AbstractContextManager[None]]


class Responses:
    def __init__(self, store: ResponseStore, busy: Busy) -> None:
        self.store = store
        self._busy = busy

    async def create(self, service: Service, exchange: Exchange, body: bytes) -> Response | Stream:
        request, tree, exchange.ignored = await fields.read(body, p.ResponsesRequest)
        exchange.take_id(request.request_id)
        if request.background and request.store is False:
            raise RequestError("background needs store: the answer must be kept until it is asked for.", "background")
        items = self._items(request, exchange.key)
        origin = Exchange.detached(exchange.key, exchange.request_id) if request.background else exchange
        with fields.renamed(NAMES):
            items, answer = await _begin(service, origin, request, tree, items, len(body))
        exchange.ignore(unused(request))
        builder = ResponseBuilder(_response(request, answer), answer)
        stored = Stored(builder.response, exchange.key, items)
        if request.background:
            return self._start(stored, builder, origin, bool(request.stream))
        if request.stream:
            return Stream(self._events(stored, builder), end=b"")
        with fields.renamed(NAMES):
            async with aclosing(answer.run.outputs()) as outputs:
                async for _, output in outputs:
                    for _ in builder.events(output):
                        pass
            await builder.last()
        self._keep(stored)
        return json_response(stored.response)

    def _items(self, request: p.ResponsesRequest, owner: bytes) -> list[p.InputItem]:
        """All that the answer follows: the chain of responses before it, and the input."""

        def find(id: str, param: str) -> p.InputItem:
            item = self.store.find_item(id, owner)
            if item is None:
                raise RequestError(f"{param}: there is no item of this id, or it is kept no longer.", param)
            return item

        given = read_input(request, find)
        if request.previous_response_id is None:
            return given
        previous = self.store.get(request.previous_response_id, owner, "previous_response_id")
        if previous.response.status not in ("completed", "incomplete"):
            raise RequestError(f"The previous response is {previous.response.status}.", "previous_response_id")
        return [*previous.continued(), *given]

    def _keep(self, stored: Stored) -> None:
        if stored.response.store:
            self.store.put(stored)

    async def _events(self, stored: Stored, builder: ResponseBuilder) -> AsyncGenerator[bytes, None]:
        with fields.renamed(NAMES):
            try:
                async with aclosing(builder.answer.run.stream(lambda _, output: write(builder, output))) as events:
                    async for data in events:
                        yield data
                last = await builder.last()
                self._keep(stored)  # before the client knows that it may ask for it
                yield encode(last)
            except RequestError as error:
                if builder.sequence:
                    yield encode(builder.failed(error))
                raise

    # -- in the background

    def _start(self, stored: Stored, builder: ResponseBuilder, origin: Exchange, streams: bool) -> Response | Stream:
        run = stored.run = Run(origin)
        answer = json_response(stored.response)
        self.store.put(stored)
        run.task = asyncio.create_task(self._make(stored, builder, run, streams))
        return Stream(run.follow(0), end=b"") if streams else answer

    async def _make(self, stored: Stored, builder: ResponseBuilder, run: Run, streams: bool) -> None:
        exchange, response = run.exchange, stored.response
        exchange.task = asyncio.current_task()
        error: RequestError | None = None
        if not streams:  # then its first event says so
            response.status = "in_progress"
        try:
            with self._busy(exchange), fields.renamed(NAMES):
                async with aclosing(builder.answer.run.outputs()) as outputs:
                    async for _, output in outputs:
                        for event in builder.events(output):
                            if streams:
                                run.tell(encode(event))
                last = await builder.last()
                if streams:
                    run.tell(encode(last))
        except asyncio.CancelledError:
            if exchange.cause is None:
                raise
            if isinstance(exchange.cause, RequestError):
                error = exchange.cause
            else:
                response.status = "cancelled"
        except RequestError as found:
            error = found
        except EngineError:
            error = EngineUnavailable("The engine stopped; it is being restarted.")
        except Exception as found:
            log.event("internal_error", logging.ERROR, error=found, id=exchange.request_id)
            error = InternalError()
        finally:
            run.over = True
            if error is not None:
                run.events.append(encode(builder.failed(error)))
            self._keep(stored)
            run.tell()
            log.event("background", id=exchange.request_id, status=response.status, **exchange.fields)

    # -- afterwards

    async def get(self, exchange: Exchange) -> Response | Stream:
        stored = self.store.get(exchange.argument, exchange.key)
        if exchange.query.get("stream") not in ("true", "1"):
            return json_response(stored.response)
        if stored.run is None or not (stored.run.events or not stored.run.over):
            raise RequestError("Only a response made with background and stream can be streamed again.", "stream")
        asked = exchange.query.get("starting_after")
        after = -1 if asked is None else fields.decimal(asked, 0, 10**9)
        if after is None:
            raise RequestError("starting_after must be the number of an event.", "starting_after")
        return Stream(stored.run.follow(after + 1), end=b"")

    async def delete(self, exchange: Exchange) -> Response:
        stored = self.store.delete(exchange.argument, exchange.key)
        if stored.run is not None and not stored.run.over:
            stored.response.store = False
            stored.run.exchange.interrupt(ClientGone())
        return json_response(p.ResponseDeleted(stored.response.id))

    async def cancel(self, exchange: Exchange) -> Response:
        stored = self.store.get(exchange.argument, exchange.key)
        run = stored.run
        if run is None:
            raise RequestError("Only a response that is made in the background can be cancelled.", "response_id")
        if run.task is not None and not run.over:
            run.exchange.task = run.task
            run.exchange.interrupt(ClientGone())
            await asyncio.wait([run.task])
        return json_response(stored.response)

    async def input_items(self, exchange: Exchange) -> Response:
        stored = self.store.get(exchange.argument, exchange.key)
        items = [_listed(item, f"{i}_{exchange.argument[-24:]}") for i, item in enumerate(stored.items)]
        if exchange.query.get("order", "desc") == "desc":
            items.reverse()
        return json_response(page(exchange, items, p.InputItems))


def write(builder: ResponseBuilder, output: RequestOutput) -> bytes:
    return b"".join([encode(event) for event in builder.events(output)])


def encode(event: Any) -> bytes:
    return named_event(str(event.__struct_config__.tag), _encode(event))


async def _begin(
    service: Service,
    exchange: Exchange,
    request: p.ResponsesRequest,
    tree: dict[str, Any],
    items: list[p.InputItem],
    size: int,
) -> tuple[list[p.InputItem], ChatAnswer]:
    """The chat of the items; with truncation auto, of the last ones that fit."""
    room = service.llm.max_model_len - (request.max_output_tokens or 1)
    drop = 1
    if request.truncation == "auto":
        items = items[-service.llm.max_model_len :]  # more cannot fit, and to find out costs a rendering each time
    while True:
        chat = to_chat(request, tree, items)
        answer = await begin(service, exchange, fields.convert(chat, ChatRequest), chat, size)
        if request.truncation != "auto":
            return items, answer
        if len(await service.encode(answer.text, answer.request.add_special_tokens)) <= room:
            return items, answer
        starts = [i for i, item in enumerate(items) if i >= drop and item.role not in (None, "assistant")]
        if not starts:
            raise ContextLengthExceeded("The last message alone is longer than the model's context.", "input")
        items, drop = items[starts[0] :], 2 * drop


def _response(request: p.ResponsesRequest, answer: ChatAnswer) -> p.ResponseObject:
    """What is known of the response before there is an answer."""
    params = answer.run.params
    choice = request.tool_choice
    return p.ResponseObject(
        id=f"resp_{uuid.uuid4().hex}",
        created_at=int(time.time()),
        status="queued" if request.background else "in_progress",
        model=answer.run.model,
        output=[],
        parallel_tool_calls=request.parallel_tool_calls is not False,
        temperature=params.temperature,
        top_p=params.top_p,
        tool_choice="auto" if choice is None else choice,
        tools=request.tools or [],
        text=request.text or p.TextConfig(),
        background=bool(request.background),
        store=request.store is not False,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        previous_response_id=request.previous_response_id,
        reasoning=request.reasoning or p.Reasoning(),
        top_logprobs=request.top_logprobs or 0,
        truncation=request.truncation or "disabled",
    )


def _listed(item: p.InputItem, number: str) -> dict[str, Any]:
    """An item as clients read it back: with an id, and text as a part."""
    found: dict[str, Any] = {"type": item.type, **msgspec.to_builtins(item)}
    found.setdefault("id", f"item_{number}")
    found.setdefault("status", "completed")
    if item.type == "message" and isinstance(item.content, str):
        kind = "output_text" if item.role == "assistant" else "input_text"
        part: dict[str, Any] = {"type": kind, "text": item.content}
        found["content"] = [{**part, "annotations": []} if kind == "output_text" else part]
    if item.type == "reasoning":
        found.setdefault("summary", [])
    return found

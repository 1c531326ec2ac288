"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from datetime import UTC, datetime

import msgspec

from octavo.core.errors import RequestError
from octavo.server import fields
from octavo.server.chat import ChatAnswer, begin
from octavo.server.http import Dialect, Exchange, Header, Response, Stream, json_response, named_event
from octavo.server.messages import protocol as p
from octavo.server.messages.answer import MessageBuilder
from octavo.server.messages.request import NAMES, to_chat
from octavo.server.protocol import ChatRequest, ModelCard
from octavo.server.service import Service

_encode = msgspec.json.Encoder().encode
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class Anthropic(Dialect):
    def headers(self, request_id: str) -> list[Header]:
        return [(b"request-id", request_id.encode())]

    def body(self, error: RequestError, request_id: str) -> bytes:
        kind = _ERROR_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        message = error.message.encode(errors="replace").decode()
        return _encode(p.ErrorAnswer(p.ErrorDetail(kind, message, error.param, error.code), request_id))

    def event(self, error: RequestError, request_id: str) -> bytes:
        return named_event("error", self.body(error, request_id))


async def messages(service: Service, exchange: Exchange, body: bytes) -> Response | Stream:
    request, _, exchange.ignored = await fields.read(body, p.MessagesRequest)
    exchange.take_id(request.request_id)
    builder = MessageBuilder(await _chat(service, exchange, request, len(body)))
    if request.stream:
        return Stream(_events(builder), end=b"")
    with fields.renamed(NAMES):
        return json_response(await builder.whole())


async def count_tokens(service: Service, exchange: Exchange, body: bytes) -> Response:
    request, _, exchange.ignored = await fields.read(body, p.CountRequest)
    answer = await _chat(service, exchange, request, len(body))
    ids = await service.encode(answer.text, answer.request.add_special_tokens)
    return json_response(p.TokenCount(len(ids)))


def model_info(card: ModelCard) -> p.ModelInfo:
    """A model as Anthropic's clients list it."""
    created = datetime.fromtimestamp(card.created, UTC).isoformat().replace("+00:00", "Z")
    return p.ModelInfo(card.id, card.id, created, card.max_model_len)


def model_infos(cards: list[ModelCard]) -> p.ModelInfos:
    return p.ModelInfos([model_info(card) for card in cards], cards[0].id, cards[-1].id)


async def _chat(service: Service, exchange: Exchange, request: p.CountRequest, size: int) -> ChatAnswer:
    with fields.renamed(NAMES):
        tree, ignored = to_chat(request, service.ends_thinking)
        before = exchange.ignored
        exchange.ignored = ""
        answer = await begin(service, exchange, fields.convert(tree, ChatRequest), tree, size)
        ignored += [NAMES.get(name, name) for name in exchange.ignored.split(",") if name]
        exchange.ignored = before
        exchange.ignore(ignored)
        return answer


async def _events(builder: MessageBuilder) -> AsyncGenerator[bytes, None]:
    with fields.renamed(NAMES):
        async with aclosing(builder.answer.run.stream(lambda _, output: _write(builder.events(output)))) as events:
            async for data in events:
                yield data
        yield _write(await builder.last())


def _write(events: Iterable[p.MessageEvent]) -> bytes:
    return b"".join([named_event(str(event.__struct_config__.tag), _encode(event)) for event in events])

"""The OpenAPI document, made from the types that requests are decoded into and answers encoded from.

`OPERATIONS` says of every route what it takes and gives; a test holds it against the application's own table.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from octavo.server import fields, pages, protocol
from octavo.server.batch import protocol as batch
from octavo.server.messages import protocol as messages
from octavo.server.pooling import protocol as pooling
from octavo.server.responses import protocol as responses
from octavo.version import VERSION


class ErrorBody(Struct):
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(Struct):
    """Every error has this form, whatever its status."""

    error: ErrorBody


class State(Struct):
    status: str


class Version(Struct):
    version: str


class Upload(Struct):
    """A form. `expires_after[seconds]` is from 3600 to 2592000."""

    file: str
    purpose: str


@dataclass(frozen=True, slots=True)
class Operation:
    """`events` are what a stream consists of; `query` its parameters with their schemas."""

    does: str
    answer: Any = None
    request: Any = None
    events: Any = None
    theirs: Any = None  # the answer to a client of Anthropic's, which sends anthropic-version
    query: tuple[tuple[str, dict[str, Any]], ...] = ()
    form: bool = False
    media_type: str = "application/json"
    error: Any = ErrorAnswer
    statuses: tuple[int, ...] = (401, 403, 500)
    public: bool = False


INFO = (401, 403, 500)
WORK = (400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)
CALL = (400, 401, 403, 404, 408, 413, 415, 500)
TEXT: dict[str, Any] = {"type": "string"}
ORDER = ("order", {"enum": ["asc", "desc"]})
PAGE = (("after", TEXT), ("limit", {"type": "integer", "minimum": 1, "maximum": 100}), ORDER)
ALL = (("after", TEXT), ("limit", {"type": "integer", "minimum": 1, "maximum": 10_000}), ORDER, ("purpose", TEXT))
STREAM = (("stream", {"type": "boolean"}), ("starting_after", {"type": "integer", "minimum": -1}))

# fmt: off
OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): Operation(
        "Answer a conversation", protocol.ChatCompletion, protocol.ChatRequest, protocol.ChatChunk, statuses=WORK),
    ("POST", "/v1/completions"): Operation(
        "Continue a text", protocol.Completion, protocol.CompletionRequest, protocol.Completion, statuses=WORK),
    ("POST", "/v1/responses"): Operation(
        "Answer a conversation, kept for later", responses.ResponseObject, responses.ResponsesRequest,
        responses.AnyEvent, statuses=WORK),
    ("GET", "/v1/responses/{response_id}"): Operation(
        "An answer that is kept", responses.ResponseObject, events=responses.AnyEvent, query=STREAM, statuses=CALL),
    ("DELETE", "/v1/responses/{response_id}"): Operation("Forget it", responses.ResponseDeleted, statuses=CALL),
    ("POST", "/v1/responses/{response_id}/cancel"): Operation(
        "End one that is made in the background", responses.ResponseObject, statuses=CALL),
    ("GET", "/v1/responses/{response_id}/input_items"): Operation(
        "What it answers", responses.InputItems, query=PAGE, statuses=CALL),
    ("POST", "/v1/messages"): Operation(
        "Answer a conversation, as Anthropic's API does", messages.MessageAnswer, messages.MessagesRequest,
        messages.MessageEvent, error=messages.ErrorAnswer, statuses=WORK),
    ("POST", "/v1/messages/count_tokens"): Operation(
        "How long the prompt would be", messages.TokenCount, messages.CountRequest, error=messages.ErrorAnswer,
        statuses=WORK),
    **{
        ("POST", path): Operation(
            does if path == paths[0] else f"The same as {paths[0]}", answer, request, statuses=WORK)
        for paths, does, answer, request in (
            (("/v1/embeddings",), "Embed texts", pooling.EmbeddingList, pooling.EmbeddingRequest),
            (("/v1/score", "/score"), "How well two texts go together", pooling.ScoreList, pooling.ScoreRequest),
            (("/v1/rerank", "/v2/rerank", "/rerank"),
             "The documents that answer a query best", pooling.Ranking, pooling.RerankRequest),
            (("/v1/classify", "/classify"), "Classify texts", pooling.ClassificationList, pooling.ClassifyRequest),
            (("/pooling",), "What a model makes of texts, of each token too",
             pooling.PooledList, pooling.PoolingRequest),
        )
        for path in paths
    },
    ("POST", "/v1/files"): Operation("Upload a file of requests", batch.FileObject, Upload, form=True, statuses=CALL),
    ("GET", "/v1/files"): Operation("Your files", batch.FileList, query=ALL, statuses=CALL),
    ("GET", "/v1/files/{file_id}"): Operation("A file", batch.FileObject, statuses=CALL),
    ("DELETE", "/v1/files/{file_id}"): Operation("Delete it", batch.FileDeleted, statuses=CALL),
    ("GET", "/v1/files/{file_id}/content"): Operation(
        "What is in it", media_type="application/octet-stream", statuses=CALL),
    ("POST", "/v1/batches"): Operation(
        "Answer the requests of a file", batch.BatchObject, batch.BatchRequest, statuses=CALL),
    ("GET", "/v1/batches"): Operation("Your batches", batch.BatchList, query=PAGE, statuses=CALL),
    ("GET", "/v1/batches/{batch_id}"): Operation("A batch", batch.BatchObject, statuses=CALL),
    ("POST", "/v1/batches/{batch_id}/cancel"): Operation("End it", batch.BatchObject, statuses=CALL),
    ("GET", "/v1/models"): Operation(
        "The names of the model", protocol.ModelList, theirs=messages.ModelInfos, statuses=(*INFO, 503)),
    ("GET", "/v1/models/{model}"): Operation(
        "The model", protocol.ModelCard, theirs=messages.ModelInfo, statuses=(*INFO, 404, 503)),
    ("POST", "/tokenize"): Operation(
        "The tokens of a text or a conversation", protocol.Tokenized, protocol.TokenizeRequest, statuses=WORK),
    ("POST", "/detokenize"): Operation(
        "The text of tokens", protocol.Detokenized, protocol.DetokenizeRequest, statuses=WORK),
    ("GET", "/tokenizer_info"): Operation("The tokenizer", protocol.TokenizerInfo, statuses=(*INFO, 503)),
    ("GET", "/v1/octavo/state"): Operation(
        "The engine now: requests, and the KV cache as a map", pages.EngineState, statuses=CALL),
    ("GET", "/livez"): Operation("Is the server there?", State, statuses=(500,), public=True),
    ("GET", "/readyz"): Operation("Can it answer?", State, statuses=(500, 503), public=True),
    ("GET", "/health"): Operation("The same as /readyz", State, statuses=(500, 503), public=True),
    ("GET", "/metrics"): Operation("For Prometheus", media_type="text/plain"),
    ("GET", "/version"): Operation("The version", Version),
    ("GET", "/openapi.json"): Operation("This document", dict[str, Any]),
}
# fmt: on


@functools.cache
def document(root_path: str = "") -> dict[str, Any]:
    schemas, components = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Octavo",
            "version": VERSION,
            "description": "Fields that are not listed are accepted and named in the header x-octavo-ignored, but for "
            "those in x-octavo-refused: they are refused with status 400 when they ask for something.",
        },
        "servers": [{"url": root_path or "/"}],
        "security": [{"key": []}, {"anthropic": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "anthropic": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "x-octavo-refused": sorted([*fields.UNSUPPORTED, *fields.FORBIDDEN]),
    }


def _types() -> Iterator[Any]:
    for operation in OPERATIONS.values():
        for kind in (operation.answer, operation.theirs, operation.request, operation.events, operation.error):
            if kind is not None:
                yield kind


def _schemas() -> tuple[dict[Any, Any], dict[str, Any]]:
    """The schema of each type that an operation names, and what they refer to."""
    kinds = list(dict.fromkeys(_types()))
    found, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    return dict(zip(kinds, map(_plain, found), strict=True)), _plain(components)


def _plain(schema: Any) -> Any:
    """JSON Schema's patterns are JavaScript's, which knows no \\Z."""
    if isinstance(schema, dict):
        return {
            key: value.replace("\\Z", "$") if key == "pattern" and isinstance(value, str) else _plain(value)
            for key, value in schema.items()
        }
    return [_plain(item) for item in schema] if isinstance(schema, list) else schema


def _operation(method: str, path: str, operation: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    schema = schemas.get(operation.answer, {"type": "string"})
    if operation.theirs is not None:
        schema = {"anyOf": [schema, schemas[operation.theirs]]}
    content: dict[str, Any] = {operation.media_type: {"schema": schema}}
    if operation.events is not None:
        data: dict[str, Any] = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": schemas[operation.events],
        }
        if operation.events in (protocol.ChatChunk, protocol.Completion):
            data = {"anyOf": [data, {"const": "[DONE]"}]}
        event = {"event": {"type": "string"}, "data": data}
        content["text/event-stream"] = {"schema": {"type": "object", "properties": event, "required": ["data"]}}
    header = {"schema": {"type": "string"}}
    good: dict[str, Any] = {"description": operation.does, "content": content, "headers": {"x-request-id": header}}
    if operation.request is not None:
        good["headers"]["x-octavo-ignored"] = header
    error = {"application/json": {"schema": schemas[operation.error]}}
    if links := _links(method, path):
        good["links"] = links
    answers: dict[str, Any] = {"200": good}
    for status in operation.statuses:
        answers[str(status)] = {"description": _STATUSES[status], "content": error}
    found: dict[str, Any] = {
        "summary": operation.does,
        "operationId": _operation_id(method, path),
        "responses": answers,
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in operation.query]
    if operation.theirs is not None:
        parameters.append({"name": "anthropic-version", "in": "header", "schema": {"type": "string"}})
    if parameters:
        found["parameters"] = parameters
    if operation.request is not None:
        kind = "multipart/form-data" if operation.form else "application/json"
        found["requestBody"] = {"required": True, "content": {kind: {"schema": schemas[operation.request]}}}
    if operation.public:
        found["security"] = []
    return found


def _operation_id(method: str, path: str) -> str:
    return re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_")


def _links(method: str, path: str) -> dict[str, Any]:
    """What can be done with the thing that this operation makes."""
    links: dict[str, Any] = {}
    for other, where in OPERATIONS:
        found = re.fullmatch(re.escape(path) + r"/\{(\w+)\}.*", where)
        if method == "POST" and found is not None:
            operation = _operation_id(other, where)
            links[operation] = {"operationId": operation, "parameters": {found[1]: "$response.body#/id"}}
    if path == "/v1/files" and method == "POST":
        body = {"input_file_id": "$response.body#/id", "endpoint": "/v1/completions", "completion_window": "24h"}
        links["post_v1_batches"] = {"operationId": "post_v1_batches", "requestBody": body}
    return links


_STATUSES = {
    400: "A field is wrong; param names it",
    401: "No key, or a wrong one",
    403: "The web page that asks is of an origin that is not allowed",
    404: "There is no such thing, or it is not yours",
    408: "The body came too slowly",
    413: "The body is too large",
    415: "The body is compressed",
    429: "This key has too many requests now: Retry-After says when to come back",
    500: "An error of ours; the log has the details under the request's id",
    503: "Not now: Retry-After says when",
    504: "The deadline passed",
}

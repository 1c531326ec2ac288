"""The OpenAPI document is valid, complete, and what it says of answers is so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate

from octavo.server.openapi import OPERATIONS, document
from octavo.server.reference import markdown
from tests.server.conftest import Running, events

SAY = {"messages": [{"role": "user", "content": "say:x"}]}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {**SAY, "logprobs": True, "top_logprobs": 2, "n": 2}),
    ("/v1/chat/completions", {**SAY, "return_token_ids": True, "prompt_logprobs": 1, "return_prompt_text": True}),
    ("/v1/completions", {"prompt": ["a", "b"], "logprobs": 1, "echo": True}),
    ("/v1/completions", {"prompt": "a", "stream_options": {"include_usage": True}}),
    ("/v1/responses", {"input": "say:x", "top_logprobs": 1}),
    ("/v1/messages", {**SAY, "max_tokens": 5}),
]
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/messages/count_tokens", SAY),
    ("/tokenize", {"prompt": "x", "return_token_strs": True}),
    ("/detokenize", {"tokens": [1]}),
    ("/v1/embeddings", {"input": ["a", "b"]}),
    ("/v1/embeddings", {"input": "a", "encoding_format": "base64"}),
    ("/pooling", {"input": "ab", "task": "token_embed"}),
    ("/v1/score", {"text_1": "a", "text_2": ["a", "b"]}),
    ("/v1/rerank", {"query": "a", "documents": ["a", {"text": "b"}]}),
    ("/v1/classify", {"input": "ab"}),
]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return json.loads(json.dumps(document("/api")))


def test_it_is_valid(found: dict[str, Any]) -> None:
    validate(found)
    assert found["servers"] == [{"url": "/api"}]
    operations = [operation for path in found["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations) == len(OPERATIONS)


def test_every_route_is_in_it_and_every_entry_is_a_route(server: Running) -> None:
    routes = server.serving.app.routes
    assert {(route.method, route.path) for route in routes} == set(OPERATIONS)
    assert {route.path for route in routes if route.public} == {
        path for (_, path), operation in OPERATIONS.items() if operation.public
    }
    assert server.get("/openapi.json").json() == document()


def check(found: dict[str, Any], path: str, status: str, media_type: str, value: Any) -> None:
    """The value has the form that the document promises, and no field beside it."""
    schema = found["paths"][path]["post"]["responses"][status]["content"][media_type]["schema"]
    if media_type == "text/event-stream":
        data = schema["properties"]["data"]
        schema = data.get("anyOf", [data])[0]["contentSchema"]
    jsonschema.validate(value, {**closed(schema), "components": closed(found["components"])})


def closed(schema: Any) -> Any:
    """The same schema without room for unknown properties."""
    if isinstance(schema, dict):
        extra = {"additionalProperties": False} if "properties" in schema and "type" in schema else {}
        return {**{key: closed(value) for key, value in schema.items()}, **extra}
    return [closed(item) for item in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize(("path", "body"), [*REQUESTS, *OTHERS])
def test_answers_are_what_it_says(able: Running, found: dict[str, Any], path: str, body: dict[str, Any]) -> None:
    options = {key: value for key, value in body.items() if key != "stream_options"}
    check(found, path, "200", "application/json", able.post(path, options).json())
    wrong = able.post(path, {**options, "model": 5})
    check(found, path, str(wrong.status_code), "application/json", wrong.json())


@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_events_are_what_it_says(server: Running, found: dict[str, Any], path: str, body: dict[str, Any]) -> None:
    text = server.post(path, {**body, "stream": True}).text
    plain = "".join(line + "\n" for line in text.splitlines() if not line.startswith("event: "))
    seen = [event for event in events(plain) if event != "[DONE]"]
    assert seen
    for event in seen:
        check(found, path, "200", "text/event-stream", event)


def test_the_page_of_the_documentation_is_what_it_says() -> None:
    page = Path(__file__).parents[2] / "docs" / "api.md"
    assert page.read_text() == markdown(), "python -m octavo.server.reference > docs/api.md"

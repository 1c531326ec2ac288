"""docs/api.md, made from the types: `python -m octavo.server.reference > docs/api.md`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from octavo.server import fields
from octavo.server.openapi import OPERATIONS

INTRODUCTION = """\
# The HTTP API

Made from the code by `python -m octavo.server.reference > docs/api.md`; a test holds the two together. The same as an
OpenAPI document: `GET /openapi.json`.

Send a key as `Authorization: Bearer KEY` or, as Anthropic's clients do, as `x-api-key: KEY`. Every answer has the
header `x-request-id`, which is yours if you sent one. `x-request-timeout: SECONDS` is a deadline for any answer, as the
field `deadline_ms` is.

Fields of requests have one of three fates, and none is dropped in silence:

- those listed below are honoured;
- those that would change the answer in a way that Octavo does not have are refused with status 400 and their name,
  unless their value asks for nothing (null, false, empty);
- all others are accepted and named in the header `x-octavo-ignored` of the answer.

Errors are `{"error": {"message", "type", "param", "code"}}`; `param` is the path of the field at fault. On
`/v1/messages` they have Anthropic's form. After the first event of a stream, an error is its last event, and there is
no `[DONE]`. A route that the model cannot answer, as embeddings of one that generates, has status 400, the code
`unsupported_task` and a message that says what the model can do, and where; `tasks` of `GET /v1/models` says so too.
"""
NAMES = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "count_tokens",
    "/v1/embeddings": "embeddings",
    "/v1/score": "score",
    "/v1/rerank": "rerank",
    "/v1/classify": "classify",
    "/pooling": "pooling",
    "/v1/batches": "batches",
    "/tokenize": "tokenize",
    "/detokenize": "detokenize",
}


def markdown() -> str:
    return "\n".join(_lines()).rstrip() + "\n"


def _lines() -> Iterator[str]:
    yield INTRODUCTION
    yield "## Routes\n"
    yield "| route | what it does | fields |"
    yield "|---|---|---|"
    for (method, path), operation in OPERATIONS.items():
        link = (
            f"[{NAMES[path]}](#post-{re.sub(r'[^a-z0-9_-]', '', path)})" if method == "POST" and path in NAMES else ""
        )
        streams = " (or a stream)" if operation.events is not None else ""
        yield f"| `{method} {path}` | {operation.does}{streams} | {link} |"
    for (method, path), operation in OPERATIONS.items():
        if method == "POST" and path in NAMES:
            yield f"\n## POST {path}\n"
            yield from _fields(operation.request)
    yield "\n## Refused\n"
    yield "Anywhere: " + ", ".join(f"`{name}`" for name in sorted([*fields.UNSUPPORTED, *fields.FORBIDDEN])) + "."


def _fields(kind: Any) -> Iterator[str]:
    yield "| field | type | default |"
    yield "|---|---|---|"
    _, components = msgspec.json.schema_components([kind], ref_template="{name}")
    schema = components[kind.__name__]
    needed = schema.get("required", [])
    for name, found in schema["properties"].items():
        default = "required" if name in needed else f"`{msgspec.json.encode(found.get('default')).decode()}`"
        yield f"| `{name}` | {_type(found)} | {default} |"


def _type(schema: dict[str, Any]) -> str:
    """A type in a few words."""
    if "anyOf" in schema:
        kinds = [_type(option) for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in schema:
        return str(schema["$ref"].rpartition(".")[2])
    if "enum" in schema:
        return " \\| ".join(f"`{value}`" for value in schema["enum"] if value is not None)
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    low, high = schema.get("minimum"), schema.get("maximum")
    if high is not None and high < 2**31 - 1:
        return f"{kind} in [{low}, {high}]"
    return f"{kind} ≥ {low}" if low is not None and low > -(2**31) else kind


if __name__ == "__main__":
    print(markdown(), end="")

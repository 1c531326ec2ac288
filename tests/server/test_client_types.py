"""Every field that the packages `openai` and `anthropic` can send, in every shape that their types allow, streamed and
not: it has an effect, or is refused by its name, or is named in `x-octavo-ignored`. Nothing is dropped, nothing fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from anthropic.types import message_create_params
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from octavo.core.config import EngineConfig
from octavo.server.config import ServerConfig
from octavo.server.fields import NEUTRAL, UNSUPPORTED
from octavo.server.messages.protocol import MessagesRequest
from octavo.server.pooling.protocol import EmbeddingRequest
from octavo.server.pooling.routes import READING
from octavo.server.protocol import ChatRequest, CompletionRequest
from octavo.server.responses.protocol import ResponsesRequest
from tests.server.client_types import fields_of
from tests.server.conftest import Running, events
from tests.server.fake_engine import FakeLLM
from tests.server.test_tools import TEMPLATE

SAY = {"messages": [{"role": "user", "content": "say:x"}]}
TOOL = {"type": "function", "function": {"name": "text"}}
# What a field needs beside it.
BESIDE: dict[str, dict[str, Any]] = {
    "tool_choice": {"tools": [TOOL]},
    "parallel_tool_calls": {"tools": [TOOL]},
    "top_logprobs": {"logprobs": True},
    "function_call": {"functions": [{"name": "text"}]},
}
RESPONSES_BESIDE = {"tool_choice": {"tools": [{"type": "function", "name": "text"}]}}
MESSAGES_BESIDE = {"tool_choice": {"tools": [{"name": "text", "input_schema": {}}]}}
ROUTES: dict[str, tuple[Any, type[msgspec.Struct], dict[str, Any], dict[str, dict[str, Any]]]] = {
    "/v1/chat/completions": (chat_create_params.CompletionCreateParamsBase, ChatRequest, SAY, BESIDE),
    "/v1/completions": (
        completion_create_params.CompletionCreateParamsBase,
        CompletionRequest,
        {"prompt": "say:x"},
        {},
    ),
    "/v1/responses": (
        response_create_params.ResponseCreateParamsBase,
        ResponsesRequest,
        {"input": "say:x"},
        RESPONSES_BESIDE,
    ),
    "/v1/embeddings": (embedding_create_params.EmbeddingCreateParams, EmbeddingRequest, {"input": "x"}, {}),
    "/v1/messages": (
        message_create_params.MessageCreateParamsBase,
        MessagesRequest,
        {**SAY, "max_tokens": 9},
        MESSAGES_BESIDE,
    ),
}
FIELDS = {path: fields_of(kind) for path, (kind, *_) in ROUTES.items()}
CASES = [(path, name) for path, fields in FIELDS.items() for name in fields if name != "model"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    running = Running(FakeLLM(template=TEMPLATE), ServerConfig(port=0, log_level="error"), EngineConfig())
    running.start()
    yield running
    running.stop()


def unknown(kind: Any, value: Any, path: str) -> Iterator[str]:
    """The paths of what a value says that the type does not know: read off the types, not off a decoded request."""
    found = msgspec.inspect.type_info(kind) if not isinstance(kind, msgspec.inspect.Type) else kind
    if isinstance(found, msgspec.inspect.Metadata):
        found = found.type
    options = list(found.types) if isinstance(found, msgspec.inspect.UnionType) else [found]
    if isinstance(value, list):
        for each in options:
            if isinstance(each, msgspec.inspect.ListType):
                for item in value:
                    yield from unknown(each.item_type, item, f"{path}[]")
    if not isinstance(value, dict):
        return
    structs = [each for each in options if isinstance(each, msgspec.inspect.StructType)]
    for each in structs:
        if len(structs) > 1 and each.tag != value.get(each.tag_field):
            continue
        known = {field.name: field.type for field in each.fields}
        for key, given in value.items():
            if key in known:
                yield from unknown(known[key], given, f"{path}.{key}")
            elif key != each.tag_field and given not in NEUTRAL and not getattr(each.cls, "passed_on", False):
                yield f"{path}.{key}"


@pytest.mark.parametrize(("path", "name"), CASES)
def test_every_shape_of_every_field(able: Running, path: str, name: str) -> None:
    _, kind, body, beside = ROUTES[path]
    known = {field.name: field.type for field in msgspec.inspect.type_info(kind).fields}  # type: ignore[attr-defined]
    for value in FIELDS[path][name]:
        for stream in (False,) if path in READING else (False, True):
            request = {**body, **beside.get(name, {}), **({"stream": True} if stream else {}), name: value}
            answer = able.post(path, request)
            told = (value, answer.text[:500])
            assert answer.status_code in (200, 400, 404), told
            if answer.status_code != 200:
                error = answer.json()["error"]
                param = error["param"] or error["message"]
                assert name in param or (name == "stream_options" and not stream), told
                continue
            named = set(answer.headers.get("x-octavo-ignored", "").split(","))
            if name not in known:
                assert name in named or value in (*NEUTRAL, *UNSUPPORTED.get(name, ())), told
            else:
                assert set(unknown(known[name], value, name)) <= named, told
            if stream and path.endswith("completions"):
                assert events(answer.text)[-1] == "[DONE]"
            elif stream:
                last = json.loads(answer.text.split("data: ")[-1])["type"]
                assert last in ("response.completed", "response.incomplete", "message_stop")

"""Anthropic's API through the `anthropic` package: whole answers, streams, blocks, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from octavo.core.config import EngineConfig
from octavo.server.config import ServerConfig
from tests.server.conftest import Running, StartServer
from tests.server.fake_engine import FakeLLM
from tests.server.test_tools import CALLS, ROME, TEMPLATE

TOOLS: Any = [
    {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}},
    {"name": "now", "description": "The time", "input_schema": {"type": "object"}},
]


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    running = Running(FakeLLM(template=TEMPLATE), ServerConfig(port=0, log_level="error"), EngineConfig())
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(shared: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=shared.url, api_key="none", max_retries=0)


def say(text: str) -> Any:
    return [{"role": "user", "content": f"say:{text}"}]


def ask(client: anthropic.Anthropic, text: str, **options: Any) -> anthropic.types.Message:
    options = {"model": "fake", "max_tokens": 500, "messages": say(text), **options}
    whole = client.messages.create(**options)
    with client.messages.stream(**options) as stream:
        streamed = stream.get_final_message()
    # One thing is known only at the end of a stream, and another made anew: all else is equal.
    assert streamed.model_dump(
        exclude={"id": True, "content": {"__all__": {"id", "parsed_output"}}}
    ) == whole.model_dump(exclude={"id": True, "content": {"__all__": {"id", "parsed_output"}}})
    return whole


def test_text(server: Running, client: anthropic.Anthropic) -> None:
    answer = ask(client, "Grüße 👋🏽")
    (block,) = answer.content
    assert (block.type, block.text) == ("text", "Grüße 👋🏽")
    assert (answer.type, answer.role, answer.model, answer.stop_reason) == ("message", "assistant", "fake", "end_turn")
    assert answer.id.startswith("msg_") and answer._request_id
    assert answer.usage.output_tokens == len("Grüße 👋🏽".encode()) + 1
    assert answer.usage.cache_read_input_tokens == 16
    prompt = client.messages.count_tokens(model="fake", messages=say("Grüße 👋🏽")).input_tokens
    assert answer.usage.input_tokens + 16 == prompt


def test_stops(server: Running, client: anthropic.Anthropic) -> None:
    answer = ask(client, "one two three", stop_sequences=[" thr"])
    assert (answer.content[0].text, answer.stop_reason, answer.stop_sequence) == ("one two", "stop_sequence", " thr")
    answer = ask(client, "one two three", max_tokens=3)
    assert (answer.content[0].text, answer.stop_reason, answer.stop_sequence) == ("one", "max_tokens", None)
    assert [block.text for block in ask(client, "").content] == [""]


def test_tools(server: Running, client: anthropic.Anthropic) -> None:
    answer = ask(client, CALLS, tools=TOOLS, tool_choice={"type": "auto"})
    text, weather, now = answer.content
    assert text.text == "Let me look."
    assert (weather.type, weather.name, weather.input) == ("tool_use", "weather", json.loads(ROME))
    assert (now.type, now.name, now.input, answer.stop_reason) == ("tool_use", "now", {}, "tool_use")
    one = ask(client, CALLS, tools=TOOLS, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [block.type for block in one.content] == ["text", "tool_use"]
    none = ask(client, CALLS, tools=TOOLS, tool_choice={"type": "none"})
    assert [block.type for block in none.content] == ["text"]


def test_thinking(server: Running, client: anthropic.Anthropic) -> None:
    answer = ask(client, "because</think>Yes.", thinking={"type": "adaptive"})
    thinking, text = answer.content
    assert (thinking.type, thinking.thinking, text.text) == ("thinking", "because", "Yes.")
    assert [b.type for b in ask(client, "Yes.", thinking={"type": "disabled"}).content] == ["text"]
    hidden = ask(client, "because</think>Yes.", thinking={"type": "adaptive", "display": "omitted"})
    assert [b.type for b in hidden.content] == ["text"]


def test_what_blocks_say_beside_their_text_is_named(server: Running) -> None:
    cached = {"type": "text", "text": "say:x", "cache_control": {"type": "ephemeral"}}
    failed = {"type": "tool_result", "tool_use_id": "a", "content": "x", "is_error": True}
    body = {
        "messages": [{"role": "user", "content": [failed, cached, cached]}],
        "system": [cached],
        "max_tokens": 9,
    }
    answer = server.post("/v1/messages", body)
    assert answer.headers["x-octavo-ignored"].split(",") == [
        "messages[].content[].cache_control",
        "system[].cache_control",
        "messages[0].content[0].is_error",
    ]


def test_a_budget_of_thinking(start_server: StartServer) -> None:
    body = {
        "messages": say("why</think>Yes."),
        "max_tokens": 99,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    unable = start_server(FakeLLM(template=TEMPLATE)).post("/v1/messages", body)
    assert unable.status_code == 200 and unable.headers["x-octavo-ignored"] == "thinking.budget_tokens"
    able = start_server(FakeLLM(template=TEMPLATE, special=("<think>", "</think>")))
    answer = able.post("/v1/messages", body)
    assert answer.status_code == 200 and "x-octavo-ignored" not in answer.headers
    assert able.llm is not None and able.llm.seen[-1].thinking_token_budget == 1024
    assert [block["type"] for block in answer.json()["content"]] == ["thinking", "text"]


def test_the_order_of_events(server: Running, client: anthropic.Anthropic) -> None:
    options: Any = {"model": "fake", "max_tokens": 500, "tools": TOOLS, "stream": True}
    thought = f"why</think>{CALLS}"
    kinds = [
        event.type for event in client.messages.create(messages=say(thought), **options, thinking={"type": "adaptive"})
    ]
    once = [kind for i, kind in enumerate(kinds) if kind != "content_block_delta" or kinds[i - 1] != kind]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert once == ["message_start", *block * 4, "message_delta", "message_stop"]
    raw = server.post("/v1/messages", {"messages": say("x"), "max_tokens": 9, "stream": True})
    assert raw.text.startswith("event: message_start\ndata: ") and "[DONE]" not in raw.text
    assert "event: ping" in raw.text and raw.headers["request-id"] == raw.headers["x-request-id"]


def test_a_conversation_becomes_a_prompt(server: Running) -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "a", "name": "now", "input": {"zone": "é"}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "noon"}]},
            {"type": "text", "text": "and?"},
            {"type": "document", "source": {"type": "text", "data": "say:page", "media_type": "text/plain"}},
        ]},
    ]  # fmt: skip
    body = {"max_tokens": 9, "messages": turns, "system": [{"type": "text", "text": "Be brief."}]}
    answer = server.post("/v1/messages", body)
    assert answer.status_code == 200, answer.text
    assert server.llm is not None
    expected = (
        "<system>Be brief.\n<user>hi\n<assistant>Let me look."
        '<tool_call>{"name": "now", "arguments": {"zone": "é"}}'
        "\n<tool>noon\n<user>and?\nsay:page\n<assistant>"
    )
    count = server.post("/v1/messages/count_tokens", {k: v for k, v in body.items() if k != "max_tokens"}).json()
    assert count == {"input_tokens": len(expected.encode())}
    assert answer.json()["content"] == [{"type": "text", "text": "page"}]
    # An assistant's last words are gone on with.
    more = {"max_tokens": 9, "messages": [*say("x"), {"role": "assistant", "content": "say:on"}]}
    assert server.post("/v1/messages", more).json()["content"][0]["text"] == "on"


def test_models(server: Running, client: anthropic.Anthropic) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.type, model.display_name, model.created_at.year > 2000) == ("fake", "model", "fake", True)
    assert client.models.retrieve("fake").id == "fake"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("other")


def test_parameters(server: Running) -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "stop_sequences": ["x"], "max_tokens": 9}
    extra = {"cache_salt": "s", "metadata": {"user_id": "u"}, "service_tier": "auto", "request_id": "mine"}
    answer = server.post("/v1/messages", {"messages": say("hi"), **fields, **extra})
    assert answer.headers["x-octavo-ignored"] == "metadata,service_tier"
    assert answer.headers["request-id"] == "mine"
    assert server.llm is not None
    params = server.llm.seen[-1]
    assert (params.temperature, params.top_p, params.top_k, params.stop, params.max_tokens) == (0.5, 0.9, 7, ["x"], 9)
    assert server.llm.salts[-1] == "s"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "content": [{"type": "image", "source": {}}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search", "name": "w", "input_schema": {}}]}, "tools[0].type"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"temperature": -1}, "temperature"),
        ({"messages": say("x" * 5000)}, "messages"),
        ({"max_tokens": 5000}, "max_tokens"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_errors(server: Running, fields: dict[str, Any], param: str, stream: bool) -> None:
    body = {"messages": say("x"), "max_tokens": 9, "stream": stream, **fields}
    answer = server.post("/v1/messages", body)
    assert answer.status_code == 400, answer.text
    found = answer.json()
    assert (found["type"], found["error"]["type"]) == ("error", "invalid_request_error")
    assert found["request_id"] == answer.headers["request-id"]
    assert found["error"]["param"] == param


def test_errors_are_anthropic_s_exceptions(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.01), api_key=("key",))
    locked = anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        locked.messages.create(model="fake", max_tokens=5, messages=say("x"))
    client = anthropic.Anthropic(base_url=server.url, api_key="key", max_retries=0)
    assert client.messages.create(model="fake", max_tokens=5, messages=say("x")).content[0].text == "x"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="other", max_tokens=5, messages=say("x"))
    with (
        pytest.raises(anthropic.APIStatusError, match="engine_unavailable"),
        client.messages.stream(model="fake", max_tokens=400, messages=[{"role": "user", "content": "count"}]) as stream,
    ):
        for event in stream:
            if event.type == "text" and server.llm is not None:
                server.call(server.llm.crash)

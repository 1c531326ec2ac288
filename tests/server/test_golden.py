"""Streams byte by byte, as golden/*.txt has them; only ids, times and what takes time are masked.

Clients read streams with regular expressions, and compare them with what OpenAI and Anthropic send: framing and order
of keys are part of the API. WRITE_GOLDEN=1 writes the files anew; their diff is then what changes for clients.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.core.config import EngineConfig
from octavo.server.config import ServerConfig
from octavo.version import VERSION
from tests.server.conftest import Running
from tests.server.fake_engine import FakeLLM
from tests.server.test_tools import CALLS, TEMPLATE

GOLDEN = Path(__file__).parent / "golden"
TOOLS = [{"type": "function", "function": {"name": "weather"}}, {"type": "function", "function": {"name": "now"}}]
USAGE = {"include_usage": True}


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"say:{text}"}]


STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": say("Hé <b>"), "stream_options": USAGE}),
    "chat_two": ("/v1/chat/completions", {"messages": say("a"), "n": 2}),
    "chat_logprobs": ("/v1/chat/completions", {"messages": say("a"), "logprobs": True, "top_logprobs": 1}),
    "chat_tools": ("/v1/chat/completions", {"messages": say("Wait. " + CALLS), "tools": TOOLS}),
    "chat_reasoning": ("/v1/chat/completions", {"messages": say("<think>hm</think>\n\nYes.")}),
    "chat_length": ("/v1/chat/completions", {"messages": say("abc"), "max_tokens": 2}),
    "completions": ("/v1/completions", {"prompt": "say:ab", "stream_options": USAGE}),
    "completions_logprobs": ("/v1/completions", {"prompt": "say:a", "logprobs": 1, "echo": True}),
    "responses": ("/v1/responses", {"input": "say:ab"}),
    "responses_tools": (
        "/v1/responses",
        {"input": "say:<think>hm</think>" + CALLS, "tools": [{"type": "function", "name": "weather"}]},
    ),
    "messages": ("/v1/messages", {"messages": say("ab"), "max_tokens": 9}),
    "messages_tools": (
        "/v1/messages",
        {
            "messages": say("<think>hm</think>" + CALLS),
            "max_tokens": 500,
            "tools": [{"name": "weather", "input_schema": {}}],
            "thinking": {"type": "adaptive"},
        },
    ),
}
MASKS = (
    (re.compile(r'"((?:[a-z_]+_)?id)":"(chatcmpl-|cmpl-|resp_|msg_|rs_|fc_|call_|toolu_)\w+"'), r'"\1":"\2*"'),
    (re.compile(r'"(created|created_at|completed_at)":\d+'), r'"\1":0'),
    (re.compile(r'"(\w+_(?:ms|per_second))":[\d.e+-]+'), r'"\1":0'),
    (re.compile(rf"octavo-{re.escape(VERSION)}"), "octavo-*"),
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    running = Running(FakeLLM(template=TEMPLATE), ServerConfig(port=0, log_level="error"), EngineConfig())
    running.start()
    yield running
    running.stop()


def ask(server: Running, name: str) -> str:
    path, body = STREAMS[name]
    answer = server.post(path, {"model": "fake", "stream": True, "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    text = answer.content.decode()
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    return text


@pytest.mark.parametrize("name", STREAMS)
def test_the_bytes_of_a_stream(server: Running, name: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(ask(server, name), encoding="utf-8", newline="")
    expected = path.read_bytes().decode()
    for _ in range(10):  # on a busy machine two steps may come as one event, which is allowed and another text
        found = ask(server, name)
        if found == expected:
            break
    assert found == expected


@pytest.mark.parametrize("name", [name for name in STREAMS if name.startswith(("chat", "completions"))])
def test_the_form_of_openai_s_streams(server: Running, name: str) -> None:
    text = ask(server, name)
    assert text.endswith("}\n\ndata: [DONE]\n\n") and "\r" not in text
    events = text.removesuffix("data: [DONE]\n\n").removesuffix("\n\n").split("\n\n")
    assert all(re.fullmatch(r"data: \{.*\}", event) for event in events)
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    last = chunks.pop() if "stream_options" in STREAMS[name][1] else None
    for chunk in chunks:
        assert list(chunk)[:6] == ["id", "object", "created", "model", "system_fingerprint", "choices"]
        for choice in chunk["choices"]:
            order = ["index", "delta", "logprobs"] if "delta" in choice else ["index", "text", "logprobs"]
            assert list(choice)[:4] == [*order, "finish_reason"]
    if last is not None:
        assert last["choices"] == [] and last["usage"]["total_tokens"] > 0
        assert all(chunk["usage"] is None for chunk in chunks)
    if name.startswith("chat"):
        roles = [choice["delta"].get("role") for chunk in chunks for choice in chunk["choices"]]
        assert roles[0] == "assistant" and roles.count("assistant") == STREAMS[name][1].get("n", 1)
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1


@pytest.mark.parametrize("name", [name for name in STREAMS if name.startswith(("responses", "messages"))])
def test_the_form_of_named_events(server: Running, name: str) -> None:
    text = ask(server, name)
    events = text.removesuffix("\n\n").split("\n\n")
    for number, event in enumerate(events):
        found = re.fullmatch(r"event: ([a-z_.]+)\ndata: (\{.*\})", event)
        assert found is not None, event
        data = json.loads(found[2])
        assert next(iter(data)) == "type" and data["type"] == found[1]
        if name.startswith("responses"):
            assert data["sequence_number"] == number
    assert events[-1].startswith(("event: response.completed\n", "event: message_stop\n"))

"""Requests that are wrong: each is refused with 400 and the name of what is at fault, before the engine hears of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.core.errors import RequestError
from octavo.server import fields
from octavo.server.protocol import ChatRequest, CompletionRequest
from tests.server.conftest import Running, StartServer, error_of
from tests.server.fake_engine import FakeLLM

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"5", b'"x"', b"null", b"true", b"{}x", b"\xef\xbb\xbf{}", b'"\\ud800"', b'"\\u0000"'),
        *("{}".encode("utf-16"), b"\x00", b'{"prompt": "\x00"}', b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}'),
        *(b'{"prompt": 1e999}', b'{"prompt": NaN}', b'{"prompt": "x", "temperature": Infinity}', b"[" * 100_000),
        *(b'{"a":' * 100_000, b'{"prompt": "x", "seed": ' + b"1" * 8_000_000 + b"}"),
        *(b'{"prompt": "x", "unknown": ' + b"1" * 100_000 + b"}", b'{"prompt": "x", "unknown": "\\ud800"}'),
    ],
    ids=lambda body: repr(body[:24]),
)
@pytest.mark.parametrize("path", [COMPLETE, CHAT, "/tokenize"])
def test_not_a_json_object(server: Running, path: str, body: bytes) -> None:
    response = server.post(path, body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "invalid_value"
    assert len(response.content) < 1000


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"prompt": "x", "n": 1, "n": 2}', "n"),
        (b'{"prompt": "x", "prompt": "y"}', "prompt"),
        (b'{"prompt": "x", "metadata": {"a\\n": 1, "a\\n": 1}}', "a?"),
    ],
)
def test_duplicate_keys(server: Running, body: bytes, param: str) -> None:
    error_of(server.post(COMPLETE, body), 400, "invalid_value", param)


SAMPLING = [
    *(("n", value) for value in (10**9, -1, 0, 129, 1.5, "3", True)),
    *(("temperature", value) for value in (-1, 1e308, "1", True, [], 101)),
    *(("top_p", value) for value in (-1, 0, 1.1, "x")),
    *(("top_k", value) for value in (-5, 2**40, 0.5)),
    *(("min_p", value) for value in (2, -0.1)),
    *(("presence_penalty", value) for value in (3, -3, 1e300)),
    *(("frequency_penalty", value) for value in (3, -3)),
    *(("repetition_penalty", value) for value in (0, -1, 1e300)),
    *(("max_tokens", value) for value in (-1, 0, 2**63, 10**9, 10**30, 4096, "5")),
    ("min_tokens", 100),
    *(("seed", value) for value in (2**63, "1", 1.5)),
    *(("stop", value) for value in (["x"] * 1025, ["x" * 256] * 33, "x" * 257, "", [""], [1], {}, 5)),
    *(("stop_token_ids", value) for value in ([-1], [2**40], ["a"], 5, [100_000])),
    *(
        ("logit_bias", value)
        for value in ({"x": 1}, {"5": 101}, {"5": "a"}, {"99999999": 1}, [1], {"-1": 1}, {"9" * 5000: 1})
    ),
    *(("allowed_token_ids", value) for value in ([], [-1], "x")),
    *(("bad_words", value) for value in ([""], "x", [5])),
    *(("prompt_logprobs", value) for value in (-1, 21, 10**6)),
    *(("cache_salt", value) for value in ("x" * 10**6, "a/b", "\0", "👋", 5, "", "a\n")),
    *(("request_id", value) for value in ("x" * 129, "a b", "\r\n", 5)),
    *(("priority", value) for value in (2**40, "x", 1)),
    *(("truncate_prompt_tokens", value) for value in (0, -2, "x")),
    ("truncation_side", "middle"),
    *(("stream", value) for value in ("yes", 1)),
    *(("stream_options", value) for value in ({"include_usage": True}, 5)),
]


@pytest.mark.parametrize(("name", "value"), SAMPLING, ids=lambda v: repr(v)[:24])
@pytest.mark.parametrize("path", [COMPLETE, CHAT])
def test_bad_values(server: Running, path: str, name: str, value: Any) -> None:
    prompt = {"messages": [{"role": "user", "content": "say:x"}]} if path == CHAT else {"prompt": "say:x"}
    extra = {"max_tokens": 4} if name == "min_tokens" else {}
    response = server.post(path, {**prompt, **extra, name: value})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"].split("[")[0].split(".")[0] == name, error
    assert len(response.content) < 1000


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "robot"}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
         "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "x"}], "top_logprobs": 5}, "top_logprobs"),
        ({"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": [{"role": "user", "content": "x"}], "logprobs": 5}, "logprobs"),
        ({"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": -1}, "max_completion_tokens"),
        ({"messages": [{"role": "user", "content": "x"}], "chat_template": "{{ 1 }}"}, "chat_template"),
        ({"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
         "chat_template_kwargs.chat_template"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages"),
    ],
)  # fmt: skip
def test_bad_chats(server: Running, body: Any, param: str) -> None:
    code = "context_length_exceeded" if "xxx" in json.dumps(body) else "invalid_value"
    error_of(server.post(CHAT, body), 400, code, param)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        *(("", "prompt"), ([], "prompt"), ([[]], "prompt[0]"), (["a", ""], "prompt[1]"), ([1, "a"], "prompt")),
        *(([[1], [2, "a"]], "prompt[1][1]"), ([[1, True]], "prompt[0][1]"), ([-1], "prompt"), ([10**6], "prompt")),
        *((["x"] * 257, "prompt"), (["x"] * 100_000, "prompt"), (None, "prompt"), ({"a": 1}, "prompt")),
        *(([1, 2.5], "prompt[1]"), ([[[1]]], "prompt[0][0]"), (5, "prompt")),
    ],
    ids=lambda v: repr(v)[:24],
)
def test_bad_prompts(server: Running, prompt: Any, param: str) -> None:
    error_of(server.post(COMPLETE, {"prompt": prompt}), 400, "invalid_value", param)


def test_too_many_answers(server: Running) -> None:
    error_of(server.complete(["x"] * 64, n=33), 400, "invalid_value", "n")
    error_of(server.complete(["x"] * 256, n=1, best_of=9), 400, "invalid_value", "n")
    assert len(server.complete(["x"] * 64, n=32, max_tokens=1).json()["choices"]) == 2048


def test_lengths(server: Running) -> None:
    error_of(server.complete([1] * 1_000_000), 400, "context_length_exceeded", "prompt")
    error_of(server.complete("x" * 5_000_000), 400, "context_length_exceeded", "prompt")
    assert server.complete("x" * 4095, max_tokens=1).status_code == 200
    error_of(server.complete("x" * 4096, max_tokens=1), 400, "context_length_exceeded", "prompt")
    error_of(server.complete("x" * 4090, max_tokens=7), 400, "context_length_exceeded", "max_tokens")
    assert server.complete("x" * 4096, max_tokens=0, echo=True).status_code == 200


def test_more_than_the_cache_holds(start_server: StartServer) -> None:
    server = start_server(FakeLLM(max_model_len=4096, capacity=1024))
    error_of(server.complete("x" * 1000, max_tokens=25), 400, "exceeds_kv_capacity", "max_tokens")
    assert server.complete("x" * 1000, max_tokens=24).status_code == 200


ASKS_FOR_MORE: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "stop_regex": "a",
    "guided_whitespace_pattern": " ",
    "length_penalty": 0.5,
    "prompt_embeds": "AAAA",
    "suffix": "x",
    "modalities": ["text", "audio"],
    "audio": {"voice": "a"},
    "logprob_token_ids": [1],
    "lora_path": "x",
    "kv_transfer_params": {"tp_size": 2**31},
    "mm_hashes": ["x"],
    "features": {},
    "chat_template": "x",
    "vllm_xargs": {"a": 1},
}
ASKS_FOR_NOTHING: dict[str, Any] = {
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "structured_outputs": None,
    "use_beam_search": False,
    "length_penalty": 1.0,
    "suffix": "",
    "modalities": ["text"],
    "include_reasoning": True,
    "guided_json": None,
    "chat_template": None,
    "kv_transfer_params": None,
}


@pytest.mark.parametrize("name", ASKS_FOR_MORE)
@pytest.mark.parametrize("path", [COMPLETE, CHAT])
def test_no_feature_is_dropped_in_silence(server: Running, path: str, name: str) -> None:
    prompt = {"messages": [{"role": "user", "content": "say:x"}]} if path == CHAT else {"prompt": "say:x"}
    error = error_of(server.post(path, {**prompt, name: ASKS_FOR_MORE[name]}), 400, "invalid_value", name)
    assert name in error["message"]


@pytest.mark.parametrize("name", ASKS_FOR_NOTHING)
def test_a_field_may_ask_for_nothing(server: Running, name: str) -> None:
    answer = server.chat(**{name: ASKS_FOR_NOTHING[name]})
    assert answer.status_code == 200, answer.text
    assert "x-octavo-ignored" not in answer.headers


def test_ignored_fields_are_named(server: Running) -> None:
    answer = server.chat(user="me", metadata={"a": "b"}, store=True, made_up=1, service_tier=None)
    assert answer.headers["x-octavo-ignored"] == "user,metadata,store,made_up"
    strange = {"a\r\nX-Evil: 1": 1, "ü": 1, "": 1, "x" * 100: 1}
    names = server.chat(**strange).headers["x-octavo-ignored"]
    assert names == f"a??X-Evil??1,?,?,{'x' * 64}"
    many = server.chat(**{f"f{i}": 1 for i in range(1000)}).headers["x-octavo-ignored"].split(",")
    assert (len(many), many[-1]) == (33, "...")


def test_the_engine_never_sees_them(start_server: StartServer) -> None:
    server = start_server()
    for name, value in SAMPLING:
        if name not in ("max_tokens", "stop_token_ids", "logit_bias"):  # some of these depend on the model
            server.complete("say:x", **{name: value})
    assert server.llm is not None and server.llm.seen == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = sorted({*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__, *fields.UNSUPPORTED})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=10), JSON, max_size=5), st.booleans())
def test_any_object_is_answered(server: Running, body: dict[str, Any], chat: bool) -> None:
    """Whatever the values: an answer, or 400 that names a field."""
    prompt = {"messages": [{"role": "user", "content": "say:x"}]} if chat else {"prompt": "say:x"}
    data = json.dumps({**prompt, "max_tokens": 2, **body}).encode()
    response = server.post(CHAT if chat else COMPLETE, data)
    assert response.status_code in (200, 400, 404), (data, response.text)
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        request, tree, _ = fields.decode(data, CompletionRequest)
    except RequestError:
        return
    assert isinstance(request, CompletionRequest) and isinstance(tree, dict)

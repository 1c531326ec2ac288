"""Parameters beside sampling: deadlines, intervals, suffixes; and that no field of any client is dropped in silence."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import Running, StartServer, error_of, events
from tests.server.fake_engine import FakeLLM

COUNT = {"prompt": "count", "max_tokens": 4000}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_deadline(start_server: StartServer, path: str) -> None:
    server = start_server(FakeLLM(delay=0.01))
    body: dict[str, Any] = {"max_tokens": 4000, "deadline_ms": 60}
    body |= {"prompt": "count"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "count"}]}
    error = error_of(server.post(path, body), 504, "deadline_exceeded", "deadline_ms")
    assert "0.06 s" in error["message"]
    last = events(server.post(path, {**body, "stream": True}).text)[-1]
    assert last["error"]["code"] == "deadline_exceeded"
    server.idle()
    assert server.llm is not None and len(server.llm.aborted) == 2
    assert server.complete("say:x", deadline_ms=5000).status_code == 200


def test_a_deadline_of_several_prompts(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.01))
    error_of(
        server.complete(["say:x", "count"], max_tokens=4000, deadline_ms=60), 504, "deadline_exceeded", "deadline_ms"
    )
    server.idle()


def test_stream_interval(server: Running) -> None:
    def sizes(**fields: Any) -> list[int]:
        text = server.complete(
            max_tokens=10, ignore_eos=True, stream=True, return_token_ids=True, logprobs=1, **fields
        ).text
        chunks = [chunk["choices"][0] for chunk in events(text)[:-1]]
        assert "".join(chunk["text"] for chunk in chunks) == "0 1 2 3 4 "
        assert [len(chunk["logprobs"]["tokens"]) for chunk in chunks] == [len(chunk["token_ids"]) for chunk in chunks]
        assert chunks[-1]["finish_reason"] == "length"
        return [len(chunk["token_ids"]) for chunk in chunks]

    assert sizes(prompt="count") == [1] * 10
    assert sizes(prompt="count", stream_interval=4) == [1, 4, 4, 1]
    assert sizes(prompt="count", stream_interval=1000) == [1, 9]


def test_suffix(start_server: StartServer, server: Running) -> None:
    error_of(server.complete("a", suffix="b"), 400, "invalid_value", "suffix")
    coder = start_server(FakeLLM(special=("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")))
    answer = coder.complete("def f(", suffix="):", max_tokens=1, return_token_ids=True).json()
    assert coder.llm is not None
    prompt = coder.llm.tokenizer.decode(answer["choices"][0]["prompt_token_ids"], skip_special_tokens=False)
    assert prompt == "<|fim_prefix|>def f(<|fim_suffix|>):<|fim_middle|>"
    error_of(coder.complete([1, 2], suffix="b"), 400, "invalid_value", "suffix")
    error_of(coder.complete("a", suffix="b", echo=True), 400, "invalid_value", "suffix")
    mistral = start_server(FakeLLM(special=("[SUFFIX]", "[PREFIX]", "[MIDDLE]")))
    ids = mistral.complete("a", suffix="b", max_tokens=1, return_token_ids=True).json()["choices"][0][
        "prompt_token_ids"
    ]
    assert mistral.llm is not None
    assert mistral.llm.tokenizer.decode(ids, skip_special_tokens=False) == "[SUFFIX]b[PREFIX]a"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": True}, "stream"),
        ({"n": 65}, "n"),
        ({"top_p": 0.5}, "top_p"),
        ({"logprobs": 1}, "logprobs"),
        ({"stop": "x"}, "stop"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"length_penalty": 11}, "length_penalty"),
        ({"use_beam_search": False, "length_penalty": 0.5}, "length_penalty"),
    ],
)
def test_beam_search_refuses(server: Running, fields: dict[str, Any], param: str) -> None:
    response = server.complete(**{"use_beam_search": True, **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text

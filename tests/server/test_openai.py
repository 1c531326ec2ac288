"""The `openai` package against the server: what its users see."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from octavo.core.errors import ConfigError
from octavo.server.config import ServerConfig
from tests.server.conftest import Running, StartServer, error_of
from tests.server.fake_engine import FakeLLM

Chunk = Any


def say(text: str) -> list[Any]:
    return [{"role": "user", "content": f"say:{text}"}]


def test_chat(server: Running) -> None:
    answer = server.client().chat.completions.create(model="fake", messages=say("Grüße 👋🏽"))
    choice = answer.choices[0]
    assert (choice.message.content, choice.message.role, choice.finish_reason) == ("Grüße 👋🏽", "assistant", "stop")
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    said = len("Grüße 👋🏽".encode()) + 1  # a token a byte, and the end
    assert answer.usage.completion_tokens == said
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + said
    assert answer.usage.prompt_tokens_details.cached_tokens == 16


@pytest.mark.parametrize("text", ["hello world", "Grüße 👋🏽 日本語 🇫🇷", "a" * 1500])
def test_streamed_text_is_the_whole_text(server: Running, text: str) -> None:
    create = server.client().chat.completions.create
    whole = create(model="fake", messages=say(text)).choices[0].message.content
    chunks = list(create(model="fake", messages=say(text), stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole == text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
    assert len({c.id for c in chunks}) == 1


def test_three_answers_streamed_by_index(server: Running) -> None:
    texts = ["", "", ""]
    roles: list[int] = []
    order: list[int] = []
    for chunk in server.client().chat.completions.create(model="fake", messages=say("page"), n=3, stream=True):
        (choice,) = chunk.choices
        if choice.delta.role:
            roles.append(choice.index)
        if choice.delta.content:
            order.append(choice.index)
        texts[choice.index] += choice.delta.content or ""
    assert texts == ["page", "page #1", "page #2"]
    assert sorted(roles) == [0, 1, 2]
    assert order[:6] == [0, 1, 2, 0, 1, 2]


def test_three_answers_whole(server: Running) -> None:
    answer = server.client().chat.completions.create(model="fake", messages=say("page"), n=3)
    assert [(c.index, c.message.content) for c in answer.choices] == [(0, "page"), (1, "page #1"), (2, "page #2")]


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(server: Running, stream: bool) -> None:
    options: Any = {"model": "fake", "messages": say("pé"), "logprobs": True, "top_logprobs": 2, "stream": stream}
    answer: Any = server.client().chat.completions.create(**options)
    if stream:
        rows = [row for c in answer if c.choices[0].logprobs for row in c.choices[0].logprobs.content]
    else:
        rows = answer.choices[0].logprobs.content
    assert [row.token for row in rows] == ["p", "�", "�", "<end>"]
    assert bytes(b for row in rows[:3] for b in row.bytes) == "pé".encode()
    assert rows[0].logprob == -0.5
    assert [(top.token, top.logprob) for top in rows[0].top_logprobs] == [("p", -0.5), ("q", -1.5)]


def test_sampled_token_outside_of_the_likeliest(server: Running) -> None:
    answer = server.client().chat.completions.create(model="fake", messages=say("e"), logprobs=True, top_logprobs=2)
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content is not None
    row = answer.choices[0].logprobs.content[0]
    assert (row.token, row.logprob) == ("e", -3.5)
    assert [(top.token, top.logprob) for top in row.top_logprobs] == [("f", -0.5), ("g", -1.5)]


def test_completion_logprobs(server: Running) -> None:
    answer = server.client().completions.create(model="fake", prompt="say:hex", logprobs=1)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.tokens == ["h", "e", "x", "<end>"]
    assert found.text_offset == [0, 1, 2, 3]
    assert found.token_logprobs == [-0.5, -3.5, -0.5, -0.5]
    assert found.top_logprobs is not None
    assert found.top_logprobs[:2] == [{"h": -0.5}, {"e": -3.5, "f": -0.5}]


@pytest.mark.parametrize("stream", [False, True])
def test_stop(server: Running, stream: bool) -> None:
    options: Any = {"model": "fake", "messages": say("one two three"), "stop": [" thr", "nothing"], "stream": stream}
    answer: Any = server.client().chat.completions.create(**options)
    if stream:
        chunks = list(answer)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "one two"
        assert (chunks[-1].choices[0].finish_reason, chunks[-1].choices[0].stop_reason) == ("stop", " thr")
    else:
        choice = answer.choices[0]
        assert (choice.message.content, choice.finish_reason, choice.stop_reason) == ("one two", "stop", " thr")


def test_length(server: Running) -> None:
    answer = server.client().completions.create(model="fake", prompt="count", max_tokens=5)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("0 1 2", "length")
    assert answer.usage is not None and answer.usage.completion_tokens == 5
    # OpenAI's default for completions; a chat may go on until the context is full.
    assert len(server.client().completions.create(model="fake", prompt="count").choices[0].text) == 16
    chat = server.client().chat.completions.create(model="fake", messages=[{"role": "user", "content": "count"}])
    assert chat.usage is not None and chat.usage.total_tokens == 4096
    assert chat.choices[0].finish_reason == "length"


def test_usage_of_a_stream(server: Running) -> None:
    create = server.client().chat.completions.create
    chunks = list(create(model="fake", messages=say("hi"), stream=True, stream_options={"include_usage": True}))
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3
    each: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(create(model="fake", messages=say("hi"), stream=True, stream_options=each))
    assert [c.usage.completion_tokens for c in chunks if c.usage] == [0, 1, 2, 3, 3]
    assert "usage" not in next(iter(create(model="fake", messages=say("hi"), stream=True))).model_fields_set


def test_several_prompts(server: Running) -> None:
    prompts = ["say:one", "say:two", "say:three"]
    answer = server.client().completions.create(model="fake", prompt=prompts, n=2)
    expected = ["one", "one #1", "two", "two #1", "three", "three #1"]
    assert [(c.index, c.text) for c in answer.choices] == list(enumerate(expected))
    texts = [""] * 6
    ends = []
    for chunk in server.client().completions.create(model="fake", prompt=prompts, n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
        ends += [c.index for c in chunk.choices if c.finish_reason]
    assert texts == expected
    assert sorted(ends) == list(range(6))
    assert answer.usage is not None and answer.usage.prompt_tokens == sum(map(len, prompts))


def test_prompts_as_token_ids(server: Running) -> None:
    assert server.llm is not None
    ids = [server.llm.tokenizer.encode(text) for text in ("say:one", "say:two")]
    complete = server.client().completions.create
    assert complete(model="fake", prompt=ids[0]).choices[0].text == "one"
    assert [c.text for c in complete(model="fake", prompt=ids).choices] == ["one", "two"]


def test_echo(server: Running) -> None:
    complete = server.client().completions.create
    assert complete(model="fake", prompt="say:one", echo=True).choices[0].text == "say:oneone"
    chunks = list(complete(model="fake", prompt="say:one", echo=True, stream=True, n=2))
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["say:oneone", "say:oneone #1"]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_and_logprobs_score_a_prompt(server: Running, stream: bool) -> None:
    """What evaluation harnesses ask for: the logprobs of a text, and nothing generated."""
    options: Any = {"model": "fake", "prompt": "axe", "echo": True, "logprobs": 1, "max_tokens": 0, "stream": stream}
    answer: Any = server.client().completions.create(**options)
    (choice,) = [c for part in answer for c in part.choices] if stream else answer.choices
    assert (choice.text, choice.finish_reason) == ("axe", "length")
    assert choice.logprobs.tokens == ["a", "x", "e"]
    assert choice.logprobs.token_logprobs == [None, -0.5, -3.5]
    assert choice.logprobs.top_logprobs == [None, {"x": -0.5}, {"e": -3.5, "f": -0.5}]
    assert choice.logprobs.text_offset == [0, 1, 2]


def test_echo_goes_on_where_the_prompt_ends(server: Running) -> None:
    choice = server.client().completions.create(model="fake", prompt="say:x", echo=True, logprobs=0).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["s", "a", "y", ":", "x", "x", "<end>"]
    assert choice.logprobs.text_offset == [0, 1, 2, 3, 4, 5, 6]


def test_best_of(server: Running) -> None:
    # Answer 0 is "e", which is unlikely; the others have likelier characters after it.
    answer = server.client().completions.create(model="fake", prompt="say:e", best_of=3, n=1)
    assert [c.text for c in answer.choices] == ["e #1"]
    assert answer.usage is not None and answer.usage.completion_tokens == 2 + 5 + 5
    error_of(server.complete(best_of=2, n=3), 400, "invalid_value", "best_of")
    error_of(server.complete(best_of=2, stream=True), 400, "invalid_value", "best_of")


def test_extras_of_vllm(server: Running) -> None:
    body = {"return_token_ids": True, "prompt_logprobs": 1, "return_prompt_text": True}
    options: Any = {"model": "fake", "messages": say("hi"), "extra_body": body}
    answer: Any = server.client().chat.completions.create(**options)
    assert server.llm is not None
    tokenizer = server.llm.tokenizer
    assert tokenizer.decode(answer.choices[0].token_ids) == "hi"
    assert answer.prompt_text == "<user>say:hi\n<assistant>"
    assert tokenizer.decode(answer.prompt_token_ids) == answer.prompt_text
    assert answer.prompt_logprobs[0] is None
    assert len(answer.prompt_logprobs) == len(answer.prompt_token_ids)
    second = answer.prompt_logprobs[1][str(answer.prompt_token_ids[1])]
    assert second == {"logprob": -0.5, "rank": 1, "decoded_token": "u"}
    chunks: list[Any] = list(server.client().chat.completions.create(**options, stream=True))
    assert chunks[0].prompt_token_ids == answer.prompt_token_ids
    assert chunks[0].prompt_logprobs == answer.prompt_logprobs
    assert [t for c in chunks for t in getattr(c.choices[0], "token_ids", None) or []] == answer.choices[0].token_ids


def test_tokens_as_ids(server: Running) -> None:
    body: Any = {"return_tokens_as_token_ids": True}
    answer = server.client().completions.create(model="fake", prompt="say:a", logprobs=1, extra_body=body)
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.tokens is not None
    assert server.llm is not None
    assert answer.choices[0].logprobs.tokens[0] == f"token_id:{server.llm.tokenizer.encode('a')[0]}"


def test_sampling_parameters_reach_the_engine(server: Running) -> None:
    body: Any = {
        "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2, "stop_token_ids": [3], "min_tokens": 2, "ignore_eos": True,
        "allowed_token_ids": [1, 2], "bad_words": ["no"], "skip_special_tokens": False,
        "include_stop_str_in_output": True, "spaces_between_special_tokens": False,
    }  # fmt: skip
    server.client().chat.completions.create(
        model="fake", messages=say("hi"), temperature=0.5, top_p=0.9, presence_penalty=1, frequency_penalty=-1, seed=5,
        logit_bias={"5": 10}, stop="x", max_completion_tokens=9, extra_body=body,
    )  # fmt: skip
    assert server.llm is not None
    params = server.llm.seen[-1]
    expected = {**body, "temperature": 0.5, "top_p": 0.9, "presence_penalty": 1, "frequency_penalty": -1, "seed": 5}
    assert {name: getattr(params, name) for name in expected} == expected
    assert (params.logit_bias, params.stop, params.max_tokens) == ({5: 10.0}, ["x"], 9)


def test_continued_message(server: Running) -> None:
    messages: list[Any] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "say:go on"}]
    body: Any = {"continue_final_message": True, "return_prompt_text": True, "echo": True}
    answer: Any = server.client().chat.completions.create(model="fake", messages=messages, extra_body=body)
    assert answer.prompt_text == "<user>x\n<assistant>say:go on"
    assert answer.choices[0].message.content == "say:go ongo on"
    both = {"messages": messages, "continue_final_message": True, "add_generation_prompt": True}
    error_of(server.post("/v1/chat/completions", both), 400, "invalid_value", "continue_final_message")


def test_text_parts(server: Running) -> None:
    content = [{"type": "text", "text": "say:one"}, {"type": "text", "text": "two"}]
    answer = server.client().chat.completions.create(model="fake", messages=[{"role": "user", "content": content}])
    assert answer.choices[0].message.content == "one\ntwo"


@pytest.mark.parametrize(("side", "text"), [(None, "ight"), ("left", "ight"), ("right", "say:")])
def test_truncated_prompt(server: Running, side: str | None, text: str) -> None:
    answer = server.complete("say:right", truncate_prompt_tokens=4, truncation_side=side, echo=True, max_tokens=1)
    assert answer.json()["choices"][0]["text"].startswith(text)
    assert answer.json()["usage"]["prompt_tokens"] == 4
    whole = server.complete("x" * 9000, truncate_prompt_tokens=-1, max_tokens=6)
    assert whole.json()["usage"]["prompt_tokens"] == 4090


def test_models(server: Running) -> None:
    (model,) = server.client().models.list().data
    assert (model.id, model.object, model.owned_by) == ("fake", "model", "octavo")
    assert server.client().models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve("other")


def test_errors_are_openai_s_exceptions(server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(model="fake", messages=say("x"), temperature=-1)
    assert (caught.value.param, caught.value.code, caught.value.type) == (
        "temperature",
        "invalid_value",
        "invalid_request_error",
    )
    assert caught.value.request_id
    with pytest.raises(openai.NotFoundError) as missing:
        server.client().chat.completions.create(model="other", messages=say("x"))
    assert missing.value.code == "model_not_found"


def test_request_id(server: Running) -> None:
    assert server.chat(request_id="mine-1").headers["x-request-id"] == "mine-1"
    answer = server.client().chat.completions.create(
        model="fake", messages=say("x"), extra_headers={"X-Request-Id": "other.2"}
    )
    assert answer._request_id == "other.2"


def test_defaults_of_the_model(start_server: StartServer) -> None:
    config = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05, "do_sample": True}
    server = start_server(FakeLLM(generation_config=config))
    server.chat(top_p=0.5)
    assert server.llm is not None
    params = server.llm.seen[-1]
    assert (params.temperature, params.top_p, params.top_k, params.repetition_penalty) == (0.6, 0.5, 20, 1.05)
    plain = start_server(FakeLLM(generation_config=config), generation_config="vllm")
    plain.chat()
    assert plain.llm is not None
    assert (plain.llm.seen[-1].temperature, plain.llm.seen[-1].top_k) == (1.0, 0)


def test_own_chat_template_and_names(start_server: StartServer, tmp_path: Any) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("[{{ messages[0].content }}]say:templated")
    server = start_server(chat_template=str(template), served_model_name=("a", "b"), root_path="/api")
    answer = server.post("/api/v1/chat/completions", {"model": "b", "messages": [{"role": "user", "content": "x"}]})
    assert answer.json()["choices"][0]["message"]["content"] == "templated"
    assert answer.json()["model"] == "b"
    assert [m["id"] for m in server.client().models.list().model_dump()["data"]] == ["a", "b"]
    error_of(server.chat(model="fake"), 404, "model_not_found", "model")


def test_defaults_of_the_template(start_server: StartServer, tmp_path: Any) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("[{{ messages[0].content }}]say:{{ mood }}{{ tone }}")
    server = start_server(chat_template=str(template), default_chat_template_kwargs='{"mood": "calm", "tone": "!"}')
    assert server.chat().json()["choices"][0]["message"]["content"] == "calm!"
    answer = server.chat(chat_template_kwargs={"mood": "wild"})
    assert answer.json()["choices"][0]["message"]["content"] == "wild!"
    for wrong in ("{", "[]", "5"):
        with pytest.raises(ConfigError, match="default_chat_template_kwargs"):
            ServerConfig(default_chat_template_kwargs=wrong)


def test_tokenize(server: Running) -> None:
    found = server.post("/tokenize", {"prompt": "abc", "return_token_strs": True}).json()
    assert (found["count"], found["max_model_len"], found["token_strs"]) == (3, 4096, ["a", "b", "c"])
    assert server.post("/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": "abc"}
    wrong = server.post("/detokenize", {"tokens": [1, 10**6]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tokens")
    chat = server.post("/tokenize", {"messages": [{"role": "user", "content": "x"}]}).json()
    assert server.post("/detokenize", {"tokens": chat["tokens"]}).json() == {"prompt": "<user>x\n<assistant>"}
    error_of(server.post("/tokenize", {}), 400, "invalid_value", "prompt")

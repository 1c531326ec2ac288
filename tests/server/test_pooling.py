"""Embeddings, scores, ranks and classes over HTTP, from an engine whose numbers are known."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from octavo.core import log
from octavo.core.config import EngineConfig
from octavo.core.pooling import PoolingParams
from octavo.server.config import ServerConfig
from octavo.server.pooling.protocol import MAX_INPUTS
from octavo.server.pooling.routes import READING
from octavo.server.pooling.vectors import as_bytes
from tests.server.conftest import Running, StartServer, error_of, own_log, wait_for
from tests.server.fake_engine import FakeLLM
from tests.server.fake_pooler import CLASSIFIER, EMBEDDER, RERANKER, REWARDER, SIZE, FakePooler, values

BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "abc"},
    **dict.fromkeys(("/v1/score", "/score"), {"text_1": "abc", "text_2": ["bcd", "xyz"]}),
    **dict.fromkeys(("/v1/rerank", "/v2/rerank", "/rerank"), {"query": "abc", "documents": ["xyz", "bcd"]}),
    **dict.fromkeys(("/v1/classify", "/classify"), {"input": "abc"}),
    "/pooling": {"input": "abc"},
}
KINDS = ("/v1/embeddings", "/v1/score", "/v1/rerank", "/v1/classify", "/pooling")  # one name of each


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    running = Running(FakePooler(), ServerConfig(port=0, log_level="error"), EngineConfig())
    running.start()
    yield running
    running.stop()


def ids_of(server: Running, text: str) -> list[int]:
    assert server.llm is not None
    return server.llm.tokenizer.encode(text)


def vector(server: Running, text: str, **params: Any) -> Any:
    return values(text, ids_of(server, text), PoolingParams(**params))


# -- embeddings


def test_every_form_of_input(server: Running) -> None:
    one, two = ids_of(server, "one"), ids_of(server, "two words")
    client = server.client()
    for given, texts in (
        ("one", ["one"]),
        (["one", "two words"], ["one", "two words"]),
        (one, ["one"]),
        ([one, two], ["one", "two words"]),
    ):
        found = client.embeddings.create(input=given, model="fake", encoding_format="float")  # type: ignore[arg-type]
        assert [item.index for item in found.data] == list(range(len(texts)))
        for item, text in zip(found.data, texts, strict=True):
            np.testing.assert_array_equal(np.float32(item.embedding), vector(server, text))
        assert found.usage.prompt_tokens == found.usage.total_tokens == sum(len(ids_of(server, t)) for t in texts)
        assert (found.object, found.model, found.data[0].object) == ("list", "fake", "embedding")


def test_base64_and_float_are_the_same(server: Running) -> None:
    client = server.client()
    plain = client.embeddings.create(input=["abc", "hello"], model="fake", encoding_format="float")
    packed = client.embeddings.create(input=["abc", "hello"], model="fake")  # the client asks for base64 by itself
    assert [item.embedding for item in plain.data] == [item.embedding for item in packed.data]
    body = server.post("/v1/embeddings", {"input": "abc", "encoding_format": "base64"}).json()
    assert isinstance(body["data"][0]["embedding"], str)


def test_dimensions(server: Running) -> None:
    found = server.client().embeddings.create(input="hello", model="fake", dimensions=20)
    np.testing.assert_array_equal(np.float32(found.data[0].embedding), vector(server, "hello", dimensions=20))
    error_of(server.post("/v1/embeddings", {"input": "x", "dimensions": SIZE + 1}), 400, "invalid_value", "dimensions")
    error_of(server.post("/v1/embeddings", {"input": "x", "dimensions": 0}), 400, "invalid_value", "dimensions")


@pytest.mark.parametrize("endianness", ["native", "little", "big"])
def test_types_of_bytes(server: Running, endianness: str) -> None:
    body = {"input": "hello", "encoding_format": "base64", "endianness": endianness, "use_activation": False}
    exact = vector(server, "hello", use_activation=False)
    order = {"native": "=", "little": "<", "big": ">"}[endianness]
    for dtype, kind in (("float32", "f4"), ("float16", "f2")):
        answer = server.post("/v1/embeddings", {**body, "embed_dtype": dtype})
        data = base64.b64decode(answer.json()["data"][0]["embedding"])
        np.testing.assert_array_equal(np.frombuffer(data, order + kind), exact)  # small integers are exact in all
        assert "x-octavo-ignored" not in answer.headers
    data = base64.b64decode(
        server.post("/v1/embeddings", {**body, "embed_dtype": "bfloat16"}).json()["data"][0]["embedding"]
    )
    bits = np.frombuffer(data, order + "u2").astype(np.uint32) << 16
    np.testing.assert_array_equal(bits.view(np.float32), exact)


def test_bfloat16_is_rounded_to_even() -> None:
    torch = pytest.importorskip("torch")
    numbers = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    halves = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32).view(np.float32)
    numbers = np.concatenate([numbers, halves, -halves])
    found = np.frombuffer(as_bytes(numbers, "bfloat16", "little"), "<u2")
    expected = torch.from_numpy(numbers).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(found, expected)


def test_what_is_of_messages_is_named(server: Running) -> None:
    options = {"add_generation_prompt": True, "chat_template_kwargs": {"a": 1}}
    answer = server.post("/v1/embeddings", {"input": "x", **options})
    assert answer.headers["x-octavo-ignored"] == "add_generation_prompt,chat_template_kwargs"
    messages = [{"role": "user", "content": "x"}]
    assert "x-octavo-ignored" not in server.post("/v1/embeddings", {"messages": messages, **options}).headers
    error = error_of(server.post("/v1/embeddings", {"inputs": ["x"], "texts": 1}), 400, "invalid_value", "input")
    assert error["message"] == "Send either input or messages. There is no field inputs, texts."


def test_what_says_nothing_of_numbers_is_named(server: Running) -> None:
    answer = server.post("/v1/embeddings", {"input": "x", "embed_dtype": "float16", "endianness": "big", "user": "u"})
    assert set(answer.headers["x-octavo-ignored"].split(",")) == {"user", "embed_dtype", "endianness"}


def test_truncation(server: Running) -> None:
    def count(**fields: Any) -> tuple[int, Any]:
        found = server.post("/v1/embeddings", {"input": "abcdef", **fields}).json()
        return found["usage"]["prompt_tokens"], np.float32(found["data"][0]["embedding"])

    ids = ids_of(server, "abcdef")
    for given in ("abcdef", ids, [ids]):
        for side, kept in ((None, "abc"), ("right", "abc"), ("left", "def")):
            fields = {} if side is None else {"truncation_side": side}
            found, numbers = count(input=given, truncate_prompt_tokens=3, **fields)
            assert found == 3
            np.testing.assert_array_equal(numbers, vector(server, kept))
    assert count(truncate_prompt_tokens=-1)[0] == 6
    long = {"input": "x" * 5000}
    error = error_of(server.post("/v1/embeddings", long), 400, "context_length_exceeded", "input")
    assert "5000 tokens" in error["message"] and "4096" in error["message"]
    for given in ("x" * 5000, [1] * 5000):
        found = server.post("/v1/embeddings", {"input": given, "truncate_prompt_tokens": -1}).json()
        assert found["usage"]["prompt_tokens"] == 4096
    for wrong in (0, -2, 5000):
        answer = server.post("/v1/embeddings", {"input": "x", "truncate_prompt_tokens": wrong})
        error_of(answer, 400, "invalid_value", "truncate_prompt_tokens")


def test_conversations(server: Running) -> None:
    messages = [{"role": "user", "content": "hello"}]
    found = server.post("/v1/embeddings", {"messages": messages}).json()
    text = "<user>hello\n"
    assert found["usage"]["prompt_tokens"] == len(text)
    np.testing.assert_array_equal(np.float32(found["data"][0]["embedding"]), vector(server, text))
    found = server.post("/v1/embeddings", {"messages": messages, "add_generation_prompt": True}).json()
    assert found["usage"]["prompt_tokens"] == len(text + "<assistant>")
    for body in ({}, {"messages": messages, "input": "x"}, {"input": None}):
        error_of(server.post("/v1/embeddings", body), 400, "invalid_value", "input")
    error_of(server.post("/v1/embeddings", {"messages": []}), 400, "invalid_value", "messages")
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]
    assert server.post("/v1/embeddings", {"messages": image}).status_code == 400


def test_a_model_without_a_template(start_server: StartServer) -> None:
    server = start_server(FakePooler(EMBEDDER, template=None))
    messages = [{"role": "user", "content": "hello"}]
    error = error_of(server.post("/v1/embeddings", {"messages": messages}), 400, "invalid_value", "messages")
    assert "template" in error["message"]
    assert server.post("/tokenize", {"prompt": "abc"}).json()["count"] == 3
    assert server.get("/v1/models").json()["data"][0]["tasks"] == ["embed", "token_embed", "score"]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        *(
            ("", "input"),
            ([], "input"),
            ([[]], "input[0]"),
            (["a", ""], "input[1]"),
            (["a", 1], "input"),
            ([1.5], "input[0]"),
        ),
        *(([-1], "input"), ([[1], [-1]], "input[1][0]"), ([10**6], "input"), ([[1], [10**6]], "input[1]")),
        *((5, "input"), ({"a": 1}, "input"), (["x"] * (MAX_INPUTS + 1), "input"), (["a", "x" * 5000], "input[1]")),
    ],
)
def test_wrong_input(server: Running, given: Any, param: str) -> None:
    answer = server.post("/v1/embeddings", {"input": given})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param, answer.text
    assert len(answer.content) < 500


def test_as_many_as_may_be(server: Running) -> None:
    """They do not all enter the engine at once, and come back in their order."""
    llm = server.llm
    assert isinstance(llm, FakePooler)
    texts = [f"{i} {'x' * (i % 7)}" for i in range(MAX_INPUTS)]
    found = server.client().embeddings.create(input=texts, model="fake")
    assert [item.index for item in found.data] == list(range(MAX_INPUTS))
    for i in (0, 1, 1000, MAX_INPUTS - 1):
        np.testing.assert_array_equal(np.float32(found.data[i].embedding), vector(server, texts[i]))
    assert llm.most_at_once <= 512


# -- scores


@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items")]
)
def test_scores(server: Running, names: tuple[str, str]) -> None:
    def scores(first: Any, second: Any) -> list[float]:
        answer = server.post("/v1/score", dict(zip(names, (first, second), strict=True))).json()
        assert [item["index"] for item in answer["data"]] == list(range(len(answer["data"])))
        assert {item["object"] for item in answer["data"]} == {"score"} and answer["object"] == "list"
        return [item["score"] for item in answer["data"]]

    assert scores("abc", "bcd") == [0.5]
    assert scores("abc", ["abc", "xyz", "bcd"]) == [1, 0, 0.5]
    assert scores(["abc", "xyz"], ["abc", "abc"]) == [1, 0]
    answer = server.post("/score", {names[0]: ["a", "b"], names[1]: ["a", "b", "c"]})
    error_of(answer, 400, "invalid_value", names[0])
    error_of(server.post("/score", {names[0]: "a", names[1]: []}), 400, "invalid_value", names[1])
    error_of(server.post("/score", {names[0]: "a", names[1]: ["a"] * 2049}), 400, "invalid_value", names[1])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text_1"),
        ({"text_1": "a"}, "text_2"),
        ({"documents": ["a"]}, "queries"),
        ({"text_1": "a", "data_2": "b"}, "text_1"),
        ({"text_1": "a", "text_2": "b", "items": "c"}, "text_1"),
        ({"text_1": [1], "text_2": "b"}, "text_1[0]"),
    ],
)
def test_scores_need_two_sides(server: Running, body: dict[str, Any], param: str) -> None:
    error_of(server.post("/v1/score", body), 400, "invalid_value", param)


def test_scores_of_embeddings(start_server: StartServer) -> None:
    """The cosine of two, each computed once."""
    llm = FakePooler(EMBEDDER)
    server = start_server(llm)
    body = {"text_1": "aab", "text_2": ["aab", "xyz", "abb"], "use_activation": False}
    answer = server.post("/score", body)
    found = [item["score"] for item in answer.json()["data"]]
    np.testing.assert_allclose(found, [1, 0, 0.8], atol=1e-6)
    assert [prompt for prompt, _ in llm.asked] == ["aab", "aab", "xyz", "abb"]
    assert answer.headers["x-octavo-ignored"] == "use_activation"
    assert answer.json()["usage"]["prompt_tokens"] == 12


# -- ranks


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_ranks(server: Running, path: str) -> None:
    body = {"model": "fake", "query": "abc", "documents": ["xyz", {"text": "bcd"}, "abc"]}
    answer = server.post(path, body).json()
    assert [(item["index"], item["relevance_score"]) for item in answer["results"]] == [(2, 1), (1, 0.5), (0, 0)]
    assert [item["document"] for item in answer["results"]] == [{"text": "abc"}, {"text": "bcd"}, {"text": "xyz"}]
    assert answer["model"] == "fake" and answer["id"].startswith("rerank-")
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] == 18
    for top, count in ((1, 1), (2, 2), (0, 3), (9, 3), (None, 3)):
        found = server.post(path, {**body, "top_n": top, "return_documents": False}).json()["results"]
        assert [item["index"] for item in found] == [2, 1, 0][:count]
        assert all("document" not in item for item in found)


def test_equal_ranks_keep_their_order(server: Running) -> None:
    found = server.post("/rerank", {"query": "a", "documents": ["x", "y", "z"]}).json()["results"]
    assert [item["index"] for item in found] == [0, 1, 2]


def test_ranks_of_cut_texts(server: Running) -> None:
    body = {"query": "abcx", "documents": ["abcy", "zabc"], "max_tokens_per_doc": 3, "max_tokens_per_query": 3}
    answer = server.post("/rerank", body).json()
    assert [(item["index"], item["relevance_score"]) for item in answer["results"]] == [(0, 1), (1, 0.5)]
    assert answer["results"][0]["document"]["text"] == "abcy"  # as it came
    assert answer["usage"]["prompt_tokens"] == 12


def test_which_text_is_too_long(server: Running, start_server: StartServer) -> None:
    body = {"query": "a", "documents": ["b", "x" * 5000]}
    for each in (server, start_server(FakePooler(EMBEDDER))):
        error = error_of(each.post("/rerank", body), 400, "context_length_exceeded", "documents[1]")
        assert "truncate_prompt_tokens" in error["message"]
        assert each.post("/rerank", {**body, "truncate_prompt_tokens": -1}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        *(
            ({"query": None}, "query"),
            ({"query": ""}, "query"),
            ({"documents": []}, "documents"),
            ({"documents": "x"}, "documents"),
        ),
        *(({"documents": [{"title": "x"}]}, "documents[0].text"), ({"top_n": -1}, "top_n"), ({"top_n": "1"}, "top_n")),
        *(({"instruction": "x"}, "instruction"), ({"max_tokens_per_doc": 0}, "max_tokens_per_doc")),
        ({"documents": ["a"] * (MAX_INPUTS + 1)}, "documents"),
    ],
)
def test_wrong_ranks(server: Running, fields: dict[str, Any], param: str) -> None:
    error_of(server.post("/rerank", {"query": "a", "documents": ["b"], **fields}), 400, "invalid_value", param)


def test_parts_of_documents_that_are_not_read_are_named(server: Running) -> None:
    body = {"query": "a", "documents": [{"text": "a", "title": "b"}], "rank_fields": ["title"]}
    assert server.post("/rerank", body).headers["x-octavo-ignored"] == "rank_fields,documents[].title"


# -- classes, and what else there is


def test_classes(start_server: StartServer) -> None:
    server = start_server(FakePooler(CLASSIFIER))
    for path in ("/classify", "/v1/classify"):
        answer = server.post(path, {"input": ["ab", "abcdefgh"]}).json()
        assert [(item["index"], item["label"], item["num_classes"]) for item in answer["data"]] == [
            (0, "few", 2),
            (1, "many", 2),
        ]
        np.testing.assert_allclose(answer["data"][1]["probs"], [0.2, 0.8], rtol=1e-6)
    found = server.post("/classify", {"input": "abc", "use_activation": False}).json()["data"]
    assert found == [{"index": 0, "label": "few", "probs": [3.0], "num_classes": 1}]
    assert server.post("/pooling", {"input": "ab"}).json()["data"][0]["data"] == pytest.approx([0.8, 0.2])


def test_pooling(server: Running) -> None:
    plain = server.post("/pooling", {"input": "hello"}).json()
    np.testing.assert_array_equal(np.float32(plain["data"][0]["data"]), vector(server, "hello"))
    assert (plain["object"], plain["data"][0]["object"]) == ("list", "pooling")
    each = server.post("/pooling", {"input": "hello", "task": "token_embed"}).json()["data"][0]["data"]
    assert np.shape(each) == (5, SIZE)
    packed = server.post("/pooling", {"input": "hello", "task": "token_embed", "encoding_format": "base64"}).json()
    data = np.frombuffer(base64.b64decode(packed["data"][0]["data"]), np.float32)
    np.testing.assert_array_equal(data.reshape(5, SIZE), np.float32(each))
    error_of(server.post("/pooling", {"input": "x", "task": "token_classify"}), 400, "invalid_value", "task")


def test_an_answer_without_bound_is_refused(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.server.pooling.run.MAX_VALUES", 10 * SIZE)
    body = {"input": ["abcdef"] * 2, "task": "token_embed"}
    error_of(server.post("/pooling", body), 400, "invalid_value", "input")


def test_rewards(start_server: StartServer) -> None:
    server = start_server(FakePooler(REWARDER))
    assert server.post("/pooling", {"input": "abc"}).json()["data"][0]["data"] == [3.0]
    error = error_of(server.post("/pooling", {"input": "x", "task": "embed"}), 400, "unsupported_task", "task")
    assert "reward (POST /pooling)" in error["message"]


# -- what a model cannot do


def test_routes_that_a_model_cannot_answer(start_server: StartServer) -> None:
    writer = start_server(FakeLLM())
    for path, body in BODIES.items():
        error = error_of(writer.post(path, body), 400, "unsupported_task", "model")
        assert "it can generate (POST /v1/chat/completions, /v1/completions)" in error["message"]
    llm = FakePooler(EMBEDDER)
    reader = start_server(llm)
    messages = [{"role": "user", "content": "say:x"}]
    for path, body in (
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/chat/completions", {"messages": messages, "stream": True}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": messages, "max_tokens": 5}),
    ):
        answer = reader.post(path, body)
        assert answer.status_code == 400, (path, answer.text)
        assert "cannot generate; it can embed (POST /v1/embeddings)" in answer.json()["error"]["message"], path
    for path in ("/classify", "/v1/classify"):
        error_of(reader.post(path, BODIES[path]), 400, "unsupported_task", "model")
    reranker = start_server(FakePooler(RERANKER))
    error_of(reranker.post("/v1/embeddings", {"input": "x"}), 400, "unsupported_task", "model")
    assert reranker.post("/rerank", BODIES["/rerank"]).status_code == 200
    assert not llm.asked


@pytest.mark.parametrize("path", BODIES)
def test_the_model_is_named_or_not(server: Running, path: str) -> None:
    assert server.post(path, {**BODIES[path], "model": "fake"}).json()["model"] == "fake"
    error_of(server.post(path, {**BODIES[path], "model": "other"}), 404, "model_not_found", "model")


def test_all_routes_are_tried() -> None:
    assert set(BODIES) == set(READING)


# -- what is around each request


@pytest.mark.parametrize("path", BODIES)
def test_fields_of_all(server: Running, path: str) -> None:
    body = BODIES[path]
    fine = {"padding": "do_not_pad", "cache_salt": "abc", "priority": 0, "deadline_ms": 60000, "request_id": "mine"}
    answer = server.post(path, {**body, **fine})
    assert answer.status_code == 200 and answer.headers["x-request-id"] == "mine"
    assert "x-octavo-ignored" not in answer.headers
    for name, value in (("padding", "max_length"), ("padding", "x"), ("cache_salt", "\n"), ("priority", 1)):
        error_of(server.post(path, {**body, name: value}), 400, "invalid_value", name)
    error_of(server.post(path, {**body, "chat_template": "x"}), 400, "invalid_value", "chat_template")
    answer = server.post(path, {**body, "normalize": True})
    assert answer.status_code == 200 and answer.headers["x-octavo-ignored"] == "normalize"


def test_priority_reaches_the_engine(start_server: StartServer) -> None:
    llm = FakePooler()
    server = start_server(llm, engine=EngineConfig(scheduling_policy="priority"))
    for path, body in BODIES.items():
        llm.priorities.clear()
        assert server.post(path, {**body, "priority": -3}).status_code == 200
        assert set(llm.priorities) == {-3}


@pytest.mark.parametrize("path", KINDS)
def test_deadlines_and_clients_that_leave(start_server: StartServer, path: str) -> None:
    llm = FakePooler(delay=30)
    server = start_server(llm)
    error_of(server.post(path, {**BODIES[path], "deadline_ms": 50}), 504, "deadline_exceeded", "deadline_ms")
    header = {"x-request-timeout": "0.05"}
    error_of(server.post(path, BODIES[path], headers=header), 504, "deadline_exceeded", "deadline_ms")
    assert llm.aborted
    before = len(llm.aborted)
    with pytest.raises(httpx.TimeoutException):
        httpx.post(server.url + path, json=BODIES[path], timeout=0.5)
    wait_for(lambda: len(llm.aborted) > before)
    server.idle()


def test_overload_and_death(start_server: StartServer) -> None:
    llm = FakePooler(delay=30, most=1)
    server = start_server(llm)
    client = server.client()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).embeddings.create(input="x", model="fake")
    server.idle()
    error_of(server.post("/v1/embeddings", {"input": ["a", "b"]}), 503, "server_overloaded")
    server.idle()
    llm.delay = 0
    assert server.post("/v1/embeddings", {"input": "a"}).status_code == 200
    server.call(llm.crash)
    assert server.post("/v1/embeddings", {"input": "a"}).status_code == 503


def test_numbers_for_the_operator(start_server: StartServer) -> None:
    server = start_server(FakePooler(), api_key=("k", "l"))
    key = {"Authorization": "Bearer l"}
    assert server.post("/v1/embeddings", {"input": ["abc", "de"]}, headers=key).status_code == 200
    assert server.post("/rerank", BODIES["/rerank"], headers=key).status_code == 200
    text = server.get("/metrics", headers=key).text
    for line in (
        'vllm:request_success_total{engine="0",finished_reason="stop",model_name="fake"} 4.0',
        'vllm:prompt_tokens_total{engine="0",model_name="fake"} 17.0',
        'octavo:key_requests_total{key="2",model_name="fake"} 2.0',
        'octavo:key_prompt_tokens_total{key="2",model_name="fake"} 17.0',
        'http_requests_total{handler="/v1/embeddings",method="POST",status="200"} 1.0',
    ):
        assert line in text, line


def test_one_line_a_request_without_its_text(start_server: StartServer) -> None:
    stream = io.StringIO()
    server = start_server(FakePooler())
    with own_log():
        log.setup("info", "json", stream)
        server.post("/v1/embeddings", {"input": ["secret", "de"], "request_id": "r1"})
        wait_for(lambda: stream.getvalue().endswith("\n"))
    line = json.loads(stream.getvalue())
    assert (line["id"], line["path"], line["status"]) == ("r1", "/v1/embeddings", 200)
    assert (line["texts"], line["prompt_tokens"]) == (2, 8)
    assert "secret" not in stream.getvalue()


def test_lines_of_a_batch(server: Running) -> None:
    client = server.client()
    for path, body in BODIES.items():
        text = json.dumps({"custom_id": "1", "method": "POST", "url": path, "body": body})
        file = client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=path, completion_window="24h")  # type: ignore[arg-type]
        wait_for(lambda id=batch.id: client.batches.retrieve(id).status == "completed", 60)
        answer = json.loads(client.files.content(client.batches.retrieve(batch.id).output_file_id or "").text)
        expected = server.post(path, body).json()
        found = answer["response"]["body"]
        assert {**found, "id": "", "created": 0} == {**expected, "id": "", "created": 0}

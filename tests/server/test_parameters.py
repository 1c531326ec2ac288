"""Parameters beside sampling: deadlines, intervals, suffixes; and that no field of any client is dropped in silence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.server.messages.protocol import MessagesRequest
from octavo.server.pooling.protocol import (
    ClassifyRequest,
    EmbeddingRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
)
from octavo.server.pooling.routes import READING
from octavo.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from octavo.server.responses.protocol import ResponsesRequest
from tests.server.conftest import Running, StartServer, error_of, events
from tests.server.fake_engine import FakeLLM
from tests.server.test_requests import JSON

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


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages", "/v1/responses"])
def test_a_deadline_in_a_header(start_server: StartServer, path: str) -> None:
    server = start_server(FakeLLM(delay=0.01))
    body: dict[str, Any] = {
        "/v1/completions": {"prompt": "count", "max_tokens": 4000},
        "/v1/messages": {"messages": [{"role": "user", "content": "count"}], "max_tokens": 4000},
        "/v1/responses": {"input": "count"},
    }[path]
    answer = server.post(path, body, headers={"X-Request-Timeout": "0.05"})
    assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"
    assert server.post(path, {**body, "deadline_ms": 50}).status_code == 504
    for wrong in ("0", "x", "-1", "nan", "1e3"):
        answer = server.post(path, body, headers={"X-Request-Timeout": wrong})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "x-request-timeout"


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


def test_names_of_other_servers(start_server: StartServer) -> None:
    server = start_server()
    fields = {"rid": "abc", "extra_key": "k", "no_stop_trim": True, "n_predict": 5, "cache_prompt": False}
    for path, body in (("/v1/completions", {"prompt": "count"}), ("/v1/chat/completions", None)):
        body = body or {"messages": [{"role": "user", "content": "count"}]}
        answer = server.post(path, {**body, **fields, "stop": ["2"]})
        assert answer.headers["x-request-id"] == "abc" and "x-octavo-ignored" not in answer.headers
        choice = answer.json()["choices"][0]
        assert (choice.get("text") or choice["message"]["content"]) == "0 1 2"
        assert server.llm is not None and server.llm.salts[-1] and server.llm.seen[-1].skip_reading_prefix_cache
        assert server.post(path, {**body, "n_predict": 3}).json()["usage"]["completion_tokens"] == 3
        twice = server.post(path, {**body, "n_predict": 5, "max_tokens": 5})
        error_of(twice, 400, "invalid_value", "n_predict")
    neutral = {"typical_p": 1.0, "mirostat": 0, "xtc_probability": 0.0, "t_max_predict_ms": -1}
    assert "x-octavo-ignored" not in server.complete("say:x", **neutral).headers


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
        ({"logprobs": 0}, "logprobs"),
        ({"stop": "x"}, "stop"),
        ({"spaces_between_special_tokens": False}, "spaces_between_special_tokens"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"length_penalty": 11}, "length_penalty"),
        ({"use_beam_search": False, "length_penalty": 0.5}, "length_penalty"),
    ],
)
def test_beam_search_refuses(server: Running, fields: dict[str, Any], param: str) -> None:
    response = server.complete(**{"use_beam_search": True, **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_beam_search_ignores_temperature(server: Running) -> None:
    response = server.complete("a", use_beam_search=True, max_tokens=2, temperature=0.7)
    assert (response.status_code, response.headers["x-octavo-ignored"]) == (200, "temperature")


# Every field that clients of OpenAI, vLLM and Anthropic know, by the route that they send it to.
SAMPLING = """
    use_beam_search top_k min_p repetition_penalty length_penalty stop_token_ids include_stop_str_in_output
    ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side
    prompt_logprobs logprob_token_ids allowed_token_ids bad_words watermarking repetition_detection
    thinking_token_budget
"""
STRUCTURED = """
    structured_outputs response_format guided_json guided_regex guided_choice guided_grammar guided_decoding_backend
    guided_whitespace_pattern
"""
SYSTEM = """
    priority request_id session_id cache_salt return_tokens_as_token_ids return_token_ids return_token_offsets
    return_weight_versions routed_experts_prompt_start mm_payload return_mm_kwargs kv_transfer_params
    ec_transfer_params vllm_xargs stream_interval deadline_ms
"""
OTHERS = """
    regex ebnf json_schema stop_regex no_stop_trim lora_path separate_reasoning stream_reasoning
    return_hidden_states session_params rid extra_key custom_logit_processor input_ids return_meta_info grammar
    n_predict cache_prompt n_probs samplers typical_p mirostat dry_multiplier xtc_probability dynatemp_range
    t_max_predict_ms return_progress timings_per_token reasoning_format id_slot made_up
"""
CHAT = """
    messages model audio frequency_penalty function_call functions logit_bias logprobs top_logprobs
    max_completion_tokens max_tokens metadata modalities moderation n parallel_tool_calls prediction
    presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort safety_identifier
    seed service_tier stop store stream stream_options temperature tool_choice tools top_p user verbosity
    web_search_options echo add_generation_prompt continue_final_message add_special_tokens documents chat_template
    chat_template_kwargs include_reasoning media_io_kwargs mm_processor_kwargs return_prompt_text
"""
COMPLETIONS = """
    model prompt best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream
    stream_options suffix temperature top_p user prompt_embeds add_special_tokens
"""
MESSAGES = """
    model messages max_tokens metadata output_config thinking stop_sequences stream system temperature tool_choice
    tools top_k top_p chat_template_kwargs cache_salt vllm_xargs service_tier container cache_control
"""
RESPONSES = """
    background background_options context_management conversation include input instructions max_output_tokens
    max_tool_calls metadata model moderation parallel_tool_calls previous_response_id prompt prompt_cache_key
    prompt_cache_options prompt_cache_retention reasoning safety_identifier service_tier store stream stream_options
    temperature text tool_choice tools top_logprobs top_p truncation user access_programs
"""
TOKENIZE = """
    model prompt messages add_special_tokens return_token_strs add_generation_prompt continue_final_message tools
    chat_template chat_template_kwargs mm_processor_kwargs
"""
READ = """
    model user truncate_prompt_tokens padding truncation_side request_id priority mm_processor_kwargs cache_salt
    use_activation deadline_ms normalize chat_template softmax activation made_up
"""
TEXTS = """
    input messages add_special_tokens add_generation_prompt continue_final_message chat_template_kwargs media_io_kwargs
"""
EMBED = READ + TEXTS + "dimensions encoding_format embed_dtype endianness"
RERANK = """
    query documents top_n return_documents max_tokens_per_doc max_tokens_per_query instruction rank_fields
    max_chunks_per_doc
"""
SAY = {"messages": [{"role": "user", "content": "say:x"}]}
ROUTES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "/v1/chat/completions": (ChatRequest, CHAT + SAMPLING + STRUCTURED + SYSTEM + OTHERS, SAY),
    "/v1/completions": (CompletionRequest, COMPLETIONS + SAMPLING + STRUCTURED + SYSTEM + OTHERS, {"prompt": "say:x"}),
    "/v1/messages": (MessagesRequest, MESSAGES, {**SAY, "max_tokens": 9}),
    "/v1/responses": (
        ResponsesRequest,
        RESPONSES + "vllm_xargs mm_processor_kwargs",
        {"input": "say:x"},
    ),
    "/tokenize": (TokenizeRequest, TOKENIZE, {"prompt": "x"}),
    "/v1/embeddings": (EmbeddingRequest, EMBED, {"input": "x"}),
    "/pooling": (PoolingRequest, EMBED + " task", {"input": "x"}),
    "/v1/classify": (ClassifyRequest, READ + TEXTS, {"input": "x"}),
    "/v1/score": (
        ScoreRequest,
        READ + "text_1 text_2 data_1 data_2 queries documents items",
        {"text_1": "x", "text_2": "y"},
    ),
    "/v1/rerank": (RerankRequest, READ + RERANK, {"query": "x", "documents": ["y"]}),
    "/detokenize": (DetokenizeRequest, "model tokens skip_special_tokens", {"tokens": [1]}),
}
# What our own answer to a field may be, where its meaning cannot be had.
REFUSED = """
    audio modalities chat_template media_io_kwargs mm_processor_kwargs prompt_embeds logprob_token_ids watermarking
    repetition_detection session_id return_token_offsets return_weight_versions routed_experts_prompt_start
    mm_payload return_mm_kwargs kv_transfer_params ec_transfer_params vllm_xargs stop_regex lora_path
    return_hidden_states session_params custom_logit_processor conversation prompt context_management suffix input_ids
    typical_p mirostat dry_multiplier xtc_probability dynatemp_range t_max_predict_ms
"""


@pytest.mark.parametrize(("path", "name"), [(path, name) for path in ROUTES for name in ROUTES[path][1].split()])
def test_no_field_is_dropped_in_silence(able: Running, path: str, name: str) -> None:
    """Each is a field of our own types, whose other tests show what it does; or refused by name; or in the header."""
    kind, _, body = ROUTES[path]
    if name in kind.__struct_fields__:
        return
    answer = able.post(path, {**body, name: "something"})
    if name in REFUSED.split():
        assert answer.status_code == 400 and answer.json()["error"]["param"] == name, answer.text
        assert name in answer.json()["error"]["message"]
    else:
        assert answer.status_code == 200 and answer.headers["x-octavo-ignored"] == name, answer.text


def test_parts_of_fields_are_not_dropped_either(server: Running) -> None:
    options = {"include_usage": True, "include_obfuscation": True, "other": None}
    answer = server.chat(stream=True, stream_options=options)
    assert answer.headers["x-octavo-ignored"] == "stream_options.include_obfuscation"


def test_tokenizer_info(server: Running) -> None:
    found = server.get("/tokenizer_info").json()
    assert (found["eos_token"], found["bos_token"], found["model_max_length"]) == ("<end>", None, 4096)
    assert "<{{ message.role }}>" in found["chat_template"]
    assert server.post("/tokenize", {"prompt": found["eos_token"], "add_special_tokens": False}).json()["count"] == 1


def test_tokenize_with_tools(start_server: StartServer) -> None:
    server = start_server(FakeLLM(template="{{ tools | tojson }}{{ messages[0].content }}"))
    tools = [{"type": "function", "function": {"name": "f"}}]
    found = server.post("/tokenize", {**SAY, "tools": tools}).json()["tokens"]
    assert server.post("/detokenize", {"tokens": found}).json()["prompt"].startswith('[{"type": "function"')


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_object_is_answered_by_every_route(server: Running, shared_reader: Running, data: st.DataObject) -> None:
    """Whatever the values of whatever fields: an answer, or an error that is the client's, in the route's own shape."""
    writes = ("/v1/messages", "/v1/messages/count_tokens", "/v1/responses", "/tokenize")
    path = data.draw(st.sampled_from([*writes, *sorted(READING.keys() & ROUTES.keys())]))
    kind, _, body = ROUTES.get(path, ROUTES["/v1/messages"])
    names = sorted(set(kind.__struct_fields__) - {"background", "deadline_ms"})
    fields = data.draw(st.dictionaries(st.sampled_from(names), JSON, max_size=3))
    fields |= {"max_tokens": 5, "max_output_tokens": 5} if path.startswith("/v1") else {}
    response = (shared_reader if path in READING else server).post(path, json.dumps({**body, **fields}).encode())
    assert response.status_code in (200, 400, 404), (path, fields, response.text)
    if response.status_code != 200:
        error = response.json()["error"]
        assert {"message", "type", "param", "code"} == set(error)

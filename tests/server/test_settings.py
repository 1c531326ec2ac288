"""Settings of the server that change what every request gets, under the names that vLLM gave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.core.errors import ConfigError
from octavo.server.config import ServerConfig
from octavo.server.service import server_defaults
from tests.server.conftest import StartServer, events
from tests.server.fake_engine import FakeLLM

PARTS = "{% for m in messages %}{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endfor %}"
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"


def test_usage_and_timings_and_ids_in_every_answer(start_server: StartServer) -> None:
    server = start_server(
        enable_force_include_usage=True, enable_per_request_metrics=True, return_tokens_as_token_ids=True
    )
    for path, body in (("/v1/completions", {"prompt": "say:x"}), ("/v1/chat/completions", None)):
        body = body or {"messages": [{"role": "user", "content": "say:x"}]}
        chunks = [each for each in events(server.post(path, {**body, "stream": True}).text) if each != "[DONE]"]
        assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 2
        assert all("usage" in chunk for chunk in chunks)
        assert chunks[-2]["metrics"]["time_to_first_token_ms"] > 0
        assert server.post(path, body).json()["metrics"]["generation_time_ms"] >= 0
    logprobs = server.complete(logprobs=1).json()["choices"][0]["logprobs"]
    assert all(token.startswith("token_id:") for token in logprobs["tokens"])
    chat = server.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert all(each["token"].startswith("token_id:") for each in chat)
    answer = server.post("/v1/responses", {"input": "say:x", "stream": True})
    assert answer.status_code == 200 and "response.completed" in answer.text


@pytest.mark.parametrize(
    ("template", "form", "text"),
    [
        (PARTS, "auto", "[a][b]"),
        (PARTS, "openai", "[a][b]"),
        (PLAIN, "auto", "a\nb"),
        (PLAIN, "string", "a\nb"),
        (PLAIN, "openai", "[{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}]"),
    ],
)
def test_content_of_messages(start_server: StartServer, template: str, form: str, text: str) -> None:
    server = start_server(FakeLLM(template=template), chat_template_content_format=form)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1, "return_prompt_text": True}
    assert server.post("/v1/chat/completions", body).json()["prompt_text"] == text


def test_sampling_of_requests_that_say_nothing(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.3, "top_k": 5}))
    llm = FakeLLM(generation_config={"temperature": 0.9})
    given = '{"top_p": 0.25, "max_tokens": 3}'
    server = start_server(llm, generation_config=str(tmp_path), override_generation_config=given)
    usage = server.complete("count", top_k=7).json()["usage"]
    params = llm.seen[-1]
    assert (params.temperature, params.top_k, params.top_p, usage["completion_tokens"]) == (0.3, 7, 0.25, 3)
    for options, said in (
        ({"generation_config": str(tmp_path / "none")}, "does not exist"),
        ({"override_generation_config": '{"temperature": -1}'}, "override_generation_config: temperature must be"),
        ({"override_generation_config": '{"heat": 1}'}, "override_generation_config: .*heat"),
    ):
        with pytest.raises(ConfigError, match=said):
            server_defaults(ServerConfig(**options), {})


def test_how_answers_with_a_form_are_written(start_server: StartServer) -> None:
    llm = FakeLLM()
    server = start_server(llm, structured_outputs_config='{"backend": "auto", "disable_any_whitespace": true}')
    for fields in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json": {}}}):
        assert server.chat(**fields).status_code == 200
        found = llm.seen[-1].structured_outputs
        assert found is not None and found.disable_any_whitespace and not found.disable_additional_properties


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"backend": "xgrammar"}', "followed by llguidance"),
        ('{"reasoning_parser": "qwen3"}', "--reasoning-parser"),
        ('{"disable_any_whitespace": 1}', "true or false"),
        ('{"other": 1}', "has no other"),
        ("[]", "must be a JSON object"),
    ],
)
def test_forms_that_cannot_be_had(config: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ServerConfig(structured_outputs_config=config)


def test_without_names_that_were_given_up(start_server: StartServer) -> None:
    def names(**options: Any) -> set[str]:
        server = start_server(**options)
        return {line.split()[2] for line in server.get("/metrics").text.splitlines() if line.startswith("# TYPE")}

    gone = names() - names(compat=False)
    assert {name.removesuffix("_total") for name in gone} == {
        "vllm:gpu_cache_usage_perc",
        "vllm:cpu_cache_usage_perc",
        "vllm:num_requests_swapped",
        "vllm:gpu_prefix_cache_queries",
        "vllm:gpu_prefix_cache_hits",
        "vllm:time_per_output_token_seconds",
    }

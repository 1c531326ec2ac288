"""What Prometheus scrapes: names that dashboards know, values that are right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from octavo.core.errors import NanLogits
from octavo.server.metrics import (
    FIRST_TOKEN_SECONDS,
    REQUEST_SECONDS,
    STEP_TOKENS,
    TOKEN_SECONDS,
    Histogram,
    one_two_five,
)
from tests.server.conftest import Running, StartServer, error_of, events
from tests.server.fake_engine import FakeLLM
from tests.server.test_tools import CALLS, TEMPLATE, WEATHER

LABELS = {"model_name": "fake", "engine": "0"}


def scrape(server: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and the labels that not all have."""
    found = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            labels = frozenset((k, v) for k, v in sample.labels.items() if LABELS.get(k) != v)
            found[sample.name, labels] = sample.value
    return found


def test_counters_and_histograms(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.002))
    server.complete("say:hello")  # 9 tokens in (8 from the cache), 6 out
    server.complete("say:hello", stream=True)
    server.complete("count", max_tokens=4, n=2)  # 5 in (4 from the cache), 2 x 4 out
    server.complete("x", temperature=-1)
    found = scrape(server)

    def value(name: str, **labels: str) -> float:
        ours, theirs = (
            found["octavo:" + name, frozenset(labels.items())],
            found["vllm:" + name, frozenset(labels.items())],
        )
        assert ours == theirs
        return ours

    assert value("prompt_tokens_total") == 23
    assert value("prompt_tokens_cached_total") == 20
    assert value("generation_tokens_total") == 20
    assert value("prefix_cache_queries_total") == 23
    assert value("prefix_cache_hits_total") == 20
    assert value("request_success_total", finished_reason="stop") == 2
    assert value("request_success_total", finished_reason="length") == 2
    assert value("num_preemptions_total") == 0
    assert value("num_requests_running") == 0
    assert value("num_requests_waiting") == 0
    assert value("kv_cache_usage_perc") == 0
    assert value("time_to_first_token_seconds_count") == 3
    assert value("e2e_request_latency_seconds_count") == 3
    assert value("e2e_request_latency_seconds_bucket", le="0.3") == 3
    assert value("request_queue_time_seconds_count") == 3
    assert value("request_prefill_time_seconds_count") == 3
    assert value("request_decode_time_seconds_count") == 3
    assert value("request_inference_time_seconds_sum") < value("e2e_request_latency_seconds_sum") < 1
    assert 0 < value("inter_token_latency_seconds_count") <= 5
    assert value("request_generation_tokens_count") == 4
    assert value("request_generation_tokens_bucket", le="5.0") == 2
    assert value("request_prompt_tokens_sum") == 23
    assert value("request_prefill_kv_computed_tokens_sum") == 3
    assert value("request_params_n_sum") == 4
    assert value("request_params_max_tokens_sum") == 16 + 16 + 4
    assert value("iteration_tokens_total_sum") == 23 + 20
    found_info = [labels for name, labels in found if name == "vllm:cache_config_info"]
    assert {("block_size", "16"), ("num_gpu_blocks", "100"), ("enable_prefix_caching", "True")} <= found_info[0]


def test_answers_whose_logits_were_not_finite(start_server: StartServer) -> None:
    server = start_server()
    assert server.llm is not None
    server.llm.broken = NanLogits()
    error_of(server.complete(), 500, "nan_logits")
    assert scrape(server)["vllm:corrupted_requests_total", frozenset()] == 1


def test_old_names(server: Running) -> None:
    server.complete(stream=True)
    found = scrape(server)
    for old, new in (
        ("gpu_cache_usage_perc", "kv_cache_usage_perc"),
        ("gpu_prefix_cache_queries_total", "prefix_cache_queries_total"),
        ("gpu_prefix_cache_hits_total", "prefix_cache_hits_total"),
        ("time_per_output_token_seconds_count", "inter_token_latency_seconds_count"),
    ):
        assert found["vllm:" + old, frozenset()] == found["vllm:" + new, frozenset()]
        assert ("octavo:" + old, frozenset()) not in found


def test_labels_come_from_closed_sets(server: Running) -> None:
    server.get("/some/path?secret")
    server.get("/v1/models/somebody")
    text = server.get("/metrics").text
    assert "secret" not in text and "/some" not in text and "somebody" not in text
    assert 'http_requests_total{handler="unmatched",method="GET",status="404"}' in text
    assert 'http_requests_total{handler="/v1/models/{model}",method="GET",status="404"}' in text
    assert "process_resident_memory_bytes" in text and "python_info" in text


def test_buckets_are_those_of_the_dashboards() -> None:
    assert REQUEST_SECONDS[:3] == (0.3, 0.5, 0.8) and REQUEST_SECONDS[-1] == 7680
    assert FIRST_TOKEN_SECONDS[:2] == (0.001, 0.005) and FIRST_TOKEN_SECONDS[-1] == 2560
    assert TOKEN_SECONDS[:2] == (0.01, 0.025) and TOKEN_SECONDS[-1] == 80
    assert (1, *(2**i for i in range(3, 15))) == STEP_TOKENS
    assert one_two_five(400) == [1, 2, 5, 10, 20, 50, 100, 200]


def test_histogram() -> None:
    histogram = Histogram([1, 5])
    for value in (0.5, 1, 3, 100):
        histogram.observe(value)
    histogram.observe(2, times=3)
    assert histogram.cumulative() == [("1.0", 2), ("5.0", 6), ("+Inf", 7)]
    assert histogram.sum == 110.5


# vLLM's names, types and labels (beside model_name and engine), where the feature behind them exists here.
GAUGES = {
    "num_requests_running": "",
    "num_requests_waiting": "",
    "num_requests_waiting_by_reason": "reason",
    "kv_cache_usage_perc": "",
    "gpu_cache_usage_perc": "",
    "cpu_cache_usage_perc": "",
    "num_requests_swapped": "",
}
COUNTERS = {
    "prefix_cache_queries": "",
    "prefix_cache_hits": "",
    "gpu_prefix_cache_queries": "",
    "gpu_prefix_cache_hits": "",
    "num_preemptions": "",
    "corrupted_requests": "",
    "prompt_tokens": "",
    "prompt_tokens_by_source": "source",
    "prompt_tokens_cached": "",
    "prompt_tokens_cached_by_source": "source",
    "generation_tokens": "",
    "request_success": "finished_reason",
}
HISTOGRAMS: dict[str, tuple[float, ...]] = {
    "time_to_first_token_seconds": FIRST_TOKEN_SECONDS,
    "inter_token_latency_seconds": TOKEN_SECONDS,
    "time_per_output_token_seconds": TOKEN_SECONDS,
    "request_time_per_output_token_seconds": TOKEN_SECONDS,
    "e2e_request_latency_seconds": REQUEST_SECONDS,
    "request_queue_time_seconds": REQUEST_SECONDS,
    "request_inference_time_seconds": REQUEST_SECONDS,
    "request_prefill_time_seconds": REQUEST_SECONDS,
    "request_decode_time_seconds": REQUEST_SECONDS,
    "request_prompt_tokens": tuple(one_two_five(4096)),
    "request_generation_tokens": tuple(one_two_five(4096)),
    "request_max_num_generation_tokens": tuple(one_two_five(4096)),
    "request_params_max_tokens": tuple(one_two_five(4096)),
    "request_prefill_kv_computed_tokens": tuple(one_two_five(4096)),
    "request_params_n": (1, 2, 5, 10, 20),
    "request_num_preemptions": (1, 2, 5, 10, 20),
    "iteration_tokens_total": STEP_TOKENS,
}


def test_names_types_labels_and_buckets(start_server: StartServer) -> None:
    server = start_server(FakeLLM(most=0))
    assert server.complete().status_code == 503
    families = {family.name: family for family in text_string_to_metric_families(server.get("/metrics").text)}

    def labels(name: str) -> set[frozenset[str]]:
        return {frozenset(sample.labels) - {"le"} for sample in families["vllm:" + name].samples}

    for kind, names in (("gauge", GAUGES), ("counter", COUNTERS), ("histogram", HISTOGRAMS)):
        for name in names:
            assert families["vllm:" + name].type == kind, name
            extra = names[name] if kind != "histogram" else ""
            assert labels(name) == {frozenset({"model_name", "engine"} | ({extra} if extra else set()))}, name
    for name, bounds in HISTOGRAMS.items():
        samples = families["vllm:" + name].samples
        assert [float(s.labels["le"]) for s in samples if "le" in s.labels] == [*bounds, float("inf")], name
    assert labels("admission_rejections") == {frozenset({"model_name", "reason"})}
    assert labels("tool_call_parser_invocations") == {frozenset({"model_name", "mode", "outcome", "request_type"})}
    assert labels("cache_config_info") >= {frozenset({"model_name", "engine", "block_size", "num_gpu_blocks",
                                                      "enable_prefix_caching", "gpu_memory_utilization"})}  # fmt: skip
    known = {
        *GAUGES,
        *COUNTERS,
        *HISTOGRAMS,
        "admission_rejections",
        "tool_call_parser_invocations",
        "cache_config_info",
    }
    assert {name for name in families if name.startswith("vllm:")} == {"vllm:" + name for name in known}
    old = {"gpu_cache_usage_perc", "cpu_cache_usage_perc", "num_requests_swapped", "gpu_prefix_cache_queries",
           "gpu_prefix_cache_hits", "time_per_output_token_seconds"}  # fmt: skip
    assert {"octavo:" + name for name in known - old} <= set(families)


def test_usage_of_each_key(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.005), api_key=("a", "b"))
    for key in ("a", "a", "b"):
        server.complete("say:hello", headers={"Authorization": f"Bearer {key}"})
    with server.client(api_key="b").completions.create(
        model="fake", prompt="count", max_tokens=500, stream=True
    ) as stream:
        next(iter(stream))
    server.idle()
    text = server.get("/metrics", headers={"Authorization": "Bearer a"}).text
    found = {
        (sample.name, sample.labels["key"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("octavo:key_")
    }
    assert found["octavo:key_requests_total", "1"] == 2
    assert found["octavo:key_prompt_tokens_total", "1"] == 18
    assert found["octavo:key_cached_tokens_total", "1"] == 16
    assert found["octavo:key_generation_tokens_total", "1"] == 12
    assert found["octavo:key_requests_total", "2"] == 2
    assert 7 <= found["octavo:key_generation_tokens_total", "2"] < 500


def test_tool_calls_are_counted(start_server: StartServer) -> None:
    server = start_server(FakeLLM(template=TEMPLATE))
    for say, stream in ((CALLS, False), (CALLS, True), ("no", True)):
        assert server.chat(say, tools=[WEATHER], stream=stream).status_code == 200
    found = scrape(server)

    def count(mode: str, outcome: str) -> float:
        labels = {"mode": mode, "outcome": outcome, "request_type": "chat_completions"}
        return found["vllm:tool_call_parser_invocations_total", frozenset(labels.items())]

    assert count("non_streaming", "tool_call") == count("streaming", "tool_call") == 1
    assert (count("streaming", "no_tool_call"), count("non_streaming", "no_tool_call")) == (1, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_times_of_a_request(server: Running, stream: bool) -> None:
    for answer in (
        server.complete("say:hello", include_metrics=True, stream=stream),
        server.chat(include_metrics=True, stream=stream),
    ):
        found = events(answer.text)[-2] if stream else answer.json()
        times = found["metrics"]
        assert times["time_to_first_token_ms"] >= times["queue_time_ms"] >= 0
        assert times["tokens_per_second"] > 0 and times["mean_itl_ms"] > 0
    assert "metrics" not in server.complete(n=2, include_metrics=True).json()
    assert "metrics" not in server.complete().json()


def test_the_dashboard_asks_for_what_there_is(start_server: StartServer) -> None:
    server = start_server(FakeLLM(most=0), api_key=("k",))
    key = {"Authorization": "Bearer k"}
    server.complete(headers=key)
    text = server.get("/metrics", headers=key).text
    board = json.loads((Path(__file__).parents[2] / "deploy" / "grafana" / "octavo.json").read_text())
    asked = re.findall(r"(?:octavo:|http_)\w+", json.dumps([panel.get("targets") for panel in board["panels"]]))
    assert len(set(asked)) > 20
    there = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    for name in set(asked):
        assert {name, re.sub(r"_(total|bucket)$", "", name)} & there, name

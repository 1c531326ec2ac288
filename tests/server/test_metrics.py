"""What Prometheus scrapes: names that dashboards know, values that are right."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from octavo.server.metrics import (
    FIRST_TOKEN_SECONDS,
    REQUEST_SECONDS,
    STEP_TOKENS,
    TOKEN_SECONDS,
    Histogram,
    one_two_five,
)
from tests.server.conftest import Running, StartServer
from tests.server.fake_engine import FakeLLM

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

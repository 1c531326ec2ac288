"""Figures of fake timelines, worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.bench import metrics
from octavo.bench.client import Outcome
from octavo.core.errors import ConfigError

# Three requests: four tokens in 1.0 s, one token after 0.5 s, a failure.
FOUR = Outcome(prompt_len=10, output_len=4, start=100.0, ttft=0.4, itls=[0.1, 0.2, 0.3], latency=1.0, text="abcd")
ONE = Outcome(prompt_len=5, output_len=1, start=100.5, ttft=0.5, latency=0.5, text="e")
FAILED = Outcome(prompt_len=7, start=100.2, error="503: busy")
OUTCOMES = [FOUR, ONE, FAILED]
KEYS = {
    *("duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput"),
    *("request_goodput", "output_throughput", "total_token_throughput", "max_output_tokens_per_s"),
    *("max_concurrent_requests", "rtfx", "latencies", "queue_times", *metrics.DETAILS),
}


def summary(**changes: Any) -> dict[str, Any]:
    names = changes.pop("names", list(metrics.HEADERS))
    return metrics.summarize(OUTCOMES, [0.0, 0.25, 0.0], 2.0, names=names, **changes)


def test_figures() -> None:
    result = summary(percentiles=(50.0, 99.0, 99.9))
    assert set(result) >= KEYS
    assert (result["completed"], result["failed"]) == (2, 1)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (15, 5)
    assert result["request_throughput"] == 1.0
    assert result["output_throughput"] == 2.5
    assert result["total_token_throughput"] == 10.0
    assert result["request_goodput"] is None
    assert result["output_lens"] == [4, 1, 0]
    assert result["errors"] == ["", "", "503: busy"]
    assert result["mean_ttft_ms"] == pytest.approx(450)
    assert result["std_ttft_ms"] == pytest.approx(50)
    assert result["p99_ttft_ms"] == pytest.approx(400 + 0.99 * 100)
    assert result["p99.9_ttft_ms"] == pytest.approx(400 + 0.999 * 100)
    assert result["mean_tpot_ms"] == result["p99_tpot_ms"] == pytest.approx(200)  # an answer of one token has none
    assert result["median_itl_ms"] == result["p50_itl_ms"] == pytest.approx(200)
    assert result["mean_e2el_ms"] == pytest.approx(750)
    assert not any("queue_ms" in key or "client_queue_time" in key for key in result)


def test_tokens_that_come_at_once_count() -> None:
    at_once = Outcome(output_len=8, start=1.0, ttft=0.3, latency=0.3)
    result = metrics.summarize([at_once], [0.0], 1.0, names=["tpot", "itl"])
    assert result["mean_tpot_ms"] == result["mean_itl_ms"] == 0.0
    slower = Outcome(output_len=3, start=1.0, ttft=0.3, itls=[0.2], latency=0.5)
    both = metrics.summarize([at_once, slower], [0.0, 0.0], 1.0, names=["tpot"])
    assert both["mean_tpot_ms"] == pytest.approx(50)


def test_only_the_wanted_metrics_are_there() -> None:
    assert {key for key in summary(names=["itl"]) if key.endswith("_ms")} == {
        f"{kind}_itl_ms" for kind in ("mean", "median", "std", "p99")
    }


def test_queueing_in_the_client() -> None:
    result = summary(limited=True, rate=5.0)
    assert result["mean_client_queue_time_ms"] == pytest.approx(125)
    assert result["mean_e2el_including_client_queue_ms"] == pytest.approx((1000 + 750) / 2)
    assert "mean_e2el_including_client_queue_ms" not in summary(limited=True, rate=math.inf)


def test_goodput() -> None:
    def good(**goals: float) -> float:
        return float(summary(goals=goals)["request_goodput"])

    assert good(ttft=400.0) == 0.5  # a goal that is met exactly is met
    assert good(ttft=500.0) == 1.0
    assert good(tpot=100.0) == 0.5  # an answer of one token has no time per token to miss
    assert good(ttft=500.0, e2el=900.0) == 0.5
    assert good(e2el=0.0) == 0.0


def test_lengths_without_the_servers_count() -> None:
    silent = Outcome(start=1.0, ttft=0.1, itls=[0.1, 0.1], latency=0.3, text="a b c d e")
    assert metrics.output_lengths([silent], None) == [3]
    assert metrics.output_lengths([silent], lambda text: len(text.split())) == [5]
    assert metrics.output_lengths([FOUR], lambda text: 99) == [4]


def test_peaks() -> None:
    # Tokens at 100.4, .5, .7 and 101.0 of the first, 101.0 of the second: three in the first second, two in the next.
    assert metrics.peaks([FOUR, ONE]) == (3.0, 2)
    one_by_one = [Outcome(start=s, ttft=0.25, latency=0.25) for s in (1.0, 1.25, 1.5)]
    assert metrics.peaks(one_by_one) == (3.0, 1)
    apart = [Outcome(start=s, ttft=0.1, latency=0.2) for s in (10.0, 15.0, 19.9)]
    assert metrics.peaks(apart) == (1.0, 1)
    assert metrics.peaks([]) == (0.0, 0)


def test_nothing_succeeded() -> None:
    result = metrics.summarize([FAILED], [0.0], 1.0, names=["ttft", "tpot", "itl"], goals={"ttft": 1.0})
    assert (result["completed"], result["failed"], result["request_goodput"]) == (0, 1, 0.0)
    assert result["mean_ttft_ms"] == result["p99_itl_ms"] == 0.0


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=50), st.floats(0, 100))
def test_percentiles_are_those_of_numpy(seconds: list[float], percentile: float) -> None:
    found = metrics.statistics("x", seconds, [percentile])
    assert found[f"p{percentile:g}_x_ms"] == pytest.approx(np.percentile(np.array(seconds) * 1000, percentile))


def test_report() -> None:
    result = summary(names=["ttft", "client_queue_time"], goals={"ttft": 450.0}, limited=True, rate=4.0)
    assert metrics.report(result, 4.0, 8, [99.0]) == [
        "============ Serving Benchmark Result ============",
        "Successful requests:                     2         ",
        "Failed requests:                         1         ",
        "Maximum request concurrency:             8         ",
        "Request rate configured (RPS):           4.00      ",
        "Benchmark duration (s):                  2.00      ",
        "Total input tokens:                      15        ",
        "Total generated tokens:                  5         ",
        "Request throughput (req/s):              1.00      ",
        "Request goodput (req/s):                 0.50      ",
        "Output token throughput (tok/s):         2.50      ",
        "Peak output token throughput (tok/s):    3.00      ",
        "Peak concurrent requests:                2.00      ",
        "Total token throughput (tok/s):          10.00     ",
        "---------------Time to First Token----------------",
        "Mean TTFT (ms):                          450.00    ",
        "Median TTFT (ms):                        450.00    ",
        "P99 TTFT (ms):                           499.00    ",
        "---------------Client-side Queueing---------------",
        "Mean Client Queue Time (ms):             125.00    ",
        "Median Client Queue Time (ms):           125.00    ",
        "P99 Client Queue Time (ms):              247.50    ",
    ]
    plain = "\n".join(metrics.report(summary(names=[]), math.inf, None, [99.0]))
    assert "goodput" not in plain and "configured" not in plain and "concurrency:" not in plain


def test_flags() -> None:
    assert metrics.parse_goals(["ttft:200", "e2el:1e3"]) == {"ttft": 200.0, "e2el": 1000.0}
    assert metrics.parse_names("ttft, e2el") == ["ttft", "e2el"]
    assert metrics.parse_percentiles("50,99.9") == [50.0, 99.9]
    for parse, wrong in (
        (metrics.parse_goals, ["itl:5"]),
        (metrics.parse_goals, ["ttft"]),
        (metrics.parse_goals, ["ttft:nan"]),
        (metrics.parse_names, "ttft,speed"),
        (metrics.parse_percentiles, "99,fast"),
        (metrics.parse_percentiles, "101"),
    ):
        with pytest.raises(ConfigError):
            parse(wrong)  # type: ignore[operator]

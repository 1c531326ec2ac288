"""From the outcomes of requests to the figures of a load test: names and meaning are those of `vllm bench`.

ttft is the time to the first token, tpot the mean time of each later one, itl each gap between two chunks, e2el the
time to the last token: of successful requests, in milliseconds in results. Percentiles interpolate linearly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from octavo.bench.client import Outcome
from octavo.core.errors import ConfigError

HEADERS = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
    "client_queue_time": ("Client Queue Time", "Client-side Queueing"),
    "e2el_including_client_queue": ("E2EL incl. Client Queue", "Queue-inclusive End-to-end Latency"),
}
GOALS = ("ttft", "tpot", "e2el")
DETAILS = ("input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors")


def parse_goals(pairs: Sequence[str]) -> dict[str, float]:
    """["ttft:200", "tpot:50"] as {"ttft": 200.0, "tpot": 50.0}, milliseconds."""
    goals: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.partition(":")
        try:
            goals[name] = float(text)
        except ValueError:
            raise ConfigError(f"goodput: {pair!r} must be NAME:MILLISECONDS") from None
        if name not in GOALS or not goals[name] >= 0:
            raise ConfigError(f"goodput: {pair!r} must name one of {', '.join(GOALS)} and a time that is not negative")
    return goals


def parse_names(text: str) -> list[str]:
    """Comma-separated names of metrics."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in HEADERS:
            raise ConfigError(f"percentile-metrics: {name!r} is none of {', '.join(HEADERS)}")
    return names


def parse_percentiles(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [-1.0]
    if not all(0 <= value <= 100 for value in values):
        raise ConfigError(f"metric-percentiles: {text!r} must be numbers in [0, 100] with commas between")
    return values


def output_lengths(outcomes: Sequence[Outcome], count: Callable[[str], int] | None) -> list[int]:
    """Tokens of each answer: as the server counted them, else as `count` finds in the text, else its chunks."""
    return [
        0
        if not o.success or o.whole
        else o.output_len or (count(o.text) if count is not None else 0) or 1 + len(o.itls)
        for o in outcomes
    ]


def tpots(outcomes: Sequence[Outcome], lengths: Sequence[int]) -> list[float]:
    """Of successful requests; 0 where there is one token."""
    return [
        (o.latency - o.ttft) / (n - 1) if n > 1 else 0.0 for o, n in zip(outcomes, lengths, strict=True) if o.success
    ]


def goodput(outcomes: Sequence[Outcome], lengths: Sequence[int], goals: dict[str, float], seconds: float) -> float:
    """Requests a second that kept all goals."""
    good = [o for o in outcomes if o.success]
    values = {"ttft": [o.ttft for o in good], "tpot": tpots(outcomes, lengths), "e2el": [o.latency for o in good]}
    kept = np.ones(len(good), bool)
    for name, goal in goals.items():
        kept &= np.array(values[name]) <= goal / 1000
    return float(kept.sum() / seconds)


def peaks(good: Sequence[Outcome]) -> tuple[float, int]:
    """(most chunks in one of the seconds since the first start, most requests that were alive at once)."""
    if not good:
        return 0.0, 0
    first = min(o.start for o in good)
    times = np.concatenate([o.start + o.ttft + np.cumsum([0.0, *o.itls]) for o in good]) - first
    # Whoever ends when another one starts is gone by then.
    changes = sorted([(o.start, 1) for o in good] + [(o.start + o.latency, -1) for o in good])
    alive = np.cumsum([change for _, change in changes])
    return float(np.bincount(times.astype(int)).max()), int(alive.max())


def summarize(
    outcomes: Sequence[Outcome],
    queue_times: Sequence[float],
    seconds: float,
    *,
    names: Sequence[str],
    percentiles: Sequence[float] = (99.0,),
    goals: dict[str, float] | None = None,
    limited: bool = False,
    rate: float = float("inf"),
    count: Callable[[str], int] | None = None,
) -> dict[str, Any]:
    """The result of a load test. `limited`: no more than so many requests ran at once, so some queued in the client."""
    good = [o for o in outcomes if o.success]
    lengths = output_lengths(outcomes, count)
    total_in, total_out = sum(o.prompt_len for o in good), sum(lengths)
    most_tokens, most_alive = peaks(good)
    result: dict[str, Any] = {
        "duration": seconds,
        "completed": len(good),
        "failed": len(outcomes) - len(good),
        "total_input_tokens": total_in,
        "total_output_tokens": total_out,
        "request_throughput": len(good) / seconds,
        "request_goodput": goodput(outcomes, lengths, goals, seconds) if goals else None,
        "output_throughput": total_out / seconds,
        "total_token_throughput": (total_in + total_out) / seconds,
        "input_lens": [o.prompt_len for o in outcomes],
        "output_lens": lengths,
        "ttfts": [o.ttft for o in outcomes],
        "itls": [o.itls for o in outcomes],
        "latencies": [o.latency for o in outcomes],
        "start_times": [o.start for o in outcomes],
        "queue_times": list(queue_times),
        "generated_texts": [o.text for o in outcomes],
        "errors": [o.error for o in outcomes],
        "max_output_tokens_per_s": most_tokens,
        "max_concurrent_requests": most_alive,
        "rtfx": 0.0,
    }
    lengths_of_good = [n for o, n in zip(outcomes, lengths, strict=True) if o.success]
    queued = [wait for o, wait in zip(outcomes, queue_times, strict=True) if o.success]
    values = {
        "ttft": [o.ttft for o in good],
        "tpot": [t for t, n in zip(tpots(outcomes, lengths), lengths_of_good, strict=True) if n > 1],
        "itl": [gap for o in good for gap in o.itls],
        "e2el": [o.latency for o in good],
    }
    if limited:
        values["client_queue_time"] = queued
        if not np.isinf(rate):
            values["e2el_including_client_queue"] = [o.latency + wait for o, wait in zip(good, queued, strict=True)]
    for name in values:
        if name in names:
            result |= statistics(name, values[name], percentiles)
    return result


def statistics(name: str, seconds: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """Mean, median, deviation and percentiles in milliseconds, under their keys; 0 where nothing was measured."""
    values = np.array(seconds if len(seconds) else [0.0]) * 1000
    found = {"mean": values.mean(), "median": np.median(values), "std": values.std()}
    found |= {f"p{p:g}": np.percentile(values, p) for p in percentiles}
    return {f"{key}_{name}_ms": float(value) for key, value in found.items()}


def line(label: str, value: float, form: str = ".2f") -> str:
    return f"{label:<40} {value:<10{'' if isinstance(value, int) else form}}"


def report(result: dict[str, Any], rate: float, max_concurrency: int | None, percentiles: Sequence[float]) -> list[str]:
    """The lines of a result, as dashboards and scripts read them."""
    lines = [f"{' Serving Benchmark Result ':=^50}"]
    lines.append(line("Successful requests:", result["completed"]))
    lines.append(line("Failed requests:", result["failed"]))
    if max_concurrency is not None:
        lines.append(line("Maximum request concurrency:", max_concurrency))
    if not np.isinf(rate):
        lines.append(line("Request rate configured (RPS):", float(rate)))
    lines.append(line("Benchmark duration (s):", result["duration"]))
    lines.append(line("Total input tokens:", result["total_input_tokens"]))
    generated = not result["completed"] or result["total_output_tokens"]
    if generated:
        lines.append(line("Total generated tokens:", result["total_output_tokens"]))
    lines.append(line("Request throughput (req/s):", result["request_throughput"]))
    if result["request_goodput"] is not None:
        lines.append(line("Request goodput (req/s):", result["request_goodput"]))
    if generated:
        lines.append(line("Output token throughput (tok/s):", result["output_throughput"]))
        lines.append(line("Peak output token throughput (tok/s):", result["max_output_tokens_per_s"]))
    lines.append(line("Peak concurrent requests:", float(result["max_concurrent_requests"])))
    lines.append(line("Total token throughput (tok/s):", result["total_token_throughput"]))
    for name, (short, header) in HEADERS.items():
        if f"mean_{name}_ms" not in result:
            continue
        lines.append(f"{header:-^50}")
        lines.append(line(f"Mean {short} (ms):", result[f"mean_{name}_ms"]))
        lines.append(line(f"Median {short} (ms):", result[f"median_{name}_ms"]))
        lines += [line(f"P{p:g} {short} (ms):", result[f"p{p:g}_{name}_ms"]) for p in percentiles]
    return lines

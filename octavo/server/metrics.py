"""What Prometheus sees: every value under `octavo:` and, where vLLM has a name for it, under vLLM's, old ones included.

Counting is a few additions a step and a bisection an observation; names, labels and text are made when somebody
asks. All labels come from closed sets: nothing that a client sends becomes a label.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from octavo.core.outputs import RequestOutput, Stats
from octavo.core.params import SamplingParams

# fmt: off
REQUEST_SECONDS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
FIRST_TOKEN_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)
TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
HTTP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
ANSWERS = (1, 2, 5, 10, 20)
# fmt: on
# Names of vLLM's that dashboards still ask for.
GIVEN_UP = frozenset(
    f"vllm:{name}"
    for name in ("gpu_cache_usage_perc", "cpu_cache_usage_perc", "num_requests_swapped")
    + ("gpu_prefix_cache_queries", "gpu_prefix_cache_hits", "time_per_output_token_seconds")
)


class Histogram:
    """Counts of observations per bucket; the last bucket has no upper bound."""

    def __init__(self, bounds: Iterable[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def cumulative(self) -> list[tuple[str, float]]:
        total, found = 0, []
        for bound, count in zip((*map(float, self.bounds), float("inf")), self.counts, strict=True):
            total += count
            found.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
        return found


def one_two_five(most: int) -> list[int]:
    """1, 2, 5, 10, … up to `most`."""
    found: list[int] = []
    scale = 1
    while scale <= most:
        found += [step * scale for step in (1, 2, 5) if step * scale <= most]
        scale *= 10
    return found


@dataclass(slots=True)
class KeyUsage:
    """What the holder of one API key has used."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0


class Metrics(Collector):
    """All of a server's numbers. One thread writes them; scraping reads."""

    def __init__(self, compat: bool = True) -> None:
        self.compat = compat  # names that vLLM has given up are told, too
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.labels: dict[str, str] = {}  # model_name and engine, once there is one
        self.cache_config: dict[str, str] = {}
        self.stats = Stats()
        self.preemptions = 0
        self.repairs = 0
        self.corrupted = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.finished_prompt_tokens = 0
        self.generation_tokens = 0
        self.pace = 0.0  # mean seconds between the ends of two requests
        self.last_finish = time.monotonic()
        self.keys: dict[str, KeyUsage] = {}  # by the number of the key
        self.tool_calls: Counter[tuple[str, str]] = Counter(
            {(mode, outcome): 0 for mode in ("streaming", "non_streaming") for outcome in ("tool_call", "no_tool_call")}
        )
        self.finished: Counter[str] = Counter(stop=0, length=0, abort=0, error=0)
        self.rejected: Counter[str] = Counter()
        self.http_requests: Counter[tuple[str, str, int]] = Counter()
        self.http_seconds: dict[tuple[str, str], Histogram] = {}
        self.step_tokens = Histogram(STEP_TOKENS)
        self.first_token = Histogram(FIRST_TOKEN_SECONDS)
        self.inter_token = Histogram(TOKEN_SECONDS)
        self.time_per_token = Histogram(TOKEN_SECONDS)
        self.latency = Histogram(REQUEST_SECONDS)
        self.queue_time = Histogram(REQUEST_SECONDS)
        self.inference_time = Histogram(REQUEST_SECONDS)
        self.prefill_time = Histogram(REQUEST_SECONDS)
        self.decode_time = Histogram(REQUEST_SECONDS)
        self.answers = Histogram(ANSWERS)
        self.request_preemptions = Histogram(ANSWERS)
        self._set_token_bounds(1)

    def attach(self, model_name: str, max_model_len: int, cache_config: dict[str, Any]) -> None:
        """There is an engine; a later one goes on counting where the first ended."""
        if self.labels:
            return
        self.labels = {"model_name": model_name, "engine": "0"}
        self.cache_config = {name: str(value) for name, value in cache_config.items()}
        self._set_token_bounds(max_model_len)

    def _set_token_bounds(self, max_model_len: int) -> None:
        bounds = one_two_five(max_model_len)
        self.request_prompt_tokens = Histogram(bounds)
        self.request_computed_tokens = Histogram(bounds)
        self.request_generation_tokens = Histogram(bounds)
        self.request_longest_answer = Histogram(bounds)
        self.request_max_tokens = Histogram(bounds)

    # -- what happens

    def on_key(self, number: str, prompt_tokens: int, cached_tokens: int, generation_tokens: int) -> None:
        """A request with this key is over, complete or not."""
        usage = self.keys.setdefault(number, KeyUsage())
        usage.requests += 1
        usage.prompt_tokens += prompt_tokens
        usage.cached_tokens += cached_tokens
        usage.generation_tokens += generation_tokens

    def on_step(self, stats: Stats) -> None:
        self.stats = stats
        self.preemptions += stats.preemptions
        self.repairs += stats.repairs
        self.prefix_queries += stats.prefix_queries
        self.prefix_hits += stats.prefix_hits
        if stats.step_tokens:
            self.step_tokens.observe(stats.step_tokens)

    def on_http(self, method: str, route: str, status: int, seconds: float) -> None:
        self.http_requests[method, route, status] += 1
        histogram = self.http_seconds.get((method, route))
        if histogram is None:
            histogram = self.http_seconds[method, route] = Histogram(HTTP_SECONDS)
        histogram.observe(seconds)

    def on_start(self, prompt_tokens: int, params: SamplingParams) -> None:
        self.prompt_tokens += prompt_tokens
        self.request_prompt_tokens.observe(prompt_tokens)
        self.answers.observe(params.n)
        if params.max_tokens is not None:
            self.request_max_tokens.observe(params.max_tokens)

    def on_read(self, prompt_tokens: int, seconds: float) -> None:
        """A text was read by a model that generates nothing: all of it was computed."""
        self._on_end()
        self.finished["stop"] += 1
        self.prompt_tokens += prompt_tokens
        self.finished_prompt_tokens += prompt_tokens
        self.request_prompt_tokens.observe(prompt_tokens)
        self.request_computed_tokens.observe(prompt_tokens)
        self.latency.observe(seconds)

    def _on_end(self) -> None:
        now = time.monotonic()
        self.pace = 0.9 * self.pace + 0.1 * (now - self.last_finish)
        self.last_finish = now

    def on_finish(self, output: RequestOutput, tokens: list[int], reasons: Iterable[str]) -> None:
        """A prompt's answers are complete; `tokens` are their lengths."""
        self._on_end()
        self.finished.update(reasons)
        self.cached_tokens += output.num_cached_tokens
        self.finished_prompt_tokens += len(output.prompt_token_ids)
        self.request_computed_tokens.observe(max(0, len(output.prompt_token_ids) - output.num_cached_tokens))
        for count in tokens:
            self.request_generation_tokens.observe(count)
        self.request_longest_answer.observe(max(tokens, default=0))
        self.request_preemptions.observe(output.metrics.num_preemptions)
        times = output.metrics
        end, first, scheduled = times.finished_time, times.first_token_time, times.scheduled_time
        if end is None:
            return
        self.latency.observe(end - times.arrival_time)
        if scheduled is not None:
            self.queue_time.observe(scheduled - times.arrival_time)
            self.inference_time.observe(end - scheduled)
        if first is not None:
            self.first_token.observe(first - times.arrival_time)
            self.decode_time.observe(end - first)
            if scheduled is not None:
                self.prefill_time.observe(first - scheduled)
            if max(tokens, default=0) > 1:
                self.time_per_token.observe((end - first) / (max(tokens) - 1))

    # -- what is asked

    def render(self) -> bytes:
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        return (family for family in self._families() if self.compat or family.name not in GIVEN_UP)

    def _families(self) -> Iterator[Metric]:
        yield from self._http()
        if self.labels:
            yield from self._gauges()
            yield from self._counters()
            yield from self._histograms()

    def _gauges(self) -> Iterator[Metric]:
        stats = self.stats
        usage = stats.kv_used_blocks / stats.kv_total_blocks if stats.kv_total_blocks else 0.0
        yield from self._gauge("num_requests_running", "Requests that are computed now", stats.running)
        yield from self._gauge("num_requests_waiting", "Requests that wait for a place", stats.waiting)
        reasons = {"capacity": stats.waiting, "deferred": 0}
        for prefix in ("octavo:", "vllm:"):
            name, text = prefix + "num_requests_waiting_by_reason", "Requests that wait, by why"
            family = GaugeMetricFamily(name, text, labels=[*self.labels, "reason"])
            for reason, count in reasons.items():
                family.add_metric([*self.labels.values(), reason], count)
            yield family
        # Nothing is ever swapped to the CPU's memory: dashboards made for engines that do show zeros.
        for name in ("num_requests_swapped", "cpu_cache_usage_perc"):
            yield from self._gauge(name, "Always 0", 0, prefixes=("vllm:",))
        yield from self._gauge(
            "kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1", usage, "gpu_cache_usage_perc"
        )
        octavo_only = ("octavo:",)
        blocks = {"used": stats.kv_used_blocks, "cached": stats.kv_cached_blocks, "total": stats.kv_total_blocks}
        for name, value in blocks.items():
            yield from self._gauge(f"kv_blocks_{name}", f"KV cache blocks: {name}", value, prefixes=octavo_only)
        yield from self._gauge(
            "kv_waste_ratio", "Share of allocated KV slots that hold no token", stats.kv_waste, prefixes=octavo_only
        )
        yield from self._gauge(
            "kv_blocks_quarantined",
            "KV cache blocks out of use, because their bookkeeping was wrong",
            stats.kv_quarantined_blocks,
            prefixes=octavo_only,
        )
        info = {**self.cache_config, "num_gpu_blocks": str(stats.kv_total_blocks)}
        for prefix in ("octavo:", "vllm:"):
            family = GaugeMetricFamily(prefix + "cache_config_info", "The KV cache", labels=[*self.labels, *info])
            family.add_metric([*self.labels.values(), *info.values()], 1)
            yield family

    def _gauge(
        self, name: str, text: str, value: float, *legacy: str, prefixes: tuple[str, ...] = ("octavo:", "vllm:")
    ) -> Iterator[Metric]:
        for full in (*(prefix + name for prefix in prefixes), *("vllm:" + old for old in legacy)):
            family = GaugeMetricFamily(full, text, labels=list(self.labels))
            family.add_metric(list(self.labels.values()), value)
            yield family

    def _counters(self) -> Iterator[Metric]:
        simple = (
            ("num_preemptions", "Requests that gave their cache to others and began again", self.preemptions),
            ("kv_repairs", "Times that the bookkeeping of KV blocks was found wrong", self.repairs),
            ("corrupted_requests", "Requests that ended because their logits were not finite", self.corrupted),
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", self.prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache", self.prefix_hits),
            ("gpu_prefix_cache_queries", "Old name of prefix_cache_queries", self.prefix_queries),
            ("gpu_prefix_cache_hits", "Old name of prefix_cache_hits", self.prefix_hits),
            ("prompt_tokens", "Tokens of prompts", self.prompt_tokens),
            ("prompt_tokens_cached", "Tokens of prompts whose KV was cached", self.cached_tokens),
            ("generation_tokens", "Tokens generated", self.generation_tokens),
        )
        for name, text, value in simple:
            yield from self._counter(name, text, {"": value})
        yield from self._counter("request_success", "Answers by how they ended", self.finished, "finished_reason")
        computed = self.finished_prompt_tokens - self.cached_tokens
        sources = {"local_compute": computed, "local_cache_hit": self.cached_tokens, "external_kv_transfer": 0}
        yield from self._counter("prompt_tokens_by_source", "Tokens of prompts, by where from", sources, "source")
        yield from self._counter(
            "prompt_tokens_cached_by_source", "Cached tokens, by where from", {"device": self.cached_tokens}, "source"
        )
        yield from self._without_engine()

    def _without_engine(self) -> Iterator[Metric]:
        """Counters of the front alone: they have no label `engine`."""
        model = self.labels["model_name"]
        for prefix in ("octavo:", "vllm:"):
            family = CounterMetricFamily(
                prefix + "admission_rejections", "Requests refused, by error code", labels=["model_name", "reason"]
            )
            for code, count in self.rejected.items():
                family.add_metric([model, code], count)
            yield family
            labels = ["model_name", "mode", "outcome", "request_type"]
            family = CounterMetricFamily(
                prefix + "tool_call_parser_invocations", "Answers read for calls", labels=labels
            )
            for (mode, outcome), count in self.tool_calls.items():
                family.add_metric([model, mode, outcome, "chat_completions"], count)
            yield family
        for name in KeyUsage.__slots__:
            family = CounterMetricFamily(f"octavo:key_{name}", f"{name} of each API key", labels=["model_name", "key"])
            for number, usage in self.keys.items():
                family.add_metric([model, number], getattr(usage, name))
            yield family

    def _counter(self, name: str, text: str, values: Mapping[str, int], label: str = "") -> Iterator[Metric]:
        """One counter, or one for each value of `label`."""
        ours = ("octavo:",) if name.startswith("kv_") else ("octavo:", "vllm:")
        for prefix in ("vllm:",) if name.startswith("gpu_") else ours:
            family = CounterMetricFamily(prefix + name, text, labels=[*self.labels, *([label] if label else [])])
            for key, value in values.items():
                family.add_metric([*self.labels.values(), *([key] if label else [])], value)
            yield family

    def _histograms(self) -> Iterator[Metric]:
        found = {
            "iteration_tokens_total": ("Tokens computed in a step", self.step_tokens),
            "time_to_first_token_seconds": ("From arrival to the first token", self.first_token),
            "inter_token_latency_seconds": ("Between two pieces of an answer", self.inter_token),
            "time_per_output_token_seconds": ("Old name of inter_token_latency_seconds", self.inter_token),
            "request_time_per_output_token_seconds": ("Mean time per token of an answer", self.time_per_token),
            "e2e_request_latency_seconds": ("From arrival to the end", self.latency),
            "request_queue_time_seconds": ("From arrival to the first step", self.queue_time),
            "request_inference_time_seconds": ("From the first step to the end", self.inference_time),
            "request_prefill_time_seconds": ("From the first step to the first token", self.prefill_time),
            "request_decode_time_seconds": ("From the first token to the end", self.decode_time),
            "request_prompt_tokens": ("Tokens of a prompt", self.request_prompt_tokens),
            "request_prefill_kv_computed_tokens": ("Tokens of a prompt not cached", self.request_computed_tokens),
            "request_generation_tokens": ("Tokens of an answer", self.request_generation_tokens),
            "request_max_num_generation_tokens": ("Tokens of the longest answer", self.request_longest_answer),
            "request_params_n": ("Answers asked for", self.answers),
            "request_num_preemptions": ("Times that a request gave its place to others", self.request_preemptions),
            "request_params_max_tokens": ("max_tokens asked for", self.request_max_tokens),
        }
        for name, (text, histogram) in found.items():
            for prefix in ("vllm:",) if text.startswith("Old name") else ("octavo:", "vllm:"):
                family = HistogramMetricFamily(prefix + name, text, labels=list(self.labels))
                family.add_metric(list(self.labels.values()), histogram.cumulative(), histogram.sum)
                yield family

    def _http(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("http_requests", "Answers sent", labels=["method", "handler", "status"])
        for (method, route, status), count in self.http_requests.items():
            requests.add_metric([method, route, str(status)], count)
        seconds = HistogramMetricFamily("http_request_duration_seconds", "Time to answer", labels=["method", "handler"])
        for key, histogram in self.http_seconds.items():
            seconds.add_metric(list(key), histogram.cumulative(), histogram.sum)
        yield requests
        yield seconds

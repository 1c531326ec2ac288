"""`octavo bench serve`: load on a server over HTTP, measured at the client; any server with OpenAI's API."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import http.client
import json
import math
import os
import random
import re
import time
import urllib.request
from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from octavo.bench import metrics
from octavo.bench.choose import choose_samples
from octavo.bench.client import Outcome, Target, send
from octavo.bench.datasets import Sample
from octavo.bench.hardware import Cost, Device, Use
from octavo.bench.output import progress, write_json
from octavo.bench.timeline import parse_thresholds, write_timeline
from octavo.bench.traffic import Ramp, arrival_times
from octavo.core.errors import ConfigError, ModelError
from octavo.core.hub import resolve_model
from octavo.engine.async_llm import DEMO_NAME
from octavo.text.tokenizer import Tokenizer, load_tokenizer

ENDPOINTS = {
    "openai": "/v1/completions",
    "vllm": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
    "openai-embeddings": "/v1/embeddings",
}
SAMPLING = ("top_p", "top_k", "min_p", "temperature", "frequency_penalty", "presence_penalty", "repetition_penalty")
ERRORS_SHOWN = 10
RETRY_SECONDS = 1.0

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go, and what all of them say."""

    base_url: str
    backend: str
    target: Target
    names: tuple[str, ...]  # of models; each request draws one
    body: dict[str, Any] = field(default_factory=dict)
    timeout: float = 6 * 3600.0

    @property
    def reads(self) -> bool:
        """Nothing is generated."""
        return self.backend == "openai-embeddings"

    def encode(self, sample: Sample, name: str) -> bytes:
        if self.reads:
            given = [sample.prompt, *sample.more] if sample.more else sample.prompt
            asked = {"model": name, "input": given, "encoding_format": "base64"}
            return json.dumps(asked | self.body).encode()
        body: dict[str, Any] = {"model": name, "stream": True, "stream_options": {"include_usage": True}}
        if self.backend == "openai-chat":
            body |= {"messages": [{"role": "user", "content": sample.prompt}]}
            body |= {"max_completion_tokens": sample.output_len}
        else:
            body |= {"prompt": sample.prompt, "max_tokens": sample.output_len}
        return json.dumps(body | self.body).encode()

    async def ask(self, body: bytes, sample: Sample) -> Outcome:
        headers = (("X-Request-Id", sample.request_id),) if sample.request_id else ()
        return await send(self.target, body, sample.prompt_len, headers, self.timeout, self.reads)

    async def fetch(self, path: str, method: str = "GET") -> str:
        """A page of the server's; OSError if there is none."""
        request = urllib.request.Request(self.base_url + path, method=method, headers=dict(self.target.headers))

        def read() -> str:
            try:
                with urllib.request.urlopen(request, timeout=30, context=self.target.tls) as response:
                    text: str = response.read().decode(errors="replace")
                    return text
            except http.client.HTTPException as error:
                raise OSError(str(error)) from None

        return await asyncio.to_thread(read)


def bench_serve(options: argparse.Namespace) -> int:
    """Prints a report for each request rate; the exit status is 1 if no request succeeded."""
    _check(options)
    results: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        server, tokenizer_id, tokenizer = runner.run(_prepare(options))
        for index, rate in enumerate(options.request_rate):
            samples = choose_samples(options, tokenizer, options.seed + index, chat=options.backend == "openai-chat")
            result = runner.run(_measure(options, server, tokenizer, samples, rate))
            record = _record(options, server, tokenizer_id, rate, len(samples)) | result
            _save(options, record, rate)
            _draw(options, record, rate)
            results.append(record)
    if options.plot is not None:
        from octavo.bench.plots import plot_load

        plot_load(results, options.plot)
    return 0 if any(result["completed"] for result in results) else 1


def _check(options: argparse.Namespace) -> None:
    """Everything that can be wrong is said before anything runs."""
    options.goals = metrics.parse_goals(options.goodput or ())
    options.names = metrics.parse_names(options.percentile_metrics)
    options.percentiles = metrics.parse_percentiles(options.metric_percentiles)
    options.metadata_pairs = dict(_pairs("metadata", options.metadata))
    if options.max_concurrency is not None and options.max_concurrency < 1:
        raise ConfigError(f"max-concurrency must be at least 1, got {options.max_concurrency}")
    for rate in options.request_rate:
        if not rate > 0:
            raise ConfigError(f"request-rate must be above 0, got {rate:g}")
    options.ramp = None
    if options.ramp_up_strategy is not None:
        if options.request_rate != [math.inf]:
            raise ConfigError("ramp-up-strategy sets the rate: leave out --request-rate")
        if options.ramp_up_start_rps is None or options.ramp_up_end_rps is None:
            raise ConfigError("ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps")
        options.ramp = Ramp(options.ramp_up_strategy, options.ramp_up_start_rps, options.ramp_up_end_rps)
    if options.self_timed:
        if options.dataset_name != "timed_trace":
            raise ConfigError("self-timed: only --dataset-name timed_trace says when its requests leave")
        if options.ramp is not None or options.request_rate != [math.inf]:
            raise ConfigError("self-timed: the trace sets the rate: leave out --request-rate and --ramp-up-strategy")
    reads = options.backend == "openai-embeddings"
    if options.random_batch_size != 1 and not (reads and options.dataset_name == "random"):
        raise ConfigError("random-batch-size is for random prompts of --backend openai-embeddings")
    if options.random_batch_size < 1:
        raise ConfigError(f"random-batch-size must be at least 1, got {options.random_batch_size}")
    options.thresholds = parse_thresholds(options.timeline_itl_thresholds)
    if options.plot_timeline and reads:
        raise ConfigError("plot-timeline shows when tokens come, and --backend openai-embeddings makes none")
    if options.plot is not None or options.plot_dataset_stats:
        from octavo.bench.plots import check_matplotlib

        check_matplotlib()


def _pairs(flag: str, given: list[str] | None) -> Headers:
    for item in given or ():
        if "=" not in item:
            raise ConfigError(f"{flag}: {item!r} must be KEY=VALUE")
    split = [item.partition("=") for item in given or ()]
    return tuple((name.strip(), value.strip()) for name, _, value in split)


async def _prepare(options: argparse.Namespace) -> tuple[Server, str | None, Tokenizer | None]:
    """(the server, the tokenizer's name, the tokenizer)."""
    base = (options.base_url or f"http://{options.host}:{options.port}").rstrip("/")
    headers = _pairs("header", options.header)
    key = os.environ.get("OPENAI_API_KEY")
    if key and not any(name.lower() == "authorization" for name, _ in headers):
        headers = (("Authorization", f"Bearer {key}"), *headers)
    target = Target.parse(base + (options.endpoint or ENDPOINTS[options.backend]), headers, options.insecure)
    server = Server(base, options.backend, target, (), timeout=options.request_timeout_sec)
    options.model_id = options.model
    name = options.served_model_name or options.model
    if options.model is None:
        name, options.model_id = await _first_model(server, options.ready_check_timeout_sec)
    if server.reads:
        options.names = ["e2el"]  # there are no tokens to wait for
    body = {key: getattr(options, key) for key in SAMPLING if getattr(options, key) is not None and not server.reads}
    if options.logprobs is not None and not server.reads:
        chat = options.backend == "openai-chat"
        body |= {"logprobs": True, "top_logprobs": options.logprobs} if chat else {"logprobs": options.logprobs}
    drawn = options.dataset_name in ("random", "timed_trace")  # prompts that mean nothing
    ignore_eos = drawn if options.ignore_eos is None else options.ignore_eos
    if ignore_eos and not server.reads:
        body["ignore_eos"] = True
    body |= options.extra_body or {}
    server = Server(base, options.backend, target, tuple(options.lora_modules or [name]), body, server.timeout)
    named = options.device_name or options.device_bandwidth or options.device_flops
    options.device = Device.find(options.device_name or "", options.device_bandwidth, options.device_flops)
    options.cost = Cost.of_folder(resolve_model(_place(options.model_id))) if named and not server.reads else None
    if options.skip_tokenizer_init:
        return server, None, None
    place = options.tokenizer or options.model_id
    try:
        return server, place, load_tokenizer(resolve_model(_place(place)))
    except (ConfigError, ModelError) as error:
        raise ConfigError(f"{error} (--tokenizer names another one, --skip-tokenizer-init does without)") from None


def _place(model: str) -> str | None:
    """What `resolve_model` knows a server's model by."""
    return None if model == DEMO_NAME else model


async def _first_model(server: Server, patience: float) -> tuple[str, str]:
    """(the name that requests use, what it is a model of)."""
    deadline = time.monotonic() + patience
    while True:
        try:
            card = json.loads(await server.fetch("/v1/models"))["data"][0]
            return str(card["id"]), str(card.get("root") or card["id"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            if time.monotonic() >= deadline:
                raise ConfigError(
                    f"{server.base_url}/v1/models names no model ({error}); is the server up? --model names one"
                ) from None
        await asyncio.sleep(RETRY_SECONDS)


async def _measure(
    options: argparse.Namespace, server: Server, tokenizer: Tokenizer | None, samples: list[Sample], rate: float
) -> dict[str, Any]:
    show = not options.disable_tqdm
    body = server.encode(samples[0], server.names[0])
    if options.ready_check_timeout_sec > 0:
        await _wait_until_ready(server, body, samples[0], options.ready_check_timeout_sec)
    if options.num_warmups:
        await _warm_up(server, body, samples[0], options.num_warmups, options.max_concurrency, show)
    if options.ramp is not None:
        print(f"Traffic ramp-up strategy: {options.ramp.strategy}.")
        print(f"Will increase RPS from {options.ramp.start:g} to {options.ramp.end:g} RPS over the run.")
    else:
        print(f"Traffic request rate: {'as the trace says' if options.self_timed else rate}")
    if not options.self_timed:
        form = "Poisson process" if options.burstiness == 1.0 else "Gamma distribution"
        print(f"Burstiness factor: {options.burstiness} ({form})")
    print(f"Maximum request concurrency: {options.max_concurrency}", flush=True)
    if options.profile:
        await _profile(server, "start")
    before = await _metrics(server)
    load = await _run(options, server, samples, rate, show)
    after = await _metrics(server)
    if options.profile:
        await _profile(server, "stop")
    _show_errors(load.outcomes)
    count = None if tokenizer is None else lambda text: len(tokenizer.encode(text, False))
    result = metrics.summarize(
        load.outcomes,
        load.queue_times,
        load.seconds,
        names=options.names,
        percentiles=options.percentiles,
        goals=options.goals,
        limited=options.max_concurrency is not None,
        rate=rate if options.ramp is None else options.ramp.end,
        count=count,
    )
    lines = metrics.report(result, rate, options.max_concurrency, options.percentiles)
    if load.probes:
        found, extra = probe_figures(load.probes)
        result |= found
        lines += extra
    for found, extra in (draft_figures(before, after), _use(options, result, load, before, after)):
        result |= found
        lines += extra
    if load.changes:
        result["rps_change_events"] = load.changes
    print(*lines, "=" * 50, sep="\n", flush=True)
    return result


@dataclass(slots=True)
class _Load:
    """What a run gave."""

    outcomes: list[Outcome] = field(default_factory=list)
    queue_times: list[float] = field(default_factory=list)  # of requests that waited for others to end
    seconds: float = 0.0
    probes: list[Outcome] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)  # of the rate, while it grows


async def _run(options: argparse.Namespace, server: Server, samples: list[Sample], rate: float, show: bool) -> _Load:
    rng = np.random.default_rng(options.seed)
    times, rates = arrival_times(len(samples), rate, options.burstiness, rng, options.ramp)
    if options.self_timed:
        times = np.array([sample.due for sample in samples], np.float64)
    names = _names(server.names, len(samples), options.lora_assignment, options.seed)
    bodies = [server.encode(sample, name) for sample, name in zip(samples, names, strict=True)]
    gate: Any = asyncio.Semaphore(options.max_concurrency) if options.max_concurrency else contextlib.nullcontext()
    load = _Load()
    # Collecting what will not be garbage would stop the clock of a thousand streams.
    gc.collect()
    gc.freeze()
    with progress("Requests", len(samples), show) as advance:

        async def one(body: bytes, sample: Sample, arrival: float) -> tuple[Outcome, float]:
            async with gate:
                outcome = await server.ask(body, sample)
            advance()
            return outcome, outcome.start - arrival

        probing = asyncio.create_task(_probe(server, options.probe_request_rate, load.probes))
        start = time.perf_counter()
        tasks = []
        shown_rate = 0
        for body, sample, due, now_rate in zip(bodies, samples, times, rates, strict=True):
            delay = start + due - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            if options.ramp is not None and int(now_rate) > shown_rate:
                shown_rate = int(now_rate)
                load.changes.append({"rps": shown_rate, "timestamp": datetime.now().isoformat()})
            tasks.append(asyncio.create_task(one(body, sample, time.perf_counter())))
        for outcome, waited in await asyncio.gather(*tasks):
            load.outcomes.append(outcome)
            load.queue_times.append(waited)
        load.seconds = time.perf_counter() - start
        probing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await probing
    gc.unfreeze()
    return load


def _names(names: tuple[str, ...], count: int, assignment: str, seed: int) -> list[str]:
    if assignment == "round-robin":
        return [names[i % len(names)] for i in range(count)]
    return random.Random(seed).choices(names, k=count)


async def _probe(server: Server, rate: float, found: list[Outcome]) -> None:
    """Small requests beside the load, which do not wait for their turn: what does it do to others?"""
    if rate <= 0:
        return
    sample = Sample("Hi", 1, 1)
    body = server.encode(sample, server.names[0])
    while True:
        found.append(await server.ask(body, sample))
        await asyncio.sleep(1 / rate)


async def _wait_until_ready(server: Server, body: bytes, sample: Sample, patience: float) -> None:
    print(f"Waiting for the endpoint, {patience:g} seconds at most", flush=True)
    deadline = time.monotonic() + patience
    while True:
        outcome = await server.ask(body, sample)
        if outcome.success:
            return
        if time.monotonic() + RETRY_SECONDS > deadline:
            raise ConfigError(f"{server.base_url} did not answer within {patience:g} seconds: {outcome.error}")
        await asyncio.sleep(RETRY_SECONDS)


async def _warm_up(server: Server, body: bytes, sample: Sample, count: int, limit: int | None, show: bool) -> None:
    print(f"Warming up with {count} requests...", flush=True)
    gate: Any = asyncio.Semaphore(limit) if limit else contextlib.nullcontext()
    with progress("Warm-up", count, show) as advance:

        async def one() -> None:
            async with gate:
                await server.ask(body, sample)
            advance()

        tasks: list[Awaitable[None]] = [one() for _ in range(count)]
        await asyncio.gather(*tasks)


async def _profile(server: Server, what: str) -> None:
    try:
        await server.fetch(f"/{what}_profile", "POST")
    except OSError as error:
        print(f"The server has no profiler to {what}: {error}")


def _show_errors(outcomes: list[Outcome]) -> None:
    failed = [outcome for outcome in outcomes if not outcome.success]
    if failed:
        print(f"Failed requests during benchmark run detected (capping to {ERRORS_SHOWN}):")
        for i, outcome in enumerate(failed[:ERRORS_SHOWN]):
            print(f"Error {i}: {outcome.error}")


def probe_figures(probes: list[Outcome]) -> tuple[dict[str, Any], list[str]]:
    """(for the result, for the report)."""
    latencies = [o.latency * 1000 for o in probes if o.success]
    if not latencies:
        return {}, []
    found = {
        "probe_completed": len(latencies),
        "probe_failed": len(probes) - len(latencies),
        "probe_median_e2el_ms": float(np.median(latencies)),
        "probe_p99_e2el_ms": float(np.percentile(latencies, 99)),
        "probe_max_e2el_ms": max(latencies),
    }
    labels = ("Probe requests completed:", "Probe requests failed:", "Median probe E2EL (ms):", "P99 probe E2EL (ms):")
    values = zip((*labels, "Max probe E2EL (ms):"), found.values(), strict=True)
    return found, [f"{'Probe Requests':-^50}", *(metrics.line(label, value) for label, value in values)]


_DRAFTS = re.compile(r"^vllm:spec_decode_(\w+?)_total(?:\{(.*)\})? (\S+)$", re.MULTILINE)


_STEPS = re.compile(r"^vllm:iteration_tokens_total_count(?:\{.*\})? (\S+)$", re.MULTILINE)


async def _metrics(server: Server) -> str:
    """The server's page for Prometheus; empty if it has none."""
    try:
        return await server.fetch("/metrics")
    except OSError:
        return ""


def _use(
    options: argparse.Namespace, result: dict[str, Any], load: _Load, before: str, after: str
) -> tuple[dict[str, Any], list[str]]:
    """(for the result, for the report): what the server's device did, if the flags say which it is."""
    if options.cost is None:
        return {}, []
    first, last = (sum(map(float, _STEPS.findall(page))) for page in (before, after))
    good = [(o, n) for o, n in zip(load.outcomes, result["output_lens"], strict=True) if o.success]
    if last <= first or not good:
        return {}, ["The server does not count its steps: no bandwidth use, no matrix-rate use"]
    lengths = np.array([(o.cached_len, o.prompt_len, n) for o, n in good], np.int64).T
    moved, flops = options.cost.requests(*lengths, int(last - first))
    use = Use(moved, flops, load.seconds, options.device)
    return {"device": options.device.name, "steps": int(last - first), **use.record()}, use.lines()


def _drafts(page: str) -> dict[str, float]:
    """Counters of speculative decoding."""
    found: dict[str, float] = {}
    for name, labels, value in _DRAFTS.findall(page):
        position = re.search(r'position="(\d+)"', labels)
        key = f"position {position[1]}" if position else name
        found[key] = found.get(key, 0.0) + float(value)
    return found


def draft_figures(before: str, after: str) -> tuple[dict[str, Any], list[str]]:
    """(for the result, for the report) from the server's page before and after."""
    earlier = _drafts(before)
    grown = {name: value - earlier.get(name, 0.0) for name, value in _drafts(after).items()}
    drafts, tokens, taken = (grown.get(name, 0.0) for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens"))
    if not drafts or not tokens:
        return {}, []
    places = sorted((name for name in grown if name.startswith("position ")), key=lambda name: int(name[9:]))
    found: dict[str, Any] = {
        "spec_decode_acceptance_rate": taken / tokens * 100,
        "spec_decode_acceptance_length": 1 + taken / drafts,
        "spec_decode_num_drafts": int(drafts),
        "spec_decode_draft_tokens": int(tokens),
        "spec_decode_accepted_tokens": int(taken),
        "spec_decode_per_position_acceptance_rates": [grown[name] / drafts for name in places],
    }
    labels = ("Acceptance rate (%):", "Acceptance length:", "Drafts:", "Draft tokens:", "Accepted tokens:")
    lines = [f"{'Speculative Decoding':-^50}"]
    lines += [metrics.line(label, value) for label, value in zip(labels, found.values(), strict=False)]
    if places:
        lines.append("Per-position acceptance (%):")
        lines += [metrics.line(f"  Position {name[9:]}:", grown[name] / drafts * 100) for name in places]
    return found, lines


def _record(
    options: argparse.Namespace, server: Server, tokenizer_id: str | None, rate: float, count: int
) -> dict[str, Any]:
    """What was measured, for the result file."""
    record: dict[str, Any] = {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": options.backend,
        "backend": options.backend,
        "label": options.label,
        "model_id": options.model_id,
        "tokenizer_id": tokenizer_id,
        "num_prompts": count,
        **options.metadata_pairs,
        "request_rate": rate,
        "burstiness": options.burstiness,
        "max_concurrency": options.max_concurrency,
    }
    if options.self_timed:
        record["self_timed"] = True
    if options.ramp is not None:
        record |= {"ramp_up_strategy": options.ramp.strategy}
        record |= {"ramp_up_start_rps": options.ramp.start, "ramp_up_end_rps": options.ramp.end}
    return record


def _save(options: argparse.Namespace, record: dict[str, Any], rate: float) -> None:
    if not (options.save_result or options.append_result):
        return
    kept = record if options.save_detailed else {k: v for k, v in record.items() if k not in metrics.DETAILS}
    # One name for several rates: a line for each.
    append = options.append_result or rate != options.request_rate[0]
    write_json(_place_of(options, record, rate), kept, append=append)


def _draw(options: argparse.Namespace, record: dict[str, Any], rate: float) -> None:
    """The pictures that are asked for, beside the result."""
    base = _place_of(options, record, rate)
    if options.result_filename is not None and len(options.request_rate) > 1:
        base = base.with_stem(f"{base.stem}-{rate:g}qps")
    if options.plot_timeline:
        path = base.with_suffix(".timeline.html")
        write_timeline(record, path, options.thresholds)
        print(f"Timeline: {path}")
    if options.plot_dataset_stats:
        from octavo.bench.plots import plot_lengths

        path = base.with_suffix(".dataset_stats.png")
        plot_lengths(record, str(path))
        print(f"Lengths of prompts and answers: {path}")


def _place_of(options: argparse.Namespace, record: dict[str, Any], rate: float) -> Path:
    name: str | None = options.result_filename
    if name is None:
        load = f"{rate}qps" if options.ramp is None else _ramp_name(options.ramp)
        limit = "" if options.max_concurrency is None else f"-concurrency{options.max_concurrency}"
        model = str(options.model_id).split("/")[-1]
        name = f"{options.label or options.backend}-{load}{limit}-{model}-{record['date']}.json"
    return Path(options.result_dir or ".") / name


def _ramp_name(ramp: Ramp) -> str:
    return f"ramp-up-{ramp.strategy}-{ramp.start:g}qps-{ramp.end:g}qps"

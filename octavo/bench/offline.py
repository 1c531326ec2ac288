"""`octavo bench throughput` and `latency`: the engine without a server, many prompts at once, or a batch repeated.

With `--load-format dummy` prompts are token ids and a folder needs a config.json and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.bench.anatomy import Anatomy, report
from octavo.bench.choose import choose_samples
from octavo.bench.datasets import Sample
from octavo.bench.hardware import Device, Use
from octavo.bench.output import progress, write_json
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.core.hub import model_folder
from octavo.core.params import BeamSearchParams, RequestOutputKind, SamplingParams
from octavo.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from octavo.llm import LLM

LATENCY_IDS = 10_000  # random ids of a latency batch are below it
PERCENTILES = (10, 25, 50, 75, 90, 99)


@contextmanager
def usable(config: EngineConfig) -> Iterator[EngineConfig]:
    """The configuration with a tokenizer that knows no text, where weights are random and the folder has none."""
    folder = model_folder(config)
    bare = config.load_format == "dummy" and config.tokenizer is None and not (folder / "tokenizer.json").is_file()
    if not bare:
        yield config
        return
    model = {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
        yield replace(config, tokenizer=place)


def start(config: EngineConfig) -> LLM:
    from octavo.llm import LLM

    return LLM(**{name: getattr(config, name) for name in EngineConfig.__dataclass_fields__})


def sampling(options: argparse.Namespace, output_len: int, text: bool) -> SamplingParams:
    return SamplingParams(
        n=options.n,
        temperature=options.temperature,
        top_p=1.0,
        ignore_eos=True,
        max_tokens=output_len,
        detokenize=text and not options.disable_detokenize,
    )


def check_plot(options: argparse.Namespace) -> None:
    if options.plot is not None:
        from octavo.bench.plots import check_matplotlib

        check_matplotlib()


@contextmanager
def profiled(folder: str | None) -> Iterator[None]:
    """Writes a trace for chrome://tracing or Perfetto into the folder."""
    if folder is None:
        yield
        return
    import torch

    with torch.profiler.profile() as profile:
        yield
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    profile.export_chrome_trace(str(place / "trace.json"))
    print(f"The profile is in {place / 'trace.json'}")


# Throughput


def bench_throughput(options: argparse.Namespace, config: EngineConfig) -> int:
    check_plot(options)
    if options.dataset_path is None and options.dataset_name == "sharegpt":
        print("When dataset path is not set, it will default to random dataset")
        options.dataset_name = "random"
    with usable(config) as config:
        if options.async_engine:
            if options.profile or options.plot is not None:
                raise ConfigError("async-engine: its steps run in another process; leave out --profile and --plot")
            return asyncio.run(_throughput_async(options, config))
        return _throughput(options, start(config), config)


def _samples(options: argparse.Namespace, config: EngineConfig, tokenizer: Tokenizer, vocab_size: int) -> Any:
    """(prompts to measure, prompts before them)."""
    known = None if config.load_format == "dummy" else tokenizer
    samples = choose_samples(options, known, config.seed, vocab_size=vocab_size)
    if not options.num_warmups:
        return samples, []
    warm = choose_samples(options, known, config.seed + 1, count=options.num_warmups, vocab_size=vocab_size)
    return samples, warm


def _throughput(options: argparse.Namespace, llm: LLM, config: EngineConfig) -> int:
    info = llm._core.info
    samples, warm = _samples(options, config, llm.get_tokenizer(), info.vocab_size)

    def generate(batch: list[Sample]) -> tuple[float, int, int]:
        """(seconds, prompt tokens, generated tokens)."""
        params = [sampling(options, s.output_len, isinstance(s.prompt, str)) for s in batch]
        begun = time.perf_counter()
        outputs = llm.generate([s.prompt for s in batch], params, use_tqdm=not options.disable_tqdm)
        seconds = time.perf_counter() - begun
        generated = sum(len(answer.token_ids) for output in outputs for answer in output.outputs)
        return seconds, sum(len(output.prompt_token_ids) for output in outputs), generated

    if warm:
        print(f"Warming up with {len(warm)} requests...", flush=True)
        generate(warm)
    with Anatomy(llm._core) as anatomy, profiled(options.profile_dir if options.profile else None):
        seconds, prompt_tokens, generated = generate(samples)
    device = Device.find(info.device, options.device_bandwidth, options.device_flops)
    use, steps = anatomy.use(seconds, device), anatomy.summary(device)
    result = _throughput_result(options, config, len(samples), seconds, prompt_tokens, generated)
    result |= {"device": info.device, **use.record(), "steps": steps}
    if options.output_json:
        write_json(Path(options.output_json), result, indent=4)
    print(*throughput_lines(result), *use.lines(), *report(steps), sep="\n")
    if options.plot is not None:
        from octavo.bench.plots import plot_anatomy

        plot_anatomy(steps, anatomy.timeline(), info.device, options.plot)
    return 0


async def _throughput_async(options: argparse.Namespace, config: EngineConfig) -> int:
    from octavo.engine.async_llm import AsyncLLM

    engine = await AsyncLLM.start(config, log_level="warning")
    try:
        samples, warm = _samples(options, config, engine.tokenizer, engine.info.vocab_size)

        async def one(sample: Sample, advance: Callable[[], None]) -> tuple[int, int]:
            params = sampling(options, sample.output_len, isinstance(sample.prompt, str))
            params = params.clone(output_kind=RequestOutputKind.FINAL_ONLY)
            async for output in engine.generate(sample.prompt, params, request_id=sample.request_id):
                advance()
                return len(output.prompt_token_ids), sum(len(answer.token_ids) for answer in output.outputs)
            raise AssertionError("a request has a final output")

        if warm:
            print(f"Warming up with {len(warm)} requests...", flush=True)
            await asyncio.gather(*(one(sample, lambda: None) for sample in warm))
        with progress("Requests", len(samples), not options.disable_tqdm) as advance:
            begun = time.perf_counter()
            counts = await asyncio.gather(*(one(sample, advance) for sample in samples))
            seconds = time.perf_counter() - begun
    finally:
        await engine.shutdown()
    prompt_tokens, generated = (sum(column) for column in zip(*counts, strict=True))
    result = _throughput_result(options, config, len(samples), seconds, prompt_tokens, generated)
    if options.output_json:
        write_json(Path(options.output_json), result, indent=4)
    print(*throughput_lines(result), sep="\n")
    return 0


def _throughput_result(
    options: argparse.Namespace, config: EngineConfig, requests: int, seconds: float, prompt_tokens: int, generated: int
) -> dict[str, Any]:
    return {
        "model_id": config.model,
        "elapsed_time": seconds,
        "num_requests": requests,
        "total_num_tokens": prompt_tokens + generated,
        "requests_per_second": requests / seconds,
        "tokens_per_second": (prompt_tokens + generated) / seconds,
        "total_output_tokens": generated,
        "output_tokens_per_second": generated / seconds,
    }


def throughput_lines(result: dict[str, Any]) -> list[str]:
    return [
        f"Throughput: {result['requests_per_second']:.2f} requests/s, "
        f"{result['tokens_per_second']:.2f} total tokens/s, {result['output_tokens_per_second']:.2f} output tokens/s",
        f"Total num prompt tokens:  {result['total_num_tokens'] - result['total_output_tokens']}",
        f"Total num output tokens:  {result['total_output_tokens']}",
    ]


# Latency


def bench_latency(options: argparse.Namespace, config: EngineConfig) -> int:
    check_plot(options)
    with usable(config) as config:
        llm = start(config)
    room = llm._core.info.kv_capacity
    if options.input_len + options.output_len > room:
        raise ConfigError(f"input-len and output-len must be {room} at most together: that is what the KV cache holds")
    results = []
    timeline: dict[str, list[float]] = {}
    for batch in options.batch_size:
        result, timeline = _latency(options, llm, config, batch)
        results.append(result)
    if options.output_json:
        write_json(Path(options.output_json), results[0] if len(results) == 1 else results, indent=4)
    if options.plot is not None and not options.profile:
        from octavo.bench.plots import plot_anatomy, plot_batches

        if len(results) == 1:
            plot_anatomy(results[0]["steps"], timeline, llm._core.info.device, options.plot)
        else:
            plot_batches(results, options.plot)
    return 0


def _latency(
    options: argparse.Namespace, llm: LLM, config: EngineConfig, batch: int
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    info = llm._core.info
    ids = np.random.default_rng(config.seed).integers(0, min(LATENCY_IDS, info.vocab_size), (batch, options.input_len))
    prompts: Any = [{"prompt_token_ids": row} for row in ids.tolist()]
    params = sampling(options, options.output_len, config.load_format != "dummy")
    beams = BeamSearchParams(beam_width=options.n, max_tokens=options.output_len, ignore_eos=True)

    def generate() -> float:
        begun = time.perf_counter()
        if options.use_beam_search:
            llm.beam_search(prompts, beams)
        else:
            llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - begun

    if len(options.batch_size) > 1:
        print(f"{f' Batch size {batch} ':=^50}")
    print("Warming up...", flush=True)
    for _ in range(options.num_iters_warmup):
        generate()
    if options.profile:
        with profiled(options.profile_dir):
            generate()
        return {}, {}
    with Anatomy(llm._core) as anatomy, progress("Iterations", options.num_iters, not options.disable_tqdm) as advance:
        latencies = []
        for _ in range(options.num_iters):
            latencies.append(generate())
            advance()
    device = Device.find(info.device, options.device_bandwidth, options.device_flops)
    whole: Use = anatomy.use(sum(latencies), device)
    steps = anatomy.summary(device)
    result = latency_result(config.model, latencies)
    result |= {"batch_size": batch, "input_len": options.input_len, "output_len": options.output_len}
    result |= {"device": info.device, **whole.record(), "steps": steps}
    print(*latency_lines(result), *whole.lines(), *report(steps), sep="\n", flush=True)
    return result, anatomy.timeline()


def latency_result(model: str | None, latencies: list[float]) -> dict[str, Any]:
    found = np.percentile(latencies, PERCENTILES).tolist()
    return {
        "model_id": model,
        "avg_latency": float(np.mean(latencies)),
        "latencies": latencies,
        "percentiles": dict(zip(map(str, PERCENTILES), found, strict=True)),
    }


def latency_lines(result: dict[str, Any]) -> list[str]:
    lines = [f"Avg latency: {result['avg_latency']} seconds"]
    return lines + [f"{p}% percentile latency: {value} seconds" for p, value in result["percentiles"].items()]

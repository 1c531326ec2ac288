"""Where the time of a step goes: host work by phase, kernels by name, and gaps between kernels.

    scripts/bench anatomy --shape llama-3-8b --batches 1 64 256 --context 512 [--eager]
    scripts/bench anatomy --shape llama-3-8b --prefill 64x2048 1x128

The first form is of steady decode steps. The second computes prompts: all of them at once, one token of answer each;
the rate is of prompt tokens, and the kernels are those of one more prompt.

Random weights and prompts, greedy. Wall and host times are of steps without a profiler; the kernels are of a few
profiled ones after them. "gap" is the time between two kernels in which the GPU has nothing to do: inside a step, and
from the last kernel of a step to the first of the next one.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from octavo import LLM, SamplingParams
from octavo.bench.hardware import Cost
from octavo.bench.shapes import SHAPES, write_shape
from octavo.core.request import EngineRequest, pack_ids

STEPS, PROFILED, WARM = 40, 8, 12
BANDWIDTH, MATRIX_RATE = 4.3e12, 780e12  # bytes and bf16 operations a second of an H200
UIDS = itertools.count(1)


def timed(record: list[float], call):
    def wrapped(*args):
        start = time.perf_counter()
        try:
            return call(*args)
        finally:
            record.append(time.perf_counter() - start)

    return wrapped


def kernels_of(events) -> list[tuple[float, float, str]]:
    """(start, end, name) of everything that ran on the GPU, in microseconds, in order."""
    found = [
        (e.time_range.start, e.time_range.end, e.name)
        for e in events
        if e.device_type == torch.autograd.DeviceType.CUDA and e.time_range.end > e.time_range.start
    ]
    return sorted(found)


def report_profile(events, steps: int, top: int) -> None:
    found = kernels_of(events)
    if not found:
        print("  the profiler saw no kernels")
        return
    by_name: dict[str, list[float]] = defaultdict(list)
    for start, end, name in found:
        by_name[name].append(end - start)
    busy = sum(map(sum, by_name.values()))
    span = found[-1][1] - found[0][0]
    gaps = [max(0.0, b[0] - a[1]) for a, b in zip(found, found[1:], strict=False)]
    between = sorted(gaps, reverse=True)[: steps - 1]
    print(
        f"  GPU: {busy / steps:.0f} us of kernels a step, {span / steps:.0f} us from the first to the last, "
        f"{len(found) / steps:.0f} launches; gap median {statistics.median(gaps):.2f} us, "
        f"largest {steps - 1}: {', '.join(f'{g:.0f}' for g in between)} us"
    )
    for name, times in sorted(by_name.items(), key=lambda item: -sum(item[1]))[:top]:
        total, mean = sum(times) / steps, statistics.mean(times)
        print(f"    {total:8.1f} us  {len(times) / steps:6.1f} x {mean:7.2f}  {name[:90]}")


def measure(llm: LLM, batch: int, context: int, top: int) -> float:
    """Seconds of a steady step; with `top`, that many of its kernels are printed."""
    core, rng = llm._core, np.random.default_rng(batch)
    length = context - STEPS // 2
    reading = batch * length // core.info.max_num_batched_tokens  # steps; who was read first answers meanwhile
    for _ in range(batch):
        add(llm, rng, next(UIDS), length, reading + STEPS + PROFILED + 3 * WARM)
    for _ in range(10_000):
        core.step()
        if core.scheduler._last_plan is not None and core.scheduler._last_plan.steady:
            break
    for _ in range(WARM):
        core.step()
    phases: dict[str, list[float]] = {"schedule": [], "execute": [], "update": []}
    schedule, execute, update = core.scheduler.schedule, core.runner.execute, core.scheduler.update
    core.scheduler.schedule = timed(phases["schedule"], schedule)
    core.runner.execute = timed(phases["execute"], execute)
    core.scheduler.update = timed(phases["update"], update)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(STEPS):
        core.step()
    torch.cuda.synchronize()
    wall = (time.perf_counter() - start) / STEPS
    core.scheduler.schedule, core.runner.execute, core.scheduler.update = schedule, execute, update
    host = {name: statistics.median(times) * 1e3 for name, times in phases.items()}
    moved, flops = cost(llm).step(np.full(batch, context - 1), np.ones(batch, int), batch)
    floor = max(moved / BANDWIDTH, flops / MATRIX_RATE)
    print(
        f"batch {batch}, context {context}: {wall * 1e3:.3f} ms a step, {floor / wall:.0%} of the floor, "
        f"{floor * 1e3:.3f} ms; {moved / wall / BANDWIDTH:.0%} of {BANDWIDTH / 1e12} TB/s; "
        f"host {sum(host.values()):.3f} ms ({', '.join(f'{n} {t:.3f}' for n, t in host.items())})",
        flush=True,
    )
    if not top:
        drain(llm)
        return wall
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(PROFILED):
            core.step()
        torch.cuda.synchronize()
    report_profile(recorded.events(), PROFILED, top)
    drain(llm)
    return wall


def cost(llm: LLM) -> Cost:
    core = llm._core
    model, spec = core.runner.model, core.runner.attention.spec
    kept = spec.cache_dtype.itemsize + (2 / spec.head_dim if spec.quantised else 0)  # with a scale of two bytes
    return Cost(model.spec, model.num_bytes, model.dtype.itemsize, kept)


def add(llm: LLM, rng: np.random.Generator, uid: int, length: int, output: int) -> None:
    prompt = rng.integers(10, llm._core.info.vocab_size - 10, length).astype(np.int32)
    params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True, detokenize=False)
    llm._core.add(EngineRequest(uid, pack_ids(prompt), params, output, [], [], stream=False))


def drain(llm: LLM) -> float:
    """Seconds until there is no work."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    while llm._core.has_work:
        llm._core.step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_prefill(llm: LLM, prompts: int, length: int, top: int) -> float:
    """Seconds for all prompts."""
    rng, seconds = np.random.default_rng(length), []
    for _ in range(4):
        for _ in range(prompts):
            add(llm, rng, next(UIDS), length, 1)
        seconds.append(drain(llm))
    best = statistics.median(seconds[1:])
    _, flops = cost(llm).step(np.zeros(prompts, int), np.full(prompts, length), prompts)
    print(
        f"prefill {prompts} x {length}: {best * 1e3:.2f} ms, {prompts * length / best:.0f} tokens/s, "
        f"{flops / best / 1e12:.0f} TFLOP/s ({flops / best / MATRIX_RATE:.0%} of {MATRIX_RATE / 1e12:.0f})",
        flush=True,
    )
    if not top:
        return best
    add(llm, rng, next(UIDS), length, 1)
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        drain(llm)
    report_profile(recorded.events(), 1, top)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--prefill", nargs="+", metavar="NxL", help="N prompts of L tokens instead of decode steps")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs")
    parser.add_argument("--top", type=int, default=12, help="kernels shown")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        llm = LLM(str(write_shape(args.shape, Path(folder))), load_format="dummy", enforce_eager=args.eager)
    print(llm._core.info)
    for shape in args.prefill or ():
        prompts, length = map(int, shape.split("x"))
        measure_prefill(llm, prompts, length, args.top)
    for batch in () if args.prefill else args.batches:
        measure(llm, batch, args.context, args.top)


if __name__ == "__main__":
    main()

"""Host time of the scheduler alone, in steady decode, by batch size; or pages that layers with windows need.

    python bench/scheduler.py [--batches 1 16 256 1024] [--steps 2000] [--json FILE]
    python bench/scheduler.py --windows [--layers 48] [--window 1024] [--every 6]

No model runs: a stand-in hands back one token for each sampled row. The time is that of `schedule()` and `update()`
together, the host work between two steps. Steps in which nothing but the tokens changes are reported apart from
those in which rows cross into a new block; the median of each, and the mean over all.

With `--windows` one sequence of each length is computed and then decodes 64 tokens, in a model of which every
`--every`th layer sees all tokens and the others the last `--window`: once with one block table for all layers, once in
groups. What is held is counted in blocks of 16 tokens of one layer, at the most and at the end, and shown in MiB for 8
key/value heads of 256 values in 16 bits.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from datetime import date

import numpy as np

from octavo.core.config import CacheConfig, SchedulerConfig
from octavo.core.params import SamplingParams
from octavo.core.plan import StepResult
from octavo.core.request import EngineRequest, pack_ids
from octavo.models.groups import LayerGroups
from octavo.scheduler.scheduler import Scheduler


def measure(batch: int, steps: int) -> dict[str, float]:
    length, block = 512, 16
    answer = steps + 200  # the first rows decode while the last are still computing their prompts
    total = length + answer
    cache = CacheConfig(batch * -(-total // block) + 64, block, batch, total)
    scheduler = Scheduler(SchedulerConfig(max(8192, batch)), cache)
    rng = np.random.default_rng(0)
    params = SamplingParams(max_tokens=answer, temperature=0.0, ignore_eos=True)
    for i in range(batch):
        # Lengths differ, so that rows cross into new blocks in different steps, as they do in use.
        prompt = rng.integers(0, 32000, length - int(rng.integers(0, block)))
        scheduler.add(EngineRequest(i + 1, pack_ids(prompt), params, answer, [2], []))
    flight = None
    plain, crossing = [], []
    while len(plain) + len(crossing) < steps:
        start = time.perf_counter()
        plan = scheduler.schedule()
        if flight is not None:
            before, result = flight
            scheduler.update(before, result)
        taken = time.perf_counter() - start
        assert plan is not None, "the batch ended before the measurement"
        flight = (plan, StepResult(np.full(len(plan.sampled_S), 7, np.int32)))
        if plan.steady:
            (crossing if len(plan.table_rows_D) else plain).append(taken * 1e6)
    return {
        "batch": batch,
        "mean_us": statistics.fmean(plain + crossing),
        "median_us_no_new_block": statistics.median(plain) if plain else float("nan"),
        "median_us_new_blocks": statistics.median(crossing) if crossing else float("nan"),
    }


def held(windows: tuple[int | None, ...], length: int) -> tuple[int, int]:
    """Pages that a sequence holds at the most, and while it decodes."""
    block, answer = 16, 64
    cache = CacheConfig((length + answer) // block * len(windows) + 64, block, 1, length + answer, windows=windows)
    scheduler = Scheduler(SchedulerConfig(8192), cache)
    params = SamplingParams(max_tokens=answer, temperature=0.0, ignore_eos=True)
    scheduler.add(EngineRequest(1, pack_ids(np.zeros(length, np.int32)), params, answer, [2], []))
    flight, pages = None, []
    while scheduler.has_work:
        plan = scheduler.schedule()
        pages.append(scheduler.cache.pool.num_held)
        if flight is not None:
            before, result = flight
            scheduler.update(before, result)
        flight = None if plan is None else (plan, StepResult(np.full(len(plan.sampled_S), 7, np.int32)))
    return max(pages), next(count for count in reversed(pages) if count)


def compare(layers: int, window: int, every: int) -> None:
    seen = [None if (layer + 1) % every == 0 else window for layer in range(layers)]
    mib = 2 * 8 * 256 * 2 * 16 / 2**20  # of a block of one layer
    print(f"{'context':>8} {'one table':>12} {'in groups':>12} {'peak':>10}   blocks of a layer; MiB; share")
    for length in (8192, 32768, 131072):
        groups = LayerGroups.of(seen, length + 64)
        whole = held((None,), length)[1] * layers
        peak, end = (count * groups.size for count in held(groups.windows, length))
        sizes = " ".join(f"{count * mib:,.0f}" for count in (whole, end, peak))
        print(
            f"{length:>8} {whole:>12,} {end:>12,} {peak:>10,}   {sizes} MiB; {end / whole:.1%}, peak {peak / whole:.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    parser.add_argument("--windows", action="store_true", help="pages that layers with windows need, instead")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--every", type=int, default=6, help="layers, of which one sees all")
    args = parser.parse_args()
    if args.windows:
        compare(args.layers, args.window, args.every)
        return
    results = [measure(batch, args.steps) for batch in args.batches]
    print(f"{'batch':>6} {'mean':>10} {'no new block':>14} {'new blocks':>12}   microseconds a step")
    for r in results:
        plain, crossing = r["median_us_no_new_block"], r["median_us_new_blocks"]
        print(f"{r['batch']:>6} {r['mean_us']:>10.1f} {plain:>14.1f} {crossing:>12.1f}")
    if args.json:
        record = {
            "date": date.today().isoformat(),
            "machine": platform.processor() or platform.machine(),
            "rows": results,
        }
        with open(args.json, "w") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()

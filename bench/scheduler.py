"""Host time of the scheduler alone, in steady decode, by batch size.

    python bench/scheduler.py [--batches 1 16 256 1024] [--steps 2000] [--json FILE]

No model runs: a stand-in hands back one token for each sampled row. The time is that of `schedule()` and `update()`
together, the host work between two steps. Steps in which nothing but the tokens changes are reported apart from
those in which rows cross into a new block; the median of each, and the mean over all.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    args = parser.parse_args()
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

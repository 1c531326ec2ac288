"""Offline generation with random prompts: requests and tokens a second, time to first token, time a token.

    scripts/bench offline [--model DIR | --shape llama-3-8b] [--requests 1000 --input 512 --output 256]
    scripts/bench offline --shape llama-3-8b --steps
    scripts/bench offline --shape llama-3-8b --batches 1 8 64 256 --input 512 --output 64

Greedy, fixed lengths, end tokens ignored, every prompt new. `--shape` makes a model of that shape with random weights
and no text. `--steps` tells what kinds of steps took the time. With `--batches`, each batch runs alone; a step's time
is (time for all - time to first) / (output - 1).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from octavo import LLM, SamplingParams
from octavo.bench.shapes import SHAPES, write_shape


def run(llm: LLM, rng: np.random.Generator, requests: int, length: int, output: int) -> float:
    """Seconds to serve `requests` at once."""
    vocab = llm._core.info.vocab_size
    prompts = [{"prompt_token_ids": p} for p in rng.integers(10, vocab - 10, (requests, length)).tolist()]
    params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - start


def by_kind(llm: LLM, work: Callable[[], float]) -> tuple[float, dict[str, tuple[int, float]]]:
    """What `work` returns, and for each kind of step how many there were and their seconds, from plan to plan."""
    plans: list[tuple[float, str]] = []

    def note(plan: Any, _: object) -> None:
        decodes = plan.num_decodes
        kind = f"decode of {decodes // 100}00" if not len(plan.chunk_tokens_C) else "mixed" if decodes else "prefill"
        plans.append((time.perf_counter(), kind))

    llm._core.on_plan = note
    seconds = work()
    found: dict[str, tuple[int, float]] = {}
    for (begin, kind), (end, _) in pairwise([*plans, (time.perf_counter(), "")]):
        count, spent = found.get(kind, (0, 0.0))
        found[kind] = count + 1, spent + end - begin
    return seconds, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hugging Face id (default: the demo model)")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--input", type=int, default=512)
    parser.add_argument("--output", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    args = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made = args.shape and str(write_shape(args.shape, Path(folder)))
        llm = LLM(made or args.model, load_format="dummy" if made else "auto")
    print(f"start {time.perf_counter() - start:.1f} s; {llm._core.info}")
    rng = np.random.default_rng(0)
    run(llm, rng, 4, args.input, 8)
    rows = []
    for batch in args.batches or ():
        first = statistics.median(run(llm, rng, batch, args.input, 1) for _ in range(args.repeats))
        whole = statistics.median(run(llm, rng, batch, args.input, args.output) for _ in range(args.repeats))
        step = (whole - first) / (args.output - 1) * 1e3
        rows.append(
            {"batch": batch, "first_token_ms": first * 1e3, "step_ms": step, "tokens_per_s": batch / step * 1e3}
        )
        print(f"batch {batch:5}: first token {first * 1e3:8.1f} ms, step {step:7.2f} ms", flush=True)
    if not args.batches:
        seconds, kinds = by_kind(llm, lambda: run(llm, rng, args.requests, args.input, args.output))
        rate = args.requests / seconds
        rows.append({"requests": args.requests, "seconds": seconds, "requests_per_s": rate})
        print(f"{args.requests} requests in {seconds:.2f} s: {rate:.2f} req/s, {rate * args.output:.0f} output tok/s")
        for kind, (count, spent) in kinds.items() if args.steps else ():
            print(f"  {kind:16} {count:5} steps {spent:6.2f} s {spent / count * 1e3:7.2f} ms a step")
    if args.json:
        record = {
            "date": date.today().isoformat(),
            "machine": llm._core.info.device,
            "arguments": vars(args),
            "rows": rows,
        }
        Path(args.json).write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()

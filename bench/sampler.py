"""Time of one sampling step in microseconds, by batch, vocabulary and what is asked.

    python -m bench.sampler [--dtype bfloat16] [--threads 2] [--device cuda] [--spread 3] [--seconds 0.5]

Logits are normal with the standard deviation `--spread`: 3 is flat beside a trained model (the nucleus of 0.9 has
thousands of tokens), 8 is peaked. The last three columns are the obvious way in torch, for comparison: argmax,
softmax and multinomial, and top_p 0.9 by sorting.

On a GPU whatever can be captured runs as a CUDA graph of 10 steps, and the second number is the bandwidth in TB/s if
every logit were read once. Small batches stay in the L2 cache, as they would behind the matrix product.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.core.params import SamplingParams
from octavo.core.plan import NO_INTS, RowJoin
from octavo.sampling.sampler import Sampler

CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.7},
    "top_p": {"temperature": 0.7, "top_p": 0.9},
    "top_k": {"temperature": 0.7, "top_k": 50},
    "k+p": {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
    "min_p": {"temperature": 0.7, "min_p": 0.05},
    "penalties+p": {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.1, "frequency_penalty": 0.1},
    "logprobs": {"temperature": 0.0, "logprobs": 5},
}
PROMPT = 512
GRAPH = 10  # steps


def sort_top_p(logits_SV: Tensor) -> Tensor:
    p_SV, ids_SV = torch.softmax(logits_SV.float() / 0.7, -1).sort(-1, descending=True)
    p_SV[p_SV.cumsum(-1) - p_SV >= 0.9] = 0
    return ids_SV.gather(1, torch.multinomial(p_SV, 1))


BASELINES: dict[str, Callable[[Tensor], Tensor]] = {
    "torch:argmax": lambda logits_SV: logits_SV.argmax(-1),
    "torch:multinomial": lambda logits_SV: torch.multinomial(torch.softmax(logits_SV.float() / 0.7, -1), 1),
    "torch:sort": sort_top_p,
}


def timer(size: int, logits_SV: Tensor, params: SamplingParams, seconds: float) -> Callable[[], float]:
    """A function that measures a step of a batch of rows which all ask for `params`."""
    device = logits_SV.device
    sampler = Sampler(size, logits_SV.shape[1], device)
    rng = np.random.default_rng(0)
    for row in range(size):
        tokens = rng.integers(0, logits_SV.shape[1], PROMPT, dtype=np.int32)
        sampler.join(RowJoin(row=row, params=params, seed=row, tokens=tokens, prompt_len=PROMPT, stop_ids=[]))
    rows = np.arange(size, dtype=np.int32)
    rows_S = torch.arange(size, device=device)
    positions_S = torch.full((size,), PROMPT, device=device)
    banned = (NO_INTS, NO_INTS)

    mode = sampler.graph_mode(rows, banned, False)

    def eager() -> None:
        sampler.sample(logits_SV, rows_S, positions_S, rows, banned, True)
        positions_S.add_(1)

    if mode is None:
        return partial(fastest, eager, seconds, device)

    def steps() -> None:
        for _ in range(GRAPH):
            sampler.sample_static(mode, logits_SV, rows_S, positions_S)
            positions_S.add_(1)

    steps()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        steps()
    return lambda: fastest(graph.replay, seconds, device) / GRAPH


def fastest(function: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Seconds of the fastest of at least three calls, which is what a shared machine disturbs least."""

    def once() -> float:
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            function()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    once()
    deadline = time.perf_counter() + seconds
    times = [once() for _ in range(3)]
    while time.perf_counter() < deadline:
        times.append(once())
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--spread", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--vocab", type=int, nargs="+", default=[32000, 128256])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    print(f"{args.dtype} on {args.device}, {args.threads} threads, spread {args.spread}; us per step")
    print(f"{'batch':>6} {'vocab':>7} " + " ".join(f"{name:>11}" for name in [*CASES, *BASELINES]))
    for vocab in args.vocab:
        for size in args.batch:
            torch.manual_seed(0)
            logits_SV = (torch.randn(size, vocab) * args.spread).to(device, getattr(torch, args.dtype))
            timers = [timer(size, logits_SV, SamplingParams(**asked), args.seconds) for asked in CASES.values()]
            timers += [
                partial(fastest, partial(baseline, logits_SV), args.seconds, device) for baseline in BASELINES.values()
            ]
            times = [measure() for measure in timers]
            moved = logits_SV.numel() * logits_SV.element_size() / 1e12
            cells = [f"{t * 1e6:.0f}" if device.type == "cpu" else f"{t * 1e6:.1f} {moved / t:.2f}" for t in times]
            print(f"{size:>6} {vocab:>7} " + " ".join(f"{cell:>11}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()

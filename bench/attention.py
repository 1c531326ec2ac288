"""Paged attention on a GPU: time, bytes and FLOPs a second, and their share of what the device can do.

    scripts/bench attention [--backend NAME] [--quick] [--json FILE]

Heads as in Llama-3-8B (32 query, 8 key/value, of 128) unless a line says other, bfloat16, blocks of 16 in random
order. The cache is quantised where a line says so; latents are DeepSeek's, of 16 heads (V2-Lite) or 128 (V3).
Decode: bytes are the keys and values that must be read; the step's plan and the write of its own tokens are timed by
themselves, because the plan is shared by all layers. Prefill: FLOPs are those of what queries see. Times are medians
of CUDA graphs with one call for each of several parts of a cache that is larger than the L2.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
from collections.abc import Callable
from datetime import date
from typing import Any

import torch

from octavo.attention.base import AttendOptions, AttentionSpec, ForwardBatch
from octavo.attention.select import select_backend
from octavo.kernels.kv_cache import DTYPES

SIZE = 16
BANDWIDTH, MATRIX_RATE = 4.3e12, 780e12  # of an H200: reading, and bfloat16 products
LLAMA_8B, LLAMA_1B, GEMMA_9B = (32, 8, 128), (32, 8, 64), (16, 8, 256)
LATENT = 512  # values of a head of 576
LITE, V3 = (16, 1, 576), (128, 1, 576)

Sequences = list[tuple[int, int]]  # (tokens in this step, tokens in all)


def decode_cases() -> dict[str, list[int]]:
    rng = random.Random(0)
    return {
        "1 x 640": [640],
        "1 x 8192": [8192],
        "1 x 32768": [32768],
        "8 x 640": [640] * 8,
        "64 x 640": [640] * 64,
        "64 of 400-900": [rng.randint(400, 900) for _ in range(64)],
        "256 x 576": [576] * 256,
        "64 x 4096": [4096] * 64,
        "256 of 16-4096": [rng.randint(16, 4096) for _ in range(256)],
        "32768 and 63 of 64-1024": [32768] + [rng.randint(64, 1024) for _ in range(63)],
    }


def prefill_cases() -> dict[str, Sequences]:
    return {
        "2048": [(2048, 2048)],
        "8192": [(8192, 8192)],
        "16384": [(16384, 16384)],
        "64 x 128": [(128, 128)] * 64,
        "16 x 512": [(512, 512)] * 16,
        "2048 after 14336": [(2048, 16384)],
        "8192 after 90000": [(8192, 98192)],
    }


class Bench:
    """A backend of one layer over a cache of several copies of a case."""

    def __init__(
        self,
        name: str,
        heads: tuple[int, int, int],
        sequences: Sequences,
        window: int | None,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        device = torch.device("cuda")
        query_heads, kv_heads, dim = heads
        most = max(context for _, context in sequences)
        windows = (None,) if window is None else (window, None)
        spec = AttentionSpec(1, *heads, torch.bfloat16, device, SIZE, most, windows, max(256, len(sequences)))
        spec = dataclasses.replace(spec, kv_dtype=kv_dtype, latent_dim=LATENT if dim > LATENT else 0)
        self.token_bytes = spec.kv_bytes_per_block() / SIZE
        blocks = sum(-(-context // SIZE) for _, context in sequences)
        self.copies = max(1, min(64, (1 << 29) // (blocks * spec.kv_bytes_per_block())))
        made, _ = select_backend(name, spec)
        self.backend: Any = made(spec, self.copies * blocks)
        for cache in [self.backend.latents] if spec.latent_dim else self.backend.caches:
            for part in cache[0].split(1 << 14):  # torch draws no numbers of one byte
                part.copy_(torch.randn(part.shape, device=device))
        order = torch.randperm(self.copies * blocks, device=device, dtype=torch.int32).split(blocks)
        self.batches = [self._batch(sequences, part) for part in order]
        tokens = sum(count for count, _ in sequences)
        qkv = torch.randn(tokens, query_heads + 2 * kv_heads, dim, device=device, dtype=torch.bfloat16)
        self.q, self.k, self.v = qkv.split([query_heads, kv_heads, kv_heads], 1)
        self.options = AttendOptions(dim**-0.5, window)

    @staticmethod
    def _batch(sequences: Sequences, blocks: torch.Tensor) -> ForwardBatch:
        device = blocks.device
        rows = blocks.split([-(-context // SIZE) for _, context in sequences])
        table = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        counts = torch.tensor([count for count, _ in sequences], device=device)
        contexts = torch.tensor([context for _, context in sequences], device=device)
        owner = torch.arange(len(sequences), device=device).repeat_interleave(counts)
        ends = counts.cumsum(0)
        positions = (contexts - ends)[owner] + torch.arange(len(owner), device=device)
        return ForwardBatch(
            token_ids_T=positions,
            positions_T=positions,
            slots_T=table[owner, positions // SIZE].long() * SIZE + positions % SIZE,
            query_start_N1=torch.cat((ends.new_zeros(1), ends)).int(),
            context_lens_N=contexts.int(),
            block_table_NB=table,
            num_single=len(sequences) if max(count for count, _ in sequences) == 1 else 0,
            max_query_len=max(count for count, _ in sequences),
            max_context_len=max(context for _, context in sequences),
            attention=None,  # type: ignore[arg-type]
        )

    def seconds(self, call: Callable[[ForwardBatch], object]) -> float:
        """Of one call, from a graph of one for each copy, so that launches do not count."""
        self.backend.plan(self.batches[0])  # lengths are the same in all
        for batch in self.batches[:3]:
            call(batch)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for batch in self.batches:
                call(batch)
        times = []
        for _ in range(10):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3 / len(self.batches))
        return statistics.median(times)

    def attend(self) -> float:
        return self.seconds(lambda batch: self.backend.attend(0, self.q, batch, self.options))

    def plan(self) -> float:
        return self.seconds(self.backend.plan)

    def write(self) -> float:
        return self.seconds(lambda batch: self.backend.write(0, self.k, self.v, batch))


def seen(sequences: Sequences, window: int | None) -> int:
    """Pairs of query and key."""
    most = window or 1 << 40
    return sum(min(position + 1, most) for count, end in sequences for position in range(end - count, end))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto", help="of octavo.attention.select")
    parser.add_argument("--quick", action="store_true", help="only the heads of Llama-3-8B, without windows")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []

    def report(case: str, seconds: float, size: float, flops: float) -> None:
        rate = f"{size / seconds / 1e12:6.2f} TB/s  {size / seconds / BANDWIDTH:4.0%}"
        if flops:
            rate = f"{flops / seconds / 1e12:6.1f} TFLOP/s  {flops / seconds / MATRIX_RATE:4.0%}"
        rows.append({"case": case, "us": seconds * 1e6, "bytes": size, "flops": flops})
        print(f"{case:48} {seconds * 1e6:9.1f} us" + (f"  {rate}" if size or flops else ""), flush=True)

    more: list[tuple[tuple[int, int, int], int | None, torch.dtype | None]] = []
    if not args.quick:
        more += [(LLAMA_1B, None, None), (GEMMA_9B, None, None), (GEMMA_9B, 4096, None)]
        more += [(LLAMA_8B, None, dtype) for dtype in DTYPES] + [(LITE, None, None), (V3, None, None)]
    for heads, window, kv_dtype in [(LLAMA_8B, None, None), *more]:
        label = "" if heads == LLAMA_8B else f", {heads[0]}/{heads[1]} x {heads[2]}"
        label += "" if window is None else f", window {window}"
        label += "" if kv_dtype is None else f", cache of {str(kv_dtype).removeprefix('torch.')}"
        for name, contexts in decode_cases().items():
            bench = Bench(args.backend, heads, [(1, context) for context in contexts], window, kv_dtype)
            size = sum(min(context, window or context) for context in contexts) * bench.token_bytes
            report(f"decode {name}{label}", bench.attend(), size, 0)
            if not label and name in ("1 x 640", "256 x 576"):
                report(f"  its plan, once a step ({bench.backend.name})", bench.plan(), 0, 0)
                report("  its write", bench.write(), 0, 0)
        for name, sequences in prefill_cases().items():
            bench = Bench(args.backend, heads, sequences, window, kv_dtype)
            values = LATENT if heads[2] > LATENT else heads[2]
            flops = 2 * seen(sequences, window) * heads[0] * (heads[2] + values)
            report(f"prefill {name}{label}", bench.attend(), 0, flops)
    if args.json:
        record = {"date": date.today().isoformat(), "machine": torch.cuda.get_device_name(), "rows": rows}
        with open(args.json, "w") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()

"""Paged attention on a GPU: time, bytes and FLOPs a second, against what the device can do.

    scripts/bench attention [--json FILE]

Heads as in Llama-3-8B (32 query, 8 key/value, of 128), bfloat16, blocks of 16 in random order. Decode: bytes are the
keys and values that must be read. Prefill: FLOPs are those of the causal half. Times are medians of CUDA events; each
run attends to another part of a cache that is larger than the L2.
"""

from __future__ import annotations

import argparse
import json
import statistics
from datetime import date

import torch

from octavo.attention.base import AttendOptions, AttentionSpec, ForwardBatch
from octavo.attention.triton_backend import TritonAttention

DECODE = [(1, 640), (1, 8192), (8, 640), (64, 640), (256, 576), (64, 4096)]
PREFILL = [2048, 8192, 16384]
HEADS, KV_HEADS, DIM, SIZE = 32, 8, 128, 16


def make_batch(tables: torch.Tensor, count: int, context: int, single: bool) -> ForwardBatch:
    number, device = len(tables), tables.device
    positions = torch.arange(context - count, context, device=device).repeat(number)
    owner = torch.arange(number, device=device).repeat_interleave(count)
    slots = tables[owner, positions // SIZE].long() * SIZE + positions % SIZE
    return ForwardBatch(
        token_ids_T=positions,
        positions_T=positions,
        slots_T=slots,
        query_start_N1=torch.arange(0, number * count + 1, count, dtype=torch.int32, device=device),
        context_lens_N=torch.full((number,), context, dtype=torch.int32, device=device),
        block_table_NB=tables,
        num_single=number if single else 0,
        max_query_len=count,
        max_context_len=context,
        attention=None,  # type: ignore[arg-type]
    )


def measure(number: int, count: int, context: int) -> float:
    """Milliseconds of `run` for `number` sequences of `context` tokens, `count` of them in the step."""
    device = torch.device("cuda")
    width = -(-context // SIZE)
    spec = AttentionSpec(1, HEADS, KV_HEADS, DIM, torch.bfloat16, device, SIZE, context)
    copies = max(1, min(16, (1 << 30) // (number * width * spec.kv_bytes_per_block())))
    backend = TritonAttention(spec, copies * number * width)
    backend.keys.normal_()
    backend.values.normal_()
    order = torch.randperm(copies * number * width, device=device, dtype=torch.int32)
    batches = [make_batch(t, count, context, count == 1) for t in order.view(copies, number, width)]
    qkv = torch.randn(number * count, HEADS + 2 * KV_HEADS, DIM, device=device, dtype=torch.bfloat16)
    q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], 1)

    def run(i: int) -> None:
        backend.write(0, k, v, batches[i % copies])
        backend.attend(0, q, batches[i % copies], AttendOptions(DIM**-0.5))

    for i in range(3):
        run(i)
    torch.cuda.synchronize()
    # In a graph, so that launches do not count.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(copies):
            run(i)
    times = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / copies)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    args = parser.parse_args()
    rows = []
    for number, context in DECODE:
        ms = measure(number, 1, context)
        rate = number * context * 2 * KV_HEADS * DIM * 2 / ms / 1e9
        rows.append({"case": f"decode {number} x {context}", "us": ms * 1e3, "TB/s": rate})
        print(f"decode  {number:4} x {context:6}: {ms * 1e3:9.1f} us  {rate:6.2f} TB/s", flush=True)
    for length in PREFILL:
        ms = measure(1, length, length)
        rate = 2 * length * length * HEADS * DIM / ms / 1e9
        rows.append({"case": f"prefill {length}", "us": ms * 1e3, "TFLOP/s": rate})
        print(f"prefill {length:13}: {ms * 1e3:9.1f} us  {rate:6.1f} TFLOP/s", flush=True)
    if args.json:
        record = {"date": date.today().isoformat(), "machine": torch.cuda.get_device_name(), "rows": rows}
        with open(args.json, "w") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()

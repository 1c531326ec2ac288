"""What the CPU kernels take: attention, linears, quantised linears, and how OpenMP's threads wait for each other.

    scripts/bench cpu_kernels [--threads N] [--only attention chunks linear codes waiting]

Candidates of a row run in turn, round after round; a figure is the least microseconds of a call, in brackets the
GB/s of keys and values or of weights that it read (in `codes` of plain ones, whichever was read). `waiting` starts a
process for each setting, because OpenMP reads its environment once, and also says the median, which is what a busy
machine changes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from octavo.attention.base import AttendOptions, AttentionSpec, ForwardBatch
from octavo.attention.torch_backend import TorchAttention
from octavo.kernels.cpu_linear import PackedLinear, pack_linear
from octavo.quant.methods import select_method
from octavo.quant.pack import to_int4, to_int8

SIZE = 16  # of a block
HEADS = [(2, 4, 32), (4, 8, 64), (8, 1, 64), (8, 4, 128)]  # key/value heads, query heads of each, head size
DECODE = [(1, 128), (1, 2048), (16, 512), (256, 128)]  # sequences, their context
CHUNKS = [(1, 128, 0), (16, 128, 0), (1, 512, 0), (1, 512, 2048)]  # sequences, tokens of each, cached before them
LINEARS = [(256, 384), (256, 1376), (688, 256), (256, 4096), (256, 32000), (2048, 2560), (2048, 11264), (5632, 2048)]
SQUARES = [2048, 4096]
ROWS = [1, 4, 16, 64, 256]
MOST_FLOPS = 12e9  # of one call
NEIGHBOUR = """
import time
while True:
    end = time.perf_counter() + 0.0003
    while time.perf_counter() < end:
        pass
    time.sleep(0.0007)
"""
WAITING = {
    "libgomp's default": {},
    "GOMP_SPINCOUNT=3000": {"GOMP_SPINCOUNT": "3000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}


def least(candidates: dict[str, Callable[[], object]], rounds: int = 9, seconds: float = 0.02) -> dict[str, float]:
    """Microseconds of each."""
    found = dict.fromkeys(candidates, float("inf"))
    for call in candidates.values():
        call()
    for _ in range(rounds):
        for name, call in candidates.items():
            calls, begin = 0, time.perf_counter()
            while (now := time.perf_counter()) < begin + seconds or not calls:
                call()
                calls += 1
            found[name] = min(found[name], (now - begin) / max(calls, 1) * 1e6)
    return found


def show(label: str, candidates: dict[str, Callable[[], object]], size: int) -> None:
    cells = [f"{name} {us:8.0f} ({size / us / 1e3:4.1f})" for name, us in least(candidates).items()]
    print(f"{label:32} {'   '.join(cells)}", flush=True)


def make_batch(number: int, count: int, context: int, blocks: Tensor) -> ForwardBatch:
    width = -(-context // SIZE)
    table_NB = blocks[: number * width].view(number, width)
    positions_T = torch.arange(context - count, context).repeat(number)
    owner_T = torch.arange(number).repeat_interleave(count)
    return ForwardBatch(
        token_ids_T=positions_T,
        positions_T=positions_T,
        slots_T=table_NB[owner_T, positions_T // SIZE].long() * SIZE + positions_T % SIZE,
        query_start_N1=torch.arange(0, number * count + 1, count, dtype=torch.int32),
        context_lens_N=torch.full((number,), context, dtype=torch.int32),
        block_table_NB=table_NB,
        num_single=number if count == 1 else 0,
        max_query_len=count,
        max_context_len=context,
        attention=None,  # type: ignore[arg-type]
        query_lens=[] if count == 1 else [count] * number,
        context_lens=[] if count == 1 else [context] * number,
    )


def step(backend: TorchAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: ForwardBatch) -> None:
    backend.write(0, k, v, batch)
    backend.attend(0, q, batch, AttendOptions(0.1))


def attention(dtype: torch.dtype, heads: tuple[int, int, int], number: int, count: int, context: int) -> None:
    """The backend over scattered and over neighbouring blocks, and for decode what it is not built from."""
    kv_heads, group, dim = heads
    size = number * context * kv_heads * dim * 2 * dtype.itemsize
    if size > 1 << 28:
        return
    blocks = number * -(-context // SIZE)
    spec = AttentionSpec(1, kv_heads * group, kv_heads, dim, dtype, torch.device("cpu"), SIZE, context)
    backend = TorchAttention(spec, blocks)
    backend.layers[0].blocks_XBY.normal_()
    q, k, v = (
        torch.randn(number * count, kv_heads * (group + 2), dim)
        .to(dtype)
        .split_with_sizes((kv_heads * group, kv_heads, kv_heads), 1)
    )
    candidates = {}
    for name, order in (("scattered", torch.randperm(blocks)), ("in a row", torch.arange(blocks))):
        batch = make_batch(number, count, context, order.int())
        backend.plan(batch)
        candidates[name] = lambda batch=batch: step(backend, q, k, v, batch)
    if count == 1:
        keys_NKLD = torch.randn(2, number, kv_heads, context, dim).to(dtype)
        q_NKGD = q.view(number, kv_heads, group, dim)

        def one_by_one() -> None:
            for i in range(number):
                F.scaled_dot_product_attention(q_NKGD[i : i + 1], *keys_NKLD[:, i : i + 1], scale=0.1)

        def bmm() -> Tensor:
            k_XLD, v_XLD = keys_NKLD.flatten(1, 2)
            scores = torch.bmm(q_NKGD.flatten(0, 1), k_XLD.transpose(1, 2))
            return torch.bmm(torch.softmax(scores * 0.1, -1), v_XLD)

        candidates |= {"collected before: one by one": one_by_one, "bmm": bmm}
    show(f"{str(dtype)[6:]:9}{kv_heads}x{group}x{dim:<4}{number:4} x {count:3} of {context:5}", candidates, size)


def linear(dtype: torch.dtype, in_size: int, out_size: int, rows: int) -> None:
    if 2 * in_size * out_size * rows > MOST_FLOPS:
        return
    weight, x = torch.randn(out_size, in_size).to(dtype), torch.randn(rows, in_size).to(dtype)
    candidates = {"F.linear": lambda: F.linear(x, weight)}
    packed = pack_linear(weight)
    if packed is not None:
        candidates["packed"] = lambda: packed(x)
    show(f"{str(dtype)[6:]:9}{in_size:5} -> {out_size:5} {rows:4} rows", candidates, weight.nbytes)


def codes(dtype: torch.dtype, in_size: int, out_size: int, rows: int) -> None:
    """The same product by the way its weight is stored."""
    weight, x = torch.randn(out_size, in_size).to(dtype), torch.randn(rows, in_size).to(dtype)
    product = PackedLinear(weight.clone())
    candidates: dict[str, Callable[[], object]] = {"plain": lambda: product(x)}
    for name, scheme in {"int8": to_int8(weight), "int4": to_int4(weight, 128)}.items():
        method = select_method(scheme, dtype, torch.device("cpu"))[0]
        assert method is not None
        made = method(scheme, dtype)
        candidates[name] = lambda made=made: made(x)
    show(f"{str(dtype)[6:]:9}{in_size:5} -> {out_size:5} {rows:4} rows", candidates, weight.nbytes)


def waiting() -> None:
    """Each setting alone, then beside a process that is busy 30 % of the time, like a server's other half."""
    all_threads = torch.get_num_threads()
    settings = [(1, "", {})] + [(all_threads, name, variables) for name, variables in WAITING.items()]
    for beside in (False, True):
        for threads, name, variables in settings:
            neighbour = subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) if beside else None
            command = [sys.executable, __file__, "--one-waiting", "--threads", str(threads)]
            result = subprocess.run(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True)
            if neighbour is not None:
                neighbour.kill()
                neighbour.wait()
            label = f"{'beside another, ' if beside else ''}{threads} threads {name}"
            print(f"{label:64} {result.stdout.strip()}", flush=True)


def one_waiting() -> None:
    """The linears and small operations of a decode step of a 19M model: how fast threads get to work and back."""
    sizes = [(256, 384), (256, 256), (256, 1376), (688, 256)] * 4 + [(256, 32000)]
    for rows in (1, 64):
        linears = [(torch.randn(rows, i).bfloat16(), pack_linear(torch.randn(o, i).bfloat16())) for i, o in sizes]
        norm, times = torch.ones(256).bfloat16(), []
        end = time.perf_counter() + 2
        while time.perf_counter() < end:
            begin = time.perf_counter()
            for x, packed in linears:
                packed(x)
                F.rms_norm(linears[0][0], (256,), norm).mul_(2)
            times.append((time.perf_counter() - begin) * 1e6)
        times.sort()
        print(f"{rows:3} rows: least {times[0]:6.0f}, median {times[len(times) // 2]:6.0f}", end="    ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", nargs="+", default=["attention", "chunks", "linear", "codes", "waiting"])
    parser.add_argument("--one-waiting", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.one_waiting:
        one_waiting()
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads: microseconds (GB/s)")
    for dtype in (torch.bfloat16, torch.float32):
        if "attention" in options.only:
            for heads in HEADS:
                for number, context in DECODE:
                    attention(dtype, heads, number, 1, context)
        if "chunks" in options.only:
            for heads in HEADS:
                for number, count, before in CHUNKS:
                    attention(dtype, heads, number, count, before + count)
        if "linear" in options.only:
            for in_size, out_size in LINEARS:
                for rows in ROWS:
                    linear(dtype, in_size, out_size, rows)
        if "codes" in options.only:
            for size in SQUARES:
                for rows in (*ROWS, 1024):
                    codes(dtype, size, size, rows)
    if "waiting" in options.only:
        waiting()


if __name__ == "__main__":
    with torch.inference_mode():
        main()

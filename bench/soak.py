"""A random load for some minutes at a high share of memory: nothing may fail, leak or stall.

    scripts/bench soak --shape llama-3-8b --minutes 10 --utilization 0.95

Requests of random lengths, sampling parameters and n arrive in bursts; some are aborted; now and then a prompt of
100,000 tokens comes, while short answers go on. At the end everything must be free again. Prints the rates, the
longest time between two steps' ends with and without a long prompt under way, and the peak of the device's memory.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from octavo import LLM, SamplingParams
from octavo.bench.shapes import SHAPES, write_shape
from octavo.core.request import EngineRequest, pack_ids

LONG = 100_000


def random_params(rng: np.random.Generator, vocab: int, room: int) -> SamplingParams:
    most = int(np.clip(rng.lognormal(5.0, 1.0), 1, room))
    if rng.random() < 0.5:
        return SamplingParams(temperature=0.0, max_tokens=most, ignore_eos=True)
    return SamplingParams(
        temperature=float(rng.uniform(0.2, 1.5)),
        top_p=float(rng.choice([1.0, 0.9, 0.5])),
        top_k=int(rng.choice([0, 1, 40, 1000])),
        min_p=float(rng.choice([0.0, 0.05])),
        presence_penalty=float(rng.choice([0.0, 0.0, 0.5])),
        repetition_penalty=float(rng.choice([1.0, 1.0, 1.1])),
        logprobs=None if rng.random() < 0.9 else 5,
        n=int(rng.choice([1, 1, 1, 3])),
        seed=int(rng.integers(1 << 30)),
        max_tokens=most,
        ignore_eos=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--utilization", type=float, default=0.95)
    parser.add_argument("--context", type=int, default=131_072)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_shape(args.shape, Path(folder), args.context)
        llm = LLM(str(path), load_format="dummy", gpu_memory_utilization=args.utilization)
    core, rng = llm._core, np.random.default_rng(0)
    vocab, room = core.info.vocab_size, min(4096, args.context // 4)
    print(core.info.ledger, flush=True)
    live: set[int] = set()
    longs: set[int] = set()
    uid, tokens, finished, aborted = 1, 0, 0, 0
    times: dict[bool, list[float]] = {False: [], True: []}
    start = last = time.perf_counter()
    next_burst = next_long = start
    told = 0
    while (now := time.perf_counter()) - start < 60 * args.minutes or core.has_work:
        arriving = now - start < 60 * args.minutes
        if now - start >= 60 * (told + 1):
            told += 1
            print(
                f"{told} min: {finished} answers, {aborted} aborted, {tokens} tokens; {len(live)} wait or run",
                flush=True,
            )
        if arriving and now >= next_burst and len(live) < 3000:
            for _ in range(int(rng.integers(1, 120))):
                length = int(np.clip(rng.lognormal(5.5, 1.2), 1, room))
                params = random_params(rng, vocab, room)
                prompt = rng.integers(10, vocab - 10, length).astype(np.int32)
                request = EngineRequest(uid, pack_ids(prompt), params, params.max_tokens, [], [], stream=True)
                core.add(request)
                live |= set(range(uid, uid + params.n))
                uid += params.n
            next_burst = now + float(rng.exponential(1.0))
        if arriving and now >= next_long and args.context > LONG and not longs:
            params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
            prompt = rng.integers(10, vocab - 10, LONG).astype(np.int32)
            core.add(EngineRequest(uid, pack_ids(prompt), params, 8, [], [], stream=True))
            live.add(uid)
            longs.add(uid)
            uid, next_long = uid + 1, now + 40
        if live and rng.random() < 0.02:
            victims = rng.choice(sorted(live), size=min(len(live), 3), replace=False).tolist()
            core.abort(victims)
            live -= set(victims)
            longs -= set(victims)
            aborted += len(victims)
        outputs = core.step()
        if outputs is None:
            continue
        ended = time.perf_counter()
        times[bool(longs)].append(ended - last)
        last = ended
        tokens += len(outputs.tokens) // 4
        for end in outputs.finished:
            assert str(end.reason) == "length", f"a request ended with {end.reason}"
            live.discard(end.uid)
            longs.discard(end.uid)
            finished += 1
    seconds = time.perf_counter() - start
    core.check_integrity()
    assert not live and core.scheduler.cache.pool.num_held == 0 and core.scheduler.rows.num_active == 0
    print(f"{seconds:.0f} s: {finished} answers, {aborted} aborted, {tokens / seconds:.0f} tokens/s; all is free again")
    for long, name in ((False, "without"), (True, "with")):
        if times[long]:
            ordered = sorted(times[long])
            middle, high = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
            print(
                f"step to step {name} a long prompt: median {middle * 1e3:.1f} ms, "
                f"p99 {high * 1e3:.1f}, longest {ordered[-1] * 1e3:.1f} ({len(ordered)} steps)"
            )
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        most = torch.cuda.max_memory_reserved()
        print(f"device memory: {most / 2**30:.2f} GiB reserved at most, {free / 2**30:.2f} of {total / 2**30:.2f} free")


if __name__ == "__main__":
    main()

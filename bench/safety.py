"""What safety costs: the audit hook, the look at the blocks' bookkeeping, and the checks of a request.

    python bench/safety.py [--json FILE]

The hook (`core/guard.py`): how many audit events a step of the demo model raises, and what one costs with the hook and
without. The bookkeeping (`Scheduler.audit`, every 1,000 steps): its time for full caches of some sizes, against 1,000
steps of the shortest kind that was measured for that batch. Checks: a body's way to an `EngineRequest`, without what is
work that it asked for: tokenizing, and packing the tokens for the engine, which is told beside it. Medians; shares are
of the time of steps, so a busy machine changes little.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from octavo import LLM, SamplingParams
from octavo.core.config import CacheConfig, SchedulerConfig
from octavo.core.plan import StepResult
from octavo.core.request import EngineRequest, pack_ids
from octavo.engine.build import EngineInfo
from octavo.engine.intake import Intake
from octavo.scheduler.scheduler import Scheduler
from octavo.server import fields
from octavo.server.generation import sampling_params
from octavo.server.protocol import ChatRequest, CompletionRequest

AUDIT_STEPS = 1000
# (rows, blocks, milliseconds of the shortest step that was measured for such a batch: docs/benchmarks.md, one H200)
CACHES = ((1, 20_000, 0.79), (256, 20_000, 2.59), (1024, 100_000, 11.9))
HOOK = """
import sys, time
from octavo.core import guard
if sys.argv[1] == "on":
    guard.install()
begin = time.perf_counter()
for _ in range(1_000_000):
    sys.audit("octavo.nothing", 1)
print(time.perf_counter() - begin)
"""


def hook() -> dict[str, float]:
    events: dict[str, int] = {}
    llm = LLM(dtype="float32", num_kv_blocks=2048)
    params = SamplingParams(max_tokens=200, ignore_eos=True, temperature=1.0)
    llm.generate(["Once"] * 16, params)
    counting = True

    def count(event: str, args: object) -> None:
        if counting:
            events[event] = events.get(event, 0) + 1

    sys.addaudithook(count)
    begin = time.perf_counter()
    llm.generate(["Once"] * 16, params)
    step = (time.perf_counter() - begin) / 200
    counting = False
    off, on = (
        min(float(subprocess.check_output([sys.executable, "-c", HOOK, mode])) for _ in range(5))
        for mode in ("off", "on")
    )
    print("events of 200 steps:", ", ".join(f"{name} {n}" for name, n in sorted(events.items(), key=lambda e: -e[1])))
    each, per_step = (on - off) * 1e3, sum(events.values()) / 200
    share = per_step * each / (step * 1e9)
    print(f"hook: {each:.0f} ns an event, {per_step:.1f} events a step of {step * 1e3:.2f} ms: {share:.4%}")
    return {"ns_per_event": each, "events_per_step": per_step, "step_ms": step * 1e3, "share": share}


def full(rows: int, blocks: int) -> Scheduler:
    """A scheduler whose rows all run, and hold what there is."""
    length = 16 * (blocks // rows - 2)
    cache = CacheConfig(blocks, 16, rows, length + 16)
    scheduler = Scheduler(SchedulerConfig(blocks * 16), cache)
    for i in range(rows):
        params = SamplingParams(max_tokens=16, ignore_eos=True)
        prompt = np.random.default_rng(i).integers(0, 30_000, length)
        scheduler.add(EngineRequest(i + 1, pack_ids(prompt), params, 16, [], []))
    while scheduler.rows.num_active < rows:
        plan = scheduler.schedule()
        assert plan is not None
        scheduler.update(plan, StepResult(np.full(len(plan.sampled_S), 7, np.int32)))
    return scheduler


def bookkeeping(rows: int, blocks: int, step_ms: float) -> dict[str, float]:
    scheduler = full(rows, blocks)
    taken = median(scheduler.audit, 50) * 1e3
    share = taken / (AUDIT_STEPS * step_ms)
    print(
        f"bookkeeping: {rows} rows, {blocks} blocks: {taken:.2f} ms; of {AUDIT_STEPS} steps of {step_ms} ms {share:.4%}"
    )
    return {"rows": rows, "blocks": blocks, "ms": taken, "step_ms": step_ms, "share": share}


def median(work: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def validation() -> dict[str, dict[str, float]]:
    tokenizer = LLM(dtype="float32", num_kv_blocks=256).get_tokenizer()
    info = EngineInfo(131_072, 10**7, tokenizer.vocab_size, 1000, 16, 256, 2048, True, "cpu", "float32", "", [], [])
    intake = Intake(tokenizer, info)
    service: Any = SimpleNamespace(defaults={}, form_options=None)  # what parameters are read against
    chat = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    everything = {
        **{"temperature": 0.7, "top_p": 0.9, "top_k": 50, "min_p": 0.05, "seed": 1, "n": 2, "stop": ["\n\n", "END"]},
        **{"presence_penalty": 0.1, "frequency_penalty": 0.1, "logit_bias": {str(i): 1.0 for i in range(20)}},
        **{"max_tokens": 100, "stream": True, "stream_options": {"include_usage": True}, "stop_token_ids": [1, 2]},
    }
    bodies = {
        "a short chat": (ChatRequest, {**chat, "max_tokens": 100}, 20),
        "a chat with all parameters": (ChatRequest, {**chat, **everything}, 20),
        "a chat of 8,000 words": (
            ChatRequest,
            {"messages": chat["messages"] + [{"role": "user", "content": "word " * 8000}]},
            8000,
        ),
        "a completion of 512 token ids": (CompletionRequest, {"prompt": [7] * 512, "max_tokens": 100}, 512),
    }
    found = {}
    for name, (kind, body, length) in bodies.items():
        data, ids = json.dumps(body).encode(), [7] * length

        def check(data: bytes = data, kind: type = kind, ids: list[int] = ids) -> object:
            request, _, _ = fields.decode(data, kind)
            params = sampling_params(request, service)
            # What a tokenizer made needs no look.
            return intake.build(intake.encode(request.prompt) if kind is CompletionRequest else ids, params)

        packing = median(functools.partial(pack_ids, ids), 2000) * 1e6
        found[name] = {"checks_us": median(check, 2000) * 1e6 - packing, "packing_us": packing}
        print(f"checks: {name}: {found[name]['checks_us']:.0f} us, and {packing:.0f} us to pack its tokens")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    options = parser.parse_args()
    found = {
        "hook": hook(),
        "bookkeeping": [bookkeeping(*cache) for cache in CACHES],
        "validation": validation(),
    }
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()

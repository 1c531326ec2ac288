"""Where the time of a step goes: the host's phases, the GPU, and from the end of one step to the end of the next.

    with Anatomy(core) as anatomy:
        ...  # steps
    print(*report(anatomy.summary(device)), sep="\n")

It puts clocks around the phases of an engine core in this process: 30 us of host time a step of 256 rows. A phase's
time is without the phases inside it. Where a step runs as a CUDA graph, upload, forward and sample are one launch,
`graph`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from octavo.bench.hardware import Cost, Device, Use, scaled
from octavo.bench.metrics import line
from octavo.core.plan import StepPlan, StepResult

if TYPE_CHECKING:
    from octavo.engine.core import EngineCore

HOST = ("schedule", "upload", "graph", "forward", "sample", "update")  # what the host does; it also waits
KINDS = {"decode": "Steps of decodes only", "prompts": "Steps with prompt tokens"}


@dataclass(slots=True)
class Step:
    kind: str  # of KINDS
    tokens: int
    moved: int  # bytes that had to move
    flops: int
    begun: float  # times of the monotonic clock
    ended: float = 0.0
    seconds: float = 0.0  # since the step before it ended, or since it began
    phases: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    events: tuple[Any, Any] | None = None  # of the GPU, around its work


class _Handle:
    """A step under way whose waiting is timed."""

    def __init__(self, handle: Any, step: Step, ended: Callable[[Step], None]) -> None:
        self._handle, self._step, self._ended = handle, step, ended

    def wait(self) -> StepResult:
        start = time.perf_counter()
        result: StepResult = self._handle.wait()
        self._step.ended = time.perf_counter()
        self._step.phases["wait"] += self._step.ended - start
        self._ended(self._step)
        return result


class Anatomy:
    def __init__(self, core: EngineCore) -> None:
        runner: Any = core.runner  # of an engine that generates
        model = runner.model
        self.core = core
        self.cost = Cost(model.spec, model.num_bytes, model.dtype.itemsize)
        self.on_gpu = runner.device.type == "cuda"
        self.steps: list[Step] = []  # that have ended
        self._open: dict[int, Step] = {}  # by the id of the plan, which lives until the step ends
        self._inner: list[float] = []  # time of the phases inside each open phase
        self._phases: dict[str, float] = defaultdict(float)
        self._last_end = 0.0
        self._clocked: list[tuple[Any, str]] = []

    def __enter__(self) -> Anatomy:
        scheduler, runner = self.core.scheduler, cast(Any, self.core.runner)
        if runner.decode_graphs is not None:
            self._clock(runner, "_replay", "graph")
        self._clock(runner.model, "forward", "forward")
        self._clock(runner, "_sample", "sample")
        self._replace(scheduler, "schedule", self._schedule)
        self._replace(runner, "execute", self._execute)
        self._replace(scheduler, "update", self._update)
        return self

    def __exit__(self, *error: object) -> None:
        for owner, name in self._clocked:
            delattr(owner, name)  # what the class says is back
        self._clocked.clear()

    # The phases

    def _replace(self, owner: Any, name: str, call: Callable[..., Any]) -> None:
        inner = getattr(owner, name)
        setattr(owner, name, lambda *args: call(inner, *args))
        self._clocked.append((owner, name))

    def _clock(self, owner: Any, name: str, phase: str) -> None:
        self._replace(owner, name, lambda call, *args: self._time(phase, call, *args))

    def _time(self, phase: str, call: Callable[..., Any], *args: Any) -> Any:
        self._inner.append(0.0)
        start = time.perf_counter()
        try:
            return call(*args)
        finally:
            took = time.perf_counter() - start
            self._phases[phase] += took - self._inner.pop()
            if self._inner:
                self._inner[-1] += took

    def _schedule(self, call: Callable[[], StepPlan | None]) -> StepPlan | None:
        self._phases.clear()
        plan: StepPlan | None = self._time("schedule", call)
        return plan

    def _execute(self, call: Callable[[StepPlan], Any], plan: StepPlan) -> _Handle:
        moved, flops = self.cost.step(plan.starts_N, plan.counts_N, len(plan.sampled_S))
        kind = "decode" if plan.num_decodes == len(plan.rows_N) else "prompts"
        step = Step(kind, plan.num_tokens, moved, flops, time.perf_counter())
        before = self._event()
        handle = self._time("upload", call, plan)
        if before is not None:
            step.events = (before, self._event())
        step.phases.update(self._phases)
        self._open[id(plan)] = step
        return _Handle(handle, step, self._end)

    def _update(self, call: Callable[[StepPlan, StepResult], Any], plan: StepPlan, result: StepResult) -> Any:
        self._phases.clear()
        outputs = self._time("update", call, plan, result)
        step = self._open.pop(id(plan), None)
        if step is not None:  # None: it began before the clocks were there
            step.phases["update"] += self._phases["update"]
            self.steps.append(step)
        return outputs

    def _end(self, step: Step) -> None:
        step.seconds = step.ended - max(step.begun, self._last_end)
        self._last_end = step.ended

    def _event(self) -> Any:
        if not self.on_gpu:
            return None
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    # What came of it

    def use(self, seconds: float, device: Device) -> Use:
        """Of all steps, over the time that the caller measured."""
        return Use(sum(s.moved for s in self.steps), sum(s.flops for s in self.steps), seconds, device)

    def summary(self, device: Device) -> dict[str, dict[str, Any]]:
        """By kind of step: means in milliseconds, and use of the device while such steps ran."""
        found = {}
        for kind in KINDS:
            steps = [step for step in self.steps if step.kind == kind]
            if not steps:
                continue
            seconds = sum(s.seconds for s in steps)
            use = Use(sum(s.moved for s in steps), sum(s.flops for s in steps), seconds, device)
            spent = {n: sum(s.phases.get(n, 0.0) for s in steps) * 1e3 / len(steps) for n in (*HOST, "wait")}
            gpu = [s.events[0].elapsed_time(s.events[1]) for s in steps if s.events is not None]
            found[kind] = {
                "steps": len(steps),
                "tokens_per_step": sum(s.tokens for s in steps) / len(steps),
                "mean_ms": seconds * 1e3 / len(steps),
                "median_ms": float(np.median([s.seconds for s in steps])) * 1e3,
                "host_ms": {name: value for name, value in spent.items() if value > 0},
                "gpu_ms": float(np.mean(gpu)) if gpu else None,
                **use.record(),
            }
        return found

    def timeline(self) -> dict[str, list[float]]:
        """Of each step: when it ended, its milliseconds, and whether it was of decodes only."""
        start = self.steps[0].begun if self.steps else 0.0
        return {
            "ended": [s.ended - start for s in self.steps],
            "ms": [s.seconds * 1e3 for s in self.steps],
            "decode": [float(s.kind == "decode") for s in self.steps],
        }


def report(summary: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for kind, found in summary.items():
        lines.append(f"{' ' + KINDS[kind] + ' ':-^50}")
        lines.append(line("Steps:", found["steps"]))
        lines.append(line("Tokens a step:", found["tokens_per_step"]))
        lines.append(line("Mean step (ms):", found["mean_ms"], ".3f"))
        lines.append(line("Median step (ms):", found["median_ms"], ".3f"))
        if found["gpu_ms"] is not None:
            lines.append(line("GPU (ms):", found["gpu_ms"], ".3f"))
        lines += [line(f"Host, {name} (ms):", value, ".3f") for name, value in found["host_ms"].items()]
        for label, value, share, unit in (
            ("Bandwidth use:", found["bandwidth"], found["bandwidth_share"], "B/s"),
            ("Matrix-rate use:", found["flop_rate"], found["flop_share"], "FLOP/s"),
        ):
            lines.append(f"{label:<40} {scaled(value, unit)}{'' if share is None else f', {share:.1%}'}")
    return lines

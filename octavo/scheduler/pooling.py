"""Decides which prompts a step of a pooling engine reads: whole ones, in order, while its budget of tokens lasts.

Nothing is kept from one step to the next, so there are no rows, no blocks and nothing to preempt; a prompt longer than
the budget has a step of its own. The interface is that of `octavo.scheduler.scheduler.Scheduler`, so that the engine's
loop is the same.

A step that fails is cut into halves, which run apart until the one that fails alone is found: it fails, nobody else.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque

import numpy as np

from octavo.core.outputs import Fault, Finished, FinishReason, Pooled, Stats, StepOutputs
from octavo.core.picture import MAX_LISTED, CacheMap, Pace, Picture, Sight
from octavo.core.plan import LongArray, PoolingPlan, PoolingResult
from octavo.core.request import EngineRequest
from octavo.scheduler.fairness import FairShare

log = logging.getLogger(__name__)

_Key = tuple[int, int, int]  # priority, turn of its tenant, arrival


class PoolingScheduler:
    def __init__(self, max_tokens: int, max_sequences: int, policy: str = "fcfs") -> None:
        self.max_tokens, self.max_sequences, self.policy = max_tokens, max_sequences, policy
        self.fair = FairShare() if policy == "fair" else None
        self._live: dict[int, tuple[_Key, EngineRequest]] = {}  # every request that is not over, by uid
        self._queue: list[tuple[_Key, int]] = []  # a heap; entries of requests that are gone are skipped
        self._apart: deque[list[int]] = deque()  # groups of a step that failed
        self._running: dict[int, None] = {}  # uids of steps under way
        self._late: list[Finished] = []  # ends that no step brought about, until they are told
        self._arrivals = 0

    # Requests come and go

    def add(self, request: EngineRequest) -> None:
        assert request.uid not in self._live and request.pooling is not None
        self._arrivals += 1
        start = 0
        if self.fair is not None:
            start, _ = self.fair.arrive(request.tenant, len(request.prompt) // 4, 0, 0)
        key = (0 if self.policy == "fcfs" else request.priority, start, self._arrivals)
        self._live[request.uid] = (key, request)
        heapq.heappush(self._queue, (key, request.uid))

    def abort(self, uids: list[int]) -> None:
        """Forgets the requests wherever they are. Unknown uids are ignored."""
        for uid in uids:
            self._live.pop(uid, None)
            self._running.pop(uid, None)

    @property
    def has_work(self) -> bool:
        return bool(self._live or self._late)

    @property
    def stuck(self) -> bool:
        """Something waits that no step could take: never, since any prompt fits a step of its own."""
        return False

    # Deciding, and taking in what a step gave

    def schedule(self) -> PoolingPlan | None:
        """The next step, or None if nothing waits."""
        chosen: list[EngineRequest] = []
        while self._apart and not chosen:
            chosen = [self._live[uid][1] for uid in self._apart.popleft() if uid in self._live]
        chosen = chosen or self._next()
        if not chosen:
            return None
        self._running.update((request.uid, None) for request in chosen)
        return _plan(chosen)

    def _next(self) -> list[EngineRequest]:
        """Those that are served first."""
        chosen: list[EngineRequest] = []
        tokens = 0
        while self._queue and len(chosen) < self.max_sequences:
            key, uid = self._queue[0]
            if uid not in self._live:
                heapq.heappop(self._queue)
                continue
            request = self._live[uid][1]
            length = len(request.prompt) // 4
            if chosen and tokens + length > self.max_tokens:
                break
            heapq.heappop(self._queue)
            if self.fair is not None:
                self.fair.begin(key[1])
            chosen.append(request)
            tokens += length
        return chosen

    def update(self, plan: PoolingPlan, result: PoolingResult) -> StepOutputs:
        outputs = StepOutputs(finished=self._late)
        self._late = []
        for uid, values in zip(plan.uids_N.tolist(), result.values, strict=True):
            if uid not in self._running:
                continue
            request = self._remove(uid)
            outputs.admitted.append(uid)
            outputs.started.append((uid, 0))
            if np.isfinite(values).all():
                outputs.pooled.append(Pooled(uid, values.tobytes(), len(values) if values.ndim > 1 else 0))
                outputs.finished.append(Finished(uid, FinishReason.STOP))
            else:
                log.error("request %r failed: what it was given is not finite", request.label)
                outputs.finished.append(Finished(uid, FinishReason.ERROR, fault=Fault.NAN_LOGITS))
        outputs.stats = self.take_stats(plan.num_tokens)
        return outputs

    def _remove(self, uid: int) -> EngineRequest:
        del self._running[uid]
        return self._live.pop(uid)[1]

    def wait(self, seconds: float) -> StepOutputs | None:
        """When there is no step to do: tells of what has ended without one."""
        if not self._late:
            return None
        outputs = StepOutputs(finished=self._late, stats=self.take_stats())
        self._late = []
        return outputs

    # When something goes wrong

    def retreat(self, plan: PoolingPlan | None, error: Exception, exhausted: bool) -> None:
        """The step could not be started. Raises the error again if there is nobody without whom it could go better."""
        if plan is None:
            raise error
        uids = [uid for uid in plan.uids_N.tolist() if uid in self._running]
        for uid in uids:
            del self._running[uid]
        labels = ", ".join(repr(self._live[uid][1].label) for uid in uids[:64])
        log.error("a step could not be prepared because of %s", labels, exc_info=error)
        if len(uids) > 1:
            half = len(uids) // 2
            self._apart.extend((uids[:half], uids[half:]))
        for uid in uids if len(uids) == 1 else ():
            del self._live[uid]
            fault = Fault.NO_MEMORY if exhausted else Fault.INTERNAL
            self._late.append(Finished(uid, FinishReason.ERROR, fault=fault))

    def audit(self) -> int:
        """There are no blocks whose bookkeeping could be wrong."""
        return 0

    def expect_grammar(self) -> None:
        """Nothing is generated."""

    # Telling

    def uids_of(self, plan: PoolingPlan) -> LongArray:
        return plan.uids_N

    def take_stats(self, step_tokens: int = 0) -> Stats:
        running = len(self._running)
        return Stats(running=running, waiting=len(self._live) - running, step_tokens=step_tokens)

    def picture(self, pace: Pace) -> Picture:
        waiting = sorted(entry for uid, entry in self._live.items() if uid not in self._running)
        running = [self._live[uid][1] for uid in self._running]
        return Picture(
            num_running=len(running),
            num_waiting=len(waiting),
            free_blocks=0,
            held_blocks=0,
            cached_blocks=0,
            withdrawn_blocks=0,
            block_size=0,
            pace=pace,
            running=[_sight(request) for request in running[:MAX_LISTED]],
            waiting=[_sight(request) for _, request in waiting[:MAX_LISTED]],
            map=CacheMap(0, 0, b"", b"", b"", b"", b"", b""),
        )

    def describe(self) -> str:
        return f"{len(self._running)} requests run and {len(self._live) - len(self._running)} wait"

    def check_integrity(self) -> None:
        assert self._running.keys() <= self._live.keys(), "a request runs that is over"
        queued = {uid for _, uid in self._queue} | {uid for group in self._apart for uid in group}
        assert self._live.keys() <= queued | self._running.keys(), "a request is lost"


def _plan(requests: list[EngineRequest]) -> PoolingPlan:
    prompts = [request.prompt_ids() for request in requests]
    counts = np.array([len(prompt) for prompt in prompts], np.int32)
    types = None
    if any(request.token_types for request in requests):
        types = np.zeros(int(counts.sum()), np.int32)
        for start, request in zip(np.cumsum(counts) - counts, requests, strict=True):
            found = np.frombuffer(request.token_types, np.uint8)
            types[start : start + len(found)] = found
    return PoolingPlan(
        uids_N=np.array([request.uid for request in requests], np.int64),
        counts_N=counts,
        tokens_T=np.concatenate(prompts),
        types_T=types,
        params=[request.pooling for request in requests if request.pooling is not None],
    )


def _sight(request: EngineRequest) -> Sight:
    length = len(request.prompt) // 4
    return Sight(
        uid=request.uid,
        id=request.label,
        key=request.tenant,
        prompt_tokens=length,
        cached_tokens=0,
        computed_tokens=0,
        known_tokens=length,
        max_tokens=0,
        preemptions=0,
    )

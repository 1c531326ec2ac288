"""Rows with a grammar against the stamped runner: masks that come late, in random walks with preemption and forks.

The stand-in for the matcher makes a mask of what was generated, so that the runner can tell whether each row is sampled
with the mask of exactly the state that it is in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from octavo.core.config import CacheConfig, SchedulerConfig
from octavo.core.plan import StepPlan, StepResult
from octavo.core.request import EngineRequest
from octavo.grammar.messages import State
from octavo.scheduler.scheduler import Scheduler
from tests.scheduler.test_model import make, seeds_of
from tests.stamped_runner import Engine, StampedRunner, reference


def mask_of(answer: list[int]) -> list[int]:
    return [len(answer), sum((i + 1) * token for i, token in enumerate(answer))]


class LateGrammars:
    """A grammar "n" is complete after n tokens; one of "-n" fails after as many."""

    def __init__(self, rows: int, seed: int) -> None:
        self.masks = np.zeros((rows, 2), np.int32)
        self.random = np.random.default_rng(seed)
        self.answers: dict[int, list[int]] = {}
        self.limits: dict[int, int] = {}
        self.due: dict[int, int] = {}  # polls until a row's state is told

    @property
    def num_open(self) -> int:
        return len(self.answers)

    @property
    def pending(self) -> bool:
        return bool(self.due)

    def open(self, row: int, epoch: int, request: EngineRequest, generated: np.ndarray) -> None:
        assert row not in self.answers, "the row is still open"
        self.answers[row], self.limits[row] = generated.tolist(), int(request.grammar)
        self.due[row] = int(self.random.integers(0, 5))

    def advance(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            assert row not in self.due, "a token for a state that is not known yet"
            self.answers[row].append(token)
            self.due[row] = int(self.random.integers(0, 4))

    def close(self, row: int) -> None:
        del self.answers[row], self.limits[row]
        self.due.pop(row, None)

    def poll(self, seconds: float) -> Iterator[tuple[int, State, str]]:
        for row in list(self.due):
            self.due[row] -= 1
            if self.due[row] >= 0:
                continue
            del self.due[row]
            answer, limit = self.answers[row], self.limits[row]
            if len(answer) >= abs(limit):
                yield row, State.COMPLETE if limit > 0 else State.FAILED, "" if limit > 0 else "it fails"
            else:
                self.masks[row] = mask_of(answer)
                yield row, State.READY, ""

    def wait(self, seconds: float) -> None:
        pass


class MaskedRunner(StampedRunner):
    def __init__(self, cache: CacheConfig) -> None:
        super().__init__(cache)
        self.prompt_len: dict[int, int] = {}  # of the rows with a grammar
        self.masks = 0

    def execute(self, plan: StepPlan) -> StepResult:
        for join in plan.joins:
            self.prompt_len.pop(join.row, None)
            if join.masked:
                self.prompt_len[join.row] = join.prompt_len
        result = super().execute(plan)
        found = dict(zip(plan.mask_rows_M.tolist(), plan.masks_MW.tolist(), strict=True))
        for i in plan.sampled_S.tolist():
            row, end = int(plan.rows_N[i]), int(plan.starts_N[i] + plan.counts_N[i])
            if row in self.prompt_len:
                answer = self.tokens[row][self.prompt_len[row] : end]
                assert found.pop(row) == mask_of(answer), "sampled with the mask of another state"
                self.masks += 1
        assert not found, "a mask for a row that is not sampled"
        return result


class MaskedEngine(Engine):
    def step(self) -> bool:
        if super().step():
            return True
        outputs = self.scheduler.wait(0)
        if outputs is not None:
            for end in outputs.finished:
                assert end.uid not in self.finished
                self.finished[end.uid] = str(end.reason)
                if end.tokens:
                    self.answers[end.uid] = np.frombuffer(end.tokens, np.int32).tolist()
        return self.scheduler.grammars.pending or outputs is not None


REQUESTS = st.lists(
    st.fixed_dictionaries(
        {
            "length": st.integers(1, 20),
            "most": st.integers(1, 30),
            "n": st.sampled_from([1, 1, 2, 3]),
            "stop": st.sampled_from([(), (3, 7, 11)]),
            "stream": st.booleans(),
            "limit": st.sampled_from([0, 0, 1, 2, 5, 12, 40, -4]),
            "steps": st.integers(0, 12),
            "abort": st.sampled_from([False, False, False, True]),
        }
    ),
    min_size=1,
    max_size=10,
)


ONE: dict[str, Any] = {
    "length": 1,
    "most": 1,
    "n": 1,
    "stop": (),
    "stream": False,
    "limit": 0,
    "steps": 0,
    "abort": False,
}


@settings(max_examples=150, deadline=None)
# A row that joins beside steady decodes and has nothing to compute until its mask is there.
@example([ONE, ONE, ONE, {**ONE, "most": 4}, {**ONE, "steps": 4}, {**ONE, "limit": 1}], 4, 2, False, 0)
@given(REQUESTS, st.integers(4, 16), st.integers(1, 6), st.booleans(), st.integers(0, 2**32))
def test_each_row_is_sampled_with_its_own_mask(
    requests: list[dict[str, Any]], blocks: int, rows: int, overlap: bool, seed: int
):
    cache = CacheConfig(blocks, 4, rows, blocks * 4)
    grammars: Any = LateGrammars(rows, seed)
    engine = MaskedEngine(Scheduler(SchedulerConfig(rows + 6), cache, grammars), MaskedRunner(cache), overlap)
    wanted: dict[int, tuple[list[int], str]] = {}
    aborted: set[int] = set()
    uid = 1
    for spec in requests:
        most = min(spec["most"], blocks * 4 - spec["length"])
        if most < 1:
            continue
        prompt = ([spec["length"] % 3] * 5 + [4, 5, 6, 7] * 4)[: spec["length"]]
        request = make(uid, prompt, most, n=spec["n"], stop=spec["stop"], seed=uid, stream=spec["stream"])
        limit = spec["limit"]
        request.grammar = str(limit) if limit else ""
        engine.scheduler.add(request)
        for each, own in seeds_of(engine, request).items():
            answer, reason = reference(request, own)
            if limit and len(answer) > abs(limit):
                answer, reason = answer[: abs(limit)], "stop" if limit > 0 else "error"
            elif limit == len(answer):
                reason = "stop"  # full and complete
            wanted[each] = answer, reason
        if spec["abort"]:
            engine.scheduler.abort([uid])
            aborted.add(uid)
        uid += spec["n"]
        for _ in range(spec["steps"]):
            engine.step()
            engine.scheduler.check_integrity()
    engine.drain()
    engine.scheduler.check_integrity()
    assert not grammars.answers and not grammars.due, "a matcher is left over"
    for each, (answer, reason) in wanted.items():
        if each not in aborted:
            assert (engine.answers.get(each, []), engine.finished[each]) == (answer, reason)

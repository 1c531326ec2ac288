"""A runner without a model that proves the scheduler and the cache right.

Every KV slot stores a stamp: a hash of the salt and of all tokens up to the one it belongs to. Before a row's tokens
are computed, each slot it is going to attend to must hold the stamp of exactly that prefix: a slot that is stale,
foreign or not yet written fails at once. The "sampled" token is a function of the stamp, so the answer to a prompt
is known beforehand and must come out whatever was chunked, shared, forked or preempted.

With `lag=1` a step's result is handed out after the next one was executed, as on a GPU.
"""

from __future__ import annotations

import numpy as np

from octavo.core.config import CacheConfig
from octavo.core.plan import StepPlan, StepResult
from octavo.core.request import EngineRequest
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.thinking import THINKING_OPENS

_MASK = (1 << 62) - 1


def mix(stamp: int, token: int) -> int:
    return ((stamp ^ (token + 0x9E37)) * 0x5851F42D4C957F2D + 0x14057B7EF767814F) & _MASK


def stamps_of(tokens: list[int], salt: str = "") -> list[int]:
    stamp, stamps = 1 + sum(ord(c) * 131**i for i, c in enumerate(salt)), []
    for token in tokens:
        stamp = mix(stamp, token)
        stamps.append(stamp)
    return stamps


def next_token(stamp: int, seed: int, vocab: int) -> int:
    """What follows a prefix; `seed` makes the n answers to one prompt differ."""
    return (mix(stamp, seed & 0xFFFF) >> 7) % vocab


class StampedRunner:
    def __init__(self, cache: CacheConfig, vocab: int = 50, salts: dict[int, str] | None = None) -> None:
        self.block_size, self.vocab = cache.block_size, vocab
        self.windows, self.width = cache.windows, cache.blocks_per_row
        self.stamps = np.zeros((cache.num_blocks, cache.block_size), np.int64)
        self.writer = np.full(cache.num_blocks, -1)  # row and group that wrote the block in the current step
        self.table = np.full((cache.max_rows, len(cache.windows) * cache.blocks_per_row), -1)
        self.tokens: list[list[int]] = [[] for _ in range(cache.max_rows)]
        self.expected: list[list[int]] = [[] for _ in range(cache.max_rows)]
        self.seeds = [0] * cache.max_rows
        self.salt_of_row = [""] * cache.max_rows
        self.last = np.zeros(cache.max_rows, np.int64)
        self.previous_rows: np.ndarray | None = None
        self.reads = 0
        self.salt_of = lambda row: ""  # set by the test: the salt of a row that has just been joined

    def execute(self, plan: StepPlan) -> StepResult:
        if plan.steady:
            assert np.array_equal(plan.rows_N, self.previous_rows), "steady, but not the rows of the step before"
            assert not plan.joins and plan.num_decodes == len(plan.rows_N)
        self.previous_rows = plan.rows_N.copy()
        assert len(np.unique(plan.rows_N)) == len(plan.rows_N), "a row is planned twice"
        for join in plan.joins:
            self.tokens[join.row] = join.tokens.tolist()
            self.seeds[join.row] = join.seed
            self.salt_of_row[join.row] = self.salt_of(join.row)
            self.expected[join.row] = stamps_of(self.tokens[join.row], self.salt_of_row[join.row])
        self.table[plan.table_rows_D, plan.table_index_D] = plan.table_blocks_D
        self.stamps[plan.copy_dst_P] = self.stamps[plan.copy_src_P]
        self.writer[:] = -1
        chunk = 0
        for i, row in enumerate(plan.rows_N.tolist()):
            start, count = int(plan.starts_N[i]), int(plan.counts_N[i])
            if i < plan.num_decodes:
                assert count == 1
                self._append(row, start, int(self.last[row]))
            else:
                given = plan.chunk_tokens_C[chunk : chunk + count].tolist()
                assert given == self.tokens[row][start : start + count], "a chunk of other tokens than the row's"
                targets = plan.chunk_targets_C[chunk : chunk + count].tolist()
                follow = self.tokens[row][start + 1 : start + count + 1]
                assert targets == follow + [-1] * (count - len(follow)), "wrong targets"
                chunk += count
            self._compute(row, start, count)
        assert chunk == len(plan.chunk_tokens_C)
        tokens = []
        for i in plan.sampled_S.tolist():
            row, end = int(plan.rows_N[i]), int(plan.starts_N[i] + plan.counts_N[i])
            token = next_token(self.expected[row][end - 1], self.seeds[row], self.vocab)
            self.last[row] = token
            tokens.append(token)
        return StepResult(np.array(tokens, np.int32))

    def _append(self, row: int, start: int, token: int) -> None:
        # A dropped result leaves a token too many; what is computed now decides.
        del self.tokens[row][start:], self.expected[row][start:]
        assert len(self.tokens[row]) == start, "a decode skips a position"
        self.tokens[row].append(token)
        before = self.expected[row][-1] if start else stamps_of([0], self.salt_of_row[row])[0]
        self.expected[row].append(mix(before, token))

    def _compute(self, row: int, start: int, count: int) -> None:
        positions = np.arange(start, start + count)
        expected = np.array(self.expected[row][: start + count])
        for group, window in enumerate(self.windows):
            table = self.table[row, group * self.width : (group + 1) * self.width]
            blocks = table[positions // self.block_size]
            for block in np.unique(blocks).tolist():
                assert self.writer[block] in (-1, row * len(self.windows) + group), "two write one block in a step"
                self.writer[block] = row * len(self.windows) + group
            self.stamps[blocks, positions % self.block_size] = expected[start:] + group
            seen = np.arange(0 if window is None else max(0, start - window + 1), start + count)
            found = self.stamps[table[seen // self.block_size], seen % self.block_size]
            wanted = expected[seen] + group
            assert np.array_equal(found, wanted), f"foreign or stale KV at positions {seen[found != wanted]}"
            self.reads += len(seen)


class Engine:
    """The engine's loop on the stamped runner, one call a step, with the answers collected by uid."""

    def __init__(self, scheduler: Scheduler, runner: StampedRunner, overlap: bool) -> None:
        self.scheduler, self.runner, self.overlap = scheduler, runner, overlap
        self.flight: tuple[StepPlan, StepResult] | None = None
        self.answers: dict[int, list[int]] = {}
        self.finished: dict[int, str] = {}
        self.cached: dict[int, int] = {}
        self.steps = 0
        self.preemptions = 0
        runner.salt_of = lambda row: scheduler.rows.owned(row).request.salt

    def step(self) -> bool:
        """False when nothing was left to do."""
        plan = self.scheduler.schedule()
        done = None if plan is None else (plan, self.runner.execute(plan))
        if self.overlap:
            done, self.flight = self.flight, done
        if done is not None:
            self._take(*done)
        self.steps += 1
        return plan is not None or done is not None

    def _take(self, plan: StepPlan, result: StepResult) -> None:
        outputs = self.scheduler.update(plan, result)
        uids, tokens = np.frombuffer(outputs.uids, np.int64), np.frombuffer(outputs.tokens, np.int32)
        for uid, token in zip(uids.tolist(), tokens.tolist(), strict=True):
            assert uid not in self.finished, "a token after the end"
            self.answers.setdefault(uid, []).append(token)
        for end in outputs.finished:
            assert end.uid not in self.finished, "a sequence ends twice"
            self.finished[end.uid] = str(end.reason)
            if end.tokens:
                assert end.uid not in self.answers
                self.answers[end.uid] = np.frombuffer(end.tokens, np.int32).tolist()
            assert len(self.answers.get(end.uid, [])) == end.num_tokens
        self.cached.update(outputs.started)
        self.preemptions += outputs.stats.preemptions

    def drain(self, most: int = 100_000) -> None:
        while self.scheduler.has_work or self.flight is not None:
            assert self.step(), "live sequences, but nothing to do"
            assert self.steps < most, "no end"


def reference(request: EngineRequest, seed: int, vocab: int = 50) -> tuple[list[int], str]:
    """The answer of one sequence and why it ends."""
    prompt = request.prompt_ids().tolist()
    stamp, answer = stamps_of(prompt, request.salt)[-1], []
    while len(answer) < request.max_tokens:
        token = next_token(stamp, seed, vocab)
        answer.append(token)
        if token in request.stop_ids and len(answer) >= request.params.min_tokens:
            return answer, "stop"
        stamp = mix(stamp, token)
        if request.thinking and len(answer) + 1 < request.max_tokens and _thought_enough(request, prompt, answer):
            answer.append(request.thinking[1])
            stamp = mix(stamp, answer[-1])
    return answer, "length"


def _thought_enough(request: EngineRequest, prompt: list[int], answer: list[int]) -> bool:
    """The reasoning that began at the prompt's end or soon after is not over, and has as many tokens as it may."""
    (begin, end), budget = request.thinking, request.params.thinking_token_budget or 0
    opening = prompt[-THINKING_OPENS:]
    known = opening + answer
    if begin not in known[: len(opening) + budget]:
        return False
    at = known.index(begin)
    return end not in known[at:] and len(known) - max(len(opening), at + 1) == budget

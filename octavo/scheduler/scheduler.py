"""Decides what each step computes. Plain Python and numpy; deterministic given its inputs.

    plan = scheduler.schedule()                 # may be called while the step before it still runs
    outputs = scheduler.update(plan, result)    # once for every plan, in order

A step has a budget of tokens. Sequences that decode come first, one token each; prompts that are partly computed
continue in chunks; then waiting sequences are admitted, in order, while rows, blocks and budget last. A sequence
that needs a block when none is left takes it from the sequence that is served last, which is preempted: it gives
back its row and blocks and waits, at its old place, to be computed again (its published blocks may still be there).

Nobody waits forever: the sequence served first is never preempted, a waiting one may be passed by later arrivals
that fit only `MAX_PASSED` times, and what could never fit is refused before it gets here (`octavo.engine.intake`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, sqrt

import numpy as np

from octavo.cache.manager import KVCacheManager
from octavo.cache.prefix import chain_hashes, root_hash
from octavo.core.config import CacheConfig, SchedulerConfig
from octavo.core.outputs import Fault, Finished, FinishReason, Stats, StepOutputs
from octavo.core.picture import Pace, Picture
from octavo.core.plan import NO_INTS, IntArray, LongArray, RowJoin, StepPlan, StepResult
from octavo.core.request import EngineRequest
from octavo.grammar.messages import State
from octavo.grammar.rows import LOST, Grammars
from octavo.scheduler.describe import describe_decodes, describe_mixed
from octavo.scheduler.fairness import OUTPUT_WEIGHT, FairShare
from octavo.scheduler.picture import take_picture
from octavo.scheduler.queue import WaitingQueue
from octavo.scheduler.recovery import Recovery
from octavo.scheduler.report import add_certain, describe, pack_logprobs, pack_prompt_logprobs
from octavo.scheduler.rows import RowTable
from octavo.scheduler.sequence import Sequence
from octavo.scheduler.thinking import overdue

log = logging.getLogger(__name__)

MAX_PASSED = 64  # admissions past a sequence that does not fit, before all others wait for it
CHUNK_SHARE = 4  # a prompt takes at most this part of a step while others generate, who wait for the whole step
MASK_SECONDS = 0.0005  # that a step waits for the masks of rows that could be in it
LOOK_AHEAD = 8  # waiting sequences that are tried in a step after the first that does not fit


class Scheduler:
    def __init__(self, config: SchedulerConfig, cache: CacheConfig, grammars: Grammars | None = None) -> None:
        assert config.max_tokens_per_step >= cache.max_rows, "a step must have room for every decode"
        self.config = config
        self.cache = KVCacheManager(cache)
        self.rows = RowTable(cache.max_rows, cache.capacity)
        self.grammars = grammars
        self._late = StepOutputs()  # ends that no step brought about, until they are told
        self.waiting = WaitingQueue()
        self.fair = FairShare() if config.policy == "fair" else None
        self._sequences: dict[int, Sequence] = {}  # every live one, by uid
        self._forks: dict[int, list[Sequence]] = {}  # by the uid of the parent whose prompt they wait for
        self._released_forks: list[Sequence] = []
        self._decoding = NO_INTS  # rows that compute one token a step, in the order they came
        self._prefilling: list[int] = []  # rows whose known tokens are partly computed
        self._last_plan: StepPlan | None = None  # the step before, if it was all decodes
        self._stuck = (-1, -1)  # state in which nothing more could be admitted
        self.recovery = Recovery(self)
        self._arrivals = 0
        self._random = np.random.default_rng(config.seed)
        self._joins: list[RowJoin] = []
        self._admitted: list[int] = []
        self._stats = Stats(kv_total_blocks=cache.num_blocks)

    # Requests come and go

    def add(self, request: EngineRequest) -> None:
        """Queues the request. What goes wrong is told as its end."""
        try:
            self._queue(request)
        except Exception:
            log.exception("request %r failed: it cannot be queued", request.label)
            for uid in range(request.uid, request.uid + request.params.n):
                self._forks.pop(uid, None)
                self._sequences.pop(uid, None)
                self._late.finished.append(Finished(uid, FinishReason.ERROR))

    def _queue(self, request: EngineRequest) -> None:
        seed = request.params.seed
        if seed is None:
            seed = int(self._random.integers(-(2**63), 2**63 - 1))
        if self.config.policy == "fcfs":
            request.priority = 0
        self._arrivals += 1
        start, cost, length, n = 0, 0, len(request.prompt) // 4, request.params.n
        if self.fair is not None:
            start, cost = self.fair.arrive(request.tenant, length, request.max_tokens, n)
        if request.resumed:
            self._resume(request, seed, start, cost)
            return
        parent = Sequence(request, 0, self._arrivals, seed, None, start)
        parent.charged = length + cost
        parent.root = root_hash(request.adapter, request.salt)
        parent.hashes = chain_hashes(parent.root, parent.tokens, self.cache.block_size)
        children = [Sequence(request, i, self._arrivals, seed, parent, start) for i in range(1, n)]
        for child in children:
            child.charged = cost
            child.root, child.hashes = parent.root, parent.hashes.copy()
        for seq in (parent, *children):
            assert seq.uid not in self._sequences, "a uid is used twice"
            self._sequences[seq.uid] = seq
        if children:
            self._forks[parent.uid] = children
        self.waiting.add(parent)

    def _resume(self, request: EngineRequest, seed: int, start: int, cost: int) -> None:
        """Answers that an engine which died had begun go on as if they had been preempted here."""
        told = any(tokens for _, tokens in request.resumed)
        for index, tokens in request.resumed:
            seq = Sequence(request, index, self._arrivals, seed, None, start)
            seq.tokens = np.concatenate((seq.tokens, np.frombuffer(tokens, np.int32)))
            seq.started, seq.told = told, seq.prompt_len if told else 0
            seq.charged = cost
            seq.root = root_hash(request.adapter, request.salt)
            seq.hashes = chain_hashes(seq.root, seq.tokens, self.cache.block_size)
            assert seq.uid not in self._sequences, "a uid is used twice"
            self._sequences[seq.uid] = seq
            self.waiting.add(seq)

    def abort(self, uids: list[int]) -> None:
        """Forgets the sequences wherever they are; all they held is free at once. Unknown uids are ignored."""
        for uid in uids:
            seq = self._sequences.get(uid)
            if seq is not None:
                self._remove(seq)

    @property
    def has_work(self) -> bool:
        return bool(self._sequences or self._late.finished)

    @property
    def num_live(self) -> int:
        return len(self._sequences)

    @property
    def stuck(self) -> bool:
        """Something waits, and nothing runs that could make room for it."""
        return bool(self.waiting) and not self.rows.num_active

    def expect_grammar(self) -> None:
        """A request with a grammar will come."""
        if self.grammars is not None:
            self.grammars.start()

    # Deciding

    def schedule(self) -> StepPlan | None:
        """The next step, or None if there is nothing to compute (or only what a step under way must decide)."""
        for fork in self._released_forks:
            self.waiting.add(fork)
        self._released_forks.clear()
        if self.grammars is not None and self.grammars.pending:
            self._take_masks(self.grammars)
        if self.recovery.trials.active:
            self.recovery.end_trials()

        decodes, starts = self._plan_decodes()
        chunks = self._plan_chunks(self.recovery.budget - len(decodes))
        while not (chunks or len(decodes)) and self._starved():
            self._preempt_last()
            chunks = self._plan_chunks(self.recovery.budget)
        plan: StepPlan | None = None
        if chunks:
            plan = self._complete(describe_mixed(self.rows, decodes, starts, chunks))
        elif len(decodes):
            # A row that has joined waits for its mask without a chunk: it still has to be told of.
            last = None if self._joins else self._last_plan
            plan = self._complete(describe_decodes(self.rows, decodes, starts, last))
        self._last_plan = None if chunks else plan
        return plan

    def _plan_decodes(self) -> tuple[IntArray, IntArray]:
        """Rows that compute the token sampled last, and its position. Makes room by preemption."""
        while True:
            rows = self._decoding
            if self.rows.num_lockstep:
                known = (self.rows.length[rows] > self.rows.computed[rows]) & ~self.rows.awaits_mask[rows]
                ready = known | ~self.rows.lockstep[rows]
                rows = rows if ready.all() else rows[ready]
            starts = self.rows.computed[rows]
            crossing = self.cache.crossing(rows, starts)
            if self.cache.sliding and len(crossing):
                self.cache.let_go(crossing, self.rows.written[crossing])
            if len(crossing) * self.cache.num_groups <= self.cache.pool.available:
                break
            self._preempt_last()
        if len(crossing):
            self.cache.extend(crossing)
        self.rows.computed[rows] = starts + 1
        ending = starts + 2 >= self.rows.limit[rows]
        if ending.any():  # the token sampled now is the last: its row only waits for it
            self._decoding = self._decoding[~np.isin(self._decoding, rows[ending])]
        return rows, starts

    def _plan_chunks(self, budget: int) -> list[tuple[int, int, int]]:
        """(row, start, count) of the prompts that go on, then of the sequences admitted now."""
        chunks = []
        for row in list(self._prefilling):
            count = self._chunk(row, budget)
            if count == 0 and budget <= 0:
                break
            if count:
                chunks.append(self._begin_chunk(row, count))
                budget -= self._cost(row, count)
        state = (self.cache.releases, self.waiting.version)
        if self.recovery.trials.active:
            self._stuck = (-1, -1)  # who may be admitted changes with the group on trial
        if budget > 0 and self.waiting and self.rows.num_free and state != self._stuck:
            for row in self._admit(budget):
                count = self._chunk(row, budget)
                if count:
                    chunks.append(self._begin_chunk(row, count))
                    budget -= self._cost(row, count)
        for row, start, count in chunks:
            self._advance(row, start + count)
        return chunks

    def _begin_chunk(self, row: int, count: int) -> tuple[int, int, int]:
        start = int(self.rows.computed[row])
        if self.cache.sliding:
            self.cache.reach(row, start + count)
        return row, start, count

    def _starved(self) -> bool:
        """Prompts wait for pages of each other: no step is under way that would let some go, and nobody decodes."""
        if not self.cache.sliding or len(self._prefilling) < 2 or len(self._decoding):
            return False
        waits = any(self._wants(row) > 0 for row in self._prefilling)
        return waits and np.array_equal(self.rows.computed, self.rows.written)

    def _wants(self, row: int) -> int:
        """Known tokens of the row that are not computed, but for the one that a token without a mask would be
        sampled from."""
        return int(self.rows.length[row] - self.rows.awaits_mask[row] - self.rows.computed[row])

    def _chunk(self, row: int, budget: int) -> int:
        """Tokens of the row that this step computes with `budget` left, at least one if any is left and there are
        pages for it."""
        start, wanted = int(self.rows.computed[row]), self._wants(row)
        if budget <= 0 or wanted <= 0:
            return 0
        most = min(wanted, self.config.max_chunk or budget)
        if self.cache.sliding:
            most = min(most, self.cache.room(row, len(self._decoding)) - start)
            if most <= 0:
                return 0
        if not self.config.max_chunk and len(self._decoding):
            budget = min(budget, max(1, self.recovery.budget // CHUNK_SHARE))
        if (scale := self.config.context_cost) > 0:
            # n tokens from `start` on attend to n (start + n / 2) in all: the n for which that is scale * budget.
            budget = max(1, min(budget, int(sqrt(start * start + 2 * scale * budget) - start)))
        return min(most, budget)

    def _cost(self, row: int, count: int) -> int:
        """What `count` tokens of the row take of a step's budget."""
        start, scale = int(self.rows.computed[row]), self.config.context_cost
        return max(count, ceil(count * (start + count / 2) / scale)) if scale > 0 else count

    def _advance(self, row: int, computed: int) -> None:
        """The row's chunk is planned up to `computed`; past its last known token it decodes."""
        self.rows.computed[row] = computed
        if computed < self.rows.length[row]:
            return
        self._prefilling.remove(row)
        if computed + 1 < self.rows.limit[row]:
            self._decoding = np.append(self._decoding, np.int32(row))
        forks = self._forks.pop(int(self.rows.uid[row]), None)
        if forks:  # from the next step on: then the prompt's KV is in the cache
            self._released_forks += forks

    def _admit(self, budget: int) -> list[int]:
        """Rows of the waiting sequences that fit, in order; a bounded number of those that do not are passed."""
        admitted: list[int] = []
        blocked: list[Sequence] = []
        index = 0
        while index < len(self.waiting) and self.rows.num_free and budget > 0:
            seq = self.waiting[index]
            if not self.recovery.trials.allows(seq.uid):
                index += 1
                continue
            placed = False
            with self._blame(seq):
                placed = self._place(seq)
            if seq.uid not in self._sequences:
                continue
            if placed:
                self.waiting.remove(seq)
                admitted.append(seq.row)
                budget -= self._cost(seq.row, self._chunk(seq.row, budget))
                for other in blocked:
                    other.passed += 1
                continue
            blocked.append(seq)
            index += 1
            if seq.passed >= MAX_PASSED or len(blocked) == LOOK_AHEAD:
                break
        if not admitted:
            self._stuck = (self.cache.releases, self.waiting.version)
        return admitted

    def _place(self, seq: Sequence) -> bool:
        """Gives the sequence a row and the blocks of all its known tokens, if they are to be had."""
        length = len(seq.tokens)
        blocks = self.cache.blocks_for(length)
        # Each running sequence needs a new block within a few steps: leave one for each, or preemptions follow.
        spare = self.rows.num_active
        parent = seq.parent.row if seq.parent is not None else -1
        shared = None
        if length == seq.prompt_len and parent >= 0 and self.rows.computed[parent] >= length - 1:
            shared = self.cache.shared(parent, length - 1)
        if shared is not None:
            if not self.cache.fits(blocks, shared, spare):
                return False
            computed = length - 1
            row = self.rows.assign(seq, computed)
            self.cache.fork(parent, row, computed, shared)
        else:
            # At least one token must be computed, for its logits.
            usable = seq.hashes[: (length - 1) // self.cache.block_size]
            params = seq.request.params
            untold = params.prompt_logprobs is not None and seq.told < seq.prompt_len
            skip = params.skip_reading_prefix_cache or untold
            hits = self.cache.lookup([] if skip else usable)
            if not self.cache.fits(blocks, hits, spare):
                return False
            computed = hits.blocks * self.cache.block_size
            row = self.rows.assign(seq, computed)
            self.cache.admit(row, blocks, hits)
        self._stats.prefix_queries += length
        self._stats.prefix_hits += computed
        if seq.num_cached < 0:
            seq.num_cached = computed
            if self.fair is not None:
                self.fair.begin(seq.key[1])
            self._admitted.append(seq.uid)
        self._prefilling.append(row)
        request = seq.request
        masked = bool(request.grammar)
        if masked:
            assert self.grammars is not None, "nobody follows grammars"
            self.grammars.open(row, int(self.rows.epoch[row]), request, seq.tokens[seq.prompt_len :])
        self._joins.append(RowJoin(row, request.params, seq.seed, seq.tokens, seq.prompt_len, request.stop_ids, masked))
        return True

    def _preempt_last(self) -> None:
        """Takes row and blocks from the running sequence that is served last."""
        running = [*self._decoding.tolist(), *self._prefilling]
        row = max(running, key=lambda r: self.rows.owned(r).key)
        self.rows.owned(row).preemptions += 1
        self.put_back(row)
        self._stats.preemptions += 1

    def put_back(self, row: int) -> None:
        """The row's sequence waits at its old place, to go on from the tokens that are known; a result that is under
        way is dropped."""
        seq = self.rows.owned(row)
        seq.tokens = self.rows.known(row)
        self._extend_hashes(seq, seq.tokens)
        self._leave(row)
        self.waiting.add(seq)

    def _complete(self, plan: StepPlan) -> StepPlan:
        """With all else that the runner must know before it takes this step."""
        plan.joins, self._joins = self._joins, []
        plan.table_rows_D, plan.table_index_D, plan.table_blocks_D, plan.copy_src_P, plan.copy_dst_P = (
            self.cache.take_changes()  # before a row can leave: it is in the plan all the same
        )
        if self.rows.num_lockstep:
            sampled = plan.rows_N[plan.sampled_S]
            plan.banned_rows, plan.banned_tokens = self._banned(sampled)
            plan.mask_rows_M, plan.masks_MW = self._masks(sampled)
        plan.poisoned_B = self.cache.take_fresh()
        return plan

    def _banned(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        """The last tokens of the bad words whose other tokens the answer now ends with."""
        pairs = []
        for index, row in enumerate(rows.tolist()):
            if not self.rows.lockstep[row]:
                continue
            with self._blame(seq := self.rows.owned(row)):
                answer = self.rows.tokens[row, seq.prompt_len : self.rows.length[row]].tolist()
                for bad in seq.request.bad_sequences:
                    head = bad[:-1]
                    if not head or answer[-len(head) :] == head:
                        pairs.append((index, bad[-1]))
        table = np.array(pairs, np.int32).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def _masks(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        rows = rows[self.rows.masked[rows]]
        return (rows, self.grammars.masks[rows]) if len(rows) and self.grammars is not None else (NO_INTS, NO_INTS)

    def _take_masks(self, grammars: Grammars) -> None:
        """What has become known of the rows that a grammar follows."""
        for row, state, error in grammars.poll(MASK_SECONDS):
            if state is State.COMPLETE:
                self._finish(row, FinishReason.STOP, -1, self._late)
            elif self.rows.length[row] >= self.rows.limit[row]:
                self._finish(row, FinishReason.LENGTH, -1, self._late)
            elif state is State.READY:
                self.rows.awaits_mask[row] = False
            else:
                fault = Fault.GRAMMARS_LOST if error == LOST else Fault.GRAMMAR
                self._finish(row, FinishReason.ERROR, -1, self._late, error, fault)

    # Taking in what a step gave

    def update(self, plan: StepPlan, result: StepResult) -> StepOutputs:
        """Appends the sampled tokens, ends what is to end, and says what clients must hear."""
        table, outputs = self.rows, self._late
        rows_N, ends_N = plan.rows_N, plan.starts_N + plan.counts_N
        alive_N = table.epoch[rows_N] == plan.epochs_N
        table.written[rows_N[alive_N]] = ends_N[alive_N]
        alive_S = alive_N[plan.sampled_S]
        bad = set(rows_N[plan.sampled_S][result.tokens_S < 0].tolist())
        for i in range(plan.num_decodes, len(rows_N)):
            if alive_N[i] and (row := int(rows_N[i])) not in bad:
                with self._blame(table.owned(row)):
                    self._chunk_done(row, outputs)
        alive_N &= table.epoch[rows_N] == plan.epochs_N
        asking = [] if result.prompt_logprobs is None else self._asking(rows_N[alive_N], "prompt_logprobs")
        alive_S &= table.epoch[rows_N[plan.sampled_S]] == plan.epochs_N[plan.sampled_S]
        rows, tokens = rows_N[plan.sampled_S][alive_S], result.tokens_S[alive_S]
        length = table.length[rows]
        # max_tokens = 0 asks for the prompt's logprobs only: such a row is full before it samples.
        good = (tokens >= 0) & (length < table.limit[rows])
        if not good.all():
            self._end_without_token(rows[~good], tokens[~good], outputs)
            rows, tokens, length = rows[good], tokens[good], length[good]
            alive_S[alive_S] = good
        table.tokens[rows, length] = tokens
        table.length[rows] = length + 1
        streaming = table.stream[rows]
        outputs.uids = table.uid[rows[streaming]].tobytes()
        outputs.tokens = tokens[streaming].tobytes()
        if result.logprobs is not None:
            with self._blame(*self._asking(rows, "logprobs")):
                outputs.logprobs = pack_logprobs(result.logprobs, plan, alive_S, table)
        if result.prompt_logprobs is not None:
            with self._blame(*asking):
                outputs.prompt_logprobs = pack_prompt_logprobs(result.prompt_logprobs, plan, alive_N, table)

        stopped = (tokens[:, None] == table.stop_ids[rows]).any(1) & (length + 1 >= table.minimum[rows])
        # Whether a full answer with a grammar is complete too is not known yet.
        ended = stopped | ((length + 1 >= table.limit[rows]) & ~table.masked[rows])
        if table.num_lockstep and (going := ~ended & table.masked[rows]).any() and self.grammars is not None:
            table.awaits_mask[rows[going]] = True
            self.grammars.advance(rows[going], tokens[going])
        for i in np.flatnonzero(ended).tolist():
            reason, stop_id = (FinishReason.STOP, int(tokens[i])) if stopped[i] else (FinishReason.LENGTH, -1)
            if (seq := table.owner[rows[i]]) is not None:
                with self._blame(seq):
                    self._finish(seq.row, reason, stop_id, outputs)
        if table.num_thinking:
            for row in rows[~ended & (length + 1 >= table.think_until[rows])].tolist():
                if (seq := table.owner[row]) is not None:
                    with self._blame(seq):
                        self._end_thinking(row, outputs)
        self._late = StepOutputs()
        outputs.admitted, self._admitted = self._admitted, []
        outputs.stats = self.take_stats(plan.num_tokens)
        self.recovery.step_done()
        return outputs

    def _chunk_done(self, row: int, outputs: StepOutputs) -> None:
        seq = self.rows.owned(row)
        written = int(self.rows.written[row])
        self.cache.publish(row, seq.hashes, written)
        if self.cache.sliding:
            self.cache.let_go(np.array([row], np.int32), self.rows.written[row : row + 1])
        if not seq.started and written >= seq.prompt_len:
            seq.started = True
            outputs.started.append((seq.uid, seq.num_cached))

    def _end_without_token(self, rows: IntArray, tokens: IntArray, outputs: StepOutputs) -> None:
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            if (seq := self.rows.owner[row]) is None:
                continue
            if token < 0:
                log.error("request %r failed: its logits were not finite", seq.request.label)
                self.cache.withdraw(row, seq.hashes)  # what it computed may not be numbers either
                self.rows.written[row] = 0
            reason = FinishReason.ERROR if token < 0 else FinishReason.LENGTH
            self._finish(row, reason, -1, outputs, fault=Fault.NAN_LOGITS)

    def wait(self, seconds: float) -> StepOutputs | None:
        """When there is no step to do: waits for a grammar; tells of what has ended without a step."""
        if self._late.finished:
            outputs, self._late = self._late, StepOutputs()
            outputs.stats = self.take_stats()
            return outputs
        if self.grammars is not None:
            self.grammars.wait(seconds)
        return None

    def _finish(
        self,
        row: int,
        reason: FinishReason,
        stop_id: int,
        outputs: StepOutputs,
        detail: str = "",
        fault: Fault = Fault.INTERNAL,
    ) -> None:
        seq = self.rows.owned(row)
        end = _end_of(seq, self.rows.tokens[row, : self.rows.length[row]], reason, stop_id, detail, fault)
        if reason is not FinishReason.ERROR:
            self._extend_hashes(seq, self.rows.tokens[row, : self.rows.length[row]])
        self._remove(seq, complete=True)
        outputs.finished.append(end)

    def _end_thinking(self, row: int, outputs: StepOutputs) -> None:
        """Reasoning that has spent its budget goes on with the token that ends it, as if that had been sampled.

        The steps know nothing of this: the sequence is put back and goes on as one that was preempted, mostly from
        its own blocks.
        """
        table, seq = self.rows, self.rows.owned(row)
        if not overdue(table, row):
            return
        end, length = seq.request.thinking[1], int(table.length[row])
        table.tokens[row, length] = end
        table.length[row] = length + 1
        if seq.request.stream:
            outputs.uids += np.int64(seq.uid).tobytes()
            outputs.tokens += np.int32(end).tobytes()
        if seq.request.params.logprobs is not None:
            add_certain(outputs, seq.uid, end)
        self.put_back(row)

    def _extend_hashes(self, seq: Sequence, tokens: IntArray) -> None:
        """Hashes of the blocks that were filled by generation, so that they can be published as the row leaves.

        Only now: while a sequence decodes, nobody else can want them but for the rare twin, and hashing each block
        as it fills would be work that grows with the batch in every step.
        """
        size, have = self.cache.block_size, len(seq.hashes)
        parent = seq.hashes[-1] if have else seq.root
        seq.hashes = seq.hashes + chain_hashes(parent, tokens[have * size :], size)

    def _leave(self, row: int) -> None:
        """The row's owner gives back row and blocks; what it wrote in finished steps is kept for hits."""
        seq = self.rows.owned(row)
        self.cache.publish(row, seq.hashes, int(self.rows.written[row]))
        self.cache.release(row)
        if self.rows.masked[row] and self.grammars is not None:
            self.grammars.close(row)
        if self._joins:
            self._joins = [join for join in self._joins if join.row != row]
        self.rows.vacate(row)
        if row in self._prefilling:
            self._prefilling.remove(row)
        else:
            self._decoding = self._decoding[self._decoding != row]

    def _settle(self, seq: Sequence, complete: bool) -> None:
        """Its tenant pays for what was computed, instead of what was expected."""
        assert self.fair is not None
        known = int(self.rows.length[seq.row]) if seq.row >= 0 else len(seq.tokens)
        answer = known - seq.prompt_len
        prompt = seq.prompt_len - seq.num_cached if seq.parent is None and seq.num_cached >= 0 else 0
        used = prompt + OUTPUT_WEIGHT * answer
        self.fair.settle(seq.request.tenant, seq.charged, used, answer if complete else None)

    def _remove(self, seq: Sequence, complete: bool = False) -> None:
        if self.fair is not None:
            self._settle(seq, complete)
        if seq.row >= 0:
            self._leave(seq.row)
        elif seq.parent is not None and seq in self._forks.get(seq.parent.uid, ()):
            self._forks[seq.parent.uid].remove(seq)
        elif seq in self._released_forks:
            self._released_forks.remove(seq)
        else:
            self.waiting.remove(seq)
        self._released_forks += self._forks.pop(seq.uid, [])
        del self._sequences[seq.uid]
        if self.recovery.trials.active:
            self.recovery.trials.forget(seq.uid)

    # When something goes wrong

    @contextmanager
    def _blame(self, *suspects: Sequence) -> Iterator[None]:
        """What goes wrong inside is because of these: they fail, and the others go on."""
        try:
            yield
        except Exception:
            labels = [seq.request.label for seq in suspects]
            log.exception("request %s failed", ", ".join(map(repr, labels)))
            for seq in suspects:
                self.fail(seq)
            if not suspects:
                raise

    def fail(self, seq: Sequence, fault: Fault = Fault.INTERNAL) -> None:
        """Ends the sequence wherever it is."""
        if seq.row >= 0:
            if seq.uid in self.waiting:
                self.waiting.remove(seq)  # it was on its way from there
            self._finish(seq.row, FinishReason.ERROR, -1, self._late, fault=fault)
        elif seq.uid in self._sequences:
            self._remove(seq)
            self._late.finished.append(_end_of(seq, seq.tokens, FinishReason.ERROR, -1, "", fault))

    def _asking(self, rows: IntArray, name: str) -> list[Sequence]:
        owners = [seq for row in rows.tolist() if (seq := self.rows.owner[row]) is not None]
        return [seq for seq in owners if getattr(seq.request.params, name) is not None]

    def retreat(self, plan: StepPlan | None, error: Exception, exhausted: bool) -> None:
        """See `Recovery.retreat`."""
        self._last_plan = None
        self.recovery.retreat(plan, error, exhausted)

    def audit(self) -> int:
        """Compares the bookkeeping of the blocks with itself. Wrong ones are never used again; who held them is
        computed anew. How many there were."""
        blocks, rows = self.cache.audit()
        for row in rows:
            self.rows.written[row] = 0  # nothing of it is to be published
            self.put_back(row)
        if len(blocks):
            self._stats.repairs += 1
            log.error("%d KV blocks are taken out of use: their bookkeeping was wrong", len(blocks))
        return len(blocks)

    def take_stats(self, step_tokens: int = 0) -> Stats:
        """The gauges as they are now, and what the counters have counted since the last call."""
        stats, pool = self._stats, self.cache.pool
        stats.running = self.rows.num_active
        stats.waiting = self.num_live - stats.running
        stats.kv_used_blocks = pool.num_held
        stats.kv_cached_blocks = pool.num_cached
        stats.kv_waste = self.cache.waste(self.rows.computed)
        stats.step_tokens = step_tokens
        stats.kv_quarantined_blocks = pool.num_quarantined
        stats.grammar_rows = self.grammars.num_open if self.grammars is not None else 0
        self._stats = Stats(kv_total_blocks=pool.num_blocks)
        return stats

    def uids_of(self, plan: StepPlan) -> LongArray:
        return self.rows.uid[plan.rows_N]

    def picture(self, pace: Pace) -> Picture:
        return take_picture(self, pace)

    def describe(self) -> str:
        return describe(self)

    def check_integrity(self) -> None:
        self.rows.check_integrity()
        self.waiting.check_integrity()
        self.cache.check_integrity()
        held = {fork.uid for forks in self._forks.values() for fork in forks}
        held |= {fork.uid for fork in self._released_forks}
        places = [seq.uid for seq in self.rows.owner if seq is not None] + [seq.uid for seq in self.waiting]
        assert sorted(places + list(held)) == sorted(self._sequences), "a sequence is lost or in two places"
        for row in range(self.rows.max_rows):
            blocks = self.cache.held[row]
            if self.rows.owner[row] is None:
                assert blocks == 0, "a free row holds blocks"
            else:
                if self.cache.sliding:
                    blocks = min(blocks, self.cache.reached[row])
                assert blocks * self.cache.block_size >= self.rows.computed[row], "a row writes past its blocks"


def _end_of(seq: Sequence, tokens: IntArray, reason: FinishReason, stop_id: int, detail: str, fault: Fault) -> Finished:
    answer = tokens[seq.prompt_len :]
    whole = b"" if seq.request.stream else answer.tobytes()
    return Finished(seq.uid, reason, stop_id, len(answer), whole, detail, seq.preemptions, fault)

"""Decode steps as CUDA graphs: one launch for the whole step, from the block tables to the sampled tokens.

A graph belongs to a batch size and a mode of the sampler. Batches are filled up to the next size with entries of the
spare row, which read and write nothing. The inputs live in buffers that all graphs share and that each step leaves as
the next one needs them: a steady step uploads nothing but new blocks.

A size is captured when it is needed or, hottest first, while the engine has nothing to do (`capture_next`), so no
start waits for it. Each takes some 50 ms, so sizes that a batch only passes through as it shrinks have none: a graph
of up to twice the size does their few steps.

Legend: N entries of a batch, R rows (the last one is the spare), G groups of layers, B blocks of a row in a group.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

import numpy as np
import torch
from torch import Tensor

from octavo.attention.base import AttentionBackend, ForwardBatch
from octavo.core.config import CacheConfig
from octavo.core.plan import IntArray, StepPlan
from octavo.models.decoder import Decoder
from octavo.runner import mixed
from octavo.runner.batch import BatchBuilder, upload
from octavo.runner.recorder import Recorder
from octavo.sampling.sampler import Sampler

TURNS = 3  # of the pinned buffers: a step in flight, one being planned, one being read
WORTH = 8  # steps of a size that make it worth a recording, while a graph of up to twice its size can do them
GRAPH_BYTES = 4 << 20  # of a recording: some hundred launches with their arguments


def batch_sizes(most: int) -> list[int]:
    """Sizes to capture: padding costs at most a third of a small batch, an eighth of a large one."""
    sizes = [1, 2, 3, 4, 6, *range(8, 64, 8), *range(64, 256, 16), *range(256, 512, 32), *range(512, most + 1, 64)]
    return [size for size in sizes if size < most] + [most]


def reserve(workspace: int, max_tokens: int, cache: CacheConfig, vocab_size: int, itemsize: int) -> int:
    """Bytes that all graphs may take: one pool for the largest step, and what the driver keeps of each recording.

    `workspace` is what a step of `max_tokens` takes outside of graphs, its logits not counted.
    """
    tokens = max(cache.max_rows, mixed.TOKENS[-1])
    recordings = len(batch_sizes(cache.max_rows)) + len(mixed.sizes(cache.max_rows))
    logits = 2 * cache.max_rows * vocab_size * itemsize
    return workspace * tokens // max_tokens + logits + GRAPH_BYTES * recordings


class DecodeGraphs:
    def __init__(
        self,
        model: Decoder,
        attention: AttentionBackend,
        sampler: Sampler,
        builder: BatchBuilder,
        cache: CacheConfig,
        recorder: Recorder,
    ) -> None:
        self.recorder, device = recorder, recorder.device
        self.model, self.attention, self.sampler, self.builder = model, attention, sampler, builder
        self.block_size = cache.block_size
        self.spare_row = cache.max_rows
        self.sizes = batch_sizes(cache.max_rows)
        largest = self.sizes[-1]

        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.rows_N, self.positions_N, self.next_positions_N, self.tokens_N = (
            zeros(torch.int64, largest) for _ in range(4)
        )
        groups, self.width = len(cache.windows), cache.blocks_per_row
        self.slots_GN = zeros(torch.int64, groups, largest)
        self.contexts_N, self.out_N = zeros(torch.int32, largest), zeros(torch.int32, largest)
        self.new_blocks_GN = zeros(torch.int32, groups, largest) - 1
        self.query_start_N1 = torch.arange(largest + 1, dtype=torch.int32, device=device)
        self.table_NGB = zeros(torch.int32, largest, groups, self.width)
        # What goes up and comes down in a steady step, in pinned memory that is used in turn. A step is waited for
        # before the one after the next begins, so nothing is overwritten that is still to be read.
        pinned = device.type == "cuda"
        self._blocks_up = torch.empty((TURNS, groups, largest), dtype=torch.int32, pin_memory=pinned)
        self._tokens_down = torch.empty((TURNS, largest), dtype=torch.int32, pin_memory=pinned)
        self._turn = 0
        self.max_model_len = cache.max_model_len
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}  # None: it cannot be recorded
        self._wanted: Counter[tuple[int, int]] = Counter()  # steps that had to do with a larger graph
        self._rows: IntArray | None = None  # of the batch that the buffers hold, as its plan has them
        self._place_R = np.zeros(cache.max_rows, np.int32)  # of each of those rows in the batch
        self._ahead: list[tuple[int, int]] = []  # to be captured: the last one first
        self._met: set[int] = set()  # modes
        self._meet(0)

    def forget(self) -> None:
        """The buffers no longer hold the last step: it ran without a graph."""
        self._rows = None

    def warm_up(self) -> None:
        """Captures the largest batch, whose memory then serves the smaller ones."""
        size = self.sizes[-1]
        self._prepare(size)
        self._graphs[size, 0] = self.recorder.record(lambda: self._step(size, 0))

    def run(self, plan: StepPlan) -> Tensor | None:
        """The sampled tokens, int32, on their way to the host; None for a step that needs something else."""
        count = len(plan.rows_N)
        if plan.num_decodes != count or not count:
            return None
        banned = (plan.banned_rows, plan.banned_tokens)
        mode = self.sampler.graph_mode(plan.rows_N, banned, plan.steady)
        if mode is None:
            return None
        found = self._graph_for(count, mode)
        if found is None:
            return None
        size, graph = found
        if not (plan.steady and self._rows is plan.rows_N and self._announce(plan)):
            self._load(plan, size)
        graph.replay()
        self._turn = (self._turn + 1) % TURNS
        return self._tokens_down[self._turn, :count].copy_(self.out_N[:count], non_blocking=True)

    def _graph_for(self, count: int, mode: int) -> tuple[int, torch.cuda.CUDAGraph] | None:
        """The graph of the next size, or of a larger one while it is not clear that this size is worth a recording.

        None if it cannot be recorded.
        """
        first = bisect_left(self.sizes, count)
        wanted = (self.sizes[first], mode)
        self._meet(mode)
        if wanted not in self._graphs:
            self._wanted[wanted] += 1
            larger = next((size for size in self.sizes[first:] if self._graphs.get((size, mode)) is not None), None)
            if larger is not None and larger <= 2 * count and self._wanted[wanted] < WORTH:
                graph = self._graphs[larger, mode]
                assert graph is not None
                return larger, graph
            self._try_to_capture(*wanted)
        graph = self._graphs[wanted]
        return None if graph is None else (wanted[0], graph)

    def _meet(self, mode: int) -> None:
        """Hottest first: one stream, the powers of two, then the rest."""
        if mode not in self._met:
            self._met.add(mode)
            hottest_last = sorted(self.sizes, key=lambda size: (size & (size - 1) != 0, size), reverse=True)
            self._ahead += [(size, mode) for size in hottest_last]

    def capture_next(self) -> bool:
        """Captures one more size, for greedy batches and for modes that batches have had. False if none is left."""
        while self._ahead:
            wanted = self._ahead.pop()
            if wanted not in self._graphs:
                if not self._try_to_capture(*wanted):
                    self._ahead.clear()  # the others would hardly fare better
                return True
        return False

    def _announce(self, plan: StepPlan) -> bool:
        """Hands the new blocks of a steady step to the graph. False if some do not begin with this step's token."""
        rows = plan.table_rows_D
        if not len(rows):
            return True
        place = self._place_R[rows]
        group, index = np.divmod(plan.table_index_D, self.width)
        if not np.array_equal(index * self.block_size, plan.starts_N[place]):
            return False
        blocks_GN = self._blocks_up[self._turn]
        blocks_GN.fill_(-1)
        blocks_GN.numpy()[group, place] = plan.table_blocks_D
        self.new_blocks_GN.copy_(blocks_GN, non_blocking=True)
        return True

    def _load(self, plan: StepPlan, size: int) -> None:
        """Fills the buffers for a batch, so that a step of the graph moves it on to where the plan has it."""
        count = len(plan.rows_N)
        longest = -(-int(plan.starts_N.max() + 1) // self.block_size)
        packed = [plan.table_rows_D, plan.table_index_D, plan.table_blocks_D, plan.rows_N, plan.starts_N - 1]
        change_rows, change_index, change_blocks, rows, positions = upload(packed, self.recorder.device)
        self.builder.write_table(change_rows, change_index, change_blocks)
        self.rows_N[:count].copy_(rows)
        self.rows_N[count:size].fill_(self.spare_row)
        self.positions_N[:count].copy_(positions)
        self.new_blocks_GN.fill_(-1)
        for group, table_RB in enumerate(self.builder.tables):
            self.table_NGB[:count, group, :longest].copy_(table_RB[rows, :longest])
        self._rows = plan.rows_N
        self._place_R[plan.rows_N] = np.arange(count, dtype=np.int32)

    def _try_to_capture(self, size: int, mode: int) -> bool:
        self._prepare(size)
        name = f"a step of {size} sequences"
        graph = self._graphs[size, mode] = self.recorder.try_to_record(name, lambda: self._step(size, mode))
        return graph is not None

    def _prepare(self, size: int) -> None:
        self._rows = None
        self.rows_N[:size].fill_(self.spare_row)  # an empty batch: what is run for the recording changes nothing

    def _step(self, size: int, mode: int) -> None:
        from octavo.kernels.decode_step import advance, remember

        rows_N = self.rows_N[:size]
        advance(
            rows_N,
            self.positions_N[:size],
            self.next_positions_N[:size],
            self.contexts_N[:size],
            self.slots_GN,
            self.tokens_N[:size],
            self.new_blocks_GN,
            self.table_NGB[:size],
            self.builder.table_RB,
            self.builder.last_token_R,
            self.block_size,
        )
        batch = ForwardBatch(
            token_ids_T=self.tokens_N[:size],
            positions_T=self.positions_N[:size],
            slots_T=self.slots_GN[0, :size],
            query_start_N1=self.query_start_N1[: size + 1],
            context_lens_N=self.contexts_N[:size],
            block_table_NB=self.table_NGB[:size, 0],
            num_single=size,
            max_query_len=1,
            max_context_len=self.max_model_len,
            attention=self.attention,
        )
        batch.add_groups(self.slots_GN[1:, :size].unbind(0), self.table_NGB[:size, 1:].unbind(1))
        self.attention.plan(batch)
        logits_NV = self.model.logits(self.model.forward(batch))
        sampled_N = self.sampler.sample_static(mode, logits_NV, rows_N, self.next_positions_N[:size])
        remember(sampled_N, rows_N, self.builder.last_token_R, self.out_N[:size])

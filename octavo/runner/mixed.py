"""Steps with a few prompt tokens as CUDA graphs: without one, a GPU waits for the host to launch its kernels.

A graph belongs to a number of decodes, a number of tokens and a mode of the sampler; each step is filled up to the
next numbers with entries of the spare row, which read and write nothing. Everything a step is made of goes up in one
copy of one array, whose layout follows from the graph's numbers.

Captured when needed again or, smallest first, while the engine has nothing to do (`capture_next`). A step with more
tokens than the largest graph keeps the GPU busy for longer than its launches take the host, so it needs none. The few
rows that are sampled cost next to nothing, so greedy ones share the graphs of those that have temperatures and top_k.

Legend: D decodes, C chunk tokens, P sequences with chunks, T = D + C tokens, N = D + P sequences, R rows.
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
from octavo.runner.batch import DEVICE_TOKEN, BatchBuilder, upload
from octavo.runner.recorder import Recorder
from octavo.sampling.sampler import Sampler

DECODES = (0, 8, 32, 64, 128, 256)
TOKENS = (64, 128, 192, 256, 320, 384, 512, 576, 640, 768, 896, 1024, 1152)  # not 448: cuBLAS takes longer than for 512
PROMPTS = 16  # P, of every graph
WORTH = 2  # steps of a kind that make it worth a recording, which takes as long as three such steps do without
MODE = 3  # of the sampler, that graphs have at least
TURNS = 3  # of the pinned buffers: a step in flight, one being planned, one being read


def decode_counts(most: int) -> list[int]:
    """Numbers of decodes to capture, for batches of at most so many sequences."""
    most = min(DECODES[-1], most)
    return [*(count for count in DECODES if count < most), most]


def sizes(most: int) -> list[tuple[int, int]]:
    """(decodes, tokens) to capture."""
    return [(decodes, tokens) for decodes in decode_counts(most) for tokens in TOKENS if tokens > decodes]


class Layout:
    """Where the parts of a step lie in its array: one for each number of decodes and tokens."""

    def __init__(self, decodes: int, tokens: int, block_size: int, groups: int) -> None:
        self.decodes, self.tokens, self.sequences = decodes, tokens, decodes + PROMPTS
        self.chunk = chunk = tokens - decodes
        self.changes = groups * (decodes + chunk // block_size + 2 * PROMPTS)
        sequences, changes = self.sequences, self.changes
        sizes = (*[tokens] * 3, sequences, sequences + 1, *[sequences] * 4, *[changes] * 3)
        ends = np.cumsum(sizes).tolist()
        self.size: int = ends[-1]
        self.parts = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


class MixedGraphs:
    def __init__(
        self,
        model: Decoder,
        attention: AttentionBackend,
        sampler: Sampler,
        builder: BatchBuilder,
        cache: CacheConfig,
        recorder: Recorder,
    ) -> None:
        self.model, self.attention, self.sampler, self.builder = model, attention, sampler, builder
        self.recorder = recorder
        self.block_size, self.max_model_len = cache.block_size, cache.max_model_len
        self.spare_row = cache.max_rows
        self.decodes = decode_counts(cache.max_rows)
        self.num_groups = len(cache.windows)
        largest = Layout(self.decodes[-1], TOKENS[-1], cache.block_size, self.num_groups)
        device, pinned = recorder.device, recorder.device.type == "cuda"
        self.input = torch.zeros(largest.size, dtype=torch.int64, device=device)
        self.out_N = torch.zeros(largest.sequences, dtype=torch.int32, device=device)
        self._up = torch.empty((TURNS, largest.size), dtype=torch.int64, pin_memory=pinned)
        self._down = torch.empty((TURNS, largest.sequences), dtype=torch.int32, pin_memory=pinned)
        self._turn = 0
        self._layouts: dict[tuple[int, int], Layout] = {}
        self._graphs: dict[tuple[int, int, int], torch.cuda.CUDAGraph | None] = {}  # None: it cannot be recorded
        self._wanted: Counter[tuple[int, int, int]] = Counter()  # steps that had no graph yet
        self._ahead = sizes(cache.max_rows)[::-1]

    def run(self, plan: StepPlan) -> tuple[Tensor, IntArray] | None:
        """Sampled tokens, int32, on their way to the host, and which of them are the plan's, in its order.

        None for a step that needs something else.
        """
        decodes, chunk = plan.num_decodes, len(plan.chunk_tokens_C)
        prompts = len(plan.rows_N) - decodes
        if not chunk or decodes > self.decodes[-1] or prompts > PROMPTS:
            return None
        most_decodes = self.decodes[bisect_left(self.decodes, decodes)]
        if most_decodes + chunk > TOKENS[-1]:
            return None
        mode = self.sampler.graph_mode(plan.rows_N[plan.sampled_S], (plan.banned_rows, plan.banned_tokens), False)
        if mode is None:
            return None
        layout = self._layout(most_decodes, TOKENS[bisect_left(TOKENS, most_decodes + chunk)])
        key = (layout.decodes, layout.tokens, mode | MODE)
        if key not in self._graphs:
            self._wanted[key] += 1
            if self._wanted[key] < WORTH:
                return None
            self._graphs[key] = self._capture(layout, mode | MODE)
        graph = self._graphs[key]
        if graph is None:
            return None
        self._turn = (self._turn + 1) % TURNS
        staged = self._up[self._turn, : layout.size]
        self._fill(staged.numpy(), layout, plan)
        self.input[: layout.size].copy_(staged, non_blocking=True)
        graph.replay()
        arriving_N = self._down[self._turn, : layout.sequences]
        arriving_N.copy_(self.out_N[: layout.sequences], non_blocking=True)
        return arriving_N, np.where(plan.sampled_S < decodes, 0, layout.decodes - decodes) + plan.sampled_S

    def capture_next(self) -> bool:
        """Captures one more graph. False if there is none left."""
        while self._ahead:
            decodes, tokens = self._ahead.pop()
            key = (decodes, tokens, MODE)
            if key not in self._graphs:
                self._graphs[key] = self._capture(self._layout(decodes, tokens), MODE)
                if self._graphs[key] is None:
                    self._ahead.clear()  # the others would hardly fare better
                return True
        return False

    def _layout(self, decodes: int, tokens: int) -> Layout:
        if (decodes, tokens) not in self._layouts:
            self._layouts[decodes, tokens] = Layout(decodes, tokens, self.block_size, self.num_groups)
        return self._layouts[decodes, tokens]

    def _capture(self, layout: Layout, mode: int) -> torch.cuda.CUDAGraph | None:
        staged = torch.zeros(layout.size, dtype=torch.int64)
        self._blank(staged.numpy(), layout)
        self.input[: layout.size].copy_(staged)
        name = f"a step of {layout.decodes} sequences and {layout.chunk} prompt tokens"
        return self.recorder.try_to_record(name, lambda: self._step(layout, mode))

    def _blank(self, array: np.typing.NDArray[np.int64], layout: Layout) -> None:
        """Nothing but entries of the spare row: each decode has a token, no prompt has any."""
        rows_T, _, _, rows_N, starts, _, _, sampled_N, _, change_rows, _, _ = (array[part] for part in layout.parts)
        array[:] = 0
        rows_T[:] = rows_N[:] = sampled_N[:] = change_rows[:] = self.spare_row
        starts[:] = np.minimum(np.arange(len(starts)), layout.decodes)

    def _fill(self, array: np.typing.NDArray[np.int64], layout: Layout, plan: StepPlan) -> None:
        self._blank(array, layout)
        rows_T, ids_T, positions_T, rows_N, starts, contexts_N, last_N, sampled_N, next_N, *changes = (
            array[part] for part in layout.parts
        )
        given, skip = plan.num_decodes, layout.decodes - plan.num_decodes  # the plan's prompts come after the padding
        chunk = len(plan.chunk_tokens_C)
        counts, begins = plan.counts_N[given:], plan.starts_N[given:]
        ends = np.cumsum(counts)
        at = slice(layout.decodes, layout.decodes + chunk)
        rows_T[:given], rows_T[at] = plan.rows_N[:given], np.repeat(plan.rows_N[given:], counts)
        ids_T[:given], ids_T[at] = DEVICE_TOKEN, plan.chunk_tokens_C
        positions_T[:given] = plan.starts_N[:given]
        positions_T[at] = np.arange(chunk) + np.repeat(begins - ends + counts, counts)
        starts[layout.decodes + 1 :] = layout.decodes + chunk
        starts[layout.decodes + 1 : layout.decodes + 1 + len(ends)] = layout.decodes + ends
        index_N = np.arange(len(plan.rows_N))
        index_N[given:] += skip
        rows_N[index_N] = plan.rows_N
        contexts_N[index_N] = plan.starts_N + plan.counts_N
        last_N[: layout.decodes] = np.arange(layout.decodes)
        last_N[index_N[given:]] = layout.decodes + ends - 1
        sampled_N[index_N[plan.sampled_S]] = plan.rows_N[plan.sampled_S]
        next_N[index_N] = plan.starts_N + plan.counts_N
        table = (plan.table_rows_D, plan.table_index_D, plan.table_blocks_D)
        if len(table[0]) > layout.changes:  # a long cached prefix
            self.builder.write_table(*upload(table, self.recorder.device))
            return
        for part, values in zip(changes, table, strict=True):
            part[: len(values)] = values

    def _step(self, layout: Layout, mode: int) -> None:
        from octavo.kernels.decode_step import remember

        rows_T, ids_T, positions_T, rows_N, starts, contexts_N, last_N, sampled_N, next_N, *changes = (
            self.input[part] for part in layout.parts
        )
        builder = self.builder
        builder.write_table(*changes)
        slots = [torch.where(rows_T == self.spare_row, -1, slots_T) for slots_T in builder.slots(rows_T, positions_T)]
        tables = [table_RB[rows_N] for table_RB in builder.tables]
        batch = ForwardBatch(
            token_ids_T=torch.where(ids_T == DEVICE_TOKEN, builder.last_token_R[rows_T], ids_T),
            positions_T=positions_T,
            slots_T=slots[0],
            query_start_N1=starts.to(torch.int32),
            context_lens_N=contexts_N.to(torch.int32),
            block_table_NB=tables[0],
            num_single=layout.decodes,
            max_query_len=layout.chunk,
            max_context_len=self.max_model_len,
            attention=self.attention,
        )
        batch.add_groups(slots[1:], tables[1:])
        self.attention.plan(batch)
        logits_NV = self.model.logits(self.model.forward(batch)[last_N])
        tokens_N = self.sampler.sample_static(mode, logits_NV, sampled_N, next_N)
        remember(tokens_N, sampled_N, builder.last_token_R, self.out_N[: layout.sequences])

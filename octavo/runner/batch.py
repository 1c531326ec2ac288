"""From a plan to the tensors of a forward pass.

The block tables and each row's last token live on the device. A plan's arrays go up in one packed copy; a steady
step uploads nothing but new blocks: its positions are the last ones plus one, its tokens the ones sampled last.

Legend: T tokens, N sequences of the step, S sampled, R rows, B blocks of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.attention.base import AttentionBackend, ForwardBatch
from octavo.core.config import CacheConfig
from octavo.core.plan import IntArray, StepPlan

POISON_TOKEN = 1 << 40  # in no vocabulary: whoever reads it fails
DEVICE_TOKEN = -1  # stands for the row's last sampled token in a plan's packed ids


def upload(arrays: Sequence[np.typing.NDArray[np.integer]], device: torch.device) -> list[Tensor]:
    """The arrays as int64 tensors on the device, views of one buffer, in one copy.

    Torch does not give pinned memory out again before the copy from it has ended, so nothing waits here.
    """
    sizes = [len(a) for a in arrays]
    staging = torch.empty(sum(sizes), dtype=torch.int64, pin_memory=device.type == "cuda")
    np.concatenate(arrays, out=staging.numpy(), casting="same_kind")
    return list(torch.split(staging.to(device, non_blocking=True), sizes))


@dataclass(slots=True)
class StepInput:
    """A forward pass and what is sampled from it."""

    batch: ForwardBatch
    rows_N: Tensor
    last_S: Tensor | None  # indices into T of the hidden states to sample from; None: all of them, in order
    rows_S: Tensor  # rows that are sampled
    next_positions_S: Tensor  # position that the sampled token will have


class BatchBuilder:
    """Owns the device's block tables and last tokens, and keeps the tensors that a steady step reuses."""

    def __init__(self, cache: CacheConfig, device: torch.device, attention: AttentionBackend) -> None:
        self.debug = cache.debug
        self.block_size = cache.block_size
        self.attention = attention
        # One row more than there are: the spare one, which fills up batches (see graphs.py) and is never read. The
        # tables of a row, one for each group of layers, lie one after the other.
        width, groups = cache.blocks_per_row, len(cache.windows)
        self.table_RB = torch.zeros((cache.max_rows + 1, groups * width), dtype=torch.int32, device=device)
        self.tables = self.table_RB.view(-1, groups, width).unbind(1)
        self.last_token_R = torch.zeros(cache.max_rows + 1, dtype=torch.int64, device=device)
        self.device = device
        self._step: StepInput | None = None  # of the step before, while steps are steady

    def build(self, plan: StepPlan) -> StepInput:
        if plan.steady and self._step is not None:
            return self._next(self._step, plan)
        self._step = self._fresh(plan)
        return self._step

    def forget(self) -> None:
        """The tensors kept no longer hold the last step: it ran as a graph."""
        self._step = None

    def reset_row(self, row: int) -> None:
        """A sequence takes the row: its table follows with the plan, its last token with the first that is sampled."""
        if self.debug:
            self.last_token_R[row] = POISON_TOKEN

    def write_table(self, rows: Tensor, index: Tensor, blocks: Tensor) -> None:
        if len(rows):
            self.table_RB[rows, index] = blocks.to(torch.int32)

    def _fresh(self, plan: StepPlan) -> StepInput:
        ends_N = np.cumsum(plan.counts_N, dtype=np.int32)
        context_N = plan.starts_N + plan.counts_N
        offsets_N = plan.starts_N - ends_N + plan.counts_N  # position minus index into T
        positions_T = np.arange(ends_N[-1], dtype=np.int32) + np.repeat(offsets_N, plan.counts_N)
        ids_T = np.concatenate((np.full(plan.num_decodes, DEVICE_TOKEN, np.int32), plan.chunk_tokens_C))
        last_S = ends_N[plan.sampled_S] - 1
        packed = [
            plan.table_rows_D,
            plan.table_index_D,
            plan.table_blocks_D,
            plan.rows_N,
            np.repeat(plan.rows_N, plan.counts_N),
            ids_T,
            positions_T,
            np.concatenate((np.zeros(1, np.int32), ends_N)),
            context_N,
            last_S,
            plan.rows_N[plan.sampled_S],
            context_N[plan.sampled_S],
        ]
        change_rows, change_index, change_blocks, *tensors = upload(packed, self.device)
        self.write_table(change_rows, change_index, change_blocks)
        rows_N, rows_T, given_T, position_T, query_start, context, last, rows_S, next_S = tensors
        if plan.num_decodes == 0:
            token_ids_T = given_T
        elif plan.num_decodes == len(ids_T):
            token_ids_T = self.last_token_R[rows_T]
        else:
            token_ids_T = torch.where(given_T == DEVICE_TOKEN, self.last_token_R[rows_T], given_T)
        longest = int(context_N.max())
        single = int(np.searchsorted(plan.counts_N, 2))  # counts of one come first
        slots, tables = self.slots(rows_T, position_T), self._tables(rows_N, longest)
        batch = ForwardBatch(
            token_ids_T=token_ids_T,
            positions_T=position_T,
            slots_T=slots[0],
            query_start_N1=query_start.to(torch.int32),
            context_lens_N=context.to(torch.int32),
            block_table_NB=tables[0],
            num_single=single,
            max_query_len=int(plan.counts_N.max()),
            max_context_len=longest,
            attention=self.attention,
            query_lens=plan.counts_N[single:].tolist(),
            context_lens=context_N[single:].tolist(),
        )
        batch.add_groups(slots[1:], tables[1:])
        everything = len(last_S) == len(ids_T)
        return StepInput(batch, rows_N, None if everything else last, rows_S, next_S)

    def _next(self, step: StepInput, plan: StepPlan) -> StepInput:
        """The step after `step` with the same rows, one token each. Works in place."""
        batch = step.batch
        grown = len(plan.table_rows_D) > 0
        if grown:
            self.write_table(*upload([plan.table_rows_D, plan.table_index_D, plan.table_blocks_D], self.device))
        batch.positions_T += 1  # of all groups: it is one tensor
        batch.context_lens_N += 1
        step.next_positions_S += 1
        batch.token_ids_T = self.last_token_R[step.rows_N]
        for part, slots_T in zip(batch.groups, self.slots(step.rows_N, batch.positions_T), strict=True):
            part.slots_T = slots_T
            part.max_context_len += 1
            part.steady = True
        if grown:
            for part, table_NB in zip(batch.groups, self._tables(step.rows_N, batch.max_context_len), strict=True):
                part.block_table_NB = table_NB
        return step

    def slots(self, rows_T: Tensor, positions_T: Tensor) -> list[Tensor]:
        """In each group of layers."""
        index = torch.div(positions_T, self.block_size, rounding_mode="floor")
        offset = positions_T - index * self.block_size
        return [table_RB[rows_T, index] * self.block_size + offset for table_RB in self.tables]

    def _tables(self, rows_N: Tensor, longest: int) -> list[Tensor]:
        return [table_RB[rows_N, : -(-longest // self.block_size)] for table_RB in self.tables]

    def poison(self, blocks: IntArray) -> None:
        self.attention.poison(*upload([blocks], self.device))

    def copy_blocks(self, src: IntArray, dst: IntArray) -> None:
        self.attention.copy_blocks(*upload([src, dst], self.device))

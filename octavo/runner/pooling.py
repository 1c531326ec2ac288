"""Does what a pooling plan describes: one pass over whole prompts, then what each of them was asked for.

`execute` returns at once with a handle, as `octavo.runner.runner.Runner` does; nothing is kept by row, so that any step
can be done again.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.attention.base import AttentionBackend, ForwardBatch
from octavo.core.plan import IntArray, PoolingPlan, PoolingResult
from octavo.core.pooling import PoolingParams
from octavo.models.pooling.model import PoolingModel
from octavo.runner.batch import upload
from octavo.runner.runner import recorded_event, to_host


@dataclass(slots=True)
class PoolingHandle:
    """A step under way: for each kind of wish, whose it is and what comes of it."""

    counts_N: IntArray
    given: list[tuple[list[int], PoolingParams, Tensor]]  # indices into N
    event: torch.cuda.Event | None

    def wait(self) -> PoolingResult:
        if self.event is not None:
            self.event.synchronize()
        ends_N = np.cumsum(self.counts_N)
        found: list[np.ndarray] = [np.empty(0, np.float32)] * len(ends_N)
        for rows, params, values in self.given:
            array = values.numpy()
            for row in rows:
                each = slice(ends_N[row] - self.counts_N[row], ends_N[row]) if params.task == "token_embed" else row
                found[row] = array[each]
        return PoolingResult(found)


class PoolingRunner:
    def __init__(self, model: PoolingModel, attention: AttentionBackend, device: torch.device) -> None:
        self.model, self.attention, self.device = model, attention, device

    @torch.inference_mode()
    def execute(self, plan: PoolingPlan) -> PoolingHandle:
        batch = self._batch(plan)
        self.attention.plan(batch)
        hidden_TE = self.model.forward(batch)
        wishes: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for row, params in enumerate(plan.params):
            wishes[params.task, params.dimensions, params.use_activation].append(row)
        given = []
        for rows in wishes.values():
            params = plan.params[rows[0]]
            given.append((rows, params, to_host(self.model.give(hidden_TE, batch.query_start_N1, params))))
        return PoolingHandle(plan.counts_N, given, recorded_event(self.device))

    def _batch(self, plan: PoolingPlan) -> ForwardBatch:
        counts_N, total = plan.counts_N, plan.num_tokens
        ends_N = np.cumsum(counts_N, dtype=np.int32)
        positions_T = np.arange(total, dtype=np.int32) - np.repeat(ends_N - counts_N, counts_N)
        starts_N1 = np.concatenate((np.zeros(1, np.int32), ends_N))
        packed = [plan.tokens_T, positions_T, starts_N1, counts_N]
        if plan.types_T is not None:
            packed.append(plan.types_T)
        token_ids_T, position_T, start_N1, count_N, *types = upload(packed, self.device)
        longest = int(counts_N.max())
        return ForwardBatch(
            token_ids_T=token_ids_T,
            positions_T=position_T,
            slots_T=position_T.new_empty(0),
            query_start_N1=start_N1.to(torch.int32),
            context_lens_N=count_N.to(torch.int32),
            block_table_NB=count_N.new_empty(0),
            num_single=0,
            max_query_len=longest,
            max_context_len=longest,
            attention=self.attention,
            query_lens=counts_N.tolist(),
            context_lens=counts_N.tolist(),
            types_T=types[0] if types else None,
        )

    def recover(self, error: Exception) -> bool:
        """After a step could not be started. Whether it was for want of memory; raises it if the device is lost."""
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.device)
            except Exception:
                raise error from None
        exhausted = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if exhausted and self.device.type == "cuda":
            torch.cuda.empty_cache()
        return exhausted

    def prepare(self) -> bool:
        """Nothing is done ahead."""
        return False

    def largest_step(self, max_tokens: int, longest: int, max_sequences: int) -> None:
        """Runs one, so that its memory is known and its kernels are there."""
        counts = [longest] * max(1, min(max_sequences, max_tokens // longest))
        tokens = np.zeros(sum(counts), np.int32)
        uids, counts_N = np.zeros(len(counts), np.int64), np.array(counts, np.int32)
        params = PoolingParams(task="embed" if self.model.pooling.kind == "embed" else "reward")
        self.execute(PoolingPlan(uids, counts_N, tokens, None, [params] * len(counts))).wait()

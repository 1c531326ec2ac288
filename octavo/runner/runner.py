"""Does what a plan describes: one forward pass over the planned rows, then a token for each sampled one.

`execute` returns at once with a handle; on a GPU the work is queued and the sampled ids come to the host through a
pinned buffer and an event, while they also stay on the device as the next step's input. Everything a row needs is
set when a sequence joins it, and steps run in order, so a block or a row may be given to another sequence while a
step that still writes to it is under way: whatever is read later was written later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.attention.base import AttentionBackend
from octavo.core.config import CacheConfig
from octavo.core.plan import IntArray, LogprobRows, StepPlan, StepResult
from octavo.models.decoder import Decoder
from octavo.runner.batch import BatchBuilder, StepInput
from octavo.sampling.sampler import DeviceLogprobs, Sampler

# Positions whose logits are in memory at once for prompt_logprobs: 256 x 128k floats are 128 MiB.
PROMPT_LOGPROB_SLICE = 256


@dataclass(slots=True)
class _HostCopy:
    """Tensors on their way to the host."""

    tensors: list[Tensor]
    event: torch.cuda.Event | None

    @classmethod
    def start(cls, tensors: list[Tensor]) -> _HostCopy:
        if tensors[0].device.type == "cpu":
            return cls(tensors, None)
        pinned = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in tensors]
        event = torch.cuda.Event()
        event.record()
        return cls(pinned, event)

    def wait(self) -> list[np.typing.NDArray[np.generic]]:
        if self.event is not None:
            self.event.synchronize()
        return [t.numpy() for t in self.tensors]


@dataclass(slots=True)
class StepHandle:
    """A step under way; `wait` gives its result, and only then."""

    _copy: _HostCopy
    _logprob_index: IntArray | None
    _prompt_index: IntArray | None

    def wait(self) -> StepResult:
        tokens, *rest = self._copy.wait()
        logprobs = prompt_logprobs = None
        if self._logprob_index is not None:
            logprobs, rest = _host_logprobs(self._logprob_index, rest[:3]), rest[3:]
        if self._prompt_index is not None:
            prompt_logprobs = _host_logprobs(self._prompt_index, rest)
        return StepResult(tokens.astype(np.int32), logprobs, prompt_logprobs)


def _host_logprobs(index: IntArray, arrays: list[np.typing.NDArray[np.generic]]) -> LogprobRows:
    ids, values, ranks = arrays
    return LogprobRows(index, ids.astype(np.int32), values.astype(np.float32), ranks.astype(np.int32))


class Runner:
    def __init__(self, model: Decoder, cache: CacheConfig, attention: AttentionBackend, device: torch.device) -> None:
        self.model = model
        self.attention = attention
        self.builder = BatchBuilder(cache, device, attention)
        self.sampler = Sampler(cache.max_rows, model.spec.vocab_size, device)
        self._prompt_logprobs = np.full(cache.max_rows, -1, np.int32)  # how many each row wants; -1: none

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepHandle:
        for join in plan.joins:
            self.sampler.join(join)
            wanted = join.params.prompt_logprobs
            self._prompt_logprobs[join.row] = -1 if wanted is None else wanted
        if len(plan.copy_src_P):
            self.builder.copy_blocks(plan.copy_src_P, plan.copy_dst_P)
        step = self.builder.build(plan)
        self.attention.plan(step.batch)
        hidden_TE = self.model.forward(step.batch)
        tensors, logprob_index = self._sample(plan, step, hidden_TE)
        prompt_index, prompt_tensors = self._score_prompts(plan, hidden_TE)
        return StepHandle(_HostCopy.start(tensors + prompt_tensors), logprob_index, prompt_index)

    def _sample(self, plan: StepPlan, step: StepInput, hidden_TE: Tensor) -> tuple[list[Tensor], IntArray | None]:
        if len(plan.sampled_S) == 0:
            return [torch.empty(0, dtype=torch.int64)], None
        hidden_SE = hidden_TE if step.last_S is None else hidden_TE[step.last_S]
        sampled = self.sampler.sample(
            self.model.logits(hidden_SE),
            step.rows_S,
            step.next_positions_S,
            plan.rows_N[plan.sampled_S],
            (plan.banned_rows, plan.banned_tokens),
            plan.steady,
        )
        # A row without a token (-1) ends; its next input only has to be a valid id.
        self.builder.last_token_R[step.rows_S] = sampled.tokens_S.clamp(min=0)
        if sampled.logprobs is None:
            return [sampled.tokens_S], None
        found = sampled.logprobs
        return [sampled.tokens_S, found.ids_MK, found.logprobs_MK, found.ranks_M], found.index_M

    def _score_prompts(self, plan: StepPlan, hidden_TE: Tensor) -> tuple[IntArray | None, list[Tensor]]:
        """Logprobs of the prompt tokens that follow the positions of this step's chunks, where they were asked for."""
        rows = plan.rows_N[plan.num_decodes :]
        wanted = self._prompt_logprobs[rows]
        if len(rows) == 0 or wanted.max() < 0:
            return None, []
        asked_C = np.repeat(wanted, plan.counts_N[plan.num_decodes :]) >= 0
        index = np.flatnonzero(asked_C & (plan.chunk_targets_C >= 0)).astype(np.int32)
        if len(index) == 0:
            return None, []
        device = hidden_TE.device
        positions = torch.from_numpy(index + plan.num_decodes).to(device)
        targets = torch.from_numpy(plan.chunk_targets_C[index]).to(device, torch.int64)
        found: list[DeviceLogprobs] = []
        for start in range(0, len(index), PROMPT_LOGPROB_SLICE):
            part = slice(start, start + PROMPT_LOGPROB_SLICE)
            logits = self.model.logits(hidden_TE[positions[part]])
            found.append(self.sampler.prompt_logprobs(logits, targets[part], int(wanted.max())))
        return index, [
            torch.cat([f.ids_MK for f in found]),
            torch.cat([f.logprobs_MK for f in found]),
            torch.cat([f.ranks_M for f in found]),
        ]

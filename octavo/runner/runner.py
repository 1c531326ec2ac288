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
from octavo.core.errors import RowFault
from octavo.core.plan import IntArray, LogprobRows, RowJoin, StepPlan, StepResult
from octavo.models.decoder import Decoder
from octavo.runner.batch import BatchBuilder, StepInput
from octavo.runner.graphs import DecodeGraphs
from octavo.runner.mixed import MixedGraphs
from octavo.runner.recorder import Recorder
from octavo.sampling.logprobs import DeviceLogprobs
from octavo.sampling.sampler import Sampler

# Positions whose logits are in memory at once for prompt_logprobs: 256 x 128k floats are 128 MiB.
PROMPT_LOGPROB_SLICE = 256


@dataclass(slots=True)
class StepHandle:
    """A step under way. What it gives is on its way to the host; `wait` returns it, and only then."""

    _tokens_S: Tensor
    _picked: IntArray | None  # which of the tokens are the step's, in its order; None: all
    _logprobs: LogprobRows | None
    _prompt_logprobs: LogprobRows | None
    _event: torch.cuda.Event | None

    @classmethod
    def start(cls, tokens_S: Tensor, logprobs: DeviceLogprobs | None, prompt: DeviceLogprobs | None) -> StepHandle:
        tokens, found, prompt_found = to_host(tokens_S.int()), _rows_to_host(logprobs), _rows_to_host(prompt)
        return cls(tokens, None, found, prompt_found, recorded_event(tokens_S.device))

    @classmethod
    def arriving(cls, tokens: Tensor, picked: IntArray | None, device: torch.device) -> StepHandle:
        """Of tokens whose copy to the host is under way already."""
        return cls(tokens, picked, None, None, recorded_event(device))

    def wait(self) -> StepResult:
        if self._event is not None:
            self._event.synchronize()
        tokens_S = self._tokens_S.numpy()
        if self._picked is not None:
            tokens_S = tokens_S[self._picked]
        return StepResult(tokens_S, self._logprobs, self._prompt_logprobs)


def recorded_event(device: torch.device) -> torch.cuda.Event | None:
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def to_host(tensor: Tensor) -> Tensor:
    """The tensor in pinned memory, where it will have arrived once an event recorded after this call has passed."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _rows_to_host(found: DeviceLogprobs | None) -> LogprobRows | None:
    if found is None:
        return None
    ids_MK, values_MK, ranks_M = map(to_host, (found.ids_MK, found.logprobs_MK, found.ranks_M))
    return LogprobRows(found.index_M, ids_MK.numpy(), values_MK.numpy(), ranks_M.numpy())


class Runner:
    """`graphs`: what can runs as a CUDA graph, on a device and with a backend that have them."""

    def __init__(
        self,
        model: Decoder,
        cache: CacheConfig,
        attention: AttentionBackend,
        device: torch.device,
        graphs: bool = False,
    ) -> None:
        self.model = model
        self.attention = attention
        self.builder = BatchBuilder(cache, device, attention)
        self.sampler = Sampler(cache.max_rows, model.spec.vocab_size, device)
        self.device = device
        self.decode_graphs: DecodeGraphs | None = None
        self.mixed_graphs: MixedGraphs | None = None
        if graphs:
            parts = (model, attention, self.sampler, self.builder, cache, Recorder(device))
            self.decode_graphs, self.mixed_graphs = DecodeGraphs(*parts), MixedGraphs(*parts)
        self._prompt_logprobs = np.full(cache.max_rows, -1, np.int32)  # how many each row wants; -1: none

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepHandle:
        for join in plan.joins:
            try:
                self._join(join)
            except (torch.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:
                raise RowFault(join.row) from error
        self.sampler.write_masks(plan.mask_rows_M, plan.masks_MW)
        if len(plan.poisoned_B):
            self.builder.poison(plan.poisoned_B)
        if len(plan.copy_src_P):
            self.builder.copy_blocks(plan.copy_src_P, plan.copy_dst_P)
        if (handle := self._replay(plan)) is not None:
            return handle
        step = self.builder.build(plan)
        self.attention.plan(step.batch)
        hidden_TE = self.model.forward(step.batch)
        tokens_S, logprobs = self._sample(plan, step, hidden_TE)
        return StepHandle.start(tokens_S, logprobs, self._score_prompts(plan, hidden_TE))

    def _join(self, join: RowJoin) -> None:
        """The one place where a row gets an owner: nothing that is kept by row outlives it."""
        self.builder.reset_row(join.row)
        self.sampler.join(join)
        wanted = join.params.prompt_logprobs
        self._prompt_logprobs[join.row] = -1 if wanted is None else wanted

    def recover(self, error: Exception) -> bool:
        """After a step could not be started, and before all its rows join anew. Whether it was for want of memory;
        raises the error if the device is lost."""
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.device)
            except Exception:
                raise error from None
        self.builder.forget()
        self.sampler.forget()
        if self.decode_graphs is not None:
            self.decode_graphs.forget()
        exhausted = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if exhausted and self.device.type == "cuda":
            torch.cuda.empty_cache()
        return exhausted

    def _replay(self, plan: StepPlan) -> StepHandle | None:
        """The step as a graph, if it can be one."""
        if self.decode_graphs is None or self.mixed_graphs is None:
            return None
        arriving_S = self.decode_graphs.run(plan)
        if arriving_S is not None:
            self.builder.forget()
            return StepHandle.arriving(arriving_S, None, self.device)
        self.decode_graphs.forget()
        if self._prompt_logprobs[plan.rows_N[plan.num_decodes :]].max(initial=-1) >= 0:
            return None
        mixed = self.mixed_graphs.run(plan)
        if mixed is None:
            return None
        self.builder.forget()
        return StepHandle.arriving(*mixed, self.device)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Before the first step: what must not wait for it."""
        if self.decode_graphs is not None:
            self.decode_graphs.warm_up()

    @torch.inference_mode()
    def prepare(self) -> bool:
        """Something that will be needed and can be done while there is no work. False if there is nothing left."""
        if self.decode_graphs is None or self.mixed_graphs is None:
            return False
        return self.decode_graphs.capture_next() or self.mixed_graphs.capture_next()

    def _sample(self, plan: StepPlan, step: StepInput, hidden_TE: Tensor) -> tuple[Tensor, DeviceLogprobs | None]:
        if len(plan.sampled_S) == 0:
            return hidden_TE.new_empty(0, dtype=torch.int64), None
        hidden_SE = hidden_TE if step.last_S is None else hidden_TE[step.last_S]
        sampled = self.sampler.sample(
            self.model.logits(hidden_SE),
            step.rows_S,
            step.next_positions_S,
            plan.rows_N[plan.sampled_S],
            (plan.banned_rows, plan.banned_tokens),
            plan.steady,
        )
        # A row without a token (-1) ends; until then its next input only has to be a valid id.
        self.builder.last_token_R[step.rows_S] = sampled.tokens_S.clamp(min=0)
        return sampled.tokens_S, sampled.logprobs

    def _score_prompts(self, plan: StepPlan, hidden_TE: Tensor) -> DeviceLogprobs | None:
        """Logprobs of the prompt tokens that follow this step's chunk tokens, where they were asked for."""
        wanted = self._prompt_logprobs[plan.rows_N[plan.num_decodes :]]
        most = int(wanted.max(initial=-1))
        if most < 0:
            return None
        asked_C = np.repeat(wanted >= 0, plan.counts_N[plan.num_decodes :])
        index_M = np.flatnonzero(asked_C & (plan.chunk_targets_C >= 0)).astype(np.int32)
        if len(index_M) == 0:
            return None
        positions_M = torch.from_numpy(index_M + plan.num_decodes).to(hidden_TE.device)
        targets_M = torch.from_numpy(plan.chunk_targets_C[index_M]).to(hidden_TE.device, torch.int64)
        parts = []
        for start in range(0, len(index_M), PROMPT_LOGPROB_SLICE):
            part = slice(start, start + PROMPT_LOGPROB_SLICE)
            logits_MV = self.model.logits(hidden_TE[positions_M[part]])
            parts.append(self.sampler.prompt_logprobs(logits_MV, targets_M[part], most, index_M[part]))
        return DeviceLogprobs(
            index_M,
            torch.cat([part.ids_MK for part in parts]),
            torch.cat([part.logprobs_MK for part in parts]),
            torch.cat([part.ranks_M for part in parts]),
        )

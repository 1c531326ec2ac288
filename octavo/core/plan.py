"""A step as data: what the scheduler decided (`StepPlan`) and what came of it (`StepResult`).

There is no prefill phase and no decode phase. A plan lists rows and how many tokens each computes in this step.
The first `num_decodes` rows compute one token whose id is the one sampled last for that row: it is still on the
device, so the host need not know it. The rows after them compute tokens that the host knows (`chunk_tokens`):
prompt chunks, prefixes recomputed after a preemption, the last prompt token of a fork.

Shapes: N rows in the step, S sampled rows, C chunk tokens, P block copies, D block-table changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from octavo.core.params import SamplingParams
from octavo.core.pooling import PoolingParams

IntArray = npt.NDArray[np.int32]
LongArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


NO_INTS: IntArray = np.empty(0, np.int32)  # shared: nothing can be written into it


@dataclass(slots=True)
class RowJoin:
    """A sequence takes a row. Everything the runner keeps by row is reset from this."""

    row: int
    params: SamplingParams
    seed: int  # the sequence's own: the request's seed and the index of the sequence, or drawn at random
    tokens: IntArray  # prompt and, after a preemption, what was generated before it
    prompt_len: int  # tokens[:prompt_len] is the prompt
    stop_ids: list[int]  # masked out of the logits until min_tokens are generated
    masked: bool = False  # each plan that samples the row brings its mask


@dataclass(slots=True)
class StepPlan:
    rows_N: IntArray  # decodes first, then chunks; chunks of one token before longer ones
    starts_N: IntArray  # tokens of the row already in the KV cache: the position of its first token here
    counts_N: IntArray  # tokens computed in this step
    epochs_N: IntArray  # which owner of the row this is for: a result for a former owner is dropped
    num_decodes: int
    chunk_tokens_C: IntArray  # ids for rows_N[num_decodes:], one after the other
    chunk_targets_C: IntArray  # the token after each chunk token (-1: sampled here), for prompt_logprobs
    sampled_S: IntArray  # indices into rows_N whose next token is sampled, ascending
    steady: bool  # the same rows as in the step before, one token each: nothing to upload but new blocks
    joins: list[RowJoin] = field(default_factory=list)
    table_rows_D: IntArray = field(default_factory=lambda: NO_INTS)  # block table changes: table[row, index] = block
    table_index_D: IntArray = field(default_factory=lambda: NO_INTS)
    table_blocks_D: IntArray = field(default_factory=lambda: NO_INTS)
    copy_src_P: IntArray = field(default_factory=lambda: NO_INTS)  # whole-block copies, all read before any is written,
    copy_dst_P: IntArray = field(default_factory=lambda: NO_INTS)  # before this step's first write
    # Tokens that must not be sampled in this step, as pairs: indices into sampled_S, and token ids.
    banned_rows: IntArray = field(default_factory=lambda: NO_INTS)
    banned_tokens: IntArray = field(default_factory=lambda: NO_INTS)
    # What a grammar allows: rows sampled in this step, and a bit for each token, W words of 32.
    mask_rows_M: IntArray = field(default_factory=lambda: NO_INTS)
    masks_MW: IntArray = field(default_factory=lambda: NO_INTS)
    poisoned_B: IntArray = field(default_factory=lambda: NO_INTS)  # fresh blocks, in debug mode: nobody may read them

    @property
    def num_tokens(self) -> int:
        return self.num_decodes + len(self.chunk_tokens_C)

    @property
    def num_sampled(self) -> int:
        return len(self.sampled_S)


@dataclass(slots=True)
class LogprobRows:
    """Logprobs of M positions: column 0 is the token itself, the columns after it the k likeliest in order.

    Rows that asked for fewer than k are cut by whoever shows them.
    """

    index_M: IntArray  # sampled: index into plan.sampled_S; prompt: index into plan.chunk_tokens_C
    ids_MK: IntArray
    logprobs_MK: FloatArray
    ranks_M: IntArray  # rank of the token itself, 1 is the likeliest


@dataclass(slots=True)
class StepResult:
    tokens_S: IntArray  # -1 where the logits were not finite
    logprobs: LogprobRows | None = None
    prompt_logprobs: LogprobRows | None = None


@dataclass(slots=True)
class PoolingPlan:
    """A step of whole prompts, one after the other, of which nothing is kept."""

    uids_N: LongArray
    counts_N: IntArray
    tokens_T: IntArray
    types_T: IntArray | None  # which of two texts a token is of; None: all are of the first
    params: list[PoolingParams]
    steady: bool = False
    num_sampled: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.tokens_T)


@dataclass(slots=True)
class PoolingResult:
    """What was asked for of each sequence of the plan: [values], or [tokens, values]; not finite if it went wrong."""

    values: list[FloatArray]

"""What comes back: `StepOutputs`, one packed message a step, and `RequestOutput`, what users see (vLLM's names)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar

import msgspec


class FinishReason(IntEnum):
    STOP = 0
    LENGTH = 1
    ABORT = 2
    ERROR = 3

    def __str__(self) -> str:
        return self.name.lower()


class Fault(IntEnum):
    """Why an answer ended with an error: all that a client may hear of it, but for `Finished.detail`."""

    INTERNAL = 0  # a bug of ours: the log has the rest
    NAN_LOGITS = 1  # the model's logits were not finite
    NO_MEMORY = 2  # a step with this sequence did not fit into the device's memory
    GRAMMAR = 3  # what it must match is too complex; `detail` says why
    GRAMMARS_LOST = 4  # the process that follows grammars was lost


class Finished(msgspec.Struct, array_like=True):
    """A sequence ended."""

    uid: int
    reason: FinishReason
    stop_id: int = -1  # the token that ended it, if one did
    num_tokens: int = 0  # tokens generated
    tokens: bytes = b""  # int32 ids of all of them, where the request did not stream
    detail: str = ""  # of an error that the client may hear of
    preemptions: int = 0  # times that it gave its place to others
    fault: Fault = Fault.INTERNAL  # where the reason is ERROR


class Pooled(msgspec.Struct, array_like=True):
    """What a request without an answer is for: float32 values, a vector or (`rows`) one for each token."""

    uid: int
    values: bytes
    rows: int = 0


class Logprobs(msgspec.Struct, array_like=True):
    """M rows of `width` columns: the token itself, then the likeliest; int32 and float32 bytes, row after row."""

    uids: list[int]
    width: int
    ids: bytes
    values: bytes
    ranks: bytes


class Stats(msgspec.Struct, array_like=True):
    """Gauges as they stand after the step; counters are what was added by it."""

    running: int = 0
    waiting: int = 0
    kv_used_blocks: int = 0  # referenced by a running sequence
    kv_cached_blocks: int = 0  # free, but still holding a prefix that may be hit
    kv_total_blocks: int = 0
    kv_waste: float = 0.0  # share of allocated slots that hold no token
    preemptions: int = 0
    prefix_queries: int = 0  # tokens
    prefix_hits: int = 0  # tokens
    step_tokens: int = 0  # tokens computed by the step
    kv_quarantined_blocks: int = 0  # whose bookkeeping was found wrong: never used again
    repairs: int = 0  # times that it was
    grammar_rows: int = 0  # whose answers a matcher follows


class StepOutputs(msgspec.Struct, array_like=True):
    """One message a step: arrays, not an object a token."""

    uids: bytes = b""  # int64, streaming sequences that got a token
    tokens: bytes = b""  # int32, in the same order
    finished: list[Finished] = msgspec.field(default_factory=list)
    admitted: list[int] = msgspec.field(default_factory=list)  # uids whose first step has ended
    started: list[tuple[int, int]] = msgspec.field(default_factory=list)  # (uid, prompt tokens from the cache)
    logprobs: Logprobs | None = None
    prompt_logprobs: Logprobs | None = None
    pooled: list[Pooled] = msgspec.field(default_factory=list)  # of requests that are in `finished` too
    stats: Stats = msgspec.field(default_factory=Stats)


@dataclass(slots=True)
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


TokenLogprobs = dict[int, Logprob]


@dataclass(slots=True)
class RequestMetrics:
    """Times of one request, in seconds of `time.monotonic()`."""

    arrival_time: float = 0.0
    scheduled_time: float | None = None  # its first step began
    first_token_time: float | None = None
    finished_time: float | None = None
    num_preemptions: int = 0  # of all its answers


@dataclass(slots=True)
class CompletionOutput:
    """One answer to a prompt: `n` of them have the indices 0 … n - 1."""

    # Names that callers of vLLM's read; what they stand for is not here.
    lora_request: ClassVar[None] = None
    routed_experts: ClassVar[None] = None

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None  # stop, length, abort, error
    stop_reason: int | str | None = None  # the stop string or token id that ended it; None for EOS

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    lora_request: ClassVar[None] = None
    encoder_prompt: ClassVar[None] = None
    encoder_prompt_token_ids: ClassVar[None] = None
    num_cache_creation_tokens: ClassVar[None] = None

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    num_cached_tokens: int = 0


@dataclass(slots=True)
class BeamSearchSequence:
    tokens: list[int]  # prompt and answer
    text: str | None = None
    cum_logprob: float = 0.0
    finish_reason: str | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    sequences: list[BeamSearchSequence]

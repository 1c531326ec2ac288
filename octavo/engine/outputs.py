"""From the engine's packed messages to what users see: texts, logprobs, finish reasons.

Detokenizes, finds stop strings, and gathers the n answers of a request. Used by `LLM` in process and by `AsyncLLM`
beside the server; the engine itself never touches text.
"""

from __future__ import annotations

import logging
import struct
import time
from dataclasses import dataclass, field
from typing import cast

import msgspec
import numpy as np

from octavo.core.errors import EngineUnavailable, InternalError, NanLogits, Overloaded, RequestError
from octavo.core.outputs import (
    CompletionOutput,
    Fault,
    Finished,
    FinishReason,
    Logprob,
    Logprobs,
    RequestMetrics,
    RequestOutput,
    StepOutputs,
    TokenLogprobs,
)
from octavo.core.params import RequestOutputKind
from octavo.core.pooling import FloatArray, PoolingOutput, PoolingRequestOutput
from octavo.core.request import EngineRequest, pack_ids
from octavo.text.detokenizer import Detokenizer
from octavo.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Answer:
    """One of the n sequences of a request. What a DELTA output has carried is gone from `text`."""

    index: int
    detokenizer: Detokenizer | None
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    # Packed until they are told, a twentieth of their size: a client may have stopped reading.
    logprobs: list[bytes | TokenLogprobs] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    told_tokens: int = 0  # carried by DELTA outputs
    changed: bool = False  # since the last output


class RequestState:
    """A request between the user and the engine."""

    def __init__(
        self, request_id: str, request: EngineRequest, tokenizer: Tokenizer, prompt: str | None, arrival: float
    ) -> None:
        self.request_id = request_id
        self.request, self.params = request, request.params
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.prompt_ids = request.prompt_ids().tolist()
        self.answers = [_Answer(i, self._detokenizer()) for i in range(request.params.n)]
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        if request.params.prompt_logprobs is not None:
            self.prompt_logprobs = [None]  # nothing comes before the first token
        self.metrics = RequestMetrics(arrival_time=arrival)
        self.num_cached = 0
        self.changed = False
        self.finished = False  # all of its answers are
        self.resumes = 0  # engines that died while it was on its way, and had successors that went on with it
        self.lost = False  # the engine that had it has died
        self.pooled: FloatArray | None = None  # what a request that generates nothing has asked for
        self.failure: RequestError | None = None  # why an answer has ended with an error
        self.texts: TokenTexts  # of the processor that knows it

    def live_uids(self) -> list[int]:
        return [self.request.uid + a.index for a in self.answers if a.finish_reason is None]

    def resumed(self) -> EngineRequest:
        """What is left of the request, for another engine: it goes on from what has been told."""
        live = [answer for answer in self.answers if answer.finish_reason is None]
        for answer in live:
            if not answer.token_ids:  # who does not stream has logprobs at each step and tokens at the end
                answer.logprobs, answer.cumulative_logprob = [], 0.0
        if self.prompt_logprobs is not None and not any(answer.token_ids for answer in self.answers):
            self.prompt_logprobs = [None]  # perhaps not all have come
        self.resumes, self.lost = self.resumes + 1, False
        return msgspec.structs.replace(
            self.request, resumed=[(answer.index, pack_ids(answer.token_ids)) for answer in live]
        )

    def fail(self, error: RequestError) -> None:
        """Ends all answers that are on their way."""
        self.failure = self.failure or error
        for answer in self.answers:
            answer.changed = answer.changed or answer.finish_reason is None
            answer.finish_reason = answer.finish_reason or str(FinishReason.ERROR)
        self.changed = self.finished = True
        self.metrics.finished_time = time.monotonic()

    def _detokenizer(self) -> Detokenizer | None:
        params = self.request.params
        if not params.detokenize:
            return None
        return Detokenizer(
            self.tokenizer,
            self.prompt_ids,
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
            stop=params.stop or (),
            include_stop=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
        )

    def take(self, index: int, tokens: list[int], end: Finished | None) -> bool:
        """New tokens of an answer, and its end if it has come. True if a stop string ends it now."""
        answer = self.answers[index]
        if answer.finish_reason is not None:
            return False
        self.changed = answer.changed = True
        if self.metrics.first_token_time is None and tokens:
            self.metrics.first_token_time = time.monotonic()
        answer.token_ids += tokens
        if end is not None:
            self.metrics.num_preemptions += end.preemptions
        stopped = self._add_text(answer, tokens, end)
        if not stopped and end is not None:
            answer.finish_reason = str(end.reason)
            if end.reason is FinishReason.ERROR:
                self.failure = self.failure or _error_of(end)
            # OpenAI's clients read null as "the end of the text": only ids that the user named are told.
            named = end.reason is FinishReason.STOP and end.stop_id in (self.params.stop_token_ids or ())
            answer.stop_reason = end.stop_id if named else None
        if answer.finish_reason is not None and not self.live_uids():
            self.finished = True
            self.metrics.finished_time = time.monotonic()
        return stopped

    def _add_text(self, answer: _Answer, tokens: list[int], end: Finished | None) -> bool:
        detokenizer = answer.detokenizer
        if detokenizer is None:
            return False
        # The token that ends an answer is not part of its text.
        hide = end is not None and end.stop_id >= 0 and not self.params.include_stop_str_in_output
        answer.text += detokenizer.push(tokens[:-1] if hide else tokens)
        if detokenizer.stopped_by is None:
            if end is None:
                return False
            answer.text += detokenizer.finish()
        if detokenizer.stopped_by is None:
            return False
        answer.finish_reason, answer.stop_reason = "stop", detokenizer.stopped_by
        del answer.token_ids[detokenizer.num_tokens :]
        del answer.logprobs[detokenizer.num_tokens :]
        return True

    def add_logprobs(self, index: int, packed: bytes) -> None:
        answer = self.answers[index]
        if answer.finish_reason is None:
            answer.logprobs.append(packed)
            answer.cumulative_logprob += _logprob_of(packed)

    def _logprobs(self, answer: _Answer, start: int, delta: bool) -> list[TokenLogprobs]:
        rows = answer.logprobs
        for i in range(start, len(rows)):
            if isinstance(row := rows[i], bytes):
                rows[i] = self.texts.unpacked(row)
        found = cast(list[TokenLogprobs], rows[start:])
        if delta:  # they are not told again
            rows[start:] = [b""] * len(found)
        return found

    def output(self) -> RequestOutput | None:
        """What is to be told now, by the request's output kind; None if there is nothing new."""
        kind = self.params.output_kind
        if not self.changed or (kind is RequestOutputKind.FINAL_ONLY and not self.finished):
            return None
        self.changed = False
        delta = kind is RequestOutputKind.DELTA
        return RequestOutput(
            self.request_id,
            self.prompt,
            self.prompt_ids,
            [self._completion(answer, delta) for answer in self.answers if answer.changed or not delta],
            self.finished,
            self.prompt_logprobs,
            self.metrics,
            self.num_cached,
        )

    def pooling_output(self) -> PoolingRequestOutput[PoolingOutput]:
        """Of a request that generates nothing and has ended well."""
        assert self.pooled is not None, "it has not ended well"
        return PoolingRequestOutput(self.request_id, PoolingOutput(self.pooled), self.prompt_ids)

    def _completion(self, answer: _Answer, delta: bool) -> CompletionOutput:
        text, token_ids, start = answer.text, answer.token_ids, 0
        answer.changed = False
        if delta:
            start, answer.told_tokens = answer.told_tokens, len(token_ids)
            answer.text = ""
        if self.params.logprobs is None:
            cumulative, logprobs = None, None
        else:
            cumulative, logprobs = answer.cumulative_logprob, self._logprobs(answer, start, delta)
        return CompletionOutput(
            answer.index,
            text,
            token_ids[start:],
            cumulative,
            logprobs,
            answer.finish_reason,
            answer.stop_reason,
        )


class OutputProcessor:
    """All requests of one engine client, found by the uids of their sequences."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._states: dict[int, RequestState] = {}
        self._texts = TokenTexts(tokenizer)

    def __len__(self) -> int:
        return len(self._states)

    def add(self, state: RequestState) -> None:
        state.texts = self._texts
        for index in range(state.params.n):
            self._states[state.request.uid + index] = state

    def find(self, uids: list[int]) -> list[RequestState]:
        """The requests of these sequences, each once."""
        found = {state.request.uid: state for uid in uids if (state := self._states.get(uid)) is not None}
        return list(found.values())

    def drop(self, state: RequestState) -> list[int]:
        """Forgets a request; returns the uids that the engine may still be working on."""
        for index in range(state.params.n):
            self._states.pop(state.request.uid + index, None)
        return state.live_uids()

    def check_integrity(self) -> None:
        for uid, state in self._states.items():
            uids = range(state.request.uid, state.request.uid + state.params.n)
            assert uid in uids and all(self._states.get(other) is state for other in uids), "a request is half known"
            assert not state.finished, "a finished request is still known"

    def process(self, outputs: StepOutputs) -> tuple[list[RequestState], list[int]]:
        """The requests that have news, and the uids that the engine must abort because a stop string ended them.

        A request whose outputs cannot be taken fails; nobody else has a part in it.
        """
        states = self._states
        changed: dict[int, RequestState] = {}
        aborts: list[int] = []

        def fail(state: RequestState) -> None:
            log.exception("request %r failed: its outputs cannot be taken", state.request_id)
            aborts.extend(self.drop(state))
            state.fail(InternalError())
            changed[state.request.uid] = state

        for uid in outputs.admitted:
            if (state := states.get(uid)) is not None and state.metrics.scheduled_time is None:
                state.metrics.scheduled_time = time.monotonic()
        for uid, cached in outputs.started:
            if (state := states.get(uid)) is not None and uid == state.request.uid and not state.resumes:
                state.num_cached = cached
        if outputs.prompt_logprobs is not None:
            for row, uid in enumerate(outputs.prompt_logprobs.uids):
                state = states.get(uid)
                if state is not None and state.prompt_logprobs is not None and uid == state.request.uid:
                    try:
                        packed = _packed(outputs.prompt_logprobs, row, state.params.prompt_logprobs or 0)
                        state.prompt_logprobs.append(self._texts.unpacked(packed))
                    except Exception:
                        fail(state)
        if outputs.logprobs is not None:
            for row, uid in enumerate(outputs.logprobs.uids):
                if (state := states.get(uid)) is not None:
                    try:
                        packed = _packed(outputs.logprobs, row, state.params.logprobs or 0)
                        state.add_logprobs(uid - state.request.uid, packed)
                    except Exception:
                        fail(state)
        for pooled in outputs.pooled:
            if (state := states.get(pooled.uid)) is not None:
                values: FloatArray = np.frombuffer(pooled.values, np.float32)
                state.pooled = values.reshape(pooled.rows, -1) if pooled.rows else values
        ends = {end.uid: end for end in outputs.finished}
        news = [
            (uid, [token])
            for uid, token in zip(
                np.frombuffer(outputs.uids, np.int64).tolist(),
                np.frombuffer(outputs.tokens, np.int32).tolist(),
                strict=True,
            )
        ]
        streamed = {uid for uid, _ in news} if ends else ()
        news += [
            (end.uid, np.frombuffer(end.tokens, np.int32).tolist()) for end in ends.values() if end.uid not in streamed
        ]
        for uid, tokens in news:
            state = states.get(uid)
            if state is None:
                continue
            end = ends.get(uid)
            try:
                if state.take(uid - state.request.uid, tokens, end) and end is None:
                    aborts.append(uid)
            except Exception:
                fail(state)
            if state.changed:
                changed[state.request.uid] = state
            if state.finished:
                self.drop(state)
        return list(changed.values()), aborts


class TokenTexts:
    """Of single tokens, for logprobs; at most the vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def _of(self, token: int) -> str:
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self._tokenizer.decode([token], skip_special_tokens=False)
        return text

    def unpacked(self, packed: bytes) -> TokenLogprobs:
        """The token itself, then the likeliest, which may be the token itself once more."""
        width = len(packed) // 8
        rank, *ids = struct.unpack_from(f"={1 + width}i", packed)
        values = struct.unpack_from(f"={width}f", packed, 4 + 4 * width)
        found = {ids[0]: Logprob(values[0], rank, self._of(ids[0]))}
        for place in range(1, width):
            found.setdefault(ids[place], Logprob(values[place], place, self._of(ids[place])))
        return found


def _packed(found: Logprobs, row: int, count: int) -> bytes:
    """A row's rank, ids and values: of the token itself and `count` others; of the step some may have wanted more."""
    begin = 4 * row * found.width
    end = begin + 4 * min(found.width, count + 1)
    return found.ranks[4 * row : 4 * row + 4] + found.ids[begin:end] + found.values[begin:end]


def _logprob_of(packed: bytes) -> float:
    """Of the token itself."""
    value: float = struct.unpack_from("=f", packed, 4 + len(packed) // 8 * 4)[0]
    return value


def _error_of(end: Finished) -> RequestError:
    """What a client hears of an answer that ended with an error."""
    match end.fault:
        case Fault.NAN_LOGITS:
            return NanLogits()
        case Fault.NO_MEMORY:
            return Overloaded("there was not enough memory to compute this request; try again later")
        case Fault.GRAMMAR:
            return RequestError(f"structured_outputs: {end.detail}", "structured_outputs", "grammar_too_complex")
        case Fault.GRAMMARS_LOST:
            return EngineUnavailable(end.detail)
    return InternalError()

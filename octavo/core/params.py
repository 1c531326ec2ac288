"""What a user may ask of a generation. Names and defaults are vLLM's and OpenAI's; every value is checked here.

A `SamplingParams` that exists is valid: `__post_init__` raises `RequestError` naming the field. Limits that
depend on the model (vocabulary, context) are checked where a request is built, in `octavo.engine.intake`.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

import msgspec

from octavo.core.errors import RequestError
from octavo.core.structured import StructuredOutputs

MAX_N = 128
MAX_LOGPROBS = 128  # OpenAI's clients may ask for 20; beam search for twice its width
MAX_BEAMS = MAX_LOGPROBS // 2
MAX_STOPS = 1024
MAX_STOP_LENGTH = 256
MAX_STOP_TOTAL = 8192  # characters of all stops: the automaton that finds them takes a state for each
MAX_TOKEN_IDS = 1024  # entries in logit_bias, stop_token_ids and bad_words
_INT64 = 2**63


class RequestOutputKind(IntEnum):
    """What each `RequestOutput` of a request holds."""

    CUMULATIVE = 0  # all the text so far, at every step
    DELTA = 1  # only what is new
    FINAL_ONLY = 2  # one output, at the end


def _number(value: Any, name: str, low: float, high: float, *, open_low: bool = False) -> None:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or value > high or value < low or (open_low and value == low):
        raise RequestError(f"{name} must be a number in {'(' if open_low else '['}{low}, {high}], got {value!r}", name)


def _integer(value: Any, name: str, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(f"{name} must be an integer in [{low}, {high}], got {_short(value)}", name)


def _short(value: Any) -> str:
    """repr() that cannot flood a log or an answer."""
    try:
        text = repr(value)
    except ValueError:  # an integer too long for Python to print
        return "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How to choose tokens and when to stop.

    temperature 0 is greedy. `top_k` 0 or -1 keeps every token; `top_p` 1 and `min_p` 0 are off. `max_tokens`
    None means as many as the context allows. `seed` makes the answer reproducible whatever else runs beside it.
    `logprobs` k returns the k likeliest tokens and the sampled one, of the model's own distribution (before
    penalties, temperature and truncation); `prompt_logprobs` the same for each prompt token. Reasoning is ended after
    `thinking_token_budget` tokens; `thinking_marks` are the tokens that begin and end it, where the chat template does
    not tell. `structured_outputs` says what an answer must match: it then ends where nothing more may follow, whatever
    min_tokens and ignore_eos say.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] | str | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    skip_reading_prefix_cache: bool = False
    thinking_token_budget: int | None = None
    thinking_marks: list[str] | None = None
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        _integer(self.n, "n", 1, MAX_N)
        _number(self.presence_penalty, "presence_penalty", -2.0, 2.0)
        _number(self.frequency_penalty, "frequency_penalty", -2.0, 2.0)
        _number(self.repetition_penalty, "repetition_penalty", 0.01, 100.0)  # logits over less would overflow
        _number(self.temperature, "temperature", 0.0, 100.0)
        if self.temperature < 1e-5:  # logits divided by less overflow float32: it is greedy for any purpose
            self.temperature = 0.0
        _number(self.top_p, "top_p", 0.0, 1.0, open_low=True)
        _integer(self.top_k, "top_k", -1, 2**31 - 1)
        _number(self.min_p, "min_p", 0.0, 1.0)
        if self.seed is not None:
            _integer(self.seed, "seed", -_INT64, _INT64 - 1)
        if self.max_tokens is not None:
            _integer(self.max_tokens, "max_tokens", 0, 2**31 - 1)
        _integer(self.min_tokens, "min_tokens", 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens ({self.min_tokens}) is more than max_tokens ({self.max_tokens})", "min_tokens"
            )
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _integer(getattr(self, name), name, 0, MAX_LOGPROBS)
        if self.max_tokens == 0 and self.prompt_logprobs is None:
            raise RequestError("max_tokens 0 asks for nothing unless prompt_logprobs is set", "max_tokens")
        if self.thinking_token_budget is not None:
            _integer(self.thinking_token_budget, "thinking_token_budget", 1, 2**31 - 1)
        marks = self.thinking_marks
        if marks is not None and (not isinstance(marks, list) or [type(mark) for mark in marks] != [str, str]):
            raise RequestError("thinking_marks must be two strings", "thinking_marks")
        if self.structured_outputs is not None and not isinstance(self.structured_outputs, StructuredOutputs):
            raise RequestError("structured_outputs must be StructuredOutputs", "structured_outputs")
        self.stop = self._stops()
        for name in ("stop_token_ids", "allowed_token_ids"):
            self._token_ids(name)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError("allowed_token_ids must not be empty", "allowed_token_ids")
        self._bias()
        if self.bad_words is not None:
            if not isinstance(self.bad_words, list) or len(self.bad_words) > MAX_TOKEN_IDS:
                raise RequestError(f"bad_words must be a list of at most {MAX_TOKEN_IDS} strings", "bad_words")
            if any(not isinstance(w, str) or not w or len(w) > MAX_STOP_LENGTH for w in self.bad_words):
                raise RequestError(f"bad_words must be strings of 1 to {MAX_STOP_LENGTH} characters", "bad_words")

    def _stops(self) -> list[str]:
        stop = [self.stop] if isinstance(self.stop, str) else (self.stop or [])
        if not isinstance(stop, list) or len(stop) > MAX_STOPS:
            raise RequestError(f"stop must be a string or a list of at most {MAX_STOPS} strings", "stop")
        for text in stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_LENGTH:
                raise RequestError(f"each stop must be a string of 1 to {MAX_STOP_LENGTH} characters", "stop")
            if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
                raise RequestError("stop holds half a character (a lone surrogate)", "stop")
        if sum(map(len, stop)) > MAX_STOP_TOTAL:
            raise RequestError(f"all stop strings together may have {MAX_STOP_TOTAL} characters", "stop")
        return stop

    def _token_ids(self, name: str) -> None:
        ids = getattr(self, name)
        if ids is None:
            return
        # allowed_token_ids may list a large part of the vocabulary; stop ids are tested at every step.
        most = MAX_TOKEN_IDS if name == "stop_token_ids" else 1 << 20
        if not isinstance(ids, list) or len(ids) > most:
            raise RequestError(f"{name} must be a list of at most {most} token ids", name)
        if set(map(type, ids)) - {int}:
            raise RequestError(f"{name} must be a list of integers", name)
        if ids:
            _integer(min(ids), name, 0, 2**31 - 1)
            _integer(max(ids), name, 0, 2**31 - 1)

    def _bias(self) -> None:
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, dict) or len(self.logit_bias) > MAX_TOKEN_IDS:
            raise RequestError(f"logit_bias must be an object of at most {MAX_TOKEN_IDS} token ids", "logit_bias")
        bias = {}
        for key, value in self.logit_bias.items():
            # JSON objects have string keys: OpenAI's clients send {"50256": -100}.
            # Python refuses to read thousands of digits, with an error of its own.
            written = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 20
            token = int(key) if written else key
            _integer(token, "logit_bias", 0, 2**31 - 1)
            _number(value, "logit_bias", -100.0, 100.0)
            bias[token] = float(value)
        self.logit_bias = bias

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def clone(self, **changes: Any) -> SamplingParams:
        return msgspec.structs.replace(self, **changes)


class BeamSearchParams(msgspec.Struct, kw_only=True):
    """Beam search: keep the `beam_width` best continuations, ranked by logprob / length ** length_penalty.

    Logprobs are the model's own, so that `temperature` changes nothing. With `allowed_token_ids` a beam goes on with
    those of them that are among the 128 likeliest tokens at its place, and always with the likeliest of them.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    structured_outputs: None = None
    skip_special_tokens: bool = True
    allowed_token_ids: list[int] | None = None

    def __post_init__(self) -> None:
        if self.structured_outputs is not None:
            raise RequestError("beam search cannot follow structured_outputs", "structured_outputs")
        _integer(self.beam_width, "beam_width", 1, MAX_BEAMS)
        _integer(self.max_tokens, "max_tokens", 1, 2**31 - 1)
        _number(self.temperature, "temperature", 0.0, 100.0)
        _number(self.length_penalty, "length_penalty", -10.0, 10.0)

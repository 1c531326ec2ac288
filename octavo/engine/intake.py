"""The one place where a request for the engine is built: every route and the offline API come through here.

What depends only on the parameters is checked by `SamplingParams`; what depends on the model is checked here.
Behind it, values are trusted.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated

import msgspec

from octavo.core.errors import ContextLengthExceeded, ExceedsKVCapacity, RequestError
from octavo.core.params import MAX_TOKEN_IDS, RequestOutputKind, SamplingParams
from octavo.core.pooling import PoolingParams
from octavo.core.request import EngineRequest, pack_ids
from octavo.engine.build import EngineInfo
from octavo.engine.cost import most_tokens
from octavo.text.parsing.formats import detect
from octavo.text.tokenizer import NO_LIMIT, Tokenizer

MAX_SALT = 256
READING = SamplingParams(detokenize=False)  # of requests that generate nothing


class Intake:
    def __init__(self, tokenizer: Tokenizer, info: EngineInfo) -> None:
        self.tokenizer = tokenizer
        self.info = info
        self._uids = itertools.count(1)
        self._ids = list[Annotated[int, msgspec.Meta(ge=0, lt=info.vocab_size)]]

    def encode(self, prompt: str | Sequence[int], param: str = "prompt", add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt, which may already be ids. Errors name `param`."""
        if isinstance(prompt, str):
            # No token covers more characters than this, so a hopeless text is refused without tokenizing it.
            if len(prompt) > self.info.max_model_len * 1024:
                raise ContextLengthExceeded(f"{param} is far longer than the model's context", param)
            try:
                ids = self.tokenizer.encode(prompt, add_special_tokens)
            except RequestError as error:
                raise RequestError(f"{param}: {error.message}", param) from error
        else:
            ids = list(prompt)
            if len(ids) > self.info.max_model_len:
                raise ContextLengthExceeded(
                    f"{param} has {len(ids)} tokens, the model's context {self.info.max_model_len}", param
                )
            try:
                ids = msgspec.convert(ids, self._ids)  # one pass of compiled code: true is no number there
            except msgspec.ValidationError:
                raise RequestError(f"{param} holds a token id outside of [0, {self.info.vocab_size})", param) from None
        if not ids:
            raise RequestError(f"{param} is empty: at least one token is needed", param)
        return ids

    def build(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        salt: str = "",
        label: str = "",
        param: str = "prompt",
        grammar: str = "",
        tenant: str = "",
    ) -> EngineRequest:
        """Checks the request against the model and gives it its uids. `params` is not changed.

        `grammar` is what a checker made of `params.structured_outputs` (octavo.grammar.checker).
        """
        if self.info.pooling is not None:
            raise RequestError(f"this model does not generate: it can {', '.join(self.info.pooling.tasks)}", "model")
        assert bool(grammar) == (params.structured_outputs is not None), "a grammar that no checker has passed"
        # Checked again: fields may have been assigned to since it was made.
        params = params.clone(structured_outputs=None) if grammar else params.clone()
        max_tokens = self._room(prompt_ids, params, param)
        self._check_ids(params)
        if (
            not isinstance(salt, str)
            or len(salt) > MAX_SALT
            or any(ord(c) < 32 or 0xD800 <= ord(c) <= 0xDFFF for c in salt)
        ):
            raise RequestError(f"cache_salt must be at most {MAX_SALT} printable characters", "cache_salt")
        _check_priority(priority)
        stop_ids = list(params.stop_token_ids or [])
        if not params.ignore_eos:
            stop_ids += [token for token in self.tokenizer.eos_ids if token not in stop_ids]
        uid = next(self._uids)
        for _ in range(params.n - 1):
            next(self._uids)
        wants_text = params.detokenize and params.stop
        stream = params.output_kind is not RequestOutputKind.FINAL_ONLY or bool(wants_text)
        return EngineRequest(
            uid=uid,
            prompt=pack_ids(prompt_ids),
            params=params,
            max_tokens=max_tokens,
            stop_ids=stop_ids,
            bad_sequences=self._bad_sequences(params),
            priority=priority,
            salt=salt,
            stream=stream,
            tenant=tenant,
            label=label,
            thinking=self._thinking(params),
            grammar=grammar,
        )

    def read(
        self,
        texts: tuple[str, ...],
        params: Sequence[str] = ("input",),
        limit: int | None = None,
        keep_end: bool = False,
        add_special_tokens: bool = True,
    ) -> tuple[list[int], bytes]:
        """Ids of a text, or of two as the model reads pairs, and which of the two each is of.

        With a `limit` longer texts are cut, -1 means to the model's context; None: they are refused in
        `build_pooling`. Errors name one of `params`.
        """
        for text, param in zip(texts, params, strict=True):
            if limit is None and len(text) > self.info.max_model_len * 1024:
                raise ContextLengthExceeded(f"{param} is far longer than the model's context", param)
        if limit is None and len(texts) == 1:
            return self.encode(texts[0], params[0], add_special_tokens), b""
        most = NO_LIMIT if limit is None else self.limit(limit)
        try:
            ids, types = self.tokenizer.encode_cut(texts, most, keep_end, add_special_tokens)
        except RequestError as error:
            raise RequestError(f"{params[0]}: {error.message}", params[0]) from error
        if not ids:
            raise RequestError(f"{params[0]} is empty: at least one token is needed", params[0])
        return ids, types

    def limit(self, wanted: int) -> int:
        """The tokens that a text is cut to."""
        context = self.info.max_model_len
        if wanted != -1 and not 1 <= wanted <= context:
            raise RequestError(f"truncate_prompt_tokens must be -1 or in [1, {context}]", "truncate_prompt_tokens")
        return context if wanted == -1 else wanted

    def build_pooling(
        self,
        prompt_ids: list[int],
        params: PoolingParams,
        *,
        token_types: bytes = b"",
        priority: int = 0,
        label: str = "",
        param: str = "input",
        tenant: str = "",
    ) -> EngineRequest:
        """A request for what a model makes of a prompt; checked like one that generates."""
        params, able = params.clone(), self.info.pooling
        if able is None:
            raise RequestError(f"this model generates: it cannot {params.task}", "model")
        able.check(params)
        if len(prompt_ids) > self.info.max_model_len:
            raise ContextLengthExceeded(
                f"{param} has {len(prompt_ids)} tokens, the model's context {self.info.max_model_len}; "
                "truncate_prompt_tokens cuts what is longer",
                param,
            )
        _check_priority(priority)
        return EngineRequest(
            uid=next(self._uids),
            prompt=pack_ids(prompt_ids),
            params=READING,
            max_tokens=0,
            stop_ids=[],
            bad_sequences=[],
            priority=priority,
            tenant=tenant,
            label=label,
            pooling=params,
            token_types=token_types,
        )

    def _room(self, prompt_ids: list[int], params: SamplingParams, param: str) -> int:
        """Tokens that may be generated: what was asked for, or what the context has left."""
        length, context = len(prompt_ids), self.info.max_model_len
        asked = params.max_tokens
        if length > context or (length == context and asked != 0):
            raise ContextLengthExceeded(
                f"the prompt has {length} tokens, the model's context {context}: at least one must be left to generate",
                param,
            )
        if asked is not None and length + asked > context:
            raise ContextLengthExceeded(
                f"the prompt's {length} tokens and max_tokens {asked} are more than the model's context of {context}",
                "max_tokens",
            )
        capacity = self.info.kv_capacity
        if length + (1 if asked is None else asked) > capacity:
            raise ExceedsKVCapacity(
                f"the prompt's {length} tokens and {1 if asked is None else asked} to generate are more than the "
                f"{capacity} that the KV cache can hold",
                param if asked is None else "max_tokens",
            )
        affordable = most_tokens(params, length)
        if asked is not None:
            return asked
        room = min(context, capacity) - length
        return room if affordable is None else min(room, affordable)

    def _check_ids(self, params: SamplingParams) -> None:
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            found = max(getattr(params, name) or (), default=0)
            if found >= self.info.vocab_size:
                raise RequestError(f"{name} holds {found}, but the vocabulary has {self.info.vocab_size}", name)

    def _thinking(self, params: SamplingParams) -> list[int]:
        """The tokens that begin and end reasoning, if it is to be ended."""
        if params.thinking_token_budget is None:
            return []
        marks = params.thinking_marks
        if marks is None:
            found = detect("\n".join(self.tokenizer.chat_template.templates.values())).thinking
            marks = [found.begin, found.end] if found else []
        ids = [token_id for mark in marks if (token_id := self.tokenizer.token_to_id(mark)) is not None]
        if len(ids) != 2:
            raise RequestError(
                "thinking_token_budget needs a model that begins and ends its reasoning with one token each",
                "thinking_token_budget",
            )
        return ids

    def _bad_sequences(self, params: SamplingParams) -> list[list[int]]:
        """Each bad word as it is tokenized at the start of a text and after a space."""
        found: list[list[int]] = []
        for word in params.bad_words or []:
            for text in (word, " " + word.lstrip()):
                ids = self.tokenizer.encode(text, add_special_tokens=False)
                if ids and ids not in found:
                    found.append(ids)
        if sum(map(len, found)) > MAX_TOKEN_IDS:
            raise RequestError(f"bad_words are more than {MAX_TOKEN_IDS} tokens", "bad_words")
        return found


def _check_priority(priority: int) -> None:
    whole = isinstance(priority, int) and not isinstance(priority, bool)
    if not whole or not -(2**31) <= priority < 2**31:
        raise RequestError("priority must be a 32-bit integer", "priority")

"""What a model makes of the texts of one HTTP request: a place in the engine for each, and what the metrics count."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from octavo.core.errors import ContextLengthExceeded, RequestError
from octavo.core.outputs import RequestMetrics
from octavo.core.pooling import PoolingOutput, PoolingParams, PoolingRequestOutput
from octavo.engine.scores import gather
from octavo.server.completions import read_prompts
from octavo.server.http import Exchange
from octavo.server.pooling.protocol import MAX_INPUTS, ReadingRequest, ReadingUsage, TextsRequest
from octavo.server.service import Prompt, Service
from octavo.server.tracing import Answered

# Numbers in one answer: MAX_INPUTS embeddings of 8,192. A vector for each token of many texts would be without bound.
MAX_VALUES = 1 << 24
# Texts of one request that the engine has at a time, in what runs at once: a step's and the next one's.
STEPS_AHEAD = 2

# Fields that say how messages become a text.
OF_MESSAGES = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs")

Pooled = PoolingRequestOutput[PoolingOutput]


class Texts(NamedTuple):
    prompts: list[Prompt]
    field: str  # of the request, that they are in
    add_special_tokens: bool


class Reading:
    """The texts of one HTTP request, as `octavo.engine.scores` wants an engine to be."""

    def __init__(self, service: Service, exchange: Exchange, request: ReadingRequest, kind: str) -> None:
        exchange.take_id(request.request_id)
        service.check_priority(request.priority)
        if request.padding == "max_length":
            raise RequestError("padding: texts are computed as long as they are; max_length is not there.", "padding")
        if request.truncate_prompt_tokens == 0:
            raise RequestError("truncate_prompt_tokens must be -1 or at least 1.", "truncate_prompt_tokens")
        self.info = service.llm.info
        self.id = f"{kind}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = service.model(request.model)
        self.prompt_tokens = 0
        self.values = 0
        self._texts = 0
        self._service, self._exchange, self._request = service, exchange, request
        self._deadline = exchange.timeout() if request.deadline_ms is None else request.deadline_ms / 1000
        self._places = asyncio.Semaphore(STEPS_AHEAD * self.info.max_num_seqs)
        self._turn = asyncio.Lock()
        self._tenant = service.keys.number(exchange.key)

    async def texts(self, texts: Texts, params: PoolingParams) -> list[Pooled]:
        """What becomes of each; errors name the one at fault."""
        single = len(texts.prompts) == 1
        with self.limited():
            return await gather(
                self.pool(
                    prompt,
                    params,
                    prompt_param=texts.field if single else f"{texts.field}[{i}]",
                    add_special_tokens=texts.add_special_tokens,
                )
                for i, prompt in enumerate(texts.prompts)
            )

    async def pool(
        self,
        prompt: str | list[int] | tuple[str, str],
        params: PoolingParams,
        *,
        prompt_param: str | tuple[str, str] = "input",
        add_special_tokens: bool = True,
        **options: Any,
    ) -> Pooled:
        request, metrics = self._request, self._service.metrics
        most = request.truncate_prompt_tokens
        if isinstance(prompt, list) and most is not None:
            most = self.info.max_model_len if most == -1 else most
            prompt = prompt[-most:] if request.truncation_side == "left" else prompt[:most]
        async with self._places:
            async with self._turn:
                await asyncio.sleep(0)  # it is a text to tokenize: between them other requests have their turn
            begin = time.monotonic()
            try:
                output = await self._service.llm.pool(
                    prompt,
                    params,
                    request_id=self._exchange.request_id,
                    priority=request.priority,
                    prompt_param=prompt_param,
                    add_special_tokens=add_special_tokens,
                    truncate_prompt_tokens=request.truncate_prompt_tokens,
                    truncation_side=request.truncation_side or "right",
                    tenant=self._tenant,
                    queue_seconds=self._service.server.max_queue_seconds or None,
                )
            except asyncio.CancelledError:
                metrics.finished["abort"] += 1
                raise
        count = len(output.prompt_token_ids)
        metrics.on_read(count, time.monotonic() - begin)
        self._texts += 1
        self.prompt_tokens += count
        self.values += output.outputs.data.size
        if self.values > MAX_VALUES:
            raise RequestError(f"The answer would have more than {MAX_VALUES} numbers; send fewer texts.", "input")
        return output

    @contextmanager
    def limited(self) -> Iterator[None]:
        """While the engine works for the request: its deadline, then what the log and the metrics hear of it."""
        exchange, begin = self._exchange, time.monotonic()
        with exchange.limited(self._deadline):
            try:
                yield
            finally:
                exchange.fields |= {"texts": self._texts, "prompt_tokens": self.prompt_tokens}
                if self._tenant:
                    exchange.fields["key"] = self._tenant
                    self._service.metrics.on_key(self._tenant, self.prompt_tokens, 0, 0)
        times = RequestMetrics(begin, finished_time=time.monotonic())
        exchange.answered.append(Answered(self.id, self.model, None, times, self.prompt_tokens, 0, 0))

    def usage(self) -> ReadingUsage:
        return ReadingUsage(self.prompt_tokens, self.prompt_tokens)


async def read_texts(
    service: Service, exchange: Exchange, request: TextsRequest, tree: dict[str, Any], size: int
) -> Texts:
    """The texts of a request, of which `tree` is the plain data and `size` the length of the body."""
    if (request.input is None) == (request.messages is None):
        unknown = f" There is no field {exchange.ignored.replace(',', ', ')}." if exchange.ignored else ""
        raise RequestError(f"Send either input or messages.{unknown}", "input")
    special = request.add_special_tokens
    if request.input is not None:
        exchange.ignore([name for name in OF_MESSAGES if getattr(request, name)])
        return Texts(read_prompts(request.input, "input", MAX_INPUTS), "input", special is not False)
    assert request.messages is not None
    if len(request.messages) > service.llm.max_model_len:  # each takes a token at least; to render them takes long
        raise ContextLengthExceeded("There are more messages than the model's context has tokens.", "messages")
    if not service.template_text:
        raise RequestError("This model has no chat template: send its text as input.", "messages")
    if request.add_generation_prompt and request.continue_final_message:
        raise RequestError("add_generation_prompt and continue_final_message exclude each other.", "messages")
    text = await service.render(
        size,
        tree["messages"],
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        variables=request.chat_template_kwargs,
    )
    return Texts([text], "messages", bool(special))

"""`use_beam_search`: the n best answers instead of n samples, over the engine as it is (`octavo.engine.beam`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from octavo.core.errors import ContextLengthExceeded, RequestError
from octavo.core.outputs import CompletionOutput, RequestMetrics, RequestOutput
from octavo.core.params import BeamSearchParams, RequestOutputKind, SamplingParams
from octavo.engine.beam import Beams
from octavo.server.protocol import GenerationRequest
from octavo.text.tokenizer import Tokenizer

# What chooses tokens by chance, or otherwise than by their logprobs, has no meaning when the best answers are sought.
_WITHOUT = (
    *("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "stop"),
    *("stop_token_ids", "min_tokens", "logit_bias", "bad_words", "logprobs", "prompt_logprobs"),
    *("spaces_between_special_tokens", "thinking_token_budget"),
)

Generate = Callable[[list[int], SamplingParams], AsyncGenerator[RequestOutput, None]]


def beam_params(request: GenerationRequest, params: SamplingParams) -> BeamSearchParams | None:
    """What a request says of beam search; None if it wants none. `max_tokens` 0 stands for what the context leaves."""
    if not request.use_beam_search:
        if request.length_penalty not in (None, 1):
            raise RequestError("length_penalty is a parameter of use_beam_search.", "length_penalty")
        return None
    if request.stream:
        raise RequestError("use_beam_search cannot be streamed: the best answers are known at the end.", "stream")
    plain = SamplingParams()
    for name in _WITHOUT:
        asked = getattr(request, name, None)
        nothing = asked is None or asked in ([], {}) or (name == "logprobs" and asked is False)
        if not nothing and asked != getattr(plain, name):
            raise RequestError(f"{name} has no meaning with use_beam_search.", name)
    if params.structured_outputs is not None:
        raise RequestError("use_beam_search cannot follow a form of the answer.", params.structured_outputs.param)
    penalty = 1.0 if request.length_penalty is None else request.length_penalty
    try:
        return BeamSearchParams(
            beam_width=params.n,
            max_tokens=params.max_tokens or 2**31 - 1,
            ignore_eos=params.ignore_eos,
            length_penalty=penalty,
            include_stop_str_in_output=params.include_stop_str_in_output,
            skip_special_tokens=params.skip_special_tokens,
            allowed_token_ids=params.allowed_token_ids,
        )
    except RequestError as error:
        error.param = "n" if error.param == "beam_width" else error.param
        raise


async def beam_search(
    generate: Generate, tokenizer: Tokenizer, prompt: list[int], params: BeamSearchParams, room: int, request_id: str
) -> RequestOutput:
    """The answers, best first; `room` is what the model's context leaves for them."""
    metrics = RequestMetrics(arrival_time=time.monotonic())
    if params.max_tokens > room:
        if params.max_tokens < 2**31 - 1 or room < 1:
            raise ContextLengthExceeded(
                f"the prompt's {len(prompt)} tokens leave {max(0, room)} in the model's context", "max_tokens"
            )
        params.max_tokens = room
    beams = Beams(prompt, params, tokenizer)
    step = beams.step_params.clone(output_kind=RequestOutputKind.FINAL_ONLY)
    cached = -1
    while not beams.done:
        outputs = await _all(generate, beams.prompts(), step)
        if cached < 0:
            cached, first = outputs[0].num_cached_tokens, outputs[0].metrics
            metrics.scheduled_time, metrics.first_token_time = first.scheduled_time, first.first_token_time
        beams.advance(outputs)
    metrics.finished_time = time.monotonic()
    pieces = [
        CompletionOutput(i, beam.text or "", beam.tokens[len(prompt) :], beam.cum_logprob, None, beam.finish_reason)
        for i, beam in enumerate(beams.result().sequences)
    ]
    return RequestOutput(request_id, None, prompt, pieces, True, metrics=metrics, num_cached_tokens=max(0, cached))


async def _all(generate: Generate, prompts: list[list[int]], params: SamplingParams) -> list[RequestOutput]:
    """A step: the answers to all prompts, made together; if one fails, or nobody waits any more, all end."""
    tasks = [asyncio.create_task(_last(generate(prompt, params))) for prompt in prompts]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _last(outputs: AsyncGenerator[RequestOutput, None]) -> RequestOutput:
    async with aclosing(outputs):
        async for output in outputs:
            found = output
    return found

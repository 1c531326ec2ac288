"""What a request takes of the front's and the engine's memory, reckoned before anything is done for it.

A short request can ask for much: logprobs of long prompts, n answers, penalties, which count over the vocabulary. One
that asks for more than `REQUEST_BYTES` of logprobs is refused for good; all that are being served together hold at most
`ALL_BYTES`, and further ones are told to come again.
"""

from __future__ import annotations

from octavo.core.errors import Overloaded, RequestError
from octavo.core.params import SamplingParams
from octavo.core.request import EngineRequest

REQUEST_BYTES = 256 << 20
ALL_BYTES = 4 << 30
LOGPROB_BYTES = 200  # of one token's logprob as Python objects
TOKEN_BYTES = 100  # of a token of an answer: ids, text, and what the scheduler keeps


def most_tokens(params: SamplingParams, prompt_len: int) -> int | None:
    """Tokens of an answer whose logprobs fit the budget, beside those of the prompt; None: any number.

    RequestError if those of the prompt do not fit, or those of `max_tokens`.
    """
    left = REQUEST_BYTES // LOGPROB_BYTES
    if params.prompt_logprobs is not None:
        entries = prompt_len * (params.prompt_logprobs + 1)
        if entries > left:
            raise RequestError(
                f"prompt_logprobs for {prompt_len} tokens are {entries} values, more than {left}", "prompt_logprobs"
            )
        left -= entries
    if params.logprobs is None:
        return None
    most = left // ((params.logprobs + 1) * params.n)
    if params.max_tokens is not None and params.max_tokens > most:
        raise RequestError(
            f"logprobs for {params.n} x {params.max_tokens} tokens are more than {left} values; ask for fewer",
            "logprobs",
        )
    return max(1, most)


def cost_of(request: EngineRequest, vocab_size: int) -> int:
    """Bytes that the request may come to hold."""
    params, length = request.params, len(request.prompt) // 4
    answer = TOKEN_BYTES + LOGPROB_BYTES * (0 if params.logprobs is None else params.logprobs + 1)
    prompt = TOKEN_BYTES + LOGPROB_BYTES * (0 if params.prompt_logprobs is None else params.prompt_logprobs + 1)
    penalties = params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0
    tables = vocab_size * (4 * penalties + (params.allowed_token_ids is not None))
    return length * prompt + params.n * (request.max_tokens * answer + tables) + len(request.grammar)


class Ledger:
    """What those that are being served have reserved."""

    def __init__(self, most: int = ALL_BYTES) -> None:
        self.most, self.reserved = most, 0

    def reserve(self, cost: int) -> None:
        if self.reserved and self.reserved + cost > self.most:
            raise Overloaded("the requests that are being served may come to need all memory; try again later")
        self.reserved += cost

    def release(self, cost: int) -> None:
        self.reserved -= cost

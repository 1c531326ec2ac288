"""Every route that generates or reads, and the offline API, with every numeric parameter at every kind of wrong value.

Each is refused, naming the parameter, before the engine hears of it; or it is ignored by name, where a route's clients
do not know it.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from octavo.core.errors import ContextLengthExceeded, ExceedsKVCapacity, Overloaded, RequestError
from octavo.core.params import SamplingParams
from octavo.engine.cost import LOGPROB_BYTES, REQUEST_BYTES, Ledger, cost_of
from octavo.engine.intake import Intake
from octavo.server.messages.protocol import MessagesRequest
from octavo.server.pooling.protocol import (
    ClassifyRequest,
    EmbeddingRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
)
from octavo.server.protocol import ChatRequest, CompletionRequest
from octavo.server.responses.protocol import ResponsesRequest
from tests.server.conftest import Running, wait_for
from tests.server.fake_engine import FakeLLM

SAY = {"messages": [{"role": "user", "content": "say:x"}]}
ROUTES: dict[str, tuple[Any, dict[str, Any]]] = {
    "/v1/chat/completions": (ChatRequest, SAY),
    "/v1/completions": (CompletionRequest, {"prompt": "say:x"}),
    "/v1/messages": (MessagesRequest, {**SAY, "max_tokens": 9}),
    "/v1/responses": (ResponsesRequest, {"input": "say:x"}),
    "/v1/embeddings": (EmbeddingRequest, {"input": "x"}),
    "/v1/score": (ScoreRequest, {"text_1": "x", "text_2": "y"}),
    "/v1/rerank": (RerankRequest, {"query": "x", "documents": ["y"]}),
    "/v1/classify": (ClassifyRequest, {"input": "x"}),
    "/pooling": (PoolingRequest, {"input": "x"}),
}
INTEGERS = (
    *("n", "top_k", "seed", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs", "thinking_token_budget"),
    *("max_completion_tokens", "max_output_tokens", "top_logprobs", "priority", "truncate_prompt_tokens", "best_of"),
    *("stream_interval", "deadline_ms", "max_tool_calls", "dimensions", "top_n", "max_tokens_per_doc"),
    "max_tokens_per_query",
)
NUMBERS = (
    *("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    "length_penalty",
)
# As JSON: what is not JSON itself (NaN, Infinity) is refused as a whole.
WRONG = ('"1"', "[]", "{}", "-1e300", "1e300", "1" + "0" * 30, "-1" + "0" * 30, "1e999", "NaN", "-Infinity", "true")
BROKEN = ("1e999", "NaN", "-Infinity")


def bad_values(name: str) -> list[str]:
    return [*WRONG, "1.5"] if name in INTEGERS else list(WRONG)


def fields_of(path: str) -> list[str]:
    known = ROUTES[path][0].__struct_fields__
    return [name for name in (*INTEGERS, *NUMBERS) if name in known]


CASES = [(path, name) for path in ROUTES for name in fields_of(path)]


@pytest.mark.parametrize(("path", "name"), CASES)
def test_wrong_numbers(able: Running, path: str, name: str) -> None:
    llm = able.llm
    assert llm is not None
    before = len(llm.seen)
    for value in bad_values(name):
        # `logprobs` is a flag in chats, and a number in completions.
        if value == "true" and name == "logprobs" and path == "/v1/chat/completions":
            continue
        if name == "truncate_prompt_tokens" and value.startswith("100"):
            continue  # no prompt is that long: it keeps all of it
        body = json.dumps(ROUTES[path][1] | {name: 0}).replace(f'"{name}": 0', f'"{name}": {value}')
        answer = able.post(path, body.encode())
        assert answer.status_code == 400, (value, answer.text)
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error", error
        if path != "/v1/messages" and value not in BROKEN:
            assert error["param"] and error["param"].split(".")[-1] == name, (value, error)
        elif value not in BROKEN:
            assert name in error["message"] or name in str(error.get("param")), (value, error)
        assert len(answer.content) < 1500
    assert len(llm.seen) == before, "the engine heard of it"


@pytest.mark.parametrize("path", [path for path in ROUTES if path != "/v1/messages"])
def test_wrong_numbers_in_a_batch(able: Running, path: str) -> None:
    """A line of a batch goes through the route that it names."""
    llm = able.llm
    assert llm is not None
    lines = [
        {"custom_id": f"{name} {value}", "method": "POST", "url": path, "body": {**ROUTES[path][1], name: 1}}
        for name in fields_of(path)
        for value in ("-1e300", "[]")
    ]
    text = "\n".join(
        json.dumps(line).replace(f'"{line["custom_id"].split()[0]}": 1', f'"{line["custom_id"].split()[0]}": '
                                 + line["custom_id"].split()[1])
        for line in lines
    )  # fmt: skip
    client = able.client()
    file = client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=path, completion_window="24h")  # type: ignore[arg-type]
    before = len(llm.seen)
    wait_for(lambda: client.batches.retrieve(batch.id).status not in ("validating", "in_progress", "finalizing"), 60)
    done = client.batches.retrieve(batch.id)
    assert done.status == "completed" and done.request_counts is not None, done
    assert (done.request_counts.failed, done.request_counts.total) == (len(lines), len(lines))
    answers = [json.loads(line) for line in client.files.content(done.error_file_id or "").text.splitlines()]
    assert len(answers) == len(lines)
    for answer in answers:
        error = answer["response"]["body"]["error"]
        assert answer["response"]["status_code"] == 400
        assert error["param"].split(".")[-1] == answer["custom_id"].split()[0]
    assert len(llm.seen) == before


NAMES = [name for name in (*INTEGERS, *NUMBERS) if name in SamplingParams.__struct_fields__]
ODD = (math.nan, math.inf, -math.inf, -1e300, 1e300, 10**40, -(10**40), "1", True, [], {}, object())


@pytest.mark.parametrize("name", NAMES)
def test_wrong_numbers_offline(name: str) -> None:
    """`SamplingParams` refuses them; and where one was assigned to afterwards, the one who builds requests does."""
    llm = FakeLLM()
    for value in (*ODD, *((1.5,) if name in INTEGERS else ())):
        with pytest.raises(RequestError) as caught:
            SamplingParams(**{name: value})
        assert caught.value.param == name and len(caught.value.message) < 300
        params = SamplingParams()
        setattr(params, name, value)
        with pytest.raises(RequestError) as caught:
            llm.intake.build([1], params)
        assert caught.value.param == name


@pytest.mark.parametrize("value", [1.5, "1", True, None, 2**31, -(2**31) - 1])
def test_wrong_priorities_offline(value: Any) -> None:
    with pytest.raises(RequestError, match="priority"):
        FakeLLM().intake.build([1], SamplingParams(), priority=value)


@pytest.mark.parametrize("value", [5, None, "x" * 257, "\0", "\ud800", b"x"])
def test_wrong_salts_offline(value: Any) -> None:
    with pytest.raises(RequestError, match="cache_salt"):
        FakeLLM().intake.build([1], SamplingParams(), salt=value)


def test_lengths_at_the_limits() -> None:
    intake: Intake = FakeLLM(max_model_len=64, capacity=48).intake
    one = SamplingParams(max_tokens=1)
    assert intake.build([1] * 47, one).max_tokens == 1
    with pytest.raises(ExceedsKVCapacity):
        intake.build([1] * 48, one)
    with pytest.raises(ExceedsKVCapacity) as caught:
        intake.build([1] * 40, SamplingParams(max_tokens=20))
    assert caught.value.param == "max_tokens" and caught.value.code == "exceeds_kv_capacity"
    wide: Intake = FakeLLM(max_model_len=64).intake
    assert wide.build([1] * 63, one).max_tokens == 1
    for prompt in ([1] * 64, [1] * 65):
        with pytest.raises(ContextLengthExceeded):
            wide.build(prompt, one)
    with pytest.raises(ContextLengthExceeded):
        wide.encode([1] * 10**6)


def test_logprobs_are_paid_for() -> None:
    entries = REQUEST_BYTES // LOGPROB_BYTES
    intake: Intake = FakeLLM(max_model_len=1 << 20).intake
    assert intake.build([1], SamplingParams(logprobs=20, max_tokens=None)).max_tokens == entries // 21
    with pytest.raises(RequestError) as caught:
        intake.build([1], SamplingParams(logprobs=20, n=128, max_tokens=1000))
    assert caught.value.param == "logprobs"
    with pytest.raises(RequestError) as caught:
        intake.build([1] * 100_000, SamplingParams(prompt_logprobs=20, max_tokens=1))
    assert caught.value.param == "prompt_logprobs"
    # Without logprobs nothing is clamped.
    assert intake.build([1], SamplingParams(max_tokens=None)).max_tokens == (1 << 20) - 1


def test_what_is_reserved() -> None:
    intake: Intake = FakeLLM().intake
    plain = cost_of(intake.build([1] * 10, SamplingParams(max_tokens=10)), 100_000)
    dear = cost_of(intake.build([1] * 10, SamplingParams(max_tokens=10, presence_penalty=1, n=4)), 100_000)
    assert plain < 10_000 and dear > 4 * 4 * 100_000
    ledger = Ledger(dear + plain)
    ledger.reserve(dear)
    ledger.reserve(plain)
    with pytest.raises(Overloaded) as caught:
        ledger.reserve(1)
    assert caught.value.status == 503 and caught.value.retry_after is not None
    ledger.release(dear)
    ledger.release(plain)
    assert ledger.reserved == 0
    ledger.reserve(10 * dear)  # what is alone is served: it was not refused for good

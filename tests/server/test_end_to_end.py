"""`octavo serve` with a real engine: a small random model, real processes, the `openai` client."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import httpx
import openai
import pydantic
import pytest
import torch

from octavo import LLM
from octavo.core.params import BeamSearchParams
from tests.builders import load_reference, make_model
from tests.server.conftest import wait_for

MESSAGES: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


class Served:
    def __init__(self, model: Path, log: Path | None = None) -> None:
        command = [sys.executable, "-m", "octavo.cli.main", "serve", str(model), "--port", "0", "--device", "cpu"]
        env = {k: v for k, v in os.environ.items() if k != "OCTAVO_API_KEY"}
        log = log or model / "log"
        with log.open("w") as stderr:
            self.process = subprocess.Popen([*command, "--dtype", "float32"], stderr=stderr, env=env)
        wait_for(lambda: "curl" in log.read_text() or self.process.poll() is not None, seconds=60)
        url = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        assert url is not None and self.process.poll() is None, log.read_text()
        self.url = url[0]
        self.folder = model
        self.model = model.name
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="x", http_client=self.http, max_retries=0)

    def engine(self) -> int:
        """The process of the engine, which the front starts, as it does those that read grammars."""
        engines = [pid for pid in children(self.front()) if b"octavo.engine.process" in command(pid)]
        return engines[0]

    def front(self) -> int:
        """The process with HTTP, which is the supervisor's only child."""
        (pid,) = children(self.process.pid)
        return pid

    def metric(self, name: str) -> float:
        found = re.search(rf"^vllm:{name}(?:{{.*}})? (\S+)$", self.http.get("/metrics").text, re.MULTILINE)
        assert found is not None
        return float(found[1])


def status(pid: int) -> dict[str, str]:
    """What the kernel says of a process; {} when there is none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def children(parent: int) -> list[int]:
    """The live ones, the oldest first."""
    pids = sorted(map(int, filter(str.isdigit, os.listdir("/proc"))))
    return [pid for pid in pids if status(pid).get("PPid") == str(parent) and is_running(pid)]


def command(pid: int) -> bytes:
    """What the process runs."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def is_running(pid: int) -> bool:
    return status(pid).get("State", "Z")[0] not in "ZX"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = Served(make_model(tmp_path_factory.mktemp("model")))
    yield running
    running.process.send_signal(signal.SIGTERM)
    try:
        assert running.process.wait(20) == 0
    finally:
        running.process.kill()
        running.process.wait()


def test_the_stream_is_the_answer(served: Served) -> None:
    create = served.client.chat.completions.create
    options: Any = {"model": served.model, "messages": MESSAGES, "max_tokens": 40, "temperature": 0}
    whole = create(**options)
    streamed = "".join(c.choices[0].delta.content or "" for c in create(**options, stream=True))
    assert streamed == whole.choices[0].message.content
    assert whole.usage is not None and whole.usage.completion_tokens <= 40
    again = create(**options)
    assert again.choices[0].message.content == streamed
    assert again.usage is not None and again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens // 16 * 16  # the prefix cache


def test_seeds_and_several_answers(served: Served) -> None:
    def ask(seed: int) -> list[str | None]:
        answer = served.client.chat.completions.create(
            model=served.model, messages=MESSAGES, n=3, seed=seed, max_tokens=12
        )
        return [choice.message.content for choice in answer.choices]

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)
    assert len(set(ask(1))) == 3


def test_logprobs_are_those_of_the_prompt(served: Served) -> None:
    """What a model said, read again as a prompt, has the same logprobs."""
    complete = served.client.completions.create
    first: Any = complete(
        model=served.model,
        prompt="The quick",
        max_tokens=8,
        temperature=0,
        logprobs=3,
        extra_body={"return_token_ids": True},
    ).choices[0]
    ids = first.prompt_token_ids + first.token_ids
    second: Any = complete(model=served.model, prompt=ids, max_tokens=0, echo=True, logprobs=3).choices[0]
    count = len(first.token_ids)
    assert second.logprobs.token_logprobs[-count:] == pytest.approx(first.logprobs.token_logprobs, abs=1e-3)
    assert second.logprobs.token_logprobs[0] is None
    assert len(second.logprobs.tokens) == len(ids)
    assert first.logprobs.token_logprobs[0] == pytest.approx(max(first.logprobs.top_logprobs[0].values()))


def test_stop(served: Served) -> None:
    complete = served.client.completions.create
    options: Any = {"model": served.model, "prompt": "The quick", "max_tokens": 30, "temperature": 0}
    text = complete(**options).choices[0].text
    stop = text[8:11]
    choice: Any = complete(**options, stop=stop).choices[0]
    assert (choice.text, choice.finish_reason, choice.stop_reason) == (text[: text.index(stop)], "stop", stop)


def test_two_hundred_streams(served: Served) -> None:
    async def one(client: openai.AsyncOpenAI, prompt: str) -> str:
        options: Any = {"model": served.model, "prompt": prompt, "max_tokens": 8, "temperature": 0, "stream": True}
        return "".join([c.choices[0].text async for c in await client.completions.create(**options)])

    async def together(prompts: list[str]) -> list[str]:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=60) as http:
            client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="x", http_client=http, max_retries=0)
            return await asyncio.gather(*(one(client, prompt) for prompt in prompts))

    prompts = [f"number {i % 20}" for i in range(200)]
    texts = asyncio.run(together(prompts))
    assert texts == [texts[i % 20] for i in range(200)]  # whoever else was there
    assert len(set(texts)) > 10


def test_a_client_that_leaves(served: Served) -> None:
    before = served.metric('request_success_total{.*finished_reason="abort".*}')
    body = {"prompt": "The quick", "max_tokens": 490, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=20) as response:
        next(response.iter_lines())
    wait_for(lambda: served.metric('request_success_total{.*finished_reason="abort".*}') == before + 1)


def test_too_long_for_the_model(served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.completions.create(model=served.model, prompt="x" * 5000)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


def test_a_killed_engine_is_started_again(served: Served) -> None:
    body = {"prompt": "The quick", "max_tokens": 490, "ignore_eos": True, "stream": True}
    pid = served.engine()
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=20) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(pid, signal.SIGKILL)
        rest = [line for line in lines if line]
    assert '"engine_unavailable"' in rest[-1]
    assert served.http.get("/livez").status_code == 200
    wait_for(lambda: served.http.get("/readyz").status_code == 503, seconds=2)
    wait_for(lambda: served.http.get("/readyz").status_code == 200, seconds=60)
    assert served.engine() != pid
    answer = served.client.completions.create(model=served.model, prompt="The quick", max_tokens=3)
    assert answer.usage is not None and answer.usage.completion_tokens <= 3


def test_a_killed_server_leaves_no_engine(tmp_path: Path) -> None:
    served = Served(make_model(tmp_path))
    engine = served.engine()
    served.process.kill()
    served.process.wait()
    wait_for(lambda: not is_running(engine), seconds=3)


def test_beam_search(served: Served) -> None:
    """The beams over HTTP are those of the offline API; the best is at least as likely as the greedy answer."""
    options: Any = {"model": served.model, "prompt": "The quick", "max_tokens": 6, "temperature": 0}
    beams: Any = served.client.completions.create(**options, n=4, extra_body={"use_beam_search": True})
    texts = [choice.text for choice in beams.choices]
    assert len(set(texts)) == 4 and [choice.index for choice in beams.choices] == [0, 1, 2, 3]
    llm = LLM(str(served.folder), device="cpu", dtype="float32", num_kv_blocks=64)
    expected = llm.beam_search("The quick", BeamSearchParams(beam_width=4, max_tokens=6))[0]
    assert texts == [beam.text for beam in expected.sequences]
    greedy: Any = served.client.completions.create(**options, logprobs=0)
    assert sum(greedy.choices[0].logprobs.token_logprobs) <= expected.sequences[0].cum_logprob + 1e-3


def test_what_an_evaluation_harness_computes(served: Served) -> None:
    """lm-eval's loglikelihood of a continuation: the sum of its tokens' logprobs, and whether each was the likeliest.

    It sends token ids with echo and logprobs, and generates one token that it throws away, or none.
    """
    reference = load_reference(served.folder)
    pairs = [([5, 9, 12, 40], [7, 31, 8]), ([3, 3], [3]), ([50, 60, 70, 80, 90], [11, 12, 13, 14, 15, 16])]
    expected = []
    for context, continuation in pairs:
        ids = torch.tensor([context + continuation])
        logprobs = reference(ids).logits[0].log_softmax(-1)[len(context) - 1 : -1]
        chosen = logprobs[range(len(continuation)), continuation]
        greedy = bool((logprobs.argmax(-1) == torch.tensor(continuation)).all())
        expected.append((chosen.sum().item(), greedy))
    for max_tokens in (1, 0):
        answer: Any = served.client.completions.create(
            model=served.model,
            prompt=[a + b for a, b in pairs],
            echo=True,
            logprobs=1,
            max_tokens=max_tokens,
            seed=1234,
        )
        found = []
        for choice, (context, _) in zip(answer.choices, pairs, strict=True):
            end = len(choice.logprobs.token_logprobs) - max_tokens
            rows = choice.logprobs.token_logprobs[len(context) : end]
            tops = choice.logprobs.top_logprobs[len(context) : end]
            found.append((sum(rows), all(row == max(top.values()) for row, top in zip(rows, tops, strict=True))))
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], abs=1e-3)


def test_other_dialects_say_the_same(served: Served) -> None:
    """Chat, /v1/responses, /v1/messages and a batch give one answer to one question, streamed and whole."""
    options: Any = {"model": served.model, "temperature": 0}
    chat = served.client.chat.completions.create(**options, messages=MESSAGES, max_tokens=20)
    text, usage = chat.choices[0].message.content, chat.usage
    assert text and usage is not None

    response = served.client.responses.create(**options, input=MESSAGES, max_output_tokens=20)
    assert response.output_text == text and response.status == "incomplete"
    assert response.usage is not None and response.usage.total_tokens == usage.total_tokens
    events = list(served.client.responses.create(**options, input=MESSAGES, max_output_tokens=20, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text

    claude = anthropic.Anthropic(base_url=served.url, api_key="x", max_retries=0)
    body: Any = {"extra_body": {"temperature": 0}, "model": served.model, "max_tokens": 20, "messages": MESSAGES}
    message = claude.messages.create(**body)
    assert [block.text for block in message.content] == [text] and message.stop_reason == "max_tokens"
    with claude.messages.stream(**body) as stream:
        assert "".join(stream.text_stream) == text
    counted = claude.messages.count_tokens(model=served.model, messages=MESSAGES).input_tokens
    assert counted == usage.prompt_tokens == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)

    line = {"messages": MESSAGES, "max_tokens": 20, "temperature": 0}
    row = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": line}
    file = served.client.files.create(file=("in.jsonl", json.dumps(row).encode()), purpose="batch")
    batch = served.client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    wait_for(lambda: served.client.batches.retrieve(batch.id).status == "completed", seconds=20)
    found = served.client.batches.retrieve(batch.id).output_file_id
    assert found is not None
    answer = json.loads(served.client.files.content(found).text)
    assert answer["response"]["body"]["choices"][0]["message"]["content"] == text


class Weather(pydantic.BaseModel):
    warm: bool
    sky: Literal["clear", "cloudy"]


def test_forms_in_every_dialect(served: Served) -> None:
    """A form of the answer, and a call that must be made, asked for as each API does."""
    parsed = served.client.responses.parse(model=served.model, input="How is it?", text_format=Weather)
    assert isinstance(parsed.output_parsed, Weather)
    claude = anthropic.Anthropic(base_url=served.url, api_key="x", max_retries=0)
    schema = {**Weather.model_json_schema(), "additionalProperties": False}
    body: Any = {"model": served.model, "max_tokens": 200, "messages": MESSAGES}
    message = claude.messages.create(**body, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert Weather.model_validate_json(message.content[0].text)

"""Engines that die or hang: whose requests go on, with what, and who is not served any more."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from octavo import AsyncLLM, EngineConfig, RequestOutputKind, SamplingParams
from octavo.core.errors import EngineError, EngineUnavailable, Quarantined
from octavo.core.progress import START_BUDGETS, Phase, Progress
from octavo.core.structured import StructuredOutputs
from octavo.engine import recovery
from octavo.engine.core import EngineCore
from octavo.engine.recovery import Recovery, Watchdog
from tests.engine import faulty_engine
from tests.engine.conftest import Reference

KIND = RequestOutputKind
BASE = SamplingParams(temperature=0.0, max_tokens=300, ignore_eos=True, output_kind=KIND.DELTA)
REQUESTS = {
    "greedy": BASE,
    "several": BASE.clone(n=3, temperature=1.0, seed=5),
    "logprobs": BASE.clone(logprobs=2, prompt_logprobs=1, frequency_penalty=0.3),
    "seeded": BASE.clone(temperature=0.9, top_p=0.8, seed=7, stop=["never to be found"]),
    "whole": BASE.clone(output_kind=KIND.FINAL_ONLY, repetition_penalty=1.2, logprobs=1),
    "cumulative": BASE.clone(output_kind=KIND.CUMULATIVE, min_tokens=20),
    "grammar": BASE.clone(structured_outputs=StructuredOutputs(regex="[a-z ]{250}"), max_tokens=400),
    "banned": BASE.clone(bad_words=["the"], logit_bias={40: 3.0}),
}
PROMPT = [(7 * i) % 400 + 5 for i in range(70)]


def run(reference: Reference, reports: Path, scenario, resume: str = "greedy", watchdog: float = 60.0, **config):
    async def main():
        engine = await AsyncLLM.start(
            EngineConfig(model=str(reference.folder), **{"num_kv_blocks": 512, "dtype": "float32", **config}),
            recovery=Recovery(resume, watchdog, reports),
        )
        try:
            return await asyncio.wait_for(scenario(engine), 240)
        finally:
            await engine.shutdown()

    return asyncio.run(main())


async def answer(engine: AsyncLLM, params: SamplingParams, prompt=PROMPT, name: str = "r"):
    """All that a client gets to know, put together."""
    delta = params.output_kind is KIND.DELTA
    found: dict[int, dict] = {}
    prompt_logprobs, cached = None, 0
    async for output in engine.generate(prompt, params, request_id=name):
        prompt_logprobs, cached = output.prompt_logprobs, output.num_cached_tokens
        for piece in output.outputs:
            known = found.setdefault(piece.index, {"text": "", "ids": [], "logprobs": [], "end": None})
            if not delta:
                known.update(text="", ids=[], logprobs=[])
            known["text"] += piece.text
            known["ids"] += piece.token_ids
            known["logprobs"] += [next(iter(row.values())).logprob for row in piece.logprobs or []]
            known["end"] = (piece.finish_reason, piece.stop_reason)
    rows = [next(iter(row.values())).logprob for row in (prompt_logprobs or [])[1:]]
    return found, rows, cached


def kill(engine: AsyncLLM, number: int = signal.SIGKILL) -> None:
    os.kill(engine.pid, number)


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def restarted(engine: AsyncLLM) -> None:
    await until(lambda: not engine.alive)
    await engine.restart()
    assert engine.ready


def report_of(folder: Path) -> dict:
    (path,) = folder.iterdir()
    assert "# The engine process of Octavo" in (path / "report.md").read_text()
    return json.loads((path / "report.json").read_text())


def test_answers_go_on_as_they_would_have(llama: Reference, tmp_path: Path):
    async def scenario(engine):
        await answer(engine, BASE.clone(max_tokens=2))  # so that all find the prompt in the cache
        alone = {name: await answer(engine, params) for name, params in REQUESTS.items()}
        tasks = {name: asyncio.create_task(answer(engine, params, name=name)) for name, params in REQUESTS.items()}
        sampled = asyncio.create_task(answer(engine, BASE.clone(temperature=1.0)))
        await until(lambda: engine.stats.running == 11 and engine._outputs.find(list(engine._news))[0].answers[0].text)
        kill(engine)
        with pytest.raises(EngineUnavailable):
            await asyncio.wait_for(sampled, 60)
        await restarted(engine)
        found = {name: await task for name, task in tasks.items()}
        for name, (answers, prompt_logprobs, cached) in found.items():
            expected, expected_rows, expected_cached = alone[name]
            for index, one in answers.items():
                assert one["logprobs"] == pytest.approx(expected[index].pop("logprobs"), abs=1e-4), name
                del one["logprobs"]
            assert answers == expected, name
            assert prompt_logprobs == pytest.approx(expected_rows, abs=1e-4) and cached == expected_cached, name
        assert engine.num_live == 0
        await answer(engine, BASE.clone(max_tokens=1))
        assert (engine.stats.running, engine.stats.kv_used_blocks) == (0, 0)

    run(llama, tmp_path, scenario)
    report = report_of(tmp_path)
    assert report["cause"] == "killed by SIGKILL" and report["exit_status"] == -9
    assert report["progress"]["rows"] >= 9 and report["progress"]["phase"] in ("step", "idle")
    # Whoever waits for the mask of a grammar is not in each step.
    assert {*REQUESTS, "r"} - {"grammar"} <= {each["id"] for each in report["suspects"]}
    assert any("KV cache" in line for line in report["last_log_lines"])
    assert "out-of-memory killer" in report["remedies"][0]


def test_a_request_that_always_kills_is_refused(llama: Reference, tmp_path: Path):
    """Named by two crashes it runs alone, named by the third it is refused; the others live."""
    deadly, harmless = [9] * 20, [8] * 20

    async def scenario(engine):
        bad = asyncio.create_task(answer(engine, BASE, deadly))
        await until(lambda: engine.stats.running == 1)
        kill(engine)
        await restarted(engine)
        await until(lambda: engine.stats.running == 1)
        kill(engine)
        await restarted(engine)
        good = asyncio.create_task(answer(engine, BASE, harmless))
        await until(lambda: engine.stats.running == 1)
        await asyncio.sleep(0.05)
        assert engine.stats.running == 1 and engine.stats.waiting == 0 and engine.num_live == 2
        kill(engine)
        with pytest.raises(Quarantined):
            await bad
        await restarted(engine)
        with pytest.raises(Quarantined):
            await answer(engine, BASE, deadly)
        assert len((await good)[0][0]["ids"]) == BASE.max_tokens

    run(llama, tmp_path, scenario)


def test_an_engine_that_is_frozen(llama: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is ended and started again; with `all`, requests without a seed go on too."""
    faulty_engine.install(monkeypatch, "hurried")

    async def scenario(engine):
        alone = await answer(engine, BASE)
        greedy = asyncio.create_task(answer(engine, BASE))
        sampled = asyncio.create_task(answer(engine, BASE.clone(temperature=1.0)))
        await until(lambda: engine.stats.running == 2)
        kill(engine, signal.SIGSTOP)
        await until(lambda: not engine.ready)
        assert engine.alive  # until the watchdog's limit
        await restarted(engine)
        assert (await greedy)[0] == alone[0]
        assert len((await sampled)[0][0]["ids"]) == BASE.max_tokens

    run(llama, tmp_path, scenario, "all", faulty_engine.SECONDS + 1)
    report = report_of(tmp_path)
    assert "no progress" in report["cause"] and "T (stopped)" in report["cause"]


def test_with_off_nothing_goes_on_and_a_native_crash_leaves_its_stacks(llama: Reference, tmp_path: Path):
    async def scenario(engine):
        task = asyncio.create_task(answer(engine, BASE))
        await until(lambda: engine.stats.running)
        kill(engine, signal.SIGSEGV)
        with pytest.raises(EngineUnavailable):
            await task
        await engine._task

    run(llama, tmp_path, scenario, "off")
    report = report_of(tmp_path)
    assert report["cause"] == "killed by SIGSEGV"
    assert any("octavo/engine/process.py" in line for line in report["stacks"])


async def fails(engine: AsyncLLM) -> None:
    with pytest.raises(EngineUnavailable):
        await answer(engine, BASE)
    await engine._task


def test_an_engine_that_spins_tells_where(llama: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    faulty_engine.install(monkeypatch, "spin")
    run(llama, tmp_path, fails, "off", watchdog=1.0)
    report = report_of(tmp_path)
    assert "no progress" in report["cause"] and "R (running)" in report["cause"]
    assert any("in spin_in_schedule" in line for line in report["stacks"])


def test_a_scheduler_that_plans_nothing_ends_the_engine(
    llama: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    faulty_engine.install(monkeypatch, "nothing")
    run(llama, tmp_path, fails, "off")
    report = report_of(tmp_path)
    assert "requests wait, none runs, and none can be planned: " in report["cause"]
    assert f"1 wait (1: {len(PROMPT)} of {len(PROMPT) + BASE.max_tokens} tokens" in report["cause"]  # the dump
    assert report["exit_status"] == 1 and report["suspects"] == []


def test_an_engine_that_hangs_while_it_loads(llama: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    faulty_engine.install(monkeypatch, "load")
    with pytest.raises(EngineError, match="cannot start: it made no progress for . s while it was to load the weights"):
        run(llama, tmp_path, fails, watchdog=1.0)
    report = report_of(tmp_path)
    assert report["progress"]["phase"] == "load"
    assert any("in load_forever" in line for line in report["stacks"])


class FakeLink:
    """What a watchdog needs of one: progress to read, and something to end."""

    def __init__(self) -> None:
        descriptor = Progress.allocate()
        self.progress, self.engine = Progress(descriptor), Progress(descriptor)
        os.close(descriptor)
        self.struck = False

    def state(self) -> str:
        return "D (disk sleep)"

    async def strike(self) -> None:
        self.struck = True


def test_a_long_step_that_says_so(monkeypatch: pytest.MonkeyPatch):
    """However long it is against the watchdog's limit: it is ready all the while. Once over its time it is not."""
    monkeypatch.setattr(recovery, "WATCH_SECONDS", 0.01)

    async def main() -> None:
        link = FakeLink()
        watchdog = Watchdog(link, limit=0.02)  # type: ignore[arg-type]
        task = asyncio.create_task(watchdog.run())
        link.engine.enter(Phase.STEP, budget=600.0, tokens=131_072)
        for _ in range(30):
            await asyncio.sleep(0.01)
            assert not watchdog.stalled and not link.struck
        link.engine.enter(Phase.STEP, budget=0.05, tokens=1)
        await until(lambda: watchdog.stalled)
        await task
        assert link.struck and "while it was to run a step (the process was D (disk sleep))" in watchdog.reason

    asyncio.run(main())


def test_each_tensor_is_a_sign_of_life(llama: Reference):
    phases: list[Phase] = []
    EngineCore.start(EngineConfig(model=str(llama.folder), num_kv_blocks=16, device="cpu"), llama.folder, phases.append)
    assert list(dict.fromkeys(phases)) == [Phase.LOAD, Phase.ALLOCATE, Phase.WARM_UP]
    assert phases.count(Phase.LOAD) > len(load_file(llama.folder / "model.safetensors"))
    assert set(START_BUDGETS) == {Phase.START, *phases}

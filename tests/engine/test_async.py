"""The engine in its own process: streams, aborts, its death, and ten thousand requests that leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import pytest

from octavo import AsyncLLM, ConfigError, EngineConfig, RequestOutputKind, SamplingParams
from octavo.core.errors import EngineUnavailable, QueueTimeout, RequestError
from octavo.core.outputs import Stats
from tests.engine.conftest import Reference

DELTA = SamplingParams(
    temperature=0.0, max_tokens=12, ignore_eos=True, output_kind=RequestOutputKind.DELTA, detokenize=False
)


def run(reference: Reference, scenario, **config):
    """Runs `scenario(engine)` on an engine that is ended afterwards."""

    async def main():
        engine = await AsyncLLM.start(
            EngineConfig(model=str(reference.folder), **{"num_kv_blocks": 256, "dtype": "float32", **config})
        )
        try:
            return await asyncio.wait_for(scenario(engine), 240)
        finally:
            await engine.shutdown()

    return asyncio.run(main())


async def collect(engine: AsyncLLM, prompt, params=DELTA, **kwargs) -> list[int]:
    tokens: list[int] = []
    async for output in engine.generate(prompt, params, request_id="r", **kwargs):
        for answer in output.outputs:
            tokens += answer.token_ids
    return tokens


async def idle_stats(engine: AsyncLLM) -> Stats:
    """Statistics of the engine after one more request, so that they are of a moment after all others."""
    await collect(engine, [1, 2, 3])
    return engine.stats


def test_streams_equal_the_reference(llama: Reference):
    async def scenario(engine):
        answers = await asyncio.gather(*(collect(engine, prompt) for prompt in llama.prompts))
        assert answers == llama.answers
        assert engine.num_live == 0

    run(llama, scenario)


def test_text_deltas_make_the_text(llama: Reference):
    async def scenario(engine):
        params = DELTA.clone(detokenize=True, max_tokens=40)
        deltas = [o.outputs[0].text async for o in engine.generate("hello", params, request_id="a")]
        final = params.clone(output_kind=RequestOutputKind.FINAL_ONLY)
        whole = [o async for o in engine.generate("hello", final, request_id="b")]
        assert len(whole) == 1 and len(deltas) > 3
        assert "".join(deltas) == whole[0].outputs[0].text

    run(llama, scenario)


def test_refused_before_the_first_item(llama: Reference):
    async def scenario(engine):
        with pytest.raises(RequestError) as caught:
            await collect(engine, [9999])
        assert caught.value.param == "prompt"
        with pytest.raises(RequestError) as caught:
            await collect(engine, [1] * 500, DELTA.clone(max_tokens=100))
        assert caught.value.code == "context_length_exceeded"
        assert engine.num_live == 0

    run(llama, scenario)


def test_a_closed_stream_is_aborted_in_the_engine(llama: Reference):
    async def scenario(engine):
        for _ in range(3):
            stream = engine.generate([5] * 40, DELTA.clone(max_tokens=400), request_id="x")
            async for _ in stream:
                break
            await stream.aclose()
        stats = await idle_stats(engine)
        assert (stats.running, stats.waiting, stats.kv_used_blocks) == (0, 0, 0)

    run(llama, scenario)


def test_ten_thousand_requests_with_aborts_leave_nothing(llama: Reference):
    rng = random.Random(4)

    async def one(engine, index: int) -> str:
        length = rng.randrange(1, 30)
        params = DELTA.clone(max_tokens=rng.randrange(1, 10), n=2 if index % 50 == 0 else 1)
        stream = engine.generate([rng.randrange(3, 40)] * length, params, request_id=str(index))
        leave_after = rng.randrange(0, 6) if rng.random() < 0.3 else None
        try:
            if leave_after == 0:  # cancelled while it waits or computes its prompt
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(anext(stream), rng.random() * 0.01)
                return "aborted"
            count = 0
            async for output in stream:
                count += 1
                if index % 100 == 0:
                    engine._outputs.check_integrity()
                if output.finished:
                    return "finished"
                if count == leave_after:
                    return "aborted"
            raise AssertionError("a stream ended without its end")
        except (AssertionError, StopAsyncIteration):
            raise
        except BaseException as error:
            if type(error).__name__ == "Failed":  # the answer came before the time was over
                return "finished"
            raise
        finally:
            await stream.aclose()

    async def scenario(engine):
        room = asyncio.Semaphore(128)

        async def bounded(index):
            async with room:
                return await one(engine, index)

        before = len(asyncio.all_tasks())
        results = await asyncio.gather(*(bounded(i) for i in range(10_000)))
        assert results.count("aborted") > 1500 and results.count("finished") > 5000
        stats = await idle_stats(engine)
        assert (stats.running, stats.waiting, stats.kv_used_blocks) == (0, 0, 0)
        engine._outputs.check_integrity()
        assert engine.num_live == 0 and len(engine._outputs) == 0
        assert len(asyncio.all_tasks()) == before

    # A cache that is too small for 64 rows, so that preemption takes part.
    run(llama, scenario, num_kv_blocks=96, block_size=4, max_num_seqs=64)


def test_death_of_the_engine_fails_every_stream(llama: Reference):
    async def scenario(engine):
        streams = [asyncio.create_task(collect(engine, [i + 3] * 10, DELTA.clone(max_tokens=450))) for i in range(20)]
        while engine.stats.running < 20:
            await asyncio.sleep(0.01)
        os.kill(engine.pid, signal.SIGKILL)
        results = await asyncio.wait_for(asyncio.gather(*streams, return_exceptions=True), 2)
        assert all(isinstance(result, EngineUnavailable) for result in results)
        assert not engine.ready
        with pytest.raises(EngineUnavailable):
            await collect(engine, [1])

    run(llama, scenario)


def test_a_model_that_cannot_be_loaded_is_said_so(tmp_path):
    async def main():
        with pytest.raises(ConfigError, match="config.json"):
            await AsyncLLM.start(EngineConfig(model=str(tmp_path)))

    asyncio.run(main())


def test_a_request_that_waits_too_long_for_its_turn(llama: Reference):
    async def scenario(engine):
        first = asyncio.create_task(collect(engine, [1, 2, 3], DELTA.clone(max_tokens=400)))
        while not engine.stats.running:
            await asyncio.sleep(0.005)
        with pytest.raises(QueueTimeout):
            await collect(engine, [4, 5, 6], queue_seconds=0.05)
        assert not first.done() and engine.num_live == 1
        assert len(await first) == 400
        assert await collect(engine, llama.prompts[0], queue_seconds=30.0) == llama.answers[0]

    run(llama, scenario, max_num_seqs=1)

"""Models that read, behind asyncio: one engine process for what is tested here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from octavo import LLM, AsyncLLM, EngineConfig, PoolingParams, RequestError, SamplingParams
from octavo.core.errors import ContextLengthExceeded, EngineUnavailable, QueueTimeout
from octavo.engine.recovery import Recovery
from octavo.engine.scores import score
from tests.pooling_models import make_pooling_model

EMBED = PoolingParams()


def test_pool(tmp_path: Path):
    folder = make_pooling_model(tmp_path, "BertModel")
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 500, length).tolist() for length in rng.integers(1, 100, 40)]
    expected = [output.outputs.embedding for output in LLM(str(folder)).embed(prompts)]

    async def scenario(engine: AsyncLLM) -> None:
        async def embed(ids: list[int], **options) -> list[float]:
            output = await engine.pool(ids, EMBED, request_id="r", **options)
            assert output.prompt_token_ids == ids and output.finished
            return output.outputs.data.tolist()

        assert engine.supported_tasks == ["embed", "token_embed", "score"]
        np.testing.assert_allclose(await asyncio.gather(*map(embed, prompts)), expected, atol=1e-5)
        with pytest.raises(ContextLengthExceeded, match="input has 129 tokens, the model's context 128") as refused:
            await embed([5] * 129)
        assert refused.value.param == "input"
        with pytest.raises(RequestError, match="cannot classify"):
            await engine.pool([5], PoolingParams(task="classify"), request_id="r")
        with pytest.raises(RequestError, match="does not generate"):
            await anext(engine.generate([5], SamplingParams(), request_id="r"))
        cut = await engine.pool("a " * 400, EMBED, request_id="r", truncate_prompt_tokens=9)
        assert len(cut.prompt_token_ids) == 9
        (scored,) = await score(engine, ["one"], ["one"], request_id="r")
        assert scored.outputs.score == pytest.approx(1.0, abs=1e-5)

        # What is given up is forgotten, wherever it was.
        tasks = [asyncio.create_task(embed(ids)) for ids in prompts]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        np.testing.assert_allclose(await asyncio.gather(*tasks[1::2]), expected[1::2], atol=1e-5)
        picture = await engine.look()
        assert (picture.num_running, picture.num_waiting, engine.num_live) == (0, 0, 0)

        # An engine that has died is followed by one that reads everything again.
        os.kill(engine.pid, signal.SIGSTOP)
        waiting = [asyncio.create_task(embed(ids)) for ids in prompts]
        with pytest.raises(QueueTimeout):
            await embed(prompts[0], queue_seconds=0.05)
        os.kill(engine.pid, signal.SIGKILL)
        while engine.alive:
            await asyncio.sleep(0.01)
        with pytest.raises(EngineUnavailable):
            await embed(prompts[0])
        await engine.restart()
        np.testing.assert_allclose(await asyncio.gather(*waiting), expected, atol=1e-5)

    async def main() -> None:
        recovery = Recovery(resume="greedy", reports=tmp_path / "reports")
        engine = await AsyncLLM.start(EngineConfig(model=str(folder)), recovery=recovery)
        try:
            await scenario(engine)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(engine.pid, signal.SIGCONT)
            await engine.shutdown()

    asyncio.run(asyncio.wait_for(main(), 240))

"""The whole engine on an NVIDIA GPU: run with scripts/test-gpu."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

from octavo import LLM, AsyncLLM, EngineConfig, RequestOutputKind, SamplingParams
from tests.builders import save_tokenizer
from tests.engine.conftest import FAMILIES, MAX_TOKENS, make_reference

pytestmark = pytest.mark.gpu

GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "initializer_range": 0.02,
}


@pytest.fixture(scope="module")
def llama_3_8b(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama-3-8b")
    save_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(LLAMA_3_8B))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_the_cpu_reference(family, tmp_path):
    """transformers' float32 answers on the CPU, from float32 on the GPU: in a batch, chunked, with hits, preempted."""
    reference = make_reference(family, tmp_path)
    prompts = [{"prompt_token_ids": p} for p in reference.prompts]
    for config in (
        {},
        {"long_prefill_token_threshold": 7},
        {"overlap": False},
        {"num_kv_blocks": 12, "enable_prefix_caching": False},
    ):
        llm = LLM(
            str(reference.folder),
            **{"dtype": "float32", "num_kv_blocks": 512, **config},
        )
        for _ in range(2):
            outputs = llm.generate(prompts, GREEDY)
            assert [o.outputs[0].token_ids for o in outputs] == reference.answers
        assert llm._core.info.attention == "triton"
        llm._core.check_integrity()
        assert llm._core.scheduler.cache.pool.num_held == 0


def test_sampling_on_the_gpu_is_that_of_the_cpu(tmp_path):
    reference = make_reference("llama", tmp_path)
    params = SamplingParams(temperature=0.8, top_p=0.9, top_k=40, min_p=0.01, seed=5, max_tokens=12, logprobs=3, n=2)
    prompts = [{"prompt_token_ids": p} for p in reference.prompts]
    found = {}
    for device in ("cpu", "cuda"):
        llm = LLM(str(reference.folder), dtype="float32", device=device, num_kv_blocks=512)
        found[device] = [c for o in llm.generate(prompts, params) for c in o.outputs]
    assert [c.token_ids for c in found["cpu"]] == [c.token_ids for c in found["cuda"]]
    for ours, theirs in zip(found["cpu"], found["cuda"], strict=True):
        assert ours.cumulative_logprob == pytest.approx(theirs.cumulative_logprob, abs=1e-3)


def test_llama_3_8b_offline(llama_3_8b):
    start = time.perf_counter()
    llm = LLM(str(llama_3_8b), load_format="dummy", max_model_len=4096)
    print(f"\n8B start: {time.perf_counter() - start:.1f} s", llm._core.info.phases, llm._core.info.ledger)
    prompts = [{"prompt_token_ids": [(7 * i + j) % 120000 for j in range(100 + i)]} for i in range(64)]
    outputs = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True))
    assert all(len(o.outputs[0].token_ids) == 32 for o in outputs)
    alone = llm.generate(prompts[:1], SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True))
    assert alone[0].num_cached_tokens == 96
    llm._core.check_integrity()
    del llm
    torch.cuda.empty_cache()


def test_llama_3_8b_through_the_async_engine(llama_3_8b):
    async def main():
        engine = await AsyncLLM.start(EngineConfig(model=str(llama_3_8b), load_format="dummy", max_model_len=4096))
        try:

            async def one(i):
                params = SamplingParams(
                    temperature=0.0, max_tokens=16, ignore_eos=True, output_kind=RequestOutputKind.DELTA
                )
                prompt = [(i + j) % 120000 for j in range(50)]
                stream = engine.generate(prompt, params, request_id=str(i))
                return [token async for output in stream for token in output.outputs[0].token_ids]

            answers = await asyncio.gather(*(one(i) for i in range(100)))
            assert all(len(a) == 16 for a in answers)
        finally:
            await engine.shutdown()

    asyncio.run(main())


def test_llama_3_8b_through_the_server(llama_3_8b):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["serve", str(llama_3_8b), "--load-format", "dummy", "--port", str(port), "--max-model-len", "4096"]
    start = time.perf_counter()
    server = subprocess.Popen([sys.executable, "-m", "octavo.cli.main", *command], env={**os.environ})
    try:
        url = f"http://127.0.0.1:{port}"
        while True:
            assert server.poll() is None, "the server ended"
            assert time.perf_counter() - start < 180, "the server does not become ready"
            try:
                urllib.request.urlopen(f"{url}/readyz", timeout=2)
                break
            except OSError:
                time.sleep(0.1)
        body = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        answer = json.load(urllib.request.urlopen(request, timeout=60))
        print(f"\n8B server, process start to first answer: {time.perf_counter() - start:.1f} s")
        assert answer["usage"]["completion_tokens"] == 24
        assert answer["choices"][0]["finish_reason"] == "length"
    finally:
        server.terminate()
        assert server.wait(30) == 0

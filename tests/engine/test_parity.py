"""Greedy answers and logprobs equal transformers', however the work is cut up."""

from __future__ import annotations

import random

import pytest

from octavo import LLM, SamplingParams
from tests.engine.conftest import MAX_TOKENS, Reference

GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)


def start(reference: Reference, **config) -> LLM:
    return LLM(str(reference.folder), **{"num_kv_blocks": 512, "dtype": "float32", **config})


def answers(llm: LLM, prompts: list[list[int]], params: SamplingParams = GREEDY):
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params)
    llm._core.check_integrity()
    assert llm._core.scheduler.cache.pool.num_held == 0
    assert llm._core.scheduler.rows.num_active == 0
    return outputs


def count_preemptions(llm: LLM) -> list[int]:
    """A list that grows by the preemptions of each step."""
    seen, step = [], llm._core.step

    def counted():
        outputs = step()
        if outputs is not None:
            seen.append(outputs.stats.preemptions)
        return outputs

    llm._core.step = counted
    return seen


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 64, 0])
def test_shuffled_batch(reference: Reference, chunk: int, overlap: bool):
    llm = start(reference, long_prefill_token_threshold=chunk, enable_prefix_caching=False, overlap=overlap)
    order = list(range(32))
    random.Random(chunk).shuffle(order)
    outputs = answers(llm, [reference.prompts[i] for i in order])
    for i, output in zip(order, outputs, strict=True):
        assert output.outputs[0].token_ids == reference.answers[i]
        assert output.num_cached_tokens == 0


def test_alone(reference: Reference):
    llm = start(reference, enable_prefix_caching=False)
    for prompt, answer in zip(reference.prompts[:8], reference.answers[:8], strict=True):
        assert answers(llm, [prompt])[0].outputs[0].token_ids == answer


@pytest.mark.parametrize("chunk", [1, 7, 64, 0])
def test_prefix_hits(reference: Reference, chunk: int):
    llm = start(reference, long_prefill_token_threshold=chunk)
    for turn in range(2):
        outputs = answers(llm, reference.prompts)
        assert [o.outputs[0].token_ids for o in outputs] == reference.answers
        if turn:
            for output, prompt in zip(outputs, reference.prompts, strict=True):
                assert output.num_cached_tokens == (len(prompt) - 1) // 16 * 16


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("caching", [False, True])
def test_forced_preemption(reference: Reference, caching: bool, overlap: bool):
    # 32 sequences of up to 102 tokens in 30 blocks of 4; with windows they need fewer.
    blocks = 18 if reference.family == "mistral" else 30
    llm = start(reference, num_kv_blocks=blocks, block_size=4, enable_prefix_caching=caching, overlap=overlap)
    preempted = count_preemptions(llm)
    outputs = answers(llm, reference.prompts)
    assert sum(preempted) >= 5
    assert [o.outputs[0].token_ids for o in outputs] == reference.answers


@pytest.mark.parametrize("chunk", [1, 7, 64, 0])
def test_logprobs(reference: Reference, chunk: int):
    llm = start(reference, long_prefill_token_threshold=chunk)
    params = GREEDY.clone(logprobs=5, prompt_logprobs=3)
    for _ in range(2):  # the second time the prompts are in the cache
        for i, output in enumerate(answers(llm, reference.prompts[:12], params)):
            prompt, expected = reference.prompts[i], reference.logprobs[i]
            answer = output.outputs[0]
            assert answer.token_ids == reference.answers[i]
            assert output.prompt_logprobs[0] is None
            check(output.prompt_logprobs[1:], expected[: len(prompt) - 1], prompt[1:], 3)
            check(answer.logprobs, expected[len(prompt) - 1 :], answer.token_ids, 5)
            assert answer.cumulative_logprob == pytest.approx(
                sum(found[t].logprob for found, t in zip(answer.logprobs, answer.token_ids, strict=True))
            )


def check(found, expected, tokens, count):
    assert len(found) == len(expected) == len(tokens)
    for row, truth, token in zip(found, expected, tokens, strict=True):
        top = truth.topk(count).indices.tolist()
        assert set(top) | {token} == set(row)
        for other, value in row.items():
            assert value.logprob == pytest.approx(truth[other].item(), abs=1e-4)
            assert value.rank == int((truth > truth[other]).sum()) + 1

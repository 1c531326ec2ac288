"""What goes wrong in the host's work for one request ends that request; all others get the answers they always get."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.core.errors import InternalError, NanLogits, Overloaded
from octavo.core.outputs import RequestOutput
from octavo.core.structured import StructuredOutputs
from octavo.engine.outputs import RequestState
from octavo.runner.batch import BatchBuilder
from octavo.runner.runner import Runner
from octavo.sampling.penalties import Penalties
from octavo.sampling.sampler import Sampler
from octavo.scheduler import scheduler as scheduling
from octavo.scheduler.scheduler import Scheduler
from tests.engine.conftest import MAX_TOKENS, Reference

PARAMS = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
COUNT, CULPRIT = 9, 4
MARK = 0.25  # min_p of the culprit, which greedy sampling does not read


class Broken(Exception):
    """Nobody but the tests knows this one."""


def is_culprit(params: SamplingParams) -> bool:
    return params.min_p == MARK


def culprits_row(owner: Any) -> int:
    scheduler = owner._test_scheduler
    return next((r for r, s in enumerate(scheduler.rows.owner) if s and is_culprit(s.request.params)), -1)


def by_plan(plan: Any, scheduler: Scheduler) -> bool:
    return culprits_row(scheduler) in plan.rows_N.tolist()


# Where it breaks: what is replaced, and whether a call of it is the culprit's (given the scheduler and the arguments).
Test = Callable[..., bool]
PHASES: dict[str, tuple[Any, str, Test]] = {
    "queue": (Scheduler, "_queue", lambda s, _, request: is_culprit(request.params)),
    "admission": (Scheduler, "_place", lambda s, _, seq: is_culprit(seq.request.params)),
    "join": (Sampler, "join", lambda s, _, join: is_culprit(join.params)),
    "penalties": (Penalties, "join", lambda s, _, join: is_culprit(join.params)),
    "batch": (BatchBuilder, "build", lambda s, _, plan: by_plan(plan, s)),
    "forward": (Runner, "_sample", lambda s, _, plan, *rest: by_plan(plan, s)),
    "decode": (Runner, "execute", lambda s, _, plan: by_plan(plan, s) and plan.num_decodes == len(plan.rows_N)),
    "chunk": (Scheduler, "_chunk_done", lambda s, _, row, outputs: row == culprits_row(s)),
    "logprobs": (scheduling, "pack_logprobs", lambda s, found, plan, alive, rows: by_plan(plan, s)),
    "end": (Scheduler, "_extend_hashes", lambda s, _, seq, tokens: is_culprit(seq.request.params)),
    "thinking": (Scheduler, "_end_thinking", lambda s, _, row, outputs: row == culprits_row(s)),
    "output": (RequestState, "take", lambda s, state, *rest: is_culprit(state.params)),
    "detokenizer": (RequestState, "_add_text", lambda s, state, *rest: is_culprit(state.params)),
    "logprobs of the front": (RequestState, "add_logprobs", lambda s, state, *rest: is_culprit(state.params)),
}


def start(reference: Reference, **config: Any) -> LLM:
    llm = LLM(str(reference.folder), **{"num_kv_blocks": 128, "dtype": "float32", **config})
    llm._core.scheduler._test_scheduler = llm._core.scheduler
    return llm


def run(llm: LLM, reference: Reference, **culprit: Any) -> list[RequestOutput]:
    params = [PARAMS] * COUNT
    params[CULPRIT] = PARAMS.clone(min_p=MARK, **culprit)
    return llm.generate([{"prompt_token_ids": p} for p in reference.prompts[:COUNT]], params)


def check(llm: LLM, reference: Reference, outputs: list[RequestOutput], reason: str = "error") -> None:
    for i, output in enumerate(outputs):
        if i == CULPRIT:
            assert output.outputs[0].finish_reason == reason
        else:
            assert output.outputs[0].token_ids == reference.answers[i], i
            assert output.outputs[0].finish_reason == "length"
    core = llm._core
    core.check_integrity()
    assert core.scheduler.num_live == 0 and not core.has_work
    assert core.scheduler.cache.pool.num_held == 0 and core.scheduler.rows.num_active == 0
    assert core.scheduler.audit() == 0


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("after", [0, 1, 4])
@pytest.mark.parametrize("phase", PHASES)
def test_a_fault_is_the_requests_own(llama, monkeypatch, caplog, phase: str, after: int, overlap: bool):
    llm = start(llama, overlap=overlap)
    where, name, mine = PHASES[phase]
    found, calls = getattr(where, name), []

    def breaking(*args: Any) -> Any:
        if mine(llm._core.scheduler, *args):
            calls.append(1)
            if len(calls) > after:
                raise Broken("a secret")
        return found(*args)

    extra: dict[str, Any] = {"presence_penalty": 0.5} if phase == "penalties" else {}
    if phase.startswith("logprobs"):
        extra = {"logprobs": 2}
    with monkeypatch.context() as patch:
        patch.setattr(where, name, breaking)
        if phase == "thinking":
            marks = {"thinking_token_budget": 2, "thinking_marks": ["<|im_start|>", "<|im_end|>"]}
            llm._intake._thinking = lambda params: [1, 2] if params.thinking_token_budget else []
            extra = marks
        outputs = run(llm, llama, **extra)
    broke = len(calls) > after
    if broke:
        assert "Broken" in caplog.text and f"'{CULPRIT}'" in caplog.text
    check(llm, llama, outputs, "error" if broke else outputs[CULPRIT].outputs[0].finish_reason)
    if after == 0:
        assert broke, "the fault was not reached"
    again = llm.generate([{"prompt_token_ids": p} for p in llama.prompts[:COUNT]], PARAMS)
    assert [o.outputs[0].token_ids for o in again] == llama.answers[:COUNT]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_fault_that_passes(llama, monkeypatch, overlap: bool):
    """Some step fails once, and nobody's fault can be found: nobody fails."""
    llm = start(llama, overlap=overlap)
    execute, calls = llm._core.runner.execute, []

    def once(plan: Any) -> Any:
        calls.append(1)
        if len(calls) in (3, 9):
            raise Broken
        return execute(plan)

    monkeypatch.setattr(llm._core.runner, "execute", once)
    check(llm, llama, run(llm, llama), "length")


@pytest.mark.parametrize("overlap", [False, True])
def test_logits_that_are_not_finite(llama, monkeypatch, overlap: bool):
    llm = start(llama, overlap=overlap)
    sample, seen = Sampler.sample, []

    def broken(self: Sampler, logits: torch.Tensor, rows_S: Any, positions: Any, rows_host: np.ndarray, *rest: Any):
        at = np.flatnonzero(rows_host == culprits_row(llm._core.scheduler))
        seen.append(len(at))
        if len(at) and sum(seen) > 3:
            logits[int(at[0])] = float("nan")
        return sample(self, logits, rows_S, positions, rows_host, *rest)

    failures = []
    fail = RequestState.take

    def taking(self: RequestState, *args: Any) -> bool:
        done = fail(self, *args)
        failures.append(self.failure)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "sample", broken)
        patch.setattr(RequestState, "take", taking)
        check(llm, llama, run(llm, llama))
    assert {type(error) for error in failures} == {type(None), NanLogits}
    # Nothing that it computed can be hit: it may hold what is no number.
    prompt = llama.prompts[CULPRIT]
    again = llm.generate([{"prompt_token_ids": prompt}], PARAMS)[0]
    assert again.num_cached_tokens == 0 and again.outputs[0].token_ids == llama.answers[CULPRIT]


@pytest.mark.parametrize("overlap", [False, True])
def test_memory_that_runs_out(llama, monkeypatch, overlap: bool):
    """Steps over 24 tokens find no memory: all are served in smaller ones. A request that never finds any fails."""
    llm = start(llama, overlap=overlap, max_num_batched_tokens=96, max_num_seqs=16)
    execute = llm._core.runner.execute
    refuse: Callable[[Any], bool] = lambda plan: plan.num_tokens > 24  # noqa: E731
    failed = []

    def tight(plan: Any) -> Any:
        if refuse(plan):
            failed.append(plan.num_tokens)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return execute(plan)

    monkeypatch.setattr(llm._core.runner, "execute", tight)
    check(llm, llama, run(llm, llama), "length")
    assert failed
    llm._core.scheduler.recovery.budget = 96
    longest = max(range(COUNT), key=lambda i: len(llama.prompts[i]))
    refuse = lambda plan: culprits_row(llm._core.scheduler) in plan.rows_N.tolist()  # noqa: E731
    params = [PARAMS] * COUNT
    params[longest] = PARAMS.clone(min_p=MARK)
    outputs = llm.generate([{"prompt_token_ids": p} for p in llama.prompts[:COUNT]], params)
    for i, output in enumerate(outputs):
        assert output.outputs[0].finish_reason == ("error" if i == longest else "length")
        assert i == longest or output.outputs[0].token_ids == llama.answers[i]
    llm._core.check_integrity()
    assert llm._core.scheduler.cache.pool.num_held == 0
    for _ in range(20):
        llm.generate([{"prompt_token_ids": llama.prompts[0]}], PARAMS)
    assert llm._core.scheduler.recovery.budget == 96, "steps stay small for good"


def test_what_clients_hear():
    from octavo.core.outputs import Fault, Finished, FinishReason
    from octavo.engine.outputs import _error_of

    heard = {fault: _error_of(Finished(1, FinishReason.ERROR, fault=fault)) for fault in Fault}
    assert type(heard[Fault.INTERNAL]) is InternalError and heard[Fault.INTERNAL].status == 500
    assert type(heard[Fault.NAN_LOGITS]) is NanLogits and heard[Fault.NAN_LOGITS].code == "nan_logits"
    assert type(heard[Fault.NO_MEMORY]) is Overloaded and heard[Fault.NO_MEMORY].status == 503


@pytest.mark.parametrize("overlap", [False, True])
def test_poison(llama, monkeypatch, overlap: bool):
    """Blocks and rows hold NaN and impossible ids until they are written: nothing of that is ever read."""
    monkeypatch.setenv("OCTAVO_DEBUG", "1")
    for config in ({}, {"num_kv_blocks": 30, "block_size": 4}):
        llm = start(llama, overlap=overlap, **config)
        prompts = [{"prompt_token_ids": p} for p in llama.prompts]
        for _ in range(2):
            outputs = llm.generate(prompts, PARAMS)
            assert [o.outputs[0].token_ids for o in outputs] == llama.answers
        with monkeypatch.context() as patch:  # that it is poisoned, and that the answers would tell
            patch.setattr(BatchBuilder, "slots", lambda self, rows, positions: [positions * 0] * len(self.tables))
            wrong = llm.generate([{"prompt_token_ids": p[::-1]} for p in llama.prompts], PARAMS)
        assert any(o.outputs[0].finish_reason == "error" for o in wrong)


FEATURES: list[dict[str, Any]] = [
    {"allowed_token_ids": list(range(300, 320))},
    {"logit_bias": {7: 100.0, 8: 99.0}},
    {"presence_penalty": 2.0, "frequency_penalty": 2.0, "repetition_penalty": 5.0},
    {"bad_words": ["the", "a"], "min_tokens": 3},
    {"structured_outputs": StructuredOutputs(choice=["yes", "no"])},
    {"temperature": 2.0, "top_k": 5, "seed": 3},
    {"temperature": 1.5, "top_p": 0.7, "min_p": 0.05, "logprobs": 3},
    {"n": 3, "temperature": 1.0, "prompt_logprobs": 2},
    {"stop_token_ids": list(range(3, 200)), "min_tokens": 2},
]


@pytest.mark.parametrize("overlap", [False, True])
def test_nothing_of_a_row_outlives_it(llama, monkeypatch, overlap: bool):
    """Rows go from those who use everything to those who use nothing, in any order: these get what they get alone."""
    monkeypatch.setenv("OCTAVO_DEBUG", "1")
    llm = start(llama, overlap=overlap, max_num_seqs=6)
    draw = random.Random(overlap)
    prompts, params, plain = [], [], []
    for i in range(96):
        prompts.append({"prompt_token_ids": llama.prompts[i % 32]})
        plain.append(draw.random() < 0.5)
        most = draw.randrange(4, MAX_TOKENS + 1)
        fields = {} if plain[-1] else draw.choice(FEATURES)
        params.append(PARAMS.clone(**{"max_tokens": most, **fields}))
    outputs = llm.generate(prompts, params)
    for i, output in enumerate(outputs):
        assert all(answer.finish_reason in ("length", "stop") for answer in output.outputs)
        if plain[i]:
            assert output.outputs[0].token_ids == llama.answers[i % 32][: params[i].max_tokens]
    llm._core.check_integrity()
    assert llm._core.scheduler.cache.pool.num_held == 0


@pytest.mark.parametrize("chunk", [1, 16, 511])
def test_logprobs_of_a_cached_prompt(llama, chunk: int):
    """A prompt that is in the cache, wholly or in part, has the logprobs of one that is not."""
    llm = start(llama, long_prefill_token_threshold=chunk)
    prompt = (llama.prompts[0] + llama.prompts[1])[:70]
    params = PARAMS.clone(prompt_logprobs=2, max_tokens=1)
    fresh = start(llama, enable_prefix_caching=False).generate([{"prompt_token_ids": prompt}], params)[0]
    llm.generate([{"prompt_token_ids": prompt[:40]}], PARAMS)
    for _ in range(3):  # its beginning is cached, then all of it
        llm.generate([{"prompt_token_ids": prompt}], PARAMS)
        found = llm.generate([{"prompt_token_ids": prompt}], params)[0]
        assert len(found.prompt_logprobs) == len(prompt)
        for mine, other in zip(found.prompt_logprobs[1:], fresh.prompt_logprobs[1:], strict=True):
            assert list(mine) == list(other)
            assert all(abs(mine[token].logprob - other[token].logprob) < 1e-3 for token in mine)

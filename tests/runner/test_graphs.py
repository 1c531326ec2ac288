"""Decode steps through the graphs' buffers and the GPU's kernels, in Triton's interpreter, replayed without recording.

What a CUDA graph does is run `DecodeGraphs._step` again on the same memory: that is what these tests do. Whether a
recording of it gives the same is seen on a GPU (tests/gpu).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from octavo import LLM, SamplingParams, kernels
from octavo.attention.triton_backend import TritonAttention
from octavo.kernels import elementwise
from octavo.layers import moe
from octavo.moe import select
from octavo.moe.triton_backend import TritonExperts
from octavo.runner import graphs, mixed
from octavo.runner.graphs import DecodeGraphs, batch_sizes
from octavo.runner.mixed import MixedGraphs
from octavo.runner.recorder import Recorder
from octavo.runner.runner import Runner
from octavo.sampling import sampler
from octavo.sampling.fused import Fused
from tests.builders import make_model
from tests.engine.conftest import Reference
from tests.engine.test_families import GREEDY, answers, prompts
from tests.engine.test_parity import count_preemptions
from tests.models.cases import CASES

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs real graphs")


class Replay:
    def __init__(self, work) -> None:
        self.replay = work


@pytest.fixture
def unrecorded(monkeypatch):
    """How often the two kinds of graphs were replayed: [decode steps, mixed steps]."""
    monkeypatch.setattr(kernels, "elementwise_for", lambda device: elementwise)
    monkeypatch.setattr(sampler, "fused_for", Fused)
    monkeypatch.setattr(TritonExperts, "supports", staticmethod(lambda spec: None))
    monkeypatch.setattr(moe, "select_experts", select.select_experts.__wrapped__)
    monkeypatch.setattr(Recorder, "record", lambda self, work: Replay(work))
    monkeypatch.setattr(graphs, "WORTH", 2)  # some steps run in a larger graph
    monkeypatch.setattr(mixed, "WORTH", 1)
    monkeypatch.setattr(mixed, "TOKENS", (16, 32, 64, 256, 1024))  # padding takes time here
    replays = [0, 0]
    for kind, steps in enumerate((DecodeGraphs, MixedGraphs)):

        def counted(self, plan, run=steps.run, kind=kind):
            found = run(self, plan)
            replays[kind] += found is not None
            return found

        monkeypatch.setattr(steps, "run", counted)
    return replays


def start(folder: Path, num_blocks: int, **config) -> LLM:
    """An engine on the CPU whose runner is the GPU's."""
    llm = LLM(str(folder), dtype="float32", max_num_seqs=5, num_kv_blocks=num_blocks, max_model_len=160, **config)
    core = llm._core
    model, cache = core.runner.model, core.scheduler.cache.config
    spec = replace(core.runner.attention.spec, max_num_seqs=cache.max_rows)
    core.runner = Runner(model, cache, TritonAttention(spec, cache.num_blocks), model.device, graphs=True)
    return llm


@pytest.mark.parametrize(("overlap", "num_blocks"), [(True, 64), (False, 26)])  # room for all; preemptions
def test_greedy_answers_equal_the_reference(llama: Reference, unrecorded, overlap, num_blocks):
    llm = start(llama.folder, num_blocks, block_size=4, overlap=overlap)
    picked = sorted(range(32), key=lambda i: len(llama.prompts[i]))[:6]
    limits = [9, 3, 9, 5, 7, 6]  # rows leave at different steps
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in limits]
    outputs = llm.generate([{"prompt_token_ids": llama.prompts[i]} for i in picked], params)
    for i, limit, output in zip(picked, limits, outputs, strict=True):
        assert output.outputs[0].token_ids == llama.answers[i][:limit]
    llm._core.check_integrity()
    assert unrecorded[0] > 5 and unrecorded[1] >= 2
    assert len(llm._core.runner.decode_graphs._graphs) >= 3


def six(llama: Reference, llm: LLM) -> None:
    """Six short answers, which begin and end at different steps, equal the reference's."""
    picked = sorted(range(32), key=lambda i: len(llama.prompts[i]))[:6]
    limits = [9, 3, 9, 5, 7, 6]
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in limits]
    outputs = llm.generate([{"prompt_token_ids": llama.prompts[i]} for i in picked], params)
    for i, limit, output in zip(picked, limits, outputs, strict=True):
        assert output.outputs[0].token_ids == llama.answers[i][:limit]
    llm._core.check_integrity()


def test_what_cannot_be_recorded_is_done_without(llama: Reference, unrecorded, monkeypatch):
    """Every other recording fails for want of memory: in a step, and while there is nothing to do."""
    llm, turns, tried = start(llama.folder, 64, block_size=4), iter(range(1000)), []

    def record(self: Recorder, work) -> Replay:
        if next(turns) % 2 == 0:
            tried.append(work)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Replay(work)

    monkeypatch.setattr(Recorder, "record", record)
    six(llama, llm)
    assert len(tried) >= 2 and unrecorded[0] > 0
    graphs = llm._core.runner.decode_graphs
    graphs._ahead = [(size, 0) for size in graphs.sizes if (size, 0) not in graphs._graphs] or [(graphs.sizes[0], 0)]
    while llm._core.prepare():
        pass
    assert not graphs._ahead and not llm._core.runner.mixed_graphs._ahead


def test_what_was_met_is_recorded_while_there_is_nothing_to_do(llama: Reference, unrecorded):
    """Greedy steps of all sizes, those of a mode that some batch had, and steps with prompts: each once."""
    llm = start(llama.folder, 64, block_size=4)
    llm.generate([{"prompt_token_ids": llama.prompts[0][:20]}], SamplingParams(temperature=1.0, max_tokens=3, seed=1))
    decodes, steps = llm._core.runner.decode_graphs, llm._core.runner.mixed_graphs
    assert len(decodes._graphs) < 2 * len(decodes.sizes)
    while llm._core.prepare():
        pass
    assert {size for size, mode in decodes._graphs if mode == 1} == set(decodes.sizes)
    assert {size for size, mode in decodes._graphs if mode == 0} == set(decodes.sizes)
    assert set(steps._graphs) == {(*size, mixed.MODE) for size in mixed.sizes(5)}
    replays = list(unrecorded)
    six(llama, llm)
    assert unrecorded[0] > replays[0] and unrecorded[1] > replays[1]
    assert len(steps._graphs) == len(mixed.sizes(5)), "nothing is left to be recorded"


def test_steps_that_fail_between_graphs(llama: Reference, unrecorded, monkeypatch):
    """What the buffers of graphs hold is not what the next step follows: answers are the same all the same."""
    llm, turns, failed = start(llama.folder, 64, block_size=4, overlap=True), iter(range(1000)), []

    def failing(self, plan, run=DecodeGraphs.run):
        turn = next(turns)
        if turn in (3, 6):
            failed.append(turn)
            raise torch.OutOfMemoryError("CUDA out of memory")
        found = run(self, plan)
        if turn >= 8 and found is not None and len(failed) == 2:  # launched: nobody knows what it has written
            failed.append(turn)
            raise RuntimeError("a fault")
        return found

    monkeypatch.setattr(DecodeGraphs, "run", failing)
    six(llama, llm)
    assert len(failed) == 3 and unrecorded[0] > 3


@pytest.mark.parametrize("num_blocks", [400, 32])  # room for all; preemptions
def test_groups_of_layers(tmp_path, unrecorded, num_blocks):
    folder = make_model(tmp_path, "gemma3", **CASES["gemma3"][1])
    llm = start(folder, num_blocks, block_size=4, long_prefill_token_threshold=13)
    preempted = count_preemptions(llm)
    assert len(llm._core.scheduler.cache.config.windows) > 1
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts()], GREEDY)
    assert [output.outputs[0].token_ids for output in outputs] == answers(folder)
    llm._core.check_integrity()
    assert unrecorded[0] > 3 and unrecorded[1] >= 2 and (sum(preempted) > 0) == (num_blocks < 400)


def lose_announcements(monkeypatch):
    monkeypatch.setattr(DecodeGraphs, "_announce", lambda self, plan: True)


def lose_chunk_positions(monkeypatch):
    fill = MixedGraphs._fill

    def spoiled(self, array, layout, plan):
        fill(self, array, layout, plan)
        array[layout.parts[2]] //= 2

    monkeypatch.setattr(MixedGraphs, "_fill", spoiled)


def lose_chunk_ends(monkeypatch):
    fill = MixedGraphs._fill

    def spoiled(self, array, layout, plan):
        fill(self, array, layout, plan)
        array[layout.parts[6]] -= 4

    monkeypatch.setattr(MixedGraphs, "_fill", spoiled)


@pytest.mark.parametrize("lose", [lose_announcements, lose_chunk_positions, lose_chunk_ends])
def test_planted_errors_are_seen(llama: Reference, unrecorded, monkeypatch, lose):
    lose(monkeypatch)
    llm = start(llama.folder, 64, block_size=4)
    params = SamplingParams(temperature=0.0, max_tokens=7, ignore_eos=True)
    shortest = min((i for i in range(32) if len(llama.prompts[i]) > 8), key=lambda i: len(llama.prompts[i]))
    (output,) = llm.generate([{"prompt_token_ids": llama.prompts[shortest]}], params)
    assert output.outputs[0].token_ids != llama.answers[shortest][:7]


def test_sizes_cover_every_batch():
    for most in (1, 2, 5, 64, 100, 1024):
        sizes = batch_sizes(most)
        assert sizes == sorted(set(sizes)) and sizes[-1] == most

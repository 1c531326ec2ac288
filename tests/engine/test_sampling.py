"""What a user asks of a generation is what comes out, through the whole engine."""

from __future__ import annotations

import pytest

from octavo import LLM, BeamSearchParams, RequestError, SamplingParams
from tests.builders import load_reference
from tests.engine.conftest import Reference


@pytest.fixture(scope="module")
def llm(llama: Reference) -> LLM:
    return LLM(str(llama.folder), num_kv_blocks=256, dtype="float32")


def one(llm: LLM, prompt, **params):
    params = {"temperature": 0.0, "max_tokens": 10, "ignore_eos": True, **params}
    return llm.generate(prompt, SamplingParams(**params))[0]


def test_seed_is_reproducible_whatever_the_batch(llm: LLM, llama: Reference):
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=7, max_tokens=10, ignore_eos=True)
    alone = llm.generate([llama.prompts[3]], params)[0].outputs[0].token_ids
    other = SamplingParams(temperature=0.7, max_tokens=14, ignore_eos=True)
    crowd = llm.generate(llama.prompts, [params if i == 3 else other for i in range(32)])
    assert crowd[3].outputs[0].token_ids == alone
    different = llm.generate([llama.prompts[3]], params.clone(seed=8))[0].outputs[0].token_ids
    assert different != alone


def test_n_answers_differ_and_the_first_is_that_of_one(llm: LLM):
    params = {"temperature": 1.0, "seed": 3}
    several = one(llm, "The quick brown", n=4, **params)
    assert [a.index for a in several.outputs] == [0, 1, 2, 3]
    assert several.outputs[0].token_ids == one(llm, "The quick brown", **params).outputs[0].token_ids
    assert len({tuple(a.token_ids) for a in several.outputs}) == 4


def test_n_greedy_answers_are_equal(llm: LLM, llama: Reference):
    for prompt, answer in zip(llama.prompts[:6], llama.answers[:6], strict=True):
        output = one(llm, [prompt], n=3)
        assert [a.token_ids for a in output.outputs] == [answer[:10]] * 3


def test_stop_string_cuts_the_text(llm: LLM):
    whole = one(llm, "hello world", max_tokens=30).outputs[0]
    stop = whole.text[6:9]
    cut = one(llm, "hello world", max_tokens=30, stop=[stop]).outputs[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    kept = one(llm, "hello world", max_tokens=30, stop=[stop], include_stop_str_in_output=True).outputs[0]
    assert kept.text == cut.text + stop
    assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids


def test_thinking_budget(llm: LLM, llama: Reference):
    """The answer goes on from the token that was set, as if it had been sampled."""
    tokenizer = llm.get_tokenizer()
    begin, end = (next(i for i in range(first, 500) if i not in llama.answers[1]) for first in (300, 400))
    marks = [tokenizer.id_to_token(begin), tokenizer.id_to_token(end)]
    prompt = [*llama.prompts[1], begin]
    free = one(llm, [prompt], max_tokens=12).outputs[0].token_ids
    found = one(llm, [prompt], max_tokens=12, thinking_token_budget=4, thinking_marks=marks, logprobs=0).outputs[0]
    assert found.token_ids[:5] == free[:4] + [end]
    assert found.token_ids[5:] == one(llm, [prompt + free[:4] + [end]], max_tokens=7).outputs[0].token_ids
    assert found.logprobs is not None and found.logprobs[4][end].logprob == 0 and len(found.logprobs) == 12
    with pytest.raises(RequestError, match="one token each") as caught:
        one(llm, [prompt], thinking_token_budget=4)
    assert caught.value.param == "thinking_token_budget"
    with pytest.raises(RequestError, match="two strings"):
        SamplingParams(thinking_marks=["a"])


def test_prompt_logprobs_come_once(llm: LLM, llama: Reference):
    """Though the sequence is put back, and computed again."""
    tokenizer = llm.get_tokenizer()
    prompt = [*llama.prompts[5], 300]
    marks = [tokenizer.id_to_token(300), tokenizer.id_to_token(301)]
    params = {"prompt_logprobs": 1, "thinking_marks": marks}
    once = one(llm, [prompt], **params).prompt_logprobs
    again = one(llm, [prompt], **params, thinking_token_budget=3)
    assert again.outputs[0].token_ids[3] == 301 and again.prompt_logprobs == once and len(once) == len(prompt)


def test_stop_token(llm: LLM, llama: Reference):
    answer = llama.answers[0]
    output = one(llm, [llama.prompts[0]], stop_token_ids=[answer[4]]).outputs[0]
    assert output.token_ids == answer[: answer.index(answer[4]) + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", answer[4])


def test_eos_ends_and_ignore_eos_does_not(llm: LLM):
    eos = llm.get_tokenizer().eos_id
    bias = {eos: 100.0}
    assert one(llm, "a", logit_bias=bias, ignore_eos=False).outputs[0].token_ids == [eos]
    assert one(llm, "a", logit_bias=bias, ignore_eos=False).outputs[0].stop_reason is None
    assert one(llm, "a", logit_bias=bias).outputs[0].token_ids == [eos] * 10
    patient = one(llm, "a", logit_bias=bias, ignore_eos=False, min_tokens=4).outputs[0]
    assert len(patient.token_ids) == 5 and patient.token_ids.index(eos) == 4


def test_allowed_and_banned(llm: LLM, llama: Reference):
    allowed = [5, 6, 7]
    assert set(one(llm, [llama.prompts[0]], allowed_token_ids=allowed).outputs[0].token_ids) <= set(allowed)
    plain = one(llm, "hello world", max_tokens=12).outputs[0]
    word = llm.get_tokenizer().decode(plain.token_ids[2:4])
    banned = one(llm, "hello world", max_tokens=12, bad_words=[word]).outputs[0]
    ids = llm.get_tokenizer().encode(word, add_special_tokens=False)
    pairs = [banned.token_ids[i : i + len(ids)] for i in range(12)]
    assert ids not in pairs
    assert banned.token_ids[:2] == plain.token_ids[:2]


def test_penalties_stop_repetition(llm: LLM):
    free = one(llm, "aaaa", max_tokens=60).outputs[0].token_ids
    for penalty in ({"frequency_penalty": 2.0}, {"presence_penalty": 2.0}, {"repetition_penalty": 5.0}):
        held = one(llm, "aaaa", max_tokens=60, **penalty).outputs[0].token_ids
        assert len(set(held)) > len(set(free))


def test_max_tokens_none_fills_the_context(llm: LLM):
    output = one(llm, "hello", max_tokens=None)
    assert len(output.prompt_token_ids) + len(output.outputs[0].token_ids) == 512
    assert output.outputs[0].finish_reason == "length"


def test_prompt_logprobs_alone(llm: LLM, llama: Reference):
    output = one(llm, [llama.prompts[1]], max_tokens=0, prompt_logprobs=0)
    assert output.outputs[0].token_ids == [] and output.outputs[0].finish_reason == "length"
    assert len(output.prompt_logprobs) == len(llama.prompts[1])


def test_beam_search_equals_transformers(llm: LLM, llama: Reference):
    import torch

    model = load_reference(llama.folder)
    for prompt in llama.prompts[:3]:
        ours = llm.beam_search([prompt], BeamSearchParams(beam_width=3, max_tokens=6, ignore_eos=True))[0]
        ids = torch.tensor([prompt])
        theirs = model.generate(
            ids, num_beams=3, num_return_sequences=3, max_new_tokens=6, do_sample=False, eos_token_id=-1
        )
        assert [s.tokens for s in ours.sequences] == theirs.tolist()


def test_beam_search_with_allowed_tokens(llm: LLM, llama: Reference):
    import torch

    prompt, even = llama.prompts[0], list(range(0, 512, 2))
    params = BeamSearchParams(beam_width=3, max_tokens=6, ignore_eos=True, allowed_token_ids=even)
    theirs = load_reference(llama.folder).generate(
        torch.tensor([prompt]),
        **{"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 6, "do_sample": False, "eos_token_id": -1},
        prefix_allowed_tokens_fn=lambda batch, ids: even,
    )
    assert [s.tokens for s in llm.beam_search([prompt], params)[0].sequences] == theirs.tolist()
    (only,) = llm.beam_search([prompt], BeamSearchParams(beam_width=3, max_tokens=4, allowed_token_ids=[7]))[
        0
    ].sequences
    assert only.tokens == prompt + [7] * 4
    with pytest.raises(RequestError, match="allowed_token_ids"):
        llm.beam_search([prompt], BeamSearchParams(beam_width=1, max_tokens=1, allowed_token_ids=[512]))


def test_beam_search_shows_special_tokens(llm: LLM, llama: Reference):
    tokenizer = llm.get_tokenizer()
    special = min(tokenizer.all_special_ids - set(tokenizer.eos_ids), default=min(tokenizer.all_special_ids))
    params = {"beam_width": 1, "max_tokens": 2, "ignore_eos": True, "allowed_token_ids": [special]}
    for skip in (True, False):
        (output,) = llm.beam_search([llama.prompts[0]], BeamSearchParams(**params, skip_special_tokens=skip))
        shown = tokenizer.id_to_token(special) in (output.sequences[0].text or "")
        assert shown is not skip


@pytest.mark.parametrize(
    ("prompt", "params", "param"),
    [
        ([], {}, None),
        ([[]], {}, "prompts[0]"),
        ([[1, 512]], {}, "prompts[0]"),
        ([[1, -1]], {}, "prompts[0]"),
        ([[1] * 513], {}, "prompts[0]"),
        ([[1] * 512], {}, "prompts[0]"),
        (["a"], {"max_tokens": 600}, "max_tokens"),
        (["a"], {"stop_token_ids": [512]}, "stop_token_ids"),
        (["a"], {"logit_bias": {9999: 1.0}}, "logit_bias"),
        ([{"nothing": 1}], {}, "prompts[0]"),
    ],
)
def test_bad_requests_name_their_field(llm: LLM, prompt, params, param):
    if param is None:
        assert llm.generate(prompt) == []
        return
    with pytest.raises(RequestError) as caught:
        one(llm, prompt, **params)
    assert caught.value.param == param
    assert not llm._core.has_work


def test_exceeding_the_cache_is_refused(llama: Reference):
    small = LLM(str(llama.folder), num_kv_blocks=4, dtype="float32")
    with pytest.raises(RequestError) as caught:
        small.generate([[1] * 60], SamplingParams(max_tokens=10))
    assert caught.value.code == "exceeds_kv_capacity"
    assert len(small.generate([[1] * 60], SamplingParams(max_tokens=4, ignore_eos=True))[0].outputs[0].token_ids) == 4


def test_unknown_argument(llama: Reference):
    with pytest.raises(ValueError, match="gpu_memory"):
        LLM(str(llama.folder), gpu_memory=1)

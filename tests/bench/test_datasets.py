"""Prompts: of the wanted lengths, equal for equal seeds, and what files may hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.bench import datasets
from octavo.bench.datasets import Sample, Vocabulary
from octavo.core.errors import ConfigError
from octavo.core.hub import resolve_model
from octavo.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(resolve_model(None))


def test_random_texts_have_the_wanted_tokens(tokenizer: Tokenizer) -> None:
    samples = datasets.random_samples(Vocabulary(tokenizer, 0, 3), 20, 40, 9)
    assert all(isinstance(sample.prompt, str) for sample in samples)
    lengths = [len(tokenizer.encode(sample.prompt)) for sample in samples]  # type: ignore[arg-type]
    special = len(tokenizer.encode(""))
    assert lengths == [sample.prompt_len + special for sample in samples]
    assert np.mean(np.array(lengths) == 40) > 0.7  # some texts are never read as many tokens as spelt them
    assert np.abs(np.array(lengths) - 40).max() <= 4
    assert {sample.output_len for sample in samples} == {9}
    assert len({sample.prompt for sample in samples}) == 20


def test_random_ids(tokenizer: Tokenizer) -> None:
    samples = datasets.random_samples(Vocabulary(None, 300, 0), 200, 16, 4, '{"input": 0.5, "output": 0.25}', 3)
    prompts = [sample.prompt for sample in samples]
    assert all(prompt[:3] == prompts[0][:3] for prompt in prompts)  # type: ignore[index]
    assert {sample.prompt_len for sample in samples} == set(range(3 + 8, 3 + 24 + 1))
    assert {sample.output_len for sample in samples} == {3, 4, 5}
    assert {token for prompt in prompts for token in prompt} == set(range(300))
    drawn = set(Vocabulary(tokenizer, 0, 0).draw(100_000))
    assert drawn == set(range(tokenizer.vocab_size)) - set(tokenizer.all_special_ids)


def test_equal_seeds_give_equal_prompts(tokenizer: Tokenizer) -> None:
    for words in (lambda seed: Vocabulary(None, 99, seed), lambda seed: Vocabulary(tokenizer, 0, seed)):
        for make in (
            lambda words: datasets.random_samples(words, 5, 12, 4, "0.3", 2),
            lambda words: datasets.prefix_samples(words, 6, 8, 4, 2, 3),
        ):
            assert make(words(1)) == make(words(1)) != make(words(2))


def test_prefixes() -> None:
    samples = datasets.prefix_samples(Vocabulary(None, 9999, 0), 11, 8, 4, 3, 7, shuffle=False)
    assert len(samples) == 9  # three for each
    prefixes = [tuple(sample.prompt[:8]) for sample in samples]
    assert len(set(prefixes)) == 3 and prefixes[0] == prefixes[1] == prefixes[2] != prefixes[3]
    assert all((sample.prompt_len, sample.output_len) == (12, 7) for sample in samples)
    shuffled = datasets.prefix_samples(Vocabulary(None, 9999, 0), 11, 8, 4, 3, 7)
    assert shuffled != samples and sorted(s.prompt for s in shuffled) == sorted(s.prompt for s in samples)
    with pytest.raises(ConfigError, match="at least"):
        datasets.prefix_samples(Vocabulary(None, 99, 0), 2, 8, 4, 3, 7)


def test_lengths_that_cannot_be() -> None:
    for ratio in ("1", "-0.1", "wide", '{"input": 0.1}', "[1]"):
        with pytest.raises(ConfigError, match="random-range-ratio"):
            datasets.random_samples(Vocabulary(None, 99, 0), 2, 8, 4, ratio)
    with pytest.raises(ConfigError, match="leaves nothing"):
        datasets.random_samples(Vocabulary(None, 99, 0), 2, 0, 4)


def _turns(*texts: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": text} for text in texts]}


def test_sharegpt(tokenizer: Tokenizer, tmp_path: Path) -> None:
    long = " ".join(["one two three four"] * 2000)
    fit = [
        (f"How do I bake bread number {i}?", "Mix flour and water, wait, then bake it. " * (i + 1)) for i in range(3)
    ]
    data = [_turns("alone"), _turns("a", "b"), _turns(long, fit[0][1]), _turns(fit[0][0], long), {"id": 1}]
    data += [_turns(*pair, "more") for pair in fit]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(data))
    samples = datasets.sharegpt_samples(path, tokenizer, 10, None, 0, shuffle=False)
    assert [sample.prompt for sample in samples] == [question for question, _ in fit]
    assert [s.output_len for s in samples] == [len(tokenizer.encode(answer)) for _, answer in fit]
    assert [s.prompt_len for s in samples] == [len(tokenizer.encode(question)) for question, _ in fit]
    assert len(datasets.sharegpt_samples(path, tokenizer, 2, None, 0)) == 2
    same = datasets.sharegpt_samples(path, tokenizer, 9, 2, 5)
    assert {sample.output_len for sample in same} == {2} and len(same) == 4  # the long answer is cut
    assert same == datasets.sharegpt_samples(path, tokenizer, 9, 2, 5)
    path.write_text('{"conversations": []}')
    with pytest.raises(ConfigError, match="conversations"):
        datasets.sharegpt_samples(path, tokenizer, 2, None, 0)
    with pytest.raises(ConfigError, match="dataset-path"):
        datasets.sharegpt_samples(tmp_path / "none", tokenizer, 2, None, 0)


def test_custom_lines(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "Hello", "output_tokens": 7}\n\n{"prompt": "Bye"}\n')
    read = datasets.custom_samples
    samples = read(path, tokenizer, 5, None, 0, shuffle=False, template=False)
    assert [(s.prompt, s.output_len) for s in samples] == [("Hello", 7), ("Bye", 256)]
    assert samples[0].prompt_len == len(tokenizer.encode("Hello"))
    assert [s.output_len for s in read(path, None, 5, 3, 0)] == [3, 3]
    templated = read(path, tokenizer, 1, None, 0, shuffle=False)[0].prompt
    message = [{"role": "user", "content": "Hello"}]
    assert templated == tokenizer.chat_template.render(message, add_generation_prompt=True)
    for output_len, text in ((-1, '{"prompt": "Bye"}'), (None, '{"text": "x"}'), (None, "words"), (None, "[1]")):
        path.write_text('{"prompt": "Hello", "output_tokens": 7}\n' + text)
        with pytest.raises(ConfigError, match="line 2"):
            read(path, None, 5, output_len, 0)


def test_spec_bench(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "question.jsonl"
    lines = [{"category": name, "turns": [f"{name} {i}", "and then?"]} for name in ("math", "rag") for i in range(3)]
    path.write_text("\n".join(map(json.dumps, lines)))
    read = datasets.spec_bench_samples
    samples = read(path, tokenizer, 9, 64, 0, shuffle=False, template=False)
    assert [(s.prompt, s.output_len) for s in samples] == [(line["turns"][0], 64) for line in lines]
    some = read(path, None, 2, 5, 1, category="rag")
    assert len(some) == 2 and all(str(s.prompt).startswith("rag ") for s in some)
    with pytest.raises(ConfigError, match="spec-bench-category code: the file has math, rag"):
        read(path, None, 2, 5, 0, category="code")
    path.write_text('{"category": "math"}')
    with pytest.raises(ConfigError, match="line 1 is not"):
        read(path, None, 2, 5, 0)


def test_traces(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [(500, 10, 3, [1, 2, 3]), (500, 7, 4, [1, 2]), (1500, 12, 5, [1, 9, 3]), (2500, 3, 1, [])]
    names = ("timestamp", "input_length", "out", "hash_ids")
    path.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    trace = datasets.Trace(4, 0.001, output_length="out")
    samples = datasets.trace_samples(path, Vocabulary(None, 999, 0), 4, trace)
    assert [s.due for s in samples] == [0.0, 0.0, 1.0, 2.0]
    assert [(s.prompt_len, s.output_len) for s in samples] == [(10, 3), (7, 4), (12, 5), (3, 1)]
    first, second, third, _ = [list(s.prompt) for s in samples]
    assert first[:7] == second and first[:4] == third[:4] and first[4:8] != third[4:8] and first[8:] == third[8:10]
    assert len(datasets.trace_samples(path, Vocabulary(None, 999, 0), 2, trace)) == 2
    for bad in ('{"timestamp": 1}', json.dumps(dict(zip(names, (100, 1, 1, []), strict=True))), "[]"):
        path.write_text(json.dumps(dict(zip(names, rows[0], strict=True))) + "\n" + bad)
        with pytest.raises(ConfigError, match="line 2"):
            datasets.trace_samples(path, Vocabulary(None, 999, 0), 4, trace)
    with pytest.raises(ConfigError, match="above 0"):
        datasets.Trace(0)


def test_batches_of_prompts() -> None:
    first, second = datasets.batched([Sample(f"p{i}", i, 1) for i in range(1, 4)], 2)
    assert (first.prompt, first.more, first.prompt_len) == ("p1", ("p2",), 3)
    assert (second.prompt, second.more, second.prompt_len) == ("p3", (), 3)


def test_oversampling_and_names() -> None:
    few = [Sample("a", 1, 1), Sample("b", 1, 1)]
    many = datasets.oversample(few, 7, 3)
    assert many[:2] == few and len(many) == 7 and set(many) == set(few)
    assert many == datasets.oversample(few, 7, 3)
    assert [sample.request_id for sample in datasets.numbered(many, "x-")] == [f"x-{i}" for i in range(7)]
    with pytest.raises(ConfigError, match="no prompt"):
        datasets.oversample([], 3, 0)

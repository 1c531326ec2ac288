"""Prompts for benchmarks: random, with shared prefixes, of files of several forms. Equal seeds, equal prompts.

Random prompts are texts that the tokenizer turns into the wanted number of tokens, or, without a tokenizer, token ids.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo.core.errors import ConfigError
from octavo.text.tokenizer import Tokenizer

NAMES = ("random", "sharegpt", "prefix_repetition", "custom", "spec_bench", "timed_trace")
ROUNDS = 10  # of making a random text shorter or longer until it has the wanted number of tokens
OUTPUT_LEN = 256  # of a custom prompt that does not say
# Conversations outside of these are left out of a ShareGPT file, as everyone who measures with it does.
MIN_LEN, MAX_PROMPT, MAX_TOTAL = 4, 1024, 2048


@dataclass(frozen=True, slots=True)
class Sample:
    prompt: str | list[int]
    prompt_len: int  # tokens without special ones; 0 if unknown
    output_len: int
    request_id: str = ""
    due: float | None = None  # seconds after the start at which a trace sends it
    more: tuple[str | list[int], ...] = ()  # prompts that the same request has, where it only reads


class Vocabulary:
    """Random token ids, and texts of them where there is a tokenizer."""

    def __init__(self, tokenizer: Tokenizer | None, size: int, seed: int) -> None:
        self.tokenizer = tokenizer
        self.rng = np.random.default_rng(seed)
        if tokenizer is None:
            self.ids = np.arange(size)
            self.num_special = 0
        else:
            self.ids = np.setdiff1d(np.arange(tokenizer.vocab_size), list(tokenizer.all_special_ids))
            self.num_special = len(tokenizer.encode(""))

    def draw(self, length: int) -> list[int]:
        drawn: list[int] = self.ids[self.rng.integers(0, len(self.ids), length)].tolist()
        return drawn

    def settle(self, batch: list[list[int]]) -> list[list[int]]:
        """Each as ids that the tokenizer makes of a text, and as many: what ids spell may be read as other ids."""
        if self.tokenizer is None:
            return batch
        settled, open_ = list(batch), list(range(len(batch)))
        for last in (*[False] * (ROUNDS - 1), True):
            texts = [self.tokenizer.decode(settled[i], skip_special_tokens=False) for i in open_]
            still = []
            for i, ids in zip(open_, self.tokenizer.encode_batch(texts, False), strict=True):
                if len(ids) != len(batch[i]) and not last:
                    ids = ids[: len(batch[i])] + self.draw(max(0, len(batch[i]) - len(ids)))
                    still.append(i)
                settled[i] = ids
            open_ = still
            if not open_:
                break
        return settled

    def samples(self, prompts: list[list[int]], output_lens: Sequence[int]) -> list[Sample]:
        """As texts if there is a tokenizer."""
        texts: list[Any] = prompts
        if self.tokenizer is not None:
            texts = [self.tokenizer.decode(ids, skip_special_tokens=False) for ids in prompts]
        return [Sample(t, len(p), int(n)) for t, p, n in zip(texts, prompts, output_lens, strict=True)]


def range_ratio(text: str) -> tuple[float, float]:
    """(of inputs, of outputs) of a number, or of {"input": X, "output": X}."""
    try:
        value = json.loads(text)
        ratios = (value["input"], value["output"]) if isinstance(value, dict) else (value, value)
        low, high = map(float, ratios)
    except (ValueError, KeyError, TypeError):
        low = high = -1.0
    if not (0 <= low < 1 and 0 <= high < 1):
        raise ConfigError(
            f'random-range-ratio must be a number in [0, 1), or {{"input": X, "output": X}}, got {text!r}'
        )
    return low, high


def random_samples(
    words: Vocabulary, count: int, input_len: int, output_len: int, ratio: str = "0", prefix_len: int = 0
) -> list[Sample]:
    """Prompts of a common prefix and new tokens; lengths are uniform within the ratio around what was asked for.

    `input_len` includes the special tokens that a tokenizer adds.
    """
    spread_in, spread_out = range_ratio(ratio)
    own = max(0, input_len - words.num_special)
    low, high = int(own * (1 - spread_in)), int(np.ceil(own * (1 + spread_in)))
    if prefix_len + low < 1:
        raise ConfigError(
            f"input-len {input_len} leaves nothing beside the {words.num_special} special tokens of the tokenizer"
        )
    least = max(1, int(output_len * (1 - spread_out)))
    most = max(1, int(np.ceil(output_len * (1 + spread_out))))
    input_lens = words.rng.integers(low, high + 1, count)
    output_lens = words.rng.integers(least, most + 1, count)
    (prefix,) = words.settle([words.draw(prefix_len)])
    return words.samples(words.settle([prefix + words.draw(n) for n in input_lens]), output_lens.tolist())


def prefix_samples(
    words: Vocabulary,
    count: int,
    prefix_len: int,
    suffix_len: int,
    num_prefixes: int,
    output_len: int,
    shuffle: bool = True,
) -> list[Sample]:
    """count // num_prefixes prompts for each of so many prefixes."""
    each = count // max(1, num_prefixes)
    if each == 0:
        raise ConfigError(f"num-prompts {count} must be at least prefix-repetition-num-prefixes {num_prefixes}")
    prefixes = words.settle([words.draw(prefix_len) for _ in range(num_prefixes)])
    suffixes = words.settle([words.draw(suffix_len) for _ in range(num_prefixes * each)])
    prompts = [prefixes[i // each] + suffix for i, suffix in enumerate(suffixes)]
    order = words.rng.permutation(len(prompts)) if shuffle else np.arange(len(prompts))
    return words.samples([prompts[i] for i in order], [output_len] * len(prompts))


def sharegpt_samples(
    path: Path, tokenizer: Tokenizer, count: int, output_len: int | None, seed: int, shuffle: bool = True
) -> list[Sample]:
    """First questions of conversations; an answer is as long as the one in the file, or `output_len`."""
    try:
        entries = json.loads(path.read_bytes())
        pairs = [
            (str(entry["conversations"][0]["value"]), str(entry["conversations"][1]["value"]))
            for entry in entries
            if len(entry.get("conversations", ())) >= 2
        ]
    except OSError as error:
        raise ConfigError(f"dataset-path: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(
            f'dataset-path: {path} is not a list of {{"conversations": [{{"value": TEXT}}, {{"value": TEXT}}]}}'
        ) from None
    if shuffle:
        random.Random(seed).shuffle(pairs)
    samples: list[Sample] = []
    for question, answer in pairs:
        if len(samples) == count:
            break
        prompt_len, answer_len = map(len, tokenizer.encode_batch([question, answer]))
        wanted = answer_len if output_len is None else output_len
        fits = MIN_LEN <= prompt_len <= MAX_PROMPT and prompt_len + wanted <= MAX_TOTAL
        if fits and (wanted >= MIN_LEN or output_len is not None):
            samples.append(Sample(question, prompt_len, wanted))
    return samples


def custom_samples(
    path: Path,
    tokenizer: Tokenizer | None,
    count: int,
    output_len: int | None,
    seed: int,
    *,
    shuffle: bool = True,
    template: bool = True,
    variables: dict[str, Any] | None = None,
) -> list[Sample]:
    """Lines of {"prompt": TEXT, "output_tokens": N}; `output_len` replaces theirs, and -1 insists on theirs.

    `template`: a prompt is what a user says, and the tokenizer's chat template makes the text.
    """
    return _said(_read_lines(path, output_len), tokenizer, count, seed, shuffle, template, variables)


def _said(
    found: list[tuple[str, int]],
    tokenizer: Tokenizer | None,
    count: int,
    seed: int,
    shuffle: bool,
    template: bool,
    variables: dict[str, Any] | None,
) -> list[Sample]:
    """(what a user says, tokens of the answer) as prompts."""
    if shuffle:
        random.Random(seed).shuffle(found)
    samples = []
    for prompt, length in found[: count if count > 0 else None]:
        text = prompt
        if tokenizer is not None and template:
            message = {"role": "user", "content": prompt}
            text = tokenizer.chat_template.render([message], add_generation_prompt=True, variables=variables)
        samples.append(Sample(text, 0 if tokenizer is None else len(tokenizer.encode(text)), length))
    return samples


def _read_lines(path: Path, output_len: int | None) -> list[tuple[str, int]]:
    """(prompt, tokens of its answer)."""
    found = []
    for number, item in _json_lines(path):
        prompt, own = item.get("prompt"), item.get("output_tokens")
        length = own if output_len in (None, -1) else output_len
        if length is None and output_len is None:
            length = OUTPUT_LEN
        if not isinstance(prompt, str) or type(length) is not int or length < 1:
            raise ConfigError(f'{path}, line {number} is not {{"prompt": TEXT, "output_tokens": N}}')
        found.append((prompt, length))
    return found


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file, each with the number of its line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"dataset-path: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError:
            item = None
        if not isinstance(item, dict):
            raise ConfigError(f"{path}, line {number} is not a JSON object")
        yield number, item


def spec_bench_samples(
    path: Path,
    tokenizer: Tokenizer | None,
    count: int,
    output_len: int,
    seed: int,
    *,
    category: str | None = None,
    shuffle: bool = True,
    template: bool = True,
    variables: dict[str, Any] | None = None,
) -> list[Sample]:
    """First turns of Spec-Bench's questions: lines of {"category": TEXT, "turns": [TEXT, ...]}."""
    found, categories = [], set()
    for number, item in _json_lines(path):
        turns, kind = item.get("turns"), item.get("category")
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
            raise ConfigError(f'{path}, line {number} is not {{"category": TEXT, "turns": [TEXT, ...]}}')
        categories.add(str(kind))
        if category is None or kind == category:
            found.append((turns[0], output_len))
    if not found and categories:
        raise ConfigError(f"spec-bench-category {category}: the file has {', '.join(sorted(categories))}")
    return _said(found, tokenizer, count, seed, shuffle, template, variables)


@dataclass(frozen=True, slots=True)
class Trace:
    """How a trace says what it says. Prompts with equal `hash_ids` begin with equal chunks of `chunk` tokens."""

    chunk: int = 16
    seconds: float = 1.0  # that a unit of its timestamps takes
    timestamp: str = "timestamp"
    input_length: str = "input_length"
    output_length: str = "output_length"
    hash_ids: str = "hash_ids"

    def __post_init__(self) -> None:
        if self.chunk < 1 or not self.seconds > 0:
            raise ConfigError(
                "timed-trace-chunk-hash-size and timed-trace-sec-multiplier must be above 0, "
                f"got {self.chunk} and {self.seconds:g}"
            )


def trace_samples(path: Path, words: Vocabulary, count: int, trace: Trace) -> list[Sample]:
    """Requests of a trace, in its order: the first of them is sent at the start.

    Its texts are not known, only which chunks they share: each hash stands for tokens of its own.
    """
    found: list[tuple[float, int, int, list[Any]]] = []
    for number, item in _json_lines(path):
        when, own, out = (item.get(name) for name in (trace.timestamp, trace.input_length, trace.output_length))
        hashes = item.get(trace.hash_ids, [])
        whole = type(own) is int and own > 0 and type(out) is int and out > 0
        timed = type(when) in (int, float) and (not found or when >= found[-1][0])  # type: ignore[operator]
        if not (whole and timed and isinstance(hashes, list)):
            raise ConfigError(
                f"{path}, line {number}: {trace.timestamp}, which never falls, {trace.input_length}, "
                f"{trace.output_length} and a list {trace.hash_ids} are expected"
            )
        found.append((float(when), own, out, hashes))  # type: ignore[arg-type]
        if len(found) == count:
            break
    chunks: dict[Any, list[int]] = {}
    prompts = []
    for _, length, _, hashes in found:
        ids: list[int] = []
        for mark in hashes[: -(-length // trace.chunk)]:
            key = json.dumps(mark)
            if key not in chunks:
                chunks[key] = words.draw(trace.chunk)
            ids += chunks[key]
        prompts.append((ids + words.draw(max(0, length - len(ids))))[:length])
    samples = words.samples(prompts, [out for _, _, out, _ in found])
    start = found[0][0] if found else 0.0
    return [
        dataclasses.replace(sample, due=(when - start) * trace.seconds)
        for sample, (when, *_) in zip(samples, found, strict=True)
    ]


def batched(samples: list[Sample], size: int) -> list[Sample]:
    """So many prompts to a request; the last has what is left."""
    groups = [samples[i : i + size] for i in range(0, len(samples), size)]
    return [
        dataclasses.replace(first, prompt_len=sum(s.prompt_len for s in group), more=tuple(s.prompt for s in rest))
        for group in groups
        for first, *rest in (group,)
    ]


def oversample(samples: list[Sample], count: int, seed: int) -> list[Sample]:
    """As many as were asked for: those that there are, and then some of them again."""
    if not samples:
        raise ConfigError("the dataset has no prompt of a fitting length")
    drawn = random.Random(seed)
    return samples + [drawn.choice(samples) for _ in range(count - len(samples))]


def numbered(samples: list[Sample], prefix: str) -> list[Sample]:
    return [dataclasses.replace(sample, request_id=f"{prefix}{i}") for i, sample in enumerate(samples)]

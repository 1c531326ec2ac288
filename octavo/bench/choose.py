"""The prompts that the flags of a benchmark ask for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from octavo.bench.datasets import (
    Sample,
    Trace,
    Vocabulary,
    batched,
    custom_samples,
    numbered,
    oversample,
    prefix_samples,
    random_samples,
    sharegpt_samples,
    spec_bench_samples,
    trace_samples,
)
from octavo.core.errors import ConfigError
from octavo.text.tokenizer import Tokenizer

ID_LIMIT = 10_000  # random ids are below it where nobody says how large the vocabulary is
INPUT_LEN, OUTPUT_LEN, SPEC_OUTPUT_LEN = 1024, 128, 256


def choose_samples(
    options: argparse.Namespace,
    tokenizer: Tokenizer | None,
    seed: int,
    *,
    count: int | None = None,
    vocab_size: int | None = None,
    chat: bool = False,
) -> list[Sample]:
    """`vocab_size` bounds the token ids where there is no tokenizer; `chat`: the server applies the template."""
    count = options.num_prompts if count is None else count
    name = options.dataset_name
    if name in ("random", "prefix_repetition"):
        if options.dataset_path is not None:
            raise ConfigError(f"dataset-path: {name} prompts come from no file; --dataset-name custom and sharegpt do")
        if chat and tokenizer is None:
            raise ConfigError("skip-tokenizer-init: a chat needs texts, and random ones need a tokenizer")
        words = Vocabulary(tokenizer, vocab_size or _vocab_size(options), seed)
        samples = _drawn(options, words, count)
        if options.random_batch_size > 1:
            samples = batched(samples, options.random_batch_size)
    elif name == "timed_trace":
        words = Vocabulary(tokenizer, vocab_size or _vocab_size(options), seed)
        samples = trace_samples(_path(options), words, count, _trace(options))
    else:
        samples = _read(options, tokenizer, seed, count, chat)
        if not options.no_oversample:
            samples = oversample(samples, count, seed)
    if not samples:
        raise ConfigError("there are no prompts: num-prompts and the dataset must have one at least")
    return numbered(samples, options.request_id_prefix)


def _drawn(options: argparse.Namespace, words: Vocabulary, count: int) -> list[Sample]:
    def first(*values: int | None) -> int:
        return next(value for value in values if value is not None)

    if options.dataset_name == "prefix_repetition":
        return prefix_samples(
            words,
            count,
            options.prefix_repetition_prefix_len,
            options.prefix_repetition_suffix_len,
            options.prefix_repetition_num_prefixes,
            first(options.prefix_repetition_output_len, options.output_len, OUTPUT_LEN),
            not options.disable_shuffle,
        )
    return random_samples(
        words,
        count,
        first(options.random_input_len, options.input_len, INPUT_LEN),
        first(options.random_output_len, options.output_len, OUTPUT_LEN),
        options.random_range_ratio,
        options.random_prefix_len,
    )


def _path(options: argparse.Namespace) -> Path:
    if options.dataset_path is None:
        raise ConfigError(f"dataset-path: {options.dataset_name} needs a file")
    return Path(options.dataset_path)


def _trace(options: argparse.Namespace) -> Trace:
    return Trace(
        options.timed_trace_chunk_hash_size,
        options.timed_trace_sec_multiplier,
        options.timed_trace_label_timestamp,
        options.timed_trace_label_input_length,
        options.timed_trace_label_output_length,
        options.timed_trace_label_hash_ids,
    )


def _read(options: argparse.Namespace, tokenizer: Tokenizer | None, seed: int, count: int, chat: bool) -> list[Sample]:
    path, shuffle = _path(options), not options.disable_shuffle
    if options.dataset_name == "sharegpt":
        if tokenizer is None:
            raise ConfigError("skip-tokenizer-init: the lengths of a sharegpt file are counted with a tokenizer")
        wanted = options.sharegpt_output_len if options.sharegpt_output_len is not None else options.output_len
        return sharegpt_samples(path, tokenizer, count, wanted, seed, shuffle)
    template = not (options.skip_chat_template or chat)
    variables = options.chat_template_kwargs
    if options.dataset_name == "spec_bench":
        given = (options.spec_bench_output_len, options.output_len, SPEC_OUTPUT_LEN)
        wanted = next(value for value in given if value is not None)
        return spec_bench_samples(
            *(path, tokenizer, count, wanted, seed),
            category=options.spec_bench_category,
            shuffle=shuffle,
            template=template,
            variables=variables,
        )
    wanted = options.custom_output_len if options.custom_output_len is not None else options.output_len
    return custom_samples(path, tokenizer, count, wanted, seed, shuffle=shuffle, template=template, variables=variables)


def _vocab_size(options: argparse.Namespace) -> int:
    """As the flag says, else of the model's folder, if it is one."""
    given: int | None = getattr(options, "vocab_size", None)
    if given is not None:
        if given < 1:
            raise ConfigError(f"vocab-size must be at least 1, got {given}")
        return given
    try:
        size = json.loads((Path(options.model or "") / "config.json").read_bytes())["vocab_size"]
    except (OSError, ValueError, LookupError, TypeError):
        return ID_LIMIT
    return size if type(size) is int and size > 0 else ID_LIMIT

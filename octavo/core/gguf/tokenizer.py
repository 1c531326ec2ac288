"""A tokenizer as tokenizer.json has it, out of a GGUF file's metadata.

Two kinds are known. "gpt2" is byte-level BPE: tokens and merges are there, and the name of how texts are cut into words
(`tokenizer.ggml.pre`), for which nothing but the name is stored. "llama" is SentencePiece's BPE: tokens have scores,
and two neighbours are merged where the token that they make has the best one: so merges follow from the scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from octavo.core.errors import ModelError
from octavo.core.gguf.file import GgufFile

KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # types of tokens
LONGEST = 256  # characters of a token that is looked at for merges

_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
_BYTES = {**_GPT2, "use_regex": False}
_ENDINGS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> list[dict[str, Any]]:
    return [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, _BYTES]


# tokenizer.ggml.pre: how words are cut, whether words that are tokens are taken whole, whether BOS is put first.
CUTS: dict[str, tuple[list[dict[str, Any]], bool, bool]] = {
    "gpt-2": ([_GPT2], False, False),
    "llama-bpe": (_split(_WORDS + r"\p{N}{1,3}|" + _ENDINGS), True, True),
    "qwen2": (_split(_WORDS + r"\p{N}|" + _ENDINGS), False, False),
    "smollm": ([{"type": "Digits", "individual_digits": True}, _GPT2], False, False),
    "tekken": (_split(_TEKKEN), True, True),
}


def make_tokenizer(file: GgufFile) -> dict[str, Any]:
    """tokenizer.json and tokenizer_config.json, by name."""
    kind = file.metadata.get(KEY + "model")
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"{file.path}: {KEY}model {kind!r:.40} is not gpt2 or llama")
    tokens = _list(file, "tokens", str)
    types = _list(file, "token_type", int) if KEY + "token_type" in file.metadata else [NORMAL] * len(tokens)
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens) or not tokens:
        raise ModelError(f"{file.path}: {KEY}tokens must be different from each other, each with a type")
    vocabulary = {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED}
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[i] != USER,
        }
        for token, i in vocabulary.items()
        if token and types[i] in (CONTROL, USER) or (types[i] == UNKNOWN and kind == "llama")
    ]
    made = _byte_level(file, vocabulary) if kind == "gpt2" else _sentence_piece(file, vocabulary, types)
    bos_first = made.pop("bos_first")
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name in ("bos", "eos", "unknown", "padding"):
        for token in special_ids(file, name):
            config[{"unknown": "unk", "padding": "pad"}.get(name, name) + "_token"] = tokens[token]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **made,
        "post_processor": _around(file, tokens, bos_first),
    }
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config}


def special_ids(file: GgufFile, *names: str) -> list[int]:
    """Those that the file has, of tokens that exist."""
    count = len(file.metadata.get(KEY + "tokens", []))
    found = [file.metadata.get(f"{KEY}{name}_token_id") for name in names]
    return list(dict.fromkeys(i for i in found if type(i) is int and 0 <= i < count))


def _byte_level(file: GgufFile, vocabulary: dict[str, int]) -> dict[str, Any]:
    cut = file.metadata.get(KEY + "pre")
    if not isinstance(cut, str) or cut not in CUTS:
        raise ModelError(
            f"{file.path}: {KEY}pre {cut!r:.40} is not one of {', '.join(CUTS)}: how it cuts words is not known; "
            "put the file into a folder with config.json and the tokenizer of the original model"
        )
    steps, whole, bos_first = CUTS[cut]
    merges = [merge.split(" ") for merge in _list(file, "merges", str)]
    wrong = next((pair for pair in merges if len(pair) != 2 or "".join(pair) not in vocabulary), None)
    if wrong is not None:
        raise ModelError(f"{file.path}: {KEY}merges has {' '.join(wrong)!r:.80}, which makes no token")
    return {
        "bos_first": bos_first,
        "normalizer": {"type": "NFC"} if cut == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": _GPT2,
        "model": _bpe(vocabulary, merges, ignore_merges=whole),
    }


def _sentence_piece(file: GgufFile, vocabulary: dict[str, int], types: list[int]) -> dict[str, Any]:
    scores = _list(file, "scores", float)
    if len(scores) != len(types):
        raise ModelError(f"{file.path}: {KEY}scores must have one for each token")
    ranked = sorted(
        _pairs(vocabulary, types),
        key=lambda pair: (-scores[vocabulary[pair[0] + pair[1]]], *map(vocabulary.__getitem__, pair)),
    )
    prefix = file.metadata.get(KEY + "add_space_prefix", True)
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    unknown = next((token for token, i in vocabulary.items() if types[i] == UNKNOWN), None)
    return {
        "bos_first": True,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first" if prefix else "never",
            "split": False,
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": _bpe(vocabulary, list(map(list, ranked)), unk_token=unknown, fuse_unk=True, byte_fallback=True),
    }


def _pairs(vocabulary: dict[str, int], types: list[int]) -> Iterator[tuple[str, str]]:
    """All ways to make a token of two."""
    for token, i in vocabulary.items():
        if types[i] == NORMAL and len(token) <= LONGEST:
            for cut in range(1, len(token)):
                if token[:cut] in vocabulary and token[cut:] in vocabulary:
                    yield token[:cut], token[cut:]


def _bpe(vocabulary: dict[str, int], merges: list[list[str]], **options: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
        **options,
    }


def _around(file: GgufFile, tokens: list[str], bos_first: bool) -> dict[str, Any] | None:
    """BOS before and EOS behind a text, where the file wants them."""
    bos = special_ids(file, "bos") if file.metadata.get(KEY + "add_bos_token", bos_first) else []
    eos = special_ids(file, "eos") if file.metadata.get(KEY + "add_eos_token", False) else []
    if not bos and not eos:
        return None

    def piece(ids: list[int], part: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": tokens[i], "type_id": part}} for i in ids]

    text = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    single = [*piece(bos, 0), text[0], *piece(eos, 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *piece(bos, 1), text[1], *piece(eos, 1)],
        "special_tokens": {tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]} for i in (*bos, *eos)},
    }


def _list(file: GgufFile, name: str, kind: type) -> list[Any]:
    found = file.metadata.get(KEY + name)
    if not isinstance(found, list) or any(type(item) is not kind for item in found):
        raise ModelError(f"{file.path}: {KEY}{name} must be a list of {kind.__name__}")
    return found

"""Small tokenizers of every kind that models come with, trained on a few lines and saved as model folders."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = (
    "The quick brown fox jumps over the lazy dog. Once upon a time there was a printer, who kept every page.",
    "What is the capital of France? The capital of France is Paris; don't you know?",
    '{"name": "octavo", "pages": 16, "sizes": [1, 2, 3.5, null]}\n\n    def fold(sheet):\n        return None\n',
    "Grüße aus Köln, naïve café, schöne Straße; немного по-русски; 日本語のテキスト。 中文句子，很短。",
    "สวัสดีชาวโลก ภาษาไทย 😀 👩\u200d🚀 🇫🇷 a  b   c",
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _train(tokenizer: Tokenizer, trainer: Any) -> dict[str, Any]:
    tokenizer.train_from_iterator(CORPUS, trainer)
    trained: dict[str, Any] = json.loads(tokenizer.to_str())
    return trained


def _template(tokenizer: Tokenizer, single: str, *tokens: str) -> None:
    pairs = [(token, tokenizer.token_to_id(token)) for token in tokens]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=pairs)


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3, Qwen and DeepSeek have, with BOS from a template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    _train(tokenizer, trainer)
    tokenizer.add_special_tokens([AddedToken("<｜tool｜>", special=True), AddedToken("<|turn|>", special=True)])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("naïve é")])
    _template(tokenizer, "<|begin|> $A", "<|begin|>")
    return tokenizer


def _metaspace_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    alphabet = sorted(set("▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,;?!'0123456789éü日本語"))
    trainer = trainers.BpeTrainer(
        vocab_size=300, limit_alphabet=len(alphabet), initial_alphabet=alphabet, show_progress=False
    )
    model = _train(tokenizer, trainer)["model"]
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *BYTES])}
    for token in model["vocab"]:
        vocab.setdefault(token, len(vocab))
    return vocab, [tuple(merge) for merge in model["merges"]]


def llama2() -> Tokenizer:
    """Sentencepiece BPE with byte fallback, as the tokenizer.json of Llama 2 and Mistral says."""
    vocab, merges = _metaspace_bpe()
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    _template(tokenizer, "<s> $A", "<s>")
    return tokenizer


def gemma() -> Tokenizer:
    """Byte fallback without a prefix space."""
    vocab, merges = _metaspace_bpe()
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    _template(tokenizer, "<s> $A", "<s>")
    return tokenizer


def wordpiece() -> Tokenizer:
    """As BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    _train(tokenizer, trainers.WordPieceTrainer(vocab_size=260, special_tokens=special, show_progress=False))
    _template(tokenizer, "[CLS] $A [SEP]", "[CLS]", "[SEP]")
    return tokenizer


def unigram() -> Tokenizer:
    """As T5 and XLM-R, with EOS from a template."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=240, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    _train(tokenizer, trainer)
    _template(tokenizer, "$A </s>", "</s>")
    return tokenizer


def word_level() -> Tokenizer:
    """Words joined by spaces: no decoder, no post-processor."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    _train(tokenizer, trainers.WordLevelTrainer(special_tokens=["<unk>", "<end>", "<sep>"], show_progress=False))
    return tokenizer


def end_of_word() -> Tokenizer:
    """`</w>` at the end of words, as CLIP and GPT-1: a token's text depends on whether another follows."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    special = ["<unk>", "<end>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    _train(tokenizer, trainer)
    return tokenizer


KINDS = {
    "byte_level": (byte_level, {"bos_token": "<|begin|>", "eos_token": "<|end|>"}),
    "llama2": (llama2, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "gemma": (gemma, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "wordpiece": (wordpiece, {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}),
    "unigram": (unigram, {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}),
    "word_level": (word_level, {"eos_token": "<end>", "unk_token": "<unk>"}),
    "end_of_word": (end_of_word, {"eos_token": "<end>", "unk_token": "<unk>"}),
}
# Those whose decoder works token by token, so that streams are exact for any tokens at all.
LOCAL = [kind for kind in KINDS if kind != "end_of_word"]


@functools.cache
def tokenizer_json(kind: str) -> str:
    return str(KINDS[kind][0]().to_str())


def save(folder: Path, kind: str, **config: Any) -> Path:
    """Write a model folder's tokenizer; `config` overrides tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(kind), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **KINDS[kind][1], **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    return folder


@functools.cache
def folder_of(kind: str) -> Path:
    """A folder that lives as long as the tests."""
    return save(Path(_root().name) / kind, kind)


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="octavo-vocabularies-")

"""`suffix`: what stands between two texts, from models that were taught to fill in the middle.

A model that has their markers as tokens of its own is taken for one that knows them.
"""

from __future__ import annotations

from octavo.core.errors import RequestError
from octavo.text.tokenizer import Tokenizer

# The markers before the prefix, before the suffix and before the middle; for Mistral's models the suffix comes first.
_MARKERS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
)
_MISTRAL = ("[PREFIX]", "[SUFFIX]")


def fill_in(tokenizer: Tokenizer, prefix: str, suffix: str) -> str:
    """The prompt whose answer goes between the two texts; RequestError if the model was not taught to."""
    for before, after, middle in _MARKERS:
        if all(_is_token(tokenizer, marker) for marker in (before, after, middle)):
            return f"{before}{prefix}{after}{suffix}{middle}"
    if all(_is_token(tokenizer, marker) for marker in _MISTRAL):
        return f"[SUFFIX]{suffix}[PREFIX]{prefix}"
    raise RequestError("suffix: this model was not taught to fill in the middle of a text.", "suffix")


def _is_token(tokenizer: Tokenizer, text: str) -> bool:
    return len(tokenizer.encode(text, add_special_tokens=False)) == 1

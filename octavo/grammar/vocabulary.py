"""The grammar library's view of a model's tokens, and what a grammar may cost.

The limits are counts of work, not seconds, so a grammar that passed them once passes them everywhere.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.core.errors import ConfigError
from octavo.text.tokenizer import Tokenizer

Mask = npt.NDArray[np.int32]
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,  # about 20 ms
    "step_lexer_fuel": 100_000,  # about 7 ms in a step at worst; an ordinary one needs a hundredth
    "step_max_items": 20_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 50_000,  # of one to two kilobytes
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")


def tidy(error: str) -> str:
    """A message of the library without the place in the grammar, which is not the one that the user wrote."""
    if error.startswith("NoExtension"):
        return "no answer would match it"
    if "regex parse error" in error:
        found = re.search(r"^error: (.*)$", error, re.MULTILINE)
        return f"regex parse error: {found[1] if found else ''}"
    return _PLACE.sub("", error).partition("\n")[0][:300]


class Vocabulary:
    """`words` 32-bit words hold a mask over the library's tokens, which may be more than the model has."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        from llguidance import LLParserLimits, LLTokenizer

        if tokenizer.pieces(False) is None:
            raise ConfigError("structured output is not supported for this model: its tokens are no pieces of text")
        self._tokenizer = tokenizer
        self._specials = tokenizer.all_special_ids | set(tokenizer.eos_ids)
        self.special = {
            name: token for token in self._specials if (name := tokenizer.id_to_token(token)) is not None and name
        }
        count = max(size, tokenizer.vocab_size, *(token + 1 for token in self._specials))
        # What the library reads of a tokenizer.
        self.is_tokenizer_wrapper = True
        self.tokens = [self._bytes(token) for token in range(count)]
        self.special_token_ids = sorted(self._specials)
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = tokenizer.eos_id
        wrapped: Any = self
        self.library = LLTokenizer(wrapped, eos_token=list(tokenizer.eos_ids) or None)
        self.eos_ids = self.library.eos_tokens  # a token of its own where the model has none
        self.words = -(-self.library.vocab_size // 32)
        self.eos = self.mask_of(self.eos_ids)
        self._limits = LLParserLimits(**LIMITS)

    def matcher(self, source: str) -> Any:
        """An LLMatcher; the library raises nothing, `get_error` tells."""
        from llguidance import LLMatcher

        return LLMatcher(self.library, source, log_level=0, limits=self._limits)

    def fault(self, source: str) -> str:
        """Why the grammar cannot be used; "" if it can. The first mask is part of the trial."""
        matcher = self.matcher(source)
        if not matcher.is_error():
            mask = np.zeros(self.words, np.int32)
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if not matcher.is_error() and self.ends(matcher, mask):
                return "only the empty answer would match it"
        return tidy(str(matcher.get_error()))

    def ends(self, matcher: Any, mask: Mask) -> bool:
        """Nothing but EOS may follow."""
        return bool(matcher.is_stopped() or (matcher.is_accepting() and not (mask & ~self.eos).any()))

    def mask_of(self, ids: list[int]) -> Mask:
        """A mask with the bits of these tokens."""
        bits = np.zeros(self.words * 32, np.uint8)
        bits[ids] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    def __call__(self, text: str) -> list[int]:
        """The library asks for this where grammars force a text, which ours leave to the model."""
        found: list[int] = self.library.greedy_tokenize(text)
        return found

    def _bytes(self, token: int) -> bytes:
        if token in self._specials:
            return (self._tokenizer.id_to_token(token) or "").encode()
        return self._tokenizer.token_bytes(token)

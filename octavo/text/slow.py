"""Tokenizers without a tokenizer.json, through transformers: converted by it where it can, else in its Python code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octavo.core.errors import ConfigError
from octavo.text.pieces import Layout
from octavo.text.tokenizer import Backend, FastBackend, shares


def load_with_transformers(folder: Path) -> tuple[Backend, dict[str, str]]:
    """(backend, named special tokens). Code in the folder is not run."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError(
            f"{folder} has no tokenizer.json; to read other tokenizers: pip install octavo[transformers]"
        ) from error
    try:
        slow = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises many
        raise ConfigError(f"no tokenizer can be read from {folder}: {error}") from error
    special_tokens = {
        str(name): str(token) for name, token in slow.special_tokens_map.items() if isinstance(token, str)
    }
    if slow.is_fast:
        return FastBackend(slow.backend_tokenizer), special_tokens
    return SlowBackend(slow), special_tokens


class SlowBackend:
    """A tokenizer of transformers that is Python code."""

    layout: Layout | None = None

    def __init__(self, slow: Any) -> None:
        self._slow = slow

    def encode(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        return [list(self._slow.encode(text, add_special_tokens=add_special_tokens)) for text in texts]

    def encode_cut(self, texts: list[str], limit: int, keep_end: bool, special: bool) -> tuple[list[int], bytes]:
        parts = self.encode(texts, False)
        room = max(0, limit - self._slow.num_special_tokens_to_add(len(texts) > 1)) if special else limit
        kept = shares([len(part) for part in parts], room)
        parts = [
            part[len(part) - length :] if keep_end else part[:length] for part, length in zip(parts, kept, strict=True)
        ]
        if not special:
            return sum(parts, []), b"".join(bytes([i]) * len(part) for i, part in enumerate(parts))
        whole = self._slow.build_inputs_with_special_tokens(*parts)
        return whole, bytes(self._slow.create_token_type_ids_from_sequences(*parts))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        known = [token_id for token_id in ids if self.id_to_token(token_id) is not None]
        options = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
        return str(self._slow.decode(known, **options))

    def join(self, tokens: list[str]) -> str:
        return str(self._slow.convert_tokens_to_string(tokens))

    def id_to_token(self, token_id: int) -> str | None:
        if not 0 <= token_id < self.size():
            return None
        token = self._slow.convert_ids_to_tokens(token_id)
        return None if token is None else str(token)

    def token_to_id(self, token: str) -> int | None:
        token_id = self._slow.convert_tokens_to_ids(token)
        return None if token_id is None else int(token_id)

    def added_tokens(self) -> dict[int, str]:
        return {token_id: str(token) for token_id, token in self._slow.added_tokens_decoder.items()}

    def special_ids(self) -> frozenset[int]:
        return frozenset(self._slow.all_special_ids)

    def size(self) -> int:
        return len(self._slow)

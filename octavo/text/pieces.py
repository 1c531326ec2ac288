"""What each token adds to a text: the decoder of a tokenizer.json, read as a table from token id to piece.

Almost every decoder in use works token by token, but for four things: bytes that form a character only together,
a first token that is written differently, spaces dropped at the very beginning, and runs of byte tokens (`<0xE2>`)
that are text only if the whole run is. `Layout` names which of these a decoder has, so that a stream of tokens can be
decoded with a dictionary look-up each, and still equal the decoding of the whole. A decoder that is not understood
has no layout: its tokens are decoded in a sliding window instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A token's text, or raw bytes that are not a text on their own; None for a token that is not shown at all.
Piece = str | bytes | None

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Layout:
    byte_level: bool = (
        False  # tokens spell bytes in GPT-2's alphabet; invalid UTF-8 is replaced byte sequence by sequence
    )
    byte_fallback: bool = False  # <0xE2> is a byte; a run of them with one fault is all U+FFFD
    first_differs: bool = False  # the first token of a text has a piece of its own
    strip: str = ""  # up to `strip_count` of this character are dropped at the beginning of the text
    strip_count: int = 0


def read_layout(decoder: dict[str, Any] | None) -> Layout | None:
    """The layout of a decoder as tokenizer.json describes it; None where it is not decoded token by token."""
    if decoder is None:  # tokens are joined by spaces
        return Layout(first_differs=True)
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return Layout(byte_level=True)
    while steps and steps[0]["type"] == "Replace":
        steps = steps[1:]
    match [step["type"] for step in steps]:
        case ["Metaspace"] | ["WordPiece"]:
            return Layout(first_differs=True)
        case [] | ["Fuse"]:
            return Layout()
        case ["ByteFallback"] | ["ByteFallback", "Fuse"]:
            return Layout(byte_fallback=True)
        case ["Fuse", "Strip"] | ["ByteFallback", "Fuse", "Strip"] if steps[-1]["stop"] == 0:
            strip = steps[-1]
            return Layout(
                byte_fallback=steps[0]["type"] == "ByteFallback", strip=strip["content"], strip_count=strip["start"]
            )
    return None


class PieceTable(dict[int, Piece]):
    """Token id to piece, for a token that is not the first of a text. Filled as tokens are met: it never grows
    beyond the vocabulary, and a vocabulary of 256k tokens costs nothing at start-up."""

    def __init__(
        self,
        layout: Layout,
        token: Callable[[int], str | None],
        join: Callable[[list[str]], str],
        anchor: str,
        hidden: frozenset[int],
    ) -> None:
        """`join` is the decoder itself, from tokens to text, and `anchor` a token that it leaves alone; ids in
        `hidden` are not shown."""
        super().__init__()
        self.layout = layout
        self._token = token
        self._join = join
        self._hidden = hidden
        self._anchor = anchor

    def __missing__(self, token_id: int) -> Piece:
        piece = self._make(int(token_id))
        self[int(token_id)] = piece
        return piece

    def first(self, token_id: int) -> Piece:
        """The piece of a token that begins a text."""
        piece = self[token_id]
        if not self.layout.first_differs or piece is None:
            return piece
        return self._join([self._token(token_id) or ""])

    def _make(self, token_id: int) -> Piece:
        if token_id < 0 or token_id in self._hidden:
            return None
        token = self._token(token_id)
        if token is None:  # the model's vocabulary is often padded beyond the tokenizer's
            return None
        if self.layout.byte_level:
            return _text_or_bytes(byte_level_bytes(token))
        if self.layout.byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(byte[1])
        return self._join([self._anchor, token])[len(self._anchor) :]


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: a printable latin-1 character is itself, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for; an added token outside the alphabet is itself."""
    try:
        return bytes([_BYTES[char] for char in token])
    except KeyError:
        return token.encode()

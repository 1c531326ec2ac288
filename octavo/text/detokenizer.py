"""Incremental detokenization: from tokens, one or many at a time, to the text that may be shown now.

What a `Detokenizer` shows, put together, is the text that the answer adds to the prompt: decoding prompt and answer
as a whole, less the prompt. It never shows half a character. Text that may turn out to be the beginning of a stop
string waits, and so does a run of byte tokens (`<0xE2>`), which later bytes of the run can still make invalid;
whole stop strings are found in it all the same. Work per token is bounded by the token's own text.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from math import inf
from typing import Protocol

from octavo.text.pieces import PieceTable
from octavo.text.stops import stop_automaton
from octavo.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class Detokenizer:
    """The text of one answer. `stopped_by` is the stop string that ended it; what is pushed after that is ignored.

    Stop strings that end within the first `min_tokens` tokens are passed over. `num_tokens` counts the tokens up to
    the one that completed a stop string, which can be fewer than were pushed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self.stopped_by: str | None = None
        self.num_tokens = 0
        self._stream = _make_stream(tokenizer, prompt_ids, skip_special_tokens, spaces_between_special_tokens)
        self._stops = stop_automaton(tuple(stop)) if stop else None
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        # A match counts if it ends after this many characters; known once min_tokens tokens have been seen.
        self._floor: float = inf if min_tokens else 0
        self._length = 0  # characters searched, shown or held
        self._state = 0  # of the automaton, after them
        self._held = ""  # searched, but perhaps the beginning of a stop string
        self._run_state = 0  # of the automaton, after the run of byte tokens that is still open
        self._run_length = 0

    def push(self, token_ids: int | Sequence[int]) -> str:
        """Add tokens; returns the new text that may be shown."""
        if self.stopped_by is not None:
            return ""
        ids = (token_ids,) if isinstance(token_ids, int) else token_ids
        if self._stops is None:
            self.num_tokens += len(ids)
            return self._stream.feed(ids[0]) if len(ids) == 1 else "".join(map(self._stream.feed, ids))
        parts = []
        for token_id in ids:
            self.num_tokens += 1
            parts.append(self._search(self._stream.feed(token_id)))
            if self.stopped_by is not None:
                break
            if self.num_tokens == self._min_tokens:
                self._floor = self._length + self._run_length
        return "".join(parts)

    def finish(self) -> str:
        """No more tokens follow; returns what was held back."""
        if self.stopped_by is not None:
            return ""
        text = self._stream.flush()
        if self._stops is not None:
            text = self._search(text)
            text, self._held = text + self._held, ""
        return text

    def _search(self, new: str) -> str:
        """Look for stop strings in text that is final, then in the open run; returns what may be shown."""
        assert self._stops is not None
        if new:
            state, end, found = self._stops.scan(new, self._state, self._floor - self._length)
            text = self._held + new
            if found is not None:
                return self._cut(text[: len(self._held) + end], found)
            self._state = self._run_state = state
            self._length += len(new)
            self._run_length = 0
            keep = 0 if self._include_stop else self._stops.hold[state]
            self._held = text[len(text) - keep :]
            return text[: len(text) - keep]
        grown = self._stream.grown
        if grown:
            before = self._length + self._run_length
            self._run_state, end, found = self._stops.scan(grown, self._run_state, self._floor - before)
            if found is not None:
                text = self._held + self._stream.run_text()
                return self._cut(text[: len(text) - len(grown) + end], found)
            self._run_length += len(grown)
        return ""

    def _cut(self, text: str, found: str) -> str:
        """`text` ends with the stop string; nothing of the string was shown, unless it is to be included."""
        self.stopped_by = found
        self._held = ""
        return text if self._include_stop else text[: len(text) - len(found)]


class _Stream(Protocol):
    """Tokens to final text. `grown` is what the last token added to a run that is text only if it stays valid."""

    grown: str

    def feed(self, token_id: int) -> str: ...
    def flush(self) -> str: ...
    def run_text(self) -> str: ...


def _make_stream(tokenizer: Tokenizer, prompt: Sequence[int], skip_special: bool, spaces: bool) -> _Stream:
    pieces = tokenizer.pieces(skip_special)
    if pieces is None:
        return _WindowStream(tokenizer, prompt, skip_special)
    if pieces.layout.byte_level:
        return _ByteLevelStream(pieces, prompt)
    return _PieceStream(pieces, prompt, {} if skip_special or spaces else tokenizer.added_tokens)


def _open_bytes(pieces: PieceTable, prompt: Sequence[int]) -> bytes:
    """The unfinished character that a prompt ends with. A character is at most four tokens long."""
    data = b""
    for token_id in reversed(prompt[-4:]):
        piece = pieces[token_id]
        if isinstance(piece, str):
            break
        data = (piece or b"") + data
    return data[codecs.utf_8_decode(data, "replace", False)[1] :]


class _ByteLevelStream:
    grown = ""

    def __init__(self, pieces: PieceTable, prompt: Sequence[int]) -> None:
        self._pieces = pieces
        self._open = _open_bytes(pieces, prompt)  # bytes of a character that is not complete
        self._of_prompt = bool(self._open)  # no byte of them is the answer's

    def feed(self, token_id: int) -> str:
        piece = self._pieces[token_id]
        if not self._open and type(piece) is str:
            return piece
        return self._join(piece) if piece else ""

    def _join(self, piece: str | bytes) -> str:
        if isinstance(piece, str):  # begins a character, so the open one was broken off
            return self.flush() + piece
        data = self._open + piece
        if self._of_prompt:
            self._of_prompt = False
            if _breaks_at_once(data):  # the prompt's broken character is not part of the answer
                data = piece
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._open = data[used:]
        return text

    def flush(self) -> str:
        text = "" if self._of_prompt else self._open.decode(errors="replace")
        self._open, self._of_prompt = b"", False
        return text

    def run_text(self) -> str:
        return ""


def _breaks_at_once(data: bytes) -> bool:
    try:
        codecs.utf_8_decode(data, "strict", False)
    except UnicodeDecodeError as error:
        return error.start == 0
    return False


class _PieceStream:
    """Decoders whose tokens are text or, with byte fallback, single bytes."""

    def __init__(self, pieces: PieceTable, prompt: Sequence[int], added_tokens: dict[int, str]) -> None:
        self.grown = ""
        self._pieces = pieces
        self._added_tokens = added_tokens  # shown without a space between two of them
        self._after_added = False
        layout = pieces.layout
        self._at_start = layout.first_differs
        self._strip_left = layout.strip_count
        for token_id in prompt:
            if not self._at_start and not self._strip_left:
                break
            piece = pieces[token_id]
            self._at_start = self._at_start and piece is None
            self._strip(piece.decode("latin-1") if isinstance(piece, bytes) else piece or "")
        self._open = _open_bytes(pieces, prompt) if layout.byte_fallback else b""
        self._run: list[str] = []  # the open run of byte tokens as text, as long as it is valid
        self._run_bytes = 0
        self._broken = False  # the run is invalid: every byte of it is U+FFFD, whatever follows

    def feed(self, token_id: int) -> str:
        piece = self._pieces[token_id]
        if self._at_start and piece is not None:
            piece = self._pieces.first(token_id)
            self._at_start = False
        if self._added_tokens:
            raw = self._added_tokens.get(token_id)
            if raw is not None and self._after_added:
                piece = raw
            self._after_added = raw is not None
        self.grown = ""
        if piece is None:
            return ""
        if isinstance(piece, bytes):
            return self._feed_byte(piece)
        if self._run_bytes or self._open:
            return self.flush() + self._strip(piece)
        return self._strip(piece) if self._strip_left else piece

    def _feed_byte(self, byte: bytes) -> str:
        self._run_bytes += 1
        if self._broken:
            return _REPLACEMENT
        data = self._open + byte
        try:
            text, used = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError:
            self._broken = True
            self._run, self._open, self._strip_left = [], b"", 0
            return _REPLACEMENT * self._run_bytes
        self._open = data[used:]
        if text:
            self.grown = self._strip(text)
            self._run.append(self.grown)
        return ""

    def flush(self) -> str:
        """The run ends here. Bytes that only the prompt left open are not shown."""
        text = "" if self._broken else "".join(self._run)
        if self._open and self._run_bytes:
            text = _REPLACEMENT * self._run_bytes
            self._strip_left = 0
        self._open, self._run, self._run_bytes, self._broken, self.grown = b"", [], 0, False, ""
        return text

    def run_text(self) -> str:
        return "".join(self._run)

    def _strip(self, text: str) -> str:
        while self._strip_left and text:
            if text[0] != self._pieces.layout.strip:
                self._strip_left = 0
                break
            text = text[1:]
            self._strip_left -= 1
        return text


class _WindowStream:
    """Any decoder at all: decode the last few tokens with and without the new one, and show the difference.

    The tokens before the new ones give it its context (spaces between words). Text that ends with U+FFFD waits for
    more bytes, but not for more than `_PATIENCE` tokens, which bounds the window.
    """

    _CONTEXT = 6
    _PATIENCE = 16
    grown = ""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], skip_special: bool) -> None:
        self._decode = tokenizer.decode
        self._skip_special = skip_special
        hidden = tokenizer.all_special_ids if skip_special else frozenset()
        shown = [int(token_id) for token_id in prompt[-64:] if token_id not in hidden]
        self._ids = shown[-self._CONTEXT :]
        self._read = len(self._ids)  # tokens whose text was shown
        self._before = self._decode(self._ids, skip_special)

    def feed(self, token_id: int) -> str:
        self._ids.append(int(token_id))
        text = self._decode(self._ids, self._skip_special)
        waiting = len(self._ids) - self._read < self._PATIENCE
        if waiting and (len(text) <= len(self._before) or text.endswith(_REPLACEMENT)):
            return ""
        return self._advance(text)

    def flush(self) -> str:
        return self._advance(self._decode(self._ids, self._skip_special))

    def _advance(self, text: str) -> str:
        new = text[len(self._before) :]
        if not new:  # tokens without text are no context for the next word
            del self._ids[self._read :]
            return ""
        self._ids = self._ids[max(0, min(self._read, len(self._ids) - self._CONTEXT)) :]
        self._read = len(self._ids)
        self._before = self._decode(self._ids, self._skip_special)
        return new

    def run_text(self) -> str:
        return ""

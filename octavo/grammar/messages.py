"""What the grammar processes are told and say: msgpack of fixed schemas."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from octavo.core.structured import StructuredOutputs


class Start(msgspec.Struct, array_like=True):
    """The first frame. With `rows` the process serves an engine and `memory` is the descriptor of its masks,
    [rows, ceil(vocab_size / 32)] int32; without, it checks what users ask for."""

    folder: str  # of the tokenizer
    vocab_size: int  # of the model
    rows: int = 0
    memory: int = -1


class Check(msgspec.Struct, array_like=True):
    asked: StructuredOutputs


class Checked(msgspec.Struct, array_like=True):
    """`source` is the grammar, if there is no `error`."""

    source: str = ""
    error: str = ""
    path: str = ""
    code: str | None = None


class State(IntEnum):
    READY = 0  # the row's mask is in memory
    COMPLETE = 1  # nothing may follow
    FAILED = 2


class Define(msgspec.Struct, tag="define", array_like=True):
    """A grammar, under a number by which it is opened until it is forgotten."""

    key: int
    source: str


class Forget(msgspec.Struct, tag="forget", array_like=True):
    key: int


class Open(msgspec.Struct, tag="open", array_like=True):
    """A sequence takes a row. `tokens` (int32) were generated before; `epoch` tells owners of a row apart."""

    row: int
    epoch: int
    key: int
    tokens: bytes
    keep_going: bool  # EOS only where nothing else may follow
    allowed: list[int] | None  # no token but these


class Advance(msgspec.Struct, tag="advance", array_like=True):
    """Tokens that were sampled, int32, one for each of the rows, int32."""

    rows: bytes
    tokens: bytes


class Close(msgspec.Struct, tag="close", array_like=True):
    row: int


class News(msgspec.Struct, array_like=True):
    """How rows stand now: int32, int32 and uint8 arrays."""

    rows: bytes
    epochs: bytes
    states: bytes
    error: str = ""  # of the one row that has failed


ToGrammars = Define | Forget | Open | Advance | Close

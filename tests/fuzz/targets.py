"""What is fuzzed: functions of bytes that must return, or refuse with an error that is meant.

Anything else that one of them raises is a finding. `SEEDS` are where the search begins.
"""

from __future__ import annotations

import functools
import json
import random
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from octavo.core.config import EngineConfig
from octavo.core.errors import ModelError, RequestError
from octavo.core.gguf.file import GgufFile
from octavo.core.gguf.folder import make_config
from octavo.core.gguf.tokenizer import make_tokenizer as make_gguf_tokenizer
from octavo.core.structured import StructuredOutputs
from octavo.engine.ipc import Abort, Codec, Start
from octavo.grammar.checker import Checker
from octavo.grammar.endless import prune
from octavo.grammar.messages import Check, Checked, News
from octavo.grammar.schema import GrammarError, prepare, subschemas
from octavo.server import fields
from octavo.server.http import error_body
from octavo.server.pooling.protocol import EmbeddingRequest, RerankRequest, ScoreRequest
from octavo.server.protocol import ChatRequest, CompletionRequest
from octavo.text.detokenizer import Detokenizer
from octavo.text.parsing.base import Parsed
from octavo.text.parsing.formats import CALLS_BY_NAME, THINKING_BY_NAME
from octavo.text.tokenizer import load_tokenizer
from tests.server.fake_engine import make_tokenizer
from tests.text.parsing.samples import TOOLS

DEMO = Path(__file__).parents[2] / "octavo" / "demo" / "model"
CALLS, THINKING = sorted(CALLS_BY_NAME), sorted(THINKING_BY_NAME)


@functools.cache
def _tokenizers() -> tuple[Any, Any]:
    return make_tokenizer(special=("<think>",)), load_tokenizer(DEMO)


@functools.cache
def _checker() -> Checker:
    return Checker(DEMO, _tokenizers()[1].vocab_size)


def detokenizer(data: bytes) -> None:
    """Streamed text is the whole text, whatever the tokens, their portions and the stop strings."""
    if len(data) < 4:
        return
    tokenizer = _tokenizers()[data[0] & 1]
    stop = [data[4 : 4 + (data[1] & 7)].decode(errors="ignore")] if data[1] & 8 else []
    stop = [text for text in stop if text]
    ids = [each % tokenizer.vocab_size for (each,) in struct.iter_unpack("<H", data[4 : len(data) & ~1])]
    prompt, answer = ids[: data[2] & 15], ids[data[2] & 15 :]
    streamed = Detokenizer(tokenizer, prompt, stop=stop)
    text, step = "", 1 + (data[3] & 7)
    for at in range(0, len(answer), step):
        text += streamed.push(answer[at : at + step])
    text += streamed.finish()
    at_once = Detokenizer(tokenizer, prompt, stop=stop)
    whole = at_once.push(answer) + at_once.finish()
    if text != whole or streamed.stopped_by != at_once.stopped_by:
        raise AssertionError((text, whole))


def frames(data: bytes) -> None:
    """Messages of the processes: decoded or refused, never more than the frame is long."""
    codec = Codec()
    for decoder in (codec.to_engine, codec.from_engine, *_DECODERS):
        try:
            decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue


_DECODERS = tuple(msgspec.msgpack.Decoder(kind) for kind in (Check, Checked, News, Start))


def parsers(data: bytes) -> None:
    """Whatever a model writes: told the same in portions as at once."""
    if len(data) < 3:
        return
    make, thinking = CALLS_BY_NAME[CALLS[data[0] % len(CALLS)]], THINKING_BY_NAME[THINKING[data[1] % len(THINKING)]]
    text, step, found = data[3:].decode(errors="replace"), 1 + (data[2] & 15), []
    for size in (step, max(1, len(text))):
        parser, parsed = make(TOOLS, thinking, "", frozenset()), Parsed()
        for at in range(0, len(text), size):
            for delta in parser.feed(text[at : at + size]):
                parsed.add(delta)
        for delta in parser.finish():
            parsed.add(delta)
        found.append((parsed.content, parsed.reasoning, [(call.name, call.arguments) for call in parsed.calls]))
    if found[0] != found[1]:
        raise AssertionError(found)


def bodies(data: bytes) -> None:
    """A request's body: a request, or an error that names its field."""
    for kind in (CompletionRequest, ChatRequest, EmbeddingRequest, ScoreRequest, RerankRequest):
        try:
            fields.decode(data, kind)
        except RequestError as error:
            error_body(error)


def schemas(data: bytes) -> None:
    """A schema is prepared, and compiled in its process, or refused with the path to what is wrong."""
    try:
        schema = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        prepared = prepare(schema)
        list(subschemas(prepared))
        prune(prepared)  # in its process a fault of it would look like a grammar that is too much
    except (GrammarError, RecursionError):
        return
    try:
        _checker().check(StructuredOutputs(json=schema))
    except RequestError as error:
        if error.status != 400:
            raise


def weights(data: bytes) -> None:
    """The header of a safetensors file: any bytes, or one of the right form whose numbers they are."""
    from octavo.models.loader import opened

    file = _file("model.safetensors")
    if data[:1] == b"#":  # what reads it is compiled: no coverage would lead there
        data = json.dumps(dict(_entry(data[at : at + 8]) for at in range(1, len(data) - 7, 8))).encode()
    file.write_bytes(struct.pack("<Q", len(data)) + data + bytes(64))
    try:
        with opened(file) as checkpoint:
            for name in checkpoint.keys():  # noqa: SIM118 (it cannot be iterated)
                view = checkpoint.get_slice(name)
                view.get_shape(), view.get_dtype()
                checkpoint.get_tensor(name)
    except ModelError:
        pass


def gguf(data: bytes) -> None:
    """A GGUF file, of which a config and a tokenizer are made."""
    file = _file("model.gguf")
    file.write_bytes(data)
    try:
        read = GgufFile(file, lists=True)
        json.dumps([make_config(read), make_gguf_tokenizer(read)])
    except ModelError:
        pass


def _entry(data: bytes) -> tuple[str, dict[str, Any]]:
    name, dtype, first, second, begin, length, far, more = data
    start = begin << (far & 63)
    end = start + length * (1 + (more & 15)) - (more >> 4)
    kind = ("F32", "BF16", "I8", "F64", "BOOL", "F8_E4M3", "U16", "F31")[dtype & 7]
    return str(name & 3), {"dtype": kind, "shape": [first << (far >> 2), second], "data_offsets": [start, end]}


@functools.cache
def _file(name: str) -> Path:
    folder = tempfile.TemporaryDirectory()
    _folders.append(folder)
    return Path(folder.name) / name


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _gguf(kind: str, more: dict[str, str | list[str] | list[float]]) -> bytes:
    """A file with what a config is made of, and one tensor."""
    values: dict[str, str | int | float | list[str] | list[float]] = {"general.architecture": kind, **more}
    for name in ("embedding_length", "feed_forward_length", "block_count", "context_length", "attention.head_count"):
        values[f"{kind}.{name}"] = 4
    values[f"{kind}.attention.layer_norm_rms_epsilon"] = 1e-5
    keys = b""
    for name, value in values.items():
        keys += _text(name)
        if isinstance(value, list):
            kinds = 8 if isinstance(value[0], str) else 6
            keys += struct.pack("<IIQ", 9, kinds, len(value))
            keys += b"".join(_text(each) if isinstance(each, str) else struct.pack("<f", each) for each in value)
        elif isinstance(value, str):
            keys += struct.pack("<I", 8) + _text(value)
        else:
            keys += struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)
    tensor = _text("token_embd.weight") + struct.pack("<IQQIQ", 2, 4, 2, 0, 0)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(values)) + keys + tensor
    return header + bytes(-len(header) % 32 + 64)


def mutated(seed: bytes, rng: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(3):
            case 0:
                data[at:at] = rng.randbytes(rng.randint(1, 3))
            case 1:
                del data[at : at + rng.randint(1, 3)]
            case _:
                data[at : at + 1] = rng.choice([b'"', b"{", b"}", b"[", b"\\", b"0", b"-", b"\xff", b"<", b"\0"])
    return bytes(data)


_folders: list[tempfile.TemporaryDirectory[str]] = []
_pack = msgspec.msgpack.encode
TARGETS: dict[str, Callable[[bytes], None]] = {
    "detokenizer": detokenizer,
    "frames": frames,
    "parsers": parsers,
    "bodies": bodies,
    "schemas": schemas,
    "weights": weights,
    "gguf": gguf,
}
SEEDS: dict[str, list[bytes]] = {
    "detokenizer": [b"\x00\x0b\x02\x01Grk\x00\xf0\x00\x9f\x00\x98\x00\x80", bytes(range(64)),
                    b"\x01\x00\x00\x03" + b"\x85\x03" * 30],
    "frames": [
        _pack(Start(EngineConfig(), "folder")),
        _pack(Abort([1, 2])),
        _pack(Check(StructuredOutputs(regex="a"))),
        _pack(Checked("source")),
        _pack(News(b"\0" * 4, b"\0" * 4, b"\0")),
    ],
    "parsers": [
        b"\x00\x00\x03" + text
        for text in (
            b'<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>',
            b"[weather(city='Paris', days=1)]",
            b'[TOOL_CALLS]weather[ARGS]{"city": "Paris"}',
            b"<think>so</think>it is",
            b"<|channel|>analysis<|message|>x<|end|><|channel|>commentary to=functions.weather<|message|>{}<|call|>",
        )
    ],
    "bodies": [b'{"prompt": "x", "max_tokens": 3, "stop": ["a"], "logit_bias": {"1": 0.5}}',
               b'{"messages": [{"role": "user", "content": "x"}]}'],
    "schemas": [
        b'{"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]}',
        b'{"$defs": {"d": {"enum": [1, "x"]}}, "anyOf": [{"$ref": "#/$defs/d"}, {"type": "string", "pattern": "a+"}]}',
        b'{"type": "array", "items": {"type": "number"}, "minItems": 2, "prefixItems": [{"const": null}]}',
    ],
    "gguf": [
        _gguf("llama", {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a", "b", "ab"],
                        "tokenizer.ggml.scores": [-1.0, -2.0, -3.0]}),
        _gguf("qwen3", {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2",
                        "tokenizer.ggml.tokens": ["a", "b", "ab"], "tokenizer.ggml.merges": ["a b"]}),
    ],
    "weights": [
        b'{"a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}',
        b"#" + bytes([0, 0, 4, 4, 0, 64, 0, 0]),
        b"#" + bytes([0, 2, 8, 4, 0, 32, 0, 0, 1, 2, 8, 4, 32, 32, 0, 0]),
        b'{"__metadata__": {"format": "pt"}, "a": {"dtype": "BF16", "shape": [32], "data_offsets": [0, 64]}}',
    ],
}  # fmt: skip

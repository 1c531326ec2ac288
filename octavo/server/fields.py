"""From a body to a typed request: strict JSON, errors with the path of the field, and no field dropped in silence.

Three kinds of fields are not in `protocol`. Those in `UNSUPPORTED` ask for something that would change the answer and
that we cannot do: they are refused unless their value asks for nothing. A chat template is code: `FORBIDDEN` keeps it,
and what only the parts of a cluster may tell each other, from clients. All others are accepted and named in a header,
those within objects by their path: but not of a type with `passed_on`, which a chat template gets as it came.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import msgspec.inspect

from octavo.core.errors import RequestError

# Field -> the values, beside null, false and empty ones, that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    # OpenAI
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": (),
    "modalities": (["text"],),
    "suffix": (),
    "tool_choice": ("none", "auto"),
    "tools": (),
    # vLLM: sampling
    "logprob_token_ids": (),
    "repetition_detection": (),
    "watermarking": (),
    # SGLang
    "input_ids": (),
    "stop_regex": (),
    # llama.cpp: samplers, with the values that turn them off
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "mirostat": (0,),
    "t_max_predict_ms": (0, -1),
    "typical_p": (1,),
    "xtc_probability": (0,),
    # vLLM: media, adapters, sessions, reports
    "include_reasoning": (True,),
    "lora_path": (),
    "media_io_kwargs": (),
    "mm_processor_kwargs": (),
    "mm_payload": (),
    "prompt_embeds": (),
    "return_hidden_states": (),
    "return_mm_kwargs": (),
    "return_token_offsets": (),
    "return_weight_versions": (),
    "routed_experts_prompt_start": (0,),
    "session_id": (),
    "session_params": (),
    "vllm_xargs": (),
}
FORBIDDEN: frozenset[str] = frozenset(
    {
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "chat_template",
        "custom_logit_processor",
        "data_parallel_rank",
        "ec_transfer_params",
        "features",
        "kv_transfer_params",
        "mm_hashes",
    }
)
LONG_BODY = 64 * 1024  # bytes: more are read in a thread, since half a million fields take half a second
NEUTRAL: tuple[Any, ...] = (None, False, [], {}, "")  # values that ask for nothing
MAX_NAMED = 32  # ignored fields in the header
_NOT_NAME = re.compile(r"[^A-Za-z0-9_.\[\]-]")
_AT = re.compile(r"^(.*) - at `(?:(?:key|tag)` in `)?\$\.?([^`]*)`$", re.DOTALL)
_STEP = re.compile(r"\[[^\]]*\]|[^.\[\]]+")
_WHERE = re.compile(r"^JSON is malformed: ([ -~]+)$")
_MISSING = re.compile(r"Object missing required field `(\w+)`")

T = TypeVar("T", bound=msgspec.Struct)
_decoders: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {}


def decode(body: bytes, kind: type[T]) -> tuple[T, dict[str, Any], str]:
    """The request, the same as plain data, and the names of the fields that were ignored, for the header."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        request: T = decoder.decode(body)
        # msgspec takes the last of two equal keys, and a proxy before us may have judged by the first.
        tree: dict[str, Any] = _PLAIN.decode(body.decode())
    except msgspec.ValidationError as error:
        raise _explain(error, kind) from None
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:  # malformed, not UTF-8, an endless number, a deep nest
        raise _malformed(body, error) from None
    ignored = _ignored(kind, tree)
    for name, part in tree.items():
        if isinstance(part, (dict, list)):
            ignored += _ignored_within(getattr(request, name, None), part, name)
    return request, tree, named(list(dict.fromkeys(ignored)))


async def read(body: bytes, kind: type[T]) -> tuple[T, dict[str, Any], str]:
    """`decode`, while other requests go on."""
    return decode(body, kind) if len(body) <= LONG_BODY else await asyncio.to_thread(decode, body, kind)


def convert(tree: dict[str, Any], kind: type[T]) -> T:
    """The same from plain data that we made: a request of another dialect in the words of `kind`."""
    try:
        request = msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise _explain(error, kind) from None
    ignored = _ignored(kind, tree)
    assert not ignored, f"{kind.__name__} has no field {ignored}"
    return request


def decimal(text: str, low: int, high: int) -> int | None:
    """The number that a text from a query or a form stands for; None if it is none of [low, high]."""
    if len(text) > 9 or not text.isascii() or not text.isdecimal():  # Python refuses to read thousands of digits
        return None
    value = int(text)
    return value if low <= value <= high else None


@contextmanager
def renamed(names: dict[str, str]) -> Iterator[None]:
    """While a request of another dialect is served as one of ours: errors name the fields that the client knows."""
    try:
        yield
    except RequestError as error:
        if error.param is not None:
            head, dot, rest = error.param.partition(".")
            field, bracket, _ = head.partition("[")
            # What was a list in the client's words need not be the same list in ours.
            error.param = names[field] if bracket and field in names else names.get(head, head) + dot + rest
        raise


def _ignored(kind: type[msgspec.Struct], tree: dict[str, Any]) -> list[str]:
    known = kind.__struct_fields__
    return [name for name, value in tree.items() if name not in known and not _refuse(name, value)]


def _ignored_within(value: Any, part: Any, path: str) -> Iterator[str]:
    """The paths of what a part of a request says beyond what its type knows; items of a list are not told apart."""
    if isinstance(value, list) and isinstance(part, list):
        if value and isinstance(value[0], (list, msgspec.Struct)):
            for one, given in zip(value, part, strict=True):
                yield from _ignored_within(one, given, f"{path}[]")
    elif isinstance(value, msgspec.Struct) and isinstance(part, dict):
        known, tag = value.__struct_fields__, value.__struct_config__.tag_field
        passed_on = getattr(value, "passed_on", False)
        for key, given in part.items():
            if key in known:
                yield from _ignored_within(getattr(value, key), given, f"{path}.{key}")
            elif key != tag and not passed_on and given not in NEUTRAL:
                yield f"{path}.{key}"


def named(ignored: list[str]) -> str:
    """The names as a header may hold them, whatever a client called its fields."""
    names = [_NOT_NAME.sub("?", name[:64]) or "?" for name in ignored[:MAX_NAMED]]
    return ",".join(names + ["..."] * (len(ignored) > MAX_NAMED))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RequestError("An object has the same key twice.", _NOT_NAME.sub("?", twice[:64]))
    return found


def _finite(text: str) -> float:
    """The number; a ValueError for what only looks like one, as 1e999, wherever it is."""
    value = float(text)
    if value in (math.inf, -math.inf):
        raise ValueError("a number without end")
    return value


_PLAIN = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite)


def _refuse(name: str, value: Any) -> bool:
    """True for a field that asks for nothing and need not be named; raises if it asks for what is not to be had."""
    if name in FORBIDDEN and value is not None:
        raise RequestError(f"{name} is not accepted from clients.", name)
    if name not in UNSUPPORTED:
        return value is None
    neutral = value in UNSUPPORTED[name] or (value in NEUTRAL and True not in UNSUPPORTED[name])
    if not neutral and value is not None:
        raise RequestError(f"{name} is not supported by this server.", name)
    return True


def _malformed(body: bytes, error: Exception) -> RequestError:
    if not body.strip():
        return RequestError("The body is empty: it must be a JSON object.")
    told = str(error) if isinstance(error, msgspec.DecodeError) else ""
    found = _WHERE.search(told)
    why = f": {found[1]}" if found else ": it ends too early" if "truncated" in told else ""
    return RequestError(f"The body is not valid JSON in UTF-8{why}.")


def _explain(error: msgspec.ValidationError, kind: type[msgspec.Struct]) -> RequestError:
    """msgspec's "Expected `int`, got `str` - at `$.stop[0]`" as an error of ours, with the param stop[0]."""
    if isinstance(error.__cause__, RequestError):  # raised by a check of ours
        return error.__cause__
    text = str(error)
    at = _AT.match(text)
    message, param = (at[1], at[2]) if at else (text, "")
    missing = _MISSING.search(message)
    if missing:
        message = "The field is missing"
        param = f"{param}.{missing[1]}" if param else missing[1]
    if message.startswith("Invalid") and (choices := _choices(kind, param)):
        message += f": it must be one of {', '.join(choices)}"
    return RequestError(f"{param}: {message}" if param else message, param or None)


def _choices(kind: type[msgspec.Struct], param: str) -> list[str]:
    """What the field may say, if its type lists it."""
    found = list(_options(msgspec.inspect.type_info(kind)))
    for name in _STEP.findall(param):
        if name.startswith("["):
            found = [each.item_type for each in found if isinstance(each, msgspec.inspect.ListType)]
        else:
            structs = [each for each in found if isinstance(each, msgspec.inspect.StructType)]
            if tags := [str(each.tag) for each in structs if each.tag_field == name]:
                return tags
            found = [field.type for each in structs for field in each.fields if field.name == name]
        found = [option for each in found for option in _options(each)]
    return [str(value) for each in found if isinstance(each, msgspec.inspect.LiteralType) for value in each.values]


def _options(kind: msgspec.inspect.Type) -> Iterator[msgspec.inspect.Type]:
    """The members of a union; else the type itself."""
    if isinstance(kind, msgspec.inspect.Metadata):
        yield from _options(kind.type)
    elif isinstance(kind, msgspec.inspect.UnionType):
        for each in kind.types:
            yield from _options(each)
    else:
        yield kind

"""Values of every shape that the types of a client's package allow for a field."""

from __future__ import annotations

import collections.abc
import os
import types
import typing
from typing import Any, Literal, NotRequired, Required, get_args, get_origin, get_type_hints

import pydantic
from typing_extensions import is_typeddict

_PLAIN: dict[Any, list[Any]] = {
    type(None): [None],
    str: ["text"],
    bool: [True, False],
    int: [1],
    float: [0.5],
    object: [{"a": 1}],
    Any: [{"a": 1}],
}
_DEEPEST = 8


def samples(kind: Any, depth: int = 0) -> list[Any]:
    """Each literal, each member of a union; of an object what it must have, and all that it may have."""
    origin, args = get_origin(kind), get_args(kind)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if origin is Literal:
        return list(args)
    if origin in (typing.Union, types.UnionType):
        return [each for member in args for each in samples(member, depth)]
    if origin in (Required, NotRequired, typing.Annotated):
        return samples(args[0], depth)
    if is_typeddict(kind):
        return _objects(kind, depth)
    if origin in (dict, collections.abc.Mapping):
        return [{"a": samples(args[1], depth + 1)[0]}]
    if origin is tuple:
        return [[samples(each, depth + 1)[0] for each in args if each is not ...]]
    if origin in (list, collections.abc.Iterable, collections.abc.Sequence):
        return [[each] for each in samples(args[0], depth + 1)]
    if typing.IO in (kind, origin) or os.PathLike in (kind, origin) or kind is bytes:  # a file, sent as text
        return ["text"]
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):  # a part of an answer: its type of requests
        return []  # stands beside it
    raise AssertionError(f"a type that no sample is known of: {kind}")


def _objects(kind: Any, depth: int) -> list[Any]:
    if depth > _DEEPEST:
        return [{}]
    hints = get_type_hints(kind, include_extras=True)
    required = {name for name, hint in hints.items() if get_origin(hint) is Required}
    least = {name: samples(hints[name], depth + 1)[0] for name in hints if name in required}
    every = {name: samples(hints[name], depth + 1)[0] for name in hints}
    return [least] if least == every else [least, every]


def fields_of(kind: Any) -> dict[str, list[Any]]:
    return {name: samples(hint) for name, hint in get_type_hints(kind, include_extras=True).items()}

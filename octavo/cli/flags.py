"""Command-line flags from configuration dataclasses, and back: a field is a flag, its metadata the help.

max_model_len: int | None = flag(None, "…")      ->  --max-model-len 4096, or 4k, or 4K (4096)
enable_prefix_caching: bool = flag(True, "…")    ->  --enable-prefix-caching, --no-enable-prefix-caching
api_key: tuple[str, ...] = flag((), "…")         ->  --api-key A --api-key B
"""

from __future__ import annotations

import argparse
import difflib
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from octavo.core.errors import ConfigError

T = TypeVar("T")

# 1k is a thousand and 1K is 1024, as in vLLM.
_UNITS = {"": 1, "k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30}


def number(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", text.strip())
    value = float(found[1]) * _UNITS[found[2]] if found else 0.5
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number (4096, 4k and 4K are)")
    return int(value)


class Parser(argparse.ArgumentParser):
    """Flags are written out; one that does not exist is answered with the one that was probably meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.usage = f"{self.prog} [FLAGS] [ARGUMENT]"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._subparsers is None:  # else the flags are those of the commands, which look at them
            args = [self._written(arg) for arg in args]
        return super().parse_known_args(args, namespace)

    def _written(self, arg: str) -> str:
        """The argument, with --like_this as --like-this. A wrong flag ends here: argparse would take what follows it
        for a positional argument, and complain of that."""
        known = self._option_string_actions
        name, equals, value = arg.partition("=")
        if not name.startswith("--") or name == "--" or name in known:
            return arg
        dashed = name.replace("_", "-")
        if dashed in known:
            return dashed + equals + value
        near = difflib.get_close_matches(dashed, known, n=1)
        self.error(f"there is no flag {name}" + (f"; did you mean {near[0]}?" if near else ""))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists what there is)\n")


def with_config(argv: Sequence[str]) -> list[str]:
    """The arguments, with those of the file of --config FILE before them: what is said on the command line wins."""
    before, after = list(argv[:1]), list(argv[1:])
    for i, arg in enumerate(after):
        name, equals, path = arg.partition("=")
        if name == "--":
            break
        if name == "--config":
            if not equals and i + 1 == len(after):
                return list(argv)  # argparse says what is missing
            rest = after[:i] + after[i + (1 if equals else 2) :]
            return before + read_config(path if equals else after[i + 1]) + rest
    return list(argv)


def read_config(path: str) -> list[str]:
    """A YAML file of flags without their dashes, as arguments."""
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ConfigError(f"--config {path}: it must be a list of `flag: value`")
    arguments: list[str] = []
    for name, value in found.items():
        dashed = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{dashed}" if value else f"--no-{dashed}")
            continue
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, (str, int, float)) or isinstance(each, bool):
                raise ConfigError(f"--config {path}: {name} must be a text, a number, true or false, or a list of them")
            arguments.append(f"--{dashed}={each}")
    return arguments


def add_flags(parser: argparse.ArgumentParser, config: type[Any], title: str, skip: Sequence[str] = ()) -> None:
    """A flag for every field of a configuration class."""
    group = parser.add_argument_group(title)
    types_by_name = typing.get_type_hints(config)
    for field in fields(config):
        if field.name in skip:
            continue
        kind, many = _kind(types_by_name[field.name])
        options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": _help(field)}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = number if kind is int else kind
            options["metavar"] = {int: "N", float: "X"}.get(kind, "TEXT")
            if field.metadata["choices"]:
                options["choices"] = field.metadata["choices"]
                options["metavar"] = "{" + ",".join(field.metadata["choices"]) + "}"
            if many:
                options["action"] = "append"
        group.add_argument("--" + field.name.replace("_", "-"), **options)


def read_flags(config: type[T], namespace: argparse.Namespace, **values: Any) -> T:
    """The configuration that the flags describe; `values` stand where no flag was given."""
    names = {field.name for field in fields(config)}  # type: ignore[arg-type]
    given = {name: value for name, value in vars(namespace).items() if name in names}
    return config(**{**values, **{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}})


def _kind(annotation: Any) -> tuple[type, bool]:
    """(type of one value, whether there may be several) of `int | None` and the like."""
    if isinstance(annotation, types.UnionType):
        (annotation,) = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False


def _help(field: Any) -> str:
    text: str = field.metadata["help"].replace("%", "%%")
    told = "default" in text or field.default in (None, False, (), "")
    value = "on" if field.default is True else field.default
    return text if told else f"{text} (default: {value})"

"""Command-line flags from configuration dataclasses, and back: a field is a flag, its metadata the help.

max_model_len: int | None = flag(None, "…")      ->  --max-model-len 4096, or 4k, or 4K (4096)
enable_prefix_caching: bool = flag(True, "…")    ->  --enable-prefix-caching, --no-enable-prefix-caching
api_key: tuple[str, ...] = flag((), "…")         ->  --api-key A --api-key B
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from octavo.core.errors import ConfigError
from octavo.core.foreign import Foreign

T = TypeVar("T")

# 1k is a thousand and 1K is 1024, as in vLLM.
_UNITS = {"": 1, "k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30}


def number(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", text.strip())
    value = float(found[1]) * _UNITS[found[2]] if found else 0.5
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number (4096, 4k and 4K are)")
    return int(value)


def _or_auto(text: str) -> int | None:
    return None if text == "auto" else number(text)


class Parser(argparse.ArgumentParser):
    """Flags are written out; one that does not exist is answered with the one that was probably meant.

    --flag.key VALUE is a part of what --flag says in JSON. A flag that may be given more than once takes several values
    as well, once the positional argument is there: before it, the next word would be that.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.usage = f"{self.prog} [FLAGS] [ARGUMENT]"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._subparsers is None:  # else the flags are those of the commands, which look at them
            args = self._written(list(args))
        return super().parse_known_args(args, namespace)

    def _written(self, args: list[str]) -> list[str]:
        """The arguments as argparse takes them."""
        found: list[str] = []
        parts: dict[str, dict[str, Any]] = {}  # what the parts of flags build
        named = any(arg == "--model" or arg.startswith("--model=") for arg in args)
        while args:
            arg = args.pop(0)
            if arg == "--":
                return [*_joined(parts), *found, arg, *args]
            if not arg.startswith("-") or arg == "-":
                named = True
                found.append(arg)
                continue
            name, equals, value = arg.partition("=")
            whole, dot, key = name.partition(".") if name.startswith("--") else (name, "", "")
            whole = self._flag(whole)
            action = self._option_string_actions.get(whole)
            takes = not equals and action is not None and action.nargs is None
            if dot:
                if not equals and not args:
                    self.error(f"argument {name}: expected one argument")
                _put(parts.setdefault(whole, {}), key.split("."), value if equals else args.pop(0))
                continue
            found.append(whole + equals + value)
            if takes and args:
                found.append(args.pop(0))
            while takes and named and isinstance(action, argparse._AppendAction) and args and args[0][:1] != "-":
                found += [whole, args.pop(0)]
        for whole in parts:
            if any(arg.partition("=")[0] == whole for arg in found):
                self.error(f"{whole} is given as a whole and in parts")
        return [*_joined(parts), *found]

    def _flag(self, name: str) -> str:
        """The flag, with --like_this as --like-this. A wrong one ends here: argparse would take what follows it for a
        positional argument, and complain of that."""
        known = self._option_string_actions
        if not name.startswith("--") or name in known:
            return name
        dashed = name.replace("_", "-")
        if dashed in known:
            return dashed
        ours = [name for name, action in known.items() if not isinstance(action, _Check)]
        near = difflib.get_close_matches(dashed, ours, n=1)
        self.error(f"there is no flag {name}" + (f"; did you mean {near[0]}?" if near else ""))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists what there is)\n")


def _put(tree: dict[str, Any], keys: list[str], value: str) -> None:
    """The value at its place; as JSON if it is, else as text."""
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    try:
        tree[keys[-1]] = json.loads(value)
    except ValueError:
        tree[keys[-1]] = value


def _joined(parts: dict[str, dict[str, Any]]) -> list[str]:
    return [f"{flag}={json.dumps(tree)}" for flag, tree in parts.items()]


class _Check(argparse.Action):
    """A flag of other servers: see `octavo.core.foreign`."""

    def __init__(self, foreign: Foreign, **options: Any) -> None:
        self.foreign = foreign
        super().__init__(**options, nargs=0 if foreign.switch else None, default=argparse.SUPPRESS)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        name = option_string or ""
        try:
            self.foreign.check(name, not name.startswith("--no-") if self.foreign.switch else values)
        except ConfigError as error:
            parser.error(str(error))


def add_foreign(parser: argparse.ArgumentParser, foreign: Mapping[str, Foreign]) -> None:
    """The flags of other servers, but for those that the parser has."""
    for name, each in foreign.items():
        flag = name.replace("_", "-")
        names = [f"--{flag}", *each.short, *([f"--no-{flag}"] if each.switch else [])]
        if names[0] not in parser._option_string_actions:
            parser.add_argument(*names, action=_Check, foreign=each, dest=argparse.SUPPRESS, help=argparse.SUPPRESS)


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
        if isinstance(value, dict):
            arguments.append(f"--{dashed}={json.dumps(value, default=str)}")
            continue
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, (str, int, float)) or isinstance(each, bool):
                raise ConfigError(
                    f"--config {path}: {name} must be a text, a number, true or false, a list of them, or an object"
                )
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
            options["type"] = (_or_auto if field.default is None else number) if kind is int else kind
            options["metavar"] = {int: "N", float: "X"}.get(kind, "TEXT")
            if field.metadata["choices"]:
                options["choices"] = field.metadata["choices"]
                options["metavar"] = "{" + ",".join(field.metadata["choices"]) + "}"
            if many:
                options["action"] = "append"
        group.add_argument("--" + field.name.replace("_", "-"), *field.metadata["names"], **options)


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

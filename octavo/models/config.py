"""Reading a Hugging Face `config.json` as untrusted input: every value has a type and a range, or is refused by name.

A key that is absent and a key that is null are the same, as in transformers, but where a method says otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from octavo.core.errors import ModelError

_REQUIRED: Any = object()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or a ModelError that names the file."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} must hold a JSON object, not {type(values).__name__}")
    return values


class ConfigReader:
    """Typed access to one JSON object. `where` is put before the key in errors.

    `names` says under which key this config has what others call otherwise: {"hidden_size": "n_embd"}.
    """

    __slots__ = ("names", "values", "where")

    def __init__(self, values: dict[str, Any], where: str, names: dict[str, str] | None = None) -> None:
        self.values = values
        self.where = where
        self.names = names or {}

    def family(self, names: dict[str, str] | None = None, **defaults: Any) -> ConfigReader:
        """The same config, as a family has it: keys of its own, and defaults for what is absent."""
        missing = {key: default for key, default in defaults.items() if self.values.get(key) is None}
        return ConfigReader({**self.values, **missing}, self.where, {**self.names, **(names or {})})

    def error(self, key: str, problem: str) -> ModelError:
        return ModelError(f"{self.where}: {self.names.get(key, key)} {problem}")

    def has(self, key: str) -> bool:
        return self.values.get(self.names.get(key, key)) is not None

    def raw(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self.values.get(self.names.get(key, key))
        if value is not None:
            return value
        if default is _REQUIRED:
            raise self.error(key, "is missing")
        return default

    def integer(self, key: str, default: Any = _REQUIRED, low: int = 1, high: int = 2**20) -> int:
        value = self.raw(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.error(key, f"must be an integer in [{low}, {high}], got {value!r:.80}")
        return value

    def number(self, key: str, default: Any = _REQUIRED, low: float = 0.0, high: float = 1e30) -> float:
        """A number in (low, high]."""
        value = self.raw(key, default)
        if type(value) not in (int, float) or not low < value <= high:
            raise self.error(key, f"must be a number above {low:g} and up to {high:g}, got {value!r:.80}")
        return float(value)

    def optional(self, key: str, default: float | None = None, low: float = 0.0) -> float | None:
        """A number or none: here null means none, and only an absent key has the default."""
        if key in self.values and not self.has(key) or default is None and not self.has(key):
            return None
        return self.number(key, default, low)

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key, default)
        if type(value) is not bool:
            raise self.error(key, f"must be true or false, got {value!r:.80}")
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        value = self.raw(key, default)
        if type(value) is not str:
            raise self.error(key, f"must be a string, got {value!r:.80}")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.raw(key)
        if type(value) is not list or any(type(item) is not str for item in value):
            raise self.error(key, f"must be a list of strings, got {value!r:.80}")
        return value

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """So many positive numbers."""
        value = self.raw(key)
        if type(value) is not list or len(value) != count:
            raise self.error(key, f"must be a list of {count} numbers, got {value!r:.80}")
        each = ConfigReader({f"{key}[{i}]": item for i, item in enumerate(value)}, self.where)
        return tuple(each.number(name) for name in each.values)

    def section(self, key: str) -> ConfigReader:
        """A nested object; empty if it is absent."""
        value = self.raw(key, {})
        if type(value) is not dict:
            raise self.error(key, f"must be an object, got {value!r:.80}")
        return ConfigReader(value, f"{self.where}: {key}")

"""Sampling defaults that the makers of a model put into its generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from octavo.core.errors import ConfigError

_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def read_generation_config(folder: Path, *, must_be: bool = False) -> dict[str, Any]:
    """The file's content; {} if there is none, unless it `must_be` there."""
    path = folder / "generation_config.json"
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        if must_be:
            raise ConfigError(f"{path} does not exist") from None
        return {}
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def default_sampling(generation_config: dict[str, Any]) -> dict[str, Any]:
    """The arguments for `SamplingParams` that the file stands for."""
    found = {name: generation_config[name] for name in _NAMES if generation_config.get(name) is not None}
    if generation_config.get("do_sample") is False:
        found["temperature"] = 0.0
    return found

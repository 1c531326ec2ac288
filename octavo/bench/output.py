"""Where results go: JSON files, progress on a terminal, PNG files."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from octavo.core.errors import ConfigError


def plain(value: Any) -> Any:
    """For JSON, which has no infinity."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def write_json(path: Path, record: Any, *, append: bool = False, indent: int | None = None) -> None:
    """One object; `append` puts it on a line of its own after what the file has."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if append else "w", encoding="utf-8") as file:
            if append and file.tell():
                file.write("\n")
            json.dump(plain(record), file, indent=indent)
    except OSError as error:
        raise ConfigError(f"the result cannot be written: {error}") from None


def read_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """What `write_json` wrote: an object a file, a list of them, or one a line."""
    found: list[Any] = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
            try:
                whole = json.loads(text)
                found += whole if isinstance(whole, list) else [whole]
            except ValueError:
                found += [json.loads(part) for part in text.splitlines() if part.strip()]
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} holds no results: {error}") from None
    for result in found:
        if not isinstance(result, dict):
            raise ConfigError("a result must be a JSON object")
    return found


@contextmanager
def progress(label: str, total: int, show: bool = True) -> Iterator[Callable[[], None]]:
    """A bar on a terminal; yields what advances it by one."""
    if not show or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)

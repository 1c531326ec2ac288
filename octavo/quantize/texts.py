"""Text that calibrates: a plain file, or JSON lines with `text` or `messages`, as pieces of equally many tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from octavo.core.errors import ConfigError, OctavoError
from octavo.text.tokenizer import Tokenizer


def read_pieces(file: Path, tokenizer: Tokenizer, samples: int, length: int) -> list[list[int]]:
    """At most `samples`; one that is shorter only if there is nothing else."""
    pieces: list[list[int]] = []
    left: list[int] = []
    for text in _documents(file, tokenizer):
        left += tokenizer.encode(text)
        while len(left) >= length and len(pieces) < samples:
            pieces.append(left[:length])
            left = left[length:]
        if len(pieces) == samples:
            break
    if not pieces and not left:
        raise ConfigError(f"--calibration {file}: there is no text in it")
    return pieces or [left]


def _documents(file: Path, tokenizer: Tokenizer) -> Iterator[str]:
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--calibration {file} cannot be read: {error}") from None
    if file.suffix != ".jsonl":
        yield content
        return
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            yield _line(line, f"--calibration {file}: line {number}", tokenizer)


def _line(line: str, where: str, tokenizer: Tokenizer) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ConfigError(f"{where} is not JSON") from None
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return str(value["text"])
    if not (isinstance(value, dict) and isinstance(value.get("messages"), list)):
        raise ConfigError(f"{where} has neither `text` nor `messages`")
    if not tokenizer.chat_template:
        raise ConfigError(f"{where} has messages, and MODEL has no chat template")
    try:
        return tokenizer.chat_template.render(value["messages"], add_generation_prompt=False)
    except OctavoError as error:
        raise ConfigError(f"{where}: {error}") from None

"""Text that calibrates: JSON lines of `text` or `messages`, a piece each, or a plain file that is cut into pieces."""

from __future__ import annotations

import json
from pathlib import Path

from octavo.core.errors import ConfigError, OctavoError
from octavo.text.tokenizer import Tokenizer


def read_pieces(file: Path, tokenizer: Tokenizer, samples: int, length: int) -> list[list[int]]:
    """At most `samples` of at most `length` tokens."""
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--calibration {file} cannot be read: {error}") from None
    if file.suffix == ".jsonl":
        pieces: list[list[int]] = []
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip() and len(pieces) < samples:
                ids = tokenizer.encode(_line(line, f"--calibration {file}: line {number}", tokenizer))
                pieces += [ids[:length]] if ids else []
    else:
        ids = tokenizer.encode(content)
        whole = range(0, len(ids) - length + 1, length)
        pieces = [ids[at : at + length] for at in whole][:samples] or [ids]
    if not pieces or not pieces[0]:
        raise ConfigError(f"--calibration {file}: there is no text in it")
    return pieces


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

"""What an answer must be: `StructuredOutputs`.

Names are vLLM's. Only shape and size are checked here; whether a grammar can be compiled, and its translation, is the
business of `octavo.grammar`, in a process that may be killed.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from octavo.core.errors import RequestError

KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
MAX_SOURCE = 1 << 20  # characters of a schema, a grammar, a structural tag, or all choices together
MAX_REGEX = 1 << 16
MAX_CHOICES = 10_000
MAX_PARAM = 256
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")


class StructuredOutputs(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Exactly one of the first six says what every answer matches, from its first token to its last.

    `json` is a JSON schema, as text or as Python data. `regex` matches the whole answer. `grammar` is written in the
    Lark dialect of llguidance or in GBNF. `structural_tag` leaves text free but for what stands between tags.
    `disable_any_whitespace` writes JSON without spaces; `whitespace_pattern` is a regex of what may stand between its
    tokens; `disable_additional_properties` allows only the properties that a schema names.
    """

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    param: str = ""  # the field of a request that this was made from, for errors

    def __post_init__(self) -> None:
        if self.json_object is False:
            self.json_object = None
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            what = "none is given" if not given else f"{' and '.join(given)} are given"
            raise RequestError(
                f"structured_outputs needs exactly one of {', '.join(KINDS)}: {what}",
                self.param or "structured_outputs",
            )
        if not isinstance(self.param, str) or not self.param:
            self.param = f"structured_outputs.{given[0]}"
        for name in ("json", "structural_tag"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                setattr(self, name, self._text(value))
        for name in ("json", "structural_tag", "grammar"):
            self._check_text(name, MAX_SOURCE)
        self._check_text("regex", MAX_REGEX)
        self._check_text("whitespace_pattern", MAX_REGEX)
        self._check_choice()

    @property
    def kind(self) -> str:
        return next(name for name in KINDS if getattr(self, name) is not None)

    def name(self, path: str) -> str:
        """The field of the request that `path`, within what is asked, belongs to. Parts of a structural tag that were
        put there for another field name it as their `param`."""
        param, rest = self.param, path
        if self.kind == "structural_tag" and isinstance(self.structural_tag, str):
            try:
                node = msgspec.json.decode(self.structural_tag)
                for found in _STEP.finditer(path):
                    node = node[int(found[2]) if found[2] else found[1]]
                    if isinstance(node, dict) and isinstance(node.get("param"), str):
                        param, rest = node["param"][:MAX_PARAM], path[found.end() :].removeprefix(".json_schema")
            except (KeyError, IndexError, TypeError, ValueError, RecursionError):
                pass  # it leads into a schema whose names have dots
        return f"{param}.{rest.lstrip('.')}".replace(".[", "[") if rest else param

    def _text(self, value: Any) -> str:
        try:
            return msgspec.json.encode(value).decode()
        except (TypeError, ValueError, RecursionError, OverflowError):
            raise RequestError(f"{self.param} cannot be written as JSON", self.param) from None

    def _check_text(self, name: str, most: int) -> None:
        text = getattr(self, name)
        if text is None:
            return
        param = "structured_outputs.whitespace_pattern" if name == "whitespace_pattern" else self.param
        if not isinstance(text, str) or not 1 <= len(text) <= most:
            raise RequestError(f"{param} must be a text of 1 to {most} characters", param)
        if "\0" in text or any(0xD800 <= ord(c) <= 0xDFFF for c in text):
            raise RequestError(f"{param} holds half a character (a lone surrogate) or a NUL", param)

    def _check_choice(self) -> None:
        if self.choice is None:
            return
        if not isinstance(self.choice, list) or not 1 <= len(self.choice) <= MAX_CHOICES:
            raise RequestError(f"{self.param} must be a list of 1 to {MAX_CHOICES} texts", self.param)
        if any(not isinstance(text, str) or not text for text in self.choice):
            raise RequestError(f"{self.param} must be a list of texts that are not empty", self.param)
        if sum(map(len, self.choice)) > MAX_SOURCE:
            raise RequestError(f"{self.param} has more than {MAX_SOURCE} characters", self.param)
        if any(0xD800 <= ord(c) <= 0xDFFF or c == "\0" for text in self.choice for c in text):
            raise RequestError(f"{self.param} holds half a character (a lone surrogate) or a NUL", self.param)


StructuredOutputsParams = StructuredOutputs  # vLLM's name

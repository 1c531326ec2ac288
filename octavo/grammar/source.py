"""From `StructuredOutputs` to a grammar of llguidance, and its verdict on it.

All of this works on what a stranger wrote, so it runs where it may be killed: see `octavo.grammar.process`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from octavo.core.structured import StructuredOutputs
from octavo.grammar.schema import GrammarError, blame, prepare, step, subschemas
from octavo.grammar.tags import TagGrammar

if TYPE_CHECKING:
    from octavo.grammar.vocabulary import Vocabulary

# Between the tokens of JSON. A model that is fond of spaces would otherwise never get to the next token.
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"
MAX_TRIES = 200  # subschemas compiled by themselves to find the one that an error is about


def translate(asked: StructuredOutputs, vocabulary: Vocabulary) -> str:
    """The grammar, compiled once to see that it can be. GrammarError if it cannot."""
    return _Translation(asked, vocabulary).source()


class _Translation:
    def __init__(self, asked: StructuredOutputs, vocabulary: Vocabulary) -> None:
        from llguidance import LLMatcher

        self.asked, self.vocabulary, self.library = asked, vocabulary, LLMatcher
        self.schemas: list[tuple[str, Any]] = []  # (path, prepared schema) of every schema in the request

    def source(self) -> str:
        asked = self.asked
        match asked.kind:
            case "json_object":
                found = self._json({"type": "object"})
            case "json":
                found = self._json(self._schema(self._parse(asked.json), ""))
            case "regex":
                assert asked.regex is not None
                found = self.library.grammar_from_lark(f"start: /{lark_regex(asked.regex)}/")
            case "choice":
                options = " | ".join(json.dumps(text, ensure_ascii=False) for text in asked.choice or ())
                found = self.library.grammar_from_lark(f"start: {options}")
            case "grammar":
                assert asked.grammar is not None
                found = self.library.grammar_from_lark(self._lark(asked.grammar))
            case _:
                found = self._tags()
        error = self.vocabulary.fault(found)
        if error:
            path, message = self._locate(error)
            raise GrammarError(message, path, "grammar_too_complex" if too_complex(error) else None)
        return found

    def _parse(self, text: Any) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise GrammarError("it is not valid JSON") from None

    def _schema(self, schema: Any, path: str) -> Any:
        try:
            found = prepare(schema, close_objects=self.asked.disable_additional_properties)
        except GrammarError as error:
            error.path = f"{path}.{error.path}".strip(".").replace(".[", "[")
            raise
        if found is False:
            raise GrammarError("no value matches the schema false", path)
        found = {} if found is True else found
        self.schemas.append((path, found))
        return found

    def _options(self) -> dict[str, Any]:
        flexible = not self.asked.disable_any_whitespace
        found: dict[str, Any] = {"lenient": False, "coerce_one_of": False, "whitespace_flexible": flexible}
        if flexible:
            found["whitespace_pattern"] = self.asked.whitespace_pattern or WHITESPACE
        return found

    def _json(self, schema: Any) -> str:
        found: str = self.library.grammar_from_json_schema(json.dumps(schema), overrides=self._options())  # type: ignore[arg-type]
        return found

    def _lark(self, text: str) -> str:
        from llguidance.gbnf_to_lark import any_to_lark

        try:
            found: str = any_to_lark(text)
        except Exception as error:  # the library raises no narrower class
            raise GrammarError(f"the grammar cannot be read: {str(error)[:200]}") from None
        return found

    def _tags(self) -> str:
        def schema(value: Any, path: str) -> str:
            return json.dumps({**self._schema(value, path), "x-guidance": self._options()}, ensure_ascii=False)

        tag = self._parse(self.asked.structural_tag)
        return TagGrammar(schema, lark_regex, self._lark, self.vocabulary.special).source(tag)

    def _locate(self, error: str) -> tuple[str, str]:
        """The path that the library's message is about, which it does not tell itself, and the message in short."""
        message = error.strip().splitlines()[-1] if error.startswith("regex parse error") else error.split("\n")[0]
        message = message.removeprefix("error: ")[:300]
        places = [(root, path, sub) for root, schema in self.schemas for path, sub in subschemas(schema)]
        for root, path, sub in places[: -MAX_TRIES - 1 : -1]:
            definitions = {
                k: v for r, s in self.schemas if r == root for k, v in s.items() if k in ("$defs", "definitions")
            }
            if self.vocabulary.fault(self._json({**definitions, **sub})) == error:
                return ".".join(
                    part for part in (root, step(path, blame(error)) if blame(error) else path) if part
                ), message
        return "", message


def lark_regex(pattern: str) -> str:
    r"""The pattern as it stands between slashes, where \d and \w are ASCII as they are in JSON schemas."""
    from llguidance import regex_to_lark

    return regex_to_lark(whole(pattern), "dw")


def whole(pattern: str) -> str:
    """The pattern without the anchors that say what is so anyway: it matches all of the answer."""
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2 == 1:
        pattern = pattern[:-1]
    return f"(?:{pattern})" if "|" in pattern else pattern


def too_complex(error: str) -> bool:
    return any(
        word in error
        for word in ("too big", "too large", "too complex", "too many", "precomputation", "fuel", "limit", "nested")
    )

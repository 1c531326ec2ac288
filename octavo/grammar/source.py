"""From `StructuredOutputs` to a grammar of llguidance, and its verdict on it.

All of this works on what a stranger wrote, so it runs where it may be killed: see `octavo.grammar.process`.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from octavo.core.structured import StructuredOutputs
from octavo.grammar.endless import prune
from octavo.grammar.quoted import quoted
from octavo.grammar.schema import GrammarError, blame, prepare, step, subschemas
from octavo.grammar.tags import TagGrammar

if TYPE_CHECKING:
    from octavo.grammar.vocabulary import Vocabulary

# Between the tokens of JSON. A model that is fond of spaces would otherwise never get to the next token.
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"
# The library would fix how a text is cut into tokens wherever only one text may follow. It costs time in each step that
# grows with that text, and the model knows better.
HEADER = '%llguidance {"no_forcing": true}'
_DIRECTIVE = re.compile(r"^[ \t]*%llguidance\b.*$", re.MULTILINE)
MAX_TRIES = 200  # subschemas compiled by themselves to find the one that an error is about


def translate(asked: StructuredOutputs, vocabulary: Vocabulary) -> str:
    """The grammar in the library's Lark, compiled once to see that it can be. GrammarError if it cannot."""
    return _Translation(asked, vocabulary).source()


class _Translation:
    def __init__(self, asked: StructuredOutputs, vocabulary: Vocabulary) -> None:
        self.asked, self.vocabulary = asked, vocabulary
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
                found = lark(f"start: /{lark_regex(asked.regex)}/")
            case "choice":
                found = lark(
                    "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in asked.choice or ())
                )
            case "grammar":
                assert asked.grammar is not None
                found = self._grammar(asked.grammar)
            case _:
                tag = self._parse(asked.structural_tag)
                parts = TagGrammar(self._body, lark_regex, self._grammar, self.vocabulary.special)
                found = parts.source(tag)
        error = self.vocabulary.fault(found)
        if error:
            raise GrammarError(error, self._locate(error), "grammar_too_complex" if too_complex(error) else None)
        return found

    def _parse(self, text: Any) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise GrammarError("it is not valid JSON") from None

    def _schema(self, schema: Any, path: str) -> Any:
        try:
            found = prune(prepare(schema, close_objects=self.asked.disable_additional_properties))
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
        return lark(f"start: %json {self._with_options(schema)}")

    def _body(self, schema: Any, path: str) -> str:
        return self._with_options(self._schema(schema, path))

    def _with_options(self, schema: dict[str, Any]) -> str:
        return json.dumps({**schema, "x-guidance": self._options()}, ensure_ascii=False)

    def _grammar(self, text: str, path: str = "", quote: bool = False) -> str:
        """A user's grammar in Lark; `quote`: of what JSON writes for its texts."""
        from llguidance.gbnf_to_lark import any_to_lark

        try:
            found: str = any_to_lark(text)
        except Exception as error:  # the library raises no narrower class
            raise GrammarError(f"the grammar cannot be read: {str(error)[:200]}", path) from None
        found = _DIRECTIVE.sub("", found)
        try:
            found = lark(quoted(found) if quote else found)
        except GrammarError as error:
            error.path = path
            raise
        if path and (fault := self.vocabulary.fault(found)):
            raise GrammarError(fault, path, "grammar_too_complex" if too_complex(fault) else None)
        return found

    def _locate(self, error: str) -> str:
        """The path that the library's message is about, which it does not tell itself."""
        places = [(root, path, sub) for root, schema in self.schemas for path, sub in subschemas(schema)]
        for root, path, sub in places[: -MAX_TRIES - 1 : -1]:
            definitions = {
                k: v for r, s in self.schemas if r == root for k, v in s.items() if k in ("$defs", "definitions")
            }
            if self.vocabulary.fault(self._json({**definitions, **sub})) == error:
                path = f"{root}.{path}" if root and path else root or path
                return step(path, blame(error)) if blame(error) else path
        return ""


def lark(rules: str) -> str:
    return f"{HEADER}\n{rules}"


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

"""Structural tags as a Lark grammar: free text in which what stands between tags has a form.

Both ways of writing them are taken: {"structures": [{"begin", "schema", "end"}], "triggers": […]}, and {"format": …}
with the types const_string, json_schema, regex, grammar, any_text, sequence, or, tag, triggered_tags and
tags_with_separator. A special token of the vocabulary in a tag stands for that token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from octavo.grammar.schema import MAX_DEPTH, GrammarError, step

ANY = r"/(.|\n)*/"


class TagGrammar:
    """Writes the rules of one structural tag. `schema` gives the `%json` body of a schema at a path, `regex` a pattern
    as it stands between slashes, `grammar` one at a path as Lark, perhaps quoted; `special` maps special tokens to
    their ids."""

    def __init__(
        self,
        schema: Callable[[Any, str], str],
        regex: Callable[[str], str],
        grammar: Callable[[str, str, bool], str],
        special: dict[str, int],
    ) -> None:
        self._schema, self._regex, self._grammar, self._special = schema, regex, grammar, special
        names = sorted(special, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        self._rules: list[str] = []
        self._grammars: list[dict[str, str]] = []

    def source(self, tag: Any) -> str:
        """The grammar, as the library takes it."""
        if not isinstance(tag, dict):
            raise GrammarError("a structural tag must be an object")
        start = self._legacy(tag) if "structures" in tag else self._node(tag.get("format"), "format", 0)
        lark = "\n".join(['%llguidance {"no_forcing": true}', f"start: {start}", *self._rules])
        return json.dumps({"grammars": [{"lark_grammar": lark}, *self._grammars]})

    def _legacy(self, tag: dict[str, Any]) -> str:
        structures = self._list(tag, "structures", "")
        tags = []
        for i, structure in enumerate(structures):
            here = step("structures", i)
            if not isinstance(structure, dict) or "schema" not in structure:
                raise GrammarError("a structure must be an object with begin, schema and end", here)
            content = {"type": "json_schema", "json_schema": structure["schema"]}
            tags.append({"begin": structure.get("begin"), "content": content, "end": structure.get("end", "")})
        return self._triggered({"triggers": tag.get("triggers"), "tags": tags}, "", "structures", 0, "schema")

    def _node(self, node: Any, path: str, depth: int) -> str:
        """The expression of a part."""
        if depth > MAX_DEPTH:
            raise GrammarError(f"the structural tag is more than {MAX_DEPTH} levels deep", path, "grammar_too_complex")
        kind = node.get("type") if isinstance(node, dict) else None
        match kind:
            case "const_string":
                return self._literal(self._text(node, "value", path)) or '""'
            case "json_schema":
                return self._rule("%json " + self._schema(node.get("json_schema"), step(path, "json_schema")))
            case "regex":
                return self._rule(f"/{self._regex(self._text(node, 'pattern', path))}/")
            case "grammar":
                name = f"g{len(self._grammars)}"
                lark = self._grammar(self._text(node, "grammar", path), path, node.get("quoted") is True)
                self._grammars.append({"name": name, "lark_grammar": lark})
                return "@" + name
            case "any_text":
                return self._rule(ANY)
            case "sequence":
                return self._sequence(node, path, depth)
            case "or":
                parts = self._list(node, "elements", path)
                found = [self._node(part, step(step(path, "elements"), i), depth + 1) for i, part in enumerate(parts)]
                return f"({' | '.join(found)})"
            case "tag":
                return self._tag(node, path, depth)
            case "triggered_tags":
                return self._triggered(node, path, step(path, "tags"), depth, "content")
            case "tags_with_separator":
                return self._separated(node, path, depth)
        raise GrammarError(f"a format of the type {kind!r} is not supported", step(path, "type"))

    def _sequence(self, node: dict[str, Any], path: str, depth: int) -> str:
        parts, at = self._list(node, "elements", path), step(path, "elements")
        for i, part in enumerate(parts[:-1]):
            if isinstance(part, dict) and part.get("type") in ("any_text", "triggered_tags"):
                raise GrammarError("free text has no end here: put it into a tag, or last", step(at, i))
        return " ".join(self._node(part, step(at, i), depth + 1) for i, part in enumerate(parts))

    def _tag(self, tag: Any, path: str, depth: int, skip: int = 0, content: str = "content") -> str:
        """begin, content, end, without the first `skip` characters of begin. Text in it ends where `end` begins."""
        begin, end = self._text(tag, "begin", path)[skip:], self._text(tag, "end", path)
        inner = tag.get("content")
        if isinstance(inner, dict) and inner.get("type") == "any_text" and end:
            body = self._up_to_special(end)
            if body is None:
                body = self._rule(ANY, f"[suffix={json.dumps(end, ensure_ascii=False)}]")
            return f"{self._literal(begin)} {body}".strip()
        body = self._node(inner, step(path, content), depth + 1)
        return " ".join(part for part in (self._literal(begin), body, self._literal(end)) if part)

    def _triggered(self, node: dict[str, Any], path: str, at: str, depth: int, content: str) -> str:
        """Free text until a trigger comes, then one of the tags that begin with it, then free text again."""
        tags, triggers = self._list(node, "tags", path), self._list(node, "triggers", path)
        calls: dict[str, list[str]] = {}
        whole = []
        for i, tag in enumerate(tags):
            here = step(at, i)
            begin = self._text(tag, "begin", here)
            trigger = next((t for t in triggers if isinstance(t, str) and t and begin.startswith(t)), None)
            if trigger is None:
                raise GrammarError("begin does not start with one of the triggers", step(here, "begin"))
            calls.setdefault(trigger, []).append(self._tag(tag, here, depth, len(trigger), content) or '""')
            if node.get("at_least_one"):
                whole.append(self._tag(tag, here, depth, 0, content))
        found = []
        for trigger, rests in calls.items():
            options = "(" + " | ".join(rests) + ")"
            announced = self._up_to_special(trigger)
            if announced is None:
                announced = self._rule(f"{ANY} {self._literal(trigger)}", "[lazy]")
            found.append(f"{announced} {options}")
        some = self._rule(" | ".join(found))
        first = f"({' | '.join(whole)})"
        if node.get("stop_after_first"):
            return first if whole else f"({some} | {self._rule(ANY)})"
        return f"{first if whole else ''} {some}* {self._rule(ANY)}".strip()

    def _separated(self, node: dict[str, Any], path: str, depth: int) -> str:
        at = step(path, "tags")
        tags = [self._tag(tag, step(at, i), depth) for i, tag in enumerate(self._list(node, "tags", path))]
        one = self._rule(" | ".join(tags))
        found = (
            one
            if node.get("stop_after_first")
            else f"{one} ({self._literal(self._text(node, 'separator', path))} {one})*"
        )
        return found if node.get("at_least_one") else f"({found})?"

    def _up_to_special(self, mark: str) -> str | None:
        """Any text up to a mark with a special token in it, and the mark; None if it has none. No text can hold such a
        token: so what stands before it in the mark is the end of that text."""
        parts = self._split.split(mark, maxsplit=1) if self._split is not None else [mark]
        if len(parts) == 1:
            return None
        text = self._rule(ANY[:-1] + re.escape(parts[0]).replace("/", r"\/") + "/")
        return f"{text} {self._literal(mark[len(parts[0]) :])}"

    def _rule(self, body: str, attributes: str = "") -> str:
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name

    def _literal(self, text: str) -> str:
        """The text as Lark writes it, with special tokens as tokens."""
        parts = self._split.split(text) if self._split else [text]
        return " ".join(
            f"<[{self._special[part]}]>" if part in self._special else json.dumps(part, ensure_ascii=False)
            for part in parts
            if part
        )

    def _text(self, node: Any, name: str, path: str) -> str:
        value = node.get(name) if isinstance(node, dict) else None
        if not isinstance(value, str):
            raise GrammarError(f"{name} must be a text", step(path, name))
        return value

    def _list(self, node: Any, name: str, path: str) -> list[Any]:
        value = node.get(name) if isinstance(node, dict) else None
        if not isinstance(value, list) or not value:
            raise GrammarError(f"{name} must be a list that is not empty", step(path, name))
        return value

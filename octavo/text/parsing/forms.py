"""The pieces of structural tags (see `octavo.grammar.tags`), in which formats say what calls look like.

`OutputParser.form` makes the grammar of a whole answer of them. It is plain data, and all that it allows is read by the
parser as calls of the tools with arguments of their schemas.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.core.structured import StructuredOutputs

Form = dict[str, Any]
ANY_TEXT: Form = {"type": "any_text"}
Tool = Mapping[str, Any]  # a function that may be called: {"name": …, "description": …, "parameters": JSON schema}


@dataclass(frozen=True, slots=True)
class Demand:
    """`required`: the answer is calls and nothing else; if not, it may be calls, and those of strict tools are held to
    their schemas. `template` is the model's chat template, which shows which variant of a format it knows. `params`
    says where in the request the schema of a tool stands, for errors."""

    required: bool
    parallel: bool
    template: str
    params: Mapping[str, str] = field(default_factory=dict)

    def holds(self, tool: Tool) -> bool:
        """Its arguments are those of its schema."""
        return self.required or bool(tool.get("strict"))

    def schema(self, tool: Tool) -> Any:
        """The schema of a tool's arguments."""
        return (self.holds(tool) and tool.get("parameters")) or {"type": "object"}

    def arguments(self, tool: Tool) -> Form:
        if "grammar" in tool:
            return sequence(text('{"input": '), self.input(tool), text("}"))
        return schema(self.schema(tool), self.params.get(tool["name"], ""))

    def input(self, tool: Tool) -> Form:
        """The text of a custom tool that has a grammar, as a JSON string."""
        syntax, definition = tool["grammar"]
        param = self.params.get(tool["name"], "")
        if syntax == "regex":
            return schema({"type": "string", "pattern": f"^(?:{definition})$"}, param)
        return sequence(text('"'), grammar(definition, param, quoted=True), text('"'))

    def bare_input(self, tool: Tool) -> Form:
        """The same, as it is."""
        syntax, definition = tool["grammar"]
        return regex(definition) if syntax == "regex" else grammar(definition, self.params.get(tool["name"], ""))


def text(value: str) -> Form:
    return {"type": "const_string", "value": value}


def regex(pattern: str) -> Form:
    return {"type": "regex", "pattern": pattern}


def grammar(source: str, param: str = "", quoted: bool = False) -> Form:
    """Text of a grammar, perhaps as JSON writes it between quotes."""
    found: Form = {"type": "grammar", "grammar": source, "quoted": quoted}
    return {**found, "param": param} if param else found


def schema(value: Any, param: str = "") -> Form:
    """JSON. Errors of the schema are reported as the request's `param`, if there is one."""
    return {"type": "json_schema", "json_schema": value, **({"param": param} if param else {})}


def property_form(whole: Mapping[str, Any], name: str, param: str) -> Form:
    """JSON of one property of a schema, which may refer to what the schema defines."""
    value = whole["properties"][name]
    if isinstance(value, Mapping):
        value = {**value, **{key: whole[key] for key in ("$defs", "definitions") if key in whole}}
    return schema(value, f"{param}.properties.{name}" if param else "")


def tag(begin: str, content: Form, end: str) -> Form:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def free(begin: str, end: str) -> Form:
    """Any text between two marks."""
    return tag(begin, ANY_TEXT, end)


def sequence(*elements: Form) -> Form:
    return {"type": "sequence", "elements": list(elements)}


def either(*elements: Form) -> Form:
    return {"type": "or", "elements": list(elements)}


def optional(form: Form) -> Form:
    return either(form, text(""))


def several(tags: Iterable[Form], separator: str, parallel: bool) -> Form:
    """One of the tags, or several if that is allowed."""
    return {
        "type": "tags_with_separator",
        "tags": list(tags),
        "separator": separator,
        "at_least_one": True,
        "stop_after_first": not parallel,
    }


def content_form(asked: StructuredOutputs) -> Form | None:
    """What an answer must match, as a part of a structural tag; None if it cannot be a part, or be read."""
    try:
        match asked.kind:
            case "json":
                assert isinstance(asked.json, str)
                return schema(json.loads(asked.json), asked.param)
            case "json_object":
                return schema({"type": "object"})
            case "regex":
                return regex(str(asked.regex))
            case "choice":
                return either(*map(text, asked.choice or ()))
            case "grammar":
                return grammar(str(asked.grammar))
            case _:
                assert isinstance(asked.structural_tag, str)
                found = json.loads(asked.structural_tag)
                return found.get("format") if isinstance(found, dict) else None
    except (ValueError, RecursionError):
        return None


def triggers(calls: Form, openers: Iterable[str]) -> list[str]:
    """Those of the openers that the calls begin with."""
    return [opener for opener in openers if any(each["begin"].startswith(opener) for each in _tags(calls))]


def triggered(calls: Form, triggers: list[str], parallel: bool) -> Form:
    """Free text, with calls wherever one of the triggers stands."""
    return {
        "type": "triggered_tags",
        "triggers": triggers,
        "tags": _tags(calls),
        "stop_after_first": not parallel,
    }


def _tags(calls: Form) -> list[Form]:
    found: list[Form] = calls["tags"] if calls["type"] == "tags_with_separator" else [calls]
    return found

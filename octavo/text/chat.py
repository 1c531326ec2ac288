"""Chat templates: from messages to the text that a model was trained to see. The text equals transformers'.

A template never sees anything but plain JSON data. The output may be 16 times as long as the strings that go in (JSON
escapes and tools that a template prints twice) and 1 MiB more; the work is bounded too (see `octavo.text.sandbox`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes

from octavo.core.errors import RequestError
from octavo.text import sandbox

Message = Mapping[str, Any]

_LIMIT_FACTOR = 16
_LIMIT_EXTRA = 1 << 20
_MAX_DEPTH = 64
_MAX_COMPLAINT = 500
_REASONING = ("reasoning_content", "thinking", "reasoning")
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
# Put at the end of the message to be continued, to find it in the output. The space shows whether the template strips.
_END_MARK = "\ue000end of the message to continue\ue000 "


@dataclass(frozen=True, slots=True)
class _Compiled:
    template: jinja2.Template
    loops_over_parts: bool  # the template takes message content apart: it wants a list of parts
    takes_strings: bool  # … but asks whether the content is a string first
    prints_arguments: bool  # the arguments of calls must be JSON text already: the template does not make it of them


class ChatTemplate:
    """The chat templates of a model by name; the ordinary one is "default"."""

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self.templates = dict(templates)
        self.special_tokens = dict(special_tokens)

    def __bool__(self) -> bool:
        return bool(self.templates)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template: str | None = None,
        content_format: str = "auto",
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for `messages`. `template` is the name of one of the model's templates or a template itself. It
        gets the content of messages in the form that it was written for, unless `content_format` is "string" or
        "openai" (a list of parts).

        `variables` are what clients send as chat_template_kwargs: a mapping, not keyword arguments, so that no client
        can name one of ours. RequestError if these messages cannot be rendered.
        """
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "continue_final_message needs add_generation_prompt to be false: the final message is to be continued, "
                "not followed by a new one",
                "continue_final_message",
            )
        compiled = _compile(self._choose(template, tools), "messages" if template is None else "chat_template")
        if content_format != "auto":
            compiled = replace(compiled, loops_over_parts=content_format == "openai", takes_strings=False)
        plain = _Plain()
        chat = plain.messages(messages, compiled)
        ours = {
            "messages": chat,
            "tools": plain.array(tools, "tools"),
            "documents": plain.array(documents, "documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        theirs = plain.object(variables or {}, "chat_template_kwargs")
        for name in theirs.keys() & {*ours, "chat_template", "continue_final_message"}:
            raise RequestError(f"{name} cannot be set in chat_template_kwargs", f"chat_template_kwargs.{name}")
        final = _mark_end(chat[-1]) if continue_final_message else ""
        limit = _LIMIT_EXTRA + _LIMIT_FACTOR * plain.characters
        text = _render(compiled.template, {**self.special_tokens, **theirs, **ours}, limit)
        return _cut_at_mark(text, final) if continue_final_message else text

    def _choose(self, template: str | None, tools: object) -> str:
        if template is not None:
            return self.templates.get(template, template)
        if not self.templates:
            raise RequestError(
                "this model has no chat template: send a prompt to /v1/completions, or start the server with one",
                "messages",
            )
        if tools is not None and "tool_use" in self.templates:
            return self.templates["tool_use"]
        if "default" not in self.templates:
            names = ", ".join(sorted(self.templates))
            raise RequestError(f"choose one of the model's chat templates: {names}", "chat_template")
        return self.templates["default"]


@lru_cache(maxsize=64)
def _compile(source: str, param: str) -> _Compiled:
    try:
        tree = sandbox.parse(source)
        found = *_content_format(tree), _prints_arguments(tree)  # compiling rewrites the tree
        return _Compiled(sandbox.compile_template(tree), *found)
    except jinja2.TemplateSyntaxError as error:
        raise RequestError(f"the chat template has an error in line {error.lineno}: {error.message}", param) from error
    except (jinja2.TemplateError, RecursionError, ValueError, SyntaxError, MemoryError) as error:
        raise RequestError("the chat template cannot be compiled", param) from error


def _render(template: jinja2.Template, variables: dict[str, Any], limit: int) -> str:
    try:
        return sandbox.render(template, variables, limit)
    except sandbox.RaisedByTemplate as error:
        message = f"the model's chat template refuses these messages: {error.message}"
        raise RequestError(message[:_MAX_COMPLAINT], "messages") from error
    except sandbox.OverBudget as error:
        raise RequestError(f"the chat template was stopped: {error.message}", "messages") from error
    except jinja2.exceptions.SecurityError as error:
        raise RequestError("the chat template does something that is not allowed", "messages") from error
    except jinja2.UndefinedError as error:
        message = f"the chat template asks for something that is not there: {error.message}"
        raise RequestError(message[:_MAX_COMPLAINT], "messages") from error
    except Exception as error:  # templates run operations on whatever the messages hold
        reason = "it recurses too deeply" if isinstance(error, RecursionError) else type(error).__name__
        raise RequestError(f"the chat template cannot render these messages ({reason})", "messages") from error


def _mark_end(message: dict[str, Any]) -> str:
    """Mark where the message to be continued ends; returns its text."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _END_MARK
        return content
    for part in reversed(content if isinstance(content, list) else []):
        if isinstance(part.get("text"), str):
            text: str = part["text"]
            part["text"] = text + _END_MARK
            return text
    raise RequestError("continue_final_message is set, but the final message has no text", "continue_final_message")


def _cut_at_mark(text: str, final: str) -> str:
    end = text.rfind(_END_MARK.strip())
    if end < 0 or final.strip() not in text:
        raise RequestError(
            "the final message cannot be continued: the chat template does not print it whole", "continue_final_message"
        )
    # Without the mark's own space the template strips messages, so the rest of the text must be stripped likewise.
    return text[:end] if text.startswith(_END_MARK, end) else text[:end].rstrip()


class _Plain:
    """Rebuilds what a request brings as plain JSON data, and counts its characters."""

    def __init__(self) -> None:
        self.characters = 0

    def messages(self, messages: Sequence[Message], compiled: _Compiled) -> list[dict[str, Any]]:
        if not isinstance(messages, (list, tuple)) or not messages:
            raise RequestError("messages must be a list of at least one message", "messages")
        chat = []
        for i, message in enumerate(messages):
            name = f"messages[{i}]"
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise RequestError(f"{name} must be an object with a role", name)
            # Templates ask whether a key is there: clients that send null mean that it is not.
            plain = {key: value for key, value in self.object(message, name).items() if value is not None}
            if "content" in plain:
                plain["content"] = _content(plain["content"], compiled, f"{name}.content")
            chat.append(_add_reasoning(plain if compiled.prints_arguments else _parse_arguments(plain)))
        return chat

    def array(self, values: Sequence[Any] | None, name: str) -> list[dict[str, Any]] | None:
        if values is None:
            return None
        if not isinstance(values, (list, tuple)):
            raise RequestError(f"{name} must be a list of objects", name)
        return [self.object(value, f"{name}[{i}]") for i, value in enumerate(values)]

    def object(self, value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise RequestError(f"{name} must be an object", name)
        plain: dict[str, Any] = self._value(value, name, _MAX_DEPTH)
        return plain

    def _value(self, value: Any, name: str, depth: int) -> Any:
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, str):
            self.characters += len(value)
            return str(value)
        if depth == 0:
            raise RequestError(f"{name} is nested too deeply", name)
        if isinstance(value, Mapping):
            return {self._value(key, name, 0): self._value(item, name, depth - 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._value(item, name, depth - 1) for item in value]
        raise RequestError(f"{name} holds a {type(value).__name__}, which is not JSON", name)


def _content(content: Any, compiled: _Compiled, name: str) -> Any:
    """Content as the template wants it: one string, or a list of parts."""
    if isinstance(content, str):
        wrap = compiled.loops_over_parts and not compiled.takes_strings
        return [{"type": "text", "text": content}] if wrap else content
    if not isinstance(content, list):
        raise RequestError(f"{name} must be a string or a list of parts", name)
    texts = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind = part.get("type", "text") if isinstance(part, dict) else None
        text = part.get(_TEXT_PARTS.get(kind)) if isinstance(kind, str) else None
        if not isinstance(text, str):
            raise RequestError(f"{name}[{i}] must be a text part: this model takes text only", f"{name}[{i}]")
        texts.append(text)
    if compiled.loops_over_parts:
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(texts)


def _parse_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Clients send back the arguments of tool calls as they got them, as JSON text: templates want objects."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                arguments = json.loads(function["arguments"] or "{}")
            except (ValueError, RecursionError):
                continue  # what a model wrote need not be JSON: the template gets the text
            if isinstance(arguments, dict):
                function["arguments"] = arguments
    return message


def _add_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Reasoning goes by several names: templates find it under the common one, and gpt-oss's under its own."""
    reasoning = next((message[key] for key in _REASONING if key in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _prints_arguments(tree: nodes.Template) -> bool:
    """Does the template print the arguments of calls as they are, and nowhere look into them or write them as JSON?

    Arguments are followed through {% set %}.
    """
    names: set[str] = set()

    def is_arguments(node: nodes.Node | None) -> bool:
        if isinstance(node, nodes.Name):
            return node.name in names
        if isinstance(node, nodes.Getattr):
            return node.attr == "arguments"
        return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "arguments"

    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and is_arguments(assign.node):
            names.add(assign.target.name)

    def nodes_of(*kinds: type[nodes.Node]) -> Iterator[Any]:
        return (node for kind in kinds for node in tree.find_all(kind))

    used = [node.node for node in nodes_of(nodes.Filter, nodes.Test, nodes.Getitem, nodes.Getattr)]
    used += [node.iter for node in nodes_of(nodes.For)]
    printed = (part for node in nodes_of(nodes.Output, nodes.Concat, nodes.Add) for part in node.iter_child_nodes())
    return any(map(is_arguments, printed)) and not any(map(is_arguments, used))


def _content_format(tree: nodes.Template) -> tuple[bool, bool]:
    """Does the template loop over the content of a message, and does it ask whether the content is a string?

    Content is followed through {% set %} and macro parameters.
    """
    names: set[str] = set()
    macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}

    def is_content(node: nodes.Node | None) -> bool:
        while isinstance(node, nodes.Filter):
            node = node.node
        if isinstance(node, nodes.Name):
            return node.name in names
        if isinstance(node, nodes.Getattr):
            return node.attr == "content"
        if isinstance(node, nodes.Getitem):
            return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
        return False

    found = -1
    while found != len(names):
        found = len(names)
        for assign in tree.find_all(nodes.Assign):
            if isinstance(assign.target, nodes.Name) and is_content(assign.node):
                names.add(assign.target.name)
        for call in tree.find_all(nodes.Call):
            macro = macros.get(call.node.name) if isinstance(call.node, nodes.Name) else None
            if macro is not None:
                names.update(param.name for param, arg in zip(macro.args, call.args, strict=False) if is_content(arg))
    loops = any(is_content(loop.iter) for loop in tree.find_all(nodes.For))
    asks = any(test.name == "string" and is_content(test.node) for test in tree.find_all(nodes.Test))
    return loops, asks

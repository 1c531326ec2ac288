"""From a request to /v1/responses to one of chat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from octavo.core.errors import RequestError
from octavo.server.responses import protocol as p

LOGPROBS = "message.output_text.logprobs"
# The fields of a chat request by what stands for them here.
NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}
_SAME = (
    *("model", "stream", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "seed", "stop", "ignore_eos", "priority", "cache_salt", "chat_template_kwargs"),
    *("parallel_tool_calls", "structured_outputs", "deadline_ms"),
)
# Fields of OpenAI's that would change the answer, and that we do not have.
_REFUSED = ("conversation", "prompt", "context_management")


def to_chat(request: p.ResponsesRequest, tree: dict[str, Any], items: Sequence[p.InputItem]) -> dict[str, Any]:
    """The fields of the chat request that goes on after `items`: what came before, and this input."""
    for name in _REFUSED:
        if tree.get(name):
            raise RequestError(f"{name} is not supported by this server.", name)
    chat: dict[str, Any] = {name: value for name in _SAME if (value := getattr(request, name)) is not None}
    chat["messages"] = messages(items)
    if request.instructions is not None:
        chat["messages"].insert(0, {"role": "system", "content": request.instructions})
    if request.max_output_tokens is not None:
        chat["max_tokens"] = request.max_output_tokens
    if request.top_logprobs is not None or LOGPROBS in (request.include or ()):
        chat["logprobs"], chat["top_logprobs"] = True, request.top_logprobs or 0
    if request.reasoning is not None and request.reasoning.effort is not None:
        chat["reasoning_effort"] = request.reasoning.effort
    _tools(request, chat)
    return chat


def unused(request: p.ResponsesRequest) -> list[str]:
    """What was asked for and has no effect."""
    found = [f"include.{name}" for name in request.include or () if name != LOGPROBS]
    if request.reasoning is not None and request.reasoning.summary is not None:
        found.append("reasoning.summary")
    if request.text is not None and request.text.verbosity is not None:
        found.append("text.verbosity")
    if request.stream_options is not None and request.stream_options.include_obfuscation:
        found.append("stream_options.include_obfuscation")
    return found


def _tools(request: p.ResponsesRequest, chat: dict[str, Any]) -> None:
    if request.tools:
        chat["tools"] = [_tool(msgspec.to_builtins(tool)) for tool in request.tools]
    choice = request.tool_choice
    if isinstance(choice, p.NamedTool | p.NamedCustom):
        chat["tool_choice"] = _named(choice)
    elif isinstance(choice, p.AllowedTools):
        allowed = {"mode": choice.mode, "tools": [_named(tool) for tool in choice.tools]}
        chat["tool_choice"] = {"type": "allowed_tools", "allowed_tools": allowed}
    elif choice is not None:
        chat["tool_choice"] = choice
    form = request.text.format if request.text is not None else p.PlainFormat()
    if isinstance(form, p.JsonFormat):
        chat["response_format"] = {"type": "json_object"}
    elif isinstance(form, p.SchemaFormat):
        schema = {k: v for k, v in msgspec.to_builtins(form).items() if k != "type" and v is not None}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}


def _tool(given: dict[str, Any]) -> dict[str, Any]:
    kind = given.pop("type")
    found = {key: value for key, value in given.items() if value is not None}
    if kind == "custom" and found["format"]["type"] == "grammar":
        grammar = found["format"]
        found["format"] = {"type": grammar.pop("type"), "grammar": grammar}
    return {"type": kind, kind: found}


def _named(tool: p.NamedTool | p.NamedCustom) -> dict[str, Any]:
    kind = "custom" if isinstance(tool, p.NamedCustom) else "function"
    return {"type": kind, kind: {"name": tool.name}}


def read_input(request: p.ResponsesRequest, find: Callable[[str, str], p.InputItem]) -> list[p.InputItem]:
    """The items of a request, checked; `find` gives those that are only referred to."""
    given = request.input
    if isinstance(given, str):
        if not given:
            raise RequestError("input must not be empty.", "input")
        return [p.InputItem(role="user", content=given)]
    if not given:
        raise RequestError("input must not be empty.", "input")
    found = []
    for i, item in enumerate(given):
        if item.type == "item_reference":
            item = find(_given(item, "id", f"input[{i}]"), f"input[{i}].id")
        for name in _NEEDED[item.type]:
            _given(item, name, f"input[{i}]")
        found.append(item)
    return found


_NEEDED: dict[str, tuple[str, ...]] = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "custom_tool_call": ("call_id", "name", "input"),
    "custom_tool_call_output": ("call_id", "output"),
    "reasoning": (),
}


def _given(item: p.InputItem, name: str, at: str) -> Any:
    value = getattr(item, name)
    if value is None:
        raise RequestError(f"{at}: an item of type {item.type} needs {name}.", f"{at}.{name}")
    return value


def messages(items: Sequence[p.InputItem]) -> list[dict[str, Any]]:
    """Chat messages: reasoning and calls that follow each other are one message of the assistant's."""
    found: list[dict[str, Any]] = []
    for i, item in enumerate(items):
        last = found[-1] if found and found[-1]["role"] == "assistant" else None
        if item.type in ("function_call_output", "custom_tool_call_output"):
            text = _text(item.output, f"input[{i}].output")
            found.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
        elif item.type == "message" and item.role != "assistant":
            found.append({"role": item.role, "content": _content(item.content, f"input[{i}].content")})
        else:
            if last is None or item.type == "reasoning" or (item.type == "message" and last.get("content") is not None):
                last = {"role": "assistant", "content": None}
                found.append(last)
            _say(last, item, f"input[{i}]")
    for message in found:
        if message["role"] == "assistant" and message["content"] is None and "tool_calls" not in message:
            message["content"] = ""
    return found


def _say(message: dict[str, Any], item: p.InputItem, at: str) -> None:
    if item.type == "message":
        message["content"] = _text(item.content, f"{at}.content")
    elif item.type == "reasoning":
        message["reasoning_content"] = _text(item.content or list(item.summary or ()), f"{at}.content")
    else:
        kind = "custom" if item.type == "custom_tool_call" else "function"
        said = {"input": item.input} if kind == "custom" else {"arguments": item.arguments}
        call = {"id": item.call_id, "type": kind, kind: {"name": item.name, **said}}
        message.setdefault("tool_calls", []).append(call)


def _text(content: Any, at: str) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in _content(content, at))


def _content(content: Any, at: str) -> Any:
    if isinstance(content, str):
        return content
    found = []
    for j, part in enumerate(content):
        match part:
            case p.InputText() | p.PastText() | p.PastReasoning() | p.Summary():
                found.append({"type": "text", "text": part.text})
            case p.PastRefusal():
                found.append({"type": "text", "text": part.refusal})
            case _:
                raise RequestError(f"{at}[{j}] must be text: this model takes text only.", f"{at}[{j}]")
    return found

"""From a request in Anthropic's words to one in chat's."""

from __future__ import annotations

import json
from typing import Any

from octavo.core.errors import RequestError
from octavo.server.messages import protocol as p

# The fields of a chat request by what stands for them here: errors and the header of ignored fields name ours.
NAMES = {
    "max_completion_tokens": "max_tokens",
    "parallel_tool_calls": "tool_choice",
    "reasoning_effort": "thinking",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "thinking_token_budget": "thinking.budget_tokens",
}
_SAME = (
    "model",
    "chat_template_kwargs",
    "temperature",
    "top_p",
    "top_k",
    "priority",
    "cache_salt",
    "stream",
    "deadline_ms",
)
_CHOICES = {p.ChooseAuto: "auto", p.ChooseAny: "required", p.ChooseNone: "none"}


def to_chat(request: p.CountRequest, ends_thinking: bool) -> tuple[dict[str, Any], list[str]]:
    """The fields of the chat request, and the names of those of ours that have no effect.

    A budget must be sent by who wants thinking at all: one that the model cannot keep is no reason to refuse it.
    """
    ignored: list[str] = []
    chat: dict[str, Any] = {name: value for name in _SAME if (value := getattr(request, name, None)) is not None}
    chat["messages"] = messages(request, ignored)
    if request.messages[-1].role == "assistant":  # it is to be continued
        chat["continue_final_message"] = True
    if isinstance(request, p.MessagesRequest):
        chat["max_tokens"] = request.max_tokens
        if request.stop_sequences:
            chat["stop"] = request.stop_sequences
    _tools(request, chat)
    _reasoning(request, chat, ignored, ends_thinking)
    return chat, ignored


def _tools(request: p.CountRequest, chat: dict[str, Any]) -> None:
    if request.tools:
        chat["tools"] = [{"type": "function", "function": _function(tool)} for tool in request.tools]
    choice = request.tool_choice
    if choice is None:
        return
    if isinstance(choice, p.ChooseTool):
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        chat["tool_choice"] = _CHOICES[type(choice)]
    if not isinstance(choice, p.ChooseNone) and choice.disable_parallel_tool_use:
        chat["parallel_tool_calls"] = False


def _function(tool: p.Tool) -> dict[str, Any]:
    found: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        found["description"] = tool.description
    if tool.strict is not None:
        found["strict"] = tool.strict
    return found


def _reasoning(request: p.CountRequest, chat: dict[str, Any], ignored: list[str], ends_thinking: bool) -> None:
    thinking, output = request.thinking, request.output_config or p.OutputConfig()
    if isinstance(thinking, p.ThinkingDisabled):
        chat["reasoning_effort"] = "none"
    elif output.effort is not None:
        chat["reasoning_effort"] = output.effort
    elif thinking is not None:
        chat["reasoning_effort"] = "medium"
    if isinstance(thinking, p.ThinkingEnabled | p.ThinkingAdaptive) and thinking.display == "omitted":
        chat["include_reasoning"] = False
    if isinstance(thinking, p.ThinkingEnabled):
        if ends_thinking:
            chat["thinking_token_budget"] = thinking.budget_tokens
        else:
            ignored.append("thinking.budget_tokens")
    if output.format is not None:
        schema = {"name": "output", "schema": output.format.schema, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}


def messages(request: p.CountRequest, ignored: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if request.system:
        system = request.system
        found.append({"role": "system", "content": system if isinstance(system, str) else _parts(system, "system")})
    for i, turn in enumerate(request.messages):
        if isinstance(turn.content, str):
            found.append({"role": turn.role, "content": turn.content})
        elif turn.role == "assistant":
            found.append(_assistant(turn.content, f"messages[{i}].content", ignored))
        else:
            found += _user(turn.role, turn.content, f"messages[{i}].content", ignored)
    return found


def _assistant(blocks: list[p.Block], name: str, ignored: list[str]) -> dict[str, Any]:
    """One message: its text, its reasoning, its calls."""
    found: dict[str, Any] = {"role": "assistant", "content": []}
    for j, block in enumerate(blocks):
        match block:
            case p.TextBlock():
                found["content"].append({"type": "text", "text": block.text})
            case p.ThinkingBlock():
                found["reasoning_content"] = found.get("reasoning_content", "") + block.thinking
            case p.RedactedThinkingBlock():  # only who wrote it can read it
                ignored.append(f"{name}[{j}]")
            case p.ToolUseBlock():
                arguments = json.dumps(block.input, ensure_ascii=False)
                call = {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}
                found.setdefault("tool_calls", []).append(call)
            case _:
                raise RequestError(f"{name}[{j}]: an assistant cannot say a block of this type.", f"{name}[{j}].type")
    texts = found["content"]
    found["content"] = "".join(part["text"] for part in texts) if texts else None
    if found["content"] is None and "tool_calls" not in found:
        found["content"] = ""
    return found


def _user(role: str, blocks: list[p.Block], name: str, ignored: list[str]) -> list[dict[str, Any]]:
    """The results of tools are messages of their own; the other blocks between them are one message each time."""
    found: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for j, block in enumerate(blocks):
        at = f"{name}[{j}]"
        if isinstance(block, p.ToolResultBlock):
            if parts:
                found.append({"role": role, "content": parts})
                parts = []
            given = block.content
            if block.is_error:
                ignored.append(f"{at}.is_error")
            text = given if isinstance(given, str) else "\n".join(part["text"] for part in _parts(given or [], at))
            found.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": text})
        else:
            parts += _parts([block], name, j)
    if parts or not found:
        found.append({"role": role, "content": parts or ""})
    return found


def _parts(blocks: Any, name: str, first: int = 0) -> list[dict[str, Any]]:
    """Blocks as the text parts of a chat message."""
    found = []
    for j, block in enumerate(blocks, first):
        match block:
            case p.TextBlock():
                text = block.text
            case p.ToolReferenceBlock():
                text = block.tool_name
            case p.DocumentBlock(source={"type": "text", "data": str(data)}):
                text = "\n".join(filter(None, (block.title, block.context, data)))
            case _:
                raise RequestError(f"{name}[{j}] must be text: this model takes text only.", f"{name}[{j}]")
        found.append({"type": "text", "text": text})
    return found

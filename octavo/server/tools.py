"""What a chat request says of tools, in OpenAI's newer and older fields, and how its answers are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octavo.core.errors import RequestError
from octavo.server.protocol import AllowedChoice, ChatRequest, NamedChoice, NamedFunction
from octavo.server.service import Service
from octavo.text.parsing.base import OutputParser, Tool


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of a request: as the chat template gets them, and as the functions that may be called."""

    shown: list[dict[str, Any]] | None = None
    functions: Sequence[Tool] = ()
    parallel: bool = True
    legacy: bool = False  # the call is answered as message.function_call


def toolbox(request: ChatRequest, tree: dict[str, Any], service: Service) -> Toolbox:
    """The tools of a request; RequestError if they cannot be had as it asks for them."""
    legacy = bool(request.functions)
    if legacy and request.tools:
        raise RequestError("functions is the older name of tools: send one of them.", "functions")
    shown = (
        [{"type": "function", "function": each} for each in tree["functions"]] if legacy else tree.get("tools") or []
    )
    names = [tool["function"]["name"] for tool in shown]
    param = "functions" if legacy else "tools"
    if len(set(names)) < len(names):
        raise RequestError(f"{param}: two of them have the same name.", param)
    allowed = _choose(request, names, service.server.enable_auto_tool_choice)
    shown = [tool for tool in shown if tool["function"]["name"] in allowed]
    if not shown:
        return Toolbox()
    if service.format.calls is None:
        raise RequestError(
            f"{param}: the model's chat template has no place for them, or nobody knows how this model writes calls; "
            "the server's flag --tool-call-parser can name a form.",
            param,
        )
    for name, tool in zip(names, shown, strict=False):
        if tool["function"].get("strict"):
            raise RequestError(f"{param}: strict, as {name} has it, is not supported by this server.", param)
    functions = [tool["function"] for tool in shown]
    return Toolbox(shown, functions, request.parallel_tool_calls is not False and not legacy, legacy)


def _choose(request: ChatRequest, names: Sequence[str], auto: bool) -> set[str]:
    """The functions that tool_choice, or function_call, leaves to be called."""
    param = "tool_choice"
    choice: str | NamedChoice | NamedFunction | AllowedChoice | None = request.tool_choice
    if request.function_call is not None:
        if choice is not None or request.tools:
            raise RequestError("function_call goes with functions, as tool_choice does with tools.", "function_call")
        param, choice = "function_call", request.function_call
    if choice is None or choice == "auto":
        if names and not auto:
            raise RequestError(f"{param} auto is off: this server has --no-enable-auto-tool-choice.", param)
        return set(names)
    if choice == "none":
        return set()
    if isinstance(choice, AllowedChoice):
        found, mode = {tool.function.name for tool in choice.allowed_tools.tools}, choice.allowed_tools.mode
    elif isinstance(choice, NamedChoice | NamedFunction):
        found, mode = {choice.function.name if isinstance(choice, NamedChoice) else choice.name}, "required"
    else:
        found, mode = set(names), "required"
    for name in sorted(found - {*names}):
        raise RequestError(f"{param} names {name}, which is none of the request's tools.", param)
    if not found:
        raise RequestError(f"{param} needs a tool to choose.", param)
    if mode == "required":
        raise RequestError(f"{param}: that a tool must be called is not supported by this server.", param)
    return found


def with_tool_calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The history with the older function_call and role function as the tool calls that chat templates know."""
    if not any(message.get("function_call") or message["role"] == "function" for message in messages):
        return messages
    found, last = [], "call_0"
    for i, message in enumerate(messages):
        message = dict(message)
        if call := message.pop("function_call", None):
            last = f"call_{i}"
            message["tool_calls"] = [{"id": last, "type": "function", "function": call}]
        if message["role"] == "function":
            message["role"], message["tool_call_id"] = "tool", last
        found.append(message)
    return found


class Reader:
    """How the answers to one request are read. `raw` answers must come with their special tokens, which are markers
    of the model's format; the parser leaves them out, unless the client wants to see them."""

    def __init__(self, service: Service, functions: Sequence[Tool], skip_special_tokens: bool | None) -> None:
        self._format = service.format
        self._functions = functions
        self.raw = self._format.parses(functions) and not self._format.markers.isdisjoint(service.special_tokens)
        self._hidden = frozenset[str]() if skip_special_tokens is False else service.special_tokens

    def parser(self, prompt: str) -> OutputParser | None:
        """For one answer; None if all of it is content."""
        return self._format.parser(self._functions, prompt, self._hidden if self.raw else frozenset())

"""What a chat request says of tools, in OpenAI's newer and older fields, and how its answers are read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.core.errors import RequestError
from octavo.core.params import SamplingParams
from octavo.core.structured import StructuredOutputs
from octavo.server.protocol import AllowedChoice, ChatRequest, CustomChoice, GrammarInput, NamedChoice, NamedFunction
from octavo.server.service import Service
from octavo.text.parsing.base import Demand, OutputParser, Tool
from octavo.text.parsing.custom import INPUT, as_function
from octavo.text.parsing.forms import content_form


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of a request: as the chat template gets them, and as the functions that may be called."""

    shown: list[dict[str, Any]] | None = None
    functions: Sequence[Tool] = ()
    required: bool = False
    parallel: bool = True
    legacy: bool = False  # the call is answered as message.function_call
    params: Mapping[str, str] = field(default_factory=dict)  # where in the request a function's schema stands
    customs: frozenset[str] = frozenset()  # the names of those whose input is text

    @property
    def param(self) -> str:
        return "functions" if self.legacy else "tools"

    @property
    def strict(self) -> bool:
        return any(function.get("strict") or "grammar" in function for function in self.functions)


def toolbox(request: ChatRequest, tree: dict[str, Any], service: Service) -> Toolbox:
    """The tools of a request; RequestError if they cannot be had as it asks for them."""
    legacy = bool(request.functions)
    if legacy and request.tools:
        raise RequestError("functions is the older name of tools: send one of them.", "functions")
    param = "functions" if legacy else "tools"
    params, grammars, customs = {}, {}, set()
    shown: list[dict[str, Any]] = []
    for i, given in enumerate(tree.get(param) or []):
        custom = None if legacy else (request.tools or [])[i].custom
        if custom is not None and given["type"] == "custom":
            grammar = custom.format.grammar if isinstance(custom.format, GrammarInput) else None
            syntax, definition = (grammar.syntax, grammar.definition) if grammar else (None, None)
            function = as_function(custom.name, custom.description, syntax, definition)
            customs.add(custom.name)
            if grammar is not None:
                grammars[custom.name] = (syntax, definition)
            given, where = {"type": "function", "function": function}, ".custom.format.grammar.definition"
        elif legacy:
            given, where = {"type": "function", "function": given}, ".parameters"
        else:
            where = ".function.parameters"
        shown.append(given)
        params[given["function"]["name"]] = f"{param}[{i}]{where}"
    names = [tool["function"]["name"] for tool in shown]
    if len(set(names)) < len(names):
        raise RequestError(f"{param}: two of them have the same name.", param)
    told, called, required = _choose(request, names, service.server.enable_auto_tool_choice)
    shown = [tool for tool in shown if tool["function"]["name"] in told]
    if not shown:
        return Toolbox()
    if service.format.calls is None:
        raise RequestError(
            f"{param}: the model's chat template has no place for them, or nobody knows how this model writes calls; "
            "the server's flag --tool-call-parser can name a form.",
            param,
        )
    functions = [tool["function"] for tool in shown if tool["function"]["name"] in called]
    functions = [{**f, "grammar": grammars[f["name"]]} if f["name"] in grammars else f for f in functions]
    parallel = request.parallel_tool_calls is not False and not legacy
    return Toolbox(shown, functions, required, parallel, legacy, params, frozenset(customs))


def _choose(request: ChatRequest, names: Sequence[str], auto: bool) -> tuple[set[str], set[str], bool]:
    """What tool_choice, or function_call, makes of the functions: those that the model is told of, those that it may
    call, and whether it must."""
    every = set(names)
    param = "tool_choice"
    choice: str | NamedChoice | CustomChoice | NamedFunction | AllowedChoice | None = request.tool_choice
    if request.function_call is not None:
        if choice is not None or request.tools:
            raise RequestError("function_call goes with functions, as tool_choice does with tools.", "function_call")
        param, choice = "function_call", request.function_call
    if choice is None or choice == "auto":
        if names and not auto:
            raise RequestError(f"{param} auto is off: this server has --no-enable-auto-tool-choice.", param)
        return every, every, False
    if choice == "none":
        return set(), set(), False
    if isinstance(choice, AllowedChoice):
        told = called = {_name(tool) for tool in choice.allowed_tools.tools}
        required = choice.allowed_tools.mode == "required"
    elif isinstance(choice, NamedChoice | CustomChoice | NamedFunction):
        told, called, required = every, {_name(choice)}, True
    else:
        told, called, required = every, every, True
    for name in sorted(called - every):
        raise RequestError(f"{param} names {name!r}, which is none of the request's tools.", param)
    if not called:
        raise RequestError(f"{param} needs a tool to choose.", param)
    return told, called, required


def _name(choice: NamedChoice | CustomChoice | NamedFunction) -> str:
    if isinstance(choice, NamedFunction):
        return choice.name
    return choice.custom.name if isinstance(choice, CustomChoice) else choice.function.name


def enforce(params: SamplingParams, tools: Toolbox, parser: OutputParser | None, template: str) -> SamplingParams:
    """The parameters with the grammar of the whole answer, where a part of it must have a form: its calls because they
    are required or strict, or its content. RequestError if the model's form of calls has no grammar."""
    asked = params.structured_outputs
    if parser is None or (asked is None and not tools.required and not tools.strict):
        return params
    content = None if asked is None else content_form(asked)
    if asked is not None and content is None:
        if tools.functions:
            raise RequestError(f"{asked.param} cannot go with {tools.param}.", asked.param)
        return params
    demand = Demand(tools.required, tools.parallel, template, tools.params) if tools.functions else None
    form = parser.form(demand, content)
    if form is None:
        raise RequestError(
            f"{tools.param}: this model's form of calls cannot be enforced: they can be neither required nor strict, "
            "nor go with a form of the content.",
            tools.param,
        )
    tag: dict[str, Any] = {"structural_tag": {"type": "structural_tag", "format": form}}
    if asked is None or tools.required:
        return params.clone(structured_outputs=StructuredOutputs(**tag, param=tools.param))
    names = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern", "param")
    options = {name: getattr(asked, name) for name in names}
    return params.clone(structured_outputs=StructuredOutputs(**tag, **options))


def with_tool_calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The history with the older function_call and role function, and calls of custom tools, as the tool calls that
    chat templates know."""
    if not any(map(_other_calls, messages)):
        return messages
    found, last = [], "call_0"
    for i, message in enumerate(messages):
        message = dict(message)
        if call := message.pop("function_call", None):
            last = f"call_{i}"
            message["tool_calls"] = [{"id": last, "type": "function", "function": call}]
        if message["role"] == "function":
            message["role"], message["tool_call_id"] = "tool", last
        if message.get("tool_calls"):
            message["tool_calls"] = [_as_function_call(call) for call in message["tool_calls"]]
        found.append(message)
    return found


def _other_calls(message: dict[str, Any]) -> bool:
    calls = message.get("tool_calls") or []
    return bool(message.get("function_call")) or message["role"] == "function" or any("custom" in c for c in calls)


def _as_function_call(call: dict[str, Any]) -> dict[str, Any]:
    if call.get("type") != "custom":
        return call
    arguments = json.dumps({INPUT: call["custom"]["input"]}, ensure_ascii=False)
    found = {key: value for key, value in call.items() if key != "custom"}
    return {**found, "type": "function", "function": {"name": call["custom"]["name"], "arguments": arguments}}


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

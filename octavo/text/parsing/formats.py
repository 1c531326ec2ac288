"""Which format the answers of a model have: read off its chat template, or named by the user as vLLM names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from octavo.core.errors import ConfigError
from octavo.text.parsing.base import OutputParser, Thinking, Tool
from octavo.text.parsing.cohere import ACTION, Cohere
from octavo.text.parsing.deepseek import CALLS, DeepSeek
from octavo.text.parsing.glm import Glm
from octavo.text.parsing.harmony import CHANNEL, MESSAGE, Harmony
from octavo.text.parsing.hermes import Hermes
from octavo.text.parsing.invoke import DSML, Dsml, Invoke
from octavo.text.parsing.json_calls import Llama3, PlainJson
from octavo.text.parsing.kimi import SECTION, Kimi
from octavo.text.parsing.mistral import Mistral
from octavo.text.parsing.pythonic import LFM, Pythonic
from octavo.text.parsing.qwen_xml import QwenXml

T = TypeVar("T")

THINK = Thinking("<think>", "</think>")
THINK_MISTRAL = Thinking("[THINK]", "[/THINK]")
THINK_COHERE = Thinking("<|START_THINKING|>", "<|END_THINKING|>")

# vLLM's names of --tool-call-parser and --reasoning-parser.
CALLS_BY_NAME: dict[str, type[OutputParser]] = {
    "cohere_command3": Cohere,
    "deepseek_v3": DeepSeek,
    "deepseek_v31": DeepSeek,
    "deepseek_v32": Dsml,
    "glm45": Glm,
    "glm47": Glm,
    "granite": PlainJson,
    "granite-20b-fc": PlainJson,
    "granite4": Hermes,
    "hermes": Hermes,
    "json": PlainJson,
    "kimi_k2": Kimi,
    "lfm2": Pythonic,
    "llama3_json": Llama3,
    "llama4_json": Llama3,
    "llama4_pythonic": Pythonic,
    "mimo": QwenXml,
    "minimax_m2": Invoke,
    "mistral": Mistral,
    "olmo3": Pythonic,
    "openai": Harmony,
    "phi4_mini_json": PlainJson,
    "pythonic": Pythonic,
    "qwen3_coder": QwenXml,
    "qwen3_xml": QwenXml,
    "xlam": PlainJson,
}
THINKING_BY_NAME: dict[str, Thinking | None] = {
    "cohere_command3": THINK_COHERE,
    "deepseek_r1": Thinking("<think>", "</think>", implied=True),
    "deepseek_v3": THINK,
    "ernie45": THINK,
    "glm45": THINK,
    "glm47": THINK,
    "holo2": THINK,
    "kimi_k2": THINK,
    "mimo": THINK,
    "mistral": THINK_MISTRAL,
    "nemotron_v3": THINK,
    "olmo3": THINK,
    "openai_gptoss": None,  # reasoning is part of the format of its calls
    "qwen3": THINK,
    "step3": Thinking("<think>", "</think>", implied=True),
}
# What a template must hold, all of it, for a format to be taken; the first that fits is.
_CALLS_BY_TEXT: tuple[tuple[tuple[str, ...], type[OutputParser]], ...] = (
    ((CHANNEL, MESSAGE), Harmony),
    ((CALLS,), DeepSeek),
    ((SECTION,), Kimi),
    ((ACTION,), Cohere),
    ((DSML,), Dsml),
    (("<minimax:tool_call>",), Invoke),
    (("tools", LFM), Pythonic),
    (("[TOOL_CALLS]",), Mistral),
    (("<tool_call>", "<function="), QwenXml),
    (("<tool_call>", "<arg_key>"), Glm),
    (("<tool_call>",), Hermes),
    (("tools", "<function_calls>"), Pythonic),
    (("tools", "[func_name"), Pythonic),
    (("tools", "<|python_start|>"), Pythonic),
    (("tools", "<|python_tag|>"), Llama3),
    (("tools", "<|start_header_id|>"), Llama3),
    (("tools",), PlainJson),
)
# Formats that nobody here can read: it is better to refuse tools than to show their calls as content.
_UNKNOWN = ("Action:", "<seed:tool_call>", "<|plugin|>", "<|tool_call>", "<start_function_call>")


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How a model writes calls and reasoning; None where it does not, or where nobody knows how."""

    calls: type[OutputParser] | None = None
    thinking: Thinking | None = None

    @property
    def markers(self) -> frozenset[str]:
        """What must not be missing from an answer's text, even where it is a special token."""
        thinking = (self.thinking.begin, self.thinking.end) if self.thinking else ()
        return frozenset((*thinking, *(self.calls.markers if self.calls else ())))

    def parses(self, tools: Sequence[Tool]) -> bool:
        """Whether answers hold anything but content: calls, if there are tools, or reasoning."""
        return self.calls is Harmony or self.thinking is not None or (self.calls is not None and bool(tools))

    def parser(self, tools: Sequence[Tool], prompt: str, hidden: frozenset[str] = frozenset()) -> OutputParser | None:
        """For one answer to a prompt; None if all of the answer is content. With no `tools`, nothing is a call."""
        if self.calls is Harmony or (self.calls is not None and tools):
            return self.calls(tools, self.thinking, prompt, hidden)
        return OutputParser((), self.thinking, prompt, hidden) if self.thinking else None


def detect(template: str) -> OutputFormat:
    """The format that a chat template is written for."""
    known = not any(text in template for text in _UNKNOWN)
    calls = next((calls for texts, calls in _CALLS_BY_TEXT if known and all(text in template for text in texts)), None)
    if calls is Harmony:
        return OutputFormat(Harmony)
    marks = (THINK, THINK_MISTRAL, THINK_COHERE)
    return OutputFormat(calls, next((found for found in marks if found.end in template), None))


def choose(template: str, tool_call_parser: str | None, reasoning_parser: str | None) -> OutputFormat:
    """The format of the template, or what the user says that it is."""
    found = detect(template)
    calls, thinking = found.calls, found.thinking
    if tool_call_parser is not None:
        calls = _named(CALLS_BY_NAME, tool_call_parser, "tool_call_parser")
    if reasoning_parser is not None:
        thinking = _named(THINKING_BY_NAME, reasoning_parser, "reasoning_parser")
        calls = calls if thinking else Harmony
    return OutputFormat(calls, None if calls is Harmony else thinking)


def _named(names: dict[str, T], name: str, field: str) -> T:
    if name not in names:
        raise ConfigError(f"{field} must be one of {', '.join(sorted(names))}, got {name}")
    return names[name]

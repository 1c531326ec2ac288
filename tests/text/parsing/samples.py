"""Answers in every format, with what a client must see of them. The texts are written for these tests."""

from __future__ import annotations

from typing import Any, NamedTuple

from octavo.text.parsing.base import OutputParser, Thinking, Tool
from octavo.text.parsing.cohere import ACTION, ACTION_END, Cohere
from octavo.text.parsing.deepseek import DeepSeek
from octavo.text.parsing.formats import THINK, THINK_COHERE, THINK_MISTRAL
from octavo.text.parsing.glm import Glm
from octavo.text.parsing.harmony import Harmony
from octavo.text.parsing.hermes import Hermes
from octavo.text.parsing.invoke import DSML, Dsml, Invoke
from octavo.text.parsing.json_calls import Llama3, PlainJson
from octavo.text.parsing.kimi import ARGUMENTS, SECTION, SECTION_END, Kimi
from octavo.text.parsing.kimi import CALL as K_CALL
from octavo.text.parsing.kimi import CALL_END as K_DONE
from octavo.text.parsing.mistral import Mistral
from octavo.text.parsing.pythonic import Pythonic
from octavo.text.parsing.qwen_xml import QwenXml

TOOLS: list[Tool] = [
    {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "where": {"type": "object"},
                "sure": {"type": "boolean"},
            },
        },
    },
    {"name": "now"},
]


class Sample(NamedTuple):
    format: type[OutputParser]
    text: str
    content: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    reasoning: str = ""
    thinking: Thinking | None = None
    prompt: str = ""
    hidden: frozenset[str] = frozenset()
    tools: Any = TOOLS

    def parser(self) -> OutputParser:
        return self.format(self.tools, self.thinking, self.prompt, self.hidden)


ROME = '{"city": "Rome", "days": 3}'
ODD = '{ "city" : "S\\u00e3o \\"Paulo\\"\\n{[", "where":{"a":[1,-2.5e3,[],{}],"b":null} ,"sure":true}'
CALL, END = "<tool_call>", "</tool_call>"
HARMONY = frozenset(Harmony.markers)

HERMES = [
    Sample(Hermes, " Just words, a < b.\n", " Just words, a < b.\n"),
    Sample(Hermes, f'{CALL}\n{{"name": "weather", "arguments": {ROME}}}\n{END}', calls=(("weather", ROME),)),
    Sample(
        Hermes,
        f'Let me look.\n\n{CALL}{{"name":"weather","arguments":{ODD}}}{END}\n'
        f'{CALL}\n{{"arguments": {ROME}, "name": "other"}}\n{END}\nDone.\n',
        "Let me look.Done.\n",
        (("weather", ODD), ("other", ROME)),
    ),
    Sample(Hermes, f'{CALL}{{"name": "now"}}{END}', calls=(("now", "{}"),)),
    Sample(Hermes, f'{CALL}{{"id": [1], "name": "now", "arguments": null}}{END}', calls=(("now", "{}"),)),
    Sample(Hermes, f'{CALL}{{"name": "now", "arguments": "{{\\"a\\": 1}}"}}{END}', calls=(("now", '{"a": 1}'),)),
    # A brace too many, one too few, and no closing tag.
    Sample(Hermes, f'{CALL}{{"name": "now", "arguments": {{}}}}}}\n{END}', calls=(("now", "{}"),)),
    Sample(Hermes, f'{CALL}{{"name": "now", "arguments": {{}}{END}', calls=(("now", "{}"),)),
    Sample(Hermes, f'{CALL}{{"name": "now", "arguments": {{}}}}\n', calls=(("now", "{}"),)),
    Sample(Hermes, f'{CALL}{{"name": "now", "arguments": {{"a": "x\ny"}}}}{END}', calls=(("now", '{"a": "x\\ny"}'),)),
    # What is no call is content, and does not hide the call after it.
    Sample(Hermes, f"a {CALL} b {END} c", f"a {CALL} b {END} c"),
    Sample(Hermes, f"{CALL}{{'name': 'now'}}{END}", f"{CALL}{{'name': 'now'}}{END}"),
    Sample(Hermes, f'{CALL}{{"name": 7}}{END}', f'{CALL}{{"name": 7}}{END}'),
    Sample(Hermes, f'a\n{CALL}\n{CALL}{{"name": "now"}}{END}', f"a\n{CALL}\n", (("now", "{}"),)),
    Sample(
        Hermes,
        f'{CALL}{{"name": "weather", "arguments": {{"days": 01, "city": 2}}}}{END}',
        f'01, "city": 2}}}}{END}',
        (("weather", '{"days": '),),
    ),
    Sample(Hermes, f'{CALL}{{"name": "now"}}{END}', f'{CALL}{{"name": "now"}}{END}', tools=[]),
    Sample(
        Hermes,
        f'<think>\nhm, {CALL}?\n</think>\n\nWell. <think>\n{CALL}{{"name": "now"}}{END}',
        "Well. <think>",
        (("now", "{}"),),
        f"hm, {CALL}?",
        THINK,
    ),
    Sample(Hermes, "Hm.\n</think>\n\nYes.", "Yes.", reasoning="Hm.", thinking=THINK, prompt="…<think>\n"),
    Sample(Hermes, "Hm.\n</think>\n\nYes.", "Hm.\n</think>\n\nYes.", thinking=THINK, prompt="<think>\n\n</think>\n\n"),
    Sample(Hermes, "<think>a</think><think>b</think>c", "c", reasoning="ab", thinking=THINK),
    Sample(OutputParser, "\n<think>a\n\nb", reasoning="a\n\nb", thinking=THINK),
    Sample(OutputParser, "a</think>b", "b", reasoning="a", thinking=Thinking("<think>", "</think>", True)),
    Sample(OutputParser, "[THINK]a[/THINK]b", "b", reasoning="a", thinking=THINK_MISTRAL),
    # Special tokens do not show, wherever they come.
    Sample(Hermes, f"<s>a</s> {CALL}b<s>", "a b", hidden=frozenset({"<s>", "</s>", CALL, END})),
    Sample(
        Hermes,
        f'<s>{CALL}{{"name": <s>"now"}}{END}</s>',
        calls=(("now", "{}"),),
        hidden=frozenset({"<s>", "</s>", CALL, END}),
    ),
]

XML = [
    Sample(
        QwenXml,
        f'Look:\n{CALL}\n<function=weather>\n<parameter=city>\nSão "Paulo"\n\n</parameter>\n<parameter=days>\n3\n'
        f"</parameter>\n<parameter=where>\n{{'a': 1}}\n</parameter>\n<parameter=sure>True</parameter>\n"
        f"<parameter=new>7</parameter></function>\n{END}\n{CALL}<function=now></function>{END} ",
        "Look:",
        (
            ("weather", '{"city": "São \\"Paulo\\"\\n", "days": 3, "where": "{\'a\': 1}", "sure": true, "new": "7"}'),
            ("now", "{}"),
        ),
    ),
    Sample(QwenXml, "<function=now>\n</function>", calls=(("now", "{}"),)),
    Sample(
        QwenXml,
        f"{CALL}<function=weather><parameter=city>a < b <parameter=c></parameter></function>",
        calls=(("weather", '{"city": "a < b <parameter=c>"}'),),
    ),
    Sample(QwenXml, f"{CALL}<function=\n>x{END}", f"{CALL}<function=\n>x{END}"),
    Sample(
        QwenXml,
        f"{CALL}<function=weather>\n<parameter=city>x</parameter> or {END}",
        f"or {END}",
        (("weather", '{"city": "x"'),),
    ),
]

GLM = [
    Sample(
        Glm,
        f"<think>a</think>\nLook.\n{CALL}weather\n<arg_key>city</arg_key>\n<arg_value>São 'Paulo</arg_value>\n"
        f"<arg_key>days</arg_key><arg_value>3</arg_value>\n{END}\n{CALL}now{END}",
        "Look.",
        (("weather", '{"city": "São \'Paulo", "days": 3}'), ("now", "{}")),
        "a",
        THINK,
    ),
    Sample(Glm, f"{CALL}now or {END}", f"{CALL}now or {END}"),
    Sample(Glm, f"{CALL}now<arg_key>a</arg_key>b{END}", f"a</arg_key>b{END}", (("now", "{"),)),
    Sample(Glm, f"{CALL}now<arg_key>a</arg_key><arg_value>NaN</arg_value>", calls=(("now", '{"a": "NaN"'),)),
]

LLAMA = [
    Sample(Llama3, f'{{"name": "weather", "parameters": {ROME}}}', calls=(("weather", ROME),)),
    Sample(
        Llama3,
        f'<|python_tag|>{{"type": "function", "name": "weather", "parameters": {ODD}}}; '
        '{"name": "now", "parameters": {}}',
        calls=(("weather", ODD), ("now", "{}")),
        hidden=frozenset({"<|python_tag|>", "<|eom_id|>"}),
    ),
    Sample(Llama3, '\n{"name": "Ada", "parameters": {"age": 7}}', '\n{"name": "Ada", "parameters": {"age": 7}}'),
    Sample(
        Llama3, f'So: {{"name": "weather", "parameters": {ROME}}}', f'So: {{"name": "weather", "parameters": {ROME}}}'
    ),
    Sample(Llama3, "<|python_tag|>print(1)", "print(1)", hidden=frozenset({"<|python_tag|>"})),
]

PLAIN = [
    Sample(PlainJson, f'{{"name": "weather", "arguments": {ROME}}}', calls=(("weather", ROME),)),
    Sample(
        PlainJson,
        f'```json\n[{{"name": "weather", "arguments": {ROME}}}, {{"name": "now"}}]\n```\nand more',
        "and more",
        (("weather", ROME), ("now", "{}")),
    ),
    Sample(PlainJson, "```python\nprint([1])\n```", "```python\nprint([1])\n```"),
    Sample(PlainJson, "[1, 2]", "[1, 2]"),
    Sample(PlainJson, f'Look. functools[{{"name": "weather", "arguments": {ROME}}}]', "Look.", (("weather", ROME),)),
    Sample(
        PlainJson,
        f'Look. <tool_calls>[{{"name": "weather", "arguments": {ROME}}}, {{"name": "now"}}]\n</tool_calls>',
        "Look.",
        (("weather", ROME), ("now", "{}")),
    ),
    Sample(PlainJson, "<|tool_call|> [", "<|tool_call|> ["),
    Sample(PlainJson, "Use functools.cache.", "Use functools.cache."),
    Sample(PlainJson, "[THINK]a[/THINK][]", "[]", reasoning="a", thinking=THINK_MISTRAL),
    Sample(PlainJson, '{"name": "Ada"}', '{"name": "Ada"}'),
]

MISTRAL = [
    Sample(
        Mistral,
        f'[TOOL_CALLS] [{{"name": "weather", "arguments": {ROME}}}, '
        '{"name": "now", "arguments": {}, "id": "123456789"}]',
        calls=(("weather", ROME), ("now", "{}")),
        hidden=frozenset({"[TOOL_CALLS]", "[INST]"}),
    ),
    Sample(
        Mistral,
        f"[THINK]hm[/THINK]Now. [TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{ODD}[TOOL_CALLS]now[ARGS]{{}}",
        "Now.",
        (("weather", ODD), ("now", "{}")),
        "hm",
        THINK_MISTRAL,
        hidden=frozenset({"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"}),
    ),
    Sample(Mistral, '[TOOL_CALLS]weather{"city": "Rome", }', "}", (("weather", '{"city": "Rome", '),)),
    Sample(Mistral, "[TOOL_CALLS] are marked", "[TOOL_CALLS] are marked"),
]

D_BEGIN, D_END, D_CALL, D_DONE, D_SEP = (
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
)  # fmt: skip
DEEPSEEK = [
    Sample(
        DeepSeek,
        f"<think>a</think>Let me.{D_BEGIN}{D_CALL}function{D_SEP}weather\n```json\n{ROME}\n```{D_DONE}\n"
        f"{D_CALL}function{D_SEP}now\n```json\n{{}}\n```{D_DONE}{D_END}",
        "Let me.",
        (("weather", ROME), ("now", "{}")),
        "a",
        THINK,
    ),
    Sample(
        DeepSeek,
        f"{D_BEGIN}{D_CALL}weather{D_SEP}{ODD}{D_DONE}{D_CALL}function{D_SEP}{{}}{D_DONE}{D_END}",
        calls=(("weather", ODD), ("function", "{}")),
        hidden=frozenset({D_BEGIN, D_END, D_CALL, D_DONE, D_SEP}),
    ),
    Sample(DeepSeek, f"{D_BEGIN} x", f"{D_BEGIN} x"),
    Sample(DeepSeek, f"{D_BEGIN}{D_CALL}now{D_SEP}[1]{D_DONE}", f"{D_BEGIN}{D_CALL}now{D_SEP}[1]{D_DONE}"),
]

GPT_OSS = [
    Sample(
        Harmony,
        "<|channel|>analysis<|message|>Need the weather.<|end|><|start|>assistant<|channel|>commentary<|message|>"
        "I will look.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json"
        f"<|message|>{ROME}<|call|><|start|>assistant to=functions.now<|channel|>commentary json<|message|>",
        "I will look.",
        (("weather", ROME), ("now", "{}")),
        "Need the weather.",
        hidden=HARMONY,
    ),
    Sample(
        Harmony,
        "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>analysis<|message|> Two.\n<|end|>"
        "<|start|>assistant<|channel|>final<|message|>An < answer.\n",
        "An < answer.\n",
        reasoning="One.\nTwo.",
        hidden=HARMONY,
    ),
    Sample(Harmony, "No channel at all. ", "No channel at all. ", hidden=HARMONY),
    Sample(Harmony, "<|channel|>final<|message|>a<|channel|>final<|message|>b", "a\nb", hidden=HARMONY),
    Sample(Harmony, "<|channel|>oops<|end|>a", "oopsa", hidden=HARMONY),
    Sample(
        Harmony,
        "<|channel|>commentary to=functions.now<|message|>now!<|call|>",
        "commentary to=functions.nownow!",
        hidden=HARMONY,
    ),
]

PYTHONIC = [
    Sample(
        Pythonic,
        "[weather(city='Rome', days=3), now()]",
        calls=(("weather", ROME), ("now", "{}")),
    ),
    Sample(
        Pythonic,
        "<|python_start|>[weather(city=\"it's ]) \\\" here\", where={'a': [1, -2.5, (True, None)]})]<|python_end|>",
        calls=(("weather", '{"city": "it\'s ]) \\" here", "where": {"a": [1, -2.5, [true, null]]}}'),),
        hidden=frozenset({"<|python_start|>", "<|python_end|>"}),
    ),
    Sample(
        Pythonic,
        "Look.\n<function_calls>\nweather(city='Rome', days=3)\nnow(a=[true, null], b=False)\n</function_calls>\n",
        "Look.",
        (("weather", ROME), ("now", '{"a": [true, null], "b": false}')),
    ),
    Sample(Pythonic, "<function_calls>\nnow()\nNo.", "\nNo.", (("now", "{}"),)),
    Sample(Pythonic, "[weather(city=exit())]", "[weather(city=exit())]"),
    Sample(Pythonic, "[now(1)]", "[now(1)]"),
    Sample(Pythonic, "[now(**{})]", "[now(**{})]"),
    Sample(Pythonic, "[now(a={1, 2})]", "[now(a={1, 2})]"),
    Sample(Pythonic, "[now(a=1e999)]", "[now(a=1e999)]"),
    Sample(Pythonic, "[now(a='\\ud83d')]", calls=(("now", '{"a": "�"}'),)),
    Sample(Pythonic, "[1, 2] is a list", "[1, 2] is a list"),
    Sample(Pythonic, "[now(), other()]", ", other()]", (("now", "{}"),)),
]

LFM2 = [
    Sample(
        Pythonic,
        'Look. <|tool_call_start|>[weather(city="Rome", days=3), now()]<|tool_call_end|>Now.',
        "Look.Now.",
        (("weather", ROME), ("now", "{}")),
        hidden=frozenset({"<|tool_call_start|>", "<|tool_call_end|>"}),
    ),
]

KIMI = [
    Sample(
        Kimi,
        f"<think>a</think>Look.{SECTION}{K_CALL}functions.weather:0{ARGUMENTS}{ROME}{K_DONE}"
        f"{K_CALL}functions.now:1{ARGUMENTS}{{}}{K_DONE}{SECTION_END}",
        "Look.",
        (("weather", ROME), ("now", "{}")),
        "a",
        THINK,
        hidden=frozenset(Kimi.markers),
    ),
    Sample(Kimi, f"{SECTION} {K_CALL} weather {ARGUMENTS} {ODD} {K_DONE} {SECTION_END} x", "x", (("weather", ODD),)),
    Sample(Kimi, f"{SECTION}{K_CALL}now:0{ARGUMENTS}[1]", f"{SECTION}{K_CALL}now:0{ARGUMENTS}[1]"),
    Sample(Kimi, f"{SECTION} x", f"{SECTION} x"),
]

COHERE = [
    Sample(
        Cohere,
        f'<|START_THINKING|>hm<|END_THINKING|>{ACTION}[\n    {{"tool_call_id": "0", "tool_name": "weather", '
        f'"parameters": {ROME}}},\n    {{"tool_call_id": "1", "tool_name": "now", "parameters": {{}}}}\n]{ACTION_END}',
        "",
        (("weather", ROME), ("now", "{}")),
        "hm",
        THINK_COHERE,
        hidden=frozenset({ACTION, ACTION_END, "<|START_THINKING|>", "<|END_THINKING|>"}),
    ),
    Sample(
        Cohere,
        "<|START_RESPONSE|>Yes.<|END_RESPONSE|>",
        "Yes.",
        hidden=frozenset({"<|START_RESPONSE|>", "<|END_RESPONSE|>", ACTION, ACTION_END}),
    ),
    Sample(Cohere, f"{ACTION}[1]{ACTION_END}", f"{ACTION}[1]{ACTION_END}"),
]

M_CALL, M_END = "<minimax:tool_call>", "</minimax:tool_call>"
INVOKE = [
    Sample(
        Invoke,
        f'<think>a</think>Look.\n{M_CALL}\n<invoke name="weather">\n<parameter name="city">Rome</parameter>\n'
        f'<parameter name="days">3</parameter>\n</invoke>\n<invoke name="now">\n</invoke>\n{M_END}',
        "Look.",
        (("weather", ROME), ("now", "{}")),
        "a",
        THINK,
        hidden=frozenset({M_CALL, M_END}),
    ),
    Sample(Invoke, f"{M_CALL} or {M_END}", f"{M_CALL} or {M_END}"),
    Sample(Invoke, f'{M_CALL}<invoke name="now" x>', f'{M_CALL}<invoke name="now" x>'),
    Sample(
        Invoke,
        f'{M_CALL}<invoke name="weather"><parameter name="city">a </b> <c</parameter> x',
        "x",
        (("weather", '{"city": "a </b> <c"'),),
    ),
    Sample(
        Dsml,
        f'Look.\n\n<{DSML}function_calls>\n<{DSML}invoke name="weather">\n<{DSML}parameter name="city" string="true">'
        f'Rome</{DSML}parameter>\n<{DSML}parameter name="days" string="false">3</{DSML}parameter>\n</{DSML}invoke>\n'
        f'<{DSML}invoke name="other"><{DSML}parameter name="a" string="false">[1, "b"]</{DSML}parameter>'
        f"</{DSML}invoke></{DSML}function_calls>",
        "Look.",
        (("weather", ROME), ("other", '{"a": [1, "b"]}')),
        hidden=frozenset({DSML}),
    ),
]

ALL = [*HERMES, *XML, *GLM, *LLAMA, *PLAIN, *MISTRAL, *DEEPSEEK, *GPT_OSS, *PYTHONIC, *LFM2, *KIMI, *COHERE, *INVOKE]

"""Grammars of calls against the parsers that read them."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import pytest

from octavo.core.structured import StructuredOutputs
from octavo.grammar.schema import GrammarError
from octavo.grammar.source import translate
from octavo.grammar.vocabulary import Vocabulary
from octavo.text.parsing.base import Demand, OutputParser
from octavo.text.parsing.formats import CALLS_BY_NAME, THINK, THINKING_BY_NAME
from octavo.text.parsing.forms import Form, content_form
from octavo.text.parsing.invoke import DSML
from tests.server.fake_engine import make_tokenizer
from tests.text.parsing.samples import D_BEGIN, D_CALL, D_DONE, D_END, D_SEP, Sample
from tests.text.parsing.test_parsers import whole

WEATHER: Any = {
    "name": "weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
NOW: Any = {"name": "now"}
TOOLS = [WEATHER, NOW]
SPECIAL = ["[TOOL_CALLS]", "[ARGS]", "<|channel|>", "<|message|>", "<|start|>", "<|constrain|>", D_BEGIN, D_END, D_CALL,
           D_DONE, D_SEP, DSML]  # fmt: skip
ENDS = ["<|end|>", "<|call|>"]
ENFORCED = {calls.__name__: calls for calls in CALLS_BY_NAME.values()}


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(_tokenizer(), _tokenizer().vocab_size)


def matcher(parser: OutputParser, demand: Demand | None, content: Form | None = None) -> Any:
    asked = StructuredOutputs(structural_tag={"type": "structural_tag", "format": parser.form(demand, content)})
    return vocabulary().matcher(translate(asked, vocabulary()))


def accepts(found: Any, text: str) -> bool:
    """Whether all of the text is allowed, and an end after it."""
    tokens = _tokenizer().encode(text, add_special_tokens=False)
    return found.try_consume_tokens(tokens) == len(tokens) and found.is_accepting()


@cache
def _tokenizer() -> Any:
    return make_tokenizer(None, [*SPECIAL, *ENDS])


REQUIRED = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3\n"
    "</parameter>\n</function>\n</tool_call>",
    "glm45": "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>",
    "llama3_json": '{"name": "weather", "parameters": {"city": "Oslo", "days": 3}}',
    "json": '[{"name": "weather", "arguments": {"city": "Oslo"}}]',
    "mistral": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}}]',
    "deepseek_v31": f'{D_BEGIN}{D_CALL}weather{D_SEP}{{"city": "Oslo"}}{D_DONE}{D_END}',
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
    '{"city": "Oslo"}<|tool_call_end|><|tool_calls_section_end|>',
    "cohere_command3": '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "weather", "parameters": '
    '{"city": "Oslo"}}\n]<|END_ACTION|>',
    "minimax_m2": '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Rome</parameter>\n</invoke>\n'
    "</minimax:tool_call>",
    "deepseek_v32": '<DSMLfunction_calls>\n<DSMLinvoke name="weather">\n<DSMLparameter name="city" string="true">'
    'Rome</DSMLparameter>\n<DSMLparameter name="days" string="false">3</DSMLparameter>\n</DSMLinvoke>\n'
    "</DSMLfunction_calls>".replace("DSML", DSML),
    "pythonic": '[weather(city="Oslo", days=3)]',
    "openai": "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
    '<|constrain|>json<|message|>{"city": "Oslo"}',
}


@pytest.mark.parametrize("name", REQUIRED)
def test_required(name: str) -> None:
    parser = CALLS_BY_NAME[name](TOOLS)
    demand = Demand(required=True, parallel=True, template="")
    text = REQUIRED[name]
    assert accepts(matcher(parser, demand), text)
    assert [call for call, _ in whole(Sample(type(parser), "", tools=TOOLS), text)[2]] == ["weather"]
    for wrong in ("Hello", "", text.replace("weather", "other"), text.replace("Rome", "X").replace("Oslo", "X")):
        assert not accepts(matcher(parser, demand), wrong)


def test_variants_of_the_template() -> None:
    demand = Demand(required=True, parallel=True, template="[ARGS] ```json")
    text = '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}[TOOL_CALLS]now[ARGS]{}'
    assert accepts(matcher(CALLS_BY_NAME["mistral"](TOOLS), demand), text)
    text = f"{D_BEGIN}{D_CALL}function{D_SEP}now\n```json\n{{}}\n```{D_DONE}{D_END}"
    assert accepts(matcher(CALLS_BY_NAME["deepseek_v3"](TOOLS), demand), text)


def test_json_is_announced_as_the_template_does() -> None:
    call = '{"name": "weather", "arguments": {"city": "Rome"}}'
    for begin, end in (("functools", ""), ("<tool_calls>", "</tool_calls>")):
        parser = CALLS_BY_NAME["json"](TOOLS)
        for parallel, text in ((True, f"{begin}[{call}, {call}]{end}"), (False, f"{begin}{call}{end}")):
            assert accepts(matcher(parser, Demand(True, parallel, f"{{{{ tools }}}}{begin}")), text)
            strict = matcher(parser, Demand(False, parallel, f"{{{{ tools }}}}{begin}"))
            assert accepts(strict, text if not parallel else f"Look: {text}")
            assert not accepts(matcher(parser, Demand(False, parallel, begin)), text.replace("Rome", "X"))


def test_one_call_where_several_are_not_wanted() -> None:
    two = "\n".join(['<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'] * 2)
    parser = CALLS_BY_NAME["hermes"](TOOLS)
    assert accepts(matcher(parser, Demand(True, True, "")), two)
    assert not accepts(matcher(parser, Demand(True, False, "")), two)


@pytest.mark.parametrize("name", [name for name in REQUIRED if name != "openai"])
def test_strict_tools_in_free_text(name: str) -> None:
    parser = CALLS_BY_NAME[name](TOOLS)
    demand = Demand(required=False, parallel=True, template="")
    text = REQUIRED[name]
    other = text.replace("weather", "now").replace("city", "anything")
    for right in ("Hello. ", "", text, "[now()]" if name == "pythonic" else other):
        assert accepts(matcher(parser, demand), right), right
    assert not accepts(matcher(parser, demand), text.replace("Rome", "X").replace("Oslo", "X"))
    if not parser.starts:
        assert accepts(matcher(parser, demand), "Let me see. " + text)


def test_strict_tools_of_gpt_oss() -> None:
    parser, demand = CALLS_BY_NAME["openai"](TOOLS), Demand(required=False, parallel=True, template="")
    for right in (REQUIRED["openai"], "<|channel|>final<|message|>Hello."):
        assert accepts(matcher(parser, demand), right)
    assert not accepts(matcher(parser, demand), REQUIRED["openai"].replace("Oslo", "X"))


def test_reasoning_comes_first() -> None:
    demand = Demand(required=True, parallel=True, template="")
    text = REQUIRED["hermes"]
    begun = CALLS_BY_NAME["hermes"](TOOLS, THINK, "<think>\n")
    assert accepts(matcher(begun, demand), f"Hm, <tool_call>?\n</think>\n\n{text}")
    assert not accepts(matcher(begun, demand), text)
    free = CALLS_BY_NAME["hermes"](TOOLS, THINK, "")
    assert accepts(matcher(free, demand), text)
    assert accepts(matcher(free, demand), f"<think>\nHm.\n</think>\n\n{text}")
    assert not accepts(matcher(free, demand), f"Hm.\n</think>\n\n{text}")


def test_content_with_a_form() -> None:
    """Behind the reasoning, and beside calls where there are tools."""
    city = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}
    contents = [
        (StructuredOutputs(json=city), '{"city": "Rome"}', '{"city": "Oslo"}'),
        (StructuredOutputs(json_object=True), "{}", "[]"),
        (StructuredOutputs(regex="a+"), "aa", "b"),
        (StructuredOutputs(choice=["yes", "no"]), "no", "maybe"),
        (StructuredOutputs(grammar='start: "a" "b"'), "ab", "a"),
        (StructuredOutputs(structural_tag={"format": {"type": "const_string", "value": "x"}}), "x", "y"),
    ]
    demand = Demand(required=False, parallel=True, template="")
    call = REQUIRED["hermes"]
    for asked, right, wrong in contents:
        content = content_form(asked)
        begun = matcher(CALLS_BY_NAME["hermes"]((), THINK, "<think>"), None, content)
        assert accepts(begun, f"Hm.</think>\n\n{right}")
        for text in (right, wrong, f"Hm.</think>{wrong}", f"Hm.</think>{call}"):
            assert not accepts(matcher(CALLS_BY_NAME["hermes"]((), THINK, "<think>"), None, content), text)
        for text, expected in ((right, True), (call, True), (wrong, False), (f"<think>a</think>{right}", False)):
            assert accepts(matcher(CALLS_BY_NAME["hermes"](TOOLS), demand, content), text) == expected
        final = f"<|channel|>final<|message|>{right}"
        assert accepts(matcher(CALLS_BY_NAME["openai"](TOOLS), demand, content), final)
        assert accepts(matcher(CALLS_BY_NAME["openai"](), None, content), final)
        assert not accepts(matcher(CALLS_BY_NAME["openai"](), None, content), final.replace(right, wrong))
    assert content_form(StructuredOutputs(json="{")) is None
    assert content_form(StructuredOutputs(structural_tag={"structures": [], "triggers": []})) is None


def test_errors_name_the_field_of_the_request() -> None:
    wrong = {"type": "object", "properties": {"a": {"type": "integer"}, "b.c": {"type": "object", "not": {"x": 1}}}}
    demand = Demand(True, True, "", {"f": "tools[3].function.parameters"})
    for name in ("hermes", "mistral", "openai", "glm45"):
        form = CALLS_BY_NAME[name]([{"name": "f", "parameters": wrong}], THINK).form(demand)
        asked = StructuredOutputs(structural_tag={"type": "structural_tag", "format": form}, param="tools")
        with pytest.raises(GrammarError) as caught:
            translate(asked, vocabulary())
        assert asked.name(caught.value.path) == "tools[3].function.parameters.properties.b.c.not"
    form = CALLS_BY_NAME["hermes"]((), THINK).form(None, content_form(StructuredOutputs(json=wrong, param="format")))
    asked = StructuredOutputs(structural_tag={"type": "structural_tag", "format": form}, param="format")
    with pytest.raises(GrammarError) as caught:
        translate(asked, vocabulary())
    assert asked.name(caught.value.path) == "format.properties.b.c.not"
    assert asked.name("format.x") == "format.format.x" and asked.name("") == "format"
    assert StructuredOutputs(json=True, param="a").name("[1].b") == "a[1].b"


def test_python_calls() -> None:
    tool: Any = {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"type": "string"}, "c": {"type": "boolean"}},
            "required": ["b"],
            "$defs": {"A": {"enum": [1, None]}},
        },
    }
    for begin, between, end in (
        ("[", ", ", "]"),
        ("<|python_start|>[", ", ", "]<|python_end|>"),
        ("<|tool_call_start|>[", ", ", "]<|tool_call_end|>"),
        ("<function_calls>\n", "\n", "\n</function_calls>"),
    ):
        parser = CALLS_BY_NAME["pythonic"]([tool])
        found = Demand(True, True, f"{{{{ tools }}}} {begin[:-1]}"), [tool]
        for right in ('f(b="")', 'f(a=1, b="x")', 'f(a=null, b="x", c=true)', 'f(b="é\\"", c=false)'):
            text = f'{begin}{right}{between}f(b="")'
            assert accepts(matcher(parser, found[0]), text + end)
            calls = whole(Sample(type(parser), "", tools=[tool]), text + end)[2]
            assert len(calls) == 2 and json.loads(calls[1][1]) == {"b": ""}
        for wrong in ("f()", "f(a=1)", 'f(b="", a=1)', 'f(a=2, b="")', 'f(b="",c=true)', 'f(b="", b="")', "f(b=1)"):
            assert not accepts(matcher(parser, found[0]), f"{begin}{wrong}{end}")
    for name, key in (("f", "class"), ("f", "a-b"), ("f-g", "a")):
        parser = CALLS_BY_NAME["pythonic"]([{"name": name, "parameters": {"properties": {key: {}}}}])
        assert parser.form(Demand(True, True, "")) is None


def test_what_a_schema_defines_is_known_to_its_properties() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"enum": [1]}}}
    parser = CALLS_BY_NAME["glm45"]([{"name": "f", "parameters": schema}])
    text = "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"
    assert accepts(matcher(parser, Demand(True, True, "")), text)
    assert not accepts(matcher(parser, Demand(True, True, "")), text.replace("1", "2"))


@pytest.mark.parametrize("name", ENFORCED)
def test_whatever_is_allowed_is_read_as_calls(name: str) -> None:
    """Random answers under the grammar, token by token."""
    rng = random.Random(name)
    tokenizer = _tokenizer()
    for _ in range(6):
        required = rng.random() < 0.7
        thinking = THINKING_BY_NAME[rng.choice(sorted(THINKING_BY_NAME))] if rng.random() < 0.3 else None
        sample = Sample(ENFORCED[name], "", tools=TOOLS, thinking=thinking, hidden=frozenset([*SPECIAL, *ENDS]))
        demand = Demand(required, rng.random() < 0.7, rng.choice(["", "[ARGS] ```json"]))
        found = matcher(sample.parser(), demand)
        ids: list[int] = []
        while len(ids) < 1500 and not (found.is_accepting() and (found.is_stopped() or rng.random() < 0.1)):
            words = list(memoryview(found.compute_bitmask()).cast("B"))
            allowed = [i for i in range(tokenizer.vocab_size) if words[i // 8] >> (i % 8) & 1]
            allowed = [i for i in allowed if i != tokenizer.eos_id]
            allowed = [i for i in allowed if tokenizer.token_bytes(i)[:1] < b"\x80" or i > 256]
            # What ends things is preferred, or texts and numbers would go on.
            ending = [i for i in allowed if tokenizer.decode([i], False) in ('"', "}", "]", "\n", "<", ",", "</think>")]
            ids.append(rng.choice(ending if ending and rng.random() < 0.5 else allowed))
            assert found.consume_token(ids[-1])
        content, _, calls = whole(sample, tokenizer.decode(ids, skip_special_tokens=False))
        if found.is_accepting() and required:
            assert calls and not content
        for called, arguments in calls if found.is_accepting() else []:
            assert called in ("weather", "now")
            given = json.loads(arguments)
            assert called == "now" or (given["city"] in ("Rome", "Oslo") and isinstance(given.get("days", 1), int))

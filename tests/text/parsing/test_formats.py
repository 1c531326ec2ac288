from __future__ import annotations

import pytest

from octavo.core.errors import ConfigError
from octavo.text.parsing.base import OutputParser
from octavo.text.parsing.cohere import Cohere
from octavo.text.parsing.formats import CALLS_BY_NAME, THINK, THINK_COHERE, THINK_MISTRAL, OutputFormat, choose, detect
from octavo.text.parsing.glm import Glm
from octavo.text.parsing.harmony import Harmony
from octavo.text.parsing.hermes import Hermes
from octavo.text.parsing.invoke import Dsml, Invoke
from octavo.text.parsing.json_calls import Llama3, PlainJson
from octavo.text.parsing.kimi import Kimi
from octavo.text.parsing.mistral import Mistral
from octavo.text.parsing.pythonic import Pythonic
from octavo.text.parsing.qwen_xml import QwenXml
from tests.text import templates
from tests.text.parsing.samples import TOOLS

QWEN_CODER = """{%- for tool in tools %}<function><name>{{ tool.name }}</name></function>{%- endfor %}
Call so: <tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>\n</tool_call>"""
DEEPSEEK = """{%- for call in message['tool_calls'] %}{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + call['type'] }}
{%- endfor %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""
HARMONY = "{{ '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}{{ tools }}"
MAGISTRAL = (
    "{%- for tool in tools %}[AVAILABLE_TOOLS]{%- endfor %}{{ '[TOOL_CALLS]' + name + '[ARGS]' }}[THINK][/THINK]"
)
LLAMA_31 = (
    "{%- if builtin_tools is defined or tools is not none %}Environment: ipython{% endif %}{{ '<|python_tag|>' }}"
)
LLAMA_4 = "<|header_start|>system {% if tools %} Answer with [func_name1(param=value)]<|python_start|>{% endif %}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (templates.CHATML, OutputFormat()),
        (templates.GEMMA, OutputFormat()),
        (templates.MISTRAL, OutputFormat()),
        (templates.QWEN, OutputFormat(Hermes, THINK)),
        (templates.LLAMA3, OutputFormat(Llama3)),
        (QWEN_CODER, OutputFormat(QwenXml)),
        (HARMONY, OutputFormat(Harmony)),
        ("{{ tools }}<tool_call>{name}\n<arg_key>{key}</arg_key></think>", OutputFormat(Glm, THINK)),
        (MAGISTRAL, OutputFormat(Mistral, THINK_MISTRAL)),
        (LLAMA_31, OutputFormat(Llama3)),
        (LLAMA_4, OutputFormat(Pythonic)),
        ("{% if tools %}<function_calls></function_calls>{% endif %}", OutputFormat(Pythonic)),
        ("{{ tools }}<|START_ACTION|>", OutputFormat(Cohere)),
        ("{{ tools }}<|START_ACTION|><|END_THINKING|>", OutputFormat(Cohere, THINK_COHERE)),
        ("{{ tools }}<|tool_calls_section_begin|>", OutputFormat(Kimi)),
        ("{{ tools }}<minimax:tool_call></think>", OutputFormat(Invoke, THINK)),
        ("{{ tools }}<｜DSML｜function_calls></think>", OutputFormat(Dsml, THINK)),
        ("{{ tools }}<|tool_call_start|>", OutputFormat(Pythonic)),
        ("{{ tools }}<seed:tool_call>", OutputFormat()),
        (DEEPSEEK, OutputFormat(CALLS_BY_NAME["deepseek_v3"], THINK)),
        ("{{ tools | tojson }}{{ messages[0].content }}", OutputFormat(PlainJson)),
    ],
)
def test_detection(template: str, expected: OutputFormat) -> None:
    assert detect(template) == expected


def test_named_formats_come_before_the_template() -> None:
    assert choose(templates.QWEN, "llama3_json", None) == OutputFormat(Llama3, THINK)
    found = choose(templates.CHATML, None, "deepseek_r1").thinking
    assert found is not None and found.implied
    assert choose(HARMONY, None, "openai_gptoss") == OutputFormat(Harmony)
    assert choose(templates.CHATML, None, "openai_gptoss") == OutputFormat(Harmony)
    assert choose(templates.QWEN, "openai", None) == OutputFormat(Harmony)


@pytest.mark.parametrize("names", [("hermes2", None), (None, "o1")])
def test_unknown_names(names: tuple[str | None, str | None]) -> None:
    with pytest.raises(ConfigError, match="_parser must be one of .*(hermes|qwen3)"):
        choose(templates.QWEN, *names)


def test_parser_only_where_there_is_something_to_parse() -> None:
    assert OutputFormat().parser(TOOLS, "") is None
    assert OutputFormat(Hermes).parser([], "") is None
    assert type(OutputFormat(Hermes, THINK).parser([], "")) is OutputParser
    assert isinstance(OutputFormat(Hermes).parser(TOOLS, ""), Hermes)
    assert isinstance(OutputFormat(Harmony).parser([], ""), Harmony)

"""Rendered chats equal those of transformers; what cannot be rendered is refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.core.errors import RequestError
from octavo.text.chat import ChatTemplate
from tests.text import templates

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'of <b>"Köln"</b> & elsewhere',
            "parameters": {"type": "object", "properties": {"since": {"type": "integer", "default": 10**12}}},
        },
    }
]
USER = {"role": "user", "content": " How warm is it\nin Köln? "}
CALL = {"type": "function", "id": "c1", "function": {"name": "weather", "arguments": {"since": 20_000_000, "q": "é"}}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "system": [{"role": "system", "content": "Be <brief> & 'kind'."}, USER],
    "turns": [USER, {"role": "assistant", "content": "Warm. "}, {"role": "user", "content": "Thanks 😀"}],
    "named": [USER | {"name": "Ada"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nWarm."}],
    "nulls": [USER, {"role": "assistant", "content": "Warm.", "tool_calls": None, "refusal": None}],
    "reasoning": [USER, {"role": "assistant", "content": "Warm.", "reasoning": "I looked.\n"}],
    "call": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "31 °C"},
    ],
    "odd": [{"role": "assistant", "content": "Hello!"}, {"role": "assistant", "content": "Anyone?"}],
}


def reference(template: str, messages: Any, **options: Any) -> str:
    from transformers import PreTrainedTokenizerFast

    from tests.text.vocabularies import folder_of

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder_of("llama2") / "tokenizer.json"), **SPECIAL)
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    assert isinstance(text, str)
    return text


def render(template: str, messages: Any, **options: Any) -> str:
    return ChatTemplate({"default": template}, SPECIAL).render(messages, **options)


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["", "tools"])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", templates.ALL)
def test_equals_transformers(name: str, chat: str, tools: Any) -> None:
    template, messages = templates.ALL[name], CHATS[chat]
    for prompt in (True, False):
        try:
            expected = reference(template, messages, tools=tools, add_generation_prompt=prompt)
        except Exception:
            with pytest.raises(RequestError) as caught:
                render(template, messages, tools=tools, add_generation_prompt=prompt)
            assert caught.value.param == "messages"
        else:
            assert render(template, messages, tools=tools, add_generation_prompt=prompt) == expected


def test_most_chats_do_render() -> None:
    """Lest the test above compares nothing but failures."""
    fails = 0
    for template in templates.ALL.values():
        for messages in CHATS.values():
            try:
                assert len(render(template, messages)) > 10
            except RequestError:
                fails += 1
    assert fails < 8


@pytest.mark.parametrize("name", templates.ALL)
def test_continuing_the_final_message_equals_transformers(name: str) -> None:
    options: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}
    for chat in ("one", "system", "turns", "named", "reasoning"):
        for ending in ("", " ", "\n\n"):
            messages = [*CHATS[chat][:-1], CHATS[chat][-1] | {"content": CHATS[chat][-1]["content"].strip() + ending}]
            try:
                expected = reference(templates.ALL[name], messages, **options)
            except Exception:
                with pytest.raises(RequestError):
                    render(templates.ALL[name], messages, **options)
            else:
                assert render(templates.ALL[name], messages, **options) == expected


def test_variables_reach_the_template() -> None:
    for variables in ({}, {"enable_thinking": False}, {"enable_thinking": True, "bos_token": "<other>"}):
        for name in ("qwen", "gemma"):
            expected = reference(templates.ALL[name], [USER], add_generation_prompt=True, **variables)
            assert render(templates.ALL[name], [USER], variables=variables) == expected
    documents = [{"title": "a", "text": "b"}]
    expected = reference(templates.ODDITIES, [USER], documents=documents, add_generation_prompt=True)
    assert render(templates.ODDITIES, [USER], documents=documents) == expected


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "chat_template"])
def test_variables_cannot_replace_ours(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        render(templates.CHATML, [USER], variables={name: "x"})
    assert caught.value.param == f"chat_template_kwargs.{name}"


def test_templates_by_name() -> None:
    named = ChatTemplate({"default": "plain", "tool_use": "with tools", "rag": "{{ documents[0].text }}"}, {})
    assert named.render([USER]) == "plain"
    assert named.render([USER], tools=TOOLS) == "with tools"
    assert named.render([USER], template="rag", documents=[{"text": "found"}]) == "found"
    assert named.render([USER], template="{{ messages[0].role }}") == "user"
    with pytest.raises(RequestError, match="choose one of .*: a, b"):
        ChatTemplate({"a": "", "b": ""}, {}).render([USER])


def test_a_model_without_a_template() -> None:
    empty = ChatTemplate({}, {})
    assert not empty
    with pytest.raises(RequestError, match="no chat template") as caught:
        empty.render([USER])
    assert (caught.value.code, caught.value.param, caught.value.status) == ("invalid_value", "messages", 400)


PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]


def test_parts_become_a_string_unless_the_template_takes_them_apart() -> None:
    message = {"role": "user", "content": PARTS}
    assert "user\none\ntwo<|im_end|>" in render(templates.CHATML, [message])
    assert render(templates.GEMMA, [message]) == reference(templates.GEMMA, [message], add_generation_prompt=True)
    assert render(templates.PARTS_ONLY, [message]) == "user: one two\n"
    assert render(templates.MACRO_PARTS, [message]) == "user | one | two;"
    # A string stays one where the template asks for it, and is wrapped where it does not.
    assert render(templates.GEMMA, [USER]) == reference(templates.GEMMA, [USER], add_generation_prompt=True)
    assert render(templates.PARTS_ONLY, [{"role": "user", "content": "one"}]) == "user: one\n"
    assert render(templates.MACRO_PARTS, [{"role": "user", "content": "one"}]) == "user | one;"


def test_asking_whether_something_else_is_a_string_does_not_count() -> None:
    template = "{{ 'text' if messages[0].name is string }}" + templates.PARTS_ONLY
    assert render(template, [{"role": "user", "content": "one"}]) == "user: one\n"


def test_other_kinds_of_text_parts() -> None:
    parts = ["zero", {"type": "input_text", "text": "one"}, {"type": "refusal", "refusal": "no"}, {"text": "three"}]
    assert "user\nzero\none\nno\nthree<" in render(templates.CHATML, [{"role": "user", "content": parts}])


def test_continuing_a_message_of_parts() -> None:
    options: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}
    message = {"role": "assistant", "content": PARTS}
    assert render(templates.GEMMA, [USER, message], **options).endswith("model\nonetwo")
    assert render(templates.CHATML, [USER, message], **options).endswith("assistant\none\ntwo")


def test_arguments_of_calls_may_be_json_text() -> None:
    text = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": [1, "é"]}'}}]}
    objects = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, "é"]}}}]}
    broken = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": ['}}]}
    assert render(templates.LLAMA3, [USER, text]) == render(templates.LLAMA3, [USER, objects])
    assert '"arguments": {"x": [}' in render(templates.QWEN, [USER, broken])


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ '|' + c['function']['arguments'] }}"
        "{% endfor %}{% endfor %}",
        "{% for m in messages %}{% for c in m.tool_calls or [] %}|{{ c.function.arguments }}{% endfor %}{% endfor %}",
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{% set a = c.function.arguments %}{{ '|' ~ a }}"
        "{% endfor %}{% endfor %}",
    ],
)
def test_templates_that_print_arguments_get_json_text(template: str) -> None:
    text = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x":  "é"}'}}]}
    assert render(template, [USER, text]) == '|{"x":  "é"}'


def test_the_messages_themselves_stay_as_they_are() -> None:
    chat = [USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}], "tool_calls": None}]
    before = repr(chat)
    render(templates.GEMMA, chat, continue_final_message=True, add_generation_prompt=False)
    assert repr(chat) == before


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (None, "messages"),
        (["hello"], "messages[0]"),
        ([{"content": "a"}], "messages[0]"),
        ([USER, {"role": 5, "content": "a"}], "messages[1]"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [5]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [PARTS[0], {"type": "image_url", "image_url": {}}]}], "messages[0].content[1]"),
        ([{"role": "user", "content": [{"type": [], "text": "a"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": "a", "x": object()}], "messages[0]"),
    ],
)
def test_messages_that_are_none(messages: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        render(templates.CHATML, messages)
    assert caught.value.param == param


def test_deep_nesting_is_refused() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RequestError, match="nested too deeply"):
        render(templates.CHATML, [USER | {"x": deep}])
    with pytest.raises(RequestError, match="nested too deeply"):
        render(templates.CHATML, [USER], tools=[{"x": deep}])


def test_tools_and_documents_are_lists_of_objects() -> None:
    for options, param in (
        ({"tools": {}}, "tools"),
        ({"tools": [1]}, "tools[0]"),
        ({"documents": ["a"]}, "documents[0]"),
    ):
        with pytest.raises(RequestError) as caught:
            render(templates.CHATML, [USER], **options)
        assert caught.value.param == param


CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}


@pytest.mark.parametrize(
    ("template", "messages", "options", "message", "param"),
    [
        (templates.MISTRAL, CHATS["odd"], {}, "roles must alternate", "messages"),
        ("{{ messages[0].nothing.at_all }}", [USER], {}, "asks for something that is not there.*nothing", "messages"),
        ("{{ messages[0].content + 5 }}", [USER], {}, r"cannot render these messages \(TypeError\)$", "messages"),
        ("a\n{% if %}", [USER], {}, "error in line 2", "messages"),
        ("{% include 'x' %}", [USER], {}, "cannot render", "messages"),
        (templates.CHATML, [USER], {"continue_final_message": True}, "add_generation_prompt", "continue_final_message"),
        ("{{ messages[0].role }}", CHATS["named"], CONTINUE, "does not print it whole", "continue_final_message"),
        (templates.CHATML, [USER, {"role": "assistant"}], CONTINUE, "has no text", "continue_final_message"),
    ],
)
def test_refusals_have_reasons(template: str, messages: Any, options: Any, message: str, param: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        render(template, messages, **options)
    assert caught.value.param == param
    assert "octavo" not in caught.value.message and len(caught.value.message) < 600


def test_an_error_in_a_template_of_the_request_is_its_own() -> None:
    with pytest.raises(RequestError, match="error in line 1") as caught:
        ChatTemplate({}, {}).render([USER], template="{{ }")
    assert caught.value.param == "chat_template"


def test_a_long_complaint_is_cut() -> None:
    with pytest.raises(RequestError) as caught:
        render("{{ raise_exception(messages[0].content) }}", [{"role": "user", "content": "no " * 10_000}])
    assert len(caught.value.message) == 500

"""Tool calls and reasoning, through the `openai` package and over plain HTTP; streams are what whole answers are."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from octavo.core.errors import ConfigError
from octavo.grammar.source import translate
from octavo.grammar.vocabulary import Vocabulary
from octavo.server.config import ServerConfig
from tests.server.conftest import Running, StartServer, error_of, events
from tests.server.fake_engine import FakeLLM

# Prints all that it is told, so that tests can see it with return_prompt_text.
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}{% endfor %}"
    "{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking %}<think>\n{% elif enable_thinking is defined %}<think></think>{% endif %}{% endif %}"
)
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
NOW: Any = {"type": "function", "function": {"name": "now"}}
ROME = '{"city": "Rome é"}'
CALLS = (
    f'Let me look. <tool_call>{{"name": "weather", "arguments": {ROME}}}</tool_call>'
    '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
)


@pytest.fixture(scope="module")
def shared() -> Any:
    running = Running(FakeLLM(template=TEMPLATE), ServerConfig(port=0, log_level="error"), _engine())
    running.start()
    yield running
    running.stop()


def _engine() -> Any:
    from octavo.core.config import EngineConfig

    return EngineConfig()


def ask(server: Running, say: str, *, stream: bool = False, **fields: Any) -> dict[str, Any]:
    """The answer's choices and usage; a stream's are put together as clients do."""
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = server.chat(say, **fields)
    assert answer.status_code == 200, answer.text
    return together(events(answer.text)) if stream else answer.json()


def together(chunks: list[Any]) -> dict[str, Any]:
    assert chunks.pop() == "[DONE]"
    choices: dict[int, Any] = {}
    for chunk in chunks[:-1]:
        (part,) = chunk["choices"]
        choice = choices.setdefault(
            part["index"], {"index": part["index"], "message": {"content": None}, "finish_reason": None}
        )
        message, delta = choice["message"], part["delta"]
        for name in ("role", "content", "reasoning", "reasoning_content"):
            if delta.get(name):
                message[name] = (message.get(name) or "") + delta[name]
        for call in delta.get("tool_calls") or []:
            calls = message.setdefault("tool_calls", [])
            if "id" in call:
                assert call["index"] == len(calls) and call["type"] in call
                calls.append({key: value for key, value in call.items() if key != "index"})
            else:
                kind, name = ("custom", "input") if "custom" in call else ("function", "arguments")
                assert set(call) == {"index", kind} and set(call[kind]) == {name}
                calls[call["index"]][kind][name] += call[kind][name]
        if "function_call" in delta:
            call = message.setdefault("function_call", {"arguments": ""})
            call["arguments"] += delta["function_call"].pop("arguments")
            call |= delta["function_call"]
        choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
    return {"choices": [choices[i] for i in sorted(choices)], "usage": chunks[-1]["usage"]}


def strip(answer: dict[str, Any]) -> Any:
    """Without what differs from answer to answer."""
    for choice in answer["choices"]:
        for call in choice["message"].get("tool_calls") or []:
            assert call.pop("id").startswith("call_")
    keep = ("index", "message", "finish_reason")
    choices = [{key: choice[key] for key in keep} for choice in answer["choices"]]
    for choice in choices:
        choice["message"] = {key: value for key, value in choice["message"].items() if value is not None}
    return choices, answer["usage"]


@pytest.mark.parametrize(
    ("say", "fields"),
    [
        (CALLS, {"tools": [WEATHER, NOW]}),
        (CALLS, {"tools": [WEATHER, NOW], "parallel_tool_calls": False}),
        (CALLS, {"tools": [WEATHER, NOW], "n": 3}),
        (CALLS, {"tools": [WEATHER, NOW], "max_tokens": 80}),
        (CALLS, {"tools": [WEATHER, NOW], "stop": ["Rome"]}),
        (CALLS, {"functions": [WEATHER["function"], NOW["function"]]}),
        (CALLS, {}),
        ("<think>\nHm é.\n</think>\n\nYes.", {}),
        (
            "Hm.</think>" + CALLS,
            {"chat_template_kwargs": {"enable_thinking": True}, "tools": [WEATHER], "logprobs": True},
        ),
        ("Hm.</think>Yes", {"reasoning_effort": "high", "include_reasoning": False}),
        ("Hm.", {"reasoning_effort": "low", "n": 2}),
    ],
)
def test_streams_are_whole_answers(server: Running, say: str, fields: dict[str, Any]) -> None:
    assert strip(ask(server, say, **fields)) == strip(ask(server, say, stream=True, **fields))


def test_calls(server: Running) -> None:
    answer = server.client().chat.completions.create(
        model="fake", messages=[{"role": "user", "content": f"say:{CALLS}"}], tools=[WEATHER, NOW], tool_choice="auto"
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    calls: Any = choice.message.tool_calls
    assert [(call.type, call.function.name, call.function.arguments) for call in calls] == [
        ("function", "weather", ROME),
        ("function", "now", "{}"),
    ]
    assert len({call.id for call in calls}) == 2


def test_streamed_calls(server: Running) -> None:
    """As the package's own accumulator sees them."""
    with server.client().chat.completions.stream(
        model="fake", messages=[{"role": "user", "content": f"say:{CALLS}"}], tools=[WEATHER, NOW]
    ) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion().choices[0]
    assert [(event.name, event.arguments) for event in done] == [("weather", ROME), ("now", "{}")]
    assert final.finish_reason == "tool_calls" and final.message.content == "Let me look."


def test_arguments_are_streamed_as_they_come(server: Running) -> None:
    chunks = server.client().chat.completions.create(
        model="fake", messages=[{"role": "user", "content": f"say:{CALLS}"}], tools=[WEATHER, NOW], stream=True
    )
    parts = [
        call.function.arguments
        for chunk in chunks
        for call in chunk.choices[0].delta.tool_calls or []
        if call.index == 0 and call.function
    ]
    assert len(parts) > 10 and "".join(map(str, parts)) == ROME


def test_only_one_call_where_several_are_not_wanted(server: Running) -> None:
    message = ask(server, CALLS, tools=[WEATHER, NOW], parallel_tool_calls=False)["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather"]


def test_without_tools_the_text_is_content(server: Running) -> None:
    for fields in ({}, {"tools": []}, {"tools": [WEATHER], "tool_choice": "none"}):
        choice = ask(server, CALLS, **fields)["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALLS, "stop")
        assert "tool_calls" not in choice["message"]


def test_a_cut_off_call(server: Running) -> None:
    choice = ask(server, CALLS, tools=[WEATHER], max_tokens=68)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "R'


def test_older_functions(server: Running) -> None:
    fields: Any = {"functions": [WEATHER["function"]], "function_call": "auto", "return_prompt_text": True}
    answer = ask(server, CALLS, **fields)
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "weather", "arguments": ROME}
    assert "tool_calls" not in choice["message"]
    assert json.loads(answer["prompt_text"].split("\n")[0].removeprefix("<tools>")) == [WEATHER]


def prompt(server: Running, messages: list[Any] | None = None, **fields: Any) -> str:
    body = {"messages": messages or [{"role": "user", "content": "Hi"}], "max_tokens": 1, "return_prompt_text": True}
    answer = server.post("/v1/chat/completions", {**body, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()["prompt_text"]


def test_the_template_gets_the_tools_that_may_be_called(server: Running) -> None:
    def shown(**fields: Any) -> list[str]:
        text = prompt(server, tools=[WEATHER, NOW], **fields)
        tools = json.loads(text.split("\n")[0].removeprefix("<tools>")) if "<tools>" in text else []
        return [tool["function"]["name"] for tool in tools]

    assert shown() == shown(tool_choice="auto") == ["weather", "now"]
    assert shown(tool_choice="none") == []
    one = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "now"}}]}
    assert shown(tool_choice={"type": "allowed_tools", "allowed_tools": one}) == ["now"]


def test_calls_in_the_history(server: Running) -> None:
    call = {"name": "weather", "arguments": '{"city": "Rome"}'}
    expected = (
        '<user>Hi\n<assistant><tool_call>{"name": "weather", "arguments": {"city": "Rome"}}\n<tool>Sunny\n<assistant>'
    )
    new: list[Any] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "call_1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny"},
    ]
    old: list[Any] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "function_call": call},
        {"role": "function", "name": "weather", "content": "Sunny"},
    ]
    assert prompt(server, new) == prompt(server, old) == expected


def test_reasoning(server: Running) -> None:
    answer = ask(server, "<think>\nHm é.\n</think>\n\nYes.")
    message = answer["choices"][0]["message"]
    assert (message["reasoning"], message["reasoning_content"], message["content"]) == ("Hm é.", "Hm é.", "Yes.")
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": len("Hm é.".encode())}
    hidden = ask(server, "<think>\nHm é.\n</think>\n\nYes.", include_reasoning=False)
    assert "reasoning" not in hidden["choices"][0]["message"]
    assert hidden["choices"][0]["message"]["content"] == "Yes."
    assert hidden["usage"]["completion_tokens_details"] == answer["usage"]["completion_tokens_details"]


def test_reasoning_that_the_prompt_begins(server: Running) -> None:
    for fields in ({"reasoning_effort": "high"}, {"chat_template_kwargs": {"enable_thinking": True}}):
        message = ask(server, "Hm.</think>Yes", **fields)["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == ("Hm.", "Yes")
    for off in ({"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}):
        message = ask(server, "Hm.</think>Yes", **off)["choices"][0]["message"]
        assert "reasoning" not in message and message["content"] == "Hm.</think>Yes"
    unfinished = ask(server, "Hm.", reasoning_effort="low")["choices"][0]["message"]
    assert (unfinished["reasoning"], unfinished["content"]) == ("Hm.", None)


def test_reasoning_with_a_budget(start_server: StartServer) -> None:
    server = start_server(FakeLLM(template=TEMPLATE, special=["<think>", "</think>"]))
    assert server.llm is not None
    ask(server, "x", thinking_token_budget=5)
    assert (server.llm.seen[0].thinking_token_budget, server.llm.seen[0].thinking_marks) == (5, ["<think>", "</think>"])
    assert server.complete("say:x", thinking_token_budget=5).status_code == 200
    for budget in (0, -1, "x"):
        error_of(server.chat(thinking_token_budget=budget), 400, "invalid_value", "thinking_token_budget")
    # Its reasoning is not marked with tokens; or not at all.
    for template in (TEMPLATE, "{{ messages[0].content }}"):
        other = start_server(FakeLLM(template=template))
        error_of(other.chat(thinking_token_budget=5), 400, "invalid_value", "thinking_token_budget")


def test_a_template_without_effort_ignores_it_aloud(start_server: StartServer) -> None:
    answer = start_server().chat("x", reasoning_effort="low", user="me")
    assert answer.headers["x-octavo-ignored"] == "user,reasoning_effort"


MISTRAL = "{{ tools }}[TOOL_CALLS]{% for message in messages %}{{ message.content + '\n' }}{% endfor %}<assistant>"


@pytest.mark.parametrize("stream", [False, True])
def test_markers_that_are_special_tokens(start_server: StartServer, stream: bool) -> None:
    server = start_server(FakeLLM(template=MISTRAL, special=["[TOOL_CALLS]", "[ARGS]", "<s>"]))
    say = f"Now.<s> [TOOL_CALLS]weather[ARGS]{ROME}[TOOL_CALLS]now[ARGS]{{}}"
    message = ask(server, say, tools=[WEATHER, NOW], stream=stream)["choices"][0]["message"]
    assert message["content"] == "Now."
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == [ROME, "{}"]
    assert all(len(call["id"]) == 9 for call in message["tool_calls"])
    # Special tokens are shown to who wants them, and to nobody else.
    shown = ask(server, "a<s>b", tools=[NOW], skip_special_tokens=False, stream=stream)
    assert shown["choices"][0]["message"]["content"] == "a<s>b"
    assert ask(server, "a<s>b", stream=stream)["choices"][0]["message"]["content"] == "ab"
    assert ask(server, "a[TOOL_CALLS] b", tools=[NOW], stream=stream)["choices"][0]["message"]["content"] == "a b"


def enforced(server: Running, say: str = "x", **fields: Any) -> Callable[[str], bool]:
    """What the grammar says that the engine was given for a request."""
    assert server.llm is not None
    ask(server, say, **fields)
    asked = server.llm.seen[-1].structured_outputs
    assert asked is not None
    tokenizer = server.llm.tokenizer
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size)
    source = translate(asked, vocabulary)

    def accepts(text: str) -> bool:
        found, tokens = vocabulary.matcher(source), tokenizer.encode(text, add_special_tokens=False)
        return bool(found.try_consume_tokens(tokens) == len(tokens) and found.is_accepting())

    return accepts


def call(name: str, arguments: str = "{}") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def test_required_calls_are_enforced(server: Running) -> None:
    tools = {"tools": [WEATHER, NOW]}
    named = {"type": "function", "function": {"name": "now"}}
    allowed = {"mode": "required", "tools": [named]}
    two = call("weather", '{"city": "Rome"}') + "\n" + call("now")
    for accepts in (
        enforced(server, **tools, tool_choice="required"),
        enforced(server, functions=[WEATHER["function"], NOW["function"]], function_call={"name": "now"}),
        enforced(server, **tools, tool_choice=named),
        enforced(server, **tools, tool_choice={"type": "allowed_tools", "allowed_tools": allowed}),
    ):
        assert accepts(call("now")) and accepts("<think>a</think>" + call("now"))
        assert not accepts("Hello") and not accepts("") and not accepts(call("then"))
    accepts = enforced(server, **tools, tool_choice="required")
    assert accepts(two) and not accepts(call("weather", '{"city": 1}'))
    assert not enforced(server, **tools, tool_choice="required", parallel_tool_calls=False)(two)
    assert not enforced(server, **tools, tool_choice=named)(call("weather"))
    thinks = enforced(server, **tools, tool_choice="required", reasoning_effort="high")
    assert thinks("Hm.</think>" + call("now")) and not thinks(call("now"))


def test_strict_tools_are_enforced(server: Running) -> None:
    strict: Any = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    accepts = enforced(server, tools=[strict, NOW])
    assert accepts("Hello.") and accepts("Look. " + call("weather", '{"city": "Rome"}'))
    assert accepts(call("now", '{"anything": 1}')) and not accepts(call("weather", '{"city": 1}'))
    ask(server, "x", tools=[WEATHER, NOW])
    assert server.llm is not None and server.llm.seen[-1].structured_outputs is None


def test_a_form_of_the_content(server: Running) -> None:
    """It stands behind the reasoning, and beside calls."""
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    form: Any = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    accepts = enforced(server, **form)
    assert accepts('{"a": 1}') and accepts('<think>b</think>{"a": 1}') and not accepts("b")
    accepts = enforced(server, **form, reasoning_effort="high")
    assert accepts('b</think>\n\n{"a": 1}') and not accepts('{"a": 1}') and not accepts("b</think>c")
    accepts = enforced(server, **form, tools=[NOW])
    assert accepts('{"a": 1}') and accepts(call("now")) and not accepts("b")
    accepts = enforced(server, **form, tools=[NOW], tool_choice="required")
    assert accepts(call("now")) and not accepts('{"a": 1}')
    no_part = {
        "type": "structural_tag",
        "structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}],
        "triggers": ["<a>"],
    }
    error_of(server.chat(response_format=no_part, tools=[NOW]), 400, "invalid_value", "response_format")
    assert enforced(server, response_format=no_part, reasoning_effort="high")("b</think><a>1</a>")


def test_calls_of_a_required_tool(server: Running) -> None:
    """All tools are told of, and the calls are those of any other answer."""
    named = {"type": "function", "function": {"name": "now"}}
    answer = ask(server, call("now"), tools=[WEATHER, NOW], tool_choice=named, return_prompt_text=True)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert [made["function"]["name"] for made in choice["message"]["tool_calls"]] == ["now"]
    assert "weather" in answer["prompt_text"]


def test_a_form_of_calls_without_a_grammar(start_server: StartServer) -> None:
    server = start_server(FakeLLM(template=TEMPLATE), tool_call_parser="pythonic")
    keyword = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"class": {}}}}}
    error_of(server.chat(tools=[keyword], tool_choice="required"), 400, "invalid_value", "tools")
    assert ask(server, "[f()]", tools=[keyword])["choices"][0]["finish_reason"] == "tool_calls"
    assert enforced(server, tools=[NOW], tool_choice="required")("[now()]")


SHELL: Any = {"type": "custom", "custom": {"name": "shell", "description": "Runs a command."}}


def custom(format: Any) -> Any:
    return {"type": "custom", "custom": {"name": "shell", "format": format}}


@pytest.mark.parametrize("stream", [False, True])
def test_custom_tools(server: Running, stream: bool) -> None:
    """Their input is text: told as it comes, without what JSON puts around it."""
    commands = ['ls -l | "x"\n\t\\ é 🙂', "", "b"]
    say = "".join(call("shell", json.dumps({"input": each})) for each in commands) + call("now")
    choice = ask(server, say, tools=[SHELL, NOW], stream=stream)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    *ours, last = choice["message"]["tool_calls"]
    assert [made["custom"] for made in ours] == [{"name": "shell", "input": each} for each in commands]
    assert {made["type"] for made in ours} == {"custom"} and all("function" not in made for made in ours)
    assert last["type"] == "function" and last["function"] == {"name": "now", "arguments": "{}"}
    # What is no object with a text is told as it is; what is cut off, as far as it came.
    for arguments, text in (('{"command": 1}', '{"command": 1}'), ('{"input": 5}', '{"input": 5}')):
        (made,) = ask(server, call("shell", arguments), tools=[SHELL], stream=stream)["choices"][0]["message"][
            "tool_calls"
        ]
        assert made["custom"]["input"] == text
    most = len('<tool_call>\n{"name": "shell", "arguments": {"input": "a')
    cut = ask(server, call("shell", '{"input": "ab"}'), tools=[SHELL], max_tokens=most, stream=stream)
    (made,) = cut["choices"][0]["message"]["tool_calls"]
    assert made["custom"]["input"] == "a" and cut["choices"][0]["finish_reason"] == "length"


def test_custom_tools_through_the_client(server: Running) -> None:
    create = server.client().chat.completions.create
    say = f"say:{call('shell', json.dumps({'input': 'ls'}))}"
    answer = create(model="fake", messages=[{"role": "user", "content": say}], tools=[SHELL])
    (made,) = answer.choices[0].message.tool_calls or ()
    assert made.type == "custom" and (made.custom.name, made.custom.input) == ("shell", "ls")
    history: Any = [
        {"role": "user", "content": "Hi"},
        answer.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": made.id, "content": "a.txt"},
        {"role": "user", "content": "say:done"},
    ]
    again = create(model="fake", messages=history, tools=[SHELL], extra_body={"return_prompt_text": True})
    told = (again.model_extra or {})["prompt_text"]
    assert '<tool_call>{"name": "shell", "arguments": {"input": "ls"}}<tool>a.txt' in told.replace("\n", "")
    assert "Runs a command." in told and again.choices[0].message.content == "done"


def test_the_grammar_of_a_custom_tool(start_server: StartServer, server: Running) -> None:
    def grammar(syntax: str, definition: str) -> Any:
        return custom({"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}})

    def made(text: str) -> str:
        return call("shell", json.dumps({"input": text}))

    accepts = enforced(server, tools=[grammar("regex", "a+\n")])  # enforced without being required
    assert accepts("Hello.") and accepts(made("aa\n")) and not accepts(made("b")) and not accepts(call("shell"))
    lines = 'start: line+\nline: /[^\\n]+/ NL\nNL: "\\n"'
    accepts = enforced(server, tools=[grammar("lark", lines)], tool_choice="required")
    assert accepts(made('a "b"\n\\c\n')) and not accepts(made("a")) and not accepts("Hello.")
    xml = start_server(FakeLLM(template=TEMPLATE), tool_call_parser="qwen3_coder")
    text = "<tool_call>\n<function=shell>\n<parameter=input>\n{}\n</parameter>\n</function>\n</tool_call>"
    for tool, right in ((grammar("lark", 'start: "a" | "b"'), "b"), (grammar("regex", "[ab]"), "a")):
        accepts = enforced(xml, tools=[tool], tool_choice={"type": "custom", "custom": {"name": "shell"}})
        assert accepts(text.format(right)) and not accepts(text.format("c"))
    allowed = {"mode": "required", "tools": [{"type": "custom", "custom": {"name": "shell"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    accepts = enforced(server, tools=[SHELL, NOW], tool_choice=choice)
    assert accepts(made("any")) and not accepts(call("now"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "other"}}, "tool_choice.type"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "custom"}]}, "tools[0]"),
        ({"tools": [{"type": "custom", "custom": {"name": "x", "format": {"type": "y"}}}]},
         "tools[0].custom.format.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
         "tools[0].function.parameters"),
        ({"tools": [WEATHER], "functions": [WEATHER["function"]]}, "functions"),
        ({"tools": [WEATHER], "function_call": "auto"}, "function_call"),
        ({"functions": [WEATHER["function"]], "function_call": {"name": "x"}}, "function_call"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ],
)  # fmt: skip
def test_what_cannot_be_had(server: Running, fields: dict[str, Any], param: str) -> None:
    error_of(server.chat(**fields), 400, "invalid_value", param)


def test_a_model_without_a_form_of_calls(start_server: StartServer) -> None:
    error_of(start_server().chat("x", tools=[NOW]), 400, "invalid_value", "tools")
    named = start_server(tool_call_parser="hermes")
    assert len(ask(named, CALLS, tools=[WEATHER])["choices"][0]["message"]["tool_calls"]) == 2


def test_flags(start_server: StartServer) -> None:
    with pytest.raises(ConfigError, match="tool_call_parser"):
        ServerConfig(tool_call_parser="x")
    with pytest.raises(ConfigError, match="reasoning_parser"):
        ServerConfig(reasoning_parser="x")
    server = start_server(FakeLLM(template=TEMPLATE), enable_auto_tool_choice=False)
    error_of(server.chat("x", tools=[NOW]), 400, "invalid_value", "tool_choice")
    implied = start_server(reasoning_parser="deepseek_r1")
    assert ask(implied, "Hm.</think>Yes")["choices"][0]["message"]["reasoning"] == "Hm."

"""/v1/responses through the `openai` package: whole answers, the sequence of events, and what is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from octavo.core.config import EngineConfig
from octavo.server.config import ServerConfig
from octavo.server.responses import protocol as p
from octavo.server.responses.store import ResponseNotFound, ResponseStore, Stored
from tests.server.conftest import Running, StartServer, error_of, wait_for
from tests.server.fake_engine import FakeLLM
from tests.server.test_tools import CALLS, ROME, TEMPLATE

TOOLS: Any = [
    {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": None},
    {"type": "function", "name": "now", "parameters": None, "strict": False},
]
CREATED = ["response.created", "response.in_progress"]
TEXT = [
    *("response.output_item.added", "response.content_part.added", "response.output_text.delta"),
    *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
]
REASONING = [kind.replace("output_text", "reasoning_text") for kind in TEXT]
CALL = [
    *("response.output_item.added", "response.function_call_arguments.delta"),
    *("response.function_call_arguments.done", "response.output_item.done"),
]


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    running = Running(FakeLLM(template=TEMPLATE), ServerConfig(port=0, log_level="error"), EngineConfig())
    running.start()
    yield running
    running.stop()


def ask(server: Running, say: Any, **options: Any) -> Any:
    """The whole answer, which a stream must give as well."""
    options = {"model": "fake", "input": f"say:{say}" if isinstance(say, str) else say, **options}
    create: Any = server.client().responses.create
    whole = create(**options)
    events = list(create(**options, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert plain(events[-1].response) == plain(whole)
    if whole.status == "completed":  # the package's own helper puts the events together, and checks their order
        with server.client().responses.stream(**options) as stream:
            assert stream.get_final_response().output_text == whole.output_text
    return whole


def plain(response: Any) -> Any:
    """Without what is drawn anew."""
    found = response.to_dict()
    for name in ("id", "created_at", "completed_at"):
        del found[name]
    for item in found["output"]:
        item.pop("id")
        item.pop("call_id", None)
    return found


def kinds(server: Running, say: str, **options: Any) -> list[str]:
    """The types of a stream's events; deltas that follow each other count once."""
    create: Any = server.client().responses.create
    found = [event.type for event in create(model="fake", input=f"say:{say}", stream=True, **options)]
    return [kind for i, kind in enumerate(found) if not kind.endswith("delta") or found[i - 1] != kind]


def test_text(server: Running) -> None:
    answer = ask(server, "Grüße 👋🏽", metadata={"a": "b"}, temperature=0.5)
    assert (answer.output_text, answer.status, answer.object) == ("Grüße 👋🏽", "completed", "response")
    assert (answer.metadata, answer.temperature, answer.error) == ({"a": "b"}, 0.5, None)
    assert answer.usage.output_tokens == len("Grüße 👋🏽".encode()) + 1
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert kinds(server, "x") == [*CREATED, *TEXT, "response.completed"]
    raw = server.post("/v1/responses", {"input": "say:x", "stream": True})
    assert raw.text.startswith("event: response.created\ndata: ") and "[DONE]" not in raw.text


def test_length(server: Running) -> None:
    answer = ask(server, "one two", max_output_tokens=3)
    assert (answer.status, answer.incomplete_details.reason, answer.output_text) == (
        "incomplete",
        "max_output_tokens",
        "one",
    )
    assert answer.output[0].status == "incomplete"
    assert kinds(server, "one two", max_output_tokens=3)[-1] == "response.incomplete"


def test_tools_and_reasoning(server: Running) -> None:
    answer = ask(server, f"why</think>{CALLS}", tools=TOOLS, reasoning={"effort": "high"})
    reasoning, text, weather, now = answer.output
    assert (reasoning.content[0].text, reasoning.summary, answer.output_text) == ("why", [], "Let me look.")
    assert (text.status, weather.name, weather.arguments) == ("completed", "weather", ROME)
    assert (now.name, now.arguments) == ("now", "{}")
    assert answer.usage.output_tokens_details.reasoning_tokens == 3
    found = kinds(server, f"why</think>{CALLS}", tools=TOOLS, reasoning={"effort": "high"})
    assert found == [*CREATED, *REASONING, *TEXT, *CALL, *CALL, "response.completed"]
    none = ask(server, CALLS, tools=TOOLS, tool_choice="none")
    assert [item.type for item in none.output] == ["message"]


def test_logprobs(server: Running) -> None:
    answer = ask(server, "pe", include=["message.output_text.logprobs"], top_logprobs=2)
    rows = answer.output[0].content[0].logprobs
    assert [(row.token, row.logprob, len(row.top_logprobs)) for row in rows] == [
        ("p", -0.5, 2),
        ("e", -3.5, 2),
        ("<end>", -0.5, 2),
    ]


def test_a_conversation_by_items(server: Running) -> None:
    items: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "Let me look.", "annotations": []}]},
        {"type": "function_call", "call_id": "a", "name": "now", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "noon"},
        {"role": "user", "content": "and? say:page"},
    ]  # fmt: skip
    answer = ask(server, items, instructions="Say less.")
    assert answer.output_text == "page"
    expected = (
        "<system>Say less.\n<developer>Be brief.\n<user>hi\n<assistant>Let me look."
        '<tool_call>{"name": "now", "arguments": {}}\n<tool>noon\n<user>and? say:page\n<assistant>'
    )
    assert answer.usage.input_tokens == len(expected)
    listed = server.client().responses.input_items.list(answer.id, order="asc").data
    assert [item.type for item in listed] == [item.get("type", "message") for item in items]
    assert all(item.id for item in listed)
    last = server.client().responses.input_items.list(answer.id, limit=1)
    assert (last.data[0].content[0].text, last.has_more) == ("and? say:page", True)  # type: ignore[union-attr]


def test_a_conversation_by_id(server: Running) -> None:
    create: Any = server.client().responses.create
    first = create(model="fake", input="say:one", instructions="not for the second")
    second = create(model="fake", input="two", previous_response_id=first.id)
    assert second.usage.input_tokens == len("<user>say:one\n<assistant>one\n<user>two\n<assistant>")
    assert second.previous_response_id == first.id
    third = create(
        model="fake", input=[{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "x"}]
    )
    assert third.usage.input_tokens == len("<assistant>one\n<user>x\n<assistant>")
    with pytest.raises(openai.NotFoundError) as caught:
        create(model="fake", input="x", previous_response_id="resp_0")
    assert caught.value.param == "previous_response_id"


def test_truncation(server: Running) -> None:
    items: Any = [{"role": "user", "content": f"{i} " + "x" * 900} for i in range(8)]
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().responses.create(model="fake", input=items)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    answer = server.client().responses.create(model="fake", input=items, truncation="auto", max_output_tokens=5)
    assert answer.usage is not None and 900 < answer.usage.input_tokens <= 4091
    with pytest.raises(openai.BadRequestError):
        server.client().responses.create(model="fake", input="x" * 5000, truncation="auto")


def test_what_is_kept(server: Running) -> None:
    responses = server.client().responses
    answer = responses.create(model="fake", input="say:x")
    assert responses.retrieve(answer.id).to_dict() == answer.to_dict()
    responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        responses.retrieve(answer.id)
    unkept = responses.create(model="fake", input="say:x", store=False)
    with pytest.raises(openai.NotFoundError):
        responses.retrieve(unkept.id)
    with pytest.raises(openai.BadRequestError):
        responses.cancel(responses.create(model="fake", input="say:x").id)


def test_background(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.005))
    responses = server.client().responses
    answer = responses.create(model="fake", input="say:hello", background=True)
    assert (answer.status, answer.background, answer.output) == ("queued", True, [])
    wait_for(lambda: responses.retrieve(answer.id).status == "completed")
    assert responses.retrieve(answer.id).output_text == "hello"

    long = responses.create(model="fake", input="count", background=True, max_output_tokens=4000)
    wait_for(lambda: responses.retrieve(long.id).status == "in_progress")
    assert responses.cancel(long.id).status == "cancelled"
    server.idle()
    assert server.llm is not None and len(server.llm.aborted) == 1

    stream: Any = responses.create(model="fake", input="say:hello", background=True, stream=True)
    events = [next(stream) for _ in range(5)]
    stream.close()
    rest = list(responses.retrieve(events[0].response.id, stream=True, starting_after=4))
    assert [e.sequence_number for e in events + rest] == list(range(len(events) + len(rest)))
    assert rest[-1].type == "response.completed" and rest[-1].response.output_text == "hello"

    lost = responses.create(model="fake", input="count", background=True, max_output_tokens=4000)
    wait_for(lambda: responses.retrieve(lost.id).status == "in_progress")
    server.call(server.llm.crash)
    wait_for(lambda: responses.retrieve(lost.id).status == "failed")
    error = responses.retrieve(lost.id).error
    assert error is not None and error.code == "engine_unavailable"


def test_an_engine_that_dies_in_a_stream(start_server: StartServer) -> None:
    server = start_server(FakeLLM(delay=0.01))
    stream: Any = server.client().responses.create(model="fake", input="count", stream=True)
    seen = [next(stream).type for _ in range(5)]
    assert server.llm is not None
    server.call(server.llm.crash)
    with pytest.raises(openai.APIError, match="engine stopped"):
        for event in stream:
            seen.append(event.type)
    assert seen[-1] == "response.failed"


def test_another_key_s_responses(start_server: StartServer) -> None:
    server = start_server(api_key=("a", "b"))
    mine, theirs = (server.client(api_key=key).responses for key in "ab")
    id = mine.create(model="fake", input="say:x").id
    assert mine.retrieve(id).id == id
    for forbidden in (theirs.retrieve, theirs.delete, theirs.cancel, theirs.input_items.list):
        with pytest.raises(openai.NotFoundError):
            forbidden(id)
    with pytest.raises(openai.NotFoundError):
        theirs.create(model="fake", input="x", previous_response_id=id)


def stored(id: str) -> Stored:
    response = p.ResponseObject(
        id=id, created_at=0, status="completed", model="m", output=[], parallel_tool_calls=True, temperature=1, top_p=1,
        tool_choice="auto", tools=[], text=p.TextConfig(), background=False, store=True,
    )  # fmt: skip
    return Stored(response, b"", [])


def test_the_store_is_bounded() -> None:
    now = 0.0
    store = ResponseStore(3, 10.0, lambda: now)
    for i in range(5):
        store.put(stored(str(i)))
    assert len(store) == 3
    assert store.get("4", b"").response.id == "4"
    with pytest.raises(ResponseNotFound):
        store.get("0", b"")
    now = 11.0
    with pytest.raises(ResponseNotFound):
        store.get("4", b"")
    assert (len(store), store.bytes) == (0, 0)


def test_items_are_found_by_their_ids() -> None:
    """However many references a request has: nothing is searched for them."""
    store = ResponseStore(2, 10.0)
    for i in range(3):
        each = stored(str(i))
        each.response.output.append(p.OutputMessage(f"item {i}", "completed", []))
        store.put(each)
        store.put(each)
    assert store.find_item("item 0", b"") is None and store.find_item("item 2", b"somebody") is None
    assert store.find_item("item 1", b"") is not None and store.find_item("item 2", b"") is not None
    store.delete("2", b"")
    assert store.find_item("item 2", b"") is None and list(store._made) == ["item 1"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"type": "smell"}]}, "input[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].id"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": "x" * 5000}, "input"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"background": True, "store": False}, "background"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"temperature": 200}, "temperature"),
    ],
)
def test_errors(server: Running, fields: dict[str, Any], param: str) -> None:
    code = (
        "context_length_exceeded"
        if 5000 in (fields.get("max_output_tokens"), len(str(fields.get("input"))))
        else "invalid_value"
    )
    error_of(server.post("/v1/responses", {"input": "say:x", **fields}), 400, code, param)


def test_ignored_fields_are_named(server: Running) -> None:
    body = {"input": "say:x", "user": "me", "reasoning": {"effort": "low", "summary": "auto"}, "include": ["x.y"]}
    answer = server.post("/v1/responses", {**body, "text": {"verbosity": "low"}, "service_tier": "auto"})
    assert answer.headers["x-octavo-ignored"] == "user,service_tier,include.x.y,reasoning.summary,text.verbosity"


def test_custom_tools(server: Running) -> None:
    custom: Any = {
        "type": "custom",
        "name": "shell",
        "format": {"type": "grammar", "syntax": "regex", "definition": "(.|\\n)*"},
    }
    say = 'Look.<tool_call>{"name": "shell", "arguments": {"input": "a\\n\\"b\\""}}</tool_call>' + CALLS
    answer = ask(server, say, tools=[custom, *TOOLS])
    _, item, *others = answer.output
    assert (item.type, item.name, item.input, item.status) == ("custom_tool_call", "shell", 'a\n"b"', "completed")
    assert [each.type for each in others] == ["message", "function_call", "function_call"]
    assert answer.tools[0].to_dict() == {**custom, "description": None}
    assert kinds(server, say, tools=[custom])[8:12] == [
        *("response.output_item.added", "response.custom_tool_call_input.delta"),
        *("response.custom_tool_call_input.done", "response.output_item.done"),
    ]
    history = [
        {"role": "user", "content": "Hi"},
        item.to_dict(),
        {"type": "custom_tool_call_output", "call_id": item.call_id, "output": "done"},
        {"role": "user", "content": "say:x"},
    ]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "shell"}]}
    for chosen in ({"type": "custom", "name": "shell"}, choice):
        assert ask(server, history, tools=[custom], tool_choice=chosen).output_text == "x"
    error_of(
        server.post("/v1/responses", {"input": [{"type": "custom_tool_call", "call_id": "a", "name": "b"}]}),
        400, "invalid_value", "input[0].input",
    )  # fmt: skip

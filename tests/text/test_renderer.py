"""What a template's budget does not count ends with the process that renders it, and with nobody else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from octavo.core import child
from octavo.core.errors import Overloaded, RequestError
from octavo.text.chat import ChatTemplate
from octavo.text.renderer import Chat, Renderer

MESSAGES = [{"role": "user", "content": "hello"}]
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ bos_token }}{% endfor %}"
TEMPLATE = ChatTemplate({"default": PLAIN, "half": "\ud800"}, {"bos_token": "!"})
DOUBLED = "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
ENDLESS = [
    DOUBLED + "{{ ns.x }}",
    DOUBLED + "{{ ns.x | tojson }}",
    DOUBLED.replace("{% endfor %}", "{% set ns.y = [ns.y, ns.y] %}{% endfor %}") + "{{ ns.x == ns.y }}",
]
LARGE = ["{{ '{:{width}}'.format(1, width=1000000000) }}", "{{ '{:{}}'.format('x', 10000000000) }}"]
MALFORMED = [
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% for i in [1] %}" * 25 + "{% endfor %}" * 25,
    "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
]


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    renderer = Renderer(TEMPLATE)
    renderer.start()
    yield renderer
    renderer.close()


def process_of(renderer: Renderer) -> int:
    assert renderer._worker._child is not None
    return renderer._worker._child._process.pid


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_generation_prompt": False, "continue_final_message": True},
        {"template": "{{ messages[0].content[0].text }}", "content_format": "openai"},
        {"template": "{{ n }}", "variables": {"n": 10**30}},
        {"template": "{{ tools | tojson }}{{ documents }}", "tools": [{"a": [1.0, None, "é"]}], "documents": []},
    ],
)  # fmt: skip
def test_the_text_is_that_of_the_template(renderer: Renderer, options: dict[str, Any]) -> None:
    assert renderer.render(Chat(MESSAGES, **options)) == TEMPLATE.render(MESSAGES, **options)


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([], {}),
        ([{"content": "x"}], {}),
        (MESSAGES, {"variables": {"messages": []}}),
        (MESSAGES, {"continue_final_message": True}),
        (MESSAGES, {"template": "{% if %}"}),
        (MESSAGES, {"template": "{{ raise_exception('no') }}"}),
    ],
)
def test_errors_are_those_of_the_template(renderer: Renderer, messages: Any, options: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as ours:
        renderer.render(Chat(messages, **options))
    with pytest.raises(RequestError) as theirs:
        TEMPLATE.render(messages, **options)
    assert (ours.value.message, ours.value.param, ours.value.code) == (
        theirs.value.message, theirs.value.param, theirs.value.code
    )  # fmt: skip


@pytest.mark.parametrize("source", ENDLESS)
def test_what_does_not_end_is_killed(renderer: Renderer, source: str) -> None:
    renderer.render(Chat(MESSAGES))
    before = process_of(renderer)
    with pytest.raises(RequestError, match="too long, or too much memory|MemoryError"):
        renderer.render(Chat(MESSAGES, template=source))
    with pytest.raises(ProcessLookupError):  # not even a zombie
        os.kill(before, 0)
    assert renderer.render(Chat(MESSAGES)) == TEMPLATE.render(MESSAGES)


@pytest.mark.parametrize("source", [*LARGE, *MALFORMED, "{{ '\\ud800' }}", "{{ raise_exception('\\ud800') }}"])
def test_what_it_survives(renderer: Renderer, source: str) -> None:
    """Too much memory at once, what Python cannot compile, text that is none."""
    renderer.render(Chat(MESSAGES))
    before = process_of(renderer)
    with pytest.raises(RequestError):
        renderer.render(Chat(MESSAGES, template=source))
    assert process_of(renderer) == before


def test_a_process_that_dies_is_replaced(renderer: Renderer) -> None:
    renderer.render(Chat(MESSAGES))
    os.kill(process_of(renderer), signal.SIGKILL)
    assert renderer.render(Chat(MESSAGES)) == TEMPLATE.render(MESSAGES)


def test_a_process_that_has_no_time_is_no_fault_of_the_chat(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer.render(Chat(MESSAGES))
    os.kill(process_of(renderer), signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(child, "BUSY_SECONDS", 0.3)
        with pytest.raises(Overloaded):
            renderer.render(Chat(MESSAGES))
    assert renderer.render(Chat(MESSAGES)) == TEMPLATE.render(MESSAGES)


def test_long_chats(renderer: Renderer) -> None:
    chat = [{"role": "user", "content": "x" * 1000}] * 4000
    assert renderer.render(Chat(chat)) == TEMPLATE.render(chat)

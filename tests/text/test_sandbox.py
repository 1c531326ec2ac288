"""A template cannot reach Python's internals, and cannot use much time or memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from octavo.core.errors import RequestError
from octavo.text.chat import ChatTemplate

MESSAGES = [{"role": "user", "content": "hello"}]


def render(source: str, messages: Any = MESSAGES, **variables: Any) -> str:
    return ChatTemplate({}, {}).render(messages, template=source, variables=variables)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ ('{0.__class__}').format(1) }}",
        "{{ ('{x.__class__.__mro__}').format_map({'x': 1}) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(__class__=1) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% import 'os' as os %}",
        "{{ lipsum(n=5) }}",
    ],
)
def test_internals_are_out_of_reach(source: str) -> None:
    try:
        text = render(source)
    except RequestError as error:
        assert "class '" not in error.message
    else:
        assert text == ""  # what is unsafe reads as undefined


WORK = [
    "{% for i in range(10 ** 9) %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ messages[0].content.upper() }}{{ messages[0].content | upper }}{% endfor %}",
    "{% for i in range(99999) %}{{ 'sixteen letters.' }}{% endfor %}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(30) }}",
    "{% for a in [1] recursive %}{{ loop([a]) }}{% endfor %}",
]
MEMORY = [
    "{% set ns = namespace(x='ab') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=2) %}{% for i in range(40) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ 'x' * 10 ** 9 }}",
    "{{ 'x' * 1000000000 }}",
    "{{ 1000000000 * [1] }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 2.0 ** 100000 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{x:1000000000}'.format_map({'x': 1}) }}",
    "{{ 'x' | center(1000000000) }}",
    "{{ 'x'.ljust(1000000000) }}",
    "{{ 'x'.zfill(1000000000) }}",
    "{{ 'x\nx' | indent(1000000000) }}",
    "{{ [1] | batch(1000000000, 0) | list }}",
    "{{ [1] | tojson(1000000000) }}",
    "{{ '\t'.expandtabs(1000000000) }}",
    "{% set x = 'x' * 1000000 %}{{ x | replace('x', x) }}",
    "{% set x = 'x' * 1000000 %}{{ x.replace('x', x) }}",
    "{% set x = 'x' * 1000000 %}{{ x.join(x) }}",
    "{% set x = 'x' * 1000000 %}{{ range(99999) | join(x) }}",
    "{% set x = 'x' * 1000000 %}{{ range(99999) | map('string') | join(x) }}",
    "{{ (1).to_bytes(1000000000, 'big') }}",
]


@pytest.mark.parametrize("source", WORK + MEMORY)
def test_work_is_bounded(source: str) -> None:
    with pytest.raises(RequestError, match="was stopped|cannot render these messages"):
        render(source)


@pytest.mark.parametrize("source", MEMORY)
def test_memory_is_bounded(source: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RequestError):
            render(source)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


def test_output_is_bounded_by_the_input() -> None:
    twenty = "{% for i in range(20) %}{{ messages[0].content }}{% endfor %}"
    assert len(render(twenty, [{"role": "user", "content": "x" * 50_000}])) == 1_000_000
    with pytest.raises(RequestError, match="output becomes too long"):
        render(twenty, [{"role": "user", "content": "x" * 1_000_000}])


def test_large_numbers_in_messages_are_nobodys_fault() -> None:
    source = "{% macro show(x) %}{{ x | string }}{% endmacro %}{{ show(n) }} {{ n | tojson }} {{ {'n': n} | tojson }}"
    assert render(source, n=10**15) == '1000000000000000 1000000000000000 {"n": 1000000000000000}'


def test_a_long_chat_is_within_bounds() -> None:
    source = (
        "{% for m in messages %}{% set ns = namespace(a=loop.index0 + 1) %}{{ m.role ~ m.content.strip() }}"
        "{% if loop.last %}{{ ns.a | string | trim | length }}{% endif %}{% endfor %}"
    )
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 5000
    assert render(source, chat).endswith("assistantb5")


def test_budgets_of_renders_are_apart() -> None:
    """What one render used is not charged to the next."""
    for _ in range(5):
        assert len(render("{% for i in range(60000) %}.{% endfor %}")) == 60_000

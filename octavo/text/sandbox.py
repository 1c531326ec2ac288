"""A Jinja environment for chat templates, which come with models or with requests: it bounds what they can do.

Jinja's immutable sandbox keeps templates from Python's internals. Beyond it, everything a template can repeat (loop
turns, calls, string operations) is charged to a budget, no string may grow beyond the limit on the output, and numbers
that size things are capped: for a request of ordinary size, most templates are stopped within about a second, with an
error that says why. Not everything can be counted (a list of itself, printed), and Python cannot interrupt itself: so
a server renders in a process of its own, which can be killed (`octavo.text.renderer`).
"""

from __future__ import annotations

import contextvars
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_WIDTH = 1_000_000
MAX_NUMBER_BITS = 256
_LONG_NUMBER = re.compile(r"\d{7}")  # in a format string
# Filters and methods that are told how long to make something.
_SIZED = frozenset(
    ("batch", "center", "expandtabs", "indent", "ljust", "rjust", "slice", "to_bytes", "tojson", "truncate")
    + ("wordwrap", "zfill")
)


class RaisedByTemplate(jinja2.TemplateError):
    """The template called raise_exception(): these messages do not suit it."""


class OverBudget(jinja2.TemplateError):
    """The template does or says too much."""


class Budget:
    """What one render may use. `limit` is the length of its output, and of any string on the way; a step for every
    eight of these characters is more than twenty for a message of one letter."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._steps = 0
        self._max_steps = limit >> 3

    def charge(self, value: Any) -> None:
        """One step, and more for a large value."""
        self._steps += 1
        if isinstance(value, str):
            self._steps += len(value) >> 10
            if len(value) > self.limit:
                raise OverBudget("a string becomes too long")
        elif isinstance(value, (list, tuple, dict)):
            self._steps += len(value)
        elif isinstance(value, int) and value.bit_length() > MAX_NUMBER_BITS:
            raise OverBudget("a number becomes too large")
        if self._steps > self._max_steps:
            raise OverBudget("it does too much work")


_budget: contextvars.ContextVar[Budget] = contextvars.ContextVar("budget")


def render(template: jinja2.Template, variables: dict[str, Any], limit: int) -> str:
    """Render within a new budget."""
    token = _budget.set(Budget(limit))
    try:
        parts = []
        left = limit
        for part in template.generate(variables):
            parts.append(part)
            left -= len(part)
            if left < 0:
                raise OverBudget("its output becomes too long")
        return "".join(parts)
    finally:
        _budget.reset(token)


def _check(function: str, subject: Any, args: Sequence[Any]) -> None:
    """Refuse before the fact what would allocate without bound."""
    if function in _SIZED and any(isinstance(value, int) and abs(value) > MAX_WIDTH for value in args):
        raise OverBudget("a number is too large")
    if function in ("replace", "join"):  # can be as long as two of their arguments multiplied
        *_, second, first = sorted([1, 1, *map(_length, (subject, *args))])
        if second * first > 4 * _budget.get().limit:
            raise OverBudget("a string becomes too long")
    if function in ("format", "format_map") and isinstance(subject, str) and _LONG_NUMBER.search(subject):
        raise OverBudget("a number is too large")


def _length(value: Any) -> int:
    if isinstance(value, Iterator):  # of another filter: nobody knows
        return 10_000
    return len(value) if isinstance(value, (str, list, tuple, dict, range)) else 1


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is charged. Wrapping keeps the marks by which Jinja knows what to pass it."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # argument 0 is then not the value but Jinja's own

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        subject, *rest = args[first:]
        _check(name, subject, (*rest, *kwargs.values()))
        result = function(*args, **kwargs)
        _budget.get().charge(result)
        return result

    return bounded


@jinja2.pass_context  # which also keeps Jinja from evaluating it while compiling
def _count_turns(context: Context, iterable: Iterable[Any]) -> Iterator[Any]:
    budget = _budget.get()
    for item in iterable:
        budget.charge(None)
        yield item


@jinja2.pass_context
def _concatenate(context: Context, values: list[Any]) -> str:
    text = "".join(map(str, values))
    _budget.get().charge(text)
    return text


class _Meter(NodeTransformer):
    """Sends loops and `~` through the functions that count them."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_count_turns", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        values = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(values, "_concatenate", [], [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` marks for training what the model wrote: here, just its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """namespace() whose names cannot reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError("a name in a namespace may not begin with an underscore")


class _Dict:
    """dict() without dict's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget.get()
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if (
                    isinstance(value, (str, list, tuple))
                    and isinstance(times, int)
                    and len(value) * times > budget.limit
                ):
                    raise OverBudget("a string becomes too long")
        elif operator == "**" and not (isinstance(right, (int, float)) and abs(right) <= MAX_NUMBER_BITS):
            raise OverBudget("a number becomes too large")
        elif operator == "%" and isinstance(left, str) and (_LONG_NUMBER.search(left) or "*" in left):
            raise OverBudget("a number is too large")
        result = super().call_binop(context, operator, left, right)
        budget.charge(result)
        return result

    # The name of the first parameter is taken out of the way of template variables.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps str.format
        subject = getattr(method, "__self__", None)
        _check(getattr(method, "__name__", ""), subject, (*args, *kwargs.values()))
        result = super().call(__context, __obj, *args, **kwargs)
        _budget.get().charge(result)
        return result


def _raise_exception(message: Any = "") -> NoReturn:
    raise RaisedByTemplate(str(message))


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own tojson escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _make_environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.filters = {name: _bounded(name, function) for name, function in environment.filters.items()}
    environment.filters |= {"_count_turns": _count_turns, "_concatenate": _concatenate}
    del environment.globals["lipsum"]
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


_ENVIRONMENT = _make_environment()


def parse(source: str) -> nodes.Template:
    return _ENVIRONMENT.parse(source)


def compile_template(tree: nodes.Template) -> jinja2.Template:
    """Compile what `parse` returned, which is changed by it."""
    return _ENVIRONMENT.from_string(_Meter().visit(tree))

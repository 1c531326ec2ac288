"""A grammar in one line: templates with nested choices, from which the demo corpus is written.

`say(r, "Hello<!|, {name}!> <How are you?|>", name="Ada")` picks one branch of every `<a|b>`, inside out, and then fills
the `{slots}`. Slot values are never read as templates, so they may hold any character. `ask` is `say` with the
sloppiness of people who type: no capital, no full stop, a "please" in front.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from random import Random

# A parsed template is a tuple of literal strings and choices; a choice is a list of parsed templates.
Node = str | list["Template"]
Template = tuple[Node, ...]

_TOKEN = re.compile(r"[<>|]|[^<>|]+")


@cache
def parse(text: str) -> Template:
    """The template as a tree. `|` outside a choice is an ordinary character."""
    stack: list[list[list[Node]]] = [[[]]]  # a frame a depth; a frame is the branches read so far
    for token in _TOKEN.findall(text):
        if token == "<":
            stack.append([[]])
        elif token == "|" and len(stack) > 1:
            stack[-1].append([])
        elif token == ">" and len(stack) > 1:
            branches = stack.pop()
            stack[-1][-1].append([tuple(branch) for branch in branches])
        else:
            stack[-1][-1].append(token)
    if len(stack) != 1:
        raise ValueError(f"unclosed < in template: {text!r}")
    return tuple(stack[0][0])


def _expand(r: Random, template: Template) -> str:
    return "".join(part if isinstance(part, str) else _expand(r, r.choice(part)) for part in template)


def say(r: Random, template: str, **slots: object) -> str:
    """One sentence of the template's language."""
    text = _expand(r, parse(template))
    return text.format_map(slots) if slots else text


def ask(r: Random, template: str, **slots: object) -> str:
    """One sentence as a user might type it. The slots keep their case: they may be what the question is about."""
    text = _expand(r, parse(template))
    dice = r.random()
    if dice < 0.10:
        text = text.lower()
    elif dice < 0.20:
        text = text[:1].lower() + text[1:]
    if r.random() < 0.18:
        text = text.rstrip("?.!")
    dice = r.random()
    if dice < 0.06:
        text = r.choice(("Please ", "please ", "Can you help? ", "Hey, ", "OK, ", "So, ", "Now, ", "Hi! ")) + text
    elif dice < 0.09:
        text += r.choice((" please", " Please.", " Thanks!", " thank you"))
    return text.format_map(slots) if slots else text


def a(word: str) -> str:
    """The word with its article."""
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"


def cap(text: str) -> str:
    return text[:1].upper() + text[1:]


def comma(items: Sequence[object], last: str = "and") -> str:
    """`a, b and c`."""
    words = [str(item) for item in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def listed(r: Random, items: Sequence[object], style: str = "") -> str:
    """The items as numbered lines, dashes or a comma list."""
    style = style or r.choice(("1", "-", ","))
    if style == "1":
        return "\n".join(f"{i}. {cap(str(item))}" for i, item in enumerate(items, 1))
    if style == "-":
        return "\n".join(f"- {cap(str(item))}" for item in items)
    return cap(", ".join(str(item) for item in items)) + "."

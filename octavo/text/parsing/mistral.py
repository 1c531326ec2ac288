"""Mistral: [TOOL_CALLS][{"name": …, "arguments": {…}}, …], and since version 11 of its tokenizer
[TOOL_CALLS]name[ARGS]{…}, once for each call. The model's templates want ids of nine letters and digits."""

from __future__ import annotations

import re
import secrets
import string

from octavo.text.parsing.base import OutputParser
from octavo.text.parsing.forms import Demand, Form, several, tag
from octavo.text.parsing.scanner import Scanner, Step
from octavo.text.parsing.values import call_objects, value

_ALPHABET = string.ascii_letters + string.digits
_NAME = re.compile(r"[\w.-]*")


class Mistral(OutputParser):
    openers = ("[TOOL_CALLS]",)
    markers = ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")

    def new_id(self) -> str:
        return "".join(secrets.choice(_ALPHABET) for _ in range(9))

    def calls_form(self, demand: Demand) -> Form:
        schemas = [(name, demand.arguments(tool)) for name, tool in self.tools.items()]
        if "[ARGS]" in demand.template:
            return several(
                [tag(f"[TOOL_CALLS]{name}[ARGS]", found, "") for name, found in schemas], "", demand.parallel
            )
        calls = [tag(f'{{"name": "{name}", "arguments": ', found, "}") for name, found in schemas]
        return tag("[TOOL_CALLS] [", several(calls, ", ", demand.parallel), "]")

    def call(self, s: Scanner, opener: str) -> Step[None]:
        yield from s.space()
        if (yield from s.peek()) in ("[", "{"):
            yield from call_objects(s)
            return
        name = yield from s.run(_NAME)
        if (yield from s.accept("[CALL_ID]")):
            yield from s.run(_NAME)
        yield from s.accept("[ARGS]")
        yield from s.space()
        if name and (yield from s.peek()) == "{":
            s.begin_call(name)
            yield from value(s, s.argue)

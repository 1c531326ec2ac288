"""Command A and R7B: <|START_ACTION|>[{"tool_call_id": "0", "tool_name": …, "parameters": {…}}, …]<|END_ACTION|>."""

from __future__ import annotations

from octavo.text.parsing.base import OutputParser
from octavo.text.parsing.forms import Demand, Form, regex, sequence, several, tag, text
from octavo.text.parsing.scanner import Scanner, Step
from octavo.text.parsing.values import call_objects

ACTION, ACTION_END = "<|START_ACTION|>", "<|END_ACTION|>"


class Cohere(OutputParser):
    openers = (ACTION,)
    markers = (ACTION, ACTION_END)

    def calls_form(self, demand: Demand) -> Form:
        tags = [
            tag(
                '{"tool_call_id": "',
                sequence(
                    regex("[0-9]{1,3}"),
                    text(f'", "tool_name": "{name}", "parameters": '),
                    demand.arguments(tool),
                ),
                "}",
            )
            for name, tool in self.tools.items()
        ]
        return tag(f"{ACTION}[\n    ", several(tags, ",\n    ", demand.parallel), f"\n]{ACTION_END}")

    def call(self, s: Scanner, opener: str) -> Step[None]:
        yield from s.space()
        if (yield from call_objects(s)) and not s.untold:
            yield from s.space()
            if (yield from s.accept(ACTION_END)):
                s.drop()

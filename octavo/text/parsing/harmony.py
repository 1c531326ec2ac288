"""GPT-OSS: messages on channels, <|start|>assistant<|channel|>final<|message|>…<|end|>, the first without its start.

What is said on `analysis` is reasoning, a message to=functions.name is a call, and all else is content.
"""

from __future__ import annotations

import re

from octavo.text.parsing.base import OutputParser
from octavo.text.parsing.forms import ANY_TEXT, Demand, Form, either, free, optional, sequence, tag, text
from octavo.text.parsing.scanner import Emit, Scanner, Step
from octavo.text.parsing.values import value

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")
_RECIPIENT = re.compile(r"to=functions\.([\w.-]+)")
_ANALYSIS = re.compile(re.escape(CHANNEL) + r"\s*analysis")


class Harmony(OutputParser):
    markers = (START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS)

    def form(self, demand: Demand | None, content: Form | None = None) -> Form:
        """Analysis and a preamble, perhaps, and then the final message or one call: the model ends its turn with it."""
        required = demand is not None and demand.required
        before = [
            optional(sequence(free(f"{CHANNEL}{name}{MESSAGE}", ENDS[0]), text(START + "assistant")))
            for name in (("analysis",) if required or content else ("analysis", "commentary"))
        ]
        last = [] if required else [tag(f"{CHANNEL}final{MESSAGE}", content or ANY_TEXT, "")]
        if demand is not None:
            header = f"{CHANNEL}commentary to=functions.NAME {CONSTRAIN}json{MESSAGE}"
            tools = self.tools.items()
            last += [tag(header.replace("NAME", name), demand.arguments(tool), "") for name, tool in tools]
        return sequence(*before, either(*last))

    def parse(self, s: Scanner) -> Step[None]:
        told: dict[Emit, str] = {}  # what stands between two messages to the same reader
        while (yield from s.peek()):
            tell: Emit = s.content
            if (yield from s.accept(START, CHANNEL, " to=")):
                if (yield from s.until((MESSAGE, *ENDS))) != MESSAGE:
                    s.restore()
                    continue
                tell = yield from self._begin(s)
            yield from self._rest(s, tell, told)

    def _begin(self, s: Scanner) -> Step[Emit]:
        """After a header: the call, if it is one, and who gets what follows."""
        header = s.untold
        recipient = _RECIPIENT.search(header)
        yield from s.space()
        if not recipient or not self.tools:
            s.drop()
            return s.reasoning if _ANALYSIS.search(header) else s.content
        char = yield from s.peek()
        if char == "{":
            s.begin_call(recipient[1])
            yield from value(s, s.argue)
        elif char in ("", "<"):
            s.begin_call(recipient[1])
            s.argue("{}")
        else:
            s.restore()
        return s.content

    def _rest(self, s: Scanner, tell: Emit, told: dict[Emit, str]) -> Step[None]:
        """The text of a message up to its end."""
        between = told.get(tell, "")

        def emit(text: str) -> None:
            nonlocal between
            tell(between + text)
            between, told[tell] = "", "\n"

        found = yield from s.until((START, CHANNEL, *ENDS), emit)
        if found in (START, CHANNEL):
            s.give_back(found)
        elif not found and tell == s.content:
            s.restore()
        s.drop()

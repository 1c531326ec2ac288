"""`octavo run` and `octavo chat`: the engine in the terminal, without HTTP."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from octavo.core import log
from octavo.core.config import EngineConfig
from octavo.core.errors import RequestError
from octavo.core.outputs import RequestOutput
from octavo.core.params import RequestOutputKind, SamplingParams
from octavo.server.engine import Engine
from octavo.server.service import sampling_defaults

Start = Callable[[EngineConfig], Coroutine[Any, Any, Engine]]
Message = dict[str, str]

HELP = "/reset forgets the conversation, /exit (or Ctrl-D) ends it, Ctrl-C stops an answer"
# What a model says is text: it may not move the cursor or change colours.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


async def start_engine(config: EngineConfig) -> Engine:
    from octavo.engine.async_llm import AsyncLLM

    return await AsyncLLM.start(config, log_level="warning")


def run(config: EngineConfig, prompt: str, options: argparse.Namespace, start: Start = start_engine) -> int:
    """One answer on standard output, as it is generated."""
    log.setup("warning")
    with asyncio.Runner() as runner:
        llm = runner.run(start(config))
        try:
            runner.run(_run(llm, prompt, options))
        finally:
            runner.run(llm.shutdown())
    return 0


async def _run(llm: Engine, prompt: str, options: argparse.Namespace) -> None:
    raw = options.raw or not llm.tokenizer.chat_template
    messages = [*_system(options), {"role": "user", "content": prompt}]
    text = prompt if raw else llm.tokenizer.chat_template.render(messages)
    answer = llm.generate(text, _params(llm, options), request_id="run", add_special_tokens=raw)
    async for piece in _pieces(answer):
        sys.stdout.write(_CONTROL.sub("", piece) if sys.stdout.isatty() else piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def chat(config: EngineConfig, options: argparse.Namespace, start: Start = start_engine) -> int:
    """A conversation until /exit or the end of the input."""
    log.setup("warning")
    with asyncio.Runner() as runner:
        llm = runner.run(start(config))
        try:
            Chat(llm, options, runner).loop()
        finally:
            runner.run(llm.shutdown())
    return 0


class Chat:
    """A conversation. The event loop runs only while an answer does: in between, Ctrl-C belongs to the prompt."""

    def __init__(self, llm: Engine, options: argparse.Namespace, runner: asyncio.Runner) -> None:
        from rich.console import Console

        if sys.stdin.isatty():
            import readline  # noqa: F401  # line editing and history for input()

        self.llm = llm
        self.system = _system(options)
        self.params = _params(llm, options)
        self.runner = runner
        self.console = Console(highlight=False, soft_wrap=True)
        self.turns: list[Message] = []

    def loop(self) -> None:
        self.console.print(f"[bold]{self.llm.model_name}[/bold]  [dim]{HELP}[/dim]")
        while True:
            try:
                line = self.console.input("[bold green]>[/bold green] ").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self.console.print()
                continue
            if line in ("/exit", "/quit"):
                return
            if line == "/reset":
                self.turns.clear()
                self.console.print("[dim]A new conversation.[/dim]")
            elif line.startswith("/"):
                self.console.print(f"[dim]{HELP}[/dim]")
            elif line:
                self.turn(line)

    def turn(self, said: str) -> None:
        """Asks and prints; what was said before a Ctrl-C stays part of the conversation."""
        parts: list[str] = []
        self.turns.append({"role": "user", "content": said})
        try:
            self.runner.run(self._answer(parts))
        except KeyboardInterrupt:
            self.console.print("\n[dim]stopped[/dim]")
        except RequestError as error:
            self.turns.pop()
            self.console.print(error.message, style="red", markup=False)
            return
        self.turns.append({"role": "assistant", "content": "".join(parts)})

    async def _answer(self, parts: list[str]) -> None:
        text = self.llm.tokenizer.chat_template.render([*self.system, *self.turns])
        begin = time.monotonic()
        answer = self.llm.generate(
            text, self.params, request_id="chat", prompt_param="messages", add_special_tokens=False
        )
        async for piece in _pieces(answer):
            parts.append(piece)
            self.console.print(_CONTROL.sub("", piece), end="", markup=False)
        seconds = time.monotonic() - begin
        self.console.print(f"\n[dim]{seconds:.1f} s[/dim]")


async def _pieces(answer: AsyncGenerator[RequestOutput, None]) -> AsyncGenerator[str, None]:
    async with aclosing(answer):
        async for output in answer:
            for piece in output.outputs:
                yield piece.text


def _system(options: argparse.Namespace) -> list[Message]:
    return [] if options.system is None else [{"role": "system", "content": options.system}]


def _params(llm: Engine, options: argparse.Namespace) -> SamplingParams:
    given: dict[str, Any] = {name: getattr(options, name) for name in ("temperature", "top_p")}
    asked = {name: value for name, value in given.items() if value is not None}
    values = {**sampling_defaults(llm.generation_config), **asked}
    return SamplingParams(**values, max_tokens=options.max_tokens, output_kind=RequestOutputKind.DELTA)

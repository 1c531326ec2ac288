"""The front's side of the processes that render chats: what a model's folder brings as a template is a program.

    renderer = Renderer(tokenizer.chat_template)
    text = renderer.render(Chat(messages))      # RequestError if these messages cannot be rendered

Blocks, and serves one thread. The templates' own budget (`octavo.text.sandbox`) stops what it can count, and says what
was too much. What it cannot count ends with the process, which has little memory and is killed when it takes long.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from octavo.core.child import MAX_FRAME, Worker
from octavo.core.errors import RequestError
from octavo.text.chat import ChatTemplate

PROCESS = "octavo.text.render_process"
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}  # address space is what the limit on memory counts
RENDER_SECONDS = 1.0  # that it may work on a chat, and as much again for each MiB of it


class Chat(msgspec.Struct, omit_defaults=True):
    """What `ChatTemplate.render` takes. As JSON on its way: numbers may have any number of digits."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template: str | None = None
    content_format: str = "auto"
    variables: dict[str, Any] | None = None


class Rendered(msgspec.Struct, array_like=True):
    """`text` is the prompt, if there is no `error`."""

    text: str = ""
    error: str = ""
    param: str | None = None
    code: str = ""


class Renderer:
    def __init__(self, template: ChatTemplate) -> None:
        start = json.dumps([template.templates, template.special_tokens]).encode()  # which may hold half a character
        self._worker = Worker(PROCESS, ENVIRONMENT, start, "render a chat")

    def start(self) -> None:
        """So that the first chat need not wait for it."""
        self._worker.start()

    def render(self, chat: Chat) -> str:
        data = msgspec.json.encode(chat)
        if len(data) > MAX_FRAME:
            raise RequestError("messages are too large to be rendered", "messages")
        answer = self._worker.ask(data, RENDER_SECONDS * (1 + (len(data) >> 20)))
        if answer is None:
            raise RequestError("the chat template was stopped: it takes too long, or too much memory", "messages")
        found = msgspec.msgpack.decode(answer, type=Rendered)
        if found.error:
            raise RequestError(found.error, found.param, found.code)
        return found.text

    def close(self) -> None:
        self._worker.close()

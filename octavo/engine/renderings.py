"""Chats become prompts beside the event loop: short ones in one process and long ones in another, so that nobody with a
few words waits for a chat of megabytes."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from octavo.text.chat import ChatTemplate
from octavo.text.renderer import Chat, Renderer

SHORT_CHAT = 1 << 14


class _Lane:
    """A process, and the thread that waits for it."""

    def __init__(self, template: ChatTemplate) -> None:
        self.thread, self.renderer = ThreadPoolExecutor(1, "render"), Renderer(template)

    def close(self) -> None:
        self.thread.shutdown(wait=False, cancel_futures=True)
        self.renderer.close()


class Renderings:
    def __init__(self, template: ChatTemplate) -> None:
        self._short, self._long = _Lane(template), _Lane(template)

    def start(self) -> None:
        """The process for short chats; the other one starts with the first long chat."""
        self._short.thread.submit(self._short.renderer.start)

    async def render(self, chat: Chat, size: int) -> str:
        lane = self._short if size <= SHORT_CHAT else self._long
        return await asyncio.get_running_loop().run_in_executor(lane.thread, lane.renderer.render, chat)

    def close(self) -> None:
        self._short.close()
        self._long.close()

"""What the server needs of an engine. `octavo.engine.async_llm.AsyncLLM` is one; tests bring their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

from octavo.core.outputs import RequestOutput, Stats
from octavo.core.params import SamplingParams
from octavo.core.picture import Picture
from octavo.core.pooling import PoolingOutput, PoolingParams, PoolingRequestOutput
from octavo.engine.build import EngineInfo
from octavo.engine.news import Sink
from octavo.text.renderer import Chat
from octavo.text.tokenizer import Tokenizer


class Engine(Protocol):
    tokenizer: Tokenizer
    model_name: str
    max_model_len: int
    info: EngineInfo
    generation_config: dict[str, Any]  # the model's generation_config.json; {} if it has none
    stats: Stats
    listeners: list[Callable[[Stats], None]]  # called after every step

    @property
    def ready(self) -> bool:
        """The engine is alive and makes progress."""
        ...

    @property
    def alive(self) -> bool:
        """Once False, it stays so until `restart`."""
        ...

    @property
    def reserved_bytes(self) -> int:
        """What the requests that are served may come to hold."""
        ...

    async def restart(self) -> None:
        """After the engine's death: another one. OctavoError if there is none to be had; it may be tried again."""
        ...

    def generate(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        *,
        request_id: str,
        priority: int = 0,
        cache_salt: str = "",
        prompt_param: str = "prompt",
        add_special_tokens: bool = True,
        tenant: str = "",
        queue_seconds: float | None = None,
        sink: Sink | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Raises RequestError before the first item; closing the generator aborts the request.

        What a `sink` can take is given to it as soon as its step is over, and is not yielded.

        `request_id` is what the log calls it: several may have the same.
        """
        ...

    async def pool(
        self,
        prompt: str | list[int] | tuple[str, str],
        params: PoolingParams,
        *,
        request_id: str,
        priority: int = 0,
        prompt_param: str | tuple[str, str] = "input",
        add_special_tokens: bool = True,
        truncate_prompt_tokens: int | None = None,
        truncation_side: str = "right",
        tenant: str = "",
        queue_seconds: float | None = None,
    ) -> PoolingRequestOutput[PoolingOutput]:
        """What the model makes of a text, of token ids, or of a pair of texts. Cancelled, it is aborted."""
        ...

    async def render(self, chat: Chat, size: int) -> str:
        """A chat of about `size` characters as a prompt. RequestError if the template does not take it."""
        ...

    def check_room(self) -> None:
        """Raises Overloaded if a new request would be refused now."""
        ...

    async def look(self) -> Picture:
        """The engine as it stands; EngineUnavailable if it is not there."""
        ...

    async def shutdown(self) -> None: ...

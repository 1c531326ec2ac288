"""What every route shares: the engine, its names and limits, the sampling defaults, and how a prompt becomes tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError, ModelNotFound, RequestError
from octavo.core.params import SamplingParams
from octavo.engine.defaults import default_sampling, read_generation_config
from octavo.server.auth import Keys
from octavo.server.config import ServerConfig
from octavo.server.engine import Engine
from octavo.server.metrics import Metrics
from octavo.server.outbox import Outbox
from octavo.server.protocol import GenerationRequest, ModelCard
from octavo.text.parsing.formats import choose
from octavo.text.renderer import Chat

# Text longer than this is tokenized in a thread: a few hundred KB take longer than a token may wait.
SHORT_TEXT = 16 * 1024
MAX_RETRY_SECONDS = 120

# What a model may be able to do, and where it is asked for it.
ROUTES_OF = {
    "generate": "/v1/chat/completions, /v1/completions",
    "embed": "/v1/embeddings",
    "classify": "/classify",
    "score": "/v1/score, /v1/rerank",
    "reward": "/pooling",
    "token_embed": "/pooling",
}

Prompt = str | list[int]
R = TypeVar("R")
Task = TypeVar("Task", bound=str)


class Service:
    def __init__(self, llm: Engine, server: ServerConfig, engine: EngineConfig, metrics: Metrics, keys: Keys) -> None:
        self.llm = llm
        self.server = server
        self.engine = engine
        self.metrics = metrics
        self.keys = keys
        # A folder's place on our disk is nobody's business, but clients of other servers know a model by it.
        folder = Path(llm.model_name)
        self.names = server.served_model_name or (folder.resolve().name if folder.is_dir() else llm.model_name,)
        self.aliases = {*self.names, *(() if server.served_model_name else (llm.model_name,))}
        self.created = int(time.time())
        self.defaults = server_defaults(server, llm.generation_config)
        self.form_options = server.form_options
        self.template = read_template(server.chat_template) if server.chat_template else None
        self.template_text = self.template or "\n".join(llm.tokenizer.chat_template.templates.values())
        self.format = choose(self.template_text, server.tool_call_parser, server.reasoning_parser)
        tokens = map(llm.tokenizer.id_to_token, llm.tokenizer.all_special_ids)
        self.special_tokens = frozenset(token for token in tokens if token)
        cache = {
            "block_size": engine.block_size,
            "enable_prefix_caching": engine.enable_prefix_caching,
            "gpu_memory_utilization": engine.gpu_memory_utilization,
        }
        metrics.attach(self.names[0], llm.max_model_len, cache)
        self.outbox = Outbox()
        llm.listeners += [self.outbox.flush, metrics.on_step]

    def model(self, asked: str | None) -> str:
        """The name to answer under; a request need not name the one model there is."""
        if asked is None:
            return self.names[0]
        if asked not in self.aliases:
            raise self.unknown_model()
        return asked if asked in self.names else self.names[0]

    def unknown_model(self) -> ModelNotFound:
        return ModelNotFound(f"There is no model of this name; this server has {', '.join(self.names)}.", "model")

    def require(self, asked: str | None, *tasks: Task, param: str = "model") -> Task:
        """The first of the tasks that the model can do; an error that says what it can if that is none of them."""
        self.model(asked)
        able = self.llm.info.supported_tasks
        for task in tasks:
            if task in able:
                return task
        known = ", ".join(f"{task} (POST {ROUTES_OF[task]})" for task in ROUTES_OF if task in able)
        raise RequestError(f"This model cannot {' or '.join(tasks)}; it can {known}.", param, "unsupported_task")

    def cards(self) -> list[ModelCard]:
        root, tasks = self.names[0], self.llm.info.supported_tasks
        return [
            ModelCard(id=name, created=self.created, max_model_len=self.llm.max_model_len, root=root, tasks=tasks)
            for name in self.names
        ]

    def check_priority(self, priority: int) -> None:
        if priority and self.engine.scheduling_policy == "fcfs":
            raise RequestError("priority needs a server started with --scheduling-policy priority or fair.", "priority")

    @property
    def ends_thinking(self) -> bool:
        """Reasoning can be given a budget: the model begins and ends it with one token each."""
        marks = self.format.thinking
        tokens = (marks.begin, marks.end) if marks is not None else ()
        return bool(tokens) and all(self.llm.tokenizer.token_to_id(token) is not None for token in tokens)

    def retry_after(self) -> int:
        """Seconds until about half of those that wait now have been served, at the pace of the last answers."""
        return max(1, min(MAX_RETRY_SECONDS, round(self.llm.stats.waiting * self.metrics.pace / 2)))

    async def render(self, size: int, messages: list[dict[str, Any]], **options: Any) -> str:
        """The prompt of a chat that came in a body of this size."""
        variables = {**self.server.template_variables, **(options.pop("variables", None) or {})}
        form = self.server.chat_template_content_format
        chat = Chat(messages, template=self.template, content_format=form, variables=variables, **options)
        return await self.llm.render(chat, size)

    async def check_template(self) -> None:
        """A ConfigError if the template of --chat-template cannot be compiled."""
        if self.template is None:
            return
        try:
            await self.render(0, [{"role": "user", "content": "-"}])
        except RequestError as error:
            if error.param == "chat_template":  # it has an error; to refuse this message is its right
                raise ConfigError(f"--chat-template {self.server.chat_template}: {error.message}") from None

    async def truncate(
        self, prompt: Prompt, request: GenerationRequest, max_tokens: int | None, add_special_tokens: bool
    ) -> Prompt:
        """The prompt cut to what the client allows: its end is kept unless the client says otherwise."""
        most = request.truncate_prompt_tokens
        if most is None:
            return prompt
        if most == -1:
            most = self.llm.max_model_len - (1 if max_tokens is None else max_tokens)
        if most < 1:
            raise RequestError("truncate_prompt_tokens must be -1 or at least 1.", "truncate_prompt_tokens")
        ids = await self.encode(prompt, add_special_tokens) if isinstance(prompt, str) else prompt
        return ids[:most] if request.truncation_side == "right" else ids[-most:]

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return await offload(len(text), lambda: self.llm.tokenizer.encode(text, add_special_tokens))


async def offload(size: int, work: Callable[[], R]) -> R:
    """Long work goes to a thread, so that other streams go on; short work is done at once."""
    return work() if size <= SHORT_TEXT else await asyncio.to_thread(work)


def server_defaults(server: ServerConfig, generation_config: dict[str, Any]) -> dict[str, Any]:
    """The sampling of requests that say nothing: as the model prefers it, or as the server was told."""
    place = server.generation_config
    if place != "auto":
        generation_config = {} if place == "vllm" else read_generation_config(Path(place), must_be=True)
    found = {**sampling_defaults(generation_config), **server.sampling_overrides}
    try:
        SamplingParams(**found)
    except (RequestError, TypeError) as error:
        raise ConfigError(f"override_generation_config: {error}") from None
    return found


def sampling_defaults(generation_config: dict[str, Any]) -> dict[str, Any]:
    """The model's own sampling defaults, checked once."""
    found = default_sampling(generation_config)
    try:
        SamplingParams(**found)
    except RequestError as error:
        raise ConfigError(
            f"generation_config.json: {error.message}; start with --generation-config vllm to leave it out"
        ) from None
    return found


def read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--chat-template {path}: {error}") from None

"""Offline use: a model in this process.

    from octavo import LLM, SamplingParams

    llm = LLM(model="path/or/hub-id")
    for output in llm.generate(["Once upon a time"], SamplingParams(temperature=0.8, max_tokens=64)):
        print(output.outputs[0].text)

Names and output classes are vLLM's. The engine core is the server's, driven here step by step; Ctrl-C in the middle
of a call leaves nothing behind.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, cast

from octavo.core import foreign
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError, RequestError
from octavo.core.hub import model_folder, tokenizer_folder
from octavo.core.outputs import BeamSearchOutput, RequestOutput
from octavo.core.params import BeamSearchParams, RequestOutputKind, SamplingParams
from octavo.core.pooling import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingParams,
    PoolingRequestOutput,
    PoolingTask,
    ScoringRequestOutput,
    pair_up,
)
from octavo.engine.beam import Beams
from octavo.engine.core import EngineCore
from octavo.engine.defaults import default_sampling, read_generation_config
from octavo.engine.intake import Intake
from octavo.engine.outputs import OutputProcessor, RequestState
from octavo.grammar.checker import Checker
from octavo.text.tokenizer import Tokenizer, load_tokenizer


class TokensPrompt(TypedDict):
    prompt_token_ids: list[int]


class TextPrompt(TypedDict):
    prompt: str


Prompt = str | list[int] | TextPrompt | TokensPrompt
Message = dict[str, Any]


class LLM:
    """A model, its tokenizer and its KV cache. Keyword arguments are the fields of `EngineConfig`, and
    `chat_template`, a template or its file, to use instead of the model's.

    Raises ConfigError for a configuration or a model that cannot be used; the methods raise RequestError (a
    ValueError) for a prompt or a parameter that cannot be served, before anything is computed.
    """

    def __init__(self, model: str | None = None, *, chat_template: str | None = None, **config: Any) -> None:
        known = {field.name for field in dataclasses.fields(EngineConfig)}
        for name in [name for name in config if name not in known]:
            if name in foreign.ENGINE:
                foreign.ENGINE[name].check(name, config.pop(name))
            else:
                raise ConfigError(
                    f"LLM has no argument {name!r}; it knows model, {', '.join(sorted(known - {'model'}))}"
                )
        self.config = EngineConfig(model=model, **config)
        folder = model_folder(self.config)
        place = tokenizer_folder(self.config, folder)
        self._tokenizer = load_tokenizer(place)
        self._core = EngineCore.start(self.config, folder)
        self._intake = Intake(self._tokenizer, self._core.info)
        self._checker = Checker(place, self._core.info.vocab_size)
        self._generation_config = read_generation_config(folder)
        self._chat_template = chat_template and _template_of(chat_template)

    def get_tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the makers of the model recommend in its generation_config.json."""
        return SamplingParams(**default_sampling(self._generation_config))

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        priority: Sequence[int] | None = None,
        cache_salt: str = "",
        **other: Any,
    ) -> list[RequestOutput]:
        """Completes prompts: texts, lists of token ids, {"prompt": text} or {"prompt_token_ids": ids}.

        One `sampling_params` serves all prompts, or there is one for each. The outputs are in the prompts' order.
        `use_tqdm` shows progress if standard error is a terminal.
        """
        _refuse(other)
        batch = _as_list(prompts)
        texts = [_text_of(prompt, i) for i, prompt in enumerate(batch)]
        return self._generate(batch, texts, sampling_params, use_tqdm, priority, cache_salt, True)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        priority: Sequence[int] | None = None,
        cache_salt: str = "",
        **other: Any,
    ) -> list[RequestOutput]:
        """Answers one conversation or several; a conversation is a list of {"role": …, "content": …}."""
        _refuse(other)
        conversations = [messages] if messages and isinstance(messages[0], dict) else messages
        prompts = [
            self._tokenizer.chat_template.render(
                conversation,  # type: ignore[arg-type]
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                template=chat_template or self._chat_template,
                content_format=chat_template_content_format,
                variables=chat_template_kwargs,
            )
            for conversation in conversations
        ]
        # A chat template writes the special tokens itself.
        return self._generate(prompts, prompts, sampling_params, use_tqdm, priority, cache_salt, False)

    def beam_search(
        self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams, use_tqdm: bool = False, **other: Any
    ) -> list[BeamSearchOutput]:
        """The `beam_width` best answers to each prompt, best first."""
        _refuse(other)
        batch = _as_list(prompts)
        ids = self._encode(batch, [_text_of(prompt, i) for i, prompt in enumerate(batch)], True)
        beams = [Beams(prompt, params, self._tokenizer) for prompt in ids]
        while any(not beam.done for beam in beams):
            live = [beam for beam in beams if not beam.done]
            heads = [beam.prompts() for beam in live]
            outputs = self._run([p for head in heads for p in head], beams[0].step_params, use_tqdm)
            for beam, head in zip(live, heads, strict=True):
                beam.advance(outputs[: len(head)])
                outputs = outputs[len(head) :]
        return [beam.result() for beam in beams]

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | None = None,
        *,
        use_tqdm: bool = True,
        pooling_task: PoolingTask | None = None,
        truncate_prompt_tokens: int | None = None,
        priority: Sequence[int] | None = None,
        **other: Any,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """What the model makes of each prompt, as arrays. `pooling_task` says what is wanted where no params do.

        Texts longer than `truncate_prompt_tokens` (-1: the model's context) are cut; without it they are refused.
        """
        _refuse(other)
        params = pooling_params or PoolingParams(task=pooling_task or self._default_task())
        if pooling_task is not None and params.task != pooling_task:
            params = params.clone(task=pooling_task)
        batch = _as_list(prompts)
        texts = [_text_of(prompt, i) for i, prompt in enumerate(batch)]
        names = [(f"prompts[{i}]",) for i in range(len(batch))]
        if truncate_prompt_tokens is None:
            ids = [(each, b"") for each in self._encode(batch, texts, True)]
        else:
            limit = self._intake.limit(truncate_prompt_tokens)
            whole = iter(self._tokenizer.encode_batch([text for text in texts if text is not None], True))
            ids = []
            for prompt, text, name in zip(batch, texts, names, strict=True):
                tokens = _ids_of(prompt) if text is None else next(whole)
                if text is None or len(tokens) <= limit:
                    ids.append((self._intake.encode(tokens, *name), b""))
                else:
                    ids.append(self._intake.read((text,), name, truncate_prompt_tokens))
        return self._pool(ids, params, [name for (name,) in names], use_tqdm, priority)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        use_tqdm: bool = True,
        pooling_params: PoolingParams | None = None,
        truncate_prompt_tokens: int | None = None,
        priority: Sequence[int] | None = None,
        **other: Any,
    ) -> list[EmbeddingRequestOutput]:
        """A vector of each prompt."""
        options: Any = {"truncate_prompt_tokens": truncate_prompt_tokens, "priority": priority, "use_tqdm": use_tqdm}
        found = self.encode(prompts, pooling_params, pooling_task="embed", **options, **other)
        return [EmbeddingRequestOutput.from_base(output) for output in found]

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        use_tqdm: bool = True,
        pooling_params: PoolingParams | None = None,
        truncate_prompt_tokens: int | None = None,
        priority: Sequence[int] | None = None,
        **other: Any,
    ) -> list[ClassificationRequestOutput]:
        """A number for each label, of each prompt."""
        options: Any = {"truncate_prompt_tokens": truncate_prompt_tokens, "priority": priority, "use_tqdm": use_tqdm}
        found = self.encode(prompts, pooling_params, pooling_task="classify", **options, **other)
        return [ClassificationRequestOutput.from_base(output) for output in found]

    def reward(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        use_tqdm: bool = True,
        pooling_params: PoolingParams | None = None,
        truncate_prompt_tokens: int | None = None,
        priority: Sequence[int] | None = None,
        **other: Any,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """What a reward model says of each prompt, as it says it."""
        options: Any = {"truncate_prompt_tokens": truncate_prompt_tokens, "priority": priority, "use_tqdm": use_tqdm}
        return self.encode(prompts, pooling_params, pooling_task="reward", **options, **other)

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        *,
        use_tqdm: bool = True,
        pooling_params: PoolingParams | None = None,
        truncate_prompt_tokens: int | None = None,
        **other: Any,
    ) -> list[ScoringRequestOutput]:
        """How well texts go together: one with each of the second list, or two lists in step.

        A cross-encoder reads both at once; of a model of embeddings it is their cosine.
        """
        _refuse(other)
        first, second = ([data] if isinstance(data, str) else list(data) for data in (data_1, data_2))
        pairs = pair_up(len(first), len(second), ("data_1", "data_2"))
        able = self._core.info.pooling
        if able is not None and "embed" in able.tasks and not able.pairs:
            options: Any = {"use_tqdm": use_tqdm, "truncate_prompt_tokens": truncate_prompt_tokens}
            embed = PoolingParams(task="embed", use_activation=True)
            found = self.encode([*first, *second], embed, **options)
            ones, others = found[: len(first)], found[len(first) :]
            return [ScoringRequestOutput.from_embeddings(str(n), ones[i], others[j]) for n, (i, j) in enumerate(pairs)]
        names = [(f"data_1[{i}]", f"data_2[{j}]") for i, j in pairs]
        ids = [
            self._intake.read((first[i], second[j]), name, truncate_prompt_tokens)
            for (i, j), name in zip(pairs, names, strict=True)
        ]
        params = (pooling_params or PoolingParams()).clone(task="score")
        return [
            ScoringRequestOutput.from_base(output)
            for output in self._pool(ids, params, [name for name, _ in names], use_tqdm)
        ]

    @property
    def supported_tasks(self) -> list[str]:
        """generate, or tasks of octavo.core.pooling."""
        return self._core.info.supported_tasks

    def _default_task(self) -> PoolingTask:
        able = self._core.info.pooling
        return "embed" if able is None else cast(PoolingTask, able.tasks[0])

    def _pool(
        self,
        prompts: list[tuple[list[int], bytes]],
        params: PoolingParams,
        names: list[str],
        show: bool,
        priority: Sequence[int] | None = None,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        if priority is not None and len(priority) != len(prompts):
            raise RequestError(f"priority has {len(priority)} items for {len(prompts)} prompts", "priority")
        states = []
        for i, ((ids, types), name) in enumerate(zip(prompts, names, strict=True)):
            request = self._intake.build_pooling(
                ids, params, token_types=types, priority=priority[i] if priority else 0, label=str(i), param=name
            )
            states.append(RequestState(str(i), request, self._tokenizer, None, time.monotonic()))
        self._drive(states, show)
        for state in states:
            if state.failure:
                raise state.failure
        return [state.pooling_output() for state in states]

    def _generate(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[str | None],
        params: SamplingParams | Sequence[SamplingParams] | None,
        show: bool,
        priority: Sequence[int] | None,
        salt: str,
        add_special_tokens: bool,
    ) -> list[RequestOutput]:
        ids = self._encode(prompts, texts, add_special_tokens)
        chosen = self.get_default_sampling_params() if params is None else params
        return self._run(ids, chosen, show, texts, priority, salt)

    def _encode(
        self, prompts: Sequence[Prompt], texts: Sequence[str | None], add_special_tokens: bool
    ) -> list[list[int]]:
        encoded = iter(self._tokenizer.encode_batch([t for t in texts if t is not None], add_special_tokens))
        return [
            self._intake.encode(_ids_of(prompt) if text is None else next(encoded), f"prompts[{i}]")
            for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
        ]

    def _run(
        self,
        prompts: list[list[int]],
        params: SamplingParams | Sequence[SamplingParams],
        show: bool,
        texts: Sequence[str | None] | None = None,
        priority: Sequence[int] | None = None,
        salt: str = "",
    ) -> list[RequestOutput]:
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        for name, values in (("sampling_params", each), ("priority", priority)):
            if values is not None and len(values) != len(prompts):
                raise RequestError(f"{name} has {len(values)} items for {len(prompts)} prompts", name)
        final: dict[int, SamplingParams] = {}  # made once for each object: a thousand prompts may share one
        states = []
        for i, (ids, wanted) in enumerate(zip(prompts, each, strict=True)):
            if id(wanted) not in final:
                final[id(wanted)] = wanted.clone(output_kind=RequestOutputKind.FINAL_ONLY)
            asked = wanted.structured_outputs
            if asked is not None:
                self._core.expect_grammar()
            request = self._intake.build(
                ids,
                final[id(wanted)],
                priority=priority[i] if priority is not None else 0,
                salt=salt,
                label=str(i),
                param=f"prompts[{i}]",
                grammar="" if asked is None else self._checker.check(asked),
            )
            text = texts[i] if texts is not None else None
            states.append(RequestState(str(i), request, self._tokenizer, text, time.monotonic()))
        self._drive(states, show)
        outputs = [state.output() for state in states]
        return [output for output in outputs if output is not None]

    def _drive(self, states: list[RequestState], show: bool) -> None:
        """Runs the requests to their ends."""
        processor = OutputProcessor(self._tokenizer)
        try:
            for state in states:
                processor.add(state)
                self._core.add(state.request)
            with _progress(len(states), show) as advance:
                while len(processor):
                    outputs = self._core.step()
                    if outputs is None:
                        continue
                    changed, aborts = processor.process(outputs)
                    if aborts:
                        self._core.abort(aborts)
                    advance(sum(state.finished for state in changed))
        finally:
            left = [uid for state in states for uid in processor.drop(state)]
            if left:
                self._core.abort(left)


_FOREIGN = ("lora_request", "tokenization_kwargs", "mm_processor_kwargs", "concurrency_limit")


def _refuse(other: dict[str, Any]) -> None:
    """Arguments of vLLM's methods that ask for what is not here."""
    for name, value in other.items():
        if name not in _FOREIGN:
            raise TypeError(f"unexpected keyword argument {name!r}")
        if value:
            raise RequestError(f"{name} is not supported", name)


def _template_of(given: str) -> str:
    """A chat template, or what stands in the file that is named."""
    try:
        return Path(given).read_text(encoding="utf-8") if "{" not in given else given
    except (OSError, ValueError) as error:
        raise ConfigError(f"chat_template: {error}") from None


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt, or several, as several. A list of integers is one prompt."""
    if isinstance(prompts, (str, dict)):
        return [prompts]
    batch = list(prompts)
    return [batch] if batch and isinstance(batch[0], int) else batch  # type: ignore[list-item, return-value]


def _text_of(prompt: Prompt, index: int) -> str | None:
    """The prompt's text; None if it is given as ids."""
    found: object = prompt
    if isinstance(prompt, dict):
        found = prompt.get("prompt_token_ids", prompt.get("prompt"))
    if isinstance(found, (str, list)):
        return found if isinstance(found, str) else None
    raise RequestError(
        f"prompts[{index}] must be a text, a list of token ids, or a dict with prompt or prompt_token_ids",
        f"prompts[{index}]",
    )


def _ids_of(prompt: Prompt) -> list[int]:
    ids = prompt["prompt_token_ids"] if isinstance(prompt, dict) else prompt  # type: ignore[typeddict-item]
    assert isinstance(ids, list), "a prompt without text is a list of ids"
    return ids


@contextmanager
def _progress(total: int, show: bool) -> Iterator[Callable[[int], None]]:
    if not show or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Processed prompts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)

"""How well texts go together, of any engine that pools: a cross-encoder reads pairs, other models embed each text."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from octavo.core.pooling import PoolingOutput, PoolingParams, PoolingRequestOutput, ScoringRequestOutput, pair_up
from octavo.engine.build import EngineInfo

T = TypeVar("T")


class Pooler(Protocol):
    """`AsyncLLM` is one."""

    info: EngineInfo

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
    ) -> PoolingRequestOutput[PoolingOutput]: ...


async def score(
    engine: Pooler,
    texts_1: Sequence[str],
    texts_2: Sequence[str],
    params: PoolingParams | None = None,
    *,
    request_id: str,
    prompt_params: tuple[str, str] = ("text_1", "text_2"),
    **options: Any,
) -> list[ScoringRequestOutput]:
    """One text with each of the second list, or two lists in step. `options` are those of `pool`.

    Of a model of embeddings the score is the cosine of two, each computed once.
    """
    params = params or PoolingParams(task="score")
    pairs = pair_up(len(texts_1), len(texts_2), prompt_params)
    able = engine.info.pooling

    def pool(prompt: str | tuple[str, str], name: str | tuple[str, str], wanted: PoolingParams) -> Any:
        return engine.pool(prompt, wanted, request_id=request_id, prompt_param=name, **options)

    # What errors call each text: the field, and its place there if it is one of several.
    names_1, names_2 = (
        [param if len(texts) == 1 else f"{param}[{i}]" for i in range(len(texts))]
        for param, texts in zip(prompt_params, (texts_1, texts_2), strict=True)
    )
    if able is None or able.pairs or "embed" not in able.tasks:
        found = await gather(pool((texts_1[i], texts_2[j]), (names_1[i], names_2[j]), params) for i, j in pairs)
        return [ScoringRequestOutput.from_base(output) for output in found]
    embed = PoolingParams(task="embed", use_activation=True)
    each = zip((*texts_1, *texts_2), (*names_1, *names_2), strict=True)
    found = await gather(pool(text, name, embed) for text, name in each)
    first, second = found[: len(texts_1)], found[len(texts_1) :]
    return [ScoringRequestOutput.from_embeddings(request_id, first[i], second[j]) for i, j in pairs]


async def gather(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All at once, in their order. Where one fails the others are aborted, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]

"""An engine that reads and does not write: its embeddings count the letters of a text, its scores those in common.

Requests are checked by the engine's own front (`Intake`); each text takes `delay` seconds.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import numpy as np

from octavo.core.pooling import PoolingInfo, PoolingOutput, PoolingParams, PoolingRequestOutput
from octavo.engine.intake import Intake
from tests.server.fake_engine import FakeLLM

SIZE = 32
EMBEDDER = PoolingInfo(["embed", "token_embed", "score"], SIZE, dimensions=[])
CLASSIFIER = PoolingInfo(["classify"], SIZE, labels=["few", "many"])
RERANKER = PoolingInfo(["score", "classify"], SIZE, labels=["match"], pairs=True)
REWARDER = PoolingInfo(["reward"], SIZE)
ALL = PoolingInfo(["embed", "token_embed", "classify", "score", "reward"], SIZE, dimensions=[], pairs=True)


class FakePooler(FakeLLM):
    def __init__(self, pooling: PoolingInfo = ALL, **options: Any) -> None:
        super().__init__(**options)
        self.info = msgspec.structs.replace(self.info, pooling=pooling, max_num_seqs=min(self.most, 256))
        self.intake = Intake(self.tokenizer, self.info)
        self.asked: list[tuple[Any, PoolingParams]] = []  # prompts as they came, and what was wanted of them
        self.most_at_once = 0

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
        self.check()
        self.check_room()
        texts = (prompt,) if isinstance(prompt, str) else prompt
        names = (prompt_param,) if isinstance(prompt_param, str) else prompt_param
        types = b""
        if isinstance(texts, tuple):
            cut = (truncate_prompt_tokens, truncation_side == "left")
            ids, types = self.intake.read(texts, names, *cut, add_special_tokens)
        else:
            ids = self.intake.encode(texts, names[0])
        self.intake.build_pooling(ids, params, token_types=types, priority=priority, param=names[-1], tenant=tenant)
        self.seen.append(params)
        self.asked.append((prompt, params))
        self.priorities.append(priority)
        self.reading += 1
        self.most_at_once = max(self.most_at_once, self.reading)
        try:
            await asyncio.sleep(self.delay)
            self.check()
        except asyncio.CancelledError:
            self.aborted.append(request_id)
            raise
        finally:
            self.reading -= 1
        return PoolingRequestOutput(request_id, PoolingOutput(values(prompt, ids, params)), ids)


def values(prompt: Any, ids: list[int], params: PoolingParams) -> Any:
    """What the model says: float32."""
    letters = np.zeros((len(ids), SIZE), np.float32)
    letters[np.arange(len(ids)), np.array(ids) % SIZE] = 1
    plain = params.use_activation is False
    if params.task in ("embed", "token_embed"):
        found = letters.sum(0, keepdims=True) if params.task == "embed" else letters
        found = found[:, : params.dimensions]
        if not plain:
            found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
        return found[0] if params.task == "embed" else found
    if params.task == "classify":
        share = min(1.0, len(ids) / 10)
        return np.array([len(ids)] if plain else [1 - share, share], np.float32)
    if params.task == "reward":
        return np.array([len(ids)], np.float32)
    first, second = map(set, prompt)
    return np.array([len(first & second) * (1 if plain else 1 / len(first | second))], np.float32)

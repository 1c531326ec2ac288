"""What may be asked of a model that reads and does not write, and what it answers. Names are vLLM's.

A `PoolingParams` that exists is valid in itself; what depends on the model (its tasks, the sizes that an embedding can
be cut to) is checked where a request is built, against the engine's `PoolingInfo`. One request gives one array: a
vector, or a row for each token. The `…RequestOutput` classes are views of it for users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from octavo.core.errors import RequestError

FloatArray = npt.NDArray[np.float32]
PoolingTask = Literal["embed", "token_embed", "classify", "score", "reward"]
TASKS: tuple[PoolingTask, ...] = ("embed", "token_embed", "classify", "score", "reward")
MAX_DIMENSIONS = 1 << 20


class PoolingParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is wanted of a text.

    `embed` is a vector of it, `token_embed` one of each token; `classify` gives a number for each label, `score` one
    for a pair of texts, `reward` what a reward model says, as it says it. `dimensions` cuts an embedding, where the
    model was trained for that. `use_activation`: embeddings have length one, classes are probabilities; None is what
    the model does by itself (`reward`: nothing).
    """

    task: PoolingTask = "embed"
    dimensions: int | None = None
    use_activation: bool | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise RequestError(f"task must be one of {', '.join(TASKS)}", "task")
        size = self.dimensions
        if size is not None:
            if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MAX_DIMENSIONS:
                raise RequestError(f"dimensions must be an integer in [1, {MAX_DIMENSIONS}]", "dimensions")
            if self.task not in ("embed", "token_embed"):
                raise RequestError(f"dimensions are of embeddings: the task {self.task} has none", "dimensions")
        if self.use_activation is not None and not isinstance(self.use_activation, bool):
            raise RequestError("use_activation must be true or false", "use_activation")

    def clone(self, **changes: Any) -> PoolingParams:
        return msgspec.structs.replace(self, **changes)


class PoolingInfo(msgspec.Struct, array_like=True):
    """What a pooling engine can do: its front knows it."""

    tasks: list[str]  # of TASKS; of an embedding model score too: the cosine of two embeddings
    size: int  # values of an embedding
    # Sizes that an embedding can be cut to; None: to none, []: to any.
    dimensions: list[int] | None = None
    labels: list[str] = []  # of classes, in order
    pairs: bool = False  # `score` reads both texts at once (a cross-encoder)

    def check(self, params: PoolingParams) -> None:
        """RequestError for what the model cannot do."""
        if params.task not in self.tasks or (params.task == "score" and not self.pairs):
            raise RequestError(f"this model cannot {params.task}: it can {', '.join(self.tasks)}", "task")
        size = params.dimensions
        if size is None or size == self.size:
            return
        if self.dimensions is None:
            raise RequestError(
                f"dimensions must be {self.size}: the model's embeddings cannot be cut (no matryoshka)", "dimensions"
            )
        if self.dimensions and size not in self.dimensions:
            raise RequestError(f"dimensions must be one of {', '.join(map(str, self.dimensions))}", "dimensions")
        if size > self.size:
            raise RequestError(f"dimensions must be at most {self.size}, got {size}", "dimensions")


@dataclass(slots=True)
class PoolingOutput:
    data: FloatArray  # [values], or [tokens, values]


@dataclass(slots=True)
class EmbeddingOutput:
    data: FloatArray

    @property
    def embedding(self) -> list[float]:
        """A list is made when it is asked for: thousands of them are most of the work of a small model."""
        values: list[float] = self.data.tolist()
        return values

    @property
    def hidden_size(self) -> int:
        return len(self.data)


@dataclass(slots=True)
class ClassificationOutput:
    probs: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.probs)


@dataclass(slots=True)
class ScoringOutput:
    score: float


Output = TypeVar("Output")


@dataclass(slots=True)
class PoolingRequestOutput(Generic[Output]):
    request_id: str
    outputs: Output
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


class EmbeddingRequestOutput(PoolingRequestOutput[EmbeddingOutput]):
    @staticmethod
    def from_base(output: PoolingRequestOutput[PoolingOutput]) -> EmbeddingRequestOutput:
        return EmbeddingRequestOutput(output.request_id, EmbeddingOutput(output.outputs.data), output.prompt_token_ids)


class ClassificationRequestOutput(PoolingRequestOutput[ClassificationOutput]):
    @staticmethod
    def from_base(output: PoolingRequestOutput[PoolingOutput]) -> ClassificationRequestOutput:
        values = ClassificationOutput(output.outputs.data.tolist())
        return ClassificationRequestOutput(output.request_id, values, output.prompt_token_ids)


class ScoringRequestOutput(PoolingRequestOutput[ScoringOutput]):
    @staticmethod
    def from_base(output: PoolingRequestOutput[PoolingOutput]) -> ScoringRequestOutput:
        """Of a pair that a cross-encoder has read."""
        value = ScoringOutput(float(output.outputs.data[0]))
        return ScoringRequestOutput(output.request_id, value, output.prompt_token_ids)

    @staticmethod
    def from_embeddings(
        request_id: str, first: PoolingRequestOutput[PoolingOutput], second: PoolingRequestOutput[PoolingOutput]
    ) -> ScoringRequestOutput:
        """The cosine of two texts' embeddings, which have length one."""
        value = ScoringOutput(float(first.outputs.data @ second.outputs.data))
        return ScoringRequestOutput(request_id, value, first.prompt_token_ids + second.prompt_token_ids)


def pair_up(count_1: int, count_2: int, params: Sequence[str] = ("text_1", "text_2")) -> list[tuple[int, int]]:
    """Indices of the pairs that are scored: one text with each of the second list, or texts in step.

    RequestError, naming one of `params`, where the counts do not fit.
    """
    if count_1 == 0 or count_2 == 0:
        raise RequestError(f"{params[count_1 > 0]} is empty", params[count_1 > 0])
    if count_1 not in (1, count_2):
        raise RequestError(
            f"{params[0]} has {count_1} texts and {params[1]} {count_2}: there must be one, or as many", params[0]
        )
    return [(i if count_1 > 1 else 0, i) for i in range(count_2)]

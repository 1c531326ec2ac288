"""What clients send to models that read and do not write, and what they get: OpenAI's embeddings, vLLM's pooling,
scores and classes, and the reranking of Cohere and Jina.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from octavo.core.pooling import MAX_DIMENSIONS
from octavo.server.protocol import Message, Milliseconds, Priority, RequestId, Salt, TokenId

MAX_INPUTS = 2048  # texts, or pairs of texts, in a request: as many as in OpenAI's API
TokenCount = Annotated[int, Meta(ge=1, le=2**31 - 1)]

# -- requests


class ReadingRequest(Struct, kw_only=True):
    """What all of them share. `cache_salt` is kept by itself: no text that is only read shares a cached prefix."""

    model: str | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    truncation_side: Literal["left", "right"] | None = None  # None: right
    padding: Literal["do_not_pad", "max_length"] | None = None
    priority: Priority = 0
    cache_salt: Salt | None = None
    deadline_ms: Milliseconds | None = None
    request_id: RequestId | None = None


class TextsRequest(ReadingRequest, kw_only=True):
    """Either `input` (a text, texts, token ids, lists of token ids) or `messages`, which are one text."""

    input: str | list[str | int | list[TokenId]] | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    add_special_tokens: bool | None = None  # None: with input they are added, with messages the template has them
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


class EmbeddingRequest(TextsRequest, kw_only=True):
    dimensions: Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    embed_dtype: Literal["float32", "float16", "bfloat16"] | None = None  # of base64
    endianness: Literal["native", "little", "big"] | None = None  # of base64


class PoolingRequest(EmbeddingRequest, kw_only=True):
    """None as `task` is what the model was made for."""

    task: Literal["embed", "token_embed", "classify", "reward"] | None = None


class ClassifyRequest(TextsRequest, kw_only=True):
    pass


class ScoreRequest(ReadingRequest, kw_only=True):
    """Two lists of one length, or one text and a list, under one of four pairs of names."""

    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    data_1: str | list[str] | None = None
    data_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    items: str | list[str] | None = None


class RerankDocument(Struct):
    text: str


class RerankRequest(ReadingRequest, kw_only=True):
    """`top_n` 0 or null: all. A limit of tokens cuts the end of what is longer."""

    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str | RerankDocument], Meta(min_length=1)]
    top_n: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    return_documents: bool | None = True
    max_tokens_per_doc: TokenCount | None = None
    max_tokens_per_query: TokenCount | None = None
    instruction: str | None = None


# -- answers


class ReadingUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class Embedding(Struct, tag_field="object", tag="embedding"):
    index: int
    embedding: list[float] | str  # numbers, or their bytes as base64


class EmbeddingList(Struct, tag_field="object", tag="list"):
    id: str
    created: int
    model: str
    data: list[Embedding]
    usage: ReadingUsage


class Pooled(Struct, tag_field="object", tag="pooling"):
    """A vector; or one for each token, one after the other where they are base64."""

    index: int
    data: list[float | list[float]] | str


class PooledList(Struct, tag_field="object", tag="list"):
    id: str
    created: int
    model: str
    data: list[Pooled]
    usage: ReadingUsage


class Classification(Struct):
    """`label` is the likeliest class by its name, if it has one."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class ClassificationList(Struct, tag_field="object", tag="list"):
    id: str
    created: int
    model: str
    data: list[Classification]
    usage: ReadingUsage


class Score(Struct, tag_field="object", tag="score"):
    index: int
    score: float


class ScoreList(Struct, tag_field="object", tag="list"):
    id: str
    created: int
    model: str
    data: list[Score]
    usage: ReadingUsage


class Ranked(Struct):
    index: int
    relevance_score: float
    document: RerankDocument | UnsetType = UNSET


class Ranking(Struct):
    """The best documents first."""

    id: str
    model: str
    results: list[Ranked]
    usage: ReadingUsage

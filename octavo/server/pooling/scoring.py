"""POST /score and /rerank: how well two texts go together, and which documents answer a query best.

A cross-encoder reads each pair; of a model of embeddings the score is the cosine of two.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.core.errors import RequestError
from octavo.core.pooling import PoolingParams, ScoringRequestOutput
from octavo.engine.scores import score as score_pairs
from octavo.server import fields
from octavo.server.http import Exchange, Response, json_response
from octavo.server.pooling.protocol import (
    MAX_INPUTS,
    Ranked,
    Ranking,
    RerankDocument,
    RerankRequest,
    Score,
    ScoreList,
    ScoreRequest,
)
from octavo.server.pooling.run import Reading
from octavo.server.service import Service, offload

NAMES = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items"))


async def score(service: Service, exchange: Exchange, body: bytes) -> Response:
    request, _, exchange.ignored = await fields.read(body, ScoreRequest)
    service.require(request.model, "score")
    run = Reading(service, exchange, request, "score")
    names = _names(request)
    sides = [[side] if isinstance(side := getattr(request, name), str) else side for name in names]
    found = await _scores(run, exchange, request, sides[0], sides[1], names)
    data = [Score(i, output.outputs.score) for i, output in enumerate(found)]
    return json_response(ScoreList(run.id, run.created, run.model, data, run.usage()))


async def rerank(service: Service, exchange: Exchange, body: bytes) -> Response:
    request, _, exchange.ignored = await fields.read(body, RerankRequest)
    service.require(request.model, "score")
    if request.instruction:
        raise RequestError("instruction: this model takes none; write it into the query if it should.", "instruction")
    run = Reading(service, exchange, request, "rerank")
    texts = [item if isinstance(item, str) else item.text for item in request.documents]
    query = await _cut(service, [request.query], request.max_tokens_per_query)
    documents = await _cut(service, texts, request.max_tokens_per_doc)
    found = await _scores(run, exchange, request, query, documents, ("query", "documents"))
    results = [Ranked(i, output.outputs.score) for i, output in enumerate(found)]
    results.sort(key=lambda result: -result.relevance_score)
    results = results[: request.top_n or None]
    if request.return_documents is not False:
        for result in results:
            result.document = RerankDocument(texts[result.index])
    return json_response(Ranking(run.id, run.model, results, run.usage()))


async def _scores(
    run: Reading,
    exchange: Exchange,
    request: ScoreRequest | RerankRequest,
    texts_1: Sequence[str],
    texts_2: Sequence[str],
    names: tuple[str, str],
) -> list[ScoringRequestOutput]:
    for name, texts in zip(names, (texts_1, texts_2), strict=True):
        if len(texts) > MAX_INPUTS:
            raise RequestError(f"{name} may be {MAX_INPUTS} texts, got {len(texts)}.", name)
    if request.use_activation is not None and (run.info.pooling is None or not run.info.pooling.pairs):
        exchange.ignore(["use_activation"])  # a cosine has none
    params = PoolingParams(task="score", use_activation=request.use_activation)
    with run.limited():
        return await score_pairs(run, texts_1, texts_2, params, request_id=exchange.request_id, prompt_params=names)


def _names(request: ScoreRequest) -> tuple[str, str]:
    """The pair of names that the two sides have."""
    given = {name for pair in NAMES for name in pair if getattr(request, name) is not None}
    for names in NAMES:
        if given == set(names):
            return names
    pairs = ", or ".join(" and ".join(names) for names in NAMES)
    half = next((set(names) - given for names in NAMES if len(given) == 1 and given < set(names)), set())
    raise RequestError(f"Send {pairs}.", min(half, default="text_1"))


async def _cut(service: Service, texts: list[str], most: int | None) -> list[str]:
    """Texts of at most so many tokens each."""
    if most is None:
        return texts
    tokenizer, size = service.llm.tokenizer, sum(map(len, texts))

    def cut() -> list[str]:
        found = tokenizer.encode_batch(texts, add_special_tokens=False)
        return [
            text if len(ids) <= most else tokenizer.decode(ids[:most]) for text, ids in zip(texts, found, strict=True)
        ]

    return await offload(size, cut)

"""POST /v1/embeddings, /pooling and /classify: what a model makes of texts, one by one. And the table of all."""

from __future__ import annotations

from octavo.core.pooling import PoolingParams, PoolingTask
from octavo.server import fields
from octavo.server.http import Exchange, Response, Work, json_response
from octavo.server.pooling.protocol import (
    Classification,
    ClassificationList,
    ClassifyRequest,
    Embedding,
    EmbeddingList,
    EmbeddingRequest,
    Pooled,
    PooledList,
    PoolingRequest,
)
from octavo.server.pooling.run import Reading, read_texts
from octavo.server.pooling.scoring import rerank, score
from octavo.server.pooling.vectors import encoded, ignored
from octavo.server.service import Service, offload

MADE_FOR: tuple[PoolingTask, ...] = ("embed", "classify", "reward", "token_embed")  # in this order
NUMBER_BYTES = 8  # of a number as text or base64, for how long it takes to write


async def embeddings(service: Service, exchange: Exchange, body: bytes) -> Response:
    request, tree, exchange.ignored = await fields.read(body, EmbeddingRequest)
    service.require(request.model, "embed")
    run = Reading(service, exchange, request, "embd")
    exchange.ignore(ignored(request))
    params = PoolingParams(task="embed", dimensions=request.dimensions, use_activation=request.use_activation)
    outputs = await run.texts(await read_texts(service, exchange, request, tree, len(body)), params)

    def answer() -> Response:
        data = [Embedding(i, encoded(output.outputs.data, request)) for i, output in enumerate(outputs)]
        return json_response(EmbeddingList(run.id, run.created, run.model, data, run.usage()))

    return await offload(run.values * NUMBER_BYTES, answer)


async def pooling(service: Service, exchange: Exchange, body: bytes) -> Response:
    request, tree, exchange.ignored = await fields.read(body, PoolingRequest)
    if request.task is None:
        task = service.require(request.model, *MADE_FOR)
    else:
        task = service.require(request.model, request.task, param="task")
    run = Reading(service, exchange, request, "pool")
    exchange.ignore(ignored(request))
    params = PoolingParams(task=task, dimensions=request.dimensions, use_activation=request.use_activation)
    outputs = await run.texts(await read_texts(service, exchange, request, tree, len(body)), params)

    def answer() -> Response:
        data = [Pooled(i, encoded(output.outputs.data, request)) for i, output in enumerate(outputs)]
        return json_response(PooledList(run.id, run.created, run.model, data, run.usage()))

    return await offload(run.values * NUMBER_BYTES, answer)


async def classify(service: Service, exchange: Exchange, body: bytes) -> Response:
    request, tree, exchange.ignored = await fields.read(body, ClassifyRequest)
    service.require(request.model, "classify")
    run = Reading(service, exchange, request, "classify")
    params = PoolingParams(task="classify", use_activation=request.use_activation)
    outputs = await run.texts(await read_texts(service, exchange, request, tree, len(body)), params)
    names = run.info.pooling.labels if run.info.pooling is not None else []

    def answer() -> Response:
        data = []
        for i, output in enumerate(outputs):
            values = output.outputs.data
            best = int(values.argmax())
            data.append(Classification(i, names[best] if best < len(names) else None, values.tolist(), values.size))
        return json_response(ClassificationList(run.id, run.created, run.model, data, run.usage()))

    return await offload(run.values * NUMBER_BYTES, answer)


READING: dict[str, Work] = {
    "/v1/embeddings": embeddings,
    **dict.fromkeys(("/v1/score", "/score"), score),
    **dict.fromkeys(("/v1/rerank", "/v2/rerank", "/rerank"), rerank),
    **dict.fromkeys(("/v1/classify", "/classify"), classify),
    "/pooling": pooling,
}

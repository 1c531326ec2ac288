"""Embeddings as clients want them: numbers, or base64 of their bytes in a type and an order."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import numpy as np

from octavo.core.pooling import FloatArray
from octavo.server.pooling.protocol import EmbeddingRequest

_ORDER = {"native": "=", "little": "<", "big": ">"}
_encode = msgspec.json.Encoder().encode


def encoded(values: FloatArray, request: EmbeddingRequest) -> Any:
    """What stands in the answer. Numbers are JSON at once: as objects of Python they would take eight times as much."""
    if request.encoding_format != "base64":
        return msgspec.Raw(_encode(values.tolist()))
    return base64.b64encode(as_bytes(values, request.embed_dtype or "float32", request.endianness or "native")).decode()


def as_bytes(values: FloatArray, dtype: str, endianness: str) -> bytes:
    order = _ORDER[endianness]
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to the nearest, of two to the even one
        return (rounded >> 16).astype(order + "u2").tobytes()
    return values.astype(order + ("f2" if dtype == "float16" else "f4")).tobytes()


def ignored(request: EmbeddingRequest) -> list[str]:
    """Fields that say how bytes are written, where there are none."""
    if request.encoding_format == "base64":
        return []
    asked = {"embed_dtype": request.embed_dtype not in (None, "float32")}
    asked["endianness"] = request.endianness not in (None, "native")
    return [name for name, told in asked.items() if told]

"""What clients of /v1/files and /v1/batches send and get, and the lines of their files."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct

# fmt: off
Endpoint = Literal[
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/score", "/score",
    "/v1/rerank", "/v2/rerank", "/rerank", "/v1/classify", "/classify", "/pooling",
]
# fmt: on
Metadata = Annotated[dict[str, str], Meta(max_length=16)]
BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


class FileObject(Struct, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str = "processed"
    expires_at: int | None = None


class FileList(Struct, tag_field="object", tag="list"):
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Struct):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class BatchRequest(Struct, kw_only=True):
    input_file_id: str
    endpoint: Endpoint
    completion_window: Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,3}[hm]\Z")] = "24h"
    metadata: Metadata | None = None


class BatchError(Struct):
    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(Struct, tag_field="object", tag="list"):
    data: list[BatchError]


class Counts(Struct):
    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchObject(Struct, kw_only=True):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    input_file_id: str
    completion_window: str
    status: BatchStatus
    created_at: int
    expires_at: int
    request_counts: Counts
    errors: BatchErrors | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    metadata: dict[str, str] | None = None


class BatchList(Struct, tag_field="object", tag="list"):
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


# -- the lines of the files


class RequestLine(Struct):
    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    url: str
    body: Raw
    method: Literal["POST"] = "POST"


class LineAnswer(Struct):
    status_code: int
    request_id: str
    body: Raw


class LineError(Struct):
    code: str
    message: str


class ResultLine(Struct):
    id: str
    custom_id: str
    response: LineAnswer | None
    error: LineError | None = None


class DoneLine(Struct):
    """What is read of a result when a batch goes on after a restart."""

    custom_id: str


class KeptFile(Struct):
    """A file as it is known on disk."""

    file: FileObject
    owner: bytes


class KeptBatch(Struct):
    batch: BatchObject
    owner: bytes

"""Every error a user of Octavo can meet, in one tree.

`RequestError` is what a client did: it carries what the OpenAI error shape needs (`status`, `type`, `code`,
`param`) and is also a `ValueError`, so that the offline API raises what Python users expect. `EngineError` is
what we or the machine did. Only `message` of a `RequestError` may reach a client; the text of any other
exception never does.
"""

from __future__ import annotations


class OctavoError(Exception):
    """Base of all errors raised on purpose."""


class RequestError(OctavoError, ValueError):
    """A request that is refused. `param` is the dotted path of the field at fault, or None."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class ContextLengthExceeded(RequestError):
    """The prompt, or the prompt and its answer, is longer than the model's context."""

    code = "context_length_exceeded"


class ExceedsKVCapacity(RequestError):
    """The request could not be held by the whole KV cache even if it ran alone."""

    code = "exceeds_kv_capacity"


class InvalidAPIKey(RequestError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class OriginRefused(RequestError):
    """A web page that nobody allowed asks a server without keys."""

    status = 403
    type = "permission_error"
    code = "origin_not_allowed"


class ModelNotFound(RequestError):
    status = 404
    code = "model_not_found"


class RouteNotFound(RequestError):
    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    status = 405
    code = "method_not_allowed"

    def __init__(self, allowed: list[str]) -> None:
        super().__init__(f"This path allows {', '.join(allowed)}.")
        self.allowed = allowed


class BodyTimeout(RequestError):
    """The body of a request came too slowly."""

    status = 408
    code = "request_timeout"


class RequestTooLarge(RequestError):
    status = 413
    code = "request_too_large"


class UnsupportedEncoding(RequestError):
    """A body that would have to be unpacked: it may be a thousand times as long as it looks."""

    status = 415
    code = "unsupported_media_type"


class ServerError(RequestError):
    """The request was fine, the server cannot serve it now. `retry_after` is in seconds."""

    status = 503
    type = "server_error"
    code = "internal_error"
    retry_after: int | None = 1


class Overloaded(ServerError):
    code = "server_overloaded"


class BodiesTooLarge(Overloaded):
    """There is no room for the body of this request beside those of others."""


class StorageUnavailable(ServerError):
    """The disk takes nothing more, or cannot be read."""

    code = "storage_unavailable"


class QueueTimeout(ServerError):
    """The request waited longer than the server lets requests wait."""

    code = "queue_timeout"


class RateLimited(ServerError):
    """One API key asks for more than its share at once."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Draining(ServerError):
    code = "server_draining"


class Aborted(ServerError):
    """Whoever runs the server ended the request."""

    code = "request_aborted"
    retry_after = None


class DeadlineExceeded(ServerError):
    """The answer was not complete in the time that the client gave it."""

    status = 504
    code = "deadline_exceeded"
    retry_after = None


class EngineUnavailable(ServerError):
    code = "engine_unavailable"


class Quarantined(ServerError):
    """The engine died several times while it worked on this request."""

    status = 500
    code = "request_quarantined"
    retry_after = None


class InternalError(ServerError):
    """Our bug. The message is fixed: what went wrong is in the log, under the request's id."""

    status = 500
    retry_after = None

    def __init__(self) -> None:
        super().__init__("The server had an internal error; the log has the details under this request id.")


class NanLogits(ServerError):
    """The model computed no numbers for this request: a fault of weights, kernels or the device."""

    status = 500
    code = "nan_logits"
    retry_after = None

    def __init__(self) -> None:
        super().__init__("The model's logits for this request were not finite.")


class ConfigError(OctavoError, ValueError):
    """A flag or a model that cannot be used; the message says what to change."""


class ModelError(ConfigError):
    """A checkpoint that cannot be loaded: unknown architecture, missing or left-over tensor, bad file."""


class EngineError(OctavoError, RuntimeError):
    """The engine stopped working: a fault of ours or of the machine."""


class RowFault(EngineError):
    """What was done for one row of a step failed; the others have no part in it."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} cannot be prepared")
        self.row = row

"""Spans for OpenTelemetry, made when a request is over: nothing is done for them while it runs.

A request is a span of the server's; each prompt that it brought is a span `llm_request` below it, with the attributes
that vLLM gives to its own. Neither prompts nor answers are in them. Needs the extra `tracing`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.core.errors import ConfigError, RequestError
from octavo.core.outputs import RequestMetrics
from octavo.core.params import SamplingParams
from octavo.version import VERSION

if TYPE_CHECKING:
    from octavo.server.http import Exchange


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt whose answers are complete."""

    id: str
    model: str
    params: SamplingParams | None  # None: nothing was generated
    times: RequestMetrics
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Tracer:
    """Sends spans to `endpoint`, as OTLP over HTTP; tests bring a `provider` of their own."""

    def __init__(self, endpoint: str, provider: Any = None) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            if provider is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
                from opentelemetry.sdk.trace.export import BatchSpanProcessor

                provider = TracerProvider(resource=Resource.create({"service.name": "octavo"}))
                provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        except ImportError as error:
            raise ConfigError(f"--otlp-traces-endpoint needs {error.name}: pip install 'octavo[tracing]'") from None
        self._provider = provider
        self._tracer = provider.get_tracer("octavo", VERSION)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, exchange: Exchange, path: str, status: int, error: RequestError | None) -> None:
        """The spans of a request that is over."""
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        names = {"traceparent": exchange.header(b"traceparent"), "tracestate": exchange.header(b"tracestate")}
        carrier = {name: value.decode(errors="replace") for name, value in names.items() if value is not None}
        shift = time.time() - time.monotonic()
        span = self._tracer.start_span(
            f"{exchange.method} {path}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=_ns(exchange.start + shift),
            attributes={
                "http.request.method": exchange.method,
                "http.route": path,
                "http.response.status_code": status,
                "octavo.request.id": exchange.request_id,
            },
        )
        if error is not None:
            span.set_attribute("error.type", error.code)
            if status >= 500:
                span.set_status(StatusCode.ERROR)
        context = set_span_in_context(span)
        for answered in exchange.answered:
            end = answered.times.finished_time or time.monotonic()
            child = self._tracer.start_span(
                "llm_request",
                context=context,
                start_time=_ns(answered.times.arrival_time + shift),
                attributes=_attributes(answered),
            )
            child.end(_ns(end + shift))
        span.end()

    def close(self) -> None:
        self._provider.shutdown()


def _attributes(answered: Answered) -> dict[str, Any]:
    params, times = answered.params, answered.times
    found: dict[str, Any] = {
        "gen_ai.request.id": answered.id,
        "gen_ai.request.model": answered.model,
        "gen_ai.response.model": answered.model,
        "gen_ai.usage.prompt_tokens": answered.prompt_tokens,
        "gen_ai.usage.completion_tokens": answered.completion_tokens,
        "octavo.usage.cached_tokens": answered.cached_tokens,
    }
    if params is not None:
        found["gen_ai.request.temperature"] = params.temperature
        found["gen_ai.request.top_p"] = params.top_p
        found["gen_ai.request.n"] = params.n
        if params.max_tokens is not None:
            found["gen_ai.request.max_tokens"] = params.max_tokens
    begun, first, end = times.scheduled_time, times.first_token_time, times.finished_time
    if end is not None:
        found["gen_ai.latency.e2e"] = end - times.arrival_time
    if first is not None:
        found["gen_ai.latency.time_to_first_token"] = first - times.arrival_time
    if begun is not None:
        found["gen_ai.latency.time_in_queue"] = begun - times.arrival_time
        if end is not None:
            found["gen_ai.latency.time_in_model_inference"] = end - begun
        if first is not None:
            found["gen_ai.latency.time_in_model_prefill"] = first - begun
    if first is not None and end is not None:
        found["gen_ai.latency.time_in_model_decode"] = end - first
    return found


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)

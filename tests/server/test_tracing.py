"""Spans of requests: under the caller's trace, with vLLM's attributes, without a word of prompts or answers."""

from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from octavo.core.errors import ConfigError
from octavo.server.tracing import Tracer
from tests.server.conftest import Running, StartServer
from tests.server.fake_engine import FakeLLM

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def traced(server: Running) -> Iterator[tuple[Running, InMemorySpanExporter]]:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    server.serving.app.tracer = Tracer("", provider)
    yield server, spans
    server.serving.app.tracer = None


def test_spans(traced: tuple[Running, InMemorySpanExporter]) -> None:
    server, spans = traced
    headers = {"traceparent": PARENT, "x-request-id": "mine"}
    server.complete(["say:secret", "say:two"], max_tokens=9, temperature=0.5, headers=headers)
    server.idle()
    second, first, root = spans.get_finished_spans()  # the shorter answer ends first
    assert root.name == "POST /v1/completions"
    assert root.context.trace_id == int(PARENT.split("-")[1], 16)
    assert root.parent is not None and root.parent.span_id == int(PARENT.split("-")[2], 16)
    assert root.attributes is not None and root.attributes["http.response.status_code"] == 200
    assert root.attributes["octavo.request.id"] == "mine"
    for span in (first, second):
        assert span.name == "llm_request" and span.parent is not None and span.parent.span_id == root.context.span_id
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time  # type: ignore[operator]
    found: Any = first.attributes
    assert (found["gen_ai.usage.prompt_tokens"], found["gen_ai.usage.completion_tokens"]) == (10, 7)
    assert (found["gen_ai.request.temperature"], found["gen_ai.request.max_tokens"]) == (0.5, 9)
    assert 0 <= found["gen_ai.latency.time_in_queue"] <= found["gen_ai.latency.time_to_first_token"]
    assert found["gen_ai.latency.time_to_first_token"] <= found["gen_ai.latency.e2e"]
    assert "secret" not in "".join(span.to_json() for span in spans.get_finished_spans())


def test_errors_and_what_is_not_traced(traced: tuple[Running, InMemorySpanExporter]) -> None:
    server, spans = traced
    server.complete(temperature=-1, headers={"traceparent": "nonsense"})
    server.get("/metrics")
    server.get("/livez")
    (span,) = spans.get_finished_spans()
    assert span.attributes is not None and span.parent is None
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (400, "invalid_value")


def test_spans_are_sent(start_server: StartServer) -> None:
    got: list[bytes] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{collector.server_address[1]}/v1/traces"
        server = start_server(FakeLLM(), otlp_traces_endpoint=url)
        assert server.complete("say:x").status_code == 200
        server.stop()  # what is left is sent
        collector.shutdown()
    sent = ExportTraceServiceRequest.FromString(b"".join(got))
    names = [span.name for r in sent.resource_spans for s in r.scope_spans for span in s.spans]
    assert sorted(names) == ["POST /v1/completions", "llm_request"]


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigError, match=r"octavo\[tracing\]"):
        Tracer("http://127.0.0.1:1/v1/traces")

"""The plugin otel: spans, their parents, and an unusable collector."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any, TypeAlias

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status
from people import CHAT, MESSAGES, message
from scene import Scene
from tornado.ioloop import IOLoop
from tornadoproxy_otel import library_log, spans

from tornadoproxy import ConfigurationError, ModelUsage, Outcome, RequestRecord, Usage, __version__
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    ScriptedServer,
    UpstreamExchange,
    bytes_response,
    clean_environment,
    request_record,
    silent_response,
)

Attributes: TypeAlias = dict[str, Any]  # Any: a text, a number, a truth or a list of one of them

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


class Collector(ScriptedServer):
    async def default_response(self, exchange: UpstreamExchange) -> None:
        await bytes_response(b"", {"Content-Type": "application/x-protobuf"})(exchange)

    def resources(self) -> list[ResourceSpans]:
        """Return what each batch has of each sender."""
        return [
            each
            for request in self.requests
            for each in ExportTraceServiceRequest.FromString(request.body).resource_spans
        ]

    def spans(self) -> list[Span]:
        """Return all spans in the order of their ends."""
        scopes = (scope for each in self.resources() for scope in each.scope_spans)
        return [span for scope in scopes for span in scope.spans]


def attributes(pairs: Any) -> Attributes:  # Any: protobuf's own container
    found = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        if kind == "array_value":
            value = [getattr(each, each.WhichOneof("value")) for each in value.values]
        found[pair.key] = value
    return found


@pytest.fixture(autouse=True)
def _without_other_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    clean_environment(monkeypatch)
    for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def collector(io_loop: IOLoop) -> Iterator[Collector]:
    collector = Collector()
    io_loop.run_sync(collector.start)
    yield collector
    io_loop.run_sync(collector.stop)
    assert collector.failures == []


async def reported(collector: Collector, *records: RequestRecord) -> list[Span]:
    endpoint, headers = f"{collector.url}/v1/traces", {"x-key": "hidden-word"}
    tracing = spans.Tracing(endpoint=endpoint, headers=headers, service="tests")
    for record in records:
        tracing.report(record)
    await asyncio.to_thread(tracing.close)
    return collector.spans()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


# -- settings


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:hidden-word@localhost"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=hidden-word,b"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a b=hidden-word"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=hidden-word%0d%0ab"),
    ],
)
async def test_invalid_settings_are_refused_and_not_shown(
    variable: str, value: str, scene: Scene
) -> None:
    with pytest.raises(ConfigurationError, match=f"{variable} must") as refused:
        await scene.start(OTEL_TRACES="yes", **{variable: value})
    assert "hidden-word" not in str(refused.value)


async def test_request_is_reported_to_the_collector(scene: Scene, collector: Collector) -> None:
    proxy = await scene.start(
        OTEL_TRACES="yes",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"{collector.url}/otlp",
        OTEL_EXPORTER_OTLP_HEADERS="Authorization=Basic%20bmFtZQ==, x-scope=a%2Cb",
        OTEL_SERVICE_NAME="gateway",
    )
    assert dict(proxy.lines)["otel"] == f"a span for each request to {collector.url}/otlp"
    proxy.reload()
    await scene.ask(MESSAGES, message(), headers=[("Traceparent", TRACEPARENT)])
    await proxy.server.drain()
    (request,) = collector.requests
    assert (request.method, request.target) == ("POST", "/otlp/v1/traces")
    assert request.header("authorization") == "Basic bmFtZQ=="
    assert request.header("x-scope") == "a,b"
    (sender,) = collector.resources()
    resource = attributes(sender.resource.attributes)
    assert (resource["service.name"], resource["service.version"]) == ("gateway", __version__)
    (span,) = collector.spans()
    assert (span.name, span.parent_span_id.hex()) == ("chat claude-sonnet-5-5", PARENT_ID)


# -- spans


async def test_span_has_the_values_of_its_record(collector: Collector) -> None:
    others = (
        ModelUsage("claude-fable-5", Usage(9), 1),
        ModelUsage(None, Usage(None, 3, cache_read_input_tokens=4), None),
    )
    record = request_record(
        request_id="req_theirs",
        groups=("staff", "admins"),
        scheme="https",
        requested_model="claude-latest",
        model="claude-opus-5",
        usage=Usage(100, 7, 50, 30, others=others),
        cost=405_000,
        stop_reason="end_turn",
        time_to_first_token=0.25,
        session_id="session-1",
        agent_id="agent-2",
        parent_agent_id="agent-1",
    )
    (span,) = await reported(collector, record)
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.start_time_unix_nano == 1_796_000_000 * 10**9
    assert span.end_time_unix_nano - span.start_time_unix_nano == 5 * 10**8
    assert (span.parent_span_id, span.status.code) == (b"", Status.STATUS_CODE_UNSET)
    assert attributes(span.attributes) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/messages",
        "http.request.body.size": 100,
        "http.response.body.size": 200,
        "url.scheme": "https",
        "url.path": "/v1/messages",
        "client.address": "127.0.0.1",
        "enduser.id": "ada",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.operation.name": "chat",
        "gen_ai.conversation.id": "session-1",
        "gen_ai.agent.id": "agent-2",
        "gen_ai.request.model": "claude-latest",
        "gen_ai.response.model": "claude-opus-5",
        "gen_ai.response.finish_reasons": ["end_turn"],
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 180,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 50,
        "gen_ai.usage.cache_creation.input_tokens": 30,
        "tornadoproxy.request_id": "req_theirs",
        "tornadoproxy.dialect": "anthropic",
        "tornadoproxy.outcome": "completed",
        "tornadoproxy.groups": ["staff", "admins"],
        "tornadoproxy.parent_agent_id": "agent-1",
        "tornadoproxy.time_to_first_byte": 0.1,
        "tornadoproxy.upstream_time": 0.4,
        "tornadoproxy.cost_usd": 0.000405,
        "tornadoproxy.others.model": ["claude-fable-5", "unknown"],
        "tornadoproxy.others.input_tokens": [9, 4],
        "tornadoproxy.others.output_tokens": [0, 3],
    }


async def test_span_is_named_by_model_or_route(collector: Collector) -> None:
    expected = [
        ("POST", CHAT, "chat claude-sonnet-5-5", CHAT),
        ("GET", MESSAGES, "GET /v1/messages", MESSAGES),
        ("GET", "/openai/v1/models", "GET /openai/v1/models", "/openai/v1/models"),
        ("GET", "/v1/models/claude-sonnet-5-5", "GET", None),
        ("PURGE", "/v1/models", "HTTP /v1/models", "/v1/models"),
    ]
    records = [request_record(method=method, route=path) for method, path, _, _ in expected]
    found = await reported(collector, *records, request_record(model=None, principal=None))
    for span, (method, path, name, route) in zip(found, expected, strict=False):
        told = attributes(span.attributes)
        assert (span.name, told["url.path"]) == (name, path)
        assert told.get("http.route") == route
        original = told.get("http.request.method_original")
        names = ("_OTHER", "PURGE") if method == "PURGE" else (method, None)
        assert (told["http.request.method"], original) == names
        assert ("gen_ai.operation.name" in told) == (method == "POST")
    unknown = attributes(found[-1].attributes)
    assert found[-1].name == "chat"
    assert not unknown.keys() & {"enduser.id", "tornadoproxy.cost_usd", "error.type"}


async def test_span_has_no_private_data(scene: Scene, collector: Collector) -> None:
    proxy = await scene.start(OTEL_TRACES="yes", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    asked = message(content="a question that is nobody's business")
    await scene.ask("/v1/messages?key=in-the-query", asked)
    await scene.ask("/v1/messages?key=in-the-query", asked, token="in-a-wrong-token")
    await scene.ask(CHAT, {"messages": "in-a-wrong-body"})
    await proxy.server.drain()
    assert len(collector.spans()) == 3
    sent = b"".join(request.raw_head + request.body for request in collector.requests)
    for each in (
        *(TEST_TOKEN, TEST_UPSTREAM_KEY, "in-the-query", "in-a-wrong-token", "in-a-wrong-body"),
        *("nobody's business", "This is a scripted response"),
    ):
        assert each.encode() not in sent


@pytest.mark.parametrize(
    ("changes", "error_type", "is_error"),
    [
        ({"status": 401, "error": "AuthenticationFailed: no"}, "AuthenticationFailed", False),
        ({"status": 429}, "429", False),
        ({"status": 500}, "500", True),
        ({"outcome": Outcome.FAILED, "error": "UpstreamClosed: no"}, "UpstreamClosed", True),
        ({"outcome": Outcome.DRAINED}, "drained", True),
        ({"status": None, "outcome": Outcome.ABANDONED}, None, False),
    ],
)
async def test_failure_of_proxy_or_upstream_is_an_error(
    changes: dict[str, Any], error_type: str | None, is_error: bool, collector: Collector
) -> None:
    (span,) = await reported(collector, request_record(usage=Usage(partial=True), **changes))
    told = attributes(span.attributes)
    assert told.get("error.type") == error_type
    assert (span.status.code == Status.STATUS_CODE_ERROR) == is_error
    assert span.status.message == (changes.get("error", "") if is_error else "")
    assert told["tornadoproxy.usage.partial"] is True


async def test_half_a_surrogate_pair_loses_no_batch(collector: Collector) -> None:
    odd, sound = await reported(
        collector, request_record(model="claude-\ud800" + "y" * 1000), request_record()
    )
    assert odd.name == "chat claude-?" + "y" * (spans.MAX_TEXT - 8)
    assert sound.name == "chat claude-sonnet-5-5"


# -- parents


INVALID = (
    "",
    f"00-{'0' * 32}-{PARENT_ID}-01",
    f"00-{TRACE_ID}-{'0' * 16}-01",
    f"ff-{TRACE_ID}-{PARENT_ID}-01",
    f"{TRACEPARENT},{TRACEPARENT}",
    TRACEPARENT + "-" + "x" * 2000,
    "00-" + "\xe9" * 32 + f"-{PARENT_ID}-01",
)


async def test_span_is_a_child_of_the_clients_span(
    caplog: pytest.LogCaptureFixture, collector: Collector
) -> None:
    states = ("vendor=value,b=2", "x" * 2000, "a=b,=nonsense=,,", "=,\xe9" + "x" * 1000)
    unsampled = request_record(traceparent=TRACEPARENT[:-1] + "0")
    found = await reported(
        collector,
        *(request_record(traceparent=TRACEPARENT, tracestate=state) for state in states),
        unsampled,
        *(request_record(traceparent=each, tracestate=states[0]) for each in INVALID),
    )
    children, roots = found[: len(states)], found[len(states) :]
    assert {span.parent_span_id.hex() for span in children} == {PARENT_ID}
    assert {span.trace_id.hex() for span in children} == {TRACE_ID}
    assert children[0].trace_state == states[0]
    assert {span.parent_span_id for span in roots} == {b""}
    assert len({span.trace_id.hex() for span in roots} - {TRACE_ID}) == len(INVALID)
    assert warnings(caplog) == []


# -- the collector


@pytest.mark.parametrize("is_missing", [True, False])
async def test_failed_export_is_logged_without_a_header(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    is_missing: bool,
    collector: Collector,
) -> None:
    monkeypatch.setattr(spans, "EXPORT_TIMEOUT", 0.1)
    collector.script(bytes_response(b"", status=401))
    if is_missing:
        await collector.stop()
    await reported(collector, request_record())
    assert ("Failed to export" if is_missing else "401") in warnings(caplog)[0]
    assert "hidden-word" not in caplog.text


def test_log_of_the_library_is_thinned_out(caplog: pytest.LogCaptureFixture) -> None:
    exporter = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    before = list(exporter.filters)
    log = library_log.LibraryLog()
    log.install()
    for number in range(1, 101):
        exporter.error("the collector is down: %d", number)
    exporter.error("something else")
    log.remove()
    assert exporter.filters == before
    seen = [each.getMessage().rpartition(" ")[2] for each in caplog.records]
    assert seen == ["1", "2", "4", "8", "16", "32", "64", "else"]


async def test_hanging_collector_delays_the_stop_briefly(
    monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    monkeypatch.setattr(spans, "EXPORT_TIMEOUT", 30)
    monkeypatch.setattr(spans, "FLUSH_TIMEOUT", 0.1)
    collector.script(silent_response())
    async with asyncio.timeout(5):
        await reported(collector, request_record())
    assert (await collector.received()).target == "/v1/traces"
    await collector.stop()  # which ends the thread that waits for it
    for thread in threading.enumerate():
        if thread.name.startswith("OtelBatch"):
            await asyncio.to_thread(thread.join)


async def test_variable_that_the_library_cannot_parse_is_not_quoted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    # the library reads its own variable as well, by rules of its own
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "hidden-word")
    assert len(await reported(collector, request_record())) == 1
    assert "hidden-word" not in caplog.text

"""The plugin otel: spans, their parents, and an unusable collector."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import tornadoproxy_otel
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from tornadoproxy_otel import (
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_HEADERS,
    OTEL_SERVICE_NAME,
    OTEL_TRACES,
    library_log,
    spans,
)

from tornadoproxy import (
    INACTIVE,
    ConfigurationError,
    Identity,
    IncomingRequest,
    Settings,
    __version__,
    hookimpl,
)
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    ScriptedServer,
    Truncated,
    UpstreamExchange,
    bytes_response,
    clean_environment,
    error_response,
    event,
    json_response,
    message_document,
    message_events,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tornado.ioloop import IOLoop

    from tornadoproxy.testing import (
        Ask,
        Proxy,
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
    )

Attributes: TypeAlias = dict[str, Any]  # Any: a text, a number, a truth or a list of one of them

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"

MESSAGE = json.dumps(
    {
        "model": "claude-sonnet-5-5",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "a question that is nobody's business"}],
    }
).encode()
STREAM = MESSAGE[:-1] + b', "stream": true}'

DEFAULTS = Settings.defaults(
    OTEL_TRACES, OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME
)


class Collector(ScriptedServer):
    """A collector that accepts all spans."""

    async def default_response(self, exchange: UpstreamExchange) -> None:
        await bytes_response(b"", {"Content-Type": "application/x-protobuf"})(exchange)

    def resources(self) -> list[Attributes]:
        """Return the attributes of the sender of each batch."""
        return [
            attributes(each.resource.attributes)
            for request in self.requests
            for each in ExportTraceServiceRequest.FromString(request.body).resource_spans
        ]

    def spans(self) -> list[Span]:
        """Return all spans in the order of their ends."""
        return [
            span
            for request in self.requests
            for resource in ExportTraceServiceRequest.FromString(request.body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


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
    for name in (OTEL_EXPORTER_OTLP_HEADERS.name, "OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def collector(io_loop: IOLoop) -> Iterator[Collector]:
    collector = Collector()
    io_loop.run_sync(collector.start)
    yield collector
    io_loop.run_sync(collector.stop)
    assert collector.failures == []


class Traced:
    """A proxy that reports to a collector, and what surrounds it."""

    def __init__(
        self, start_proxy: StartProxy, ask: Ask, upstream: ScriptedUpstream, collector: Collector
    ) -> None:
        self._start_proxy = start_proxy
        self._ask = ask
        self.upstream = upstream
        self.collector = collector

    async def start(self, **more: Any) -> Proxy:
        given = {"OTEL_TRACES": "yes", "OTEL_EXPORTER_OTLP_ENDPOINT": self.collector.url, **more}
        return await self._start_proxy(**given)

    async def ask(
        self,
        path: str = "/v1/messages",
        body: bytes = MESSAGE,
        headers: Sequence[tuple[str, str]] = (),
        method: str = "POST",
        token: str | None = TEST_TOKEN,
        to: Proxy | None = None,
    ) -> RawResponse:
        return await self._ask(path, body=body, headers=headers, method=method, token=token, to=to)

    async def span(self, proxy: Proxy) -> tuple[Span, Attributes]:
        """Stop the proxy, and return its only span and the attributes."""
        await proxy.server.drain()
        (span,) = self.collector.spans()
        return span, attributes(span.attributes)


@pytest.fixture
def traced(
    start_proxy: StartProxy, ask: Ask, upstream: ScriptedUpstream, collector: Collector
) -> Traced:
    return Traced(start_proxy, ask, upstream, collector)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


# -- settings


async def test_without_otel_traces_nothing_is_sent(traced: Traced) -> None:
    proxy = await traced._start_proxy(OTEL_EXPORTER_OTLP_ENDPOINT=traced.collector.url)
    await traced.ask()
    await proxy.server.drain()
    assert traced.collector.requests == []
    assert "otel" not in dict(proxy.lines)
    assert tornadoproxy_otel.OpenTelemetry().configure(DEFAULTS) is INACTIVE


def test_missing_library_is_named_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tornadoproxy_otel.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError) as refused:
        tornadoproxy_otel.OpenTelemetry().configure(DEFAULTS.replace({OTEL_TRACES: True}))
    assert str(refused.value) == (
        "OTEL_TRACES needs opentelemetry.sdk.trace; install it with `pip install "
        "'tornadoproxy[otel]'`, or remove OTEL_TRACES."
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:hidden-word@localhost"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hidden-word"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=hidden-word,b"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a b=hidden-word"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=hidden-word%0d%0ab"),
    ],
)
async def test_invalid_settings_are_refused_and_not_shown(
    variable: str, value: str, traced: Traced
) -> None:
    with pytest.raises(ConfigurationError, match=f"{variable} must") as refused:
        await traced._start_proxy(OTEL_TRACES="yes", **{variable: value})
    assert "hidden-word" not in str(refused.value)


async def test_batch_names_its_sender(traced: Traced) -> None:
    proxy = await traced.start(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"{traced.collector.url}/otlp",
        OTEL_EXPORTER_OTLP_HEADERS="Authorization=Basic%20bmFtZQ==, x-scope=a%2Cb",
        OTEL_SERVICE_NAME="gateway",
    )
    assert dict(proxy.lines)["otel"] == f"a span for each request to {traced.collector.url}/otlp"
    await traced.ask()
    await proxy.server.drain()
    (request,) = traced.collector.requests
    assert (request.method, request.target) == ("POST", "/otlp/v1/traces")
    assert request.header("authorization") == "Basic bmFtZQ=="
    assert request.header("x-scope") == "a,b"
    (resource,) = traced.collector.resources()
    assert resource["service.name"] == "gateway"
    assert resource["service.version"] == __version__


async def test_reload_does_not_change_the_collector(traced: Traced) -> None:
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": "x-key=one"}
    proxy = await traced.start(**headers)
    proxy.reload(**headers)
    changes: list[dict[str, object]] = [
        {"OTEL_EXPORTER_OTLP_HEADERS": "x-key=two"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SERVICE_NAME": "other"},
        {"OTEL_TRACES": "no"},
    ]
    for changed in changes:
        with pytest.raises(ConfigurationError, match="restart"):
            proxy.reload(**changed)


async def test_each_proxy_reports_to_its_own_collector(traced: Traced) -> None:
    async with Collector() as other:
        first = await traced.start(OTEL_SERVICE_NAME="first")
        second = await traced.start(
            OTEL_SERVICE_NAME="second", OTEL_EXPORTER_OTLP_ENDPOINT=other.url
        )
        await traced.ask(to=first)
        await second.server.drain()
        await first.server.drain()
        assert other.requests == []
        assert [each["service.name"] for each in traced.collector.resources()] == ["first"]


# -- spans


async def test_span_of_a_message(records: Records, traced: Traced) -> None:
    class PriceList:
        @hookimpl(tryfirst=True)
        def price(self, usage: Any) -> int:
            return 405_000

    class Directory:
        @hookimpl(tryfirst=True)
        def authenticate(self, request: IncomingRequest) -> Identity:
            return Identity("ada", groups=("staff", "admins"))

    proxy = await traced.start(plugins=[PriceList(), Directory()])
    advice = {"type": "advisor_message", "model": "claude-fable-5"}
    usage = {
        "input_tokens": 100,
        "output_tokens": 7,
        "cache_read_input_tokens": 50,
        "cache_creation_input_tokens": 30,
        "iterations": [
            {**advice, "input_tokens": 9},
            {**advice, "cache_read_input_tokens": 4, "output_tokens": 3},
        ],
    }
    document = message_document("An answer", model="claude-opus-5", usage=usage)
    traced.upstream.script(
        sse_response(message_events(document), headers={"Request-Id": "req_theirs"})
    )
    headers = [
        ("X-Claude-Code-Session-Id", "session-1"),
        ("X-Claude-Code-Agent-Id", "agent-2"),
        ("X-Claude-Code-Parent-Agent-Id", "agent-1"),
    ]
    response = await traced.ask("/v1/messages?beta=true", STREAM, headers)
    record = await records.finished()
    span, told = await traced.span(proxy)
    assert span.name == "chat claude-opus-5"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.start_time_unix_nano == int(record.time * 1e9)
    lasted = span.end_time_unix_nano - span.start_time_unix_nano
    assert lasted == int(record.duration * 1e9)
    assert (span.parent_span_id, span.status.code) == (b"", Status.STATUS_CODE_UNSET)
    assert told == {
        "gen_ai.response.time_to_first_chunk": record.time_to_first_token,
        "tornadoproxy.time_to_first_byte": record.time_to_first_byte,
        "tornadoproxy.upstream_time": record.upstream_time,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/messages",
        "http.request.body.size": len(STREAM),
        "http.response.body.size": len(response.body),
        "url.scheme": "http",
        "url.path": "/v1/messages",
        "client.address": "127.0.0.1",
        "enduser.id": "ada",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.operation.name": "chat",
        "gen_ai.conversation.id": "session-1",
        "gen_ai.agent.id": "agent-2",
        "gen_ai.response.model": "claude-opus-5",
        "gen_ai.response.finish_reasons": ["end_turn"],
        "gen_ai.usage.input_tokens": 180,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 50,
        "gen_ai.usage.cache_creation.input_tokens": 30,
        "tornadoproxy.request_id": "req_theirs",
        "tornadoproxy.dialect": "anthropic",
        "tornadoproxy.outcome": "completed",
        "tornadoproxy.groups": ["staff", "admins"],
        "tornadoproxy.parent_agent_id": "agent-1",
        "tornadoproxy.cost_usd": pytest.approx(3 * 0.000405),
        "tornadoproxy.others.model": ["claude-fable-5", "claude-fable-5"],
        "tornadoproxy.others.input_tokens": [9, 4],
        "tornadoproxy.others.output_tokens": [0, 3],
    }


async def test_span_has_the_requested_model_and_scheme(traced: Traced) -> None:
    class Authorizer:
        @hookimpl
        def authorize(self) -> None:
            """Have the body read."""

    proxy = await traced.start(plugins=[Authorizer()], TRUSTED_PROXIES="127.0.0.1")
    body = b'{"model": "claude-latest", "max_tokens": 9, "messages": []}'
    await traced.ask("/v1/messages", body, [("X-Forwarded-Proto", "https")])
    _, told = await traced.span(proxy)
    assert told["gen_ai.request.model"] == "claude-latest"
    assert told["url.scheme"] == "https"


async def test_span_of_a_chat_completion(traced: Traced) -> None:
    proxy = await traced.start()
    body = b'{"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "Hi"}]}'
    assert (await traced.ask("/openai/v1/chat/completions", body)).status == 200
    span, told = await traced.span(proxy)
    assert span.name == "chat claude-sonnet-5-5"
    assert told["tornadoproxy.dialect"] == "openai"
    assert told["gen_ai.provider.name"] == "anthropic"
    assert told["gen_ai.response.finish_reasons"] == ["end_turn"]
    assert told["gen_ai.request.model"] == "claude-sonnet-5-5"
    assert "gen_ai.response.time_to_first_chunk" not in told


async def test_span_of_another_request_has_method_and_route(traced: Traced) -> None:
    requests = [
        ("POST", "/v1/messages/count_tokens", "POST /v1/messages/count_tokens", True),
        ("GET", "/v1/models", "GET /v1/models", True),
        ("GET", "/v1/models/claude-sonnet-5-5", "GET", False),
        ("GET", "/openai/v1/models", "GET /openai/v1/models", True),
        ("GET", "/v1/messages", "GET /v1/messages", True),
        ("PURGE", "/v1/models", "HTTP /v1/models", True),
        ("GET", "/some/path", "GET", False),
    ]
    proxy = await traced.start()
    for method, path, _, _ in requests:
        await traced.ask(path, b"{}" if method == "POST" else b"", method=method)
    await proxy.server.drain()
    for span, (method, path, name, route) in zip(traced.collector.spans(), requests, strict=True):
        told = attributes(span.attributes)
        assert (span.name, told["url.path"]) == (name, path)
        assert told.get("http.route") == (path if route else None)
        original = told.get("http.request.method_original")
        expected = ("_OTHER", "PURGE") if method == "PURGE" else (method, None)
        assert (told["http.request.method"], original) == expected
        assert "gen_ai.operation.name" not in told


async def test_span_has_no_private_data(traced: Traced) -> None:
    proxy = await traced.start()
    await traced.ask("/v1/messages?key=in-the-query")
    await traced.ask("/v1/messages?key=in-the-query", token="in-a-wrong-token")
    await traced.ask("/openai/v1/chat/completions", b'{"messages": "in-a-wrong-body"}')
    await proxy.server.drain()
    assert len(traced.collector.spans()) == 3
    sent = b"".join(request.raw_head + request.body for request in traced.collector.requests)
    for each in (
        *(TEST_TOKEN, TEST_UPSTREAM_KEY, "in-the-query", "in-a-wrong-token", "in-a-wrong-body"),
        *("nobody's business", "This is a scripted answer"),
    ):
        assert each.encode() not in sent


async def test_error_of_the_client_is_no_error_of_the_span(traced: Traced) -> None:
    proxy = await traced.start()
    assert (await traced.ask(token=None)).status == 401
    span, told = await traced.span(proxy)
    assert (span.name, span.status.code) == ("chat", Status.STATUS_CODE_UNSET)
    assert told["error.type"] == "AuthenticationFailed"
    assert told["tornadoproxy.outcome"] == "denied"
    assert "enduser.id" not in told


async def test_upstream_error_is_an_error_of_the_span(traced: Traced) -> None:
    proxy = await traced.start()
    traced.upstream.script(error_response(529, "overloaded_error", "later"))
    traced.upstream.script(error_response(429, "rate_limit_error", "later"))
    assert [(await traced.ask()).status for _ in range(2)] == [529, 429]
    await proxy.server.drain()
    first, second = traced.collector.spans()
    assert attributes(first.attributes)["error.type"] == "529"
    assert first.status.code == Status.STATUS_CODE_ERROR
    assert attributes(second.attributes)["error.type"] == "429"
    assert second.status.code == Status.STATUS_CODE_UNSET


async def test_cut_response_is_an_error_and_partial(traced: Traced) -> None:
    proxy = await traced.start()
    events = message_events(message_document("a few words"))
    traced.upstream.script(sse_response([*events[:3], event({"type": "ping"})], end="reset"))
    with contextlib.suppress(Truncated):
        await traced.ask(body=STREAM)
    span, told = await traced.span(proxy)
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert span.status.message.startswith("UpstreamClosed: ")
    assert told["error.type"] == "UpstreamClosed"
    assert told["tornadoproxy.usage.partial"] is True
    assert told["gen_ai.usage.output_tokens"] > 0


async def test_half_a_surrogate_pair_loses_no_batch(traced: Traced) -> None:
    proxy = await traced.start()
    traced.upstream.script(json_response(message_document("x", model="claude-\ud800" + "y" * 1000)))
    await traced.ask()
    await traced.ask()
    await proxy.server.drain()
    odd, sound = traced.collector.spans()
    assert odd.name == "chat claude-?" + "y" * (spans.MAX_TEXT - 8)
    assert sound.name == "chat claude-sonnet-5-5"


# -- parents


async def test_span_is_a_child_of_the_clients_span(traced: Traced) -> None:
    proxy = await traced.start()
    await traced.ask(headers=[("Traceparent", TRACEPARENT), ("Tracestate", "vendor=value,b=2")])
    span, _ = await traced.span(proxy)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert span.span_id.hex() != PARENT_ID
    assert span.trace_state == "vendor=value,b=2"


async def test_unsampled_trace_is_not_recorded(traced: Traced) -> None:
    proxy = await traced.start()
    await traced.ask(headers=[("Traceparent", TRACEPARENT[:-1] + "0")])
    await proxy.server.drain()
    assert traced.collector.requests == []


async def test_invalid_trace_context_is_ignored(
    caplog: pytest.LogCaptureFixture, traced: Traced
) -> None:
    invalid = (
        "",
        "nonsense",
        f"00-{'0' * 32}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"ff-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID}-01-more",
        f"{TRACEPARENT},{TRACEPARENT}",
        TRACEPARENT + "-" + "x" * 2000,
        "00-" + "\xe9" * 32 + f"-{PARENT_ID}-01",
    )
    proxy = await traced.start()
    for traceparent in invalid:
        headers = [("Traceparent", traceparent), ("Tracestate", "=,=,\xe9" + "x" * 1000)]
        assert (await traced.ask(headers=headers)).status == 200
    await proxy.server.drain()
    found = traced.collector.spans()
    assert {span.parent_span_id for span in found} == {b""}
    assert len({span.trace_id.hex() for span in found} - {TRACE_ID}) == len(invalid)
    assert warnings(caplog) == []


async def test_invalid_trace_state_keeps_the_parent(
    caplog: pytest.LogCaptureFixture, traced: Traced
) -> None:
    proxy = await traced.start()
    await traced.ask(headers=[("Traceparent", TRACEPARENT), ("Tracestate", "x" * 2000)])
    await traced.ask(headers=[("Traceparent", TRACEPARENT), ("Tracestate", "a=b,=nonsense=,,")])
    await proxy.server.drain()
    assert [each.parent_span_id.hex() for each in traced.collector.spans()] == [PARENT_ID] * 2
    assert warnings(caplog) == []


# -- the collector


async def test_missing_collector_delays_no_request(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, traced: Traced
) -> None:
    monkeypatch.setattr(spans, "EXPORT_TIMEOUT", 0.1)
    await traced.collector.stop()
    proxy = await traced.start()
    for _ in range(3):
        assert (await traced.ask("/nowhere", b"", method="GET")).status == 404
    await proxy.server.drain()
    assert "Failed to export" in warnings(caplog)[0]


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
    monkeypatch: pytest.MonkeyPatch, traced: Traced
) -> None:
    monkeypatch.setattr(spans, "EXPORT_TIMEOUT", 30)
    monkeypatch.setattr(spans, "FLUSH_TIMEOUT", 0.1)
    traced.collector.script(silent_response())
    proxy = await traced.start()
    await traced.ask()
    async with asyncio.timeout(5):
        await proxy.server.drain()
    request = await traced.collector.received()
    assert request.target == "/v1/traces"
    await traced.collector.stop()  # which ends the thread that waits for it
    for thread in threading.enumerate():
        if thread.name.startswith("OtelBatch"):
            await asyncio.to_thread(thread.join)


async def test_refusal_by_the_collector_is_logged(
    caplog: pytest.LogCaptureFixture, traced: Traced
) -> None:
    traced.collector.script(bytes_response(b"", status=401))
    proxy = await traced.start(OTEL_EXPORTER_OTLP_HEADERS="x-key=hidden-word")
    await traced.ask()
    await proxy.server.drain()
    (warning,) = warnings(caplog)
    assert "401" in warning
    assert "hidden-word" not in caplog.text


async def test_variable_that_the_library_cannot_parse_is_not_quoted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, traced: Traced
) -> None:
    # the library reads its own variable as well, by rules of its own
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "hidden-word")
    proxy = await traced.start()
    await traced.ask()
    await proxy.server.drain()
    assert len(traced.collector.spans()) == 1
    assert "hidden-word" not in caplog.text

"""The otel plugin: what a span holds, whose child it is, and a collector that is not there."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
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
    UpstreamExchange,
    bytes_response,
    clean_environment,
    error_response,
    event,
    json_response,
    message_document,
    message_events,
    request_bytes,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tornado.ioloop import IOLoop

    from tornadoproxy.testing import (
        OpenRaw,
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
    """Takes all spans in."""

    async def default_response(self, exchange: UpstreamExchange) -> None:
        await bytes_response(b"", {"Content-Type": "application/x-protobuf"})(exchange)

    def resources(self) -> list[Attributes]:
        """The attributes of what each batch says of its sender."""
        return [
            attributes(each.resource.attributes)
            for request in self.requests
            for each in ExportTraceServiceRequest.FromString(request.body).resource_spans
        ]

    def spans(self) -> list[Span]:
        """All spans so far, in the order of their ends."""
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
def _straight_to_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def ask(
    raw: OpenRaw,
    path: str = "/v1/messages",
    body: bytes = MESSAGE,
    headers: list[tuple[str, str]] | None = None,
    method: str = "POST",
    token: str | None = TEST_TOKEN,
) -> RawResponse:
    client = await raw()
    await client.send(request_bytes(method, path, headers or [], body, token=token))
    return await client.response()


async def traced(start_proxy: StartProxy, collector: Collector, **more: Any) -> Proxy:
    variables = {"OTEL_TRACES": "yes", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    return await start_proxy(**{**variables, **more})


async def only_span(proxy: Proxy, collector: Collector) -> tuple[Span, Attributes]:
    """The one span there is, once the proxy has stopped, and its attributes."""
    await proxy.server.drain()
    (span,) = collector.spans()
    return span, attributes(span.attributes)


# -- on and off


async def test_nothing_is_sent_unless_it_is_asked_for(
    start_proxy: StartProxy, raw: OpenRaw, collector: Collector
) -> None:
    proxy = await start_proxy(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    await ask(raw)
    await proxy.server.drain()
    assert collector.requests == []
    assert "otel" not in dict(proxy.lines)
    assert tornadoproxy_otel.OpenTelemetry().configure(DEFAULTS) is INACTIVE


def test_nothing_is_imported_for_it_unless_it_is_asked_for() -> None:
    code = (
        "import sys, tornadoproxy_otel as otel; otel.OpenTelemetry();"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_library_the_start_says_what_to_install() -> None:
    code = """if True:
        import sys
        sys.modules["opentelemetry.sdk.trace"] = None
        import tornadoproxy, tornadoproxy_otel as otel
        settings = tornadoproxy.Settings.defaults(*otel.OpenTelemetry().declare_settings())
        try:
            otel.OpenTelemetry().configure(settings.replace({otel.OTEL_TRACES: True}))
        except tornadoproxy.ConfigurationError as error:
            print(error)
    """
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout == (
        "OTEL_TRACES needs opentelemetry.sdk.trace: pip install 'tornadoproxy[otel]', or take "
        "OTEL_TRACES away.\n"
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
async def test_what_makes_no_sense_is_refused_and_not_shown(
    variable: str, value: str, start_proxy: StartProxy
) -> None:
    with pytest.raises(ConfigurationError, match=f"{variable} must") as refused:
        await start_proxy(OTEL_TRACES="yes", **{variable: value})
    assert "hidden-word" not in str(refused.value)


async def test_the_collector_is_told_who_sends(
    start_proxy: StartProxy, raw: OpenRaw, collector: Collector
) -> None:
    proxy = await traced(
        start_proxy,
        collector,
        OTEL_EXPORTER_OTLP_ENDPOINT=f"{collector.url}/otlp",
        OTEL_EXPORTER_OTLP_HEADERS="Authorization=Basic%20bmFtZQ==, x-scope=a%2Cb",
        OTEL_SERVICE_NAME="gateway",
    )
    assert dict(proxy.lines)["otel"] == f"a span for each request, to {collector.url}/otlp"
    await ask(raw)
    await proxy.server.drain()
    (request,) = collector.requests
    assert (request.method, request.target) == ("POST", "/otlp/v1/traces")
    assert request.header("authorization") == "Basic bmFtZQ=="
    assert request.header("x-scope") == "a,b"
    (resource,) = collector.resources()
    assert resource["service.name"] == "gateway"
    assert resource["service.version"] == __version__


async def test_only_a_start_changes_the_collector(
    start_proxy: StartProxy, collector: Collector
) -> None:
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": "x-key=one"}
    proxy = await traced(start_proxy, collector, **headers)
    proxy.reload(**headers)
    changes: list[dict[str, object]] = [
        {"OTEL_EXPORTER_OTLP_HEADERS": "x-key=two"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SERVICE_NAME": "other"},
        {"OTEL_TRACES": "no"},
    ]
    for changed in changes:
        with pytest.raises(ConfigurationError, match="start again"):
            proxy.reload(**changed)


async def test_two_proxies_report_each_to_its_own_collector(
    start_proxy: StartProxy, raw: OpenRaw, collector: Collector
) -> None:
    async with Collector() as other:
        first = await traced(start_proxy, collector, OTEL_SERVICE_NAME="first")
        second = await traced(start_proxy, other, OTEL_SERVICE_NAME="second")
        client = await raw(first)
        await client.send(request_bytes("POST", "/v1/messages", body=MESSAGE, token=TEST_TOKEN))
        await client.response()
        await second.server.drain()
        await first.server.drain()
        assert other.requests == []
        assert [each["service.name"] for each in collector.resources()] == ["first"]


# -- what a span holds


async def test_a_span_says_what_a_message_was(
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    collector: Collector,
    records: Records,
) -> None:
    class PriceList:
        @hookimpl(tryfirst=True)
        def price(self, usage: Any) -> int:
            return 405_000

    class Directory:
        @hookimpl(tryfirst=True)
        def authenticate(self, request: IncomingRequest) -> Identity:
            return Identity("ada", groups=("staff", "admins"))

    proxy = await traced(start_proxy, collector, plugins=[PriceList(), Directory()])
    usage = {
        "input_tokens": 100,
        "output_tokens": 7,
        "cache_read_input_tokens": 50,
        "cache_creation_input_tokens": 30,
        "iterations": [
            {"type": "advisor_message", "model": "claude-fable-5", "input_tokens": 9},
            {
                "type": "advisor_message",
                "model": "claude-fable-5",
                "cache_read_input_tokens": 4,
                "output_tokens": 3,
            },
        ],
    }
    document = message_document("An answer", model="claude-opus-5", usage=usage)
    upstream.script(sse_response(message_events(document), headers={"Request-Id": "req_theirs"}))
    headers = [
        ("X-Claude-Code-Session-Id", "session-1"),
        ("X-Claude-Code-Agent-Id", "agent-2"),
        ("X-Claude-Code-Parent-Agent-Id", "agent-1"),
    ]
    response = await ask(raw, "/v1/messages?beta=true", STREAM, headers)
    record = await records.finished()
    span, told = await only_span(proxy, collector)
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


async def test_span_of_a_message_names_the_requested_model(
    start_proxy: StartProxy, raw: OpenRaw, collector: Collector
) -> None:
    class Authorizer:
        @hookimpl
        def authorize(self) -> None:
            """Have the body read."""

    proxy = await traced(
        start_proxy, collector, plugins=[Authorizer()], TRUSTED_PROXIES="127.0.0.1"
    )
    body = b'{"model": "claude-latest", "max_tokens": 9, "messages": []}'
    await ask(raw, "/v1/messages", body, [("X-Forwarded-Proto", "https")])
    _, told = await only_span(proxy, collector)
    assert told["gen_ai.request.model"] == "claude-latest"
    assert told["url.scheme"] == "https"


async def test_a_chat_completion_is_a_chat_as_well(
    start_proxy: StartProxy, raw: OpenRaw, collector: Collector
) -> None:
    proxy = await traced(start_proxy, collector)
    body = b'{"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "Hi"}]}'
    assert (await ask(raw, "/openai/v1/chat/completions", body)).status == 200
    span, told = await only_span(proxy, collector)
    assert span.name == "chat claude-sonnet-5-5"
    assert told["tornadoproxy.dialect"] == "openai"
    assert told["gen_ai.provider.name"] == "anthropic"
    assert told["gen_ai.response.finish_reasons"] == ["end_turn"]
    assert told["gen_ai.request.model"] == "claude-sonnet-5-5"
    assert "gen_ai.response.time_to_first_chunk" not in told


@pytest.mark.parametrize(
    ("method", "path", "name", "route"),
    [
        ("POST", "/v1/messages/count_tokens", "POST /v1/messages/count_tokens", True),
        ("GET", "/v1/models", "GET /v1/models", True),
        ("GET", "/v1/models/claude-sonnet-5-5", "GET", False),
        ("GET", "/openai/v1/models", "GET /openai/v1/models", True),
        ("GET", "/v1/messages", "GET /v1/messages", True),
        ("PURGE", "/v1/models", "HTTP /v1/models", True),
        ("GET", "/some/path", "GET", False),
    ],
)
async def test_what_is_no_chat_is_named_after_method_and_route(
    method: str,
    path: str,
    name: str,
    route: bool,
    start_proxy: StartProxy,
    raw: OpenRaw,
    collector: Collector,
) -> None:
    proxy = await traced(start_proxy, collector)
    await ask(raw, path, b"{}" if method == "POST" else b"", method=method)
    span, told = await only_span(proxy, collector)
    assert span.name == name
    assert told["url.path"] == path
    assert told.get("http.route") == (path if route else None)
    original = told.get("http.request.method_original")
    known = method != "PURGE"
    expected = (method, None) if known else ("_OTHER", "PURGE")
    assert (told["http.request.method"], original) == expected
    assert "gen_ai.operation.name" not in told


async def test_no_span_holds_what_is_private(
    start_proxy: StartProxy, raw: OpenRaw, collector: Collector
) -> None:
    proxy = await traced(start_proxy, collector)
    await ask(raw, "/v1/messages?key=in-the-query")
    await ask(raw, "/v1/messages?key=in-the-query", token="in-a-wrong-token")
    await ask(raw, "/openai/v1/chat/completions", b'{"messages": "in-a-wrong-body"}')
    await proxy.server.drain()
    assert len(collector.spans()) == 3
    sent = b"".join(request.raw_head + request.body for request in collector.requests)
    for each in (
        *(TEST_TOKEN, TEST_UPSTREAM_KEY, "in-the-query", "in-a-wrong-token", "in-a-wrong-body"),
        *("nobody's business", "This is a scripted answer"),
    ):
        assert each.encode() not in sent


async def test_a_clients_mistake_is_no_error_of_the_server(
    start_proxy: StartProxy, raw: OpenRaw, collector: Collector
) -> None:
    proxy = await traced(start_proxy, collector)
    assert (await ask(raw, token=None)).status == 401
    span, told = await only_span(proxy, collector)
    assert (span.name, span.status.code) == ("chat", Status.STATUS_CODE_UNSET)
    assert told["error.type"] == "AuthenticationFailed"
    assert told["tornadoproxy.outcome"] == "denied"
    assert "enduser.id" not in told


async def test_the_upstreams_error_is_one(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, collector: Collector
) -> None:
    proxy = await traced(start_proxy, collector)
    upstream.script(error_response(529, "overloaded_error", "later"))
    upstream.script(error_response(429, "rate_limit_error", "later"))
    assert [(await ask(raw)).status for _ in range(2)] == [529, 429]
    await proxy.server.drain()
    first, second = collector.spans()
    assert attributes(first.attributes)["error.type"] == "529"
    assert first.status.code == Status.STATUS_CODE_ERROR
    assert attributes(second.attributes)["error.type"] == "429"
    assert second.status.code == Status.STATUS_CODE_UNSET


async def test_an_answer_that_breaks_off_is_an_error_and_partial(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, collector: Collector
) -> None:
    proxy = await traced(start_proxy, collector)
    events = message_events(message_document("a few words"))
    upstream.script(sse_response([*events[:3], event({"type": "ping"})], end="reset"))
    client = await raw()
    await client.send(request_bytes("POST", "/v1/messages", body=STREAM, token=TEST_TOKEN))
    await client.disconnected()
    span, told = await only_span(proxy, collector)
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert span.status.message.startswith("UpstreamClosed: ")
    assert told["error.type"] == "UpstreamClosed"
    assert told["tornadoproxy.usage.partial"] is True
    assert told["gen_ai.usage.output_tokens"] > 0


async def test_half_a_surrogate_pair_loses_no_batch(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, collector: Collector
) -> None:
    proxy = await traced(start_proxy, collector)
    upstream.script(json_response(message_document("x", model="claude-\ud800" + "y" * 1000)))
    await ask(raw)
    await ask(raw)
    await proxy.server.drain()
    odd, sound = collector.spans()
    assert odd.name == "chat claude-?" + "y" * (spans.MAX_TEXT - 8)
    assert sound.name == "chat claude-sonnet-5-5"


# -- whose child it is


async def test_a_span_is_the_child_of_its_clients(
    start_proxy: StartProxy, raw: OpenRaw, collector: Collector
) -> None:
    proxy = await traced(start_proxy, collector)
    await ask(raw, headers=[("Traceparent", TRACEPARENT), ("Tracestate", "vendor=value,b=2")])
    span, _ = await only_span(proxy, collector)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert span.span_id.hex() != PARENT_ID
    assert span.trace_state == "vendor=value,b=2"


async def test_what_the_client_does_not_record_is_not_recorded(
    start_proxy: StartProxy, raw: OpenRaw, collector: Collector
) -> None:
    proxy = await traced(start_proxy, collector)
    await ask(raw, headers=[("Traceparent", TRACEPARENT[:-1] + "0")])
    await proxy.server.drain()
    assert collector.requests == []


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        f"00-{'0' * 32}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"ff-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID}-01-more",
        f"{TRACEPARENT},{TRACEPARENT}",
        TRACEPARENT + "-" + "x" * 2000,
        "00-" + "\xe9" * 32 + f"-{PARENT_ID}-01",
    ],
)
async def test_a_bad_trace_context_is_ignored(
    traceparent: str,
    start_proxy: StartProxy,
    raw: OpenRaw,
    collector: Collector,
    caplog: pytest.LogCaptureFixture,
) -> None:
    proxy = await traced(start_proxy, collector)
    headers = [("Traceparent", traceparent), ("Tracestate", "=,=,\xe9" + "x" * 1000)]
    assert (await ask(raw, headers=headers)).status == 200
    span, _ = await only_span(proxy, collector)
    assert span.parent_span_id == b""
    assert span.trace_id.hex() != TRACE_ID
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


async def test_a_bad_trace_state_takes_no_parent_away(
    start_proxy: StartProxy, raw: OpenRaw, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = await traced(start_proxy, collector)
    await ask(raw, headers=[("Traceparent", TRACEPARENT), ("Tracestate", "x" * 2000)])
    await ask(raw, headers=[("Traceparent", TRACEPARENT), ("Tracestate", "a=b,=nonsense=,,")])
    await proxy.server.drain()
    assert [each.parent_span_id.hex() for each in collector.spans()] == [PARENT_ID] * 2
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


# -- a collector that is not there


async def test_without_a_collector_requests_are_served_and_little_is_logged(
    start_proxy: StartProxy,
    raw: OpenRaw,
    collector: Collector,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spans, "EXPORT_TIMEOUT", 0.1)
    await collector.stop()
    proxy = await traced(start_proxy, collector)
    for _ in range(3):
        assert (await ask(raw, "/nowhere", b"", method="GET")).status == 404
    await proxy.server.drain()
    warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert "Failed to export" in warnings[0].getMessage()


def test_what_the_library_logs_is_thinned_out(caplog: pytest.LogCaptureFixture) -> None:
    exporter = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    log = library_log.LibraryLog()
    log.install()
    for number in range(1, 101):
        exporter.error("the collector is down: %d", number)
    exporter.error("something else")
    log.remove()
    seen = [each.getMessage().rpartition(" ")[2] for each in caplog.records]
    assert seen == ["1", "2", "4", "8", "16", "32", "64", "else"]


async def test_a_collector_that_hangs_holds_the_stop_up_only_so_long(
    start_proxy: StartProxy,
    raw: OpenRaw,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spans, "EXPORT_TIMEOUT", 30)
    monkeypatch.setattr(spans, "FLUSH_TIMEOUT", 0.1)
    collector.script(silent_response())
    proxy = await traced(start_proxy, collector)
    await ask(raw)
    async with asyncio.timeout(5):
        await proxy.server.drain()
    request = await collector.received()
    assert request.target == "/v1/traces"
    await collector.stop()  # which ends the thread that waits for it
    for thread in threading.enumerate():
        if thread.name.startswith("OtelBatch"):
            await asyncio.to_thread(thread.join)


async def test_what_a_collector_refuses_is_told(
    start_proxy: StartProxy, raw: OpenRaw, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.script(bytes_response(b"", status=401))
    proxy = await traced(start_proxy, collector, OTEL_EXPORTER_OTLP_HEADERS="x-key=hidden-word")
    await ask(raw)
    await proxy.server.drain()
    (warning,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert "401" in warning.getMessage()
    assert "hidden-word" not in caplog.text


async def test_what_the_library_cannot_read_is_not_quoted(
    start_proxy: StartProxy,
    raw: OpenRaw,
    collector: Collector,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the library reads its own variable as well, by rules of its own
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "hidden-word")
    proxy = await traced(start_proxy, collector)
    await ask(raw)
    await proxy.server.drain()
    assert len(collector.spans()) == 1
    assert "hidden-word" not in caplog.text


def test_the_librarys_loggers_are_given_back() -> None:
    logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    before = list(logger.filters)
    log = library_log.LibraryLog()
    log.install()
    assert logger.filters == [*before, log]
    log.remove()
    assert logger.filters == before

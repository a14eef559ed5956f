"""The span of a record, by OpenTelemetry's semantic conventions, and its way to the collector.

Sources: https://opentelemetry.io/docs/specs/semconv/http/http-spans/ and
https://opentelemetry.io/docs/specs/semconv/gen-ai/. The attributes of the latter are still in
development, so their names are written here instead of imported from a package.

A span has the kind server and lasts from the request's headers to the response's end. Its parent is
the client's span if the client sent a ``traceparent``, which also decides whether it is recorded.
A span has no credential, body or query, because a record has none. Attributes of the proxy's own
begin with ``tornadoproxy.``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tornadoproxy import Outcome, RequestRecord, Usage, __version__
from tornadoproxy_otel.library_log import LibraryLog

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.util.types import AttributeValue

EXPORT_TIMEOUT = 3
"""The timeout for sending a batch, retries included, in seconds."""

FLUSH_TIMEOUT = 4.0
"""The timeout for the last spans when the proxy stops, in seconds."""

MAX_TEXT = 256
"""The longest text of an attribute, in characters."""

_OPENAI = ("/openai", "/openai/v1", "/openai/v1/v1")
_CHATS = {
    "/v1/messages",
    *(f"{base}/chat/completions" for base in _OPENAI),
    *(f"{base}/responses" for base in _OPENAI),
    *(f"{base}/responses/compact" for base in _OPENAI),
}
_ROUTES = {
    *_CHATS,
    "/v1/messages/count_tokens",
    "/v1/messages/batches",
    "/v1/files",
    "/v1/models",
    *(f"{base}/models" for base in _OPENAI),
    *(f"{base}/responses/input_tokens" for base in _OPENAI),
}
# the methods of the conventions, which write every other one as _OTHER
_METHODS = {
    *("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"),
}
_NANOS = 1_000_000_000  # in a second, and in a US dollar


class Tracing:
    """The tracer of one proxy, and the exporter of its spans.

    :param endpoint: the URL to which batches of spans are sent by POST.
    :param headers: the headers of these requests.
    :param service: the name of this proxy in traces.
    """

    def __init__(self, *, endpoint: str, headers: Mapping[str, str], service: str) -> None:
        self._log = LibraryLog()
        self._log.install()
        self._exporter = OTLPSpanExporter(
            endpoint=endpoint, headers=dict(headers), timeout=EXPORT_TIMEOUT
        )
        resource = Resource.create({"service.name": service, "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("tornadoproxy", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def report(self, record: RequestRecord) -> None:
        """Queue the span of a request, without blocking; a full queue drops the oldest span."""
        start = int(record.time * _NANOS)
        span = self._tracer.start_span(
            _name(record),
            self._parent(record),
            SpanKind.SERVER,
            _attributes(record),
            start_time=start,
        )
        if _is_error(record):
            span.set_status(StatusCode.ERROR, _text(record.error) if record.error else None)
        span.end(start + int(record.duration * _NANOS))

    def close(self) -> None:
        """Send the queued spans, for at most `FLUSH_TIMEOUT` seconds."""
        # in a thread, because the provider would wait for half a minute
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(FLUSH_TIMEOUT)
        if closing.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # ends the retries
        self._log.remove()

    def _parent(self, record: RequestRecord) -> Context:
        if record.traceparent is None:
            return Context()
        carrier = {"traceparent": record.traceparent, "tracestate": record.tracestate or ""}
        return self._propagator.extract(carrier, Context())


def _is_chat(record: RequestRecord) -> bool:
    return record.method == "POST" and record.route in _CHATS


def _is_error(record: RequestRecord) -> bool:
    """Return whether a request failed; a client's error does not count as one."""
    broke = record.outcome in (Outcome.FAILED, Outcome.DRAINED)
    return broke or (record.status is not None and record.status >= 500)


def _name(record: RequestRecord) -> str:
    """Return the name, one of a few: a client cannot choose a part of it freely."""
    if _is_chat(record):
        return "chat" if record.model is None else f"chat {_text(record.model)}"
    method = record.method if record.method in _METHODS else "HTTP"
    return f"{method} {record.route}" if record.route in _ROUTES else method


def _attributes(record: RequestRecord) -> dict[str, AttributeValue]:
    """Return the attributes whose values are known."""
    usage = record.usage
    found: dict[str, AttributeValue | None] = {
        "http.request.method": record.method if record.method in _METHODS else "_OTHER",
        "http.request.method_original": None if record.method in _METHODS else _text(record.method),
        "http.response.status_code": record.status,
        "http.route": record.route if record.route in _ROUTES else None,
        "http.request.body.size": record.bytes_in,
        "http.response.body.size": record.bytes_out,
        "url.scheme": record.scheme,
        "url.path": _text(record.route),
        "client.address": _text(record.remote_ip),
        "enduser.id": _text(record.principal),
        "error.type": _error_type(record),
        "gen_ai.conversation.id": _text(record.session_id),
        "gen_ai.agent.id": _text(record.agent_id),
        "tornadoproxy.request_id": _text(record.request_id),
        "tornadoproxy.dialect": record.dialect,
        "tornadoproxy.outcome": record.outcome.value,
        "tornadoproxy.groups": [str(_text(group)) for group in record.groups] or None,
        "tornadoproxy.parent_agent_id": _text(record.parent_agent_id),
        "tornadoproxy.time_to_first_byte": record.time_to_first_byte,
        "tornadoproxy.upstream_time": record.upstream_time,
    }
    if _is_chat(record):
        found |= {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "anthropic",
            "gen_ai.request.model": _text(record.requested_model),
            "gen_ai.response.model": _text(record.model),
            "gen_ai.response.finish_reasons": (
                None if record.stop_reason is None else [str(_text(record.stop_reason))]
            ),
            "gen_ai.response.time_to_first_chunk": record.time_to_first_token,
            "gen_ai.usage.input_tokens": _input_tokens(usage),
            "gen_ai.usage.output_tokens": usage.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cache_read_input_tokens,
            "gen_ai.usage.cache_creation.input_tokens": usage.cache_creation_input_tokens,
            "tornadoproxy.usage.partial": usage.partial or None,
            **_others(usage),
            "tornadoproxy.cost_usd": None if record.cost is None else record.cost / _NANOS,
        }
    return {name: value for name, value in found.items() if value is not None}


def _others(usage: Usage) -> dict[str, AttributeValue]:
    """Return the other calls to models: the values at one position of each list belong together.

    ``gen_ai.usage`` is the usage of ``gen_ai.response.model`` alone.
    """
    if not usage.others:
        return {}
    return {
        "tornadoproxy.others.model": [str(_text(each.model or "unknown")) for each in usage.others],
        "tornadoproxy.others.input_tokens": [
            _input_tokens(each.usage) or 0 for each in usage.others
        ],
        "tornadoproxy.others.output_tokens": [
            each.usage.output_tokens or 0 for each in usage.others
        ],
    }


def _input_tokens(usage: Usage) -> int | None:
    """Return all input tokens; the API counts cached ones apart, the conventions do not."""
    counts = (
        usage.input_tokens,
        usage.cache_read_input_tokens,
        usage.cache_creation_input_tokens,
    )
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _error_type(record: RequestRecord) -> str | None:
    if record.error is not None:
        return _text(record.error.partition(":")[0])
    if record.status is not None and record.status >= 400:
        return str(record.status)
    return record.outcome.value if _is_error(record) else None


def _text(value: str | None) -> str | None:
    """Return a text that can be sent: half of a surrogate pair would make a whole batch fail."""
    return None if value is None else value[:MAX_TEXT].encode(errors="replace").decode()

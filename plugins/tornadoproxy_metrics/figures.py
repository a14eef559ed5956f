"""The metrics: counted from records, read from the status at each scrape, and written as text.

The names follow https://prometheus.io/docs/practices/naming/. A client cannot choose the value of a
label freely: a path is one of a few kinds of routes, and a model has its name only among the first
`MAX_MODELS`. No label names a person.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tornadoproxy import ModelUsage, RequestRecord, __version__
from tornadoproxy_metrics.routes import route_class
from tornadoproxy_metrics.status_figures import StatusCollector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import Metric

    from tornadoproxy import Status

MAX_MODELS = 50
"""The number of models with metrics of their own; further ones share those of ``other``."""

_NANOS = 1_000_000_000  # in a US dollar

_LONG = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800)
_FIRST = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120)
_OVERHEAD = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)

_KINDS = {
    "CredentialRefused": "credential",
    "UpstreamUnreachable": "unreachable",
    "UpstreamTimeout": "timeout",
    "UpstreamClosed": "closed",
    "UpstreamProtocolError": "protocol",
    "UpstreamError": "other",
}

# series that exist from the start, because a rate misses the step from no sample to 1
_ROUTES = (("anthropic", "messages"), ("openai", "chat_completions"), ("openai", "responses"))
_ENDS = (
    *((status, "completed") for status in ("200", "400", "429", "500", "529")),
    *((status, "denied") for status in ("400", "401", "403", "413", "429", "503", "529")),
    *((status, "failed") for status in ("200", "502", "503", "504")),
    *((status, "abandoned") for status in ("200", "none")),
)
_STATUSES = ("status_429", "status_529", "status_5xx")


class _RouteFigures(NamedTuple):
    """The histograms of one kind of route in one dialect."""

    duration: Histogram
    first_byte: Histogram
    first_token: Histogram
    overhead: Histogram


class _ModelFigures(NamedTuple):
    """The counters of one model."""

    input: Counter
    output: Counter
    cache_read: Counter
    cache_creation_5m: Counter
    cache_creation_1h: Counter
    cost: Counter
    unpriced: Counter


class Figures:
    """The metrics of one proxy.

    :param path: the path of their page.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "tornadoproxy_requests",
            "Requests that have ended, by how they ended.",
            ("dialect", "route", "status", "outcome"),
            registry=registry,
        )
        labels = ("dialect", "route")
        self._duration = Histogram(
            "tornadoproxy_request_duration_seconds",
            "From a request's headers to the end of its response.",
            labels,
            buckets=_LONG,
            registry=registry,
        )
        self._first_byte = Histogram(
            "tornadoproxy_time_to_first_byte_seconds",
            "From a request's headers to the first byte of the upstream's response.",
            labels,
            buckets=_FIRST,
            registry=registry,
        )
        self._first_token = Histogram(
            "tornadoproxy_time_to_first_token_seconds",
            "From a request's headers to the first content of a streamed response.",
            labels,
            buckets=_FIRST,
            registry=registry,
        )
        self._overhead = Histogram(
            "tornadoproxy_overhead_seconds",
            "A request's duration without its time upstream: the proxy, its plugins and queue, "
            "and the wait for the request's body.",
            labels,
            buckets=_OVERHEAD,
            registry=registry,
        )
        self._tokens = Counter(
            "tornadoproxy_tokens",
            "Tokens that responses reported, by the model that used them.",
            ("model", "type"),
            registry=registry,
        )
        self._cost = Counter(
            "tornadoproxy_cost_usd",
            "The known costs of responses, in US dollars.",
            ("model",),
            registry=registry,
        )
        self._unpriced = Counter(
            "tornadoproxy_unpriced_requests",
            "Requests that used tokens and whose cost is unknown.",
            ("model",),
            registry=registry,
        )
        self._upstream_errors = Counter(
            "tornadoproxy_upstream_errors",
            "Requests that failed at the upstream, or got 429, 529 or another 5xx from it.",
            ("kind",),
            registry=registry,
        )
        self._auth_failures = Counter(
            "tornadoproxy_auth_failures",
            "Requests without a credential, or with a wrong one.",
            ("dialect",),
            registry=registry,
        )
        build = Gauge(
            "tornadoproxy_build_info",
            "The version of the proxy; always 1.",
            ("version", "python_version"),
            registry=registry,
        )
        build.labels(__version__, platform.python_version()).set(1)
        # a look-up in these takes a third of the time of `labels`
        self._of_response: dict[tuple[str, str, int | None, str], Counter] = {}
        self._of_route: dict[tuple[str, str], _RouteFigures] = {}
        self._of_model: dict[str, _ModelFigures] = {}
        self._start_at_zero()

    def watch(self, status: Callable[[], Status]) -> None:
        """Read `status` at each scrape."""
        self._registry.register(StatusCollector(status))

    def count(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        dialect, status, outcome = record.dialect, record.status, record.outcome
        route = "page" if record.route == self._path else route_class(record.route)
        response = (dialect, route, status, outcome)
        requests = self._of_response.get(response)
        if requests is None:
            label = "none" if status is None else str(status)
            requests = self._requests.labels(dialect, route, label, outcome.value)
            self._of_response[response] = requests
        requests.inc()
        of_route = self._of_route.get((dialect, route)) or self._add_route(dialect, route)
        of_route.duration.observe(record.duration)
        if record.time_to_first_byte is not None:
            of_route.first_byte.observe(record.time_to_first_byte)
        if record.time_to_first_token is not None:
            of_route.first_token.observe(record.time_to_first_token)
        if record.upstream_time is not None:
            of_route.overhead.observe(max(record.duration - record.upstream_time, 0.0))
        usage = record.usage
        if usage.input_tokens is not None or usage.output_tokens is not None or usage.partial:
            self._count_usage(record)
        if record.error is not None or (status is not None and status >= 400):
            self._count_error(record)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the newest format that `accept` allows.

        :param accept: the value of the header ``Accept``.
        :return: the text and its content type.
        """
        encode, content_type = choose_encoder(accept)
        return encode(_WithoutCreation(self._registry)), content_type

    def _start_at_zero(self) -> None:
        for dialect, route in _ROUTES:
            self._auth_failures.labels(dialect)
            self._add_route(dialect, route)
            for status, outcome in _ENDS:
                self._requests.labels(dialect, route, status, outcome)
        for kind in (*_KINDS.values(), *_STATUSES):
            self._upstream_errors.labels(kind)

    def _count_usage(self, record: RequestRecord) -> None:
        parts = record.by_model()
        for part in parts:
            self._count_part(part)
        if record.cost is None:
            for model in {part.model for part in parts}:
                self._figures_of(model).unpriced.inc()

    def _count_part(self, part: ModelUsage) -> None:
        usage, of_model = part.usage, self._figures_of(part.model)
        creation = usage.cache_creation_input_tokens or 0
        creation_1h = min(usage.cache_creation_1h_input_tokens or 0, creation)
        of_model.input.inc(usage.input_tokens or 0)
        of_model.output.inc(usage.output_tokens or 0)
        if usage.cache_read_input_tokens:
            of_model.cache_read.inc(usage.cache_read_input_tokens)
        if creation:
            of_model.cache_creation_5m.inc(creation - creation_1h)
            of_model.cache_creation_1h.inc(creation_1h)
        if part.cost is not None:
            of_model.cost.inc(part.cost / _NANOS)

    def _count_error(self, record: RequestRecord) -> None:
        status = record.status or 0
        if record.error is None:
            # without an error of the proxy's own, the upstream's response was relayed
            if record.upstream_time is not None and (status == 429 or status >= 500):
                label = f"status_{status}"
                self._upstream_errors.labels(label if label in _STATUSES else "status_5xx").inc()
            return
        kind = _KINDS.get(record.error.partition(":")[0])
        if kind is not None:
            self._upstream_errors.labels(kind).inc()
        elif status == 401 and record.principal is None:
            self._auth_failures.labels(record.dialect).inc()

    def _add_route(self, dialect: str, route: str) -> _RouteFigures:
        figures = _RouteFigures(
            self._duration.labels(dialect, route),
            self._first_byte.labels(dialect, route),
            self._first_token.labels(dialect, route),
            self._overhead.labels(dialect, route),
        )
        self._of_route[dialect, route] = figures
        return figures

    def _figures_of(self, model: str | None) -> _ModelFigures:
        return self._of_model.get(model or "unknown") or self._add_model(model)

    def _add_model(self, name: str | None) -> _ModelFigures:
        model = name or "unknown"
        if len(self._of_model) >= MAX_MODELS:
            model = "other"
            if model in self._of_model:
                return self._of_model[model]
        figures = _ModelFigures(
            input=self._tokens.labels(model, "input"),
            output=self._tokens.labels(model, "output"),
            cache_read=self._tokens.labels(model, "cache_read"),
            cache_creation_5m=self._tokens.labels(model, "cache_creation_5m"),
            cache_creation_1h=self._tokens.labels(model, "cache_creation_1h"),
            cost=self._cost.labels(model),
            unpriced=self._unpriced.labels(model),
        )
        self._of_model[model] = figures
        return figures


class _WithoutCreation(Collector):
    """All metrics without their creation times, a third of the lines that dashboards ignore."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [each for each in metric.samples if not each.name.endswith("_created")]
            yield metric

"""The metrics that are read from the proxy's status at each scrape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric

    from tornadoproxy import Status, UpstreamStatus

_STATES = ("well", "resting", "probing")


class StatusCollector(Collector):
    """The metrics that are read from the proxy's status at each scrape."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield GaugeMetricFamily(
            "tornadoproxy_in_flight",
            "Requests in flight, queued ones included; probes do not count.",
            value=status.in_flight,
        )
        yield GaugeMetricFamily("tornadoproxy_waiting", "Queued requests.", value=status.waiting)
        connections = GaugeMetricFamily(
            "tornadoproxy_connections", "Open connections.", labels=("side", "state")
        )
        connections.add_metric(("client", "open"), status.client_connections)
        connections.add_metric(("upstream", "busy"), status.upstream_connections)
        connections.add_metric(("upstream", "idle"), status.idle_upstream_connections)
        yield connections
        yield GaugeMetricFamily(
            "tornadoproxy_held_bytes",
            "Bytes of request bodies and incomplete headers held in memory.",
            value=status.held_bytes,
        )
        yield GaugeMetricFamily(
            "tornadoproxy_draining",
            "Whether the proxy is draining: 1 or 0.",
            value=status.draining,
        )
        errors = CounterMetricFamily(
            "tornadoproxy_plugin_errors",
            "Failures of plugins, by their effect: a rejected request, or only a log line.",
            labels=("plugin", "effect"),
        )
        for plugin, count in status.plugin_failures.items():
            errors.add_metric((plugin, "logged"), count)
        for plugin, count in status.plugin_refusals.items():
            errors.add_metric((plugin, "refused"), count)
        yield errors
        if status.databases:
            yield from _database_metrics(status)
        yield from _upstream_metrics(status.upstreams)


def _database_metrics(status: Status) -> Iterator[Metric]:
    labels = ("plugin", "database")
    failing = GaugeMetricFamily(
        "tornadoproxy_database_failing",
        "Whether the last attempt to use the database failed: 1 or 0.",
        labels=labels,
    )
    failures = CounterMetricFamily(
        "tornadoproxy_database_failures", "Attempts to use the database that failed.", labels=labels
    )
    held = GaugeMetricFamily(
        "tornadoproxy_database_held_items",
        "Items in memory that wait to be written to the database.",
        labels=labels,
    )
    lost = CounterMetricFamily(
        "tornadoproxy_database_lost_items",
        "Items that could not be written to the database.",
        labels=labels,
    )
    for plugin, databases in status.databases.items():
        for each in databases:
            values = (plugin, each.name)
            failing.add_metric(values, each.failing)
            failures.add_metric(values, each.failures)
            held.add_metric(values, each.held)
            lost.add_metric(values, each.lost)
    yield from (failing, failures, held, lost)


def _upstream_metrics(upstreams: tuple[UpstreamStatus, ...]) -> Iterator[Metric]:
    labels = ("upstream",)
    states = GaugeMetricFamily(
        "tornadoproxy_upstream_state",
        "Whether the upstream is in this state: 1 or 0.",
        labels=("upstream", "state"),
    )
    in_flight = GaugeMetricFamily(
        "tornadoproxy_upstream_in_flight", "Requests in flight at the upstream.", labels=labels
    )
    attempts = CounterMetricFamily(
        "tornadoproxy_upstream_attempts",
        "Requests sent to the upstream, by status or by what failed.",
        labels=("upstream", "result"),
    )
    rests = CounterMetricFamily(
        "tornadoproxy_upstream_rests", "How often the upstream began to rest.", labels=labels
    )
    first_bytes = SummaryMetricFamily(
        "tornadoproxy_upstream_first_byte_seconds",
        "Time from a request to the beginning of the upstream's response.",
        labels=labels,
    )
    for each in upstreams:
        for state in _STATES:
            states.add_metric((each.name, state), each.state == state)
        in_flight.add_metric((each.name,), each.in_flight)
        for result, count in each.attempts.items():
            attempts.add_metric((each.name, result), count)
        rests.add_metric((each.name,), each.rests)
        first_bytes.add_metric((each.name,), each.responses, each.first_byte_time)
    yield from (states, in_flight, attempts, rests, first_bytes)

"""A running proxy's current figures."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct


class Status(Struct, frozen=True):
    """The figures of one moment.

    :param in_flight: protected requests that have not ended, including queued ones.
    :param waiting: queued requests.
    :param held_bytes: request bodies and incomplete request headers held in memory, in bytes.
    :param client_connections: open connections from clients.
    :param upstream_connections: open upstream connections that serve a request.
    :param idle_upstream_connections: open upstream connections kept for the next request.
    :param plugin_failures: failures by plugin that were only logged; 0 for a plugin without any.
    :param plugin_refusals: failures by plugin that refused a request; likewise.
    :param draining: whether the proxy is stopping.
    """

    in_flight: int
    waiting: int
    held_bytes: int
    client_connections: int
    upstream_connections: int
    idle_upstream_connections: int
    plugin_failures: Mapping[str, int]
    plugin_refusals: Mapping[str, int]
    draining: bool

"""The figures of a running proxy, as plugins see them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tornadoproxy.config.upstreams import UpstreamStatus
    from tornadoproxy.storage.contract import DatabaseStatus


class Status(Struct, frozen=True):
    """The figures of one moment.

    :param in_flight: requests that have not ended, including queued ones; probes do not count.
    :param waiting: queued requests.
    :param held_bytes: request bodies and incomplete request headers held in memory, in bytes.
    :param client_connections: open connections from clients.
    :param upstream_connections: open upstream connections that serve a request.
    :param idle_upstream_connections: open upstream connections kept for the next request.
    :param plugin_failures: failures by plugin that were only logged; 0 for a plugin without any.
    :param plugin_refusals: failures by plugin that refused a request; likewise.
    :param draining: whether the proxy is stopping.
    :param databases: by plugin, what `database_status` has returned; nothing for a plugin without.
        The database of stored responses is under ``responses``.
    :param upstreams: the figures of each upstream.
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
    databases: Mapping[str, tuple[DatabaseStatus, ...]] = {}
    upstreams: tuple[UpstreamStatus, ...] = ()

"""What goes on in a running proxy, in figures of the moment."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct


class Status(Struct, frozen=True):
    """The figures of one moment.

    :param in_flight: protected requests that are not over, those that wait included.
    :param waiting: those of them that wait for their turn.
    :param held_bytes: request bodies, and heads that are not whole, held in memory, in bytes.
    :param client_connections: open connections of clients.
    :param upstream_connections: open connections to the upstream that serve a request.
    :param idle_upstream_connections: open connections to the upstream that wait for one.
    :param plugin_failures: how often each plugin failed so that nothing came of it but a log
        line, by its name; 0 for one that did not.
    :param plugin_refusals: the same, where a request was refused.
    :param draining: whether the proxy is about to stop.
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

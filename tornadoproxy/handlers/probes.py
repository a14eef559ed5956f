"""Responses to probes, which need no credential and contain nothing secret."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tornadoproxy.config.core_settings import READY_NEEDS_UPSTREAM

if TYPE_CHECKING:
    from tornadoproxy.handlers.gateway import Gateway
    from tornadoproxy.storage.contract import DatabaseStatus

PROBE_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}
PROBE_METHODS = ("GET", "HEAD")


def probe_response(gateway: Gateway, path: str) -> tuple[int, bytes]:
    """Return the status and the body of the response to a probe.

    `/ready` has 503 while draining, so that a load balancer sends nothing more. With
    ``READY_NEEDS_UPSTREAM``, also while no upstream can be used. A database that fails changes no
    status: all proxies may share it, and a load balancer without any proxy could not even show
    their errors.
    """
    document: dict[str, object] = _readiness(gateway) if path == "/ready" else {"status": "ok"}
    return 200 if document["status"] == "ok" else 503, msgspec.json.encode(document)


def _readiness(gateway: Gateway) -> dict[str, object]:
    status = "draining" if gateway.draining else "ok"
    if gateway.settings[READY_NEEDS_UPSTREAM] and not gateway.upstreams.usable:
        status = "no upstream can be used"
    document: dict[str, object] = {"status": status}
    if len(gateway.plugins.upstreams) > 1:
        document["upstreams"] = {each.name: each.state for each in gateway.upstreams.status()}
    if databases := gateway.database_status():
        document["databases"] = {
            plugin: {each.name: _figures(each) for each in states}
            for plugin, states in databases.items()
        }
    return document


def _figures(status: DatabaseStatus) -> dict[str, object]:
    figures: dict[str, object] = msgspec.structs.asdict(status)
    del figures["name"]
    return figures

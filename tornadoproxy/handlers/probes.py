"""Probes, which need no credential."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tornadoproxy.config.core_settings import READY_NEEDS_UPSTREAM
from tornadoproxy.handlers.base import BaseHandler
from tornadoproxy.protocol.request_target import PROBES

if TYPE_CHECKING:
    from tornadoproxy.storage.contract import DatabaseStatus


class ProbeHandler(BaseHandler):
    """A public page, which contains nothing secret."""

    SUPPORTED_METHODS = ("GET", "HEAD")

    def prepare(self) -> None:
        self.refuse_body()

    async def serve(self) -> None:
        self.respond({"status": "ok"})

    def respond(self, document: dict[str, object]) -> None:
        """End the request with `document`."""
        self.set_header("Cache-Control", "no-store")
        self.write(msgspec.json.encode(document))
        self.end()


class ReadyHandler(ProbeHandler):
    """Readiness: 503 while draining, so that a load balancer sends nothing more.

    With ``READY_NEEDS_UPSTREAM``, also while no upstream can be used. A database that fails changes
    no status: all proxies may share it, and a load balancer without any proxy could not even show
    their errors.
    """

    async def serve(self) -> None:
        gateway = self.gateway
        status = "draining" if gateway.draining else "ok"
        if gateway.settings[READY_NEEDS_UPSTREAM] and not gateway.upstreams.usable:
            status = "no upstream can be used"
        if status != "ok":
            self.set_status(503)
        document: dict[str, object] = {"status": status}
        if len(gateway.plugins.upstreams) > 1:
            document["upstreams"] = {each.name: each.state for each in gateway.upstreams.status()}
        if databases := gateway.database_status():
            document["databases"] = {
                plugin: {each.name: _figures(each) for each in states}
                for plugin, states in databases.items()
            }
        self.respond(document)


def _figures(status: DatabaseStatus) -> dict[str, object]:
    figures: dict[str, object] = msgspec.structs.asdict(status)
    del figures["name"]
    return figures


PROBE_HANDLERS: dict[str, type[ProbeHandler]] = {
    **dict.fromkeys(PROBES, ProbeHandler),
    "/ready": ReadyHandler,
}
"""The handlers by their paths."""

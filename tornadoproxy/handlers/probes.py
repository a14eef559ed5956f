"""Probes, which need no credential."""

from __future__ import annotations

from tornadoproxy.handlers.base import BaseHandler
from tornadoproxy.protocol.request_target import PROBES


class ProbeHandler(BaseHandler):
    """A public page, which contains nothing secret."""

    SUPPORTED_METHODS = ("GET", "HEAD")

    document = b'{"status":"ok"}'

    def prepare(self) -> None:
        self.refuse_body()

    async def serve(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.write(self.document)
        self.end()


class ReadyHandler(ProbeHandler):
    """Readiness: 503 while draining, so that a load balancer sends nothing more."""

    async def serve(self) -> None:
        if self.gateway.draining:
            self.set_status(503)
            self.document = b'{"status":"draining"}'
        await super().serve()


PROBE_HANDLERS: dict[str, type[ProbeHandler]] = {
    **dict.fromkeys(PROBES, ProbeHandler),
    "/ready": ReadyHandler,
}
"""The handlers by their paths."""

"""Probes, which need no credential, and the route of every path that is not served."""

from __future__ import annotations

from tornadoproxy.errors import NotFound
from tornadoproxy.handlers.base import BaseHandler
from tornadoproxy.handlers.exchange_handler import ExchangeHandler
from tornadoproxy.protocol.dialects import Dialect


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


class NotFoundHandler(ExchangeHandler):
    """The route of every other path: 404, which only an authenticated client gets."""

    def admit(self) -> None:
        path, hint = self.request.path, ""
        if self.dialect is Dialect.OPENAI:
            hint = f" The base URL for OpenAI clients is {self.base_url()}/openai/v1."
        elif path.startswith("/v1/v1"):
            hint = f" The base URL for Anthropic clients is {self.base_url()}, without /v1."
        raise NotFound(f"There is nothing at {path[:200]}.{hint}")

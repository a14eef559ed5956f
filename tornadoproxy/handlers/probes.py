"""Probes, which need no credential, and the route of every path that is not served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.errors import NotFound
from tornadoproxy.handlers.base import BaseHandler, ExchangeHandler
from tornadoproxy.protocol.dialects import Dialect

if TYPE_CHECKING:
    from tornadoproxy.handlers.gateway import Gateway


class ProbeHandler(BaseHandler):
    """Pages that need no credential and say nothing secret."""

    SUPPORTED_METHODS = ("GET", "HEAD")

    def initialize(self, gateway: Gateway, document: bytes = b'{"status":"ok"}') -> None:
        super().initialize(gateway)
        self.document = document

    def prepare(self) -> None:
        self.refuse_body()

    async def get(self) -> None:
        self.set_header("Cache-Control", "no-store")
        await self.finish(self.document)

    head = get


class ReadyHandler(ProbeHandler):
    """Readiness: 503 while draining, so that a load balancer sends nothing more."""

    async def get(self) -> None:
        if self.gateway.draining:
            self.set_status(503)
            self.document = b'{"status":"draining"}'
        await super().get()

    head = get


class NotFoundHandler(ExchangeHandler):
    """Every other path: who asks must be known before it is said that there is nothing."""

    def admit(self) -> None:
        path, hint = self.request.path, ""
        if self.dialect is Dialect.OPENAI:
            hint = f" The base URL for OpenAI clients is {self.base_url()}/openai/v1."
        elif path.startswith("/v1/v1"):
            hint = f" The base URL for Anthropic clients is {self.base_url()}, without /v1."
        raise NotFound(f"There is nothing at {path[:200]}.{hint}")

"""The routes: which handler serves a request.

Tornado's own routing has a rule for each route, three delegates one behind the other, and two turns
of the event loop: a fifth of a small request's time. Here the path selects the handler.

This module is not loaded at the start, nor are Tornado's handlers and what relays requests, since
probes need none of them: see `tornadoproxy.server.app`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornado.web import Application

from tornadoproxy.errors import NotFound
from tornadoproxy.handlers.base import BaseHandler
from tornadoproxy.handlers.cors import PreflightHandler, ResponseToPages, is_preflight
from tornadoproxy.handlers.exchange_handler import ExchangeHandler
from tornadoproxy.handlers.plugin_pages import PageHandler
from tornadoproxy.handlers.probes import PROBE_HEADERS, PROBE_METHODS, probe_response
from tornadoproxy.handlers.relay import RelayedModelsHandler, RelayHandler
from tornadoproxy.plugin.web.pages import PageFinder
from tornadoproxy.protocol.dialects import Dialect
from tornadoproxy.protocol.request_target import (
    CHAT,
    MODELS_PATH,
    PROBES,
    RELAY,
    is_of_models,
    of_responses,
)

if TYPE_CHECKING:
    from tornado.httputil import HTTPServerRequest

    from tornadoproxy.handlers.gateway import Gateway


class Routes:
    """The routes of one proxy, those to its plugins' pages included."""

    def __init__(self, gateway: Gateway) -> None:
        self._app = Application(log_function=lambda handler: None)  # the access log is a plugin's
        self._gateway = gateway
        self._origins = gateway.allowed_origins
        pages = gateway.plugins.pages()
        self._pages = PageFinder(pages) if pages else None

    def handler_of(self, request: HTTPServerRequest) -> BaseHandler:
        """Return the handler of `request`."""
        handler = self._route(request)
        if self._origins:
            handler.add_transform(ResponseToPages(self._origins, request))
        return handler

    def _route(self, request: HTTPServerRequest) -> BaseHandler:
        if self._origins and is_preflight(request, self._origins):
            return PreflightHandler(self._app, request, gateway=self._gateway)
        if self._pages and (found := self._pages.find(request.path)) is not None:
            return PageHandler(self._app, request, gateway=self._gateway, found=found)
        handler_class = _handler_class(request.method or "", request.path)
        return handler_class(self._app, request, gateway=self._gateway)


class ProbeHandler(BaseHandler):
    """A probe that `tornadoproxy.server.app` does not respond to by itself, and its errors."""

    SUPPORTED_METHODS = PROBE_METHODS

    def prepare(self) -> None:
        self.refuse_body()

    async def serve(self) -> None:
        status, body = probe_response(self.gateway, self.request.path)
        self.set_status(status)
        for name, value in PROBE_HEADERS.items():
            self.set_header(name, value)
        self.write(body)
        self.end()


class NotFoundHandler(ExchangeHandler):
    """The route of every other path: 404, which only an authenticated client gets."""

    def admit(self) -> None:
        path, hint = self.request.path, ""
        if self.dialect is Dialect.OPENAI:
            if "/conversations" in path:
                hint = " Conversations are not kept: send their items in the input of a response."
            else:
                hint = f" The base URL for OpenAI clients is {self.base_url()}/openai/v1."
        elif path.startswith("/v1/v1"):
            hint = f" The base URL for Anthropic clients is {self.base_url()}, without /v1."
        raise NotFound(f"There is nothing at {path[:200]}.{hint}")


def _handler_class(method: str, path: str) -> type[BaseHandler]:
    if path.startswith(RELAY):
        # the client has added /v1 to a base URL that ends in it
        is_double = path.startswith("/v1/v1/") or path == "/v1/v1"
        if is_double:
            return NotFoundHandler
        return RelayedModelsHandler if path.startswith(MODELS_PATH) else RelayHandler
    if path in PROBES:
        return ProbeHandler
    is_chat = path in CHAT
    if is_chat or is_of_models(path):
        # not loaded with this module: the translation takes as long as all the rest
        from tornadoproxy.handlers.openai.chat import ChatHandler
        from tornadoproxy.handlers.openai.models import ModelsHandler

        return ChatHandler if is_chat else ModelsHandler
    segments = of_responses(path)
    if segments is not None:
        from tornadoproxy.handlers.openai.responses_routes import handler_class

        return handler_class(method, segments)
    return NotFoundHandler

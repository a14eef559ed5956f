"""The routes: which handler serves which path."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from tornado.web import Application

from tornadoproxy.chat import ChatHandler, ModelsHandler
from tornadoproxy.cors import AnswerToPages, PreflightHandler, is_preflight
from tornadoproxy.handlers import NotFoundHandler, ProbeHandler, ReadyHandler
from tornadoproxy.relay import RelayHandler

if TYPE_CHECKING:
    from tornado.httputil import HTTPServerRequest
    from tornado.web import _HandlerDelegate

    from tornadoproxy.handlers import BaseHandler
    from tornadoproxy.state import Gateway

_PAGES: dict[str, type[BaseHandler]] = {
    "/": ProbeHandler,
    "/api/hello": ProbeHandler,
    "/health": ProbeHandler,
    "/ready": ReadyHandler,
}

# some clients add /v1 to a base URL that ends in it, others leave it out where it belongs
_CHAT = re.compile("/openai(?:/v1){0,2}/chat/completions")
_MODELS = re.compile("/openai(?:/v1){0,2}/models(?:/.+)?")


def make_app(gateway: Gateway) -> Application:
    """The Tornado application of one proxy. Two can live in one process."""
    return _Routes(gateway)


class _Routes(Application):
    """Finds the handler by itself: Tornado's rules take a tenth of a small request's time."""

    def __init__(self, gateway: Gateway) -> None:
        self._state = {"gateway": gateway}
        self._origins = gateway.allowed_origins
        super().__init__(
            # it is called, and that is all
            transforms=[partial(AnswerToPages, self._origins)] if self._origins else [],  # type: ignore[list-item]
            log_function=lambda handler: None,  # the access log is a plugin's
        )

    def find_handler(
        self,
        request: HTTPServerRequest,
        **kwargs: Any,  # Any: Tornado's signature
    ) -> _HandlerDelegate:
        return self.get_handler_delegate(request, self._handler(request), self._state)

    def _handler(self, request: HTTPServerRequest) -> type[BaseHandler]:
        path = request.path
        if self._origins and is_preflight(request, self._origins):
            return PreflightHandler
        if path.startswith("/v1/"):
            return RelayHandler
        if path in _PAGES:
            return _PAGES[path]
        if _CHAT.fullmatch(path):
            return ChatHandler
        if _MODELS.fullmatch(path):
            return ModelsHandler
        return NotFoundHandler

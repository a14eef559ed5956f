"""The route table: which handler serves which path."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tornado.web import Application

from tornadoproxy.chat import ChatHandler, ModelsHandler
from tornadoproxy.cors import AnswerToPages, PreflightHandler, PreflightOf
from tornadoproxy.handlers import NotFoundHandler, ProbeHandler, ReadyHandler
from tornadoproxy.relay import RelayHandler

if TYPE_CHECKING:
    from tornadoproxy.state import Gateway


# some clients add /v1 to a base URL that ends in it, others leave it out where it belongs
_OPENAI = "/openai(?:/v1){0,2}"


def make_app(gateway: Gateway) -> Application:
    """The Tornado application of one proxy. Two can live in one process."""
    state = {"gateway": gateway}
    origins = gateway.allowed_origins
    return Application(
        [
            *([(PreflightOf(origins), PreflightHandler, state)] if origins else []),
            ("/v1/.*", RelayHandler, state),
            (f"{_OPENAI}/chat/completions", ChatHandler, state),
            (f"{_OPENAI}/models(?:/.+)?", ModelsHandler, state),
            ("/health", ProbeHandler, state),
            ("/ready", ReadyHandler, state),
            ("/api/hello", ProbeHandler, state),
            ("/", ProbeHandler, state),
        ],
        default_handler_class=NotFoundHandler,
        default_handler_args=state,
        # it is called, and that is all
        transforms=[partial(AnswerToPages, origins)] if origins else [],  # type: ignore[list-item]
        log_function=lambda handler: None,  # the access log is a plugin's
    )

"""The routes of the Responses API, below ``/responses``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.handlers.openai.input_tokens import InputTokensHandler
from tornadoproxy.handlers.openai.responses import CompactHandler, ResponsesHandler
from tornadoproxy.handlers.openai.stored_responses import (
    CancelHandler,
    InputItemsHandler,
    StoredResponseHandler,
    WebSocketHandler,
)

if TYPE_CHECKING:
    from tornadoproxy.handlers.exchange_handler import ExchangeHandler

_OWN: dict[str, type[ExchangeHandler]] = {
    "compact": CompactHandler,
    "input_tokens": InputTokensHandler,
}
_OF_RESPONSE: dict[str, type[ExchangeHandler]] = {
    "cancel": CancelHandler,
    "input_items": InputItemsHandler,
}


def handler_class(method: str, segments: tuple[str, ...]) -> type[ExchangeHandler]:
    """Return the handler of a request.

    :param segments: as `of_responses` returns them.
    """
    if not segments:
        return ResponsesHandler if method == "POST" else WebSocketHandler
    if len(segments) == 1:
        return _OWN.get(segments[0], StoredResponseHandler)
    return _OF_RESPONSE[segments[1]]

"""``POST /openai/v1/responses/input_tokens``: how many tokens a request has, without a response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tornadoproxy.errors import UpstreamProtocolError
from tornadoproxy.handlers.openai.responses import ResponsesHandler
from tornadoproxy.openai.writing import encode
from tornadoproxy.protocol.body_fields import read_fields, write_fields

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json
    from tornadoproxy.openai.responses import Translation

COUNTED = frozenset(
    {
        *("cache_control", "messages", "model", "output_config", "speed", "system"),
        *("thinking", "tool_choice", "tools"),
    }
)
"""The fields of a messages request that the upstream counts tokens of; it refuses others.

Source: https://docs.anthropic.com/en/api/messages-count-tokens
"""


class _Count(msgspec.Struct):
    """The upstream's count."""

    input_tokens: int


_decode = msgspec.json.Decoder(_Count).decode


class InputTokensHandler(ResponsesHandler):
    """The number of one request's tokens. Like every count, it needs no budget."""

    target = "/v1/messages/count_tokens"

    def asks_a_model(self) -> bool:
        return False

    def translate(self, document: Json, **how: Any) -> Translation:  # Any: as in the method above
        translation = super().translate(document, **how)
        fields = read_fields(translation.body)
        counted = {name: value for name, value in fields.items() if name in COUNTED}
        return msgspec.structs.replace(
            translation, body=write_fields(counted), stream=False, samples=False
        )

    def take_message(self, body: bytes) -> None:
        try:
            tokens = _decode(body).input_tokens
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            self.end(UpstreamProtocolError("The upstream's response is not a count of tokens."))
        else:
            self.end_with(encode({"object": "response.input_tokens", "input_tokens": tokens}))

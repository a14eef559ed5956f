"""A request of either of OpenAI's APIs, which is sent upstream as an Anthropic message.

The translation itself is in `tornadoproxy.openai`. A request's body is held until it is whole,
since only a whole one can be translated; a stream is translated piece by piece.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from tornadoproxy.config.core_settings import MAX_BODY_SIZE
from tornadoproxy.errors import (
    UpstreamClosed,
    UpstreamError,
    UpstreamProtocolError,
)
from tornadoproxy.handlers.body_budget import UNCHARGED_BODY
from tornadoproxy.handlers.event_stream import EventStream
from tornadoproxy.handlers.proxying import UpstreamHandler
from tornadoproxy.openai.errors import translate_error
from tornadoproxy.openai.message import MAX_RESPONSE, EventTranslator, read_message
from tornadoproxy.openai.messages_request import TranslatedRequest
from tornadoproxy.openai.models import Capabilities
from tornadoproxy.openai.reading import parse
from tornadoproxy.protocol import usage_fields
from tornadoproxy.protocol.decompression import CorruptBody, UnreadableCoding, decompressor
from tornadoproxy.protocol.headers import add_fields, headers_of, is_encoded, is_event_stream
from tornadoproxy.protocol.request_fields import MAX_MESSAGE_BODY, MESSAGE_HINT
from tornadoproxy.protocol.usage import Usage
from tornadoproxy.protocol.usage_reader import UsageReader

if TYPE_CHECKING:
    from tornadoproxy.errors import ProxyError
    from tornadoproxy.handlers.gateway import Gateway
    from tornadoproxy.openai.reading import Json
    from tornadoproxy.protocol.decompression import Decompress
    from tornadoproxy.protocol.wire import ResponseHead

# The last version of the API that takes temperature, top_p and top_k.
SAMPLING_VERSION = "2023-06-01"

# Headers that describe the client's own message and not its translation.
_CLIENTS_OWN = frozenset(
    {
        "Accept",
        "Accept-Encoding",
        "Content-Encoding",
        "Content-Length",
        "Content-Type",
        "Openai-Beta",
        "Openai-Organization",
        "Openai-Project",
        "Transfer-Encoding",
    }
)

_NOT_FOR_SAMPLES = _CLIENTS_OWN | {"Anthropic-Version"}

# the usage of a message until it has been read
_UNREAD = Usage(partial=True)

_READ = frozenset({"content-encoding", "content-type", "request-id"})

_KEPT = re.compile(
    r"(anthropic-ratelimit-.*|anthropic-organization-id|retry-after|retry-after-ms|x-should-retry)",
    re.IGNORECASE,
)


@lru_cache(128)
def _is_read(name: str) -> bool:
    return name.lower() in _READ


@lru_cache(128)
def _is_kept(name: str) -> bool:
    return _KEPT.fullmatch(name) is not None


T = TypeVar("T", bound=TranslatedRequest)
S = TypeVar("S", bound=EventTranslator[Any])  # Any: the state of a block


class TranslatingHandler(UpstreamHandler, Generic[T, S]):
    """A request whose body and response are translated."""

    # not in the object's dictionary, which is full: see `UpstreamHandler`
    __slots__ = ("_decompress", "_response", "_response_size", "_response_status", "_stream")

    target = "/v1/messages"
    """Where the request goes, below the upstream's path prefix."""

    # used by `set_default_headers`, which Tornado calls before `initialize`
    _translation: T | None = None
    _kept: Sequence[tuple[str, str]] = ()

    def initialize(self, gateway: Gateway) -> None:
        super().initialize(gateway)
        self._stream: S | None = None
        self._response: list[bytes] = []
        self._response_size = 0
        self._response_status = 0
        self._decompress: Decompress | None = None

    async def serve_document(self, size: int, document: Json) -> None:
        """Serve the request, with `ask` unless it is refused.

        :param size: of its body, in bytes.
        """
        raise NotImplementedError

    def stream_translator(self, translation: T) -> S:
        """Return the translator of the streamed response."""
        raise NotImplementedError

    def respond(self, translation: T, message: Json) -> None:
        """Respond with a message that was not streamed, with `end_with` unless that fails."""
        raise NotImplementedError

    # -- the request

    def asks_a_model(self) -> bool:
        return True

    def max_body(self) -> int:
        return min(MAX_MESSAGE_BODY, self.gateway.settings[MAX_BODY_SIZE])

    def max_body_hint(self) -> str:
        return MESSAGE_HINT

    def holds(self, length: int, *, chunked: bool) -> bool:
        self.check_body_is_plain()
        return True

    async def serve_held(self, body: bytes) -> None:
        size = len(body)
        document = await self.work_on(size, parse, body)
        if document is not None:
            await self.serve_document(size, document)

    async def ask(
        self, size: int, requested: str, translate: Callable[..., T], *, needs_models: bool
    ) -> None:
        """Translate the request, and send it to the upstream if plugins authorize it.

        :param size: of its body, in bytes.
        :param requested: the model's name, as requested.
        :param translate: returns the translation; it takes the model's ``capabilities``.
        :param needs_models: the translation depends on them.
        :raises InvalidRequest: the request is invalid.
        """
        self.exchange.requested_model = requested
        able = None
        if needs_models:
            models = self.gateway.models
            # an invalid request is refused before the upstream is asked anything
            if not models.is_known and await self.work_on(size, translate) is None:
                return
            listed = await models.known()
            if self.ended:
                return
            model = self.gateway.chat_options.model(requested)
            able = Capabilities.of_model(listed[model]) if model in listed else None
            if able is not None and self.gateway.upstreams.has_clouds:
                able = replace(able, system_messages=False)  # one of them may get the request
        translation = await self.work_on(size, partial(translate, capabilities=able))
        if translation is None:
            return
        if self.gateway.routes_by_body and await self.route(translation.body, {}) is None:
            return
        if self.asks_a_model() and not await self.ask_plugins(translation.body):
            return
        held = self._held
        assert held is not None
        if len(translation.body) > max(held.size, UNCHARGED_BODY):  # what it carries is unpacked
            held.resize(len(translation.body))
        self._translation = msgspec.structs.replace(
            translation, body=b""
        )  # a stream would keep it to its end
        if self.gateway.plugins.responds and await self.respond_by_plugin(translation.body):
            return
        self.send(
            self.target,
            translation.body,
            version=SAMPLING_VERSION if translation.samples else None,
            drop=_NOT_FOR_SAMPLES if translation.samples else _CLIENTS_OWN,
            add=[
                ("Accept-Encoding", "identity"),
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(translation.body))),
            ],
        )

    # -- the response

    def begin_response(self, head: ResponseHead) -> None:
        assert self._translation is not None
        headers = headers_of([field for field in head.fields if _is_read(field[0])])
        self._response_status = head.status
        kept = [field for field in head.fields if _is_kept(field[0])]
        withheld = self.withheld_headers
        self._kept = [field for field in kept if not field[0].lower().startswith(withheld)]
        if "Request-Id" in headers:
            self.request_id = headers["Request-Id"]
        self.exchange.request_id = self.request_id
        if head.status == 200 and self.asks_a_model():
            self.exchange.usage = _UNREAD
        if is_encoded(headers):
            try:
                self._decompress = decompressor(headers["Content-Encoding"])
            except UnreadableCoding as error:
                self.end(error)
                return
        if head.status == 200 and self._translation.stream and is_event_stream(headers):
            self._usage = UsageReader(is_stream=True)
            self._start_stream(self._translation)

    def on_data(self, chunk: bytes) -> None:
        if self._decompress is not None:
            try:
                chunk = b"".join(self._decompress(chunk))
            except CorruptBody as error:
                self.end(error)
                return
        if self._usage is not None:
            self._usage.feed(chunk)
        if self._stream is not None:
            self._translate_events(self._stream, chunk)
            return
        self._response_size += len(chunk)
        if self._response_size > MAX_RESPONSE:
            self.end(UpstreamProtocolError("The upstream's response is too large."))
            return
        self._response.append(chunk)

    def on_end(self) -> None:
        if self._stream is not None:
            if not self._stream.ended:
                self.end(UpstreamClosed("The upstream ended its response before it was whole."))
                return
        elif self._response_status == 200:
            self.take_message(b"".join(self._response))
            return
        elif self._response_status < 400:
            # neither a message nor an error; to a client such a status would be a success
            self.end(
                UpstreamProtocolError(
                    f"The upstream responded with status {self._response_status}, which is no"
                    " response to a message. Does UPSTREAM_BASE_URL lead to the API?"
                )
            )
            return
        else:
            body = b"".join(self._response)
            self.clear()
            self.write_error_response(translate_error(self._response_status, body))
        self.end()

    def set_default_headers(self) -> None:
        super().set_default_headers()
        add_fields(self._headers, self._kept)
        add_fields(self._headers, self._shown)
        if self._translation is not None and self._translation.ignored:
            add_fields(
                self._headers, [("X-Tornadoproxy-Ignored", ", ".join(self._translation.ignored))]
            )

    def _start_stream(self, translation: T) -> None:
        self._stream = self.stream_translator(translation)
        self.clear()
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")
        self.set_header(self.dialect.request_id_header, self.request_id)
        self._events = EventStream(self, self._headers)

    def _translate_events(self, stream: S, chunk: bytes) -> None:
        try:
            translated = stream.feed(chunk)
        except UpstreamProtocolError as error:
            self.end(error)
            return
        if translated or not self.response_began:
            self.pass_on(translated)
        if stream.failed:
            assert self._events is not None
            self._events.has_failed = True  # the error event is among what was translated
            self.end(self.failure_of_stream())

    def failure_of_stream(self) -> ProxyError:
        """Return the error of a stream that the upstream ended with one."""
        return UpstreamError("The upstream failed in the middle of its response.")

    def take_message(self, body: bytes) -> None:
        """Respond with the translation of the upstream's response, which has status 200."""
        assert self._translation is not None
        try:
            message = read_message(body)
        except UpstreamProtocolError as error:
            self.end(error)
            return
        exchange = self.exchange
        exchange.model, exchange.stop_reason, exchange.usage = usage_fields.read_message(message)
        self.respond(self._translation, message)

    def end_with(self, response: bytes) -> None:
        """End the request with a response, which is JSON."""
        self.set_default_headers()  # there is more to them now
        add_fields(
            self._headers,
            [
                (self.dialect.request_id_header, self.request_id),
                ("Content-Length", str(len(response))),
            ],
        )
        self.write(response)
        self.end()

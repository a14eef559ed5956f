"""``/openai/*``: chat completions and models, asked of the upstream as Anthropic messages.

The translation itself is in `tornadoproxy.openai.chat_completions`. A request's body is held until
it is whole, since only a whole one can be translated; a stream is translated piece by piece.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tornadoproxy.config.core_settings import MAX_BODY_SIZE
from tornadoproxy.errors import (
    MethodNotAllowed,
    NotFound,
    UpstreamClosed,
    UpstreamError,
    UpstreamProtocolError,
)
from tornadoproxy.handlers.event_stream import EventStream
from tornadoproxy.handlers.exchange_handler import ExchangeHandler
from tornadoproxy.handlers.proxying import UpstreamHandler
from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.chat_completions import Capabilities, StreamTranslator, Translation
from tornadoproxy.protocol.decompression import CorruptBody, UnreadableCoding, decompressor
from tornadoproxy.protocol.headers import add_fields, headers_of, is_encoded, is_event_stream
from tornadoproxy.protocol.request_fields import MAX_MESSAGE_BODY, MESSAGE_HINT
from tornadoproxy.protocol.usage import Usage
from tornadoproxy.protocol.usage_fields import read_message
from tornadoproxy.protocol.usage_reader import UsageReader
from tornadoproxy.upstream.model_list import UpstreamRefused

if TYPE_CHECKING:
    from tornadoproxy.handlers.gateway import Gateway
    from tornadoproxy.protocol.decompression import Decompress
    from tornadoproxy.protocol.wire import ResponseHead

MAX_CHAT_RESPONSE = 64 * 1024 * 1024
"""The largest response that is not a stream, in bytes."""

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


class ChatHandler(UpstreamHandler):
    """One chat completion."""

    # not in the object's dictionary, which is full: see `UpstreamHandler`
    __slots__ = ("_decompress", "_response", "_response_size", "_response_status", "_stream")

    # used by `set_default_headers`, which Tornado calls before `initialize`
    _translation: Translation | None = None
    _kept: Sequence[tuple[str, str]] = ()

    def initialize(self, gateway: Gateway) -> None:
        super().initialize(gateway)
        self._stream: StreamTranslator | None = None
        self._response: list[bytes] = []
        self._response_size = 0
        self._response_status = 0
        self._decompress: Decompress | None = None

    def asks_a_model(self) -> bool:
        return True

    def max_body(self) -> int:
        return min(MAX_MESSAGE_BODY, self.gateway.settings[MAX_BODY_SIZE])

    def max_body_hint(self) -> str:
        return MESSAGE_HINT

    def holds(self, length: int, *, chunked: bool) -> bool:
        if self.request.method != "POST":
            raise MethodNotAllowed("Use POST for chat completions.", ["POST"])
        self.check_body_is_plain()
        return True

    async def serve_held(self, body: bytes) -> None:
        size = len(body)
        document = await self.work_on(size, chat_completions.parse, body)
        if document is None:
            return
        options = self.gateway.chat_options
        translate = partial(chat_completions.translate_request, document, options=options)
        requested = chat_completions.requested_model(document)
        self.exchange.requested_model = requested
        model = options.model(requested)
        able = None
        if chat_completions.depends_on_capabilities(document, options):
            models = self.gateway.models
            # an invalid request is refused before the upstream is asked anything
            if not models.is_known and await self.work_on(size, translate) is None:
                return
            listed = await models.known()
            if self.ended:
                return
            able = Capabilities.of_model(listed[model]) if model in listed else None
        translation = await self.work_on(size, partial(translate, capabilities=able))
        if translation is None:
            return
        if self.gateway.routes_by_body and await self.route(translation.body, {}) is None:
            return
        if not await self.ask_plugins(translation.body):
            return
        self._translation = replace(translation, body=b"")  # a stream would keep it to its end
        self.send(
            "/v1/messages",
            translation.body,
            version=SAMPLING_VERSION if translation.samples else None,
            drop=_NOT_FOR_SAMPLES if translation.samples else _CLIENTS_OWN,
            add=[
                ("Accept-Encoding", "identity"),
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(translation.body))),
            ],
        )

    def begin_response(self, head: ResponseHead) -> None:
        assert self._translation is not None
        headers = headers_of([field for field in head.fields if _is_read(field[0])])
        self._response_status = head.status
        self._kept = [field for field in self.headers_for_client(head) if _is_kept(field[0])]
        if "Request-Id" in headers:
            self.request_id = headers["Request-Id"]
        self.exchange.request_id = self.request_id
        if head.status == 200:
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
        if self._response_size > MAX_CHAT_RESPONSE:
            self.end(UpstreamProtocolError("The upstream's response is too large."))
            return
        self._response.append(chunk)

    def on_end(self) -> None:
        if self._stream is not None:
            if not self._stream.ended:
                self.end(UpstreamClosed("The upstream ended its response before it was whole."))
                return
        elif self._response_status == 200:
            if not self._write_response(b"".join(self._response)):
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
            self.write_error_response(chat_completions.translate_error(self._response_status, body))
        self.end()

    def set_default_headers(self) -> None:
        super().set_default_headers()
        add_fields(self._headers, self._kept)
        add_fields(self._headers, self._shown)
        if self._translation is not None and self._translation.ignored:
            add_fields(
                self._headers, [("X-Tornadoproxy-Ignored", ", ".join(self._translation.ignored))]
            )

    def _start_stream(self, translation: Translation) -> None:
        self._stream = StreamTranslator(
            include_usage=translation.include_usage,
            legacy_functions=translation.legacy_functions,
        )
        self.clear()
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")
        self.set_header(self.dialect.request_id_header, self.request_id)
        self._events = EventStream(self, self._headers)

    def _translate_events(self, stream: StreamTranslator, chunk: bytes) -> None:
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
            self.end(UpstreamError("The upstream failed in the middle of its response."))

    def _write_response(self, body: bytes) -> bool:
        assert self._translation is not None
        try:
            message = chat_completions.read_message(body)
        except UpstreamProtocolError as error:
            self.end(error)
            return False
        exchange = self.exchange
        exchange.model, exchange.stop_reason, exchange.usage = read_message(message)
        response = chat_completions.translate_message(
            message, legacy_functions=self._translation.legacy_functions
        )
        self.set_default_headers()  # there is more to them now
        add_fields(
            self._headers,
            [
                (self.dialect.request_id_header, self.request_id),
                ("Content-Length", str(len(response))),
            ],
        )
        self.write(response)
        return True


class ModelsHandler(ExchangeHandler):
    """The upstream's models, all or one."""

    def admit(self) -> None:
        if self.request.method not in {"GET", "HEAD"}:
            raise MethodNotAllowed("Use GET for models.", ["GET", "HEAD"])
        self.refuse_body()

    async def serve(self) -> None:
        try:
            models = await self.gateway.models.models()
        except UpstreamRefused as refused:
            if not self.ended:
                self.write_error_response(
                    chat_completions.translate_error(refused.status, refused.body)
                )
                self.end()
            return
        if self.ended:
            return
        options = self.gateway.chat_options
        wanted = unquote(self.request.path.partition("/models")[2][1:])
        if wanted:
            shown = chat_completions.find_model(models.values(), wanted, options)
        else:
            shown = chat_completions.translate_models(models.values(), options.models)
        if shown is None:
            raise NotFound(
                f"The model '{wanted[:100]}' does not exist or you do not have access to it.",
                code="model_not_found",
                param="model",
            )
        self.set_header(self.dialect.request_id_header, self.request_id)
        self.set_header("Cache-Control", "no-store")
        self.write(json.dumps(shown).encode())
        self.end()

"""``POST /openai/v1/responses`` and ``/responses/compact``; see `tornadoproxy.openai.responses`.

What a request refers to is looked up before it is translated. A stream begins with the upstream's
first event, so that an earlier error is an HTTP status. A response is stored before its last event
is sent, because a client may continue it immediately, through another process.
"""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from tornadoproxy.config.responses_settings import RESPONSES_WEB_SEARCH
from tornadoproxy.errors import MethodNotAllowed, UpstreamReported
from tornadoproxy.handlers.openai.translating import TranslatingHandler
from tornadoproxy.openai import responses
from tornadoproxy.openai.responses import StreamTranslator, Translation
from tornadoproxy.openai.writing import encode
from tornadoproxy.protocol.body_fields import IN_THREAD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tornadoproxy.errors import ProxyError
    from tornadoproxy.openai.reading import Json
    from tornadoproxy.openai.responses import Needs

RETRY_AFTER = 5
"""The ``retry-after`` of a 429 that has none, in seconds: without it Codex does not try again."""

_STORED = ("completed", "incomplete")


class _Found(NamedTuple):
    """What is stored of what a request refers to.

    :param earlier: the items of the responses that it continues; ``None`` if they are not stored.
    :param items: by their ids.
    """

    earlier: list[Json] | None
    items: dict[str, Json]


_NOTHING = _Found(None, {})


class ResponsesHandler(TranslatingHandler[Translation, StreamTranslator]):
    """One response."""

    # not in the object's dictionary: see `TranslatingHandler`
    __slots__ = ("_request_size",)

    # what waits until the response is stored
    _is_storing = False
    _last = b""
    _upstream_ended = False

    # -- the request

    def holds(self, length: int, *, chunked: bool) -> bool:
        if self.request.method != "POST":
            raise MethodNotAllowed("Use POST here.", ["POST"])
        return super().holds(length, chunked=chunked)

    async def serve_document(self, size: int, document: Json) -> None:
        requested = responses.requested_model(document)
        options = self.gateway.chat_options
        wanted = await self.work_on(size, responses.needs, document, options)
        if wanted is None:
            return
        found = _NOTHING
        if wanted.previous is not None or wanted.items:
            found = await self._look_up(wanted)
        if found.earlier or found.items:
            more = await self.work_on(IN_THREAD + 1, _size, found)
            if more is None:
                return
            size += more
            assert self._held is not None
            self._held.resize(self._held.size + more)
        if self.ended:
            return
        self._request_size = size
        translate = partial(
            self.translate,
            document,
            options=options,
            earlier=found.earlier,
            items=found.items,
            has_store=self.gateway.response_store is not None,
            web_search=self.gateway.settings[RESPONSES_WEB_SEARCH] == "upstream",
            is_codex=self.request.headers.get("Originator", "").startswith("codex"),
        )
        await self.ask(size, requested, translate, needs_models=wanted.capabilities)

    def translate(self, document: Json, **how: Any) -> Translation:  # Any: see the function below
        """Return the translation of the request."""
        return responses.translate_request(document, **how)

    async def _look_up(self, wanted: Needs) -> _Found:
        """Return what is stored of what the request refers to."""
        store, principal = self.gateway.response_store, self._principal
        earlier, items = None, {}
        if store is not None and wanted.previous is not None:
            earlier = await store.history(principal, wanted.previous)
        if store is not None and wanted.items:
            items = await store.items(principal, wanted.items)
        return _Found(earlier, items)

    # -- the response

    def stream_translator(self, translation: Translation) -> StreamTranslator:
        return StreamTranslator(translation)

    def pass_on(self, chunk: bytes) -> None:
        if not chunk or self._is_storing:
            return
        assert self._stream is not None
        response = self._stream.response
        if response is not None and self._is_stored(response):
            self._last = chunk
            self._store(response, len(chunk), self._pass_on_last)
            return
        is_first = not self.response_began
        super().pass_on(chunk)
        if is_first:
            self._free_headers()

    def _pass_on_last(self) -> None:
        last, self._last = self._last, b""
        super().pass_on(last)
        if self._upstream_ended:
            super().on_end()

    def on_end(self) -> None:
        if self._last:
            self._upstream_ended = True
        else:
            super().on_end()

    def respond(self, translation: Translation, message: Json) -> None:
        response = responses.translate_message(message, translation)
        encoded = encode(response)
        send = partial(self.end_with, encoded)
        if self._is_stored(response):
            self._store(response, len(encoded), send)
        else:
            send()

    def ping(self) -> bytes:
        return b"" if self._stream is None else self._stream.ping()

    def failure_of_stream(self) -> ProxyError:
        assert self._stream is not None
        return self._stream.error or super().failure_of_stream()

    def error_event(self, error: ProxyError) -> bytes:
        assert self._stream is not None
        return self._last or self._stream.fail(error)

    def write_error_response(self, error: ProxyError) -> None:
        super().write_error_response(error)
        if self.get_status() == 429 and "Retry-After" not in self._headers:
            milliseconds = self._headers.get("Retry-After-Ms", "")
            known = milliseconds.isdecimal()
            seconds = math.ceil(int(milliseconds) / 1000) if known else RETRY_AFTER
            self.set_header("Retry-After", str(seconds))

    # -- the store

    def _is_stored(self, response: Json) -> bool:
        assert self._translation is not None
        return self._translation.kept and response["status"] in _STORED

    def _store(self, response: Json, size: int, send: Callable[[], None]) -> None:
        """Store the response, then call `send`, unless the request ends before.

        :param size: of the response, in bytes.
        """
        store, translation = self.gateway.response_store, self._translation
        assert store is not None
        assert translation is not None
        waiting = store.put(
            self._principal,
            response,
            translation.input,
            translation.previous,
            self._request_size + size,
        )
        if waiting is None:
            send()
            return
        self._is_storing = True
        self._working = asyncio.ensure_future(self._send_stored(waiting, send))

    async def _send_stored(self, storing: Awaitable[None], send: Callable[[], None]) -> None:
        try:
            await storing
            self._working = None
            self._is_storing = False
            if not self.ended:
                send()
        except Exception as error:
            self._fail(error)


class CompactHandler(ResponsesHandler):
    """One compaction: a summary replaces all items but user, system and developer messages."""

    def translate(self, document: Json, **how: Any) -> Translation:  # Any: as in the method above
        earlier, has_store = how.pop("earlier"), how["has_store"]
        document = responses.compaction_request(document, earlier, has_store=has_store)
        return responses.translate_request(document, **how)

    def respond(self, translation: Translation, message: Json) -> None:
        try:
            compaction = responses.translate_compaction(message, translation)
        except UpstreamReported as error:
            self.end(error)
            return
        self.end_with(encode(compaction))


def _size(found: _Found) -> int:
    """Return the size of what was looked up, in bytes."""
    return len(msgspec.json.encode([found.earlier, found.items]))

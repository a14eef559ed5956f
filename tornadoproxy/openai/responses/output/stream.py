"""The translation of a streamed response: the upstream's events into OpenAI's, piece by piece.

The theory, beside that of `EventTranslator` and that of `blocks`. Each event becomes::

    message_start          response.created and response.in_progress
    blocks and deltas      the events of an item
    ping                   a keepalive, but for the first, which comes in every stream
    message_stop           response.completed, response.incomplete or response.failed
    error                  an error and response.failed; none if nothing has been sent before it
    any that is invalid    the same

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.errors import UpstreamProtocolError
from tornadoproxy.openai import errors
from tornadoproxy.openai.message import MAX_RESPONSE, EventTranslator
from tornadoproxy.openai.responses.output.events import KEEPALIVE, EventWriter
from tornadoproxy.openai.responses.output.items import Block
from tornadoproxy.openai.responses.output.response import Draft
from tornadoproxy.openai.writing import string
from tornadoproxy.protocol.dialects import Dialect

if TYPE_CHECKING:
    from tornadoproxy.errors import ProxyError
    from tornadoproxy.openai.reading import Json
    from tornadoproxy.openai.responses.translation import Translation


class StreamTranslator(EventTranslator[Block]):
    """Translator of one stream: takes pieces of any size, returns complete events.

    :param translation: of the request.
    :param created: the time in seconds since the epoch; by default, now.

    :ivar error: the error that ended the response. If `began` is false, nothing was sent, so that
        it can be the status.
    :ivar response: the response object, once it is complete or has failed.
    """

    def __init__(self, translation: Translation, *, created: int | None = None) -> None:
        super().__init__()
        self.error: ProxyError | None = None
        self.response: Json | None = None
        self._translation = translation
        self._created = created
        self._events = EventWriter()
        self._draft: Draft | None = None
        self._size = 0
        self._is_pinged = False

    def feed(self, piece: bytes) -> bytes:
        """Return the events that the next piece of the stream completes; they may be none.

        :raises UpstreamProtocolError: the events are not those of a message, and nothing has been
            sent; stop feeding.
        """
        out: list[bytes] = []
        try:
            self._translate(piece, out)
        except UpstreamProtocolError as error:
            if not self.began:
                raise
            # what came before it is numbered, and has to be sent
            out.append(self.fail(error))
        return b"".join(out)

    def _translate(self, piece: bytes, out: list[bytes]) -> None:
        # the texts are held to the end, when they are sent once more
        self._size += len(piece)
        if self._size > MAX_RESPONSE:
            raise UpstreamProtocolError("The upstream's response is too large.")
        super()._translate(piece, out)

    def ping(self) -> bytes:
        """Return an event that keeps a quiet stream open; none before the first event."""
        return self._events.event(KEEPALIVE, {}) if self.began and not self.ended else b""

    def fail(self, error: ProxyError) -> bytes:
        """End the response with an error; return its events.

        Some clients know only the first, others only the second.
        """
        if self.response is not None:
            return b""  # it has ended
        self.ended = self.failed = True
        self.error = error
        draft = self._draft or Draft({}, self._translation, self._created, self._events)
        code = errors.failure_code(error)
        shown = {**Dialect.OPENAI.error_document(error, "")["error"], "code": code}
        flat = {name: shown[name] for name in ("code", "message", "param")}
        told = self._events.event("error", {**flat, "error": shown})
        failed, self.response = draft.fail(code, error.message)
        return told + failed

    def _begin(self, message: Json) -> bytes:
        self._draft = Draft(message, self._translation, self._created, self._events)
        return self._draft.begin()

    def _open(self, given: Json) -> tuple[bytes, Block]:
        return self._started().open(given)

    def _delta(self, block: Block | None, delta: Json) -> bytes:
        if block is not None:
            return block.grow(delta)
        if delta.get("type") != "text_delta":
            return b""
        return self._started().output.add(string(delta.get("text")))

    def _close(self, block: Block) -> bytes:
        return block.close()

    def _end(self) -> bytes:
        out, self.response = self._started().end(self._stop, self._usage)
        return out

    def _ping(self) -> bytes:
        # a client that does not know the event would fail at each response if this were sent
        is_first, self._is_pinged = not self._is_pinged, True
        return b"" if is_first else self.ping()

    def _fail(self, event: Json) -> bytes:
        error = errors.translate_event(event)
        if self.began:
            return self.fail(error)
        self.error = error
        return b""

    def _started(self) -> Draft:
        self._require_start()
        assert self._draft is not None
        return self._draft

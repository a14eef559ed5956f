"""The upstream's message, whole or as a stream of events, read for either of OpenAI's APIs.

The theory of the stream. It has a start, blocks that open, grow and close, and an end. Of
events, blocks and deltas of unknown types nothing is translated. The usage and the stop reason in
``message_delta`` are cumulative, so they are kept to the end. A second message, or a block that
opens again, is an error: two responses were mixed.

A stream that ends while `EventTranslator.ended` is false was cut. The caller must report that;
nothing translated until then looks like an end.

Source: https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from tornadoproxy.errors import UpstreamProtocolError
from tornadoproxy.protocol import json_codec
from tornadoproxy.protocol.sse import EventReader
from tornadoproxy.protocol.usage_fields import read_usage

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json

MAX_RESPONSE = 64 * 1024 * 1024
"""The largest response that is held, in bytes."""

Block = TypeVar("Block")


class TokenCounts(NamedTuple):
    """The tokens of a response, as OpenAI counts them: with those of caches among the input's.

    :param reasoning: those of thinking, which are among the output's; ``None`` if not reported.
    """

    input: int
    cached: int
    cache_written: int
    output: int
    reasoning: int | None


def read_message(body: bytes) -> Json:
    """Return the message in the body of a successful messages response.

    :raises UpstreamProtocolError: the body is not a message.
    """
    try:
        message = json_codec.loads(body)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        raise UpstreamProtocolError("The upstream's response is not a message.")
    return message


def refusal(stop_reason: object, stop_details: object) -> str | None:
    """Return the explanation if the model refused, else ``None``."""
    if stop_reason != "refusal":
        return None
    details = stop_details if isinstance(stop_details, dict) else {}
    explanation = details.get("explanation")
    return explanation if isinstance(explanation, str) else "The model declined to answer."


def token_counts(usage: object) -> TokenCounts:
    """Return the counts of the ``usage`` of a message, the sum of all models.

    Counts that are not reported are 0.
    """
    reported = usage if isinstance(usage, dict) else {}
    prompt = read = written = output = 0
    for part in read_usage(reported).parts():
        prompt += part.input_tokens or 0
        read += part.cache_read_input_tokens or 0
        written += part.cache_creation_input_tokens or 0
        output += part.output_tokens or 0
    details = reported.get("output_tokens_details")
    reasoning = None
    if isinstance(details, dict):
        thought = details.get("thinking_tokens")
        reasoning = thought if isinstance(thought, int) else 0
    return TokenCounts(prompt + read + written, read, written, output, reasoning)


class EventTranslator(ABC, Generic[Block]):
    """Translator of one stream: takes pieces of any size, returns complete events for the client.

    A subclass translates each event, and holds in `_blocks` the blocks that are open.

    :ivar began: whether the message has begun.
    :ivar ended: whether the response is complete or has failed, so that nothing more follows.
    :ivar failed: whether the response ended with the upstream's error.
    """

    def __init__(self) -> None:
        self.began = False
        self.ended = False
        self.failed = False
        self._reader = EventReader()
        self._blocks: dict[int, Block | None] = {}  # by the upstream's indexes; None is closed
        self._message_id: object = None
        self._stop: Json = {}
        self._usage: Json = {}

    def feed(self, piece: bytes) -> bytes:
        """Return what the next piece of the stream completes; it may be nothing.

        :raises UpstreamProtocolError: the events are not those of a message; stop feeding.
        """
        out: list[bytes] = []
        self._translate(piece, out)
        return b"".join(out)

    def _translate(self, piece: bytes, out: list[bytes]) -> None:
        """Add to `out` what `feed` returns; if it raises, there is what came before."""
        for data in self._reader.feed(piece):
            if self.ended:
                break  # nothing follows the end
            out.append(self._event(data))

    def _event(self, data: bytes) -> bytes:
        try:
            event = json_codec.loads(data)
        except (ValueError, RecursionError):
            raise UpstreamProtocolError("The upstream sent an event that is not JSON.") from None
        kind = event.get("type") if isinstance(event, dict) else None
        if kind == "content_block_delta":
            delta = event.get("delta")
            if not isinstance(delta, dict):
                return b""
            return self._delta(self._blocks.get(index_of(event)), delta)
        if kind == "content_block_start":
            return self._open_block(event)
        if kind == "content_block_stop":
            return self._close_block(index_of(event))
        if kind == "message_start":
            return self._start(fields_of(event.get("message")))
        if kind == "message_delta":
            self._stop |= _reported(event.get("delta"))
            self._usage |= _reported(event.get("usage"))
        elif kind == "message_stop":
            return self._stop_message()
        elif kind == "ping":
            return self._ping()
        elif kind == "error":
            self.ended = self.failed = True
            return self._fail(event)
        return b""

    def _start(self, message: Json) -> bytes:
        self._usage |= _reported(message.get("usage"))
        if self.began:
            if message.get("id") != self._message_id:
                raise UpstreamProtocolError("The upstream began a second message in its stream.")
            return b""  # a repeated start
        self.began = True
        self._message_id = message.get("id")
        return self._begin(message)

    def _open_block(self, event: Json) -> bytes:
        self._require_start()
        index = index_of(event)
        if index in self._blocks:
            raise UpstreamProtocolError("The upstream opened the same block of its stream twice.")
        out, self._blocks[index] = self._open(fields_of(event.get("content_block")))
        return out

    def _close_block(self, index: int) -> bytes:
        block = self._blocks.get(index)
        if block is None:
            return b""
        self._blocks[index] = None
        return self._close(block)

    def _stop_message(self) -> bytes:
        self._require_start()
        self.ended = True
        # blocks without an end of their own end here
        return b"".join([*map(self._close_block, self._blocks), self._end()])

    def _require_start(self) -> None:
        if not self.began:
            raise UpstreamProtocolError("The upstream's stream does not begin with message_start.")

    @abstractmethod
    def _begin(self, message: Json) -> bytes:
        """Translate ``message_start``."""

    @abstractmethod
    def _open(self, given: Json) -> tuple[bytes, Block | None]:
        """Translate the beginning of a block; return the block too, if it is translated."""

    @abstractmethod
    def _delta(self, block: Block | None, delta: Json) -> bytes:
        """Translate a delta; `block` is ``None`` if it is not open or not translated."""

    @abstractmethod
    def _close(self, block: Block) -> bytes:
        """Translate the end of a block."""

    @abstractmethod
    def _end(self) -> bytes:
        """Translate ``message_stop``, with the stop reason and the usage."""

    @abstractmethod
    def _ping(self) -> bytes:
        """Translate a ping."""

    @abstractmethod
    def _fail(self, event: Json) -> bytes:
        """Translate an error, which ends the stream."""


def index_of(event: Json) -> int:
    """Return the index of the event's block, -1 if it has none."""
    index = event.get("index")
    return index if isinstance(index, int) else -1


def fields_of(value: object) -> Json:
    """Return `value` if it is an object, and an empty one otherwise."""
    return value if isinstance(value, dict) else {}


def _reported(value: object) -> Json:
    """Return the fields of a cumulative value that replace those of earlier events."""
    return {key: each for key, each in fields_of(value).items() if each is not None}

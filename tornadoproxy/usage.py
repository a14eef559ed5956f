"""Reads an answer's model and tokens from its bytes as they pass by. Sans-io.

It looks, and never changes or delays: a stream is read event by event, and only those that hold
a ``usage`` are parsed; a JSON answer is parsed when it is over. What is compressed is unpacked on
the side, a little at a time; brotli (1.2 or later) and zstandard only where a package that
unpacks them is installed.

Source: https://docs.anthropic.com/en/api/messages-streaming (``usage`` in ``message_delta`` is
cumulative: the last figure counts, and nothing is summed).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

from tornadoproxy import fast_json
from tornadoproxy.exchange import Usage
from tornadoproxy.headers import is_event_stream, is_json

if TYPE_CHECKING:
    from tornado.httputil import HTTPHeaders

MAX_JSON = 1024 * 1024
"""The largest JSON answer that is looked into, in bytes."""

MAX_EVENT = 64 * 1024
"""The longest event that is looked into, in bytes. Those with a ``usage`` are short."""

MAX_UNPACKED = 8 * 1024 * 1024
"""The most that one piece of a compressed answer may unpack to, in bytes. More is no answer."""

_MAX_COUNT = 2**63 - 1
_USAGE_FIELDS = tuple(field.name for field in fields(Usage))
_EVENT_END = re.compile(rb"\n\r?\n")

_Unpack: TypeAlias = Callable[[bytes], Iterator[bytes]]

# How much is unpacked at a time. zstandard takes no limit on what comes out, only on what goes in:
# a block needs 4 bytes and unpacks to 128 KB at most (RFC 8878 §3.1.1.2).
_UNPACKED_PIECE = 64 * 1024
_ZSTD_PIECE = 64
_ZSTD_WINDOW = 8 * 1024 * 1024  # what an HTTP body may ask for (RFC 9659 §3)


class UsageReader:
    """Reads one answer. Feed it each piece of the body; `model` and `usage` are what it found."""

    __slots__ = (
        "_given_up",
        "_is_stream",
        "_kept",
        "_skipping",
        "_told",
        "_unpack",
        "model",
        "usage",
    )

    def __init__(self, *, is_stream: bool, content_encoding: str = "identity") -> None:
        """
        :param is_stream: server-sent events; otherwise one JSON document.
        :raises LookupError: nothing here unpacks `content_encoding`.
        """
        self.model: str | None = None
        self.usage = Usage()
        self._told: dict[str, int] = {}
        self._is_stream = is_stream
        self._unpack = _unpacker(content_encoding)
        self._kept = bytearray()
        self._skipping = False  # until the end of an event that is too long
        self._given_up = False

    @classmethod
    def for_answer(cls, headers: HTTPHeaders) -> UsageReader | None:
        """The reader for an answer with these headers; ``None`` if it cannot be read."""
        is_stream = is_event_stream(headers)
        if not is_stream and not is_json(headers):
            return None
        try:
            encoding = headers.get("Content-Encoding", "identity").lower()
            return cls(is_stream=is_stream, content_encoding=encoding)
        except LookupError:
            return None

    def feed(self, chunk: bytes) -> None:
        """Look at the next piece of the body. Never raises: what makes no sense is passed over."""
        if self._unpack is None:
            self._look(chunk)
            return
        unpacked = 0
        try:
            for piece in self._unpack(chunk):
                unpacked += len(piece)
                if self._given_up or unpacked > MAX_UNPACKED:
                    self._give_up()
                    return
                self._look(piece)
        except Exception:  # each library has errors of its own; the client has the bytes
            self._give_up()

    def finish(self) -> None:
        """Say that the body is over."""
        if not self._is_stream:
            self._learn(self._kept)
        self._give_up()

    def _look(self, chunk: bytes) -> None:
        if self._given_up:
            return
        if self._is_stream:
            self._look_for_events(chunk)
            return
        self._kept += chunk
        if len(self._kept) > MAX_JSON:
            self._give_up()

    def _look_for_events(self, chunk: bytes) -> None:
        kept = self._kept
        searched = max(len(kept) - 2, 0)  # an event's end may have begun in what is kept
        kept += chunk
        start = 0
        while end := _EVENT_END.search(kept, searched):
            if self._skipping:
                self._skipping = False
            elif kept.find(b'"usage"', start, end.start()) >= 0:
                self._learn(_data(kept[start : end.start()]))
            start = searched = end.end()
        del kept[:start]
        if len(kept) > MAX_EVENT:
            self._skipping = True
        if self._skipping:
            del kept[:-2]

    def _give_up(self) -> None:
        self._given_up = True
        self._unpack = None
        self._kept = bytearray()

    def _learn(self, document: bytes | bytearray) -> None:
        try:
            data = fast_json.loads(document)
        except (ValueError, RecursionError):
            return
        if not isinstance(data, dict):
            return
        message = data.get("message", data)  # message_start wraps what a JSON answer is
        if not isinstance(message, dict):
            return
        self.model = model_of(message) or self.model
        self._told |= _counts(message)
        self.usage = Usage(**self._told)


def model_of(message: dict[str, Any]) -> str | None:  # Any: JSON
    """The model that a message names."""
    model = message.get("model")
    return model if isinstance(model, str) else None


def usage_of(message: dict[str, Any]) -> Usage:  # Any: JSON
    """The tokens that a message tells of."""
    return Usage(**_counts(message))


def _counts(message: dict[str, Any]) -> dict[str, int]:  # Any: JSON
    usage = message.get("usage")
    if not isinstance(usage, dict):
        return {}
    return {
        name: count
        for name in _USAGE_FIELDS
        if type(count := usage.get(name)) is int and 0 <= count <= _MAX_COUNT
    }


def _data(event: bytearray) -> bytes:
    lines = (line for line in event.splitlines() if line.startswith(b"data:"))
    return b"\n".join(line[5:] for line in lines)


def _unpacker(content_encoding: str) -> _Unpack | None:
    if content_encoding == "identity":
        return None
    if content_encoding in {"gzip", "deflate"}:
        return _unpack_zlib()
    try:
        if content_encoding == "br":
            return _unpack_brotli(import_module("brotli").Decompressor())
        if content_encoding == "zstd":
            zstandard = import_module("zstandard")
            return _unpack_zstd(zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW))
    except ImportError:
        pass
    raise LookupError(content_encoding)


def _unpack_zlib() -> _Unpack:
    decompressor = zlib.decompressobj(47)  # 32 + 15: the header tells whether gzip or zlib

    def unpack(packed: bytes) -> Iterator[bytes]:
        while not decompressor.eof:
            piece = decompressor.decompress(packed, _UNPACKED_PIECE)
            yield piece
            if len(piece) < _UNPACKED_PIECE:
                return
            packed = decompressor.unconsumed_tail

    return unpack


def _unpack_brotli(decompressor: Any) -> _Unpack:  # Any: an optional package
    def unpack(packed: bytes) -> Iterator[bytes]:
        piece = decompressor.process(packed, output_buffer_limit=_UNPACKED_PIECE)
        yield piece
        # a piece of full size may have more behind it, also when all of the input is taken
        while len(piece) >= _UNPACKED_PIECE and not decompressor.is_finished():
            piece = decompressor.process(b"", output_buffer_limit=_UNPACKED_PIECE)
            yield piece

    return unpack


def _unpack_zstd(zstandard_decompressor: Any) -> _Unpack:  # Any: an optional package
    decompressor = zstandard_decompressor.decompressobj(read_across_frames=True)

    def unpack(packed: bytes) -> Iterator[bytes]:
        for start in range(0, len(packed), _ZSTD_PIECE):
            yield decompressor.decompress(packed[start : start + _ZSTD_PIECE])

    return unpack

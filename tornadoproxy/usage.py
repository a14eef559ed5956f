"""Reads an answer's model and tokens from its bytes as they pass by. Sans-io.

It looks, and never changes or delays: a stream is read event by event, and only those that hold
a ``usage`` are parsed; a JSON answer is parsed when it is over. What is compressed is unpacked on
the side; brotli and zstandard only where a package that unpacks them is installed.

Source: https://docs.anthropic.com/en/api/messages-streaming (``usage`` in ``message_delta`` is
cumulative: the last figure counts, and nothing is summed).
"""

from __future__ import annotations

import json
import zlib
from dataclasses import fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from tornadoproxy.exchange import Usage

if TYPE_CHECKING:
    from tornado.httputil import HTTPHeaders

MAX_JSON = 1024 * 1024
"""The largest JSON answer that is looked into, in bytes."""

MAX_EVENT = 64 * 1024
"""The longest event that is looked into, in bytes. Those with a ``usage`` are short."""

_USAGE_FIELDS = tuple(field.name for field in fields(Usage))


class _Decompressor(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...


class UsageReader:
    """Reads one answer. Feed it each piece of the body; `model` and `usage` are what it found."""

    __slots__ = (
        "_decompressor",
        "_is_stream",
        "_kept",
        "_size",
        "_skipping",
        "_tail",
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
        self._is_stream = is_stream
        self._decompressor = _decompressor(content_encoding)
        self._kept: list[bytes] = []
        self._size = 0
        self._tail = b""
        self._skipping = False

    @classmethod
    def for_answer(cls, headers: HTTPHeaders) -> UsageReader | None:
        """The reader for an answer with these headers; ``None`` if it cannot be read."""
        content_type = headers.get("Content-Type", "").lower()
        is_stream = content_type.startswith("text/event-stream")
        if not is_stream and not content_type.startswith("application/json"):
            return None
        try:
            encoding = headers.get("Content-Encoding", "identity").lower()
            return cls(is_stream=is_stream, content_encoding=encoding)
        except LookupError:
            return None

    def feed(self, chunk: bytes) -> None:
        """Look at the next piece of the body. Never raises: what makes no sense is passed over."""
        if self._decompressor is not None:
            try:
                chunk = self._decompressor.decompress(chunk)
            except Exception:  # each library has errors of its own; the client has the bytes
                self._skipping = True
                self._decompressor = None
                return
        if self._is_stream:
            self._feed_stream(chunk)
        elif not self._skipping:
            self._keep(chunk, MAX_JSON)

    def finish(self) -> None:
        """Say that the body is over."""
        if not self._is_stream and not self._skipping and self._kept:
            self._learn(b"".join(self._kept))
        self._kept = []

    def _feed_stream(self, chunk: bytes) -> None:
        tail = self._tail
        end = _last_event_end(tail + chunk) - len(tail)
        self._tail = (tail + chunk)[-3:] if len(chunk) < 3 else chunk[-3:]
        if end <= 0:
            if not self._skipping:
                self._keep(chunk, MAX_EVENT)
            return
        if self._kept:
            whole = b"".join(self._kept) + chunk[:end]
            self._kept = []
        else:
            whole = b"" if self._skipping else chunk[:end]
        self._skipping = False
        self._size = 0
        if b'"usage"' in whole:
            for event in whole.replace(b"\r\n", b"\n").split(b"\n\n"):
                if b'"usage"' in event:
                    self._learn(_data(event))
        if end < len(chunk):
            self._keep(chunk[end:], MAX_EVENT)

    def _keep(self, chunk: bytes, limit: int) -> None:
        self._size += len(chunk)
        if self._size > limit:
            self._kept = []
            self._skipping = True
        else:
            self._kept.append(chunk)

    def _learn(self, document: bytes) -> None:
        try:
            data = json.loads(document)
        except (ValueError, RecursionError):
            return
        if not isinstance(data, dict):
            return
        message = data.get("message", data)  # message_start wraps what a JSON answer is
        if not isinstance(message, dict):
            return
        model = message.get("model")
        if isinstance(model, str):
            self.model = model
        usage = message.get("usage")
        if isinstance(usage, dict):
            self.usage = replace(self.usage, **_counts(usage))


def _counts(usage: dict[str, Any]) -> dict[str, int]:
    return {name: usage[name] for name in _USAGE_FIELDS if type(usage.get(name)) is int}


def _last_event_end(chunk: bytes) -> int:
    end = chunk.rfind(b"\n\n")
    if end >= 0:
        return end + 2
    end = chunk.rfind(b"\r\n\r\n")
    return end + 4 if end >= 0 else -1


def _data(event: bytes) -> bytes:
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line[5:] for line in lines)


def _decompressor(content_encoding: str) -> _Decompressor | None:
    if content_encoding == "identity":
        return None
    if content_encoding in {"gzip", "deflate"}:
        return zlib.decompressobj(47)  # 32 + 15: the header tells whether gzip or zlib
    try:
        if content_encoding == "br":
            return _Brotli(import_module("brotli").Decompressor())
        if content_encoding == "zstd":
            return import_module("zstandard").ZstdDecompressor().decompressobj()  # type: ignore[no-any-return]  # an optional package
    except ImportError:
        pass
    raise LookupError(content_encoding)


class _Brotli:
    def __init__(self, decompressor: Any) -> None:  # an optional package
        self._decompressor = decompressor

    def decompress(self, data: bytes, /) -> bytes:
        unpacked: bytes = self._decompressor.process(data)
        return unpacked

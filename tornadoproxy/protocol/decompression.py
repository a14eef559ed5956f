"""The decompression of a body, piece by piece. Sans-io.

gzip and deflate are always readable; br and zstd need the packages ``brotli`` (1.2 or later) and
``zstandard``. Where usage must be read from the response, `readable_codings` reduces the client's
``Accept-Encoding`` to these.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, lru_cache
from importlib import import_module
from typing import Any, TypeAlias

from tornadoproxy.errors import UpstreamProtocolError

MAX_DECOMPRESSED = 8 * 1024 * 1024
"""The limit of one decompressed piece of a body, in bytes."""

Decompress: TypeAlias = Callable[[bytes], Iterator[bytes]]
"""Decompresses the next piece of a body; raises `CorruptBody`."""

# Bytes that are decompressed at a time. zstandard has no limit for its output, so its input is
# limited: a block of 4 bytes becomes 128 KB at most (RFC 8878 §3.1.1.2).
_PIECE = 64 * 1024
_ZSTD_PIECE = 64
_ZSTD_WINDOW = 8 * 1024 * 1024  # the limit for HTTP bodies (RFC 9659 §3)

_CODINGS = ("gzip", "deflate", "br", "zstd")  # the last two need their packages
_MAX_ACCEPTED = 1000  # characters; real values have about fifty
_GZIP_MEMBER = 0x1F  # its first byte (RFC 1952 §2.3.1)
_IS_REFUSED = re.compile(r";\s*q\s*=\s*0(\.0*)?\s*(;|$)", re.IGNORECASE)


class UnreadableCoding(UpstreamProtocolError):
    """The upstream used a content coding that was not requested and is not readable here."""

    def __init__(self, coding: str) -> None:
        super().__init__(
            f"The upstream's response has the content-encoding {coding[:40]!r}, which this proxy "
            "did not request and cannot read."
        )


class CorruptBody(UpstreamProtocolError):
    """A compressed body is invalid, or one piece of it exceeds `MAX_DECOMPRESSED`."""

    def __init__(self) -> None:
        super().__init__("The upstream's compressed response is corrupt.")


def decompressor(coding: str) -> Decompress:
    """Return a function that decompresses one body.

    :param coding: the value of ``Content-Encoding``, in any case.
    :raises UnreadableCoding: it is unknown, or its package is not installed.
    """
    decompress = _decompressor(coding.lower())

    def bounded(compressed: bytes) -> Iterator[bytes]:
        pieces = decompress(compressed)
        size = 0
        while (piece := _next(pieces)) is not None:
            size += len(piece)
            if size > MAX_DECOMPRESSED:
                raise CorruptBody
            yield piece

    return bounded


@lru_cache(64)  # a client sends the same value with every request
def readable_codings(accepted: str) -> str:
    """Reduce an ``Accept-Encoding`` to the codings that are readable here.

    Weights and refusals (``q=0``) stay. ``*`` becomes the readable codings that are not named
    beside it. If nothing is left, or the value is absurdly long, the result is ``identity``.

    :param accepted: the joined value of all lines (RFC 9110 §12.5.3).
    """
    if len(accepted) > _MAX_ACCEPTED:
        return "identity"
    readable = _readable()
    elements = [each.strip() for each in accepted.split(",") if each.strip()]
    named = {_coding(element) for element in elements}
    kept = []
    for element in elements:
        coding = _coding(element)
        if coding in readable or coding == "identity" or _IS_REFUSED.search(element):
            kept.append(element)
        elif coding == "*":
            kept += [each + element[1:] for each in _CODINGS if each in readable - named]
    if kept == elements:
        return accepted
    return ", ".join(kept) or "identity"


@cache
def _readable() -> frozenset[str]:
    found = {"x-gzip"}
    for coding in _CODINGS:
        with suppress(UnreadableCoding):
            _decompressor(coding)
            found.add(coding)
    return frozenset(found)


def _next(pieces: Iterator[bytes]) -> bytes | None:
    try:
        return next(pieces, None)
    except Exception:  # each library raises its own errors
        raise CorruptBody from None


def _coding(element: str) -> str:
    return element.partition(";")[0].rstrip().lower()


def _decompressor(coding: str) -> Decompress:
    if coding in {"gzip", "x-gzip"}:
        return _of_gzip()
    if coding == "deflate":
        return _of_deflate()
    try:
        if coding == "br":
            return _of_brotli(import_module("brotli").Decompressor())
        if coding == "zstd":
            zstandard = import_module("zstandard")
            return _of_zstd(zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW))
    except ImportError:
        pass
    raise UnreadableCoding(coding)


def _of_gzip() -> Decompress:
    member = zlib.decompressobj(zlib.MAX_WBITS + 16)

    def decompress(compressed: bytes) -> Iterator[bytes]:
        nonlocal member
        while compressed:
            if member.eof:  # more members may follow (RFC 1952 §2.2)
                if compressed[0] != _GZIP_MEMBER:
                    return
                member = zlib.decompressobj(zlib.MAX_WBITS + 16)
            yield from _inflated(member, compressed)
            compressed = member.unused_data

    return decompress


def _of_deflate() -> Decompress:
    body: Any = None  # zlib does not name its type

    def decompress(compressed: bytes) -> Iterator[bytes]:
        nonlocal body
        if body is None and compressed:
            # RFC 9110 §8.4.1.2: some servers omit the zlib header, whose first byte ends in 8
            has_header = compressed[0] & 0x0F == 8
            body = zlib.decompressobj(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
        if body is not None:
            yield from _inflated(body, compressed)

    return decompress


def _inflated(decompressor: Any, compressed: bytes) -> Iterator[bytes]:  # Any: see _of_deflate
    while not decompressor.eof:
        piece = decompressor.decompress(compressed, _PIECE)
        yield piece
        if len(piece) < _PIECE:
            return
        compressed = decompressor.unconsumed_tail


def _of_brotli(decompressor: Any) -> Decompress:  # Any: an optional package
    try:
        decompressor.process(b"", output_buffer_limit=1)
    except TypeError:  # before 1.2, the output has no limit
        raise UnreadableCoding("br") from None

    def decompress(compressed: bytes) -> Iterator[bytes]:
        piece = decompressor.process(compressed, output_buffer_limit=_PIECE)
        while piece:
            yield piece
            # before the body's end, a piece below the limit does not mean that all is read
            if decompressor.is_finished():
                return
            piece = decompressor.process(b"", output_buffer_limit=_PIECE)

    return decompress


def _of_zstd(zstandard_decompressor: Any) -> Decompress:  # Any: an optional package
    decompressor = zstandard_decompressor.decompressobj(read_across_frames=True)

    def decompress(compressed: bytes) -> Iterator[bytes]:
        for start in range(0, len(compressed), _ZSTD_PIECE):
            yield decompressor.decompress(compressed[start : start + _ZSTD_PIECE])

    return decompress

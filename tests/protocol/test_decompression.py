"""Content codings: which are requested, and responses that have one unasked."""

from __future__ import annotations

import gzip
import json
import random
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace

import brotli  # type: ignore[import-untyped]  # it has no types
import pytest
import zstandard
from scene import Scene
from usage_streams import in_pieces

from tornadoproxy.protocol import decompression
from tornadoproxy.protocol.decompression import (
    MAX_DECOMPRESSED,
    CorruptBody,
    decompressor,
    readable_codings,
)
from tornadoproxy.testing import (
    Proxy,
    bytes_response,
    json_response,
    message_document,
    message_events,
)

STREAM = b"".join(message_events(message_document("Hi")))


def flushed(compress: Callable[[bytes], bytes], flush: Callable[[], bytes], body: bytes) -> bytes:
    """As a server writes a stream: flushed now and then, and without its size in a header."""
    return b"".join(compress(each) + flush() for each in in_pieces(1000, body))


def halves(body: bytes) -> tuple[bytes, bytes]:
    return body[:50], body[50:]


def gzip_flushed(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return flushed(packer.compress, lambda: packer.flush(zlib.Z_SYNC_FLUSH), body) + packer.flush()


def brotli_flushed(body: bytes) -> bytes:
    packer = brotli.Compressor(quality=5)
    return flushed(packer.process, packer.flush, body) + bytes(packer.finish())


def zstd_flushed(body: bytes) -> bytes:
    packer = zstandard.ZstdCompressor().compressobj()
    block = zstandard.COMPRESSOBJ_FLUSH_BLOCK
    return flushed(packer.compress, lambda: packer.flush(block), body) + packer.flush()


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "gzip flushed": ("gzip", gzip_flushed),
    "gzip of two members": ("gzip", lambda body: b"".join(map(gzip.compress, halves(body)))),
    "x-gzip": ("x-gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without its header": ("deflate", lambda body: zlib.compress(body, wbits=-15)),
    "br": ("br", lambda body: bytes(brotli.compress(body, quality=5))),
    "br flushed": ("br", brotli_flushed),
    "zstd": ("zstd", zstandard.compress),
    "zstd flushed": ("zstd", zstd_flushed),
    "zstd of two frames": ("zstd", lambda body: b"".join(map(zstandard.compress, halves(body)))),
}

codings = pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
# its pieces fill the buffers, and expand a thousandfold
LONG = b"".join(b"%d%b" % (n, b" " * 9000) for n in range(20)) + random.Random(1).randbytes(70_000)


def unpacked(coding: str, pieces: Iterable[bytes]) -> bytes:
    decompress = decompressor(coding)
    return b"".join(part for piece in pieces for part in decompress(piece))


@pytest.mark.parametrize("name", CODINGS)
@pytest.mark.parametrize("size", [1, 64, 65, 1000, 10**6])
def test_body_is_decompressed_in_pieces_of_any_size(name: str, size: int) -> None:
    coding, pack = CODINGS[name]
    body = LONG[-200:] if size == 1 else LONG
    assert unpacked(coding.upper(), in_pieces(size, pack(body))) == body


@pytest.mark.parametrize("name", ["gzip flushed", "br flushed", "zstd flushed"])
def test_cut_body_is_decompressed_as_far_as_it_goes(name: str) -> None:
    coding, pack = CODINGS[name]
    found = unpacked(coding, [pack(LONG)[:-2000]])
    assert LONG.startswith(found)
    assert len(found) > len(LONG) - 5000


@codings
def test_body_that_is_not_compressed_is_corrupt(coding: str) -> None:
    for garbage in (b"<html>busy</html>", b"\xff" * 10_000):
        with pytest.raises(CorruptBody):
            unpacked(coding, [garbage, garbage])


@codings
def test_bomb_is_corrupt_and_takes_bounded_memory(coding: str) -> None:
    for unit in (b"\0", b"data: " + b"x" * 3000 + b"\n\n"):
        bomb = CODINGS[coding][1](unit * (2 * MAX_DECOMPRESSED // len(unit)))
        pieces = decompressor(coding)(bomb)
        tracemalloc.start()
        with pytest.raises(CorruptBody):
            sum(map(len, pieces))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MAX_DECOMPRESSED
    most = bytes(MAX_DECOMPRESSED)
    assert unpacked(coding, [CODINGS[coding][1](most)]) == most


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_bytes_after_a_compressed_body_are_dropped(coding: str) -> None:
    packed = CODINGS[coding][1](b"body")
    assert unpacked(coding, [packed + b"x", b"y" * 65536, b"z"]) == b"body"


def test_zstd_window_over_the_limit_is_corrupt() -> None:
    """The limit of RFC 9659; the sender chooses the window."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(CorruptBody):
        unpacked("zstd", [packer.compress(LONG) + packer.flush()])


def forget() -> None:
    """Clear what is cached about the installed packages."""
    readable_codings.cache_clear()
    decompression._readable.cache_clear()


@pytest.fixture
def plain_install(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation without the packages for br and zstd."""
    for package in ("brotli", "zstandard"):
        monkeypatch.setitem(sys.modules, package, None)
    forget()
    yield
    forget()


@pytest.mark.parametrize(
    ("accepted", "sent"),
    [
        ("GZIP ;q=0.5,  x-gzip", "GZIP ;q=0.5,  x-gzip"),
        ("br;q=1.0, gzip;q=0.2, deflate, zstd", "gzip;q=0.2, deflate"),
        ("", ""),
        ("*", "gzip, deflate"),
        ("*;q=0.3, gzip;q=0.9, br", "deflate;q=0.3, gzip;q=0.9"),
        ("gzip;q=0, *", "gzip;q=0, deflate"),
        ("br, gzip, identity; q=0.000", "gzip, identity; q=0.000"),
        ("gzip, *;q=0", "gzip, *;q=0"),
        ("br;q=0, gzip", "br;q=0, gzip"),
        ("br;q=0.001, compress, x-of-tomorrow;q=2", "identity"),
        (", ,", ", ,"),
        ("gzip".ljust(1000), "gzip".ljust(1000)),
        ("gzip".ljust(1001), "identity"),
    ],
)
@pytest.mark.usefixtures("plain_install")
def test_accept_encoding_of_plain_install(accepted: str, sent: str) -> None:
    assert readable_codings(accepted) == sent


def test_accept_encoding_with_packages_keeps_br_and_zstd() -> None:
    forget()
    assert readable_codings("gzip, br, zstd, compress") == "gzip, br, zstd"
    assert readable_codings("*;q=0.1") == "gzip;q=0.1, deflate;q=0.1, br;q=0.1, zstd;q=0.1"


def test_brotli_without_output_limit_is_not_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(process=lambda data: data)
    monkeypatch.setattr(brotli, "Decompressor", lambda: old)
    forget()
    assert readable_codings("br") == "identity"
    forget()


STREAM_REQUEST = b'{"stream": true}'
CHUNKED = b"2\r\n{}\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("path", "interval", "body", "lines", "sent"),
    [
        ("/v1/messages", 0, b"{}", ["br", "gzip;q=0.5", "zstd"], ["gzip;q=0.5"]),
        ("/v1/messages", 0, STREAM_REQUEST, ["gzip", "deflate"], ["gzip", "deflate"]),
        ("/v1/files", 9, STREAM_REQUEST, ["gzip, br, zstd"], ["gzip, br, zstd"]),
        # a ping cannot be put into a compressed stream
        ("/v1/messages", 9, STREAM_REQUEST, ["gzip"], ["identity"]),
        ("/v1/messages", 9, b"{}", ["gzip"], ["gzip"]),
        # a chunked body is not read before it goes upstream, so it may request a stream
        ("/v1/messages", 9, CHUNKED, ["gzip"], ["identity"]),
    ],
)
@pytest.mark.usefixtures("plain_install")
async def test_relay_requests_codings_that_it_can_read(
    path: str, interval: int, body: bytes, lines: list[str], sent: list[str], scene: Scene
) -> None:
    await scene.start(SSE_KEEPALIVE_INTERVAL=interval)
    scene.upstream.script(json_response({}))
    headers = [("Accept-Encoding", line) for line in lines]
    headers += [("Transfer-Encoding", "chunked")] if body is CHUNKED else []
    await scene.ask(path, headers=headers, body=body)
    assert scene.upstream.requests[0].all("Accept-Encoding") == sent


CHAT, MODELS = "/openai/v1/chat/completions", "/openai/v1/models"
MESSAGE = json.dumps(message_document("Hi")).encode()
LIST = b'{"data": [{"type": "model", "id": "claude-x"}], "has_more": false}'
ERROR = b'{"type": "error", "error": {"type": "rate_limit_error", "message": "Too fast."}}'
BOMB = gzip.compress(bytes(9 * 1024 * 1024), mtime=0)


@pytest.mark.parametrize(
    ("path", "kind", "coding", "status", "body", "expected"),
    [
        (CHAT, "application/json", "gzip", 200, gzip.compress(MESSAGE, mtime=0), (200, "Hi")),
        (CHAT, "text/event-stream", "gzip", 200, gzip.compress(STREAM, mtime=0), (200, "Hi")),
        (CHAT, "text/event-stream", "br", 200, brotli.compress(STREAM), (200, "Hi")),
        (CHAT, "application/json", "gzip", 429, gzip.compress(ERROR, mtime=0), (429, "Too fast")),
        (CHAT, "application/json", "gzip", 429, b"not gzip", (502, "corrupt")),
        (CHAT, "application/json", "gzip", 200, BOMB, (502, "corrupt")),
        (CHAT, "application/json", "compress", 200, b"x", (502, "content-encoding 'compress'")),
        (MODELS, "application/json", "gzip", 200, gzip.compress(LIST, mtime=0), (200, "claude-x")),
        (MODELS, "application/json", "compress", 200, LIST, (502, "content-encoding 'compress'")),
    ],
    # bytes differ in each process, by the times and ids in them
    ids=lambda value: "body" if isinstance(value, bytes) else None,
)
async def test_openai_api_reads_response_compressed_unasked(
    path: str,
    kind: str,
    coding: str,
    status: int,
    body: bytes,
    expected: tuple[int, str],
    proxy: Proxy,
    scene: Scene,
) -> None:
    headers = {"Content-Type": kind, "Content-Encoding": coding}
    scene.upstream.script(bytes_response(body, headers, status=status))
    stream = kind == "text/event-stream"
    asked = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": stream}
    response = await scene.ask(path, asked if path == CHAT else None)
    assert (response.status, expected[1] in response.body.decode()) == (expected[0], True)
    assert scene.upstream.requests[0].all("Accept-Encoding") == ["identity"]
    if path == CHAT and response.status == 200:
        usage = (await scene.records.finished()).usage
        assert (usage.partial, bool(usage.output_tokens)) == (False, True)

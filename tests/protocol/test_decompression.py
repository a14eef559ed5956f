"""Content codings: which are requested, and responses that have one unasked."""

from __future__ import annotations

import gzip
import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import brotli  # type: ignore[import-untyped]  # it has no types
import openai
import pytest

from tornadoproxy.protocol import decompression
from tornadoproxy.protocol.decompression import readable_codings
from tornadoproxy.testing import (
    bytes_response,
    json_response,
    message_document,
    message_events,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletionMessageParam

    from tornadoproxy.testing import Ask, Records, ScriptedUpstream, StartProxy

    MonkeyPatch = pytest.MonkeyPatch

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
STREAM = b"".join(message_events(message_document("Hi there")))
JSON = {"Content-Type": "application/json"}
EVENTS = {"Content-Type": "text/event-stream"}


def forget() -> None:
    """Clear what is cached about the installed packages."""
    readable_codings.cache_clear()
    decompression._readable.cache_clear()


@pytest.fixture
def plain_install(monkeypatch: MonkeyPatch) -> Iterator[None]:
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
def test_accept_encoding_of_plain_install(plain_install: None, accepted: str, sent: str) -> None:
    assert readable_codings(accepted) == sent


def test_accept_encoding_with_packages_keeps_br_and_zstd() -> None:
    forget()
    assert readable_codings("gzip, br, zstd, compress") == "gzip, br, zstd"
    assert readable_codings("*;q=0.1") == "gzip;q=0.1, deflate;q=0.1, br;q=0.1, zstd;q=0.1"


def test_brotli_without_output_limit_is_not_readable(monkeypatch: MonkeyPatch) -> None:
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
async def test_relay_requests_codings_that_it_can_read(
    plain_install: None,
    start_proxy: StartProxy,
    ask: Ask,
    upstream: ScriptedUpstream,
    path: str,
    interval: int,
    body: bytes,
    lines: list[str],
    sent: list[str],
) -> None:
    await start_proxy(SSE_KEEPALIVE_INTERVAL=interval)
    upstream.script(json_response({}))
    headers = [("Accept-Encoding", line) for line in lines]
    headers += [("Transfer-Encoding", "chunked")] if body is CHUNKED else []
    await ask(path, headers=headers, body=body)
    assert upstream.requests[0].all("Accept-Encoding") == sent


@pytest.mark.parametrize(("coding", "is_stream"), [("gzip", False), ("gzip", True), ("br", True)])
async def test_chat_reads_response_compressed_unasked(
    openai_client: AsyncOpenAI,
    upstream: ScriptedUpstream,
    records: Records,
    coding: str,
    is_stream: bool,
) -> None:
    body = STREAM if is_stream else json.dumps(message_document("Hi there")).encode()
    headers = {**(EVENTS if is_stream else JSON), "Content-Encoding": coding}
    compress = gzip.compress if coding == "gzip" else brotli.compress
    upstream.script(bytes_response(compress(body), headers))
    create = openai_client.chat.completions.create
    if is_stream:
        chunks = [each async for each in await create(model="m", messages=HELLO, stream=True)]
        text = "".join(each.choices[0].delta.content or "" for each in chunks)
    else:
        completion = await create(model="m", messages=HELLO)
        text = completion.choices[0].message.content or ""
    assert text == "Hi there"
    assert upstream.requests[0].all("Accept-Encoding") == ["identity"]
    usage = (await records.finished()).usage
    assert not usage.partial
    assert usage.output_tokens


@pytest.mark.parametrize(
    ("coding", "body", "message", "status"),
    [
        ("gzip", b"not gzip", "corrupt", 429),
        ("compress", b"x", "content-encoding 'compress'", 200),
        ("gzip", gzip.compress(bytes(9 * 1024 * 1024)), "corrupt", 200),
    ],
)
async def test_chat_unreadable_response_is_502(
    openai_client: AsyncOpenAI,
    upstream: ScriptedUpstream,
    coding: str,
    body: bytes,
    message: str,
    status: int,
) -> None:
    upstream.script(bytes_response(body, {**JSON, "Content-Encoding": coding}, status=status))
    with pytest.raises(openai.InternalServerError, match=message) as caught:
        await openai_client.chat.completions.create(model="m", messages=HELLO)
    assert caught.value.status_code == 502


async def test_chat_reads_compressed_error(
    openai_client: AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    error = {"type": "error", "error": {"type": "rate_limit_error", "message": "Too fast."}}
    body = gzip.compress(json.dumps(error).encode())
    upstream.script(bytes_response(body, {**JSON, "Content-Encoding": "gzip"}, status=429))
    with pytest.raises(openai.RateLimitError, match="Too fast"):
        await openai_client.chat.completions.create(model="m", messages=HELLO)


@pytest.mark.parametrize("coding", ["gzip", "compress"])
async def test_models_read_list_compressed_unasked(
    openai_client: AsyncOpenAI, upstream: ScriptedUpstream, coding: str
) -> None:
    body = gzip.compress(b'{"data": [{"type": "model", "id": "claude-x"}], "has_more": false}')
    upstream.script(bytes_response(body, {**JSON, "Content-Encoding": coding}))
    if coding == "gzip":
        assert [each.id async for each in openai_client.models.list()] == ["claude-x"]
    else:
        with pytest.raises(openai.InternalServerError, match="content-encoding 'compress'"):
            await openai_client.models.list()
    assert upstream.requests[0].all("Accept-Encoding") == ["identity"]

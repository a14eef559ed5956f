"""Valid, odd and unusable responses of the upstream, and what a client of either API sees."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import uvloop
from upstream_scene import CHUNKED, LAST_CHUNK, OK, WITHIN, Fault, Scene, chunk, length
from way_of_asking import Way, openai_type

from tornadoproxy.testing import (
    TEST_TOKEN,
    RawResponse,
    ScriptedUpstream,
    request_bytes,
)

if TYPE_CHECKING:
    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        Records,
    )

pytest_plugins = ("upstream_scene",)
pytestmark = pytest.mark.usefixtures("no_errors_logged")


@pytest.fixture(params=["asyncio", pytest.param("uvloop", marks=pytest.mark.long)])
def asyncio_loop(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoop:
    """Either loop. All of it together takes long enough for one of them to be left for later."""
    return uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()


# -- what looks like a fault, and is none

FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
TOLERATED: dict[str, Callable[[Way], Fault]] = {
    "100": lambda way: interim(b"100 Continue\r\n", way),
    "102": lambda way: interim(b"102 Processing\r\n", way),
    "103": lambda way: interim(b"103 Early Hints\r\nLink: </a>\r\nX-Hint: 1\r\n", way),
    "a hundred of 103": lambda way: interim(b"103 Early Hints\r\nLink: </a>\r\n", way, count=100),
    "the end of the connection": lambda way: Fault(way.head(), way.body, end="FIN"),
    "the end of the connection, at once": lambda way: Fault(way.head() + way.body, end="FIN"),
    "HTTP/1.0": lambda way: Fault(
        way.head(length(len(way.body))).replace(b"/1.1", b"/1.0", 1), way.body, end="none"
    ),
    "trailers": lambda way: Fault(
        way.head(b"Trailer: X-Hint", CHUNKED),
        chunk(way.body) + b"0\r\nX-Hint: 1\r\nServer-Timing: a;dur=1\r\n\r\n",
        end="none",
    ),
    "chunk extensions": lambda way: Fault(
        way.head(CHUNKED),
        b'%x;a=b;c="d;e"\r\n%b\r\n0;last\r\n\r\n' % (len(way.body), way.body),
        end="none",
    ),
    "more than it said": lambda way: Fault(
        way.head(length(len(way.body))), way.body + FORGED, end="none"
    ),
    "more than it said, later": lambda way: Fault(
        way.head(length(len(way.body))), way.body, FORGED, end="none"
    ),
    "more after the last chunk": lambda way: Fault(
        way.head(CHUNKED), chunk(way.body) + LAST_CHUNK + FORGED, end="none"
    ),
}


def interim(head: bytes, way: Way, count: int = 1) -> Fault:
    response = way.head(length(len(way.body))) + way.body
    return Fault(*[b"HTTP/1.1 " + head + b"\r\n"] * count, response, end="none")


async def test_odd_but_valid_response_is_passed_on(
    proxy: Proxy, scene: Scene, subtests: pytest.Subtests
) -> None:
    for oddity, response in TOLERATED.items():
        with subtests.test(oddity):
            got = await scene.ask(response(scene.way))
            scene.way.check_whole(got)
            assert isinstance(got, RawResponse)
            assert got.header("X-Hint") is None
            assert (await scene.record()).outcome == "completed"
            if oddity.startswith("more"):  # nobody knows what its connection has in store
                async with asyncio.timeout(WITHIN):
                    await scene.upstream.all_closed()
            await scene.check_next(got)


# -- a response whose framing is whole, and whose content is not

SHORT: dict[str, Callable[[Way, bytes], Fault]] = {
    "length": lambda way, part: Fault(way.head(length(len(part))), part, end="none"),
    "chunks": lambda way, part: Fault(way.head(CHUNKED), chunk(part) + LAST_CHUNK, end="none"),
    "close": lambda way, part: Fault(way.head(), part, end="FIN"),
}


async def test_short_content_is_passed_on_but_not_translated(
    proxy: Proxy, scene: Scene, subtests: pytest.Subtests
) -> None:
    """A stream that ends within an event at the connection's end may have been cut, too."""
    way = scene.way
    for framing, response in SHORT.items():
        for part in (way.part, b""):
            with subtests.test(framing=framing, part=part):
                got = await scene.ask(response(way, part))
                cut = way.stream and framing == "close" and part != b""
                if way.dialect == "openai" or cut:
                    way.check_broken(got, part)
                else:
                    assert isinstance(got, RawResponse)
                    assert (got.status, got.body) == (200, part)
                broken = way.dialect == "openai" or cut
                assert (await scene.record()).outcome == ("failed" if broken else "completed")
                await scene.check_next(got)


NO_MESSAGE = {
    "HTML": OK + b"Content-Type: text/html\r\nContent-Length: 18\r\n\r\n<html>hello</html>",
    "nothing": OK + b"Content-Length: 0\r\n\r\n",
    "no chunk": OK + CHUNKED + b"\r\n\r\n" + LAST_CHUNK,
    "201": b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\n\r\n",
} | {
    f"a redirect, {status}": b"HTTP/1.1 %d Moved\r\nLocation: /v1/elsewhere\r\n"
    b"Content-Length: 5\r\n\r\nmoved" % status
    for status in (301, 302, 307)
}


async def test_response_that_is_no_message_is_passed_on_or_502(
    proxy: Proxy, scene: Scene, subtests: pytest.Subtests
) -> None:
    """The relay follows no redirect. A chat completion cannot be made of any of these."""
    for name, response in NO_MESSAGE.items():
        with subtests.test(name):
            asked = len(scene.upstream.requests)
            got = await scene.ask(Fault(response, end="none"))
            assert isinstance(got, RawResponse)
            if scene.way.dialect == "openai":
                scene.way.check_refused(got)
                assert got.header("Location") is None
            else:
                assert got.status == int(response[9:12])
                body = b"" if name == "no chunk" else response.partition(b"\r\n\r\n")[2]
                assert got.body == body
                assert got.header("Location") == ("/v1/elsewhere" if "redirect" in name else None)
            expected = "failed" if scene.way.dialect == "openai" else "completed"
            assert (await scene.record()).outcome == expected
            assert len(scene.upstream.requests) == asked + 1
            await scene.check_next(got)


async def test_response_that_is_no_model_list_is_502(
    proxy: Proxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    subtests: pytest.Subtests,
) -> None:
    scene = Scene(Way("openai", stream=False), raw, upstream, records)
    for name, response in NO_MESSAGE.items():
        with subtests.test(name):
            upstream.script(Fault(response, end="none"))
            asked, scene.recorded = len(upstream.requests), len(records.all)
            await scene.connect()
            await scene.client.send(request_bytes("GET", "/openai/v1/models", token=TEST_TOKEN))
            got = await scene.result()
            scene.way.check_refused(got)
            assert (await scene.record()).outcome == "failed"
            assert len(upstream.requests) == asked + 1
            await scene.check_next(got)


# -- the upstream's own errors

ERRORS = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
HEADERS = {
    "retry-after": "7",
    "retry-after-ms": "7000",
    "x-should-retry": "true",
    "anthropic-ratelimit-requests-remaining": "0",
    "anthropic-organization-id": "org",
}


async def test_upstream_error_keeps_status_and_retry_headers(
    proxy: Proxy, scene: Scene, subtests: pytest.Subtests
) -> None:
    page = "a page"
    for status, kind in [*ERRORS.items(), (404, page), (502, page), (503, page)]:
        with subtests.test(status=status, kind=kind):
            error = {"type": kind, "message": "It says why."}
            document = {"type": "error", "error": error, "request_id": "req_upstream"}
            body = json.dumps(document, indent=1).encode()
            named = {"content-type": "application/json", "request-id": "req_upstream", **HEADERS}
            if kind == page:
                body, named["content-type"] = b"<h1>It says why.</h1>", "text/html"
            named["date"], named["content-length"] = "x", str(len(body))
            lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
            head = f"HTTP/1.1 {status} Of its own\r\n{lines}\r\n".encode()
            got = await scene.ask(Fault(head + body, end="none"))
            assert isinstance(got, RawResponse)
            assert got.status == status
            assert {name: got.header(name) for name in HEADERS} == HEADERS
            if scene.way.dialect == "anthropic":
                assert (got.reason, got.body) == ("Of its own", body)
                assert [(name.lower(), value) for name, value in got.headers] == [*named.items()]
            else:
                assert got.header("Content-Type") == "application/json"
                assert got.all("x-request-id") == ["req_upstream"]
                told = json.loads(got.body)
                assert "It says why." in told["error"]["message"]
                assert (openai_type(told) == "server_error") == (status >= 500)
            record = await scene.record()
            assert (record.outcome, record.status) == ("completed", status)
            assert record.request_id == "req_upstream"
            await scene.check_next(got)

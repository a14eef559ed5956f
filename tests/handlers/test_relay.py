"""Relaying ``/v1/*``: requests and answers cross as they came, but for what must end here."""

from __future__ import annotations

import asyncio
import json
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import pytest

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    bytes_response,
    event,
    raw_response,
    request_bytes,
    sse_response,
)

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types.messages.batch_create_params import Request

    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawConnection,
        RawResponse,
        ReceivedRequest,
        Records,
        Response,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

Lines = list[tuple[str, str]]

OK: Response = bytes_response(b"ok", {"Content-Type": "text/plain"})
OWN_REQUEST_HEADERS = {"host", "x-api-key", "via"}

ODD_JSON = (
    b'\r\n\t{ "model" :"claude-sonnet-5-5","max_tokens":1.0e+1, "z":1, "a":2,"a":3 ,\n'
    b'"escaped":"\\u0041\\/\\ud83d\\ude00 \\u00e9 \xc3\xa9","big":12345678901234567890.10,'
    b'"system":[{"type":"text","text":"a"},{"text":"b","type":"text"}],"messages":[]}\n\n'
)
MULTIPART = (
    b"".join(
        b'--x\r\nContent-Disposition: form-data; name="f%d"\r\n\r\nvalue\r\n' % number
        for number in range(2000)
    )
    + b"--x--\r\n"
)
FORM = b"&".join(b"f%d=%%zz+%%41" % number for number in range(2000))


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%X\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def request(
    target: str, headers: Lines | None = None, *, method: str = "GET", body: bytes = b""
) -> bytes:
    return request_bytes(method, target, headers or [], body, token=TEST_TOKEN)


async def ask(raw: OpenRaw, data: bytes, *, to_head: bool = False) -> RawResponse:
    connection = await raw()
    await connection.send(data)
    return await connection.response(to_head=to_head)


def lowered(lines: Lines) -> Lines:
    return [(name.lower(), value) for name, value in lines]


def crossed(received: ReceivedRequest) -> Lines:
    """The header lines that reached the upstream, without those that are the proxy's own."""
    return [line for line in lowered(received.headers) if line[0] not in OWN_REQUEST_HEADERS]


# -- the request's body


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        pytest.param(ODD_JSON, "application/json", id="odd JSON"),
        pytest.param(b'{"truncated": ', "application/json; charset=utf-8", id="no JSON"),
        pytest.param(bytes(range(256)) * 5, "application/octet-stream", id="binary"),
        pytest.param(b"\xff\xc3\x28\xed\xa0\x80", "text/plain; charset=utf-8", id="not UTF-8"),
        pytest.param(MULTIPART, 'multipart/form-data; boundary="x"', id="2,000 parts"),
        pytest.param(b"--y\r\nbroken", "multipart/form-data; boundary=x", id="a broken form"),
        pytest.param(FORM, "application/x-www-form-urlencoded", id="2,000 fields"),
        pytest.param(b"x", "", id="one byte"),
    ],
)
async def test_the_requests_body_crosses_byte_for_byte(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, body: bytes, content_type: str
) -> None:
    upstream.script(OK, OK, OK, OK)
    headers = [("Content-Type", content_type)]
    in_chunks = [*headers, ("Transfer-Encoding", "chunked")]
    for data in (
        request("/v1/messages", headers, method="POST", body=body),
        request("/v1/messages", headers, method="DELETE", body=body),
        request("/v1/messages", in_chunks, method="POST") + chunked(body, len(body)),
        request("/v1/messages", in_chunks, method="POST") + chunked(body, 7),
    ):
        assert (await ask(raw, data)).status == 200
        received = upstream.requests[-1]
        assert received.body == body
        assert received.all("Content-Type") == [content_type]
        with_length = b"Content-Length" in data
        assert received.header("Content-Length") == (str(len(body)) if with_length else None)
        assert received.header("Transfer-Encoding") == (None if with_length else "chunked")
    assert len(upstream.requests) == 4


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_empty_body_stays_as_it_was_framed(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, method: str
) -> None:
    upstream.script(OK, OK, OK)
    in_chunks = [("Transfer-Encoding", "chunked")]
    await ask(raw, request("/v1/x", [("Content-Length", "0")], method=method))
    await ask(raw, request("/v1/x", in_chunks, method=method) + b"0\r\n\r\n")
    head = f"{method} /v1/x HTTP/1.1\r\nHost: a\r\nX-Api-Key: {TEST_TOKEN}\r\n\r\n"
    await ask(raw, head.encode())
    zero, nothing, none = upstream.requests
    assert (zero.header("Content-Length"), zero.header("Transfer-Encoding")) == ("0", None)
    assert (nothing.header("Content-Length"), nothing.body) == (None, b"")
    assert nothing.header("Transfer-Encoding") == "chunked"
    assert (none.header("Content-Length"), none.header("Transfer-Encoding")) == (None, None)


async def test_any_method_crosses(proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY", "PROPFIND"):
        upstream.script(OK)
        response = await ask(raw, request("/v1/anything/at/all", method=method, body=b"body"))
        assert (response.status, response.body) == (200, b"ok")
        assert (upstream.requests[-1].method, upstream.requests[-1].body) == (method, b"body")


# -- the request's headers


async def test_headers_cross_in_order_and_repeated(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """Header lists are open: what is not known crosses as well."""
    sent = [
        ("user-agent", "claude-cli/9.9 (external, cli)"),
        ("Accept", "application/json"),
        ("accept-encoding", "gzip, br;q=0.5, zstd"),
        ("Accept-Language", "*"),
        ("ANTHROPIC-VERSION", "2026-10-21"),
        ("anthropic-beta", "a-2025-01-01,b-2025-02-02"),
        ("anthropic-beta", "c-2025-03-03"),
        ("anthropic-dangerous-direct-browser-access", "true"),
        ("anthropic-unheard-of", "1"),
        ("x-claude-code-session-id", "5e55"),
        ("x-claude-code-agent-id", "a9e7"),
        ("X-Stainless-Retry-Count", "0"),
        ("x-stainless-helper-method", "stream"),
        ("idempotency-key", "key-1"),
        ("Content-Type", "application/json"),
        ("Content-Encoding", "gzip"),
        ("Content-Language", "de"),
        ("If-None-Match", '"abc"'),
        ("Range", "bytes=0-1"),
        ("Forwarded", "for=1.2.3.4"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("X-Empty", ""),
        ("X-Blanks", "a  b\tc"),
        ("X-Latin", "caf\xe9 \xc3\xa9"),
        ("X-Quoted", 'a="b, c"; d'),
        ("x-under_score.and~more", "1"),
        *((f"x-{number}", str(number)) for number in range(60)),
        ("x-again", "1"),
        ("X-Again", "2, 3"),
        ("x-AGAIN", "1"),
        ("Content-Length", "2"),
    ]
    upstream.script(OK)
    await ask(raw, request("/v1/messages", sent, method="POST", body=b"{}"))
    assert crossed(upstream.requests[0]) == lowered(sent)


async def test_repeated_headers_keep_their_order_with_others_between(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(OK)
    await ask(raw, request("/v1/x", [("X-A", "1"), ("X-B", "2"), ("X-A", "3"), ("X-B", "1")]))
    assert upstream.requests[0].all("X-A") == ["1", "3"]
    assert upstream.requests[0].all("X-B") == ["2", "1"]


async def test_hop_by_hop_headers_cookies_and_credentials_end_here(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(OK)
    ends_here = [
        ("Connection", "X-Named, keep-alive"),
        ("Connection", "x-other-NAMED"),
        ("X-Named", "1"),
        ("X-Named", "2"),
        ("X-Other-Named", "3"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Authorization", "Basic dTpw"),
        ("Proxy-Authenticate", "Basic"),
        ("TE", "trailers"),
        ("Trailer", "X-T"),
        ("Upgrade", "websocket"),
        ("HTTP2-Settings", "AAMAAABkAAQ"),
        ("Cookie", "session=secret"),
        ("Cookie", "more=secret"),
        ("X-Api-Key", TEST_TOKEN),
        ("Authorization", f"Bearer {TEST_TOKEN}"),
        ("Anthropic-Version", "1"),
    ]
    await ask(raw, request("/v1/x", ends_here))
    (received,) = upstream.requests
    assert crossed(received) == [("anthropic-version", "1")]
    assert received.all("X-Api-Key") == [TEST_UPSTREAM_KEY]


async def test_connection_cannot_take_the_framing_away(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(OK, OK)
    for lines in ([], [("Transfer-Encoding", "chunked")]):
        connection = [("Connection", "content-length, transfer-encoding, host, x-api-key")]
        body = b"4\r\nbody\r\n0\r\n\r\n" if lines else b"body"
        await ask(raw, request("/v1/x", [*connection, *lines], method="POST", body=body))
    assert [received.body for received in upstream.requests] == [b"body", b"body"]


async def test_what_the_upstream_gets_besides(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """Host is the upstream's, the credential is its own, and Via tells of the proxy."""
    upstream.script(OK)
    await ask(raw, request("/v1/x", [("Host", "proxy.example"), ("Via", "1.1 corporate")]))
    (received,) = upstream.requests
    assert received.all("Host") == [f"127.0.0.1:{upstream.port}"]
    assert received.all("X-Api-Key") == [TEST_UPSTREAM_KEY]
    assert received.all("Authorization") == []
    first, second = received.all("Via")
    assert first == "1.1 corporate"
    assert second.startswith("1.1 tornadoproxy-")


@pytest.mark.parametrize(
    "version", ["2023-06-01", "2026-10-21", "1999-01-01", "beta, and caf\xe9", ""]
)
async def test_anthropic_version_is_never_touched(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, version: str
) -> None:
    upstream.script(OK)
    await ask(raw, request("/v1/x", [("Anthropic-Version", version)]))
    assert upstream.requests[0].all("Anthropic-Version") == [version]


async def test_anthropic_version_has_a_default(
    proxy: Proxy, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(OK, OK)
    await ask(raw, request("/v1/x"))
    await start_proxy(DEFAULT_ANTHROPIC_VERSION="2026-10-21")
    await ask(raw, request("/v1/x"))
    versions = [received.all("Anthropic-Version") for received in upstream.requests]
    assert versions == [["2023-06-01"], ["2026-10-21"]]


# -- the request's target


TARGETS = [
    "/v1/messages?beta=true",
    "/v1/",
    "/v1/messages?",
    "/v1/messages??",
    "/v1/x?a=1&a=2&&b&=c&d=%zz%41%2F..%2f+;",
    "/v1/x?to=http://other.example//a/../b\\c&e=%00%0d%0a",
    "/v1/a%20b%zz%41%",
    "/v1/files/..a/b../.c/...",
    "/v1/x;y=1/a:b@c!$&'()*+,=~_-",
    "/v1/%252e%252e/x",
    '/v1/"<>^`{|}',
    "/v1/x?" + "&".join(["f"] * 10_000),
    "/v1/x?" + "q" * 20_000,
]


async def test_path_and_query_cross_as_they_came(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    for target in TARGETS:
        upstream.script(OK)
        assert (await ask(raw, request(target))).body == b"ok", target
        assert upstream.requests[-1].target == target


async def test_the_upstreams_path_prefix_is_kept(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(UPSTREAM_BASE_URL=f"{upstream.url}/gateway/a%20b/")
    upstream.script(OK)
    await ask(raw, request("/v1/messages?beta=true"))
    assert upstream.requests[0].target == "/gateway/a%20b/v1/messages?beta=true"


@pytest.mark.parametrize(
    "target",
    [
        "/v1/../admin",
        "/v1/..",
        "/v1/.",
        "/v1/./messages",
        "/v1/messages/../../admin",
        "/v1/%2e%2e/admin",
        "/v1/%2E%2E",
        "/v1/.%2e/admin",
        "/v1/%2e/messages",
        "/v1/..%2fadmin",
        "/v1/a%2Fb",
        "/v1/%2f",
        "/v1/a%5cb",
        "/v1/a%5Cb",
        "/v1/a\\b",
        "/v1\\..\\admin",
        "/v1/..;/admin",
        "/v1/..;x=1/admin",
        "/v1/%2e%2e;x/admin",
        "/v1/.;/messages",
        "/v1//messages",
        "//v1/messages",
        "/v1/messages//",
        "//evil.example/v1/messages",
        "/v1/messages#fragment",
        "/v1/messages?a#fragment",
        "http://127.0.0.1/v1/messages",
        "http://evil.example/v1/messages",
        "HTTPS://api.anthropic.com/v1/messages",
        "v1/messages",
        "*",
        "evil.example:443",
        "?",
    ],
)
async def test_a_target_that_might_lead_elsewhere_is_400_and_nothing_goes_upstream(
    proxy: Proxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    target: str,
) -> None:
    for number, method in enumerate(("GET", "POST", "OPTIONS"), 1):
        response = await ask(raw, request(target, method=method))
        assert response.status == 400
        assert json.loads(response.body)["error"]["type"] == "invalid_request_error"
        assert (await records.finished(number)).outcome == "denied"
    assert upstream.requests == []
    assert upstream.connections == 0


# -- the answer


RESPONSE_HEADERS = [
    ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
    ("Server", "cloudflare"),
    ("Content-Type", "application/json; charset=UTF-8"),
    ("request-id", "req_upstream"),
    ("retry-after", "2"),
    ("retry-after-ms", "2000"),
    ("x-should-retry", "true"),
    ("anthropic-ratelimit-requests-limit", "4000"),
    ("anthropic-ratelimit-tokens-reset", "2026-11-24T10:00:00Z"),
    ("anthropic-organization-id", "org"),
    ("anthropic-unheard-of", "x"),
    ("Etag", 'W/"tag"'),
    ("Cache-Control", "private, max-age=1"),
    ("Content-Disposition", 'attachment; filename="caf\xe9"'),
    ("Content-Language", "en"),
    ("Vary", "Accept-Encoding"),
    ("vary", "Origin"),
    ("Link", "</a>; rel=x, </b>; rel=y"),
    ("Strict-Transport-Security", "max-age=1"),
    ("X-Empty", ""),
    ("X-Frame-Options", "DENY"),
    ("CF-RAY", "1-FRA"),
]


async def test_the_answer_crosses_as_it_came(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(bytes_response(ODD_JSON, RESPONSE_HEADERS))
    response = await ask(raw, request("/v1/x"))
    expected = [*RESPONSE_HEADERS, ("content-length", str(len(ODD_JSON)))]
    assert lowered(response.headers) == lowered(expected)
    assert response.body == ODD_JSON


async def test_nothing_is_added_to_an_answer(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """No Server, ETag or Content-Type of ours; a Date where the upstream sends none."""
    upstream.script(bytes_response(b"x"))
    response = await ask(raw, request("/v1/x"))
    length, (name, date) = lowered(response.headers)
    assert (length, name) == (("content-length", "1"), "date")
    assert abs(parsedate_to_datetime(date).timestamp() - time.time()) < 60


@pytest.mark.parametrize(
    "line", [b"200 OK", b"201 Created", b"202 ", b"299 All is well", b"418 Tea pot"]
)
async def test_status_and_reason_cross(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, line: bytes
) -> None:
    upstream.script(raw_response(b"HTTP/1.1 " + line + b"\r\nContent-Length: 0\r\n\r\n"))
    response = await ask(raw, request("/v1/x"))
    assert response.raw_head.partition(b"\r\n")[0] == b"HTTP/1.1 " + line


async def test_hop_by_hop_headers_and_cookies_of_the_answer_end_here(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(
        bytes_response(
            b"x",
            [
                ("Connection", "x-named, keep-alive"),
                ("Connection", "content-length"),
                ("X-Named", "1"),
                ("Keep-Alive", "timeout=5"),
                ("Proxy-Connection", "keep-alive"),
                ("Proxy-Authenticate", "Basic"),
                ("Proxy-Authentication-Info", "x"),
                ("Trailer", "X-T"),
                ("Upgrade", "h2c"),
                ("Set-Cookie", "__cf_bm=1"),
                ("set-cookie", "_cfuvid=2"),
                ("X-Stays", "1"),
                ("Date", "today"),
            ],
        )
    )
    response = await ask(raw, request("/v1/x"))
    assert lowered(response.headers)[:2] == [("x-stays", "1"), ("date", "today")]
    assert lowered(response.headers)[2:] == [("content-length", "1")]
    assert response.body == b"x"


async def test_the_answer_to_head_keeps_its_length(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    framings = [b"Content-Length: 12345\r\n", b"Transfer-Encoding: chunked\r\n", b""]
    upstream.script(
        *(raw_response(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n") for framing in framings), OK
    )
    connection = await raw()
    for expected in ("12345", None, None):
        await connection.send(request("/v1/files/x", method="HEAD"))
        response = await connection.response(to_head=True)
        assert response.status == 200
        assert response.header("Content-Length") == expected
    await connection.send(request("/v1/x"))
    assert (await connection.response()).body == b"ok"
    assert upstream.requests[0].method == "HEAD"


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (b"204 No Content\r\n", None),
        (b'304 Not Modified\r\nETag: "a"\r\n', None),
        (b'304 Not Modified\r\nETag: "a"\r\nContent-Length: 999\r\n', "999"),
        (b"200 OK\r\nContent-Length: 0\r\n", "0"),
    ],
)
async def test_answers_without_a_body(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, head: bytes, length: str | None
) -> None:
    upstream.script(raw_response(b"HTTP/1.1 " + head + b"\r\n"), OK)
    connection = await raw()
    await connection.send(request("/v1/x", [("If-None-Match", '"a"')]))
    response = await connection.response()
    assert response.status == int(head[:3])
    assert response.header("Content-Length") == length
    assert response.header("Transfer-Encoding") is None
    await connection.send(request("/v1/x"))
    assert (await connection.response()).body == b"ok"


async def test_the_length_of_a_204_ends_here(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """RFC 9110, section 8.6, forbids it, and a client might wait for the body."""
    upstream.script(
        raw_response(b"HTTP/1.1 204 No Content\r\nDate: x\r\nContent-Length: 5\r\n\r\n")
    )
    response = await ask(raw, request("/v1/x"))
    assert (response.status, response.headers) == (204, [("Date", "x")])


async def test_if_none_match_is_the_upstreams_to_answer(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(bytes_response(b"body", {"ETag": '"a"'}))
    response = await ask(raw, request("/v1/x", [("If-None-Match", '"a", *')]))
    assert (response.status, response.body) == (200, b"body")
    assert upstream.requests[0].header("If-None-Match") == '"a", *'


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_relayed_never_followed(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, status: int
) -> None:
    location = f"{upstream.url}/v1/elsewhere"
    upstream.script(bytes_response(b"moved", {"Location": location}, status))
    response = await ask(raw, request("/v1/x", method="POST", body=b"{}"))
    assert (response.status, response.header("Location")) == (status, location)
    assert response.body == b"moved"
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("pieces", "end"),
    [
        ((b"HTTP/1.1 200 OK\r\n\r\n", b"one ", b"two"), "close"),
        ((b"HTTP/1.0 200 OK\r\nContent-Type: a/b\r\n\r\none two",), "close"),
        ((b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\none two",), "close"),
        ((b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\none two",), "close"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", b"one two"), "keep"),
        (
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n7\r\none two\r\n0\r\n\r\n",),
            "keep",
        ),
        (
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n",
                b'4;name=value;quoted="a;b"\r\none \r\n0003;x\r\ntwo\r\n',
                b"0;last\r\nX-T: 1\r\nX-Checksum: abc\r\n\r\n",
            ),
            "keep",
        ),
        (
            (
                b"HTTP/1.1 100 Continue\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\none two",
            ),
            "keep",
        ),
        (
            (
                b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-Hint: 1\r\n\r\n"
                b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"
                b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\none two",
            ),
            "keep",
        ),
    ],
)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_however_the_upstream_frames_it_the_body_is_whole(
    proxy: Proxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    pieces: tuple[bytes, ...],
    end: str,
    version: str,
) -> None:
    upstream.script(raw_response(*pieces, end=end), OK)  # type: ignore[arg-type]  # one of Ending
    connection = await raw()
    line = b"GET /v1/x HTTP/1.1"
    await connection.send(request("/v1/x").replace(line, line[:-3] + version.encode()))
    response = await connection.response()
    assert (response.status, response.body) == (200, b"one two")
    assert response.interim == []
    assert (response.header("X-T"), response.header("X-Hint")) == (None, None)
    assert (await records.finished()).outcome == "completed"
    if version == "1.0":
        assert not response.chunked
        assert response.header("Connection") != "Keep-Alive"
        assert await connection.read_to_end() == b""
    else:
        await connection.send(request("/v1/x"))
        assert (await connection.response()).body == b"ok"


# -- HTTP/1.0 clients


def http10(data: bytes) -> bytes:
    return data.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)


@pytest.mark.parametrize("headers", [[], [("Connection", "keep-alive")]])
async def test_an_http_1_0_connection_ends_with_its_answer(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, headers: Lines
) -> None:
    upstream.script(sse_response([b"one ", b"two"]), OK)
    connection = await raw()
    await connection.send(http10(request("/v1/x", headers)))
    response = await connection.head()
    assert not response.chunked
    assert "keep-alive" not in (response.header("Connection") or "").lower()
    assert await connection.read_to_end() == b"one two"
    connection = await raw()
    await connection.send(http10(request("/v1/x", headers)))
    assert (await connection.response()).body == b"ok"
    assert await connection.read_to_end() == b""


@pytest.mark.parametrize(
    "response",
    [
        raw_response(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\none", end="close"),
        sse_response(event({"type": "ping"}), end="reset"),
        raw_response(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n", end="close"
        ),
        raw_response(b"HTTP/1.1 200 OK\r\n\r\none", end="reset"),
    ],
)
async def test_a_cut_answer_to_http_1_0_ends_in_a_reset(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records, response: Response
) -> None:
    """Its body has no other end than the connection's: a FIN would make it look whole."""
    upstream.script(response)
    connection = await raw()
    await connection.send(http10(request("/v1/x")))
    with pytest.raises(ConnectionResetError):
        await connection.read_to_end()
    assert (await records.finished()).outcome == "failed"


# -- the client's connection


async def test_pipelined_requests_are_answered_in_order(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    async def echo(exchange: UpstreamExchange) -> None:
        body = exchange.request.target.encode() + await exchange.body()
        await bytes_response(body)(exchange)

    upstream.script(*[echo] * 4)
    connection = await raw()
    await connection.send(
        request("/v1/a")
        + request("/v1/b", method="POST", body=b"GET / HTTP/1.1\r\n\r\n")
        + request("/health")
        + request("/v1/c", [("Transfer-Encoding", "chunked")], method="POST")
        + b"2\r\nxy\r\n0\r\n\r\n"
        + request("/v1/d")
    )
    bodies = [(await connection.response()).body for _ in range(5)]
    assert bodies == [
        b"/v1/a",
        b"/v1/bGET / HTTP/1.1\r\n\r\n",
        b'{"status":"ok"}',
        b"/v1/cxy",
        b"/v1/d",
    ]
    assert upstream.connections == 1


async def test_one_connection_carries_requests_of_every_kind(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    connection = await raw()

    async def status(data: bytes, *, to_head: bool = False) -> int:
        await connection.send(data)
        return (await connection.response(to_head=to_head)).status

    for number in range(20):
        upstream.script(
            bytes_response(b"%d" % number),
            sse_response([b"event: ping\n\n"] * 3),
            bytes_response(b"", status=204),
            bytes_response(b"x", status=429),
            bytes_response(b"abc"),
        )
        assert await status(request("/v1/x", method="POST", body=b"x" * number)) == 200
        assert await status(request("/health")) == 200
        assert await status(request("/v1/x", method="POST", body=b"{}")) == 200
        assert await status(request("/nowhere", method="POST", body=b"unread")) == 404
        assert await status(request("/v1/x", method="DELETE")) == 204
        assert await status(request("/v1/../x")) == 400
        assert await status(request("/v1/x")) == 429
        assert await status(request("/v1/x", method="HEAD"), to_head=True) == 200
        assert await status(request("/openai/nowhere")) == 404
    assert upstream.connections == 1


@pytest.mark.parametrize("value", ["100-continue", "100-Continue"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_expect_100_continue_is_answered(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, value: str, framing: str
) -> None:
    upstream.script(OK)
    connection = await raw()
    headers = [("Expect", value)]
    if framing == "length":
        headers.append(("Content-Length", "4"))
        body = b"body"
    else:
        headers.append(("Transfer-Encoding", "chunked"))
        body = chunked(b"body", 4)
    await connection.send(request("/v1/x", headers, method="POST"))
    interim = await connection.read_until(b"\r\n\r\n")
    assert interim.startswith(b"HTTP/1.1 100 ")
    await connection.send(body)
    assert (await connection.response()).body == b"ok"
    (received,) = upstream.requests
    assert received.body == b"body"
    assert received.header("Expect") is None


async def test_what_is_refused_is_not_asked_for(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """No 100 Continue before a 401, a 404, a 400 or a 413."""
    headers = [("Expect", "100-continue"), ("Content-Length", str(1 << 40))]
    for data, status in (
        (request_bytes("POST", "/v1/x", headers, token="wrong"), 401),
        (request("/nowhere", headers, method="POST"), 404),
        (request("/v1/..", headers, method="POST"), 400),
        (request("/v1/x", headers, method="POST"), 413),
    ):
        response = await ask(raw, data)
        assert (response.status, response.interim) == (status, [])
    assert upstream.requests == []


async def upload(connection: RawConnection, count: int) -> None:
    for _ in range(count):
        await connection.send(b"10000\r\n" + bytes(65536) + b"\r\n")
    await connection.send(b"0\r\n\r\n")


async def test_an_answer_that_comes_before_the_upload_is_over(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    """The client has the answer at once; what it still sends disturbs nothing."""

    async def respond_early(exchange: UpstreamExchange) -> None:
        await exchange.read()
        await exchange.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 5\r\n\r\nearly")

    upstream.script(respond_early, OK)
    connection = await raw()
    chunked_post = request("/v1/files", [("Transfer-Encoding", "chunked")], method="POST")
    await connection.send(chunked_post + b"3\r\nabc\r\n")
    response = await connection.response()
    assert (response.status, response.body) == (400, b"early")
    await upload(connection, 40)
    await connection.send(request("/v1/x"))
    assert (await connection.response()).body == b"ok"


async def test_an_early_answer_reaches_a_client_that_sends_first_and_reads_later(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    async def respond_and_close(exchange: UpstreamExchange) -> None:
        await exchange.read()
        await exchange.send(
            b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nearly"
        )
        exchange.close()

    upstream.script(respond_and_close, OK)
    connection = await raw()
    chunked_post = request("/v1/files", [("Transfer-Encoding", "chunked")], method="POST")
    await connection.send(chunked_post + b"3\r\nabc\r\n")
    await upload(connection, 40)
    await connection.send(request("/v1/x"))
    response = await connection.response()
    assert (response.status, response.body) == (413, b"early")
    assert (await connection.response()).body == b"ok"


async def test_a_streamed_answer_may_overlap_the_upload(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    """Both are whole in the end."""

    async def echo(exchange: UpstreamExchange) -> None:
        await exchange.head(200, {"Transfer-Encoding": "chunked"})
        while piece := await exchange.read():
            await exchange.chunk(piece.upper())
        await exchange.last_chunk()

    upstream.script(echo)
    connection = await raw()
    await connection.send(request("/v1/x", [("Transfer-Encoding", "chunked")], method="POST"))
    assert (await connection.head()).status == 200
    for word in (b"one", b"two", b"three"):
        await connection.send(b"%x\r\n%b\r\n" % (len(word), word))
        assert await connection.chunk() == word.upper()
    await connection.send(b"0\r\n\r\n")
    assert await connection.chunk() == b""
    assert (await records.finished()).outcome == "completed"
    assert upstream.requests[0].body == b"onetwothree"


@pytest.mark.parametrize(
    "body",
    [
        b"3;extension=1\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n",
    ],
)
async def test_extensions_and_trailers_of_a_requests_chunks_never_cross(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, body: bytes
) -> None:
    """They carry nothing for an API, and disagreement about them is how requests are smuggled."""
    upstream.script(OK)
    head = request("/v1/x", [("Transfer-Encoding", "chunked")], method="POST")
    response = await ask(raw, head + body)
    assert response.status == 400
    await upstream.all_closed()
    for received in upstream.requests:
        with pytest.raises(ConnectionError):
            await received.complete()


# -- what SDKs and Claude Code ask for


async def test_the_model_list_is_answered_without_a_redirect(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    async with asyncio.timeout(3):
        response = await ask(raw, request("/v1/models?limit=1000"))
    assert response.status == 200
    assert response.header("Location") is None
    assert len(json.loads(response.body)["data"]) > 3
    assert upstream.requests[0].target == "/v1/models?limit=1000"


BATCH: list[Request] = [
    {
        "custom_id": "one",
        "params": {
            "model": "claude-sonnet-5-5",
            "max_tokens": 100,
            "messages": [{"role": "user", "content": "Hi"}],
        },
    }
]


async def make_batch(raw: OpenRaw, headers: Lines | None = None) -> RawResponse:
    body = json.dumps({"requests": BATCH}).encode()
    lines = [("Content-Type", "application/json"), *(headers or [])]
    return await ask(raw, request("/v1/messages/batches", lines, method="POST", body=body))


async def test_results_url_is_left_alone_by_default(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    response = await make_batch(raw)
    url = json.loads(response.body)["results_url"]
    assert url.startswith(f"{upstream.url}/v1/messages/batches/msgbatch_")


async def test_results_url_can_be_made_to_lead_through_the_proxy(
    start_proxy: StartProxy, upstream: ScriptedUpstream, anthropic_client: AsyncAnthropic
) -> None:
    proxy = await start_proxy(REWRITE_RESULTS_URL="yes")
    batches = anthropic_client.with_options(base_url=proxy.url).messages.batches
    batch = await batches.create(requests=BATCH)
    results = [result async for result in await batches.results(batch.id)]
    assert batch.results_url == f"{proxy.url}/v1/messages/batches/{batch.id}/results"
    assert [result.custom_id for result in results] == ["one"]
    assert all(each.all("x-api-key") == [TEST_UPSTREAM_KEY] for each in upstream.requests)
    assert [each.target.rpartition("/")[2] for each in upstream.requests] == [
        "batches",
        batch.id,
        "results",
    ]


async def test_only_the_origin_of_results_url_changes(
    start_proxy: StartProxy, upstream: ScriptedUpstream, raw: OpenRaw
) -> None:
    """Every other byte, in lists as well; the length follows."""
    proxy = await start_proxy(REWRITE_RESULTS_URL="yes")
    body = (
        b'{ "data" : [{"results_url": "https://api.anthropic.com/pre/v1/messages/batches/a/results",'
        b'"z":1.0e0},{"results_url":null}], "note":"\\u0041 https://api.anthropic.com/v1/messages"}\n'
    )
    ours = f"http://127.0.0.1:{proxy.port}".encode()
    expected = body.replace(b"https://api.anthropic.com/pre", ours)
    scripted = bytes_response(body, {"Content-Type": "application/json"})
    upstream.script(scripted, scripted)
    lines = [("Host", f"127.0.0.1:{proxy.port}"), ("Accept-Encoding", "gzip")]
    response = await ask(raw, request("/v1/messages/batches?limit=2", lines))
    assert response.body == expected
    assert response.header("Content-Length") == str(len(expected))
    # what is compressed could not be rewritten
    assert upstream.requests[0].all("Accept-Encoding") == ["identity"]
    await ask(raw, request("/v1/files", lines))
    assert upstream.requests[1].all("Accept-Encoding") == ["gzip"]


@pytest.mark.parametrize(
    ("trusted", "base_url"),
    [
        ("127.0.0.1", "https://claude.example/claude"),
        ("10.0.0.0/8", "http://claude.example"),
        ("", "http://claude.example"),
    ],
)
async def test_results_url_begins_with_base_url_of_client(
    start_proxy: StartProxy, raw: OpenRaw, trusted: str, base_url: str
) -> None:
    await start_proxy(REWRITE_RESULTS_URL="yes", TRUSTED_PROXIES=trusted)
    lines = [("Host", "claude.example"), ("X-Forwarded-Proto", "https")]
    response = await make_batch(raw, [*lines, ("X-Forwarded-Prefix", "/claude/")])
    url = json.loads(response.body)["results_url"]
    assert url.startswith(f"{base_url}/v1/messages/batches/msgbatch_")


async def test_what_is_not_json_is_not_rewritten(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(REWRITE_RESULTS_URL="yes")
    body = b'{"results_url":"https://api.anthropic.com/v1/messages/batches/a/results"}\n'
    upstream.script(bytes_response(body, {"Content-Type": "application/x-jsonl"}))
    response = await ask(raw, request("/v1/messages/batches/a/results"))
    assert response.body == body

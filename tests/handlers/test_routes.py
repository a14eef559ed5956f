"""The route table as a client sees it: what each path does, in which dialect, and for whom."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    bytes_response,
    request_bytes,
    silent_response,
)

if TYPE_CHECKING:
    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
    )

# what a client of the other API sends, or a browser: none of it may choose the dialect
LOOKS_LIKE_OPENAI = [
    ("User-Agent", "AsyncOpenAI/Python 3.54.0"),
    ("X-Stainless-Package-Version", "3.54.0"),
    ("OpenAI-Organization", "org-1"),
    ("OpenAI-Beta", "assistants=v2"),
    ("Content-Type", "application/json"),
    ("Accept", "text/html"),
]
LOOKS_LIKE_ANTHROPIC = [
    ("User-Agent", "AsyncAnthropic/Python 2.12.0"),
    ("Anthropic-Version", "2023-06-01"),
    ("Anthropic-Beta", "tools-2024-04-04"),
    ("X-Api-Key", "wrong"),
    ("Accept", "text/html"),
]

# the methods of the IANA registry that a gateway forwards, and one with a hyphen in it
METHODS = [
    "GET",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "QUERY",
    "PROPFIND",
    "PROPPATCH",
    "REPORT",
    "SEARCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "LINK",
    "UNLINK",
    "BIND",
    "MERGE",
    "VERSION-CONTROL",
]

NO_SUCH_PAGE = [
    "/nothing",
    "/v1",
    "/V1/messages",
    "/v2/messages",
    "/metrics",
    "/favicon.ico",
    "/health/",
    "/healthz",
    "/ready/now",
    "/api/hello/there",
    "/openaix/v1/models",
    "/OpenAI/v1/models",
]
NO_SUCH_PAGE_OF_OPENAI = [
    "/openai",
    "/openai/",
    "/openai/health",
    "/openai/v1/nothing",
    "/openai/v2/chat/completions",
]


def anthropic_error(response: RawResponse, status: int, error_type: str) -> str:
    """See that a response is an error in the Anthropic API's shape; return its message."""
    assert response.status == status
    assert response.header("content-type") == "application/json"
    document: dict[str, Any] = json.loads(response.body)
    request_id = response.header("request-id")
    assert request_id is not None
    assert request_id.startswith("req_")
    assert response.header("x-request-id") is None
    message: str = document["error"]["message"]
    assert message
    assert document == {
        "type": "error",
        "error": {"type": error_type, "message": message},
        "request_id": request_id,
    }
    return message


def openai_error(response: RawResponse, status: int, code: str | None) -> str:
    """See that a response is an error in the OpenAI API's shape; return its message."""
    assert response.status == status
    assert response.header("content-type") == "application/json"
    document: dict[str, Any] = json.loads(response.body)
    assert response.header("x-request-id")
    assert response.header("request-id") is None
    message: str = document["error"]["message"]
    assert message
    assert document == {
        "error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    }
    return message


# -- /v1/*


async def test_every_method_below_v1_is_relayed(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    for method in METHODS:
        upstream.script(bytes_response(b"from upstream", status=207))
        await client.send(request_bytes(method, "/v1/files/f-1", body=b"<x/>", token=TEST_TOKEN))
        response = await client.response()

        assert (response.status, response.body) == (207, b"from upstream"), method
        received = upstream.requests[-1]
        assert (received.method, received.target) == (method, "/v1/files/f-1")
        assert received.body == b"<x/>"
    assert len(upstream.requests) == len(METHODS)


async def test_head_below_v1_is_relayed_with_its_length_and_no_body(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(bytes_response(b"x" * 4711), bytes_response(b"the next answer"))
    client = await raw()

    await client.send(request_bytes("HEAD", "/v1/models", token=TEST_TOKEN))
    response = await client.response(to_head=True)
    await client.send(request_bytes("GET", "/v1/models", token=TEST_TOKEN))

    assert (response.status, response.header("content-length")) == (200, "4711")
    assert (await client.response()).body == b"the next answer"
    assert [received.method for received in upstream.requests] == ["HEAD", "GET"]


async def test_path_and_query_go_upstream_verbatim(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    targets = [
        "/v1/",
        "/v1/messages?beta=true",
        "/v1/messages?",
        "/v1/models?limit=1000&after_id=a%2Fb%20c+d&&=&x&x=1;y=%zz",
        "/v1/models?next=/v1/../admin//x\\y",
        "/v1/files/%E2%82%AC/a%20b;v=1/~x,(y)'!$&*+=:@",
        "/v1/a/path/that/no/api/has/yet.json",
        "/v1/openai/v1/models",
    ]
    client = await raw()
    for target in targets:
        upstream.script(bytes_response(b"ok"))
        await client.send(request_bytes("GET", target, token=TEST_TOKEN))
        assert (await client.response()).body == b"ok", target

    assert [received.target for received in upstream.requests] == targets


@pytest.mark.parametrize("method", ["FROB", "CONNECT", "TRACE", "get", "serve"])
async def test_a_method_that_does_not_exist_is_405_in_shape(
    method: str, proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()

    await client.send(request_bytes(method, "/v1/models", token=TEST_TOKEN))
    anthropic_error(await client.response(), 405, "invalid_request_error")
    await client.send(request_bytes(method, "/openai/v1/models", token=TEST_TOKEN))
    openai_error(await client.response(), 405, None)

    assert upstream.requests == []


# -- the pages for probes


async def test_health_and_ready_need_no_credential_and_say_nothing_secret(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    client = await raw()
    for path in ("/health", "/ready", "/health?verbose=1"):
        await client.send(request_bytes("GET", path))
        response = await client.response()

        assert response.status == 200
        assert response.header("content-type") == "application/json"
        assert response.header("cache-control") == "no-store"
        assert json.loads(response.body) == {"status": "ok"}
        said = response.raw_head + response.body
        for secret in (TEST_TOKEN, TEST_UPSTREAM_KEY, str(upstream.port), "token"):
            assert secret.encode() not in said
    assert upstream.connections == 0
    assert records.all == []


@pytest.mark.parametrize("token", [None, "wrong"])
async def test_probes_by_head_are_a_cheap_200_without_body(
    token: str | None, proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    for path in ("/health", "/ready", "/", "/api/hello"):
        await client.send(request_bytes("HEAD", path, token=token))
        assert (await client.response(to_head=True)).status == 200, path
        # were there a body, it would be taken for the head of this answer
        await client.send(request_bytes("GET", "/health"))
        assert (await client.response()).status == 200, path
    assert upstream.connections == 0


async def test_the_root_is_a_cheap_200(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    for target in ("/", "/?beta=true"):
        await client.send(request_bytes("GET", target))
        response = await client.response()
        assert response.status == 200
        assert json.loads(response.body) == {"status": "ok"}
    assert upstream.connections == 0


async def test_probe_pages_have_no_other_method(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    for path in ("/", "/health", "/ready", "/api/hello"):
        await client.send(request_bytes("POST", path, body=b"x=1", token=TEST_TOKEN))
        anthropic_error(await client.response(), 405, "invalid_request_error")
    assert upstream.requests == []


async def test_readiness_turns_503_while_draining_and_liveness_does_not(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    proxy = await start_proxy(DRAIN_TIMEOUT=5)
    upstream.script(silent_response())
    busy, ready, head, health = [await raw() for _ in range(4)]
    await busy.send(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
    await upstream.received()
    # idle connections are closed, and no new ones taken: these have begun a request
    begun = b" HTTP/1.1\r\nHost: localhost\r\n"
    await ready.send(b"GET /ready" + begun)
    await head.send(b"HEAD /ready" + begun)
    await health.send(b"GET /health" + begun)
    await _seen_by_the_proxy(raw)

    draining = asyncio.create_task(proxy.server.drain())
    await asyncio.sleep(0)  # its first step
    for connection in (ready, head, health):
        await connection.send(b"\r\n")

    response = await ready.response()
    assert (response.status, json.loads(response.body)) == (503, {"status": "draining"})
    assert (await head.response(to_head=True)).status == 503
    assert (await health.response()).status == 200
    await busy.close()
    await draining


async def _seen_by_the_proxy(raw: OpenRaw) -> None:
    """A request that was sent after all others has been answered, so those have been read."""
    client = await raw()
    await client.send(request_bytes("GET", "/health"))
    assert (await client.response()).status == 200


# -- everything else


@pytest.mark.parametrize(
    "path", ["/v1/v1", "/v1/v1/messages", "/v1/v1/models?limit=1", "/v1/v1/chat/completions"]
)
async def test_doubled_v1_is_404_with_base_url(
    path: str, proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    await client.send(request_bytes("POST", path, body=b"{}"))
    anthropic_error(await client.response(), 401, "authentication_error")
    lines = [("Host", f"127.0.0.1:{proxy.port}")]
    await client.send(request_bytes("POST", path, lines, b"{}", token=TEST_TOKEN))
    message = anthropic_error(await client.response(), 404, "not_found_error")
    assert message.endswith(f"The base URL for Anthropic clients is {proxy.url}, without /v1.")
    assert upstream.requests == []


async def test_unknown_openai_path_names_base_url(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    for path in NO_SUCH_PAGE_OF_OPENAI:
        lines = [("Host", f"127.0.0.1:{proxy.port}")]
        await client.send(request_bytes("POST", path, lines, b"{}", token=TEST_TOKEN))
        message = openai_error(await client.response(), 404, None)
        assert message.endswith(f"The base URL for OpenAI clients is {proxy.url}/openai/v1.")
    upstream.script(bytes_response(b"the upstream has it"))
    await client.send(request_bytes("POST", "/v1/chat/completions", body=b"{}", token=TEST_TOKEN))
    assert (await client.response()).body == b"the upstream has it"


async def test_an_unknown_path_needs_a_credential_then_is_404(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    for path, method in itertools.product(NO_SUCH_PAGE, ("GET", "POST", "OPTIONS", "DELETE")):
        await client.send(request_bytes(method, path))
        anthropic_error(await client.response(), 401, "authentication_error")
        await client.send(request_bytes(method, path, token="wrong"))
        anthropic_error(await client.response(), 401, "authentication_error")
        await client.send(request_bytes(method, path, token=TEST_TOKEN))
        message = anthropic_error(await client.response(), 404, "not_found_error")

        assert path in message
    assert upstream.connections == 0


async def test_an_unknown_path_below_openai_needs_a_credential_then_is_404(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    client = await raw()
    methods = ("GET", "POST", "OPTIONS", "DELETE")
    for path, method in itertools.product(NO_SUCH_PAGE_OF_OPENAI, methods):
        await client.send(request_bytes(method, path))
        openai_error(await client.response(), 401, "invalid_api_key")
        await client.send(request_bytes(method, path, token="wrong"))
        openai_error(await client.response(), 401, "invalid_api_key")
        await client.send(request_bytes(method, path, token=TEST_TOKEN))
        message = openai_error(await client.response(), 404, None)

        assert path in message
    assert upstream.connections == 0


async def test_a_404_says_the_path_without_its_query(
    proxy: Proxy, raw: OpenRaw, records: Records
) -> None:
    client = await raw()

    await client.send(request_bytes("GET", "/nothing?key=hidden", token=TEST_TOKEN))

    assert "hidden" not in anthropic_error(await client.response(), 404, "not_found_error")
    assert "hidden" not in repr(await records.finished())


async def test_a_head_of_an_unknown_path_has_no_body(proxy: Proxy, raw: OpenRaw) -> None:
    client = await raw()

    for token, status in ((None, 401), (TEST_TOKEN, 404)):
        await client.send(request_bytes("HEAD", "/nothing", token=token))
        response = await client.response(to_head=True)
        assert response.status == status
        assert response.header("request-id")
        # were there a body, it would be taken for the head of this answer
        await client.send(request_bytes("GET", "/health"))
        assert (await client.response()).status == 200


# -- the dialect


@pytest.mark.parametrize(
    "path", ["/v1/messages", "/v1/openai/v1/chat/completions", "/v1/x?a=/openai/v1/models"]
)
async def test_the_dialect_below_v1_is_anthropic_whatever_the_headers_say(
    path: str, proxy: Proxy, raw: OpenRaw
) -> None:
    client = await raw()

    await client.send(request_bytes("POST", path, LOOKS_LIKE_OPENAI, token="wrong"))

    anthropic_error(await client.response(), 401, "authentication_error")


@pytest.mark.parametrize(
    "path", ["/openai/v1/chat/completions", "/openai/v1/models", "/openai/v1/models/claude-x"]
)
async def test_the_dialect_below_openai_is_openai_whatever_the_headers_say(
    path: str, proxy: Proxy, raw: OpenRaw
) -> None:
    client = await raw()

    await client.send(request_bytes("POST", path, LOOKS_LIKE_ANTHROPIC))

    openai_error(await client.response(), 401, "invalid_api_key")


async def test_each_request_of_a_connection_has_its_own_dialect(
    proxy: Proxy, raw: OpenRaw, records: Records
) -> None:
    client = await raw()

    for _ in range(2):
        await client.send(request_bytes("GET", "/v1/models"))
        anthropic_error(await client.response(), 401, "authentication_error")
        await client.send(request_bytes("GET", "/openai/v1/models"))
        openai_error(await client.response(), 401, "invalid_api_key")

    await records.finished(4)
    assert [record.dialect for record in records.all] == ["anthropic", "openai"] * 2


UNREADABLE = [
    b"GET %b HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
    b"GET %b HTTP/1.1\r\nHost: x\r\nbad name: y\r\n\r\n",
    b"GET %b HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n",
    b"GET %b HTTP/1.1\nHost: x\n\n",
    b"GET %b HTTP/1.1\r\n\r\n",
    b"GET %b HTTP/1.1\r\nHost: a b\r\n\r\n",
    b"GET %b HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"GET %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"GET %b HTTP/2.0\r\nHost: x\r\n\r\n",
    b"GET %b\r\nHost: x\r\n\r\n",
    b"G(T %b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET %b\x7f HTTP/1.1\r\nHost: x\r\n\r\n",
]


async def test_a_head_that_cannot_be_read_is_400_in_the_dialect_of_its_path(
    proxy: Proxy, raw: OpenRaw
) -> None:
    for lines in UNREADABLE:
        client = await raw()
        await client.send(lines % b"/v1/models?x=1")
        anthropic_error(await client.response(), 400, "invalid_request_error")
        for path in (b"/openai/v1/models?x=1", b"/openai/"):
            client = await raw()
            await client.send(lines % path)
            openai_error(await client.response(), 400, None)
            assert await client.read() == b""  # what follows cannot be read either


NO_BODY = [
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/api/hello"),
    ("GET", "/openai/v1/models"),
    ("OPTIONS", "/v1/messages"),
]


@pytest.mark.parametrize(("method", "path"), NO_BODY)
@pytest.mark.parametrize("framing", ["Content-Length: 9", "Transfer-Encoding: chunked"])
async def test_body_where_none_is_taken_is_413(
    method: str, path: str, framing: str, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    """The body need not come for that, and nothing behind it is taken for a request."""
    origin = "https://app.example.com"
    await start_proxy(ALLOWED_ORIGINS=origin)
    name, value = framing.split(": ")
    asked = {name: value, "Origin": origin, "Access-Control-Request-Method": "GET"}
    client = await raw()
    await client.send(request_bytes(method, path, asked, token=TEST_TOKEN))
    response = await client.response(to_head=method == "HEAD")
    assert (response.status, response.header("Connection")) == (413, "close")
    await client.send(request_bytes("GET", "/health"))
    assert await client.read() == b""


async def test_empty_body_is_none(proxy: Proxy, raw: OpenRaw) -> None:
    client = await raw()
    for _ in range(2):
        await client.send(request_bytes("GET", "/health", {"Content-Length": "0"}))
        assert (await client.response()).status == 200

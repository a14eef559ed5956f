"""The route table as a client sees it: what each path does, in which dialect, and for whom."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from served import anthropic_error, openai_error, request

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    bytes_response,
    request_bytes,
    silent_response,
)

if TYPE_CHECKING:
    from scene import Scene

    from tornadoproxy.testing import Proxy

pytestmark = pytest.mark.usefixtures("proxy")

PROBES = ("/", "/health", "/ready", "/api/hello")
NO_SUCH_PAGE = [
    "/nothing",
    "/v1",
    "/V1/messages",
    "/v2/messages",
    "/metrics",
    "/health/",
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


# -- methods


# those of the IANA registry that a gateway forwards, and one with a hyphen in it
METHODS = (
    "GET POST PUT PATCH DELETE OPTIONS QUERY PROPFIND PROPPATCH REPORT SEARCH MKCOL COPY MOVE LOCK"
    " UNLOCK LINK UNLINK BIND MERGE VERSION-CONTROL"
)


async def test_v1_relays_every_method(scene: Scene) -> None:
    client = await scene.raw()
    for method in METHODS.split():
        scene.upstream.script(bytes_response(b"from upstream", status=207))
        response = await client.ask(request(method, "/v1/files/f-1", body=b"<x/>"))
        assert (response.status, response.body) == (207, b"from upstream"), method
        received = scene.upstream.requests[-1]
        assert (received.method, received.target) == (method, "/v1/files/f-1")
        assert received.body == b"<x/>"
    assert len(scene.upstream.requests) == len(METHODS.split())


async def test_method_that_does_not_exist_is_405(scene: Scene) -> None:
    for method in ("FROB", "CONNECT", "TRACE", "get", "serve"):
        for path in ("/v1/models", "/nowhere", *PROBES):
            response = await scene.ask(path, method=method)
            anthropic_error(response, 405, "invalid_request_error")
        openai_error(await scene.ask("/openai/v1/models", method=method), 405)
    for path in PROBES:
        for method in ("POST", "PROPFIND"):
            response = await scene.ask(path, method=method, token=None)
            anthropic_error(response, 405, "invalid_request_error")
    assert scene.upstream.requests == []


# -- the pages for probes


async def test_probe_needs_no_credential_and_reveals_nothing(scene: Scene) -> None:
    client = await scene.raw()
    for path in (*PROBES, "/health?verbose=1", "/?beta=true"):
        for token in (None, "wrong"):
            await client.send(request_bytes("HEAD", path, token=token))
            assert (await client.response(to_head=True)).status == 200, path
        if path == "/api/hello":
            continue
        response = await client.ask(request_bytes("GET", path))
        assert response.status == 200
        assert response.header("content-type") == "application/json"
        assert response.header("cache-control") == "no-store"
        assert json.loads(response.body) == {"status": "ok"}
        shown = response.raw_head + response.body
        for secret in (TEST_TOKEN, TEST_UPSTREAM_KEY, str(scene.upstream.port), "token"):
            assert secret.encode() not in shown
    assert scene.upstream.connections == 0
    assert scene.records.all == []


async def test_ready_is_503_while_draining_and_health_is_not(scene: Scene) -> None:
    proxy = await scene.start(DRAIN_TIMEOUT=5)
    scene.upstream.script(silent_response())
    busy, ready, head, health = [await scene.raw() for _ in range(4)]
    await busy.send(request("GET", "/v1/models"))
    await scene.upstream.received()
    # idle connections are closed, and no new ones accepted: these have begun a request
    begun = b" HTTP/1.1\r\nHost: localhost\r\n"
    await ready.send(b"GET /ready" + begun)
    await head.send(b"HEAD /ready" + begun)
    await health.send(b"GET /health" + begun)
    assert (await scene.ask("/health")).status == 200  # by now the others have been read

    draining = asyncio.create_task(proxy.server.drain())
    await asyncio.sleep(0)  # its first step
    response = await ready.ask(b"\r\n")
    assert (response.status, json.loads(response.body)) == (503, {"status": "draining"})
    assert (await head.ask(b"\r\n", to_head=True)).status == 503
    assert (await health.ask(b"\r\n")).status == 200
    await busy.close()
    await draining


@pytest.mark.parametrize("framing", [("Content-Length", "9"), ("Transfer-Encoding", "chunked")])
async def test_body_where_none_is_taken_is_413(framing: tuple[str, str], scene: Scene) -> None:
    """The body need not come for that, and nothing behind it is taken for a request."""
    origin = "https://app.example.com"
    await scene.start(ALLOWED_ORIGINS=origin)
    preflight = [("Origin", origin), ("Access-Control-Request-Method", "GET")]
    for method, path in (
        *(("GET", path) for path in PROBES),
        ("HEAD", "/"),
        ("GET", "/openai/v1/models"),
        ("OPTIONS", "/v1/messages"),
    ):
        client = await scene.raw()
        await client.send(request(method, path, framing, *preflight))
        response = await client.response(to_head=method == "HEAD")
        assert (response.status, response.header("Connection")) == (413, "close"), path
        await client.send(request("GET", "/health"))
        assert await client.read() == b""


async def test_empty_body_is_accepted_where_none_is_taken(scene: Scene) -> None:
    client = await scene.raw()
    for _ in range(2):
        response = await client.ask(request("GET", "/health", ("Content-Length", "0")))
        assert response.status == 200


# -- other paths


async def test_unknown_path_needs_a_credential_then_is_404(proxy: Proxy, scene: Scene) -> None:
    client = await scene.raw()
    host = [("Host", f"127.0.0.1:{proxy.port}")]
    for path in NO_SUCH_PAGE + NO_SUCH_PAGE_OF_OPENAI:
        is_openai = path in NO_SUCH_PAGE_OF_OPENAI
        for method in ("GET", "POST", "OPTIONS"):
            for token in (None, "wrong"):
                response = await client.ask(request_bytes(method, path, token=token))
                assert response.header("WWW-Authenticate") == "Bearer"
                if is_openai:
                    openai_error(response, 401, code="invalid_api_key")
                else:
                    anthropic_error(response, 401, "authentication_error")
            response = await client.ask(request(method, path, *host))
            if is_openai:
                message = openai_error(response, 404)
                base_url = f"{proxy.url}/openai/v1"
                assert message.endswith(f"The base URL for OpenAI clients is {base_url}.")
            else:
                message = anthropic_error(response, 404, "not_found_error")
            assert path in message
    assert scene.upstream.connections == 0


async def test_doubled_v1_is_404_with_base_url(proxy: Proxy, scene: Scene) -> None:
    for path in ("/v1/v1", "/v1/v1/messages", "/v1/v1/models?limit=1", "/v1/v1/chat/completions"):
        response = await scene.ask(path, body=b"{}", token=None)
        anthropic_error(response, 401, "authentication_error")
        response = await scene.ask(path, body=b"{}", headers={"Host": f"127.0.0.1:{proxy.port}"})
        message = anthropic_error(response, 404, "not_found_error")
        assert message.endswith(f"The base URL for Anthropic clients is {proxy.url}, without /v1.")
    assert scene.upstream.requests == []


async def test_404_names_the_path_without_its_query(scene: Scene) -> None:
    response = await scene.ask("/nothing?key=hidden")
    assert "hidden" not in anthropic_error(response, 404, "not_found_error")
    assert "hidden" not in repr(await scene.records.finished())


async def test_error_to_head_has_no_body(scene: Scene) -> None:
    client = await scene.raw()
    for token, status in ((None, 401), (TEST_TOKEN, 404)):
        await client.send(request_bytes("HEAD", "/nothing", token=token))
        response = await client.response(to_head=True)
        assert response.status == status
        assert response.header("Content-Type") == "application/json"
        assert response.header("request-id")
        # were there a body, it would be taken for the head of this response
        assert (await client.ask(request_bytes("GET", "/health"))).status == 200


# -- the dialect


async def test_dialect_depends_on_the_path_alone(scene: Scene) -> None:
    like_openai = [
        ("User-Agent", "AsyncOpenAI/Python 3.54.0"),
        ("OpenAI-Organization", "org-1"),
        ("Content-Type", "application/json"),
        ("Accept", "text/html"),
    ]
    like_anthropic = [
        ("User-Agent", "AsyncAnthropic/Python 2.12.0"),
        ("Anthropic-Version", "2023-06-01"),
        ("X-Api-Key", "wrong"),
        ("Accept", "text/html"),
    ]
    client = await scene.raw()
    for path in ("/v1/messages", "/v1/openai/v1/models", "/v1/x?a=/openai/v1/models"):
        response = await client.ask(request_bytes("POST", path, like_openai))
        anthropic_error(response, 401, "authentication_error")
    for path in ("/openai/v1/chat/completions", "/openai/v1/models", "/openai/v1/models/claude-x"):
        response = await client.ask(request_bytes("POST", path, like_anthropic))
        openai_error(response, 401, code="invalid_api_key")
    await scene.records.finished(6)
    assert [record.dialect for record in scene.records.all] == ["anthropic"] * 3 + ["openai"] * 3


UNREADABLE = [
    b"GET %b HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
    b"GET %b HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n",
    b"GET %b HTTP/1.1\nHost: x\n\n",
    b"GET %b HTTP/1.1\r\n\r\n",
    b"GET %b HTTP/1.1\r\nHost: a b\r\n\r\n",
    b"GET %b HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    b"GET %b HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"GET %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"GET %b HTTP/2.0\r\nHost: x\r\n\r\n",
    b"GET %b\r\nHost: x\r\n\r\n",
    b"G(T %b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET %b\x7f HTTP/1.1\r\nHost: x\r\n\r\n",
]


async def test_unreadable_head_is_400_in_dialect_of_its_path(scene: Scene) -> None:
    for lines in UNREADABLE:
        for path in (b"/v1/models?x=1", b"/openai/v1/models?x=1", b"/openai/"):
            client = await scene.raw()
            response = await client.ask(lines % path)
            if path.startswith(b"/v1"):
                anthropic_error(response, 400, "invalid_request_error")
            else:
                openai_error(response, 400)
            assert await client.read() == b""  # what follows cannot be read either

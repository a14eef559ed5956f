"""Requests that are too large or costly to read, lead elsewhere, or come from a web page.

tests/protocol has the rules for targets and pages, and `test_smuggling` those for framing.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

import pytest

from tornadoproxy.testing import TEST_TOKEN, Truncated, bytes_response, request_bytes

if TYPE_CHECKING:
    from tornadoproxy.testing import (
        Ask,
        OpenRaw,
        Proxy,
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
    )

pytestmark = pytest.mark.usefixtures("no_errors_logged")

MB = 1 << 20
HEALTH = request_bytes("GET", "/health")

# every kind of route that goes upstream, or shows what there is
ROUTES = [
    ("GET", "/v1/models"),
    ("POST", "/v1/messages?beta=true"),
    ("OPTIONS", "/v1/anything"),
    ("GET", "/v1/..%2fx"),
    ("POST", "/openai/v1/chat/completions"),
    ("GET", "/openai/v1/models"),
    ("GET", "/openai/v1/models/claude-sonnet-5-5"),
    ("GET", "/nowhere"),
    ("GET", "/openai/nowhere"),
]


def error_of(response: RawResponse, path: str) -> tuple[str, str]:
    """Return the type and the message of an error, which is in the shape of the path's dialect."""
    document = json.loads(response.body)
    assert ("type" in document) == (not path.startswith("/openai/"))
    return document["error"]["type"], document["error"]["message"]


# -- too much of it


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/x HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * MB + b"\r\n",
        b"GET /v1/x HTTP/1.1\r\n" + b"x" * 4 * MB,
        b"\r\n" * 2 * MB,
        bytes(4 * MB),
    ],
    ids=["lines", "a name", "line ends", "zeros"],
)
async def test_unbounded_head_is_refused_or_cut(
    head: bytes, start_proxy: StartProxy, raw: OpenRaw, ask: Ask, upstream: ScriptedUpstream
) -> None:
    await start_proxy(CLIENT_IDLE_TIMEOUT=0.5)
    client = await raw()
    try:
        async with asyncio.timeout(5):
            await client.send(head)
            assert 400 <= (await client.response()).status < 500
            assert await client.read() == b""
    except (Truncated, ConnectionError):
        pass
    assert (await ask(HEALTH)).status == 200
    assert upstream.connections == 0


async def test_4000_header_lines_go_upstream(
    proxy: Proxy, ask: Ask, upstream: ScriptedUpstream
) -> None:
    upstream.script(bytes_response(b"ok"))
    lines = [(f"X-{number}", "y") for number in range(2000)] + [("X-Same", "z")] * 2000
    assert (await ask("/v1/x", headers=lines)).body == b"ok"
    (received,) = upstream.requests
    assert received.all("X-1999") == ["y"]
    assert received.all("X-Same") == ["z"] * 2000


COSTLY = {
    "lines": b"a:\r\n" * 16_000,
    "names": b"".join(b"%x:\r\n" % number for number in range(8000)),
    "credentials": b"x-api-key: no\r\n" * 4000,
    "names in Connection": b"connection: " + b"a," * 30_000 + b"\r\n",
    "Via": b"via: 1.1 a\r\n" * 4000,
    "forwarded addresses": b"x-forwarded-for: 192.0.2.7, 192.0.2.8\r\n" * 1500,
    "a long name": b"-" * 60_000 + b": y\r\n",
    "blanks": b"x:" + b" \t" * 30_000 + b"y" + b"\t" * 1000 + b"\r\n",
    "bytes beyond ASCII": b"x: " + b"\xff" * 60_000 + b"\r\n",
}


@pytest.mark.parametrize("lines", COSTLY.values(), ids=COSTLY)
async def test_costly_headers_take_less_than_2_seconds(
    lines: bytes, proxy: Proxy, ask: Ask, upstream: ScriptedUpstream
) -> None:
    """Of processor time, whatever else the machine does; quadratic work would take more."""
    for path in ("/v1/x", "/openai/v1/models"):
        head = request_bytes("GET", path, token=TEST_TOKEN).removesuffix(b"\r\n")
        began = time.process_time()
        assert (await ask(head + lines + b"\r\n")).status in {200, 401, 404, 431}
        assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("path", "limit", "error_type"),
    [
        ("/v1/messages", 500 * MB, "request_too_large"),
        ("/openai/v1/chat/completions", 32 * MB, "invalid_request_error"),
    ],
)
async def test_body_over_the_default_limit_is_413(
    path: str,
    limit: int,
    error_type: str,
    proxy: Proxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    for length in (limit + 1, 2**32 + 5, 10**18 - 1):
        headers = {"Content-Length": str(length)}
        response = await (await raw()).ask(request_bytes("POST", path, headers, token=TEST_TOKEN))
        assert response.status == 413
        kind, message = error_of(response, path)
        assert (kind, str(limit) in message) == (error_type, True)
    assert (await records.finished(3)).outcome == "denied"
    headers = {"Content-Length": str(limit), "Expect": "100-continue"}
    client = await raw()
    await client.send(request_bytes("POST", path, headers, token=TEST_TOKEN))
    assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")


# -- what is found out without a credential


async def test_ambiguous_path_needs_a_credential_first(
    proxy: Proxy, ask: Ask, upstream: ScriptedUpstream
) -> None:
    for path in ("/v1/../admin", "/openai/../v1/messages", "/health/../v1/messages", "//health"):
        for token, status in (("wrong", 401), (TEST_TOKEN, 400)):
            assert (await ask(path, token=token)).status == status
    assert upstream.connections == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "localhost", "Origin": "https://evil.example"},
        {"Host": "localhost", "Origin": "null", "X-Api-Key": "anything"},
    ],
)
async def test_foreign_page_is_refused_alike_on_every_route(
    headers: dict[str, str], start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(AUTH_TOKEN=None)
    client = await raw()
    errors = set()
    for method, path in ROUTES:
        response = await client.ask(request_bytes(method, path, headers))
        assert response.status == 403
        assert not [name for name, _ in response.headers if name.lower().startswith("access-")]
        errors.add(error_of(response, path))
    ((kind, _),) = errors
    assert kind == "permission_error"
    assert upstream.connections == 0
    assert (await client.ask(request_bytes("GET", "/v1/models"))).status == 200


async def test_probe_answers_any_host_and_no_page_may_read(
    start_proxy: StartProxy, raw: OpenRaw
) -> None:
    """A load balancer asks under whatever name it has."""
    await start_proxy(AUTH_TOKEN=None)
    headers = {"Host": "10.1.2.3:8000", "Origin": "https://evil.example"}
    for path in ("/", "/health", "/ready", "/api/hello"):
        response = await (await raw()).ask(request_bytes("GET", path, headers))
        assert (response.status, response.body) == (200, b'{"status":"ok"}')
        assert not [name for name, _ in response.headers if name.lower().startswith("access-")]

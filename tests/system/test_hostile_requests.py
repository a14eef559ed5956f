"""Requests that are too large or costly to read, lead elsewhere, or come from a web page.

tests/protocol has the rules for targets and pages, and `test_smuggling` those for framing.
"""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from scene import Scene
from served import anthropic_error, openai_error

from tornadoproxy.testing import TEST_TOKEN, Truncated, bytes_response, request_bytes

pytestmark = pytest.mark.usefixtures("no_errors_logged", "proxy")

MB = 1 << 20
HEALTH = request_bytes("GET", "/health")

# every kind of route that goes upstream, or shows what there is
ROUTES = [
    ("GET", "/v1/models"),
    ("POST", "/v1/messages?beta=true"),
    ("OPTIONS", "/v1/anything"),
    ("GET", "/v1/..%2fx"),
    ("POST", "/openai/v1/chat/completions"),
    ("POST", "/openai/v1/responses"),
    ("GET", "/openai/v1/responses/resp_1"),
    ("GET", "/openai/v1/models"),
    ("GET", "/openai/v1/models/claude-sonnet-5-5"),
    ("GET", "/nowhere"),
    ("GET", "/openai/nowhere"),
]


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
async def test_unbounded_head_is_refused_or_cut(head: bytes, scene: Scene) -> None:
    await scene.start(CLIENT_IDLE_TIMEOUT=0.5)
    client = await scene.raw()
    try:
        async with asyncio.timeout(5):
            await client.send(head)
            assert 400 <= (await client.response()).status < 500
            assert await client.read() == b""
    except (Truncated, ConnectionError):
        pass
    assert (await scene.ask(HEALTH)).status == 200
    assert scene.upstream.connections == 0


async def test_4000_header_lines_go_upstream(scene: Scene) -> None:
    scene.upstream.script(bytes_response(b"ok"))
    lines = [(f"X-{number}", "y") for number in range(2000)] + [("X-Same", "z")] * 2000
    assert (await scene.ask("/v1/x", headers=lines)).body == b"ok"
    (received,) = scene.upstream.requests
    assert received.all("X-1999") == ["y"]
    assert received.all("X-Same") == ["z"] * 2000


COSTLY = {
    "lines": b"a:\r\n" * 16_000,
    "names": b"".join(b"%x:\r\n" % number for number in range(8000)),
    "credentials": b"x-api-key: no\r\n" * 4000,
    "names in Connection": b"connection: " + b"a," * 30_000 + b"\r\n",
    "forwarded addresses": b"x-forwarded-for: 192.0.2.7, 192.0.2.8\r\n" * 1500,
    "blanks": b"x:" + b" \t" * 30_000 + b"y" + b"\t" * 1000 + b"\r\n",
}


@pytest.mark.parametrize("lines", COSTLY.values(), ids=COSTLY)
async def test_costly_headers_take_less_than_2_seconds(lines: bytes, scene: Scene) -> None:
    """Of processor time, whatever else the machine does; quadratic work would take more."""
    for path in ("/v1/x", "/openai/v1/models"):
        head = request_bytes("GET", path, token=TEST_TOKEN).removesuffix(b"\r\n")
        began = time.process_time()
        assert (await scene.ask(head + lines + b"\r\n")).status in {200, 401, 404, 431}
        assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("path", "limit"), [("/v1/messages", 500 * MB), ("/openai/v1/responses", 32 * MB)]
)
async def test_body_over_the_default_limit_is_413(path: str, limit: int, scene: Scene) -> None:
    for length in (limit + 1, 2**32 + 5, 10**18 - 1):
        headers = {"Content-Length": str(length)}
        response = await scene.ask(request_bytes("POST", path, headers, token=TEST_TOKEN))
        assert response.status == 413
        assert str(limit) in json.loads(response.body)["error"]["message"]
    headers = {"Content-Length": str(limit), "Expect": "100-continue"}
    client = await scene.send(request_bytes("POST", path, headers, token=TEST_TOKEN))
    assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")


# -- what is found out without a credential


async def test_ambiguous_path_needs_a_credential_first(scene: Scene) -> None:
    for path in ("/v1/../admin", "/openai/../v1/messages", "/health/../v1/messages", "//health"):
        for token, status in (("wrong", 401), (TEST_TOKEN, 400)):
            assert (await scene.ask(path, token=token)).status == status
    assert scene.upstream.connections == 0


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "localhost", "Origin": "null", "X-Api-Key": "anything"}],
)
async def test_foreign_page_gets_403_except_from_probes(
    headers: dict[str, str], scene: Scene
) -> None:
    """A load balancer asks under whatever name it has."""
    await scene.start(AUTH_TOKEN=None)
    client = await scene.raw()
    for method, path in (*ROUTES, ("GET", "/"), ("GET", "/ready"), ("GET", "/api/hello")):
        response = await client.ask(request_bytes(method, path, headers))
        assert not [name for name, _ in response.headers if name.lower().startswith("access-")]
        if (method, path) in ROUTES:
            check_error = openai_error if path.startswith("/openai") else anthropic_error
            check_error(response, 403, "permission_error")
        else:
            assert (response.status, response.body) == (200, b'{"status":"ok"}')
    assert scene.upstream.connections == 0
    assert (await client.ask(request_bytes("GET", "/v1/models"))).status == 200

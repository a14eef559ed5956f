"""The fixtures: what they start is real, what they see is whole, and what leaks fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import openai
import pytest
from msgspec.structs import replace

from tornadoproxy import ConfigurationError, Identity, IncomingRequest, hookimpl
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    Truncated,
    bytes_response,
    json_response,
    raw_response,
    request_bytes,
    request_record,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI
    from tornado.httpclient import AsyncHTTPClient

    from tornadoproxy.testing import Ask, OpenRaw, Proxy, Records, ScriptedUpstream, StartProxy

pytest_plugins = ["pytester"]


class NameTag:
    """A plugin that takes a header's word."""

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> Identity | None:
        name = request.headers.get("X-Name-Tag")
        return Identity(name) if name else None


async def test_anthropic_client_asks_through_the_proxy(
    anthropic_client: AsyncAnthropic, upstream: ScriptedUpstream, records: Records
) -> None:
    message = await anthropic_client.messages.create(
        model="claude-sonnet-5-5", max_tokens=100, messages=[{"role": "user", "content": "Hi"}]
    )
    assert message.content[0].type == "text"
    assert message.content[0].text.endswith("You said: Hi")
    request = upstream.requests[0]
    assert request.header("x-api-key") == TEST_UPSTREAM_KEY
    assert TEST_TOKEN not in request.raw_head.decode("latin-1")
    record = await records.finished()
    assert (record.principal, record.outcome) == ("token", "completed")
    assert records.all == [record]


async def test_openai_client_asks_through_the_proxy(openai_client: AsyncOpenAI) -> None:
    assert openai_client.api_key == TEST_TOKEN
    with pytest.raises(openai.NotFoundError) as raised:
        await openai_client.get("/no/such/route", cast_to=object)
    assert raised.value.request_id


async def test_http_client_asks_the_proxy(http_client: AsyncHTTPClient, base_url: str) -> None:
    response = await http_client.fetch(f"{base_url}/health")
    assert response.code == 200


async def test_raw_connects_to_the_proxy_started_last(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    await start_proxy()
    await start_proxy(AUTH_TOKEN="another")
    connection = await raw()
    await connection.send(request_bytes("GET", "/v1/models", token="another"))
    assert (await connection.response()).status == 200
    assert (await records.finished()).route == "/v1/models"


def authenticators(proxy: Proxy) -> list[str]:
    """The names of the active plugins that authenticate, in the order asked."""
    return [
        info.name
        for info in proxy.plugins.describe()
        if info.state == "active" and "authenticate" in info.hooks
    ]


async def test_start_proxy_takes_plugins_and_settings(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    proxy = await start_proxy(plugins=[NameTag()], DISABLED_PLUGINS="token", AUTH_TOKEN=None)
    assert authenticators(proxy) == ["NameTag"]
    connection = await raw(proxy)
    await connection.send(request_bytes("GET", "/v1/models", {"X-Name-Tag": "Zoë".encode().hex()}))
    assert (await connection.response()).status == 200
    await connection.send(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
    assert (await connection.response()).status == 401
    assert (await records.finished(1)).principal == "5a6fc3ab"
    assert (await records.finished(2)).outcome == "denied"


async def test_start_proxy_takes_names_of_plugins(start_proxy: StartProxy) -> None:
    proxy = await start_proxy(plugins={"one": NameTag(), "two": NameTag()})
    assert authenticators(proxy) == ["one", "two", "token"]


async def test_start_proxy_raises_the_programs_errors(start_proxy: StartProxy) -> None:
    with pytest.raises(ConfigurationError, match="UPSTREAM_IDLE_TIMEOUT must be"):
        await start_proxy(UPSTREAM_IDLE_TIMEOUT="soon")
    with pytest.raises(
        ConfigurationError, match="UPSTREAM_IDLE_TIME: not a setting; correct its name"
    ):
        await start_proxy(UPSTREAM_IDLE_TIME=1)
    with pytest.raises(ConfigurationError, match="TLS_CERT is set without TLS_KEY"):
        await start_proxy(TLS_CERT=__file__)


async def test_reload(proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream) -> None:
    proxy.reload(AUTH_TOKEN="new", UPSTREAM_API_KEY="new-key")
    connection = await raw()
    await connection.send(request_bytes("GET", "/v1/models", token="new"))
    assert (await connection.response()).status == 200
    assert upstream.requests[0].header("x-api-key") == "new-key"
    await connection.send(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
    assert (await connection.response()).status == 401


async def test_cut_response_raises_truncated(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(
        sse_response([b"event: ping\ndata: {}\n\n"], end="close"),
        raw_response(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart", end="reset"),
    )
    for _ in range(2):
        connection = await raw(proxy)
        await connection.send(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
        with pytest.raises(Truncated):
            await connection.response()


async def test_upstream_sees_a_disconnect(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    upstream.script(silent_response())
    connection = await raw(proxy)
    await connection.send(request_bytes("POST", "/v1/messages", body=b"{}", token=TEST_TOKEN))
    request = await upstream.received()
    await connection.close()
    async with asyncio.timeout(1):
        await request.disconnected()
    assert (await records.finished()).outcome == "abandoned"


async def test_response_to_the_close_and_interim_are_read(
    raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(
        raw_response(
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 \r\n\r\nall", end="close"
        )
    )
    connection = await raw(upstream)
    await connection.send(request_bytes("GET", "/"))
    response = await connection.response()
    assert (response.status, response.reason, response.body) == (200, "", b"all")
    assert [(each.status, each.all("link")) for each in response.interim] == [(103, ["x"])]


async def test_half_closed_connection_gets_its_response(
    raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(bytes_response(b"still"))
    connection = await raw(upstream)
    await connection.send(request_bytes("GET", "/"))
    connection.half_close()
    assert (await connection.response()).body == b"still"
    assert await connection.read() == b""


LEAKING_TESTS = """
import asyncio
from tornadoproxy.testing import TEST_TOKEN, request_bytes, silent_response

async def test_callback(io_loop):
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)

async def test_answer(upstream, raw):
    upstream.script(lambda exchange: 1 / 0)
    connection = await raw(upstream)
    await connection.send(request_bytes("GET", "/"))
    await connection.disconnected()

async def test_garbage(upstream, raw):
    connection = await raw(upstream)
    await connection.send(b"garbage\\r\\n\\r\\n")
    await connection.disconnected()

async def numbers():
    while True:
        yield 1

async def test_leftovers_that_harm_nobody(upstream, raw, start_proxy):
    task = asyncio.ensure_future(asyncio.Event().wait())
    await anext(numbers())
    await asyncio.to_thread(int)
    await start_proxy(DRAIN_TIMEOUT=0)
    upstream.script(silent_response())
    connection = await raw()
    await connection.send(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
    await upstream.received()
"""


def test_unseen_errors_fail_their_test(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("pytest_plugins = ['tornadoproxy.testing']")
    pytester.makepyfile(LEAKING_TESTS)
    result = pytester.runpytest_subprocess(
        *("-p", "no:cacheprovider", "-rE", "-W", "error::ResourceWarning"),
        *("-W", "error::pytest.PytestUnraisableExceptionWarning"),
    )
    result.assert_outcomes(passed=4, errors=3)
    result.stdout.fnmatch_lines_random(
        [
            "*in the event loop: *ZeroDivisionError*",
            "*| ZeroDivisionError: *",
            "*| *ProtocolError: not a request line: b'garbage'",
            "ERROR *::test_callback - *",
            "ERROR *::test_answer - *",
            "ERROR *::test_garbage - *",
        ]
    )


@pytest.mark.parametrize(
    ("target", "options", "line", "body"),
    [
        ("/v1/models", {}, "GET /v1/models", b""),
        ("/v1/messages", {"document": {"a": 1}}, "POST /v1/messages", b'{"a": 1}'),
        ("/v1/x", {"method": "PUT", "body": b"raw"}, "PUT /v1/x", b"raw"),
        (request_bytes("HEAD", "/v1/models", token=TEST_TOKEN), {}, "HEAD /v1/models", b""),
    ],
)
async def test_ask_sends_one_request_and_returns_the_response(
    ask: Ask,
    proxy: Proxy,
    upstream: ScriptedUpstream,
    target: str | bytes,
    options: dict[str, Any],
    line: str,
    body: bytes,
) -> None:
    upstream.script(json_response({"ok": True}))
    response = await ask(target, to=proxy, **options)
    (received,) = upstream.requests
    assert (response.status, f"{received.method} {received.path}") == (200, line)
    assert received.body == body


def test_request_record_has_the_fields_that_were_changed() -> None:
    assert request_record(status=404, cost=7) == replace(request_record(), status=404, cost=7)

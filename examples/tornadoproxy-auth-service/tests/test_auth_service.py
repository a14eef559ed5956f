"""The plugin in a real proxy, and a scripted authentication service."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qs

import pytest

from tornadoproxy import ConfigurationError, hookimpl
from tornadoproxy.testing import (
    Ask,
    Proxy,
    Records,
    ScriptedServer,
    ScriptedUpstream,
    StartProxy,
    UpstreamExchange,
    bytes_response,
    json_response,
    silent_response,
)

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop

YES: dict[str, Any] = {"active": True, "sub": "alice"}

Start: TypeAlias = Callable[..., Awaitable[Proxy]]


@pytest.fixture
def service(io_loop: IOLoop) -> Iterator[ScriptedServer]:
    service = ScriptedServer()
    io_loop.run_sync(service.start)
    yield service
    io_loop.run_sync(service.stop)
    assert service.failures == []


@pytest.fixture
def start(start_proxy: StartProxy, service: ScriptedServer) -> Start:
    def start(**given: Any) -> Awaitable[Proxy]:  # Any: variables, and plugins
        defaults = {
            "DISABLED_PLUGINS": "token",
            "AUTH_TOKEN": None,
            "AUTH_SERVICE_URL": f"{service.url}/introspect",
            "AUTH_SERVICE_KEY": "the-proxys-own-key",
        }
        return start_proxy(**{**defaults, **given})

    return start


@pytest.fixture
def proxy(io_loop: IOLoop, start: Start) -> Proxy:
    started: Proxy = io_loop.run_sync(start)
    return started


async def test_accepted_credential_has_name_and_groups(
    proxy: Proxy, ask: Ask, service: ScriptedServer, records: Records
) -> None:
    service.script(json_response({**YES, "groups": ["staff", "research"]}))

    assert (await ask("/v1/models", token="a & b = ü")).status == 200
    record = await records.finished()
    assert (record.principal, record.groups) == ("alice", ("staff", "research"))
    (call,) = service.requests
    assert (call.method, call.target) == ("POST", "/introspect")
    assert call.header("authorization") == "Bearer the-proxys-own-key"
    assert call.header("content-type") == "application/x-www-form-urlencoded"
    assert parse_qs(call.body.decode(), encoding="latin-1") == {"token": ["a & b = ü"]}


async def test_rejected_credential_is_401_and_not_cached(
    proxy: Proxy, ask: Ask, service: ScriptedServer, upstream: ScriptedUpstream
) -> None:
    service.script(json_response({"active": False}), json_response(YES))

    refused = await ask("/v1/models", token="new")
    assert refused.status == 401
    assert json.loads(refused.body)["error"]["type"] == "authentication_error"
    assert upstream.requests == []
    assert (await ask("/v1/models", token="new")).status == 200


async def test_without_a_credential_the_service_is_not_asked(
    proxy: Proxy, ask: Ask, service: ScriptedServer
) -> None:
    assert (await ask("/v1/models", token=None)).status == 401
    assert service.requests == []


async def test_one_valid_credential_among_several_suffices(
    proxy: Proxy, ask: Ask, service: ScriptedServer
) -> None:
    service.script(json_response({"active": False}), json_response(YES))

    headers = [("x-api-key", "dummy"), ("x-api-key", "right")]
    assert (await ask("/v1/models", headers=headers, token=None)).status == 200


async def test_accepted_credential_is_cached(
    proxy: Proxy, ask: Ask, service: ScriptedServer
) -> None:
    service.script(json_response(YES), json_response({"active": False}))

    assert (await ask("/v1/models", token="alices")).status == 200
    assert (await ask("/v1/models", token="alices")).status == 200
    assert (await ask("/v1/models", token="alices ü")).status == 401, (
        "another credential is validated"
    )
    assert len(service.requests) == 2


@pytest.mark.parametrize(
    ("variables", "response"),
    [({"AUTH_SERVICE_CACHE_SECONDS": 0}, YES), ({}, {**YES, "exp": int(time.time())})],
    ids=["cache off", "exp"],
)
async def test_cache_ends_with_its_time_or_the_expiry(
    start: Start,
    ask: Ask,
    service: ScriptedServer,
    variables: dict[str, object],
    response: dict[str, Any],
) -> None:
    await start(**variables)
    service.script(json_response(response), json_response({"active": False}))

    assert (await ask("/v1/models", token="alices")).status == 200
    assert (await ask("/v1/models", token="alices")).status == 401


async def test_reload_clears_the_cache(proxy: Proxy, ask: Ask, service: ScriptedServer) -> None:
    service.script(json_response(YES), json_response({"active": False}))
    assert (await ask("/v1/models", token="alices")).status == 200

    proxy.reload()
    assert (await ask("/v1/models", token="alices")).status == 401


async def test_concurrent_requests_wait_for_one_call(
    start: Start, ask: Ask, service: ScriptedServer
) -> None:
    all_have_arrived = asyncio.Event()

    class Counter:
        seen = 0

        @hookimpl(tryfirst=True)
        def authenticate(self) -> None:
            self.seen += 1
            if self.seen == 5:
                all_have_arrived.set()

    async def slow(exchange: UpstreamExchange) -> None:
        await all_have_arrived.wait()
        await json_response(YES)(exchange)

    await start(plugins=[Counter()])
    service.script(slow)

    responses = await asyncio.gather(*(ask("/v1/models", token="alices") for _ in range(5)))
    assert [response.status for response in responses] == [200] * 5
    assert len(service.requests) == 1


async def test_timed_out_request_does_not_cancel_the_call(
    start: Start, ask: Ask, service: ScriptedServer
) -> None:
    second_has_arrived = asyncio.Event()

    class Counter:
        seen = 0

        @hookimpl(tryfirst=True)
        def authenticate(self) -> None:
            self.seen += 1
            if self.seen == 2:
                second_has_arrived.set()

    async def slow(exchange: UpstreamExchange) -> None:
        await second_has_arrived.wait()
        await json_response(YES)(exchange)

    await start(plugins=[Counter()], PLUGIN_TIMEOUT=0.3)
    service.script(slow)

    assert (await ask("/v1/models", token="alices")).status == 503
    assert (await ask("/v1/models", token="alices")).status == 200, "the call went on"
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    "response",
    [
        json_response({}, 500),
        json_response(YES, 401),
        json_response(YES, 302, {"Location": "/elsewhere"}),
        json_response({}),
        json_response([]),
        json_response({"active": True}),
        json_response({"active": True, "sub": ""}),
        json_response({"active": True, "sub": 5}),
        json_response({**YES, "active": "false"}),
        json_response({**YES, "groups": "interns"}),
        json_response({**YES, "groups": ["interns", 7]}),
        json_response({**YES, "groups": [""]}),
        json_response({**YES, "exp": "tomorrow"}),
        bytes_response(b"<html>"),
    ],
)
async def test_invalid_response_rejects_the_request(
    proxy: Proxy, ask: Ask, service: ScriptedServer, upstream: ScriptedUpstream, response: Any
) -> None:
    service.script(response, json_response(YES))

    refused = await ask("/v1/models", token="alices")
    assert refused.status == 503
    assert json.loads(refused.body)["error"]["type"] == "overloaded_error"
    assert upstream.requests == []


async def test_service_that_is_down_rejects_the_request(
    proxy: Proxy, ask: Ask, service: ScriptedServer, upstream: ScriptedUpstream
) -> None:
    await service.stop()

    assert (await ask("/v1/models", token="alices")).status == 503
    assert upstream.requests == []


async def test_hanging_service_rejects_the_request_in_time(
    start: Start, ask: Ask, service: ScriptedServer, upstream: ScriptedUpstream
) -> None:
    await start(AUTH_SERVICE_TIMEOUT=0.2)
    service.script(silent_response())

    assert (await ask("/v1/models", token="alices")).status == 503
    assert upstream.requests == []
    await service.all_closed()


async def test_without_a_url_the_plugin_is_inactive(start: Start) -> None:
    proxy = await start(DISABLED_PLUGINS=None, AUTH_SERVICE_URL=None, AUTH_SERVICE_KEY=None)

    states = {info.name: info.state for info in proxy.plugins.describe()}
    assert states["auth_service"] == "inactive"


async def test_invalid_url_is_refused(start: Start) -> None:
    with pytest.raises(ConfigurationError, match="AUTH_SERVICE_URL must begin with https://"):
        await start(AUTH_SERVICE_URL="login.example.com")

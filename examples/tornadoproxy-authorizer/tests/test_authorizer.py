"""The plugin in a real proxy, with an authenticator that accepts any name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

import pytest

from tornadoproxy import AuthenticationFailed, Identity, IncomingRequest, Outcome, hookimpl
from tornadoproxy.testing import (
    OpenRaw,
    Proxy,
    Records,
    ScriptedUpstream,
    StartProxy,
    error_response,
    event,
    request_bytes,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from tornado.httpclient import AsyncHTTPClient, HTTPResponse

SONNET, OPUS = "claude-sonnet-5-5", "claude-opus-5-5"
MODELS = "interns=claude-haiku-*|claude-sonnet-* staff=claude-opus-*"

Ask: TypeAlias = "Callable[..., Awaitable[HTTPResponse]]"


class Names:
    """An authenticator: the credential ``alice:staff:research`` is Alice, in two groups."""

    @hookimpl(tryfirst=True)
    def authenticate(self, request: IncomingRequest) -> Identity:
        for candidate in request.candidates():
            name, *groups = candidate.reveal().decode().split(":")
            return Identity(name, groups=tuple(groups))
        raise AuthenticationFailed("Say who you are.")


@pytest.fixture
def start(start_proxy: StartProxy) -> Callable[..., Awaitable[Proxy]]:
    return lambda **variables: start_proxy(plugins=[Names()], **variables)


@pytest.fixture
def ask(http_client: AsyncHTTPClient) -> Ask:
    def ask(
        proxy: Proxy,
        who: str,
        path: str = "/v1/messages",
        model: str | None = SONNET,
        max_tokens: int = 100,
        **fields: object,
    ) -> Awaitable[HTTPResponse]:
        message = {"role": "user", "content": "Hello"}
        body = {"model": model, "max_tokens": max_tokens, "messages": [message], **fields}
        return http_client.fetch(
            proxy.url + path,
            method="POST" if model else "GET",
            headers={"x-api-key": who, "anthropic-version": "2023-06-01"},
            body=json.dumps(body) if model else None,
            raise_error=False,
        )

    return ask


@pytest.mark.parametrize(
    ("who", "model", "status"),
    [
        ("ann:interns", SONNET, 200),
        ("ann:interns", OPUS, 403),
        ("ann:interns:staff", OPUS, 200),
        ("ann:interns:staff", SONNET, 200),
        ("ann:interns:unheard-of", OPUS, 403),
        ("ann", SONNET, 403),
        ("ann:unheard-of", SONNET, 403),
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/openai/v1/chat/completions"])
async def test_group_may_use_its_models(
    start: Callable[..., Awaitable[Proxy]],
    ask: Ask,
    upstream: ScriptedUpstream,
    path: str,
    who: str,
    model: str,
    status: int,
) -> None:
    proxy = await start(GROUP_MODELS=MODELS)

    response = await ask(proxy, who, path, model)
    assert response.code == status
    assert len(upstream.requests) == (status == 200)
    if status == 403:
        error = json.loads(response.body)["error"]
        assert error["type"] == "permission_error"
        assert model in error["message"]


@pytest.mark.parametrize("fallbacks", ["default", [{"model": OPUS}]])
async def test_fallback_to_another_model_is_rejected(
    start: Callable[..., Awaitable[Proxy]], ask: Ask, fallbacks: object
) -> None:
    proxy = await start(GROUP_MODELS=MODELS)

    assert (await ask(proxy, "ann:interns", fallbacks=fallbacks)).code == 403


async def test_group_star_is_everybody_else(
    start: Callable[..., Awaitable[Proxy]], ask: Ask
) -> None:
    proxy = await start(GROUP_MODELS=f"{MODELS} *=claude-sonnet-5-5")

    assert (await ask(proxy, "ann:unheard-of", model=SONNET)).code == 200
    assert (await ask(proxy, "ann:unheard-of", model=OPUS)).code == 403
    assert (await ask(proxy, "ann:staff", model=SONNET)).code == 403


@pytest.mark.parametrize(
    ("path", "model", "status"),
    [
        ("/v1/messages/batches", OPUS, 403),
        ("/v1/complete", OPUS, 403),
        ("/v1/something/new", OPUS, 403),
        ("/v1/messages/count_tokens", OPUS, 200),
        ("/v1/models", None, 200),
        ("/v1/messages/batches/msgbatch_unheard-of", None, 404),
    ],
)
async def test_request_without_a_known_model(
    start: Callable[..., Awaitable[Proxy]],
    ask: Ask,
    upstream: ScriptedUpstream,
    path: str,
    model: str | None,
    status: int,
) -> None:
    proxy = await start(GROUP_MODELS=MODELS)
    if path.endswith("unheard-of"):
        upstream.script(error_response(404, "not_found_error", "there is no such batch"))

    assert (await ask(proxy, "ann:interns", path, model)).code == status
    assert len(upstream.requests) == (status != 403)


async def test_max_tokens_above_the_limit_is_rejected(
    start: Callable[..., Awaitable[Proxy]], ask: Ask, upstream: ScriptedUpstream
) -> None:
    proxy = await start(MAX_TOKENS_CEILING=1000)

    refused = await ask(proxy, "ann", max_tokens=1001)
    error = json.loads(refused.body)["error"]
    assert (refused.code, error["type"]) == (400, "invalid_request_error")
    assert "at most 1000" in error["message"]
    assert upstream.requests == []
    assert (await ask(proxy, "ann", max_tokens=1000)).code == 200


async def test_requests_in_flight_are_limited(
    start: Callable[..., Awaitable[Proxy]], ask: Ask, upstream: ScriptedUpstream
) -> None:
    proxy = await start(CONCURRENT_REQUESTS=2)
    upstream.script(silent_response(), silent_response())
    waiting = [asyncio.ensure_future(ask(proxy, "ann")) for _ in range(2)]
    await upstream.received(2)

    refused = await ask(proxy, "ann")
    assert (refused.code, refused.headers["retry-after"]) == (429, "1")
    assert json.loads(refused.body)["error"]["type"] == "rate_limit_error"
    assert (await ask(proxy, "bob")).code == 200
    await proxy.server.drain()
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("ending", [Outcome.COMPLETED, Outcome.FAILED, Outcome.ABANDONED])
async def test_place_is_freed_however_a_request_ends(
    start: Callable[..., Awaitable[Proxy]],
    ask: Ask,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    ending: Outcome,
) -> None:
    proxy = await start(CONCURRENT_REQUESTS=1)
    if ending is Outcome.FAILED:
        upstream.script(sse_response([event({"type": "ping"})], end="reset"))
    elif ending is Outcome.ABANDONED:
        upstream.script(silent_response())
    connection = await raw(proxy)
    body = json.dumps({"model": SONNET, "max_tokens": 10, "messages": [], "stream": True})
    head = request_bytes("POST", "/v1/messages", body=body.encode(), token="ann")
    await connection.send(head)
    await upstream.received()
    if ending is Outcome.ABANDONED:
        await connection.close()

    ended = await records.finished()
    assert ended.outcome is ending
    assert (await ask(proxy, "ann")).code == 200


async def test_without_a_rule_the_plugin_is_inactive(
    start: Callable[..., Awaitable[Proxy]],
) -> None:
    proxy = await start()

    states = {info.name: info.state for info in proxy.plugins.describe()}
    assert states["authorizer"] == "inactive"

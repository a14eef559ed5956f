"""Credentials: which are accepted, what reaches the upstream, and what a reload changes."""

from __future__ import annotations

from typing import Any

import pytest
from scene import Scene
from served import CHAT_BODY, CHAT_PATH, anthropic_error, openai_error

from tornadoproxy import ConfigurationError
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    Proxy,
    RawConnection,
    RawResponse,
    bytes_response,
    request_bytes,
)

Line = tuple[str, str]

API_KEY: Line = ("x-api-key", TEST_TOKEN)
BEARER: Line = ("Authorization", f"Bearer {TEST_TOKEN}")
WRONG_BEARER: Line = ("Authorization", "Bearer wrong")


async def get(client: RawConnection, page: str, *lines: Line) -> RawResponse:
    return await client.ask(request_bytes("GET", page, lines))


def is_refused(response: RawResponse) -> bool:
    """Return whether a response is the API's 401, which it is unless it is a 200."""
    if response.status == 200:
        return False
    if response.header("request-id"):
        message = anthropic_error(response, 401, "authentication_error")
    else:
        message = openai_error(response, 401, code="invalid_api_key")
    assert response.header("www-authenticate") == "Bearer"
    # Claude Code would replace the message by "Please run /login"
    assert "x-api-key" not in message.lower()
    return True


# -- what is accepted


@pytest.mark.parametrize("page", ["/v1/models", "/openai/v1/models"])
async def test_only_the_token_is_accepted(page: str, proxy: Proxy, scene: Scene) -> None:
    client = await scene.raw()
    accepted: list[list[Line]] = [
        [("authorization", f"  bEaReR   {TEST_TOKEN} \t ")],
        [("x-api-key", " "), BEARER],
        [API_KEY, WRONG_BEARER],
        [("x-api-key", "dummy"), API_KEY],
    ]
    for lines in accepted:
        assert not is_refused(await get(client, page, *lines)), lines
    connections = scene.upstream.connections
    refused: list[list[Line]] = [
        *([], [("Authorization", TEST_TOKEN)], [("x-api-key", TEST_TOKEN[:-1])]),
        *([("x-api-key", TEST_UPSTREAM_KEY)], [("x-api-key", "wrong"), BEARER]),
    ]
    for lines in refused:
        assert is_refused(await get(client, page, *lines)), lines
    assert is_refused(await get(client, f"{page}?x-api-key={TEST_TOKEN}&key={TEST_TOKEN}"))
    await scene.records.finished(10)
    told = [(each.status, each.outcome, each.principal) for each in scene.records.all]
    assert told == [(200, "completed", "token")] * 4 + [(401, "denied", None)] * 6
    assert scene.upstream.connections == connections


@pytest.mark.parametrize(
    ("lines", "retry"),
    [
        ([], "false"),
        ([WRONG_BEARER], "false"),
        ([("x-api-key", "wrong")], "false"),
        ([("x-api-key", " "), WRONG_BEARER], "false"),
        # of a key helper, which Claude Code runs again only if the 401 may be retried
        ([("x-api-key", "wrong"), WRONG_BEARER], None),
    ],
)
async def test_401_forbids_retry_except_to_key_helper(
    lines: list[Line], retry: str | None, proxy: Proxy, scene: Scene
) -> None:
    response = await get(await scene.raw(), "/v1/models", *lines)
    assert is_refused(response)
    assert response.header("x-should-retry") == retry


# -- what reaches the upstream

PRESENTED: list[list[Line]] = [
    [API_KEY, ("Authorization", "Basic theirs")],
    [("x-api-key", "theirs"), ("X-API-Key", TEST_TOKEN), ("x-api-key", "")],
    [BEARER, BEARER, ("Connection", "x-api-key, authorization, keep-alive")],
]
OTHERS: list[Line] = [("Cookie", "session=theirs"), ("Proxy-Authorization", "Basic theirs")]


@pytest.mark.parametrize(
    ("variables", "credential"),
    [
        ({"UPSTREAM_AUTH_SCHEME": "x-api-key"}, [("x-api-key", TEST_UPSTREAM_KEY)]),
        ({"UPSTREAM_AUTH_SCHEME": "bearer"}, [("authorization", f"Bearer {TEST_UPSTREAM_KEY}")]),
        ({"UPSTREAM_API_KEY": None}, []),
    ],
)
async def test_upstream_gets_only_the_proxys_credential(
    variables: dict[str, Any], credential: list[Line], scene: Scene
) -> None:
    await scene.start(**variables)
    scene.upstream.script(*[bytes_response(b"{}")] * (2 * len(PRESENTED) + 1))
    for lines in PRESENTED:
        headers = [*lines, *OTHERS]
        await scene.ask("/v1/models", headers=headers, token=None)
        await scene.ask(CHAT_PATH, headers=headers, body=CHAT_BODY, token=None)
    await scene.ask("/openai/v1/models", headers=OTHERS)

    assert len(scene.upstream.requests) == 2 * len(PRESENTED) + 1
    names = {"x-api-key", "authorization", "proxy-authorization", "cookie"}
    for received in scene.upstream.requests:
        sent = [(name.lower(), value) for name, value in received.headers if name.lower() in names]
        assert sent == credential, received
        for theirs in (TEST_TOKEN, "theirs"):
            assert theirs.encode() not in received.raw_head


# -- reloads; tests/server/test_runner.py has those that are accepted


async def test_refused_reload_changes_nothing(scene: Scene) -> None:
    new = {"AUTH_TOKEN": "the-new-token", "UPSTREAM_API_KEY": "the-new-key"}
    proxy = await scene.start()
    with pytest.raises(ConfigurationError, match="ALLOW_ANONYMOUS contradicts the token"):
        proxy.reload(ALLOW_ANONYMOUS="yes", **new)
    for token, status in ((TEST_TOKEN, 200), ("the-new-token", 401)):
        assert (await scene.ask("/v1/models", token=token)).status == status
    proxy.reload(**new)
    assert (await scene.ask("/v1/models", token="the-new-token")).status == 200
    keys = [received.header("x-api-key") for received in scene.upstream.requests]
    assert keys == [TEST_UPSTREAM_KEY, "the-new-key"]

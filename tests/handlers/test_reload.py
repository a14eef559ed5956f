"""Tokens and keys that a reload changes, and reloads that are refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from served import EVENT_STREAM, EVENTS

from tornadoproxy import ConfigurationError, Settings, hookimpl
from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY, request_bytes, response_head

if TYPE_CHECKING:
    from pathlib import Path

    from scene import Scene

    from tornadoproxy.testing import (
        Proxy,
        RawConnection,
        UpstreamExchange,
    )


async def status(client: RawConnection, token: str) -> int:
    """Return the status of the response to a request with this token."""
    await client.send(request_bytes("GET", "/v1/models", {"x-api-key": token}))
    return (await client.response()).status


async def test_reload_changes_tokens_and_key_during_stream(proxy: Proxy, scene: Scene) -> None:
    first, *rest = EVENTS
    may_go_on = asyncio.Event()

    async def slow_stream(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.send(response_head(200, EVENT_STREAM))
        await exchange.chunk(first)
        await may_go_on.wait()
        await exchange.chunk(b"".join(rest))
        await exchange.last_chunk()

    scene.upstream.script(slow_stream)
    streaming, other = await scene.raw(), await scene.raw()
    await streaming.send(request_bytes("GET", "/v1/messages", token=TEST_TOKEN))
    assert (await streaming.head()).status == 200
    assert await streaming.chunk() == first

    proxy.reload(AUTH_TOKEN="the-new-token", UPSTREAM_API_KEY="the-new-key")

    assert await status(other, TEST_TOKEN) == 401
    assert await status(other, "the-new-token") == 200
    may_go_on.set()
    assert await streaming.chunk() == b"".join(rest)
    assert await streaming.chunk() == b""
    assert (await scene.records.finished(3)).outcome == "completed"
    assert await status(streaming, TEST_TOKEN) == 401, "the connection stays open"
    keys = [received.header("x-api-key") for received in scene.upstream.requests]
    assert keys == [TEST_UPSTREAM_KEY, "the-new-key"]


async def test_reload_reads_files_of_tokens_and_key(scene: Scene, tmp_path: Path) -> None:
    tokens, key = tmp_path / "tokens", tmp_path / "key"
    tokens.write_text("first-token\n")
    key.write_text("first-key\n")
    proxy = await scene.start(
        AUTH_TOKEN=None, AUTH_TOKEN_FILE=tokens, UPSTREAM_API_KEY=None, UPSTREAM_API_KEY_FILE=key
    )
    client = await scene.raw()
    assert await status(client, "first-token") == 200

    tokens.write_text("first-token second-token\n")
    key.write_text("second-key\n")
    proxy.reload()

    for token in ("first-token", "second-token"):
        assert await status(client, token) == 200
    keys = [received.header("x-api-key") for received in scene.upstream.requests]
    assert keys == ["first-key", "second-key", "second-key"]


class RefusesReload:
    """Accepts the settings at start, refuses the first reload, and accepts those after it."""

    def __init__(self) -> None:
        self.asked = 0

    @hookimpl(trylast=True)
    def configure(self, settings: Settings) -> None:
        self.asked += 1
        if self.asked == 2:
            raise ConfigurationError("MOOD has changed: wait")


NEW = {"AUTH_TOKEN": "the-new-token", "UPSTREAM_API_KEY": "the-new-key"}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"AUTH_TOKEN": ""}, "AUTH_TOKEN is set but empty"),
        ({"UPSTREAM_API_KEY": "two words"}, "UPSTREAM_API_KEY must be one value"),
        ({"ALLOW_ANONYMOUS": "yes"}, "ALLOW_ANONYMOUS contradicts the token"),
        ({}, "MOOD has changed: wait"),
    ],
)
async def test_refused_reload_changes_nothing(
    changes: dict[str, str], fault: str, scene: Scene
) -> None:
    proxy = await scene.start(plugins={} if changes else {"zz_last": RefusesReload()})
    with pytest.raises(ConfigurationError, match=f"^{fault}"):
        proxy.reload(**{**NEW, **changes})

    client = await scene.raw()
    assert await status(client, TEST_TOKEN) == 200
    for token in ("the-new-token", ""):
        assert await status(client, token) == 401
    proxy.reload(**NEW)
    assert await status(client, "the-new-token") == 200
    keys = [received.header("x-api-key") for received in scene.upstream.requests]
    assert keys == [TEST_UPSTREAM_KEY, "the-new-key"]

"""Canaries in the objects and tracebacks of the process."""

from __future__ import annotations

import gc
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from canaries import (
    CHAT,
    COLLECTOR_KEY,
    COOKIE,
    CREDENTIALS,
    EGRESS_PASSWORD,
    EVERYTHING,
    GUESS,
    KEY,
    MESSAGE,
    NEW_TOKEN,
    OTHER_TOKEN,
    PLUGINS_SETTINGS,
    QUERY,
    STREAM,
    TOKEN,
    found,
    key_of,
)

import tornadoproxy.handlers.exchange_handler
from tornadoproxy import Setting, hookimpl, parsers
from tornadoproxy.testing import (
    ReceivedRequest,
    ScriptedServer,
    ScriptedUpstream,
    event,
    json_response,
    request_bytes,
    silent_response,
    sse_response,
)
from tornadoproxy.upstream.client import UpstreamClient

if TYPE_CHECKING:
    import pytest

    from tornadoproxy.testing import OpenRaw, Records, StartProxy
    from tornadoproxy.upstream.call import Call, Receiver, UpstreamRequest


class Passphrase:
    """Declares a secret that is plain text."""

    @hookimpl
    def declare_settings(self) -> list[Setting[str]]:
        return [Setting("PASSPHRASE", parsers.text, default="", help="What it is.", secret=True)]


async def test_repr_of_every_object_shows_no_canary(
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every one that lives while requests are in flight: settings, server, plugins, exchanges …"""
    monkeypatch.chdir(tmp_path)
    key = key_of("ada", tmp_path, capfd)
    collector = ScriptedServer()
    await collector.start()
    collector.script(json_response({}), json_response({}))
    sent: list[UpstreamRequest] = []  # they live but for a moment
    send = UpstreamClient.send

    def keep_and_send(client: UpstreamClient, request: UpstreamRequest, receiver: Receiver) -> Call:
        sent.append(request)
        return send(client, request, receiver)

    monkeypatch.setattr(UpstreamClient, "send", keep_and_send)
    proxy = await start_proxy(
        AUTH_TOKEN=f"{TOKEN} {OTHER_TOKEN}",
        UPSTREAM_API_KEY=KEY,
        HTTPS_PROXY=f"http://user:{EGRESS_PASSWORD}@127.0.0.1:9",
        PASSPHRASE=NEW_TOKEN,
        plugins=[Passphrase()],
        **{**PLUGINS_SETTINGS, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url},
    )
    upstream.script(
        sse_response([event({"type": "ping"})], end="hang"),
        *(silent_response(), silent_response(), json_response({})),
    )
    first, second, third, fourth, fifth = [await raw() for _ in range(5)]
    target = f"/v1/messages?key={QUERY}"
    cookie = [("Cookie", COOKIE)]
    await first.send(request_bytes("POST", target, cookie, STREAM, token=TOKEN))
    await first.head()
    await second.send(request_bytes("POST", target, cookie, MESSAGE, token=key))
    await upstream.received(2)
    chat = f"/openai/v1/chat/completions?key={QUERY}"
    await fifth.send(request_bytes("POST", chat, cookie, json.dumps(CHAT).encode(), token=TOKEN))
    await upstream.received(3)
    await third.send(request_bytes("GET", target, cookie, token=TOKEN))
    await third.response()
    await fourth.send(request_bytes("GET", target, cookie, token=GUESS))
    await fourth.response()
    await records.finished(2)

    ours = [
        each
        for each in gc.get_objects()
        if str(type(each).__module__).partition(".")[0].startswith("tornadoproxy")
    ]
    kinds = {type(each).__name__ for each in ours}
    for kind in (
        *("Settings", "Server", "Gateway", "Plugins", "UpstreamClient", "Connector", "Call"),
        *("UpstreamConnection", "UpstreamRequest", "RelayHandler", "Exchange", "IncomingRequest"),
        *("RequestRecord", "TokenAuthenticator", "EgressProxy", "Proxy", "ClientConnection"),
        *("ChatHandler", "Translation", "Gate", "LiveKey", "AdminKey", "AdminKeys", "Keeper"),
        *("SpendLimitsApi", "OpenTelemetry", "Tracing", "Figures", "Database", "Permits"),
    ):
        assert kind in kinds
    for each in ours:
        for shown in (repr(each), str(each)):
            # the scripted upstream tells a test what it was asked, query and all
            lenient = isinstance(each, ReceivedRequest)
            canaries = CREDENTIALS if lenient else EVERYTHING
            assert found([*canaries, key], shown.encode()) == [], type(each)
    assert found(EVERYTHING, repr(vars(proxy.server)).encode()) == []
    await proxy.server.drain()
    assert collector.requests[0].header("x-key") == COLLECTOR_KEY
    await collector.stop()


async def test_traceback_of_a_bug_shows_no_canary(
    start_proxy: StartProxy,
    raw: OpenRaw,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(target: str) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(tornadoproxy.handlers.exchange_handler, "check_target", broken)
    caplog.set_level(logging.DEBUG)
    await start_proxy(AUTH_TOKEN=TOKEN, UPSTREAM_API_KEY=KEY)

    for path in (f"/v1/messages?key={QUERY}", f"/openai/x?key={QUERY}"):
        client = await raw()
        await client.send(request_bytes("POST", path, [("Cookie", COOKIE)], MESSAGE, token=TOKEN))
        response = await client.response()
        assert response.status == 500
        assert found(EVERYTHING, response.raw_head + response.body) == []
        assert b"mistake" not in response.body

    assert "RuntimeError: a mistake" in caplog.text
    assert found(EVERYTHING, caplog.text.encode()) == []

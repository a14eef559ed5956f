"""Canaries in what the program prints when it starts or does not, in its objects and tracebacks."""

from __future__ import annotations

import base64
import gc
import json
import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from canaries import (
    ADMIN_KEY,
    CHAT,
    COLLECTOR_KEY,
    COOKIE,
    CREDENTIALS,
    EGRESS_PASSWORD,
    EVERYTHING,
    GUESS,
    KEY,
    MESSAGE,
    NEW_KEY,
    NEW_TOKEN,
    OTHER_TOKEN,
    PLUGINS_SETTINGS,
    QUERY,
    READ_KEY,
    STREAM,
    TOKEN,
    found,
    key_of,
)

import tornadoproxy.handlers.exchange_handler
from tornadoproxy.testing import (
    TEST_TOKEN,
    ReceivedRequest,
    ScriptedServer,
    event,
    json_response,
    raw_response,
    request_bytes,
    silent_response,
    sse_response,
)
from tornadoproxy.upstream.client import UpstreamClient

if TYPE_CHECKING:
    from pathlib import Path

    from in_process import Commands
    from scene import Scene

    from tornadoproxy.upstream.call import Call, Receiver, UpstreamRequest


def test_found_sees_a_canary_in_each_encoding() -> None:
    """Were it not, none of the tests below would mean anything."""
    basic = base64.b64encode(f"user:{EGRESS_PASSWORD}".encode())

    assert found([EGRESS_PASSWORD], b"Proxy-Authorization: Basic " + basic) == [EGRESS_PASSWORD]
    assert found([TOKEN], f"?key={quote(TOKEN, safe='')}".encode()) == [TOKEN]
    assert found([TOKEN], json.dumps({"key": TOKEN}).encode()) == [TOKEN]
    assert found([TOKEN], b"KeyError: " + repr(TOKEN).encode()) == [TOKEN]
    assert found(EVERYTHING, b"nothing to see here") == []


GOOD = {"AUTH_TOKEN": TOKEN, "UPSTREAM_API_KEY": KEY, "PORT": "0"}

BAD: list[dict[str, str]] = [
    {"AUTH_TOKEN": f"{TOKEN}\x01"},
    {"UPSTREAM_API_KEY": f"{KEY} {NEW_KEY}"},
    {"AUTH_TOKEN_FILE": TOKEN},
    {"UPSTREAM_API_KEY_FILE": "canaries"},  # which holds two
    {"HTTPS_PROXY": f"socks5://user:{EGRESS_PASSWORD}@proxy:1"},
    {"UPSTREAM_BASE_URL": f"https://user:{KEY}@up.example"},
    {"UPSTREAM_BASE_URL": f"https://up.example/?key={KEY}"},
    {"BUDGETS_ADMIN_KEY": ADMIN_KEY},  # without BUDGETS_DB
    {"BUDGETS_DB": "b.db", "BUDGETS_ADMIN_KEY": f"ops={ADMIN_KEY} ops={READ_KEY}"},
    {"BUDGETS_DB": "/", "BUDGETS_ADMIN_KEY": ADMIN_KEY},
    {"OTEL_EXPORTER_OTLP_HEADERS": f"x-key={COLLECTOR_KEY}%0A{KEY}"},
    {"OTEL_TRACES": "yes", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://u:{COLLECTOR_KEY}@c"},
]

BAD_ARGUMENTS = [
    *(["--auth-token", TOKEN], [f"--auth-token={TOKEN}"], [f"--{TOKEN}"], [f"-k{TOKEN}"]),
    *([TOKEN], ["check", TOKEN], ["--upstream-base-url", f"https://u:{KEY}@up.example"]),
    ["--otel-exporter-otlp-headers", f"x-key={COLLECTOR_KEY}"],
]

BAD_FILES = [
    f"AUTH_TOKENS={TOKEN}\n",
    f"{TOKEN}\n",
    f"AUTH_TOKEN='{TOKEN}\nUPSTREAM_API_KEY={KEY}\n",
    f"export {TOKEN}\n",
]


@pytest.mark.parametrize(
    ("arguments", "variables", "file"),
    [
        *(((), variables, None) for variables in BAD),
        *((arguments, {}, None) for arguments in BAD_ARGUMENTS),
        *(((), {}, file) for file in BAD_FILES),
    ],
)
def test_wrong_setting_shows_no_canary(
    arguments: list[str], variables: dict[str, str], file: str | None, commands: Commands
) -> None:
    (commands.directory / "canaries").write_text(f"{KEY} {NEW_KEY}")
    done = commands.run(*arguments, file=file, **{**GOOD, **variables})
    assert (done.status, done.output) == (2, "")
    assert all(line.startswith("tornadoproxy: ") for line in done.errors.splitlines())
    assert done.errors.strip() != ""
    assert found(EVERYTHING, done.errors.encode()) == []


def test_warning_of_ignored_names_shows_no_canary(commands: Commands) -> None:
    done = commands.run("check", file=f"{TOKEN}={KEY}\n", **GOOD, **{f"{TOKEN}_NAME": KEY})
    assert done.status == 0
    assert "1 name that is no setting" in done.errors
    assert found(EVERYTHING, f"{done.output}{done.errors}".encode()) == []


@pytest.mark.parametrize("command", ["check", "plugins", "token", "--help"])
def test_command_shows_no_canary(command: str, commands: Commands) -> None:
    done = commands.run(
        command,
        AUTH_TOKEN=f"{TOKEN} {OTHER_TOKEN}",
        UPSTREAM_API_KEY=KEY,
        HTTPS_PROXY=f"http://user:{EGRESS_PASSWORD}@proxy.example:3128",
        ANTHROPIC_API_KEY=NEW_KEY,
        ANTHROPIC_AUTH_TOKEN=NEW_TOKEN,
        **PLUGINS_SETTINGS,
    )
    assert (done.status, done.errors) == (0, "")
    if command in ("check", "plugins"):
        for name in ("keys", "budgets", "otel"):
            assert name in done.output
    assert done.output.strip() != ""
    assert found(EVERYTHING, done.output.encode()) == []


async def test_repr_of_every_object_shows_no_canary(
    scene: Scene,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every one that lives while requests are in flight: settings, server, plugins, exchanges …"""
    monkeypatch.chdir(tmp_path)
    key = key_of("ada", tmp_path, capfd)
    sent: list[UpstreamRequest] = []  # they live but for a moment
    send = UpstreamClient.send

    def keep_and_send(client: UpstreamClient, request: UpstreamRequest, receiver: Receiver) -> Call:
        sent.append(request)
        return send(client, request, receiver)

    monkeypatch.setattr(UpstreamClient, "send", keep_and_send)
    async with ScriptedServer() as collector:
        collector.script(json_response({}), json_response({}))
        proxy = await scene.start(
            AUTH_TOKEN=f"{TOKEN} {OTHER_TOKEN}",
            UPSTREAM_API_KEY=KEY,
            HTTPS_PROXY=f"http://user:{EGRESS_PASSWORD}@127.0.0.1:9",
            **{**PLUGINS_SETTINGS, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url},
        )
        scene.upstream.script(
            sse_response([event({"type": "ping"})], end="hang"),
            *(silent_response(), silent_response(), json_response({})),
        )
        messages, chat = f"/v1/messages?key={QUERY}", f"/openai/v1/chat/completions?key={QUERY}"
        cookie = [("Cookie", COOKIE)]
        streaming = await scene.send(request_bytes("POST", messages, cookie, STREAM, token=TOKEN))
        await streaming.head()
        await scene.send(request_bytes("POST", messages, cookie, MESSAGE, token=key))
        await scene.upstream.received(2)
        body = json.dumps(CHAT).encode()
        await scene.send(request_bytes("POST", chat, cookie, body, token=TOKEN))
        await scene.upstream.received(3)
        await scene.ask(request_bytes("GET", messages, cookie, token=TOKEN))
        await scene.ask(request_bytes("GET", messages, cookie, token=GUESS))
        await scene.records.finished(2)

        objects = gc.get_objects()
        ours = [each for each in objects if str(type(each).__module__).startswith("tornadoproxy")]
        for kind in (
            *("Settings", "Server", "Gateway", "Plugins", "UpstreamClient", "Connector", "Call"),
            *("UpstreamConnection", "UpstreamRequest", "RelayHandler", "Exchange"),
            *("RequestRecord", "TokenAuthenticator", "EgressProxy", "Proxy", "ClientConnection"),
            *("ChatHandler", "Translation", "Gate", "LiveKey", "AdminKey", "AdminKeys", "Keeper"),
            *("SpendLimitsApi", "OpenTelemetry", "Tracing", "Figures", "Database", "Permits"),
        ):
            assert kind in {type(each).__name__ for each in ours}
        for each in ours:
            # the scripted upstream tells a test what it was asked, query and all
            canaries = CREDENTIALS if isinstance(each, ReceivedRequest) else EVERYTHING
            assert found([*canaries, key], f"{each!r}{each}".encode()) == [], type(each)
        assert found(EVERYTHING, repr(vars(proxy.server)).encode()) == []
        await proxy.server.drain()
        assert collector.requests[0].header("x-key") == COLLECTOR_KEY


async def test_traceback_of_a_bug_shows_no_canary(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(target: str) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(tornadoproxy.handlers.exchange_handler, "check_target", broken)
    caplog.set_level(logging.DEBUG)
    await scene.start(AUTH_TOKEN=TOKEN, UPSTREAM_API_KEY=KEY)

    for path in (f"/v1/messages?key={QUERY}", f"/openai/x?key={QUERY}"):
        cookie = [("Cookie", COOKIE)]
        response = await scene.ask(request_bytes("POST", path, cookie, MESSAGE, token=TOKEN))
        assert response.status == 500
        assert found(EVERYTHING, response.raw_head + response.body) == []
        assert b"mistake" not in response.body

    assert "RuntimeError: a mistake" in caplog.text
    assert found(EVERYTHING, caplog.text.encode()) == []


async def test_canary_of_egress_proxy_stays_with_it(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Although that one shows its password wherever it can."""
    caplog.set_level(logging.DEBUG)
    credentials = base64.b64encode(f"user:{EGRESS_PASSWORD}".encode())
    echo = b"Proxy-Authenticate: Basic " + credentials + b"\r\nContent-Length: 0\r\n\r\n"
    async with ScriptedServer() as egress:
        egress.script(
            raw_response(b"HTTP/1.1 407 " + credentials + b"\r\n" + echo, end="close"),
            raw_response(credentials + b"\r\n\r\n", end="close"),
            # where TLS ought to begin
            raw_response(b"HTTP/1.1 200 OK\r\n\r\n" + credentials, end="close"),
        )
        await scene.start(
            UPSTREAM_BASE_URL="https://upstream.example",
            UPSTREAM_API_KEY=KEY,
            HTTPS_PROXY=f"http://user:{EGRESS_PASSWORD}@127.0.0.1:{egress.port}",
        )
        for count in range(1, 4):
            response = await scene.ask("/v1/models")
            assert response.status == 502
            assert found([EGRESS_PASSWORD], response.raw_head + response.body) == []
            received = await egress.received(count)
            assert received.header("proxy-authorization") == f"Basic {credentials.decode()}"
            assert found([KEY, TEST_TOKEN], received.raw_head) == []
    assert found([EGRESS_PASSWORD], caplog.text.encode()) == []

"""Canaries in what the program prints when it starts or does not, in its objects and tracebacks."""

from __future__ import annotations

import base64
import gc
import json
import logging
from pathlib import Path
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
from tornadoproxy import Setting, hookimpl, parsers
from tornadoproxy.testing import (
    TEST_TOKEN,
    ReceivedRequest,
    ScriptedServer,
    ScriptedUpstream,
    event,
    json_response,
    raw_response,
    request_bytes,
    silent_response,
    sse_response,
)
from tornadoproxy.upstream.client import UpstreamClient

if TYPE_CHECKING:
    from in_process import Commands

    from tornadoproxy.testing import Ask, OpenRaw, Records, StartProxy
    from tornadoproxy.upstream.call import Call, Receiver, UpstreamRequest


def test_found_sees_a_canary_in_each_encoding() -> None:
    """Were it not, none of the tests below would mean anything."""
    basic = base64.b64encode(f"user:{EGRESS_PASSWORD}".encode())

    assert found([EGRESS_PASSWORD], b"Proxy-Authorization: Basic " + basic) == [EGRESS_PASSWORD]
    assert found([TOKEN], f"?key={quote(TOKEN, safe='')}".encode()) == [TOKEN]
    assert found([TOKEN], json.dumps({"key": TOKEN}).encode()) == [TOKEN]
    assert found([TOKEN], b"KeyError: " + repr(TOKEN).encode()) == [TOKEN]
    assert found(EVERYTHING, b"nothing to see here") == []


def secret_files(directory: Path) -> dict[str, Path]:
    """Files that hold canaries where something else ought to be."""
    texts = {
        "two.txt": f"{KEY} {NEW_KEY}",
        "unknown.env": f"AUTH_TOKENS={TOKEN}\n",
        "bare.env": f"{TOKEN}\n",
        "assignment.env": f"{TOKEN}={KEY}\n",
        "quote.env": f"AUTH_TOKEN='{TOKEN}\nUPSTREAM_API_KEY={KEY}\n",
        "blank.env": f"UPSTREAM_API_KEY={KEY} {NEW_KEY}\n",
        "export.env": f"export {TOKEN}\n",
    }
    for name, text in texts.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o600)
    return {name: directory / name for name in texts}


GOOD = {"AUTH_TOKEN": TOKEN, "UPSTREAM_API_KEY": KEY, "PORT": "0"}
BUDGETS = {"BUDGETS_DB": "budgets.db"}

BAD: list[tuple[list[str], dict[str, str]]] = [
    *(
        ([], variables)
        for variables in (
            {"AUTH_TOKEN": f"{TOKEN}\x01"},
            {"UPSTREAM_API_KEY": f"{KEY} {NEW_KEY}"},
            {"UPSTREAM_API_KEY": "", "ANTHROPIC_API_KEY": f"{KEY} {NEW_KEY}"},
            {"AUTH_TOKEN_FILE": TOKEN},
            {"UPSTREAM_API_KEY_FILE": "{two.txt}"},
            {"HTTPS_PROXY": f"socks5://user:{EGRESS_PASSWORD}@proxy:1"},
            {"https_proxy": f"http://u:{EGRESS_PASSWORD}@proxy:99999"},
            {"UPSTREAM_BASE_URL": f"https://user:{KEY}@up.example"},
            {"UPSTREAM_BASE_URL": f"https://up.example/?key={KEY}"},
            {"BUDGETS_ADMIN_KEY": ADMIN_KEY},  # without BUDGETS_DB
            {**BUDGETS, "BUDGETS_ADMIN_KEY": f"ops={TOKEN}"},
            {**BUDGETS, "BUDGETS_ADMIN_KEY": f"ops={ADMIN_KEY} ops={READ_KEY}"},
            {**BUDGETS, "BUDGETS_ADMIN_KEY": ADMIN_KEY, "BUDGETS_ADMIN_READ_KEY": ADMIN_KEY},
            {"BUDGETS_DB": "/", "BUDGETS_ADMIN_KEY": ADMIN_KEY},
            {"OTEL_EXPORTER_OTLP_HEADERS": f"x-key={COLLECTOR_KEY}%0A{KEY}"},
            {"OTEL_TRACES": "yes", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://u:{COLLECTOR_KEY}@c"},
        )
    ),
    *(
        (arguments, {})
        for arguments in (
            ["--otel-exporter-otlp-headers", f"x-key={COLLECTOR_KEY}"],
            ["--upstream-base-url", f"https://u:{KEY}@up.example"],
            *(["--auth-token", TOKEN], [f"--auth-token={TOKEN}"], [f"--{TOKEN}"], [f"-k{TOKEN}"]),
            *([TOKEN], ["check", TOKEN], ["check", "--token", TOKEN]),
            *(["--env-file", f"{{{name}.env}}"] for name in ("unknown", "bare", "quote", "export")),
        )
    ),
    (["--env-file", "{blank.env}"], {"UPSTREAM_API_KEY": ""}),
]


@pytest.mark.parametrize(("arguments", "variables"), BAD)
def test_wrong_setting_shows_no_canary(
    arguments: list[str], variables: dict[str, str], commands: Commands
) -> None:
    files = secret_files(commands.directory)

    def placed(text: str) -> str:
        return str(files[text[1:-1]]) if text[:1] == "{" else text

    environment = {**GOOD, **{key: placed(value) for key, value in variables.items()}}
    done = commands.run(*map(placed, arguments), **environment)
    assert (done.status, done.output) == (2, "")
    assert all(line.startswith("tornadoproxy: ") for line in done.errors.splitlines())
    assert done.errors.strip() != ""
    assert found(EVERYTHING, done.errors.encode()) == []


def test_warning_of_ignored_names_shows_no_canary(commands: Commands) -> None:
    ignored = secret_files(commands.directory)["assignment.env"]
    ignored.chmod(0o644)
    done = commands.run("check", "--env-file", str(ignored), **GOOD, **{f"{TOKEN}_NAME": KEY})
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


async def test_canary_of_egress_proxy_stays_with_it(
    start_proxy: StartProxy, ask: Ask, caplog: pytest.LogCaptureFixture
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
        await start_proxy(
            UPSTREAM_BASE_URL="https://upstream.example",
            UPSTREAM_API_KEY=KEY,
            HTTPS_PROXY=f"http://user:{EGRESS_PASSWORD}@127.0.0.1:{egress.port}",
        )
        for count in range(1, 4):
            response = await ask("/v1/models")
            assert response.status == 502
            assert found([EGRESS_PASSWORD], response.raw_head + response.body) == []
            received = await egress.received(count)
            assert received.header("proxy-authorization") == f"Basic {credentials.decode()}"
            assert found([KEY, TEST_TOKEN], received.raw_head) == []
    assert found([EGRESS_PASSWORD], caplog.text.encode()) == []

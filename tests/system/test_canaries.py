"""Canaries: credentials that are planted, and must turn up nowhere else.

They are looked for in what the program prints when it starts or does not, in its objects and
tracebacks, and in everything that the running program says.
"""

from __future__ import annotations

import base64
import gc
import json
import logging
import signal
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from urllib.parse import quote

import pytest
from in_process import Commands
from program import Launch, Program, install
from scene import Scene

import tornadoproxy.handlers.exchange_handler
from tornadoproxy.testing import (
    TEST_TOKEN,
    RawResponse,
    ReceivedRequest,
    ScriptedServer,
    ScriptedUpstream,
    Truncated,
    bytes_response,
    error_response,
    event,
    json_response,
    message_document,
    message_events,
    raw_response,
    request_bytes,
    silent_response,
    sse_response,
)
from tornadoproxy.upstream.call import Call, Receiver, UpstreamRequest
from tornadoproxy.upstream.client import UpstreamClient

TOKEN = "canary-token-Wq7Zr2Lx9/+"
OTHER_TOKEN = "canary-other-token-Kd83Jf0"
NEW_TOKEN = "canary-new-token-Pm55Vb1"
KEY = "canary-key-Xs49Nc6/+"
NEW_KEY = "canary-new-key-Tg12Hy8"
EGRESS_PASSWORD = "canary-egress-Bn66Rt3"
GUESS = "canary-guess-Lo01Qa7"
ADMIN_KEY = "canary-admin-key-of-32-characters-Hj45Sd6/+"
READ_KEY = "canary-read-key-of-32-characters-Yt09Bw1"
COLLECTOR_KEY = "canary-collector-Ek62Zu3"
COOKIE = "canary-cookie-Ui98Me4"
QUERY = "canary-query-Zx34Cv5"
BODY = "canary-body-Fg77Jk2"

CLIENTS = [TOKEN, OTHER_TOKEN, NEW_TOKEN, GUESS, COOKIE]  # never upstream
PLUGINS_OWN = [ADMIN_KEY, READ_KEY, COLLECTOR_KEY]
OURS = [  # never to a client
    *(TOKEN, OTHER_TOKEN, NEW_TOKEN, KEY, NEW_KEY, EGRESS_PASSWORD),
    *PLUGINS_OWN,
]
CREDENTIALS = [*OURS, GUESS, COOKIE]
EVERYTHING = [*CREDENTIALS, QUERY, BODY]  # in no log, ever

SAID = [{"role": "user", "content": BODY}]
CHAT = {"model": "claude-sonnet-5-5", "messages": SAID}
MESSAGE = json.dumps({**CHAT, "max_tokens": 40}).encode()
STREAM = MESSAGE[:-1] + b', "stream": true}'


@cache
def disguises(canary: str) -> set[bytes]:
    """The canary, and what it looks like once it has been encoded."""
    plain = canary.encode()
    return {
        plain,
        plain.hex().encode(),
        quote(canary, safe="").encode(),
        repr(canary)[1:-1].encode(),
        json.dumps(canary)[1:-1].encode(),
        json.dumps(canary)[1:-1].replace("/", "\\/").encode(),
        # base64 of what ends in it, as in Basic credentials, whatever stands before
        *(base64.b64encode(b"x" * lead + plain)[4:-4] for lead in range(3)),
    }


def found(canaries: Iterable[str], text: bytes) -> list[str]:
    """Those of the canaries that are in `text`, in whatever disguise."""
    return [canary for canary in canaries if any(each in text for each in disguises(canary))]


PLUGINS_SETTINGS = {
    "KEYS_DB": "keys.db",
    "BUDGETS_DB": "budgets.db",
    "ADMIN_KEY": f"ops={ADMIN_KEY}",
    "ADMIN_READ_KEY": READ_KEY,
    "LEDGER_DB": "ledger.db",
    "METRICS": "yes",
    "OTEL_TRACES": "yes",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
    "OTEL_EXPORTER_OTLP_HEADERS": f"x-key={COLLECTOR_KEY}",
}


def key_of(commands: Commands, *arguments: str) -> str:
    """A key that a command makes, which is shown once."""
    done = commands.run("keys", *arguments, KEYS_DB="keys.db")
    key = done.output.strip()
    assert (done.status, key[:3]) == (0, "tp-")
    assert found([key], done.errors.encode()) == []
    return key


# -- what is printed, and what objects and tracebacks show


def test_found_sees_a_canary_in_each_encoding() -> None:
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
    {"HTTPS_PROXY": f"http://user:{EGRESS_PASSWORD}@proxy:99999"},
    {"UPSTREAM_BASE_URL": f"https://user:{KEY}@up.example"},
    {"UPSTREAM_BASE_URL": f"https://up.example/?key={KEY}"},
    {"ADMIN_KEY": ADMIN_KEY},  # without a database
    {"BUDGETS_DB": "b.db", "ADMIN_KEY": f"ops={ADMIN_KEY} ops={READ_KEY}"},
    {"BUDGETS_DB": "/", "ADMIN_KEY": ADMIN_KEY},
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
    scene: Scene, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one that lives while requests are in flight: settings, server, plugins, exchanges …"""
    key = key_of(commands, "create", "--name", "ada")
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

        tracked = gc.get_objects()
        # an object that holds no container is not tracked itself
        objects = (*tracked, *gc.get_referents(*tracked))
        kinds = {*map(type, objects)}
        our_kinds = {kind for kind in kinds if str(kind.__module__).startswith("tornadoproxy")}
        ours = {id(each): each for each in objects if type(each) in our_kinds}.values()
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
    refusal = b"HTTP/1.1 407 %b\r\nProxy-Authenticate: Basic %b\r\n\r\n" % (
        credentials,
        credentials,
    )
    async with ScriptedServer() as egress:
        egress.script(raw_response(refusal, end="close"))
        await scene.start(
            UPSTREAM_BASE_URL="https://upstream.example",
            UPSTREAM_API_KEY=KEY,
            HTTPS_PROXY=f"http://user:{EGRESS_PASSWORD}@127.0.0.1:{egress.port}",
        )
        response = await scene.ask("/v1/models")
        assert response.status == 502
        assert found([EGRESS_PASSWORD], response.raw_head + response.body) == []
        (received,) = egress.requests
        assert received.header("proxy-authorization") == f"Basic {credentials.decode()}"
        assert found([KEY, TEST_TOKEN], received.raw_head) == []
    assert found([EGRESS_PASSWORD], caplog.text.encode()) == []


# -- the running program

CARELESS_PLUGIN = """
from tornadoproxy import hookimpl
from tornadoproxy_otel import spans

spans.EXPORT_TIMEOUT = 1.3  # seconds, for one retry
presented = []


@hookimpl(tryfirst=True)
def authenticate(request):
    presented[:] = [secret.reveal().decode() for secret in request.candidates()]
    boom = request.headers.get("X-Boom")
    if boom == "sync":
        raise KeyError(*presented)
    if boom == "nonsense":
        return presented[0]
    if boom == "async":
        return later()


async def later():
    try:
        raise ValueError(*presented)
    except ValueError as error:
        raise RuntimeError(f"cannot look up {presented}") from error


@hookimpl
def request_finished(record):
    raise RuntimeError(f"cannot write {presented}")


@hookimpl
def shutdown():
    raise RuntimeError(f"cannot save {presented}")
"""


class Watched:
    """A running program, and what its clients received."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.answered = b""

    async def ask(self, request: bytes) -> bytes:
        """Return its response to one request, whole or cut short, on a connection of its own."""
        client = await self.program.connect()
        try:
            response: RawResponse | None = await client.ask(request)
        except Truncated as cut:
            response = cut.response
        await client.close()
        assert response is not None
        self.answered += response.raw_head + response.body
        return response.raw_head

    async def check(
        self,
        status: int,
        method: str,
        path: str,
        token: str | None,
        lines: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> None:
        """See that it responds to a request with this status."""
        head = await self.ask(request_bytes(method, path, lines, body, token=token))
        assert b" %d " % status in head.partition(b"\r\n")[0], (method, path, body)


CALL = {"id": "call-1", "type": "function", "function": {"name": "f", "arguments": BODY}}
REFUSED_CHATS = [
    f'{{"model": "{BODY}'.encode(),
    b"\xff" + BODY.encode(),
    *(
        json.dumps({**CHAT, **wrong}).encode()
        for wrong in (
            {"model": [BODY]},
            {"messages": [{"role": BODY, "content": "Hi"}]},
            {"messages": [{"role": "user", "content": [{"type": BODY}]}]},
            {"messages": [*SAID, {"role": "assistant", "tool_calls": [CALL]}]},
            {"temperature": BODY},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": BODY}}},
        )
    ),
]

REFUSED_HEADS = [
    b"GET /v1/models?key=%(query)b HTTP/1.1\r\nHost: x\r\nX-Api-Key: %(token)b\x00\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: %(token)b@\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: %(token)b\r\n\r\n",
    b"%(token)b\r\nHost: x\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nX-Api-Key: %(token)b\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n%(body)b\r\n",
]

# what an upstream may send that shows the key it was given
UPSTREAM_FAULTS = [
    *(
        raw_response(sent % KEY.encode(), end="close")
        for sent in (
            b"you sent %b\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX-Echo: \0%b\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nfin\r\n%b\r\n",
        )
    ),
    raw_response(end="reset"),
    bytes_response(b"broken", [("Set-Cookie", f"key={KEY}")], 500),
    sse_response(message_events(message_document("Hi"))[:3], end="close"),
]


MESSAGES = f"/v1/messages?key={QUERY}"
COMPLETIONS = f"/openai/v1/chat/completions?key={QUERY}"
CHAT_BODY = json.dumps(CHAT).encode()
RESPONSES = f"/openai/v1/responses?key={QUERY}"
RESPONSE = {"model": CHAT["model"], "input": SAID}
RESPONSE_BODY = json.dumps(RESPONSE).encode()
REFUSED_RESPONSES = [
    (status, json.dumps({**RESPONSE, **fields}).encode())
    for status, fields in (
        (404, {"input": [{"type": "item_reference", "id": BODY}]}),
        (400, {"previous_response_id": BODY}),
        (400, {"input": [{"type": BODY}]}),
        (400, {"tools": [{"type": "function", "name": BODY}] * 2, "tool_choice": {"type": BODY}}),
    )
]
EVENTS = message_events(message_document())


async def go_wrong(watched: Watched, upstream: ScriptedUpstream, token: str) -> None:
    """Bring about whatever can be logged."""
    cookie = [("Cookie", COOKIE), ("Proxy-Authorization", f"Basic {COOKIE}")]
    for path, body in (
        *((MESSAGES, MESSAGE), (MESSAGES, STREAM)),
        *((COMPLETIONS, CHAT_BODY), (COMPLETIONS, json.dumps({**CHAT, "stream": True}).encode())),
        *((RESPONSES, RESPONSE_BODY), (RESPONSES, b'{"stream":true,' + RESPONSE_BODY[1:])),
    ):
        await watched.check(200, "POST", path, token, cookie, body)
    for scheme in ("X-Api-Key", "Authorization: Bearer", "Authorization: Basic"):
        name, _, kind = scheme.partition(": ")
        await watched.check(401, "POST", MESSAGES, None, [(name, f"{kind} {GUESS}")], MESSAGE)
    for status, method, path in (
        *((404, "POST", f"/nothing?key={QUERY}"), (404, "POST", f"/openai/nothing?key={QUERY}")),
        *((400, "POST", f"/v1/../admin?key={QUERY}"), (400, "POST", f"/v1/models\\?key={QUERY}")),
        (405, "FROB", MESSAGES),
    ):
        await watched.check(status, method, path, token, (), MESSAGE)
    await watched.check(413, "POST", MESSAGES, token, [("Content-Length", "2000000")])
    secrets = {b"token": token.encode(), b"query": QUERY.encode(), b"body": BODY.encode()}
    for head in REFUSED_HEADS:
        assert b" 400 " in await watched.ask(head % secrets), head
    for body in REFUSED_CHATS:
        await watched.check(400, "POST", COMPLETIONS, token, (), body)
    for status, body in REFUSED_RESPONSES:
        await watched.check(status, "POST", RESPONSES, token, (), body)
    quoting = {"type": "error", "error": {"type": "invalid_request_error", "message": BODY}}
    for begun in ([], EVENTS[:1]):
        upstream.script(sse_response([*begun, event(quoting)]))
        asked = b'{"stream":true,' + RESPONSE_BODY[1:]
        await watched.ask(request_bytes("POST", RESPONSES, body=asked, token=token))
    explained = {"type": "refusal", "explanation": BODY}
    upstream.script(
        json_response(message_document(BODY, stop_reason="refusal", stop_details=explained))
    )
    compact = RESPONSES.replace("?", "/compact?")
    await watched.check(400, "POST", compact, token, (), RESPONSE_BODY)
    for status in (400, 429, 529):
        upstream.script(error_response(status, "some_error", f"{BODY} is wrong"))
        await watched.check(status, "POST", COMPLETIONS, token, (), CHAT_BODY)
    for boom in ("sync", "async", "nonsense"):
        for presented in (token, GUESS):
            await watched.check(503, "GET", MESSAGES, presented, [("X-Boom", boom)])
    for fault in UPSTREAM_FAULTS:
        upstream.script(*[fault] * 4)
        for path, body in (
            *((MESSAGES, MESSAGE), (COMPLETIONS, CHAT_BODY)),
            *((RESPONSES, RESPONSE_BODY), (RESPONSES, b'{"stream":true,' + RESPONSE_BODY[1:])),
        ):
            await watched.ask(request_bytes("POST", path, body=body, token=token))
    upstream.script(silent_response())
    client = await watched.program.connect()
    await client.send(request_bytes("POST", MESSAGES, body=MESSAGE, token=token))
    received = await upstream.received(len(upstream.requests) + 1)
    await client.reset()
    await received.disconnected()


async def test_canaries_stay_out_of_logs_and_wrong_directions(
    upstream: ScriptedUpstream, tmp_path: Path, commands: Commands, launch: Launch
) -> None:
    """Tokens, created keys, and those of the upstream, of administrators and of the collector."""
    replaced = key_of(commands, "create", "--name", "ada")
    key = key_of(commands, "rotate", "ada")
    log, env_file = tmp_path / "access.log", tmp_path / ".env"
    admin = f"ADMIN_KEY=ops={ADMIN_KEY}"
    env_file.write_text(f"AUTH_TOKEN='{TOKEN} {OTHER_TOKEN}'\nUPSTREAM_API_KEY={KEY}\n{admin}\n")
    models, limits = "/v1/models", f"/v1/organizations/spend_limits?key={QUERY}"
    install(tmp_path, "careless", CARELESS_PLUGIN)
    in_the_file = dict.fromkeys(("ADMIN_KEY", "AUTH_TOKEN", "UPSTREAM_API_KEY"))
    async with launch(
        **PLUGINS_SETTINGS | in_the_file,
        HTTPS_PROXY=f"http://user:{EGRESS_PASSWORD}@127.0.0.1:9",
        ACCESS_LOG=str(log),
        MAX_BODY_SIZE="1MB",
        LOG_LEVEL="debug",
        DRAIN_TIMEOUT="1",
        PYTHONDEVMODE="1",
    ) as program:
        watched = Watched(program)
        await go_wrong(watched, upstream, key)
        for token, status in ((TOKEN, 200), (OTHER_TOKEN, 200), (replaced, 401), (key[:-1], 401)):
            await watched.check(status, "GET", models, token)
        assert {received.header("x-api-key") for received in upstream.requests} == {KEY}
        for status, method, token, body in (
            (200, "GET", ADMIN_KEY, b""),
            (400, "POST", ADMIN_KEY, json.dumps({"scope": BODY}).encode()),
            (403, "POST", READ_KEY, MESSAGE),
            (401, "GET", key, b""),
        ):
            await watched.check(status, method, limits, token, (), body)
        await watched.check(200, "GET", "/metrics", key)
        new = f"AUTH_TOKEN={NEW_TOKEN}\nUPSTREAM_API_KEY={NEW_KEY}"
        bad_ones = (
            f"{new} {KEY}\n",
            *(f"{new}\n{line}\n" for line in (f"AUTH_TOKENS={TOKEN}", TOKEN)),
            *(f"{new}\nADMIN_KEY={bad}\n" for bad in (TOKEN, f"{ADMIN_KEY} {READ_KEY}")),
            new.replace("=", "='", 1),
            f"AUTH_TOKEN_FILE={NEW_TOKEN}\nUPSTREAM_API_KEY_FILE={NEW_KEY}\n",
        )
        for refused, bad in enumerate(bad_ones, start=1):
            env_file.write_text(bad)
            program.send_signal(signal.SIGHUP)
            await program.errors.wait_for("SIGHUP: the settings stay as they were", refused)
        await watched.check(401, "GET", models, NEW_TOKEN)
        env_file.write_text(f"{new}\n{admin}\n")
        program.send_signal(signal.SIGHUP)
        await program.errors.wait_for("SIGHUP: reloaded secrets")
        for token, status in ((TOKEN, 401), (OTHER_TOKEN, 401), (NEW_TOKEN, 200)):
            await watched.check(status, "GET", models, token)
        assert upstream.requests[-1].header("x-api-key") == NEW_KEY
        await upstream.stop()
        await watched.check(502, "POST", MESSAGES, NEW_TOKEN, (), MESSAGE)
        assert await program.stop() == 0
    created = [key, replaced]
    for text in (program.said().encode(), log.read_bytes()):
        assert text
        assert found([*EVERYTHING, *created], text) == []
    assert found([*CREDENTIALS, *created], watched.answered) == []
    went_up = b"".join(received.raw_head + received.body for received in upstream.requests)
    assert found([*CLIENTS, *PLUGINS_OWN, EGRESS_PASSWORD, *created], went_up) == []
    for hook in ("authenticate", "request_finished", "shutdown"):
        assert f"'careless' failed in {hook}" in program.said()
    databases = [file.read_bytes() for file in tmp_path.glob("*.db*")]
    assert len(databases) >= 3
    assert found([*EVERYTHING, *created], b"".join(databases)) == []
    records = [json.loads(line) for line in log.read_bytes().splitlines()]
    outcomes = {record["outcome"] for record in records}
    assert outcomes == {"completed", "denied", "failed", "abandoned"}
    statuses = {record["status"] for record in records}
    assert statuses == {None, 200, 400, 401, 403, 404, 405, 413, 429, 500, 502, 503, 529}

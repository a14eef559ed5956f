"""Canaries: credentials planted everywhere, which must appear only where they belong."""

from __future__ import annotations

import base64
import gc
import json
import logging
import shutil
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from program import Program, install, run, running

import tornadoproxy.handlers.exchange_handler
from tornadoproxy import Setting, hookimpl, parsers
from tornadoproxy.cli import main as cli
from tornadoproxy.testing import (
    RawConnection,
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
from tornadoproxy.upstream.client import UpstreamClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from tornadoproxy.testing import OpenRaw, Records, Response, StartProxy
    from tornadoproxy.upstream.call import Call, Receiver, UpstreamRequest

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

MESSAGE = json.dumps(
    {
        "model": "claude-sonnet-5-5",
        "max_tokens": 40,
        "messages": [{"role": "user", "content": BODY}],
    }
).encode()
STREAM = MESSAGE[:-1] + b', "stream": true}'


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


def test_found_sees_a_canary_in_each_encoding() -> None:
    """Were it not, none of the tests below would mean anything."""
    basic = base64.b64encode(f"user:{EGRESS_PASSWORD}".encode())

    assert found([EGRESS_PASSWORD], b"Proxy-Authorization: Basic " + basic) == [EGRESS_PASSWORD]
    assert found([TOKEN], f"?key={quote(TOKEN, safe='')}".encode()) == [TOKEN]
    assert found([TOKEN], json.dumps({"key": TOKEN}).encode()) == [TOKEN]
    assert found([TOKEN], b"KeyError: " + repr(TOKEN).encode()) == [TOKEN]
    assert found(EVERYTHING, b"nothing to see here") == []


# -- the program


CARELESS_PLUGIN = f"""
from tornadoproxy import ConfigurationError, Identity, Setting, hookimpl, parsers

MOOD = Setting("MOOD", parsers.text, default="fine", help="What goes wrong.", secret=True)
presented = []


@hookimpl
def declare_settings():
    return [MOOD]


@hookimpl
def configure(settings):
    if settings[MOOD] == "configure":
        raise KeyError("{TOKEN} {KEY}")


@hookimpl
def startup():
    pass


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
        raise RuntimeError(f"cannot look up {{presented}}") from error


@hookimpl
def request_finished(record):
    raise RuntimeError(f"cannot write {{presented}}")


@hookimpl
def shutdown():
    raise RuntimeError(f"cannot save {{presented}}")
"""


class Observed:
    """A running program with the careless plugin, and everything that it says.

    :ivar answered: what its clients received.
    :ivar arguments: what everybody on the machine can read of it.
    """

    def __init__(self, program: Program) -> None:
        self.answered = b""
        command_line = Path(f"/proc/{program.process.pid}/cmdline")
        self.arguments = command_line.read_bytes() if command_line.exists() else b"not Linux"
        self._program = program

    @property
    def said(self) -> bytes:
        """What it wrote to standard error and standard output."""
        return "\n".join([*self._program.errors.all, *self._program.output.all]).encode()

    async def connect(self) -> RawConnection:
        return await self._program.connect()

    async def signal(self, number: signal.Signals, expected: str = "", count: int = 1) -> None:
        """Send a signal, and wait until it has logged `expected` so many times."""
        self._program.send_signal(number)
        await self._program.errors.wait_for(expected, count)

    async def ended(self) -> int:
        return await self._program.ended()

    async def ask(self, request: bytes, *, whole: bool = True) -> bytes:
        """Return its response to one request, whole or cut short, on a connection of its own."""
        client = await self.connect()
        await client.send(request)
        response = cut = None
        try:
            response = await client.response()
        except Truncated as error:
            response, cut = error.response, error
        await client.close()
        assert response is not None
        assert (cut is None) is whole
        self.answered += response.raw_head + response.body
        return response.raw_head + response.body


@asynccontextmanager
async def observed(
    directory: Path, upstream: str, **variables: str | None
) -> AsyncIterator[Observed]:
    install(directory, "careless", CARELESS_PLUGIN)
    settings = {"LOG_LEVEL": "debug", "DRAIN_TIMEOUT": "1", "PYTHONDEVMODE": "1", **variables}
    async with running(
        directory, upstream, stdout=PIPE, stderr=PIPE, wrapper=(), **settings
    ) as program:
        await program.port()
        yield Observed(program)


SAID = [{"role": "user", "content": BODY}]
CHAT = {"model": "claude-sonnet-5-5", "messages": SAID}
CALL = {"id": "call-1", "type": "function", "function": {"name": "f", "arguments": BODY}}
REFUSED_CHATS = [
    f'{{"model": "{BODY}'.encode(),
    f'"{BODY}"'.encode(),
    b"\xff" + BODY.encode(),
    *(
        json.dumps({**CHAT, **wrong}).encode()
        for wrong in (
            {"model": [BODY]},
            {"messages": BODY},
            {"messages": [BODY]},
            {"messages": [{"role": BODY, "content": "Hi"}]},
            {"messages": [{"role": "user", "content": [{"type": BODY}]}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": [BODY]}]}]},
            {"messages": [*SAID, {"role": "assistant", "tool_calls": [CALL]}]},
            {"messages": [*SAID, {"role": "tool", "tool_call_id": BODY, "content": "x"}]},
            {"max_tokens": BODY},
            {"temperature": BODY},
            {"stop": [[BODY]]},
            {"n": BODY},
            {"tools": [{"type": BODY}]},
            {"tools": [{"type": "function", "function": {"name": [BODY]}}]},
            {"tool_choice": BODY},
            {"response_format": {"type": BODY}},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": BODY}}},
            {"reasoning_effort": BODY},
            {"stream": BODY},
        )
    ),
]

REFUSED_HEADS = [
    b"GET /v1/models?key=%(query)b HTTP/1.1\r\nHost: x\r\nX-Api-Key: %(token)b\x00\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\nBearer %(token)b: x\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Api-Key %(token)b\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: %(token)b@\r\n\r\n",
    b"GET /v1/models HTTP/1.1\nHost: x\nX-Api-Key: %(token)b\n\n",
    b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: %(token)b\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: %(token)b\r\n\r\n",
    b"%(token)b\r\nHost: x\r\n\r\n",
    b"GET /v1/models?key=%(query)b HTTP/3.7\r\nHost: x\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nX-Api-Key: %(token)b\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n%(body)b\r\n",
]

# what an upstream may answer that shows the key it was given, and how a client sees that end
UPSTREAM_FAULTS: list[tuple[Response, bool]] = [
    (raw_response(b"you sent " + KEY.encode() + b"\r\n\r\n", end="close"), True),
    (raw_response(b"HTTP/1.1 200 OK\r\nX-Echo " + KEY.encode() + b"\r\n\r\n", end="close"), True),
    (raw_response(b"HTTP/1.1 200 OK\r\nX-E: \x00" + KEY.encode() + b"\r\n\r\n", end="close"), True),
    (raw_response(f"HTTP/1.1 200 OK\r\nContent-Length: {KEY}\r\n\r\n".encode(), end="close"), True),
    (raw_response(f"HTTP/1.1 {KEY}\r\n\r\n".encode(), end="close"), True),
    (raw_response(b"HTTP/1.1 200 OK\r\nX: " + KEY.encode(), end="close"), True),
    (raw_response(end="close"), True),
    (raw_response(end="reset"), True),
    (bytes_response(b"broken", [("Set-Cookie", f"key={KEY}")], 500), True),
    (sse_response(message_events(message_document("Hi"))[:3], end="close"), False),
    (sse_response(message_events(message_document("Hi"))[:3], end="reset"), False),
    (
        raw_response(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nfin\r\n",
            f"{KEY}\r\n".encode(),
            end="close",
        ),
        False,
    ),
]


async def _go_wrong(program: Observed, upstream: ScriptedUpstream, token: str) -> None:
    """Bring about whatever can be logged."""
    secrets = {b"token": token.encode(), b"query": QUERY.encode(), b"body": BODY.encode()}
    query = f"/v1/messages?key={QUERY}"
    cookie = [("Cookie", COOKIE), ("Proxy-Authorization", f"Basic {COOKIE}")]

    assert b" 200 " in await program.ask(request_bytes("POST", query, cookie, MESSAGE, token=token))
    assert b" 200 " in await program.ask(request_bytes("POST", query, cookie, STREAM, token=token))
    x_api_key = ("X-Api-Key", token)
    for path, line, status in [
        (query, ("X-Api-Key", GUESS), 401),
        (query, ("Authorization", f"Bearer {GUESS}"), 401),
        (query, ("Authorization", f"Basic {GUESS}"), 401),
        (f"/openai/v1/models?key={QUERY}", ("X-Api-Key", GUESS), 401),
        (f"/nothing?key={QUERY}", x_api_key, 404),
        (f"/openai/nothing?key={QUERY}", x_api_key, 404),
        (f"/v1/../admin?key={QUERY}", x_api_key, 400),
        (f"/v1//x?key={QUERY}", x_api_key, 400),
        (f"/v1/models\\?key={QUERY}", x_api_key, 400),
    ]:
        response = await program.ask(request_bytes("POST", path, [line], MESSAGE))
        assert b" %d " % status in response, path
    assert b" 405 " in await program.ask(request_bytes("FROB", query, token=token))
    too_large = [("Content-Length", "2000000")]
    assert b" 413 " in await program.ask(request_bytes("POST", query, too_large, token=token))
    for head in REFUSED_HEADS:
        assert b" 400 " in await program.ask(head % secrets), head
    chat = f"/openai/v1/chat/completions?key={QUERY}"
    for fields in ({}, {"stream": True}):
        body = json.dumps({**CHAT, **fields}).encode()
        assert b" 200 " in await program.ask(request_bytes("POST", chat, cookie, body, token=token))
    for body in REFUSED_CHATS:
        response = await program.ask(request_bytes("POST", chat, body=body, token=token))
        assert b" 400 " in response, body
    for status in (400, 404, 429, 529):
        upstream.script(error_response(status, "some_error", f"{BODY} is wrong"))
        request = request_bytes("POST", chat, body=json.dumps(CHAT).encode(), token=token)
        assert b" %d " % status in await program.ask(request)
    for boom in ("sync", "async", "nonsense"):
        lines = [("X-Boom", boom)]
        assert b" 503 " in await program.ask(request_bytes("GET", query, lines, token=token))
        assert b" 503 " in await program.ask(request_bytes("GET", query, lines, token=GUESS))
    for fault, whole in UPSTREAM_FAULTS:
        upstream.script(fault, fault)
        request = request_bytes("POST", query, body=MESSAGE, token=token)
        response = await program.ask(request, whole=whole)
        assert b" 502 " in response or b" 500 " in response or not whole
        # translated, an answer that broke off before anything of it was sent is an error
        request = request_bytes("POST", chat, body=json.dumps(CHAT).encode(), token=token)
        response = await program.ask(request)
        assert b" 502 " in response or b" 500 " in response
    await _leave(program, upstream, request_bytes("POST", query, body=MESSAGE, token=token))


async def _leave(program: Observed, upstream: ScriptedUpstream, request: bytes) -> None:
    upstream.script(silent_response())
    client = await program.connect()
    await client.send(request)
    received = await upstream.received(len(upstream.requests) + 1)
    await client.reset()
    await received.disconnected()


async def _refuse_connections(program: Observed, upstream: ScriptedUpstream, token: str) -> None:
    await upstream.stop()
    response = await program.ask(
        request_bytes("POST", f"/v1/messages?key={QUERY}", body=MESSAGE, token=token)
    )
    assert b" 502 " in response


def _silent(program: Observed, upstream: ScriptedUpstream, *logs: bytes) -> None:
    """See that no canary got where it does not belong."""
    for log in (program.said, program.arguments, *logs):
        assert log
        assert found(EVERYTHING, log) == []
    assert found(CREDENTIALS, program.answered) == []
    went_up = b"".join(received.raw_head + received.body for received in upstream.requests)
    assert found(CLIENTS, went_up) == []
    assert found([EGRESS_PASSWORD], went_up) == []


KEPT = "SIGHUP: the settings stay as they were"


async def test_canaries_stay_out_of_logs_and_wrong_directions(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    log, env_file = tmp_path / "access.log", tmp_path / ".env"
    env_file.write_text(f"AUTH_TOKEN='{TOKEN} {OTHER_TOKEN}'\nUPSTREAM_API_KEY={KEY}\n")
    async with observed(
        tmp_path,
        upstream.url,
        AUTH_TOKEN=None,
        UPSTREAM_API_KEY=None,
        HTTPS_PROXY=f"http://user:{EGRESS_PASSWORD}@127.0.0.1:9",
        ACCESS_LOG=str(log),
        MAX_BODY_SIZE="1MB",
    ) as program:
        await _go_wrong(program, upstream, TOKEN)
        assert b" 200 " in await program.ask(request_bytes("GET", "/v1/models", token=OTHER_TOKEN))
        assert {received.header("x-api-key") for received in upstream.requests} == {KEY}
        new = f"AUTH_TOKEN={NEW_TOKEN}\nUPSTREAM_API_KEY={NEW_KEY}"
        bad_ones = (
            f"{new} {KEY}\n",
            *(f"{new}\n{line}\n" for line in (f"AUTH_TOKENS={TOKEN}", TOKEN, "MOOD=configure")),
            new.replace("=", "='", 1),
            f"AUTH_TOKEN_FILE={NEW_TOKEN}\nUPSTREAM_API_KEY_FILE={NEW_KEY}\n",
        )
        for refused, bad in enumerate(bad_ones, start=1):
            env_file.write_text(bad)
            await program.signal(signal.SIGHUP, KEPT, refused)
        assert b" 401 " in await program.ask(request_bytes("GET", "/v1/models", token=NEW_TOKEN))
        env_file.write_text(f"{new}\n")
        await program.signal(signal.SIGHUP, "SIGHUP: reloaded secrets")
        for old in (TOKEN, OTHER_TOKEN):
            assert b" 401 " in await program.ask(request_bytes("GET", "/v1/models", token=old))
        assert b" 200 " in await program.ask(request_bytes("GET", "/v1/models", token=NEW_TOKEN))
        assert upstream.requests[-1].header("x-api-key") == NEW_KEY
        await _refuse_connections(program, upstream, NEW_TOKEN)
        await program.signal(signal.SIGTERM)
        assert await program.ended() == 0
    _silent(program, upstream, log.read_bytes())
    for hook in (b"authenticate", b"request_finished", b"shutdown"):
        assert b"'careless' failed in " + hook in program.said
    records = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert {record["outcome"] for record in records} == {
        *("completed", "denied", "failed", "abandoned")
    }
    assert {record["status"] for record in records} == {
        *(None, 200, 400, 401, 404, 405, 413, 429, 500, 502, 503, 529)
    }


async def test_canaries_from_files_stay_out_of_a_text_log(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    tokens, key = tmp_path / "tokens", tmp_path / "key"
    tokens.write_text(f"{TOKEN}\n{OTHER_TOKEN}\n")
    key.write_text(f"{KEY}\n")
    async with observed(
        tmp_path,
        upstream.url,
        AUTH_TOKEN=None,
        UPSTREAM_API_KEY=None,
        AUTH_TOKEN_FILE=str(tokens),
        UPSTREAM_API_KEY_FILE=str(key),
        UPSTREAM_AUTH_SCHEME="bearer",
        ACCESS_LOG="stdout",
        ACCESS_LOG_FORMAT="text",
        MAX_BODY_SIZE="1MB",
    ) as program:
        await _go_wrong(program, upstream, TOKEN)
        authorizations = {received.header("authorization") for received in upstream.requests}
        assert authorizations == {f"Bearer {KEY}"}
        key.write_text(f"{NEW_KEY}\n{KEY}\n")  # two, where there must be one
        await program.signal(signal.SIGHUP, KEPT)
        await _leave_with_the_last_word(program, upstream)
        assert await program.ended() in (0, 1)
    _silent(program, upstream)
    assert b" drained " in program.said


async def _leave_with_the_last_word(program: Observed, upstream: ScriptedUpstream) -> None:
    """Stop it with a stream in flight, and once more, so that the stream is cut."""
    upstream.script(sse_response(message_events(message_document(BODY))[:2], end="hang"))
    client = await program.connect()
    request = request_bytes("POST", f"/v1/messages?key={QUERY}", body=STREAM, token=TOKEN)
    await client.send(request)
    await client.head()
    await client.chunk()
    await program.signal(signal.SIGTERM, "stopping")
    await program.signal(signal.SIGTERM)
    program.answered += await client.read_to_end()
    await client.close()


async def test_canary_of_egress_proxy_stays_with_it(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    egress = ScriptedServer()
    await egress.start()
    credentials = base64.b64encode(f"user:{EGRESS_PASSWORD}".encode())
    echo = b"Proxy-Authenticate: Basic " + credentials + b"\r\nContent-Length: 0\r\n\r\n"
    refusals = [
        b"HTTP/1.1 407 " + credentials + b"\r\n" + echo,
        b"HTTP/1.1 502 " + EGRESS_PASSWORD.encode() + b"\r\n" + echo,
        credentials + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + credentials,  # where TLS ought to begin
    ]
    egress.script(*(raw_response(refusal, end="close") for refusal in refusals))
    async with observed(
        tmp_path,
        "https://upstream.example",
        AUTH_TOKEN=TOKEN,
        UPSTREAM_API_KEY=KEY,
        HTTPS_PROXY=f"http://user:{EGRESS_PASSWORD}@127.0.0.1:{egress.port}",
        ACCESS_LOG="stderr",
    ) as program:
        for _ in refusals:
            assert b" 502 " in await program.ask(request_bytes("GET", "/v1/models", token=TOKEN))
        for received in egress.requests:
            assert received.header("proxy-authorization") == f"Basic {credentials.decode()}"
            assert found([*CLIENTS, KEY], received.raw_head) == []
        await program.signal(signal.SIGTERM)
        assert await program.ended() == 0
    assert len(egress.requests) == len(refusals)
    await egress.stop()
    _silent(program, upstream)


PLUGINS_SETTINGS = {
    "KEYS_DB": "keys.db",
    "BUDGETS_DB": "budgets.db",
    "BUDGETS_ADMIN_KEY": f"ops={ADMIN_KEY}",
    "BUDGETS_ADMIN_READ_KEY": READ_KEY,
    "LEDGER_DB": "ledger.db",
    "METRICS": "yes",
    "OTEL_TRACES": "yes",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
    "OTEL_EXPORTER_OTLP_HEADERS": f"x-key={COLLECTOR_KEY}",
}


def key_of(
    name: str, directory: Path, capfd: pytest.CaptureFixture[str], command: str = "create"
) -> str:
    """A key that a command makes, which is shown once."""
    environment = {"KEYS_DB": str(directory / "keys.db")}
    given = ["--name", name] if command == "create" else [name]
    assert cli.main(["keys", command, *given], environment) == 0
    output, errors = capfd.readouterr()
    key = output.strip()
    assert key.startswith("tp-")
    assert found([key], errors.encode()) == []
    return key


async def test_canaries_of_plugins_stay_out_of_logs_and_files(
    upstream: ScriptedUpstream,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Created keys, those of administrators, and the one for the collector of traces."""
    monkeypatch.chdir(tmp_path)  # no .env that lies about
    replaced = key_of("ada", tmp_path, capfd)
    key = key_of("ada", tmp_path, capfd, "rotate")
    log, env_file = tmp_path / "access.log", tmp_path / ".env"
    env_file.write_text(f"BUDGETS_ADMIN_KEY=ops={ADMIN_KEY}\n")
    async with observed(
        tmp_path,
        upstream.url,
        **{n: v for n, v in PLUGINS_SETTINGS.items() if n != "BUDGETS_ADMIN_KEY"},
        AUTH_TOKEN=TOKEN,
        UPSTREAM_API_KEY=KEY,
        ACCESS_LOG=str(log),
        MAX_BODY_SIZE="1MB",
    ) as program:
        await _go_wrong(program, upstream, key)
        for wrong in (replaced, f"{key}x", key[:-1], READ_KEY):
            assert b" 401 " in await program.ask(request_bytes("GET", "/v1/models", token=wrong))
        limits = f"/v1/organizations/spend_limits?key={QUERY}"
        for method, token, body, status in (
            ("GET", ADMIN_KEY, b"", 200),
            ("POST", ADMIN_KEY, json.dumps({"scope": BODY}).encode(), 400),
            ("POST", ADMIN_KEY, BODY.encode(), 400),
            ("POST", READ_KEY, MESSAGE, 403),
            ("GET", key, b"", 401),
            ("GET", GUESS, b"", 401),
        ):
            response = await program.ask(request_bytes(method, limits, body=body, token=token))
            assert b" %d " % status in response, (method, body, response)
        assert b" 200 " in await program.ask(request_bytes("GET", "/metrics", token=key))
        for refused, bad in enumerate(
            (f"ops={TOKEN}", f"{ADMIN_KEY} {READ_KEY}", f"{ADMIN_KEY} {ADMIN_KEY}=\n{READ_KEY}"),
            start=1,
        ):
            env_file.write_text(f"BUDGETS_ADMIN_KEY={bad}\n")
            await program.signal(signal.SIGHUP, KEPT, refused)
        await program.signal(signal.SIGTERM)
        assert await program.ended() == 0
    files = [log, *tmp_path.glob("*.db*")]
    assert len(files) >= 4
    _silent(program, upstream, *(file.read_bytes() for file in files))
    went_up = b"".join(received.raw_head + received.body for received in upstream.requests)
    for where in (program.said, program.arguments, program.answered, went_up):
        assert found([key, replaced, *PLUGINS_OWN], where) == []
    for file in files:
        assert found([key, replaced], file.read_bytes()) == [], file


# -- the program, when it does not start


def secret_files(directory: Path) -> dict[str, Path]:
    """Files that hold canaries where something else ought to be."""
    texts = {
        "two.txt": f"{KEY} {NEW_KEY}",
        "control.txt": f"{TOKEN}\x01{OTHER_TOKEN}",
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


BUDGETS = {"BUDGETS_DB": "budgets.db"}
GOOD = {"AUTH_TOKEN": TOKEN, "UPSTREAM_API_KEY": KEY, "PORT": "0"}

ENV_FILE = "--env-file"
BAD: list[tuple[list[str], dict[str, str]]] = [
    *(
        ([], {name: value})
        for name, value in (
            ("AUTH_TOKEN", f"{TOKEN}\x01"),
            ("UPSTREAM_API_KEY", f"{KEY} {NEW_KEY}"),
            ("UPSTREAM_API_KEY", f"{KEY}\x7f"),
            ("AUTH_TOKEN_FILE", TOKEN),
            ("AUTH_TOKEN_FILE", "{two.txt}"),
            ("AUTH_TOKEN_FILE", "{control.txt}"),
            ("UPSTREAM_API_KEY_FILE", KEY),
            ("UPSTREAM_API_KEY_FILE", "{two.txt}"),
            ("ALLOW_ANONYMOUS", "yes"),
            ("HTTPS_PROXY", f"socks5://user:{EGRESS_PASSWORD}@proxy:1"),
            ("HTTPS_PROXY", f"http://user:{EGRESS_PASSWORD}@proxy/path"),
            ("HTTPS_PROXY", f"http://u:{EGRESS_PASSWORD}@proxy:99999"),
            ("HTTPS_PROXY", f"http://u:{EGRESS_PASSWORD}@"),
            ("https_proxy", f"ftp://u:{EGRESS_PASSWORD}@proxy"),
            ("UPSTREAM_BASE_URL", f"https://user:{KEY}@up.example"),
            ("UPSTREAM_BASE_URL", f"https://up.example/?key={KEY}"),
            ("BUDGETS_ADMIN_KEY", ADMIN_KEY),  # without BUDGETS_DB
            ("OTEL_EXPORTER_OTLP_HEADERS", COLLECTOR_KEY),
            ("OTEL_EXPORTER_OTLP_HEADERS", f"x-key={COLLECTOR_KEY}%0A{KEY}"),
        )
    ),
    ([], {"UPSTREAM_API_KEY": "", "ANTHROPIC_API_KEY": f"{KEY} {NEW_KEY}"}),
    ([], {**BUDGETS, "BUDGETS_ADMIN_KEY": f"ops={TOKEN}"}),
    ([], {**BUDGETS, "BUDGETS_ADMIN_KEY": f"ops={ADMIN_KEY} ops={READ_KEY}"}),
    ([], {**BUDGETS, "BUDGETS_ADMIN_KEY": ADMIN_KEY, "BUDGETS_ADMIN_READ_KEY": ADMIN_KEY}),
    ([], {"BUDGETS_DB": "/", "BUDGETS_ADMIN_KEY": ADMIN_KEY}),
    (
        [],
        {"OTEL_TRACES": "yes", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://u:{COLLECTOR_KEY}@c"},
    ),
    ([f"--budgets-admin-key={ADMIN_KEY}"], BUDGETS),
    ([ENV_FILE, "{blank.env}"], {"UPSTREAM_API_KEY": ""}),
    *(
        (arguments, {})
        for arguments in (
            ["--otel-exporter-otlp-headers", f"x-key={COLLECTOR_KEY}"],
            ["--upstream-base-url", f"https://u:{KEY}@up.example"],
            ["--auth-token", TOKEN],
            [f"--auth-token={TOKEN}"],
            ["serve", f"--upstream-api-key={KEY}"],
            [f"--token={TOKEN}"],
            ["check", "--token", TOKEN],
            [TOKEN],
            ["check", TOKEN],
            [f"--{TOKEN}"],
            [f"-k{TOKEN}"],
            [ENV_FILE, "{unknown.env}"],
            [ENV_FILE, "{bare.env}"],
            [ENV_FILE, "{quote.env}"],
            [ENV_FILE, "{export.env}"],
        )
    ),
]


@pytest.mark.parametrize(("arguments", "variables"), BAD)
def test_wrong_setting_shows_no_canary(
    arguments: list[str],
    variables: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    files = secret_files(tmp_path)

    def placed(text: str) -> str:
        return str(files[text[1:-1]]) if text[:1] == "{" else text

    environment = {**GOOD, **{key: placed(value) for key, value in variables.items()}}

    status = cli.main([placed(argument) for argument in arguments], environment)

    output, errors = capfd.readouterr()
    assert status == 2
    assert output == ""
    assert all(line.startswith("tornadoproxy: ") for line in errors.splitlines())
    assert errors.strip() != ""
    assert found(EVERYTHING, errors.encode()) == []


def test_warning_of_ignored_names_shows_no_canary(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ignored = secret_files(tmp_path)["assignment.env"]
    ignored.chmod(0o644)
    environment = {**GOOD, f"{TOKEN}_NAME": KEY}

    assert cli.main(["check", "--env-file", str(ignored)], environment) == 0

    output, errors = capfd.readouterr()
    assert "1 name that is no setting" in errors
    assert found(EVERYTHING, f"{output}{errors}".encode()) == []


@pytest.mark.parametrize("command", ["check", "plugins", "token", "--help", "--version"])
def test_command_shows_no_canary(
    command: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {
        "AUTH_TOKEN": f"{TOKEN} {OTHER_TOKEN}",
        "UPSTREAM_API_KEY": KEY,
        "HTTPS_PROXY": f"http://user:{EGRESS_PASSWORD}@proxy.example:3128",
        "ANTHROPIC_API_KEY": NEW_KEY,
        "ANTHROPIC_AUTH_TOKEN": NEW_TOKEN,
        **PLUGINS_SETTINGS,
    }

    assert cli.main([command], environment) == 0

    output, errors = capfd.readouterr()
    if command in ("check", "plugins"):
        for name in ("keys", "budgets", "otel"):
            assert name in output
    assert output.strip() != ""
    assert errors == ""
    assert found(EVERYTHING, output.encode()) == []


@pytest.mark.parametrize(
    "hook",
    [
        "startup():\n    raise KeyError(os.environ['AUTH_TOKEN'], os.environ['UPSTREAM_API_KEY'])",
        "configure(settings):\n    raise ValueError(str(os.environ))",
    ],
    ids=["startup", "configure"],
)
def test_plugin_failing_at_start_shows_no_canary(hook: str, tmp_path: Path) -> None:
    source = f"import os\nfrom tornadoproxy import hookimpl\n\n@hookimpl\ndef {hook}\n"
    install(tmp_path, "careless", source)
    ended = run(tmp_path, **GOOD)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    name = hook.partition("(")[0]
    assert line.startswith(f"tornadoproxy: plugin 'careless' failed in {name}: ")
    assert found(EVERYTHING, f"{ended.stdout}{ended.stderr}".encode()) == []


# -- in the process


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


# -- the check that the whole test run is under


CARELESS_TESTS = """
import logging
import os
import sys

import pytest

from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY, request_bytes


def test_in_a_record():
    logging.getLogger("tornadoproxy.handlers.relay").debug("sent %s", TEST_UPSTREAM_KEY)


def test_in_a_traceback():
    try:
        raise KeyError(TEST_TOKEN)
    except KeyError:
        logging.getLogger("tornado.application").exception("it failed")


def test_in_standard_output():
    print(TEST_TOKEN)


def test_in_the_descriptor_of_standard_error():
    os.write(2, TEST_UPSTREAM_KEY.encode())


@pytest.fixture
def careless():
    yield
    print(TEST_TOKEN)


def test_in_a_fixtures_end(careless):
    pass


async def test_up_the_wrong_way(raw, upstream):
    client = await raw(upstream)
    await client.send(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
    await client.response()


async def test_careful(proxy, raw):
    client = await raw()
    await client.send(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
    assert (await client.response()).status == 200
    print("fine")
    logging.getLogger("tornadoproxy").error("fine")
"""


def test_conftest_fails_tests_that_show_a_credential(tmp_path: Path) -> None:
    """It is in conftest.py, and the credentials of the fixtures are its canaries."""
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    (tmp_path / "test_careless.py").write_text(CARELESS_TESTS)

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "-Wignore", tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    outcome_words = ("PASSED", "FAILED", "ERROR")
    outcomes = {
        (words[1].rpartition("::")[2], words[0])
        for line in run.stdout.splitlines()
        if (words := line.split()) and words[0] in outcome_words and "::" in words[1]
    }
    assert run.returncode == 1
    assert outcomes == {
        ("test_in_a_record", "FAILED"),
        ("test_in_a_traceback", "FAILED"),
        ("test_in_standard_output", "FAILED"),
        ("test_in_the_descriptor_of_standard_error", "FAILED"),
        ("test_in_a_fixtures_end", "PASSED"),
        ("test_in_a_fixtures_end", "ERROR"),
        ("test_up_the_wrong_way", "FAILED"),
        ("test_careful", "PASSED"),
    }

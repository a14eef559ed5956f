"""An upstream that refuses the proxy's own key: errors, log, and ``check --online``."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tornadoproxy import Outcome
from tornadoproxy.cli import main as cli
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    bytes_response,
    error_response,
    raw_response,
    request_bytes,
    response_head,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tornadoproxy.testing import (
        Ask,
        OpenRaw,
        Proxy,
        Records,
        Response,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

REFUSED = error_response(401, "authentication_error", "invalid x-api-key")
MESSAGE_START = (
    "The upstream refused this proxy's own credential, not yours. Tell the operator of this"
)


MESSAGE = {
    "model": "claude-sonnet-5-5",
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 9,
}


@pytest.mark.parametrize(
    ("target", "document", "error_type"),
    [
        ("/v1/messages", {**MESSAGE, "stream": True}, "api_error"),
        ("/v1/files", None, "api_error"),
        ("/openai/v1/chat/completions", MESSAGE, "server_error"),
        ("/openai/v1/chat/completions", {**MESSAGE, "stream": True}, "server_error"),
        ("/openai/v1/models", None, "server_error"),
    ],
)
async def test_upstream_401_is_502_that_says_whose_key(
    target: str,
    document: object,
    error_type: str,
    proxy: Proxy,
    ask: Ask,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    upstream.script(REFUSED)
    response = await ask(target, document)
    assert response.status == 502
    assert response.header("x-should-retry") == "false"
    assert response.header("www-authenticate") is None
    error = json.loads(response.body)["error"]
    assert (error["type"], error["message"][: len(MESSAGE_START)]) == (error_type, MESSAGE_START)
    record = await records.finished()
    assert (record.status, record.outcome) == (502, Outcome.FAILED)
    assert (record.error or "").startswith("CredentialRefused: ")


async def test_upstream_401_during_an_upload_is_502(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    async def respond_early(exchange: UpstreamExchange) -> None:
        await exchange.send(response_head(401, {"Content-Length": "0"}))

    upstream.script(respond_early)
    client = await raw()
    lines = [("Content-Length", "4000000")]
    await client.send(request_bytes("POST", "/v1/files", lines, token=TEST_TOKEN) + bytes(2000000))
    assert (await client.response()).status == 502
    await upstream.requests[0].disconnected()


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.message
        for record in caplog.records
        if record.name == "tornadoproxy.handlers.gateway"
    ]


def sources(directory: Path) -> list[tuple[dict[str, Any], str]]:
    """Return settings with each source of the upstream's key, and how its error begins."""
    file = directory / "key"
    file.write_text(TEST_UPSTREAM_KEY)
    file.chmod(0o600)
    none = {"UPSTREAM_API_KEY": None}
    return [
        ({}, "UPSTREAM_API_KEY: the upstream refused this key (it answered 401): replace it"),
        ({**none, "ANTHROPIC_API_KEY": TEST_UPSTREAM_KEY}, "ANTHROPIC_API_KEY: the upstream"),
        ({**none, "UPSTREAM_API_KEY_FILE": file}, "UPSTREAM_API_KEY_FILE: the upstream refused"),
        (none, "UPSTREAM_API_KEY is not set, and the upstream requires a credential"),
    ]


@pytest.mark.parametrize("source", range(4))
async def test_upstream_401_logs_the_setting_of_the_key(
    source: int,
    tmp_path: Path,
    start_proxy: StartProxy,
    ask: Ask,
    upstream: ScriptedUpstream,
    caplog: pytest.LogCaptureFixture,
) -> None:
    variables, start = sources(tmp_path)[source]
    await start_proxy(**variables)
    upstream.script(REFUSED)
    assert (await ask("/v1/models")).status == 502
    assert [line[: len(start)] for line in logged(caplog)] == [start]
    assert TEST_UPSTREAM_KEY not in caplog.text


async def test_upstream_401_is_logged_until_the_key_is_accepted_again(
    proxy: Proxy, ask: Ask, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse_twice() -> int:
        upstream.script(REFUSED, REFUSED)
        for _ in range(2):
            assert (await ask("/v1/models")).status == 502
        return len(logged(caplog))

    assert await refuse_twice() == 1
    upstream.script(error_response(529, "overloaded_error", "Overloaded"))
    assert (await ask("/v1/models")).status == 529
    assert await refuse_twice() == 1, "an error is no sign that the key was accepted"
    upstream.script(bytes_response(b"{}"))
    assert (await ask("/v1/models")).status == 200
    assert await refuse_twice() == 2
    proxy.reload()
    assert await refuse_twice() == 3


# -- check --online


class Check:
    """Runs ``check`` in front of `upstream`."""

    def __init__(self, upstream: ScriptedUpstream, capfd: pytest.CaptureFixture[str]) -> None:
        self._variables = {"UPSTREAM_BASE_URL": upstream.url, "UPSTREAM_API_KEY": TEST_UPSTREAM_KEY}
        self._capfd = capfd

    async def __call__(self, *arguments: str, **variables: object) -> tuple[int, str, str]:
        """Return the exit status, the last line on standard output, and standard error."""
        given = {**self._variables, **variables}
        environment = {name: str(value) for name, value in given.items() if value is not None}
        command = ["check", *arguments, "--env-file", os.devnull]
        status = await asyncio.to_thread(cli.main, command, environment)
        shown = self._capfd.readouterr()
        return status, shown.out.splitlines()[-1], shown.err


@pytest.fixture
def check(upstream: ScriptedUpstream, capfd: pytest.CaptureFixture[str]) -> Check:
    return Check(upstream, capfd)


async def test_check_online_sends_one_request_with_the_key(
    check: Check, upstream: ScriptedUpstream
) -> None:
    status, line, errors = await check("--online", "--upstream-auth-scheme", "bearer")
    assert (status, errors) == (0, "")
    assert line == "the upstream accepts the key (GET /v1/models?limit=1)"
    (request,) = upstream.requests
    assert (request.method, request.target) == ("GET", "/v1/models?limit=1")
    assert request.header("authorization") == f"Bearer {TEST_UPSTREAM_KEY}"


async def test_check_without_online_sends_nothing(check: Check, upstream: ScriptedUpstream) -> None:
    assert (await check())[0] == 0
    assert upstream.connections == 0


@pytest.mark.parametrize("source", [0, 3])
async def test_check_online_names_the_refused_setting(
    source: int, tmp_path: Path, check: Check, upstream: ScriptedUpstream
) -> None:
    variables, start = sources(tmp_path)[source]
    upstream.script(REFUSED)
    status, _, errors = await check("--online", **variables)
    assert status == 2
    assert errors.startswith(f"tornadoproxy: {start}")
    assert TEST_UPSTREAM_KEY not in errors


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (
            error_response(403, "permission_error", "Key disabled."),
            "it responded to GET /v1/models?limit=1 with 403: Key disabled.",
        ),
        (
            bytes_response(b"<html>\nWelcome</html>"),
            "The upstream's response is not a list of models.",
        ),
        (raw_response(b"SSH-2.0-OpenSSH\r\n\r\n", end="close"), "The upstream"),
    ],
)
async def test_check_online_reports_the_upstreams_response(
    response: Response, reason: str, check: Check, upstream: ScriptedUpstream
) -> None:
    upstream.script(response)
    status, _, errors = await check("--online")
    assert status == 2
    assert errors.startswith(f"tornadoproxy: UPSTREAM_BASE_URL is {upstream.url}: {reason}")
    assert len(errors.splitlines()) == 1


async def test_check_online_reports_that_nothing_listens(check: Check) -> None:
    status, _, errors = await check("--online", UPSTREAM_BASE_URL="http://127.0.0.1:9")
    assert status == 2
    assert errors.endswith(
        "UPSTREAM_BASE_URL is http://127.0.0.1:9: The upstream cannot be reached.\n"
    )

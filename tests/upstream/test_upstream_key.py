"""An upstream that refuses the proxy's own key: errors, log, and ``check --online``."""

from __future__ import annotations

import asyncio
import os

import pytest
from scene import Scene
from served import CHAT_PATH, MESSAGE_FIELDS, anthropic_error, openai_error

from tornadoproxy import ConfigurationError, Outcome, Secret, Settings, parsers
from tornadoproxy.cli import main as cli
from tornadoproxy.config.core_settings import UPSTREAM_API_KEY, UPSTREAM_BASE_URL
from tornadoproxy.config.upstreams import default_upstreams
from tornadoproxy.server import online_check
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    Proxy,
    Response,
    ScriptedUpstream,
    UpstreamExchange,
    bytes_response,
    error_response,
    request_bytes,
    response_head,
    silent_response,
)

REFUSED = error_response(401, "authentication_error", "invalid x-api-key")
MESSAGE_START = (
    "The upstream refused this proxy's own credential, not yours. Tell the operator of this"
)


@pytest.mark.parametrize(
    ("target", "document", "error_type"),
    [
        ("/v1/messages", {**MESSAGE_FIELDS, "stream": True}, "api_error"),
        (CHAT_PATH, MESSAGE_FIELDS, "server_error"),
        ("/openai/v1/models", None, "server_error"),
    ],
)
async def test_upstream_401_is_502_that_says_whose_key(
    target: str, document: object, error_type: str, proxy: Proxy, scene: Scene
) -> None:
    scene.upstream.script(REFUSED)
    response = await scene.ask(target, document)
    check_error = anthropic_error if target == "/v1/messages" else openai_error
    assert check_error(response, 502, error_type).startswith(MESSAGE_START)
    assert response.header("x-should-retry") == "false"
    assert response.header("www-authenticate") is None
    record = await scene.records.finished()
    assert (record.status, record.outcome) == (502, Outcome.FAILED)
    assert (record.error or "").startswith("CredentialRefused: ")


async def test_upstream_401_during_an_upload_is_502(proxy: Proxy, scene: Scene) -> None:
    async def respond_early(exchange: UpstreamExchange) -> None:
        await exchange.send(response_head(401, {"Content-Length": "0"}))

    scene.upstream.script(respond_early)
    client = await scene.raw()
    lines = [("Content-Length", "4000000")]
    await client.send(request_bytes("POST", "/v1/files", lines, token=TEST_TOKEN) + bytes(2000000))
    assert (await client.response()).status == 502
    await scene.upstream.requests[0].disconnected()


async def test_upstream_401_is_logged_until_the_key_is_accepted_again(
    proxy: Proxy, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse_twice() -> int:
        """Return how often it has been logged since the start."""
        scene.upstream.script(REFUSED, REFUSED)
        for _ in range(2):
            assert (await scene.ask("/v1/models")).status == 502
        logged = [each for each in caplog.records if each.name == "tornadoproxy.upstream.target"]
        told = "UPSTREAM_API_KEY: the upstream refused this key (status 401): replace it"
        assert all(each.message.startswith(told) for each in logged)
        return len(logged)

    assert await refuse_twice() == 1
    scene.upstream.script(error_response(529, "overloaded_error", "Overloaded"))
    assert (await scene.ask("/v1/models")).status == 529
    assert await refuse_twice() == 1, "an error is no sign that the key was accepted"
    scene.upstream.script(bytes_response(b"{}"))
    assert (await scene.ask("/v1/models")).status == 200
    assert await refuse_twice() == 2
    proxy.reload()
    assert await refuse_twice() == 3


@pytest.mark.parametrize("arguments", [("--online",), ()])
async def test_check_online_sends_one_request_with_the_key(
    upstream: ScriptedUpstream, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    environment = {
        "UPSTREAM_BASE_URL": upstream.url,
        "UPSTREAM_API_KEY": TEST_UPSTREAM_KEY,
        "UPSTREAM_AUTH_SCHEME": "bearer",
    }
    command = ["check", *arguments, "--env-file", os.devnull]
    assert await asyncio.to_thread(cli.main, command, environment) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    told = "the upstream accepts the key (GET /v1/models?limit=1)"
    assert (shown.out.splitlines()[-1] == told) == bool(arguments)
    sent = [
        (request.method, request.target, request.header("authorization"))
        for request in upstream.requests
    ]
    request = ("GET", "/v1/models?limit=1", f"Bearer {TEST_UPSTREAM_KEY}")
    assert sent == [request] * len(arguments)


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        (
            error_response(403, "permission_error", "Key disabled."),
            "it responded to GET /v1/models?limit=1 with 403: Key disabled.",
        ),
        (bytes_response(b"<html>"), "The upstream's response is not a list of models."),
        (silent_response(), "no response to GET /v1/models?limit=1 within 0.2 seconds"),
        (REFUSED, "UPSTREAM_API_KEY: the upstream refused this key (status 401): replace it"),
        (None, "The upstream cannot be reached."),
    ],
    ids=["403", "no list", "silence", "401", "nothing listens"],
)
async def test_check_online_reports_what_is_wrong(
    upstream: ScriptedUpstream,
    monkeypatch: pytest.MonkeyPatch,
    response: Response | None,
    fault: str,
) -> None:
    monkeypatch.setattr(online_check, "TIMEOUT", 0.2)
    if response is None:
        await upstream.stop()
    else:
        upstream.script(response)
    settings = Settings.defaults().replace(
        {
            UPSTREAM_BASE_URL: parsers.base_url(upstream.url),
            UPSTREAM_API_KEY: Secret(TEST_UPSTREAM_KEY),
        }
    )
    with pytest.raises(ConfigurationError) as caught:
        await online_check.check_upstreams(settings, default_upstreams(settings))
    if response is not REFUSED:
        fault = f"UPSTREAM_BASE_URL is {upstream.url}: {fault}"
    assert caught.value.faults == (fault,)

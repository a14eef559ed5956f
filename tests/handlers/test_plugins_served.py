"""Plugins in a served proxy: failures, refusals and credential headers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from program import install, running
from served import CHAT_BODY, CHAT_PATH, MESSAGE_BODY, anthropic_error, openai_error

from tornadoproxy import Denied, Identity, hookimpl
from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY, request_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scene import Scene

    from tornadoproxy import IncomingRequest


class Deciding:
    """An authenticator that calls this function."""

    def __init__(self, decide: Callable[[IncomingRequest], object]) -> None:
        self._decide = decide
        self.asked = 0

    @hookimpl(tryfirst=True)
    def authenticate(self, request: IncomingRequest) -> Any:  # Any: what is tested
        self.asked += 1
        return self._decide(request)


def presented(request: IncomingRequest) -> str:
    """Return the credential, as a careless plugin does."""
    (secret,) = request.candidates()
    return secret.reveal().decode()


def raises(request: IncomingRequest) -> Identity:
    people: dict[str, Identity] = {}
    try:
        return people[presented(request)]
    except KeyError as error:
        raise RuntimeError(presented(request)) from error


async def cancels(request: IncomingRequest) -> Identity:
    raise asyncio.CancelledError(presented(request))


async def hangs(request: IncomingRequest) -> Identity:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    raise KeyError(presented(request))


async def later(result: object) -> object:
    await asyncio.sleep(0)
    return result


# -- authenticate


@pytest.mark.parametrize(
    "decide", [raises, cancels, hangs, presented, lambda request: later(presented(request))]
)
async def test_failed_authenticator_is_503_without_credential(
    decide: Callable[[IncomingRequest], object], scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    other = Deciding(lambda request: Identity("other"))
    plugins = {"careless": Deciding(decide), "other": other}
    await scene.start(plugins=plugins, PLUGIN_TIMEOUT=0.05)
    responses = [
        await scene.ask("/v1/models"),
        await scene.ask("/openai/v1/models", token="wrong-guess"),
    ]
    # a 401 would make a key helper fetch a new key
    messages = {
        anthropic_error(responses[0], 503, "overloaded_error"),
        openai_error(responses[1], 503, "server_error"),
    }
    assert messages == {"Authentication is temporarily unavailable: try again."}
    assert [response.header("retry-after") for response in responses] == ["1", "1"]
    assert scene.upstream.connections == 0
    assert other.asked == 0
    await scene.records.finished(2)
    ended = [(each.status, each.outcome, each.principal) for each in scene.records.all]
    assert ended == [(503, "failed", None)] * 2
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert all("'careless'" in record.getMessage() for record in errors)
    if decide is raises:
        assert "test_plugins_served.py" in caplog.text, "where it was raised"
    for secret in (TEST_TOKEN, "wrong-guess"):
        assert secret not in caplog.text + repr(scene.records.all)
        assert all(secret not in repr(record.__dict__) for record in caplog.records)
        assert all(secret.encode() not in each.raw_head + each.body for each in responses)


@pytest.mark.parametrize(
    "decide", [lambda request: Identity("alice"), lambda request: later(Identity("alice"))]
)
async def test_authenticator_sees_request_as_sent_and_decides(
    decide: Callable[[IncomingRequest], object], scene: Scene
) -> None:
    seen: list[IncomingRequest] = []
    await scene.start(plugins=[Deciding(lambda request: seen.append(request) or decide(request))])  # type: ignore[func-returns-value]  # both
    body = b'{"model":"m"}' * 1000
    lines = [("X-Twice", "1"), ("X-Twice", "2"), ("x-api-key", "no-token-of-ours")]
    await scene.ask("/v1/a%20b?c=d", method="PUT", headers=lines, body=body, token=None)
    record = await scene.records.finished()
    assert (record.principal, record.outcome) == ("alice", "completed")
    (request,) = seen
    assert (request.method, request.path, request.remote_ip) == ("PUT", "/v1/a%20b", "127.0.0.1")
    assert request.dialect.value == "anthropic"
    assert request.headers.get_list("x-twice") == ["1", "2"]
    (received,) = scene.upstream.requests
    assert received.body == body
    assert received.all("x-api-key") == [TEST_UPSTREAM_KEY]


def denies(_: IncomingRequest) -> Identity:
    raise Denied(
        "Bob's budget is used up: ask Alice.",
        status=429,
        error_type="billing_error",
        code="insufficient_quota",
        param="model",
        retry_after=41.2,
        headers={"X-Should-Retry": "false", "X-Budget": "0"},
    )


async def test_denied_has_its_status_type_message_and_headers(scene: Scene) -> None:
    await scene.start(plugins=[Deciding(denies)])
    responses = [await scene.ask("/v1/models"), await scene.ask("/openai/v1/models")]
    quota = "insufficient_quota"
    messages = {
        anthropic_error(responses[0], 429, "billing_error"),
        openai_error(responses[1], 429, quota, code=quota, param="model"),
    }
    assert messages == {"Bob's budget is used up: ask Alice."}
    for response in responses:
        assert response.header("retry-after") == "42", "whole seconds, rounded up"
        assert response.header("x-should-retry") == "false"
        assert response.header("x-budget") == "0"
    record = await scene.records.finished()
    assert (record.status, record.outcome) == (429, "denied")
    assert scene.upstream.connections == 0


# -- a client that disconnects while a plugin decides


@pytest.mark.parametrize("decide", [lambda request: Identity("slow"), raises, denies])
async def test_disconnect_during_authentication_is_abandoned_once(
    decide: Callable[[IncomingRequest], object], scene: Scene
) -> None:
    begun, decided = asyncio.Event(), asyncio.Event()

    async def slow(request: IncomingRequest) -> object:
        if decided.is_set():
            return Identity("quick")
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        decided.set()
        return decide(request)

    await scene.start(plugins=[Deciding(slow)])
    client = await scene.raw()
    await client.send(request_bytes("POST", "/v1/messages", body=b"x" * 100, token=TEST_TOKEN))
    await begun.wait()
    await client.close()
    record = await scene.records.finished()
    await decided.wait()
    # what the late result leads to has happened once this request has ended
    assert (await scene.ask("/v1/models")).status == 200
    await scene.records.finished(2)
    assert (record.status, record.outcome) == (None, "abandoned")
    assert [each.outcome for each in scene.records.all] == ["abandoned", "completed"]
    assert [received.path for received in scene.upstream.requests] == ["/v1/models"]


# -- in place of the plugin token

THIRD_PARTY = """
import sys

import tornadoproxy


@tornadoproxy.hookimpl
def authenticate(request):
    if tornadoproxy.Secret("alices-key") in request.candidates():
        token = "imported" if "tornadoproxy_token" in sys.modules else "not-imported"
        return tornadoproxy.Identity(f"alice:token-{token}")
"""


async def test_disabled_token_plugin_is_replaced_and_not_imported(
    scene: Scene, tmp_path: Path
) -> None:
    install(tmp_path, "third_party", THIRD_PARTY)
    async with running(tmp_path, scene.upstream, DISABLED_PLUGINS="token") as program:
        for token, status in (("alices-key", 200), (TEST_TOKEN, 401)):
            request = request_bytes("GET", "/v1/models", token=token)
            assert (await program.ask(request)).status == status
        await program.output.wait_for("principal")
        record = json.loads(program.output.all[0])
    assert record["principal"] == "alice:token-not-imported"


# -- the headers of a request


class Badge:
    """Declares a credential header, and logs the request."""

    @hookimpl
    def credential_headers(self) -> list[str]:
        return ["x-badge"]

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> None:
        logging.getLogger("badge").warning("asked about %s %s", request, request.headers)


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/v1/models", b""),
        ("/v1/files", b"%PDF"),
        ("/v1/messages", MESSAGE_BODY),
        (CHAT_PATH, CHAT_BODY),
    ],
)
async def test_credential_header_reaches_neither_upstream_nor_log(
    target: str, body: bytes, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await scene.start(plugins=[Badge()], LOG_LEVEL="debug")
    lines = [("X-Badge", "secret-badge-1"), ("x-BADGE", "secret-badge-2"), ("X-Own", "crosses")]
    await scene.ask(target, headers=lines, body=body)
    (received,) = scene.upstream.requests
    assert received.header("x-own") == "crosses"
    assert "secret-badge" not in str(received.headers)
    assert "asked about" in caplog.text
    assert "secret-badge" not in caplog.text + str(await scene.records.finished())

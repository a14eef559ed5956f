"""The hooks ``authenticate`` and ``credential_headers`` in a served proxy."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import pytest
from served import CHAT_BODY, CHAT_PATH, MESSAGE, anthropic_error, openai_error

from tornadoproxy import Identity, hookimpl
from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from scene import Scene

    from tornadoproxy import IncomingRequest


class Deciding:
    """An authenticator that records its requests and calls this function."""

    def __init__(self, decide: Callable[[IncomingRequest], object]) -> None:
        self._decide = decide
        self.seen: list[IncomingRequest] = []

    @hookimpl(tryfirst=True)
    def authenticate(self, request: IncomingRequest) -> Any:  # Any: what is tested
        self.seen.append(request)
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


async def hangs(request: IncomingRequest) -> Identity:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    raise KeyError(presented(request))


@pytest.mark.parametrize("decide", [raises, hangs, presented])
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
    assert other.seen == []
    await scene.records.finished(2)
    ended = [(each.status, each.outcome, each.principal) for each in scene.records.all]
    assert ended == [(503, "failed", None)] * 2
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert all("'careless'" in record.getMessage() for record in errors)
    if decide is raises:
        assert "test_authenticate.py" in caplog.text, "where it was raised"
    for secret in (TEST_TOKEN, "wrong-guess"):
        assert secret not in caplog.text + repr(scene.records.all)
        assert all(secret not in repr(record.__dict__) for record in caplog.records)
        assert all(secret.encode() not in each.raw_head + each.body for each in responses)


async def test_authenticator_sees_request_as_sent_and_decides(scene: Scene) -> None:
    async def decide(_: IncomingRequest) -> Identity:
        await asyncio.sleep(0)
        return Identity("alice")

    plugin = Deciding(decide)
    await scene.start(plugins=[plugin])
    body = b'{"model":"m"}' * 1000
    lines = [("X-Twice", "1"), ("X-Twice", "2"), ("x-api-key", "no-token-of-ours")]
    await scene.ask("/v1/a%20b?c=d", method="PUT", headers=lines, body=body, token=None)
    record = await scene.records.finished()
    assert (record.principal, record.outcome) == ("alice", "completed")
    (request,) = plugin.seen
    assert (request.method, request.path, request.remote_ip) == ("PUT", "/v1/a%20b", "127.0.0.1")
    assert request.dialect.value == "anthropic"
    assert request.headers.get_list("x-twice") == ["1", "2"]
    (received,) = scene.upstream.requests
    assert received.body == body
    assert received.all("x-api-key") == [TEST_UPSTREAM_KEY]


@pytest.mark.parametrize("decide", [lambda request: Identity("slow"), raises])
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
    await client.send(MESSAGE)
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


class Badge:
    """Declares a credential header, and logs the request."""

    @hookimpl
    def credential_headers(self) -> list[str]:
        return ["x-badge"]

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> None:
        logging.getLogger("badge").warning("asked about %s %s", request, request.headers)


@pytest.mark.parametrize(("target", "body"), [("/v1/files", b"%PDF"), (CHAT_PATH, CHAT_BODY)])
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

"""The plugin oidc: OpenTelemetry of clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
from signing_in import SigningIn
from tornado.ioloop import IOLoop
from tornadoproxy_oidc import telemetry

from tornadoproxy.testing import (
    TEST_TOKEN,
    RawResponse,
    ScriptedServer,
    json_response,
    silent_response,
)

PROTOBUF = "application/x-protobuf"
BODY = b"\x0a\x00binary\xff"


@pytest.fixture
def collector(io_loop: IOLoop) -> Iterator[ScriptedServer]:
    collector = ScriptedServer()
    io_loop.run_sync(collector.start)
    yield collector
    io_loop.run_sync(collector.stop)
    assert collector.failures == []


async def send(
    signing_in: SigningIn, path: str, token: str | None, kind: str = PROTOBUF
) -> RawResponse:
    return await signing_in.scene.ask(
        path, method="POST", headers={"Content-Type": kind}, body=BODY, token=token
    )


@pytest.mark.parametrize("signal", ["metrics", "logs", "traces"])
async def test_telemetry_goes_to_the_collector_with_who_sent_it(
    signal: str, signing_in: SigningIn, collector: ScriptedServer
) -> None:
    await signing_in.start(OIDC_OTLP_ENDPOINT=f"{collector.url}/otlp")
    signing_in.provider.person.update(sub="ada lovelace ü", groups=["lab", "a,b"])
    bearer = (await signing_in.sign_in())["access_token"]
    collector.script(json_response({}))
    response = await send(signing_in, f"/v1/{signal}", bearer)
    assert (response.status, response.body) == (200, b"")
    await collector.received()
    (request,) = collector.requests
    await request.complete()
    assert (request.method, request.path, request.body) == ("POST", f"/otlp/v1/{signal}", BODY)
    assert request.header("content-type") == PROTOBUF
    assert request.header("authorization") is None
    assert request.header("x-user-id") == "ada%20lovelace%20%C3%BC"
    assert request.header("x-user-email") == "ada@acme.example"
    assert request.header("x-user-groups") == "lab,a,b"
    assert signing_in.scene.upstream.requests == []


async def test_telemetry_without_a_collector_is_taken_and_goes_nowhere(
    signing_in: SigningIn,
) -> None:
    await signing_in.start()
    response = await send(signing_in, "/v1/logs", TEST_TOKEN, "application/json; charset=utf-8")
    assert (response.status, response.body) == (200, b"{}")
    assert (await send(signing_in, "/v1/logs", None)).status == 401
    assert signing_in.scene.upstream.requests == []


@pytest.mark.parametrize(
    "fault", [silent_response(), json_response({}, 500)], ids=["silent", "500"]
)
async def test_collector_that_fails_is_no_clients_fault(
    fault: object,
    signing_in: SigningIn,
    collector: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(telemetry, "TIMEOUT", 0.2)
    monkeypatch.setattr(telemetry, "MAX_IN_FLIGHT", 1)
    await signing_in.start(OIDC_OTLP_ENDPOINT=collector.url)
    collector.script(fault, fault)  # type: ignore[arg-type]  # a response
    with caplog.at_level(logging.WARNING):
        responses = await asyncio.gather(
            *(send(signing_in, "/v1/logs", TEST_TOKEN) for _ in range(3))
        )
        while "telemetry is lost" not in caplog.text:
            await asyncio.sleep(0.01)
    assert [response.status for response in responses] == [200] * 3
    assert caplog.text.count("telemetry is lost") == 1

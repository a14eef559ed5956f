"""The plugin oidc: OpenTelemetry of clients."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from people import pause
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
BODY = ExportLogsServiceRequest(
    resource_logs=[
        ResourceLogs(
            resource=Resource(
                attributes=[
                    KeyValue(key="user.id", value=AnyValue(string_value="root")),
                    KeyValue(key="host.arch", value=AnyValue(string_value="arm64")),
                ]
            ),
            schema_url="kept",
        )
    ]
).SerializeToString()


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


async def test_telemetry_goes_to_the_collector_with_who_sent_it(
    signing_in: SigningIn, collector: ScriptedServer
) -> None:
    await signing_in.start(OIDC_OTLP_ENDPOINT=f"{collector.url}/otlp")
    signing_in.provider.person.update(sub="ada lovelace ü", groups=["lab", "a,b"])
    bearer = (await signing_in.sign_in())["access_token"]
    for number, signal in enumerate(("metrics", "logs", "traces"), 1):
        collector.script(json_response({}))
        response = await send(signing_in, f"/v1/{signal}", bearer)
        assert (response.status, response.body) == (200, b"")
        await collector.received(number)
        *_, request = collector.requests
        await request.complete()
        assert (request.method, request.path) == ("POST", f"/otlp/v1/{signal}")
        (logs,) = ExportLogsServiceRequest.FromString(request.body).resource_logs
        assert logs.schema_url == "kept"
        assert {each.key: each.value.string_value for each in logs.resource.attributes} == {
            "host.arch": "arm64",
            "identity.source": "gateway-oidc",
            "user.id": "ada lovelace ü",
            "user.email": "ada@acme.example",
            "user.groups": "lab,a,b",
        }
        assert request.header("content-type") == PROTOBUF
        assert request.header("authorization") is None
        assert request.header("x-user-id") == "ada%20lovelace%20%C3%BC"
        assert request.header("x-user-email") == "ada@acme.example"
        assert request.header("x-user-groups") == "lab,a,b"
    assert len(collector.requests) == 3
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
            await pause()
    assert [response.status for response in responses] == [200] * 3
    assert caplog.text.count("telemetry is lost") == 1


async def test_compressed_body_is_stamped_as_well(
    signing_in: SigningIn, collector: ScriptedServer
) -> None:
    await signing_in.start(OIDC_OTLP_ENDPOINT=collector.url)
    collector.script(json_response({}))
    headers = {"Content-Type": PROTOBUF, "Content-Encoding": "gzip"}
    response = await signing_in.scene.ask(
        "/v1/logs", method="POST", headers=headers, body=gzip.compress(BODY), token=TEST_TOKEN
    )
    assert response.status == 200
    await collector.received()
    (request,) = collector.requests
    await request.complete()
    assert request.header("content-encoding") is None
    (logs,) = ExportLogsServiceRequest.FromString(request.body).resource_logs
    found = {each.key: each.value.string_value for each in logs.resource.attributes}
    assert found == {"host.arch": "arm64", "user.id": "token"}


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (BODY, "gzip"),
        (BODY, "br"),
        (gzip.compress(BODY)[:-1], "gzip"),
        (gzip.compress(BODY) * 2, "gzip"),
        (gzip.compress(bytes(1 << 22)), "gzip"),
        (gzip.compress(gzip.compress(BODY)), "gzip, gzip"),
    ],
    ids=["plain", "br", "cut", "two", "large", "twice"],
)
async def test_body_that_cannot_be_decompressed_is_dropped(
    body: bytes,
    coding: str,
    signing_in: SigningIn,
    collector: ScriptedServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await signing_in.start(OIDC_OTLP_ENDPOINT=collector.url)
    headers = {"Content-Type": PROTOBUF, "Content-Encoding": coding}
    response = await signing_in.scene.ask(
        "/v1/logs", method="POST", headers=headers, body=body, token=TEST_TOKEN
    )
    assert response.status == 200
    while "a client's request is dropped" not in caplog.text:
        await pause()
    assert collector.requests == []


@pytest.mark.parametrize("kind", [PROTOBUF, "application/json"])
async def test_body_that_is_no_telemetry_is_dropped(
    kind: str, signing_in: SigningIn, collector: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    await signing_in.start(OIDC_OTLP_ENDPOINT=collector.url)
    response = await signing_in.scene.ask(
        "/v1/logs", method="POST", headers={"Content-Type": kind}, body=b"{\x00", token=TEST_TOKEN
    )
    assert response.status == 200
    while "a client's request is dropped" not in caplog.text:
        await pause()
    assert collector.requests == []


async def test_large_body_is_stamped_as_well(
    signing_in: SigningIn, collector: ScriptedServer
) -> None:
    await signing_in.start(OIDC_OTLP_ENDPOINT=collector.url)
    collector.script(json_response({}))
    body = b'{"resourceLogs":[{"x":"%b"}]}' % (b"x" * telemetry.IN_THREAD)
    headers = {"Content-Type": "application/json"}
    await signing_in.scene.ask(
        "/v1/logs", method="POST", headers=headers, body=body, token=TEST_TOKEN
    )
    await collector.received()
    (request,) = collector.requests
    await request.complete()
    (logs,) = json.loads(request.body)["resourceLogs"]
    assert logs["resource"]["attributes"] == [{"key": "user.id", "value": {"stringValue": "token"}}]

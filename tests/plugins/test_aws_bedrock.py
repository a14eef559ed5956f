"""What changes in a request to Bedrock, and what is left out of it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from pathlib import Path
from typing import Any

import pytest
from aws_cloud import ScriptedAWS, aws_entry, event_frame, frame
from msgspec.structs import replace
from scene import Scene
from tornadoproxy_aws.bedrock import UNSUPPORTED, BedrockWire
from tornadoproxy_aws.eventstream import MAX_FRAME, EventStreamDecoder

from tornadoproxy import InvalidRequest, OutgoingRequest, Unsupported, UpstreamError
from tornadoproxy.testing import (
    TEST_TOKEN,
    UpstreamExchange,
    message_document,
    message_events,
    request_bytes,
)

VERSION = ("Anthropic-Version", "2026-10-21")


def formed(
    body: bytes, *headers: tuple[str, str], unsupported: Unsupported = UNSUPPORTED
) -> OutgoingRequest:
    request = OutgoingRequest(
        upstream="bedrock",
        method="POST",
        target="/v1/messages?beta=true",
        headers=(VERSION, *headers),
        body=body,
    )
    return BedrockWire(None, unsupported).form(request)


def test_only_named_fields_change_in_a_body() -> None:
    stays = b'"max_tokens":1.0e2,"messages":[ {"model" : "\\u0061"} ]'
    body = b'{"model":"m",%b,"stream":false}' % stays
    request = formed(body)
    assert request.target == "/model/m/invoke"
    assert request.body == b'{%b,"anthropic_version":"2026-10-21"}' % stays
    assert request.header("anthropic-version") is None


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("anthropic.claude-3-haiku-20240307-v1:0", "anthropic.claude-3-haiku-20240307-v1:0"),
        ("arn:aws:bedrock:a:1:inference-profile/b", "arn:aws:bedrock:a:1:inference-profile%2Fb"),
        ("a b?c#d%e/../é", "a%20b%3Fc%23d%25e%2F..%2F%C3%A9"),
    ],
)
def test_model_is_one_segment_of_the_path(model: str, path: str) -> None:
    request = formed(json.dumps({"model": model, "stream": True}).encode())
    assert request.target == f"/model/{path}/invoke-with-response-stream"


@pytest.mark.parametrize("model", [b'"\xff"', b'""', b'".."', b'".;a"', b"3", b"null", b"[]"])
def test_model_that_is_no_name_is_refused(model: bytes) -> None:
    with pytest.raises(InvalidRequest, match="model"):
        formed(b'{"model":%b}' % model)


@pytest.mark.parametrize(
    "body", [b'{"model":"m","stream":1}', b'{"model":"m","anthropic_beta":"a"}', b"[]", b""]
)
def test_fields_that_cannot_be_moved_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        formed(body)


@pytest.mark.parametrize(
    ("version", "set_version", "sent"),
    [
        ("2023-06-01", None, "bedrock-2023-05-31"),
        ("2026-10-21", None, "2026-10-21"),
        ("2023-06-01", "2026-10-21", "2026-10-21"),
    ],
)
def test_version_is_that_of_the_client_or_the_entry(
    version: str, set_version: str | None, sent: str
) -> None:
    request = OutgoingRequest(
        upstream="bedrock",
        method="POST",
        target="/v1/messages",
        headers=(("anthropic-version", version),),
        body=b'{"model":"m"}',
    )
    body = json.loads(BedrockWire(None, version=set_version).form(request).body or b"")
    assert body == {"anthropic_version": sent}


BETAS = (
    ("anthropic-beta", "claude-code-20250219, interleaved-thinking-2025-05-14"),
    (
        "anthropic-beta",
        "context-1m-2025-08-07",
    ),
)
ASKED = b'{"model":"m","service_tier":"auto","speed":"fast","anthropic_beta":["x"]}'


def test_betas_and_fields_of_the_api_alone_are_left_out_and_named() -> None:
    request = formed(ASKED, *BETAS)
    assert json.loads(request.body or b"") == {
        "anthropic_version": "2026-10-21",
        "anthropic_beta": ["interleaved-thinking-2025-05-14", "context-1m-2025-08-07"],
    }
    assert set(request.ignored) == {"speed", "service_tier", "x", "claude-code-20250219"}
    assert request.header("anthropic-beta") is None


def test_betas_and_fields_of_the_api_alone_are_refused_if_the_entry_says_so() -> None:
    with pytest.raises(InvalidRequest, match="does not support service_tier, speed, x"):
        formed(ASKED, unsupported=replace(UNSUPPORTED, refuses=True))


def test_entry_says_which_betas_and_fields_are_known() -> None:
    unsupported = replace(UNSUPPORTED, betas=("claude-code-*", "x"), fields=())
    request = formed(ASKED, *BETAS, unsupported=unsupported)
    body = json.loads(request.body or b"")
    assert body["anthropic_beta"] == ["x", "claude-code-20250219"]
    assert body.keys() >= {"service_tier", "speed"}


def test_scope_of_a_cache_control_is_left_out_and_texts_stay() -> None:
    control: dict[str, Any] = {"type": "ephemeral", "scope": "global", "ttl": "1h"}
    said = json.dumps({"cache_control": control})
    system = [{"type": "text", "text": said, "cache_control": control}]
    schema = {"properties": {"cache_control": {"type": "object", "scope": "a"}}}
    body = {"model": "m", "system": system, "tools": [{"input_schema": schema}]}
    request = formed(json.dumps(body).encode())
    assert json.loads(request.body or b"") == {
        "anthropic_version": "2026-10-21",
        "system": [{**system[0], "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "tools": body["tools"],
    }
    assert request.ignored == ("cache_control.scope",)


async def test_client_is_told_what_was_left_out(
    scene: Scene, aws: ScriptedAWS, tmp_path: Path
) -> None:
    file = tmp_path / "upstreams.toml"
    file.write_text(aws_entry(aws, "bedrock"))
    await scene.start(UPSTREAMS_FILE=file)
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    response = await scene.ask("/v1/messages", {**body, "speed": "fast"})
    assert (response.status, response.header("x-tornadoproxy-ignored")) == (200, "speed")
    file.write_text(aws_entry(aws, "bedrock", unsupported="refuse", unsupported_fields=["speed"]))
    await scene.start(UPSTREAMS_FILE=file)
    response = await scene.ask("/v1/messages", {**body, "speed": "fast"})
    assert (response.status, b"does not support speed" in response.body) == (400, True)


async def test_large_bodies_are_signed_in_threads(
    scene: Scene, aws: ScriptedAWS, tmp_path: Path
) -> None:
    file = tmp_path / "upstreams.toml"
    file.write_text(aws_entry(aws, "bedrock"))
    await scene.start(UPSTREAMS_FILE=file)
    text = "Grüße! " * 90_000
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": text}]}
    responses = await asyncio.gather(*(scene.ask("/v1/messages", body) for _ in range(3)))
    assert [each.status for each in responses] == [200] * 3
    assert all(each.body_length > 700_000 for each in aws.requests)


async def test_uploads_to_another_upstream_still_stream(
    scene: Scene, aws: ScriptedAWS, tmp_path: Path
) -> None:
    other = f'[[upstream]]\nname = "other"\nbase_url = "{scene.upstream.url}"\napi_key = "k"\n'
    file = tmp_path / "upstreams.toml"
    file.write_text(aws_entry(aws, "bedrock") + other)
    await scene.start(UPSTREAMS_FILE=file)
    head = b"POST /v1/files HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n"
    head %= TEST_TOKEN.encode()
    await scene.send(head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    request = await scene.upstream.received()
    assert request.header("transfer-encoding") == "chunked"


# -- the event stream


def test_frame_without_an_end_is_given_up() -> None:
    decoder = EventStreamDecoder("")
    prelude = bytes.fromhex("017d7840 00000000")  # 25 million bytes
    head = prelude + binascii.crc32(prelude).to_bytes(4, "big")
    for piece in (head, bytes(MAX_FRAME - len(head) - 1), b"\0"):
        assert decoder.feed(piece) == b""
    with pytest.raises(UpstreamError, match="without an end"):
        decoder.feed(b"\0")


CHUNK = {":message-type": "event", ":event-type": "chunk"}


def chunk(data: bytes) -> bytes:
    return frame(CHUNK, json.dumps({"bytes": base64.b64encode(data).decode()}).encode())


@pytest.mark.parametrize(
    ("sent", "event"),
    [
        (chunk(b'{"type":"ping"}'), b'event: ping\ndata: {"type":"ping"}\n\n'),
        (chunk(b'{"a":\n1,"type":"b"}'), b'event: b\ndata: {"a": 1, "type": "b"}\n\n'),
        (chunk(b'{"completion":"Hi"}'), b""),
        (chunk(b"[]"), b""),
        (frame({**CHUNK, ":event-type": "initial-response"}, b"{}"), b""),
    ],
)
def test_frame_is_the_event_that_it_holds(sent: bytes, event: bytes) -> None:
    assert EventStreamDecoder("").feed(sent) == event


@pytest.mark.parametrize(
    ("headers", "payload", "kind", "message"),
    [
        (
            {":exception-type": "validationException"},
            b'{"message":"No"}',
            "invalid_request_error",
            "No",
        ),
        ({":exception-type": "new"}, b"not JSON", "api_error", "The upstream failed: new"),
        (
            {":error-code": "throttlingException", ":error-message": "Later"},
            b"",
            "rate_limit_error",
            "Later",
        ),
    ],
)
def test_error_frame_is_the_last_event(
    headers: dict[str, str], payload: bytes, kind: str, message: str
) -> None:
    decoder = EventStreamDecoder("req_1")
    kinds = {":message-type": "error" if ":error-code" in headers else "exception"}
    sent = frame({**kinds, **headers}, payload) + chunk(b'{"type":"ping"}')
    name, _, data = decoder.feed(sent).partition(b"\ndata: ")
    assert name == b"event: error"
    assert json.loads(data)["error"] == {"type": kind, "message": message}
    assert (decoder.feed(b"more"), decoder.end()) == (b"", b"")


@pytest.mark.parametrize("payload", [b"[]", b"{}", b'{"bytes":"x"}', b'{"bytes":"e30"}'])
def test_chunk_without_an_event_is_the_upstreams_fault(payload: bytes) -> None:
    with pytest.raises(UpstreamError, match="cannot be read"):
        EventStreamDecoder("").feed(frame(CHUNK, payload))


@pytest.mark.parametrize("stream", [b"HTTP/1.1 200 OK\r\n", b'{"message":"not a frame"}'])
def test_bytes_that_are_no_event_stream_are_the_upstreams_fault(stream: bytes) -> None:
    with pytest.raises(UpstreamError, match="cannot be read"):
        EventStreamDecoder("").feed(stream)


async def test_client_that_does_not_read_slows_bedrock_down(
    scene: Scene, aws: ScriptedAWS, tmp_path: Path
) -> None:
    file = tmp_path / "upstreams.toml"
    file.write_text(aws_entry(aws, "bedrock"))
    await scene.start(UPSTREAMS_FILE=file)
    events = message_events(message_document("x" * 60_000))
    stalled = asyncio.Event()

    async def endless(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        lines = [("Content-Type", "application/vnd.amazon.eventstream")]
        await exchange.head(200, [*lines, ("Transfer-Encoding", "chunked")])
        for event in (events[0], *(events[3] for _ in range(10_000))):
            sending = asyncio.create_task(exchange.chunk(event_frame(event)))
            if not (await asyncio.wait({sending}, timeout=0.1))[0]:
                stalled.set()
            await sending

    aws.script(endless)
    body = b'{"model":"m","max_tokens":9,"messages":[],"stream":true}'
    request = request_bytes("POST", "/v1/messages", body=body, token=TEST_TOKEN)
    client = await scene.send(request, receive_buffer=16_384)
    await stalled.wait()
    await client.close()
    await aws.all_closed()

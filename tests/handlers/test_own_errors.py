"""The proxy's own errors: a body too large or slow, an upstream that is late or the proxy."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from held_stream import Held
from scene import Scene
from served import (
    CHAT,
    CHAT_BODY,
    CHAT_PATH,
    CHUNKED,
    EVENT_STREAM,
    MESSAGE,
    MESSAGE_FIELDS,
    RESPONSES_BODY,
    RESPONSES_PATH,
    UPLOAD,
    anthropic_error,
    chunks,
    in_chunks,
    openai_error,
    request,
)
from tornado.testing import bind_unused_port

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    Response,
    UpstreamExchange,
    bytes_response,
    event,
    raw_response,
    response_head,
    silent_response,
)

pytestmark = pytest.mark.usefixtures("no_errors_logged")

PING = event({"type": "ping"})


# -- 413: the size of a body


async def test_chunks_over_limit_are_413_at_once(scene: Scene) -> None:
    await scene.start(MAX_BODY_SIZE=1000)
    client = await scene.send(request("POST", "/v1/messages", CHUNKED) + chunks(bytes(1000)))
    received = await scene.upstream.received()
    anthropic_error(await client.ask(chunks(b"x")), 413, "request_too_large")
    with pytest.raises(ConnectionError):
        await received.complete()
    assert received.body_length <= 1000
    assert (await scene.records.finished()).outcome == "denied"
    for _ in range(64):  # the client has not looked at the response yet
        await client.send(chunks(bytes(65536)))
    assert (await client.ask(b"0\r\n\r\n" + request("GET", "/health"))).status == 200


@pytest.mark.parametrize(
    ("path", "plain"),
    [("/v1/messages", CHAT_BODY), (CHAT_PATH, CHAT_BODY), (RESPONSES_PATH, RESPONSES_BODY)],
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_limit_itself_is_allowed(
    path: str, plain: bytes, scene: Scene, *, chunked: bool
) -> None:
    await scene.start(MAX_BODY_SIZE=1000)
    for size, status in ((1000, 200), (1001, 413)):
        body = b'{"max_tokens":9,' + plain[1:].ljust(size - 16)
        whole = request("POST", path, body=body)
        in_pieces = request("POST", path, CHUNKED) + in_chunks(body, size)
        response = await scene.ask(in_pieces if chunked else whole)
        assert response.status == status
    is_relayed = path == "/v1/messages"
    hint = b"1000 bytes (MAX_BODY_SIZE)" if is_relayed else b"MAX_BODY_SIZE may be lower"
    assert hint in response.body


# -- 408: a client that is silent


async def test_client_silent_within_its_body_is_408(scene: Scene) -> None:
    await scene.start(CLIENT_BODY_TIMEOUT=0.1)
    openai_error(await scene.ask(CHAT[:-1]), 408)
    response = await scene.ask(UPLOAD + chunks(b"half"))
    anthropic_error(response, 408, "invalid_request_error")
    record = await scene.records.finished(2)
    assert (record.outcome, record.status) == ("denied", 408)
    (received,) = scene.upstream.requests  # a held body has not been sent
    with pytest.raises(ConnectionError):
        await received.complete()


# -- 504: an upstream that is late; tests/system has its silence at each moment


def pausing(before_head: float, *before_pings: float) -> Response:
    """Make a response that is silent for that many seconds."""

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await asyncio.sleep(before_head)
        await exchange.head(200, EVENT_STREAM)
        for pause in before_pings:
            await asyncio.sleep(pause)
            await exchange.chunk(PING)
        await exchange.last_chunk()

    return response


async def test_silence_after_an_upload_is_504(scene: Scene) -> None:
    """From now on the client owes nothing."""
    await scene.start(UPSTREAM_FIRST_BYTE_TIMEOUT=0.6, CLIENT_BODY_TIMEOUT=0.3)
    scene.upstream.script(silent_response())
    client = await scene.send(UPLOAD)
    await scene.upstream.received()
    anthropic_error(await client.ask(in_chunks(b"x", 1)), 504, "timeout_error")


async def test_response_may_last_longer_than_any_deadline(scene: Scene) -> None:
    limit = 0.3
    names = (
        *("UPSTREAM_FIRST_BYTE_TIMEOUT", "UPSTREAM_IDLE_TIMEOUT", "CLIENT_IDLE_TIMEOUT"),
        *("CLIENT_BODY_TIMEOUT", "PLUGIN_TIMEOUT", "DRAIN_TIMEOUT"),
    )
    deadlines: dict[str, Any] = dict.fromkeys(names, limit)
    await scene.start(**deadlines)
    scene.upstream.script(pausing(0, *[limit / 5] * 8))
    assert (await scene.ask("/v1/messages", body=b"{}")).body == PING * 8
    record = await scene.records.finished()
    assert record.outcome == "completed"
    assert record.duration > limit


async def test_first_byte_deadline_is_whole_after_slow_upload(scene: Scene) -> None:
    await scene.start(UPSTREAM_FIRST_BYTE_TIMEOUT=0.4)
    scene.upstream.script(pausing(0.2, 0))
    client = await scene.send(UPLOAD)
    for pause in (0.45, 0.25):  # the client is slow
        await client.send(chunks(b"x"))
        await asyncio.sleep(pause)
    assert (await client.ask(b"0\r\n\r\n")).status == 200
    assert scene.upstream.requests[0].body == b"xx"


async def test_upstream_that_takes_no_body_is_504(scene: Scene) -> None:
    """The upload waits for the upstream, not for the client."""
    await scene.start(UPSTREAM_FIRST_BYTE_TIMEOUT=0.2, CLIENT_BODY_TIMEOUT=0.1)
    deaf = Held(silent_response())
    scene.upstream.script(deaf)
    client = await scene.send(UPLOAD)
    answered = asyncio.create_task(client.response())
    while not answered.done():
        sending = asyncio.create_task(client.send(chunks(bytes(0x40000))))
        await asyncio.wait({answered, sending}, return_when=asyncio.FIRST_COMPLETED)
    sending.cancel()
    deaf.may_begin.set()
    anthropic_error(await answered, 504, "timeout_error")


async def test_idle_deadline_stops_while_client_does_not_read(scene: Scene) -> None:
    """It holds again once the client reads on."""
    await scene.start(UPSTREAM_IDLE_TIMEOUT=0.2)
    size = 24 << 20  # more than the buffers between upstream and client hold
    head = response_head(200, {"Content-Length": str(size + 1)})
    scene.upstream.script(raw_response(head + bytes(size), end="hang"))
    client = await scene.send(MESSAGE, receive_buffer=16_384)
    await client.head()
    await asyncio.sleep(0.5)  # longer than the deadline
    assert not scene.records.all
    assert len(await client.read_to_end()) == size
    assert (await scene.records.finished()).outcome == "failed"


# -- 508: an upstream that is the proxy itself, by a name that does not show it

# loopback's, although it does not look like it: inet_aton(3) takes hexadecimal numbers
ANOTHER_NAME = "0x7f.1"


@pytest.mark.parametrize(
    ("path", "key", "error_type"),
    [
        ("/v1/messages", TEST_TOKEN, "api_error"),
        ("/v1/messages", TEST_UPSTREAM_KEY, "api_error"),
        (CHAT_PATH, TEST_UPSTREAM_KEY, "server_error"),
    ],
)
async def test_loop_through_another_name_is_508(
    scene: Scene, path: str, key: str, error_type: str
) -> None:
    """Whether or not the upstream's key is a token of the proxy."""
    free, port = bind_unused_port()
    free.close()
    await scene.start(
        PORT=port,
        UPSTREAM_BASE_URL=f"http://{ANOTHER_NAME}:{port}",
        UPSTREAM_ALLOW_CLEARTEXT="yes",
        UPSTREAM_API_KEY=key,
    )
    check_error = anthropic_error if path == "/v1/messages" else openai_error
    message = check_error(await scene.ask(path, MESSAGE_FIELDS), 508, error_type)
    assert "UPSTREAM_BASE_URL" in message
    await scene.records.finished(2)
    ends = [(record.status, record.outcome) for record in scene.records.all]
    assert ends[0] == (508, "denied")
    assert ends[-1][0] == 508


async def test_chain_of_two_proxies_adds_two_names_to_via(scene: Scene) -> None:
    """Other proxies' names in ``Via`` are no loop."""
    scene.upstream.script(bytes_response(b"ok"))
    inner = await scene.start(AUTH_TOKEN="the-inner-proxys-token")
    await scene.start(UPSTREAM_BASE_URL=inner.url, UPSTREAM_API_KEY="the-inner-proxys-token")
    via = {"Via": "1.0 fred, 1.1 tornadoproxy-0123456789abcdef (comment), 1.1 tornadoproxy-"}
    assert (await scene.ask("/v1/x", headers=via)).body == b"ok"
    (request,) = scene.upstream.requests
    assert request.all("x-api-key") == [TEST_UPSTREAM_KEY]
    first, second = request.all("Via")[-2:]
    assert first != second
    assert first.startswith("1.1 tornadoproxy-")
    assert second.startswith("1.1 tornadoproxy-")

"""Errors on the wire: the proxy's own, in the shape of either dialect, and the upstream's as is."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any, NoReturn

import anthropic
import openai
import pytest

from tornadoproxy import Denied, hookimpl
from tornadoproxy.testing import (
    TEST_TOKEN,
    bytes_response,
    event,
    json_response,
    raw_response,
    request_bytes,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tornadoproxy import Identity, IncomingRequest
    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawConnection,
        RawResponse,
        Records,
        Response,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

NOTHING: Response = bytes_response(b"{}")


class Failing:
    """An authenticator that fails."""

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> Identity | None:
        raise RuntimeError("broken")


class Refusing:
    """An authenticator that knows who asks, and says no."""

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> Identity | None:
        raise Denied("Not on a Sunday.")


class Crashing:
    """An answer's script that must never run."""

    async def __call__(self, exchange: UpstreamExchange) -> NoReturn:
        raise AssertionError("this was not to go upstream")


def message(**fields: Any) -> dict[str, Any]:  # JSON
    question = [{"role": "user", "content": "Hi"}]
    return {"model": "claude-sonnet-5-5", "max_tokens": 10, "messages": question, **fields}


def check_anthropic(response: RawResponse, status: int, error_type: str) -> str:
    """The response is an error of ours in the Anthropic shape; its message."""
    assert response.status == status
    assert response.header("Content-Type") == "application/json"
    assert response.header("Server") is None
    document = json.loads(response.body)
    request_id = document["request_id"]
    text: str = document["error"]["message"]
    assert document == {
        "type": "error",
        "error": {"type": error_type, "message": text},
        "request_id": request_id,
    }
    assert request_id.startswith("req_")
    assert response.all("request-id") == [request_id]
    assert len(text) > 10
    return text


def check_openai(
    response: RawResponse, status: int, error_type: str, code: str | None = None
) -> str:
    """The response is an error of ours in the OpenAI shape; its message."""
    assert response.status == status
    assert response.header("Content-Type") == "application/json"
    assert response.header("Server") is None
    document = json.loads(response.body)
    text: str = document["error"]["message"]
    assert document == {"error": {"message": text, "type": error_type, "param": None, "code": code}}
    (request_id,) = response.all("x-request-id")
    assert request_id.startswith("req_")
    assert response.header("request-id") is None
    assert len(text) > 10
    return text


async def ask(raw: OpenRaw, request: bytes) -> RawResponse:
    connection = await raw()
    await connection.send(request)
    return await connection.response()


def get(target: str, *, token: str | None = TEST_TOKEN, method: str = "GET") -> bytes:
    return request_bytes(method, target, token=token)


# -- the proxy's own, in both dialects


@pytest.mark.parametrize("target", ["/v1/../admin", "/nowhere/%2e%2e/"])
async def test_a_bad_target_is_400(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, target: str
) -> None:
    check_anthropic(await ask(raw, get(target)), 400, "invalid_request_error")
    check_openai(await ask(raw, get("/openai" + target)), 400, "invalid_request_error")
    assert upstream.requests == []


@pytest.mark.parametrize(
    "lines",
    [
        b"Host: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        b"Host: a\r\nContent-Length: one\r\n\r\n",
        b"Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        b"Host: a\nX: y\r\n\r\n",
        b"\r\n",
        b"Host: a\r\nHost: b\r\n\r\n",
        b"Host: a\r\nno colon\r\n\r\n",
    ],
)
async def test_a_malformed_request_is_400(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, lines: bytes
) -> None:
    for line in (b"POST /v1/messages HTTP/1.1\r\n", b"POST /nowhere HTTP/1.1\r\n"):
        check_anthropic(await ask(raw, line + lines), 400, "invalid_request_error")
    response = await ask(raw, b"POST /openai/v1/models HTTP/1.1\r\n" + lines)
    check_openai(response, 400, "invalid_request_error")
    assert upstream.requests == []


async def test_no_credential_is_401_with_a_challenge(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    for token in (None, "wrong"):
        for target in ("/v1/messages", "/nowhere"):
            response = await ask(raw, get(target, token=token))
            check_anthropic(response, 401, "authentication_error")
            assert response.header("WWW-Authenticate") == "Bearer"
        for target in ("/openai/v1/chat/completions", "/openai/nowhere", "/openai"):
            response = await ask(raw, get(target, token=token))
            check_openai(response, 401, "invalid_request_error", "invalid_api_key")
            assert response.header("WWW-Authenticate") == "Bearer"
    assert upstream.requests == []


async def test_denied_is_403(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(plugins=[Refusing()])
    response = await ask(raw, get("/v1/messages"))
    assert check_anthropic(response, 403, "permission_error") == "Not on a Sunday."
    response = await ask(raw, get("/openai/v1/models"))
    assert check_openai(response, 403, "permission_error") == "Not on a Sunday."
    assert upstream.requests == []


async def test_nothing_there_is_404(proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream) -> None:
    for target in ("/nowhere", "/v1", "/v2/messages", "/healthy", "/api/hello/there"):
        check_anthropic(await ask(raw, get(target)), 404, "not_found_error")
    check_openai(await ask(raw, get("/openai/nowhere")), 404, "invalid_request_error")
    assert upstream.requests == []


async def test_a_method_that_nobody_has_is_405(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    for target in ("/v1/messages", "/nowhere", "/health", "/ready", "/"):
        response = await ask(raw, get(target, method="TRACE"))
        check_anthropic(response, 405, "invalid_request_error")
    response = await ask(raw, get("/openai/v1/models", method="TRACE"))
    check_openai(response, 405, "invalid_request_error")
    for method in ("POST", "PROPFIND"):
        response = await ask(raw, get("/health", method=method, token=None))
        check_anthropic(response, 405, "invalid_request_error")
    assert upstream.requests == []


async def test_an_authenticator_that_fails_is_503(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(plugins=[Failing()])
    text = check_anthropic(await ask(raw, get("/v1/models")), 503, "overloaded_error")
    assert "broken" not in text
    text = check_openai(await ask(raw, get("/openai/v1/models")), 503, "server_error")
    assert "broken" not in text
    assert upstream.requests == []


async def test_an_error_that_answers_head_has_the_headers_alone(proxy: Proxy, raw: OpenRaw) -> None:
    connection = await raw()
    await connection.send(get("/nowhere", method="HEAD"))
    response = await connection.response(to_head=True)
    assert response.status == 404
    assert response.header("Content-Type") == "application/json"
    assert (response.header("request-id") or "").startswith("req_")
    await connection.send(get("/health"))
    assert (await connection.response()).body == b'{"status":"ok"}'


async def test_an_error_leaves_the_connection_usable(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    connection = await raw()
    for request in (
        request_bytes("POST", "/v1/messages", (), b"x" * 1000, token="wrong"),
        request_bytes("POST", "/v1/../x", (), b"x" * 1000, token=TEST_TOKEN),
        request_bytes("POST", "/nowhere", (), b"x" * 1000, token=TEST_TOKEN),
        get("/v1/x", method="TRACE"),
    ):
        await connection.send(request)
        assert (await connection.response()).status in {400, 401, 404, 405}
    upstream.script(NOTHING)
    await connection.send(get("/v1/x"))
    assert (await connection.response()).body == b"{}"


# -- 408


async def test_a_held_body_that_stalls_is_408_and_nothing_goes_upstream(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    await start_proxy(CLIENT_BODY_TIMEOUT=0.05)
    response = await ask(raw, request_bytes("POST", "/v1/x", (), b"1234", token=TEST_TOKEN)[:-1])
    check_anthropic(response, 408, "invalid_request_error")
    assert (await records.finished()).outcome == "denied"
    assert upstream.requests == []


async def test_a_streamed_body_that_stalls_is_408_and_the_upstream_sees_it_cut(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(CLIENT_BODY_TIMEOUT=0.05)
    upstream.script(NOTHING)
    head = request_bytes("POST", "/v1/x", {"Transfer-Encoding": "chunked"}, token=TEST_TOKEN)
    response = await ask(raw, head + b"4\r\n1234\r\n")
    check_anthropic(response, 408, "invalid_request_error")
    with pytest.raises(ConnectionError):
        await (await upstream.received()).complete()


async def test_an_upload_that_waits_for_the_upstream_is_not_the_clients_fault(
    start_proxy: StartProxy, raw: OpenRaw
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reads_nothing:
        await start_proxy(
            UPSTREAM_BASE_URL=f"http://127.0.0.1:{reads_nothing.getsockname()[1]}",
            UPSTREAM_FIRST_BYTE_TIMEOUT=0.5,
            CLIENT_BODY_TIMEOUT=0.05,
        )
        connection = await raw()
        size = 256 << 20  # more than the sockets on the way hold
        head = request_bytes("POST", "/v1/files", {"Content-Length": str(size)}, token=TEST_TOKEN)
        sending = asyncio.create_task(send_repeatedly(connection, head, size))
        check_anthropic(await connection.response(), 504, "timeout_error")
        sending.cancel()


async def send_repeatedly(connection: RawConnection, head: bytes, size: int) -> None:
    await connection.send(head)
    piece = bytes(1 << 16)
    for _ in range(size // len(piece)):
        await connection.send(piece)


# -- 413


async def test_a_length_over_the_limit_is_413_before_the_body(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    """The client reads the answer although it is still sending, and may go on afterwards."""
    await start_proxy(MAX_BODY_SIZE=1000)
    connection = await raw()
    size = 4 << 20
    headers = {"Content-Length": str(size)}
    await connection.send(request_bytes("POST", "/v1/messages", headers, token=TEST_TOKEN))
    text = check_anthropic(await connection.response(), 413, "request_too_large")
    assert "1000" in text
    assert "MAX_BODY_SIZE" in text
    assert (await records.finished()).bytes_in == 0
    await send_repeatedly(connection, b"", size)
    upstream.script(NOTHING)
    await connection.send(get("/v1/x"))
    assert (await connection.response()).body == b"{}"
    assert len(upstream.requests) == 1


async def test_a_chunked_body_is_413_as_soon_as_it_is_over_the_limit(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    await start_proxy(MAX_BODY_SIZE=1000)
    upstream.script(NOTHING)
    connection = await raw()
    headers = {"Transfer-Encoding": "chunked"}
    head = request_bytes("POST", "/v1/messages", headers, token=TEST_TOKEN)
    await connection.send(head + b"3e8\r\n" + b"x" * 1000 + b"\r\n")
    request = await upstream.received()
    await connection.send(b"1\r\nx\r\n")
    check_anthropic(await connection.response(), 413, "request_too_large")
    with pytest.raises(ConnectionError):
        await request.complete()
    assert request.body_length <= 1000
    assert (await records.finished()).outcome == "denied"
    for _ in range(64):  # the client has not looked at the answer yet
        await connection.send(b"10000\r\n" + bytes(65536) + b"\r\n")
    await connection.send(b"0\r\n\r\n" + get("/health"))
    assert (await connection.response()).body == b'{"status":"ok"}'


@pytest.mark.parametrize("size", [1000, 1001])
async def test_the_limit_itself_is_allowed(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, size: int
) -> None:
    await start_proxy(MAX_BODY_SIZE=1000)
    upstream.script(NOTHING, NOTHING)
    expected = 200 if size == 1000 else 413
    request = request_bytes("POST", "/v1/x", (), b"x" * size, token=TEST_TOKEN)
    assert (await ask(raw, request)).status == expected
    head = request_bytes("POST", "/v1/x", {"Transfer-Encoding": "chunked"}, token=TEST_TOKEN)
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size)
    assert (await ask(raw, head + body)).status == expected


# -- 502, 504


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
async def test_a_refused_connection_is_502(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records, method: str
) -> None:
    await upstream.stop()
    connection = await raw()
    await connection.send(get("/v1/messages", method=method))
    response = await connection.response(to_head=method == "HEAD")
    if method != "HEAD":
        check_anthropic(response, 502, "api_error")
    assert response.status == 502
    record = await records.finished()
    assert (record.outcome, record.status) == ("failed", 502)


@pytest.mark.parametrize(
    "scripted",
    [
        pytest.param(raw_response(end="close"), id="closed without an answer"),
        pytest.param(raw_response(end="reset"), id="reset without an answer"),
        pytest.param(raw_response(b"HTTP/1.1 200 OK\r\nConten", end="close"), id="half a head"),
        pytest.param(raw_response(b"HTTP/1.1 200 OK\r\nConten", end="reset"), id="reset in it"),
        pytest.param(
            raw_response(b"HTTP/1.1 100 Continue\r\n\r\n", end="close"), id="interim only"
        ),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_upstream_that_leaves_before_its_answer_is_502(
    proxy: Proxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    method: str,
    scripted: Response,
) -> None:
    upstream.script(scripted)
    response = await ask(raw, get("/v1/messages", method=method))
    check_anthropic(response, 502, "api_error")
    assert (await records.finished()).outcome == "failed"
    assert len(upstream.requests) == 1


async def test_no_first_byte_in_time_is_504(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    await start_proxy(UPSTREAM_FIRST_BYTE_TIMEOUT=0.05)
    upstream.script(silent_response())
    response = await ask(raw, request_bytes("POST", "/v1/x", (), b"body", token=TEST_TOKEN))
    check_anthropic(response, 504, "timeout_error")
    assert (await records.finished()).outcome == "failed"
    async with asyncio.timeout(1):
        await upstream.requests[0].gone()


async def test_an_answer_that_has_begun_never_ends_as_an_error_document(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    """A second head within a body would be taken for a part of it."""
    upstream.script(
        raw_response(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello", end="close")
    )
    connection = await raw()
    await connection.send(get("/v1/x"))
    response = await connection.head()
    assert response.status == 200
    assert await connection.read_to_end() == b"hello"
    assert (await records.finished()).outcome == "failed"


# -- 529


async def test_one_request_too_many_is_529_with_retry_after(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=0)
    upstream.script(silent_response(), Crashing())
    first = await raw()
    await first.send(get("/v1/x"))
    await upstream.received()
    response = await ask(raw, get("/v1/x"))
    check_anthropic(response, 529, "overloaded_error")
    assert response.reason == "Overloaded"
    assert int(response.header("Retry-After") or "") >= 1
    # probes answer all the same
    assert (await ask(raw, get("/health", token=None))).status == 200
    assert len(upstream.requests) == 1


async def _complete(connection: RawConnection, upstream: ScriptedUpstream) -> None:
    upstream.script(NOTHING)
    await connection.send(get("/v1/x"))
    assert (await connection.response()).status == 200


async def _fail_upstream(connection: RawConnection, upstream: ScriptedUpstream) -> None:
    upstream.script(raw_response(end="reset"))
    await connection.send(get("/v1/x"))
    assert (await connection.response()).status == 502


async def _cut_upstream(connection: RawConnection, upstream: ScriptedUpstream) -> None:
    upstream.script(sse_response(event({"type": "ping"}), end="reset"))
    await connection.send(get("/v1/x"))
    await connection.read_to_end()


async def _leave(connection: RawConnection, upstream: ScriptedUpstream) -> None:
    upstream.script(silent_response())
    count = len(upstream.requests)
    await connection.send(get("/v1/x"))
    await upstream.received(count + 1)
    await connection.close()


async def _leave_within_the_body(connection: RawConnection, upstream: ScriptedUpstream) -> None:
    count = len(upstream.requests)
    upstream.script(NOTHING)
    headers = {"Transfer-Encoding": "chunked"}
    await connection.send(request_bytes("POST", "/v1/x", headers, token=TEST_TOKEN) + b"4\r\n12")
    await upstream.received(count + 1)
    await connection.reset()


async def _stall(connection: RawConnection, upstream: ScriptedUpstream) -> None:
    await connection.send(request_bytes("POST", "/v1/x", (), b"1234", token=TEST_TOKEN)[:-1])
    assert (await connection.response()).status == 408


async def _be_refused(connection: RawConnection, upstream: ScriptedUpstream) -> None:
    await connection.send(get("/v1/x", token="wrong"))
    assert (await connection.response()).status == 401


async def _be_too_large(connection: RawConnection, upstream: ScriptedUpstream) -> None:
    await connection.send(request_bytes("POST", "/v1/x", (), b"x" * 2000, token=TEST_TOKEN))
    assert (await connection.response()).status == 413


async def _find_nothing(connection: RawConnection, upstream: ScriptedUpstream) -> None:
    await connection.send(get("/nowhere"))
    assert (await connection.response()).status == 404


async def _wait_too_long(connection: RawConnection, upstream: ScriptedUpstream) -> None:
    upstream.script(silent_response())
    await connection.send(get("/v1/x"))
    assert (await connection.response()).status == 504


@pytest.mark.parametrize(
    "end",
    [
        _complete,
        _fail_upstream,
        _cut_upstream,
        _leave,
        _leave_within_the_body,
        _stall,
        _be_refused,
        _be_too_large,
        _find_nothing,
        _wait_too_long,
    ],
)
async def test_capacity_is_given_back_however_a_request_ends(
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    end: Callable[[RawConnection, ScriptedUpstream], Awaitable[None]],
) -> None:
    await start_proxy(
        MAX_CONCURRENT_REQUESTS=1,
        QUEUE_TIMEOUT=0,
        MAX_BODY_SIZE=1000,
        CLIENT_BODY_TIMEOUT=0.1,
        UPSTREAM_FIRST_BYTE_TIMEOUT=0.3,
    )
    for round_ in (0, 1):
        await end(await raw(), upstream)
        await records.finished(2 * round_ + 1)
        upstream.script(NOTHING)
        assert (await ask(raw, get("/v1/x"))).status == 200


# -- the same of chat completions, in the OpenAI shape


CHAT = json.dumps({"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "Hi"}]})


def chat(body: bytes = CHAT.encode(), headers: dict[str, str] | None = None) -> bytes:
    lines = {"Content-Type": "application/json", **(headers or {})}
    return request_bytes("POST", "/openai/v1/chat/completions", lines, body, token=TEST_TOKEN)


@pytest.mark.parametrize(
    ("settings", "response", "status"),
    [
        ({}, raw_response(end="close"), 502),
        ({}, raw_response(end="reset"), 502),
        ({}, raw_response(b"garbage\r\n\r\n"), 502),
        ({"UPSTREAM_BASE_URL": "http://127.0.0.1:1"}, Crashing(), 502),
        ({"UPSTREAM_FIRST_BYTE_TIMEOUT": 0.05}, silent_response(), 504),
    ],
    ids=["closed", "reset", "garbage", "refused", "silent"],
)
async def test_an_upstream_that_fails_has_the_openai_shape_there(
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    settings: dict[str, Any],  # as start_proxy takes them
    response: Response,
    status: int,
) -> None:
    await start_proxy(**settings)
    upstream.script(response)
    check_openai(await ask(raw, chat()), status, "server_error")


async def test_a_body_that_is_too_large_or_stalls_has_the_openai_shape_there(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start_proxy(MAX_BODY_SIZE=1000, CLIENT_BODY_TIMEOUT=0.05)
    chunked = {"Transfer-Encoding": "chunked"}
    check_openai(await ask(raw, chat(b" " * 1001)[:-1]), 413, "invalid_request_error")
    over = b"3e9\r\n" + b" " * 1001
    check_openai(await ask(raw, chat(b"", chunked) + over), 413, "invalid_request_error")
    check_openai(await ask(raw, chat()[:-1]), 408, "invalid_request_error")
    assert upstream.requests == []


async def test_one_chat_too_many_is_503_with_retry_after(
    openai_client: openai.AsyncOpenAI,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
) -> None:
    """OpenAI's clients know no 529."""
    proxy = await start_proxy(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=0)
    upstream.script(silent_response(), Crashing())
    first = await raw()
    await first.send(chat())
    await upstream.received()
    response = await ask(raw, chat())
    check_openai(response, 503, "server_error")
    assert int(response.header("Retry-After") or "") >= 1
    client = openai_client.with_options(base_url=f"{proxy.url}/openai/v1")
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(
            model="claude-sonnet-5-5", messages=[{"role": "user", "content": "Hi"}]
        )
    assert caught.value.status_code == 503
    assert (caught.value.request_id or "").startswith("req_")
    assert len(upstream.requests) == 1


# -- what the SDKs make of them


async def test_the_anthropic_sdk_surfaces_class_type_message_and_request_id(
    anthropic_client: anthropic.AsyncAnthropic, upstream: ScriptedUpstream
) -> None:
    stranger = anthropic_client.with_options(api_key="wrong")
    with pytest.raises(anthropic.AuthenticationError) as caught:
        await stranger.messages.create(**message())
    error = caught.value
    assert error.type == "authentication_error"
    assert "token" in (error.api_message or "")
    assert error.request_id == error.body["request_id"]  # type: ignore[index]  # JSON
    await upstream.stop()
    with pytest.raises(anthropic.InternalServerError) as failed:
        await anthropic_client.messages.create(**message())
    assert failed.value.status_code == 502
    assert failed.value.type == "api_error"
    assert (failed.value.request_id or "").startswith("req_")
    with pytest.raises(anthropic.NotFoundError) as missing:
        await anthropic_client.post("/nowhere", cast_to=object)
    assert missing.value.type == "not_found_error"


@pytest.mark.parametrize(
    ("settings", "response", "kind", "error_type"),
    [
        (
            {"MAX_BODY_SIZE": 10},
            Crashing(),
            anthropic.RequestTooLargeError,
            "request_too_large",
        ),
        (
            {"UPSTREAM_FIRST_BYTE_TIMEOUT": 0.05},
            silent_response(),
            anthropic.DeadlineExceededError,
            "timeout_error",
        ),
    ],
)
async def test_the_anthropic_sdk_has_a_class_for_each(
    anthropic_client: anthropic.AsyncAnthropic,
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    settings: dict[str, Any],  # as start_proxy takes them
    response: Response,
    kind: type[anthropic.APIStatusError],
    error_type: str,
) -> None:
    proxy = await start_proxy(**settings)
    upstream.script(response)
    client = anthropic_client.with_options(base_url=proxy.url)
    with pytest.raises(kind) as caught:
        await client.messages.create(**message())
    assert caught.value.type == error_type
    assert caught.value.api_message
    assert (caught.value.request_id or "").startswith("req_")


async def test_the_anthropic_sdk_retries_after_an_overload(
    anthropic_client: anthropic.AsyncAnthropic,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    """529 with retry-after: the SDK waits, and tries again."""
    proxy = await start_proxy(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=0)
    upstream.script(silent_response())
    first = await raw()
    await first.send(get("/v1/x"))
    await upstream.received()
    client = anthropic_client.with_options(base_url=proxy.url)
    with pytest.raises(anthropic.OverloadedError) as caught:
        await client.messages.create(**message())
    assert caught.value.type == "overloaded_error"
    patient = client.with_options(max_retries=1)
    asking = asyncio.create_task(patient.messages.create(**message()))
    assert (await records.finished(2)).status == 529
    await first.close()
    assert (await asking).type == "message"


async def test_the_openai_sdk_surfaces_class_type_code_message_and_request_id(
    openai_client: openai.AsyncOpenAI, start_proxy: StartProxy
) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        await openai_client.with_options(api_key="wrong").models.list()
    error = caught.value
    assert (error.type, error.code) == ("invalid_request_error", "invalid_api_key")
    assert "token" in error.message
    assert (error.request_id or "").startswith("req_")
    with pytest.raises(openai.NotFoundError) as missing:
        await openai_client.post("/nowhere", cast_to=object)
    assert missing.value.type == "invalid_request_error"
    assert (missing.value.request_id or "").startswith("req_")
    failing = await start_proxy(plugins=[Failing()])
    elsewhere = openai_client.with_options(base_url=f"{failing.url}/openai/v1")
    with pytest.raises(openai.InternalServerError) as failed:
        await elsewhere.models.list()
    assert failed.value.status_code == 503
    assert failed.value.type == "server_error"


# -- the upstream's own


@pytest.mark.parametrize(
    ("status", "reason", "body"),
    [
        (
            400,
            "Bad Request",
            b'{"type":"error",  "error":{"message":"prompt is too long: \\u0041"}}',
        ),
        (402, "Payment Required", b"{}"),
        (403, "No Way", b"<!DOCTYPE html><h1>403</h1>\n"),
        (404, "Not Found", b""),
        (405, "Method Not Allowed", b"[]"),
        (408, "Request Timeout", b"null"),
        (409, "Conflict", b"\xff\xfe\x00 not text"),
        (413, "Content Too Large", b'{"type":"error","error":{"type":"request_too_large"}}'),
        (429, "Too Many Requests", b'{"type":"error","error":{"type":"rate_limit_error"}}'),
        (451, "Unavailable For Legal Reasons", b"x"),
        (500, "Internal Server Error", b"Traceback (most recent call last):\n"),
        (502, "Bad Gateway", b"<html>nginx</html>"),
        (503, "Service Unavailable", b" "),
        (504, "", b"no reason"),
        (529, "Site is overloaded", b'{"type":"error","error":{"type":"overloaded_error"}}'),
        (599, "Network Connect Timeout Error", b"odd"),
    ],
)
async def test_the_upstreams_errors_pass_byte_for_byte(
    proxy: Proxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    status: int,
    reason: str,
    body: bytes,
) -> None:
    headers = [
        ("Content-Type", "text/html; charset=iso-8859-1"),
        ("Content-Length", str(len(body))),
        ("Retry-After", "17"),
        ("Retry-After-Ms", "17000.5"),
        ("X-Should-Retry", "false"),
        ("Request-Id", "req_of_the_upstream"),
        ("Anthropic-Ratelimit-Requests-Remaining", "0"),
        ("Anthropic-Organization-Id", "org"),
        ("Www-Authenticate", 'Basic realm="upstream"'),
        ("Cf-Ray", "abc-FRA"),
        ("Date", "Tue, 24 Nov 2026 10:28:36 GMT"),
    ]
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = f"HTTP/1.1 {status} {reason}\r\n{lines}\r\n".encode()
    upstream.script(raw_response(head + body))
    response = await ask(raw, request_bytes("POST", "/v1/messages", (), b"{}", token=TEST_TOKEN))
    assert (response.status, response.reason) == (status, reason)
    assert response.headers == headers
    assert response.body == body
    record = await records.finished()
    assert (record.outcome, record.request_id) == ("completed", "req_of_the_upstream")


async def test_the_upstreams_error_has_the_sdks_own_class(
    anthropic_client: anthropic.AsyncAnthropic, upstream: ScriptedUpstream
) -> None:
    upstream.script(
        json_response(
            {"type": "error", "error": {"type": "rate_limit_error", "message": "Slow down"}},
            429,
            {"request-id": "req_theirs", "retry-after": "3"},
        )
    )
    with pytest.raises(anthropic.RateLimitError) as caught:
        await anthropic_client.messages.create(**message())
    assert caught.value.api_message == "Slow down"
    assert caught.value.request_id == "req_theirs"
    assert caught.value.response.headers["retry-after"] == "3"

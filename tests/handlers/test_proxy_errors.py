"""The proxy's own errors, in the shape of either API and as the SDKs raise them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest
from served import (
    CHAT_BODY,
    CHAT_PATH,
    CHUNKED,
    anthropic_error,
    chunks,
    in_chunks,
    openai_error,
    request,
)

from tornadoproxy import hookimpl
from tornadoproxy.testing import bytes_response, raw_response, silent_response

if TYPE_CHECKING:
    from scene import Scene

    from tornadoproxy import Identity
    from tornadoproxy.testing import (
        Proxy,
        Response,
    )

OK: Response = bytes_response(b"{}")
GET = request("GET", "/v1/x")
MESSAGE: dict[str, Any] = {  # Any: JSON
    "model": "claude-sonnet-5-5",
    "max_tokens": 10,
    "messages": [{"role": "user", "content": "Hi"}],
}


class Broken:
    """An authenticator that fails."""

    @hookimpl
    def authenticate(self) -> Identity | None:
        raise RuntimeError("broken")


# -- 413


async def test_length_over_limit_is_413_before_the_body(scene: Scene) -> None:
    """The client may send its body all the same, and then the next request."""
    await scene.start(MAX_BODY_SIZE=1000)
    client = await scene.raw()
    size = 4 << 20
    head = request("POST", "/v1/messages", ("Content-Length", str(size)))
    message = anthropic_error(await client.ask(head), 413, "request_too_large")
    assert "1000" in message
    assert "MAX_BODY_SIZE" in message
    assert (await scene.records.finished()).bytes_in == 0
    await client.send(bytes(size))
    scene.upstream.script(OK)
    assert (await client.ask(GET)).body == b"{}"
    assert len(scene.upstream.requests) == 1


async def test_chunks_over_limit_are_413_at_once(scene: Scene) -> None:
    await scene.start(MAX_BODY_SIZE=1000)
    scene.upstream.script(OK)
    client = await scene.raw()
    await client.send(request("POST", "/v1/messages", CHUNKED) + chunks(bytes(1000)))
    received = await scene.upstream.received()
    anthropic_error(await client.ask(chunks(b"x")), 413, "request_too_large")
    with pytest.raises(ConnectionError):
        await received.complete()
    assert received.body_length <= 1000
    assert (await scene.records.finished()).outcome == "denied"
    for _ in range(64):  # the client has not looked at the response yet
        await client.send(chunks(bytes(65536)))
    assert (await client.ask(b"0\r\n\r\n" + request("GET", "/health"))).status == 200


async def test_limit_itself_is_allowed_in_either_dialect(scene: Scene) -> None:
    await scene.start(MAX_BODY_SIZE=1000)
    for size in (1000, 1001):
        for path in ("/v1/x", CHAT_PATH):
            body = CHAT_BODY.ljust(size)
            for data in (
                request("POST", path, body=body),
                request("POST", path, CHUNKED) + in_chunks(body, size),
            ):
                response = await (await scene.raw()).ask(data)
                if size == 1000:
                    assert response.status == (404 if path == "/v1/x" else 200)
                elif path == CHAT_PATH:
                    openai_error(response, 413)
                else:
                    anthropic_error(response, 413, "request_too_large")


# -- 502


async def test_upstream_without_a_whole_head_is_502(scene: Scene, proxy: Proxy) -> None:
    scripted = [
        raw_response(end="close"),
        raw_response(end="reset"),
        raw_response(b"HTTP/1.1 200 OK\r\nConten", end="close"),
        raw_response(b"HTTP/1.1 200 OK\r\nConten", end="reset"),
        raw_response(b"HTTP/1.1 100 Continue\r\n\r\n", end="close"),
        raw_response(b"garbage\r\n\r\n"),
    ]
    for response in scripted:
        scene.upstream.script(*[response] * 3)
        anthropic_error(await scene.ask("/v1/messages"), 502, "api_error")
        anthropic_error(await scene.ask("/v1/messages", body=b"{}"), 502, "api_error")
        openai_error(await scene.ask(CHAT_PATH, body=CHAT_BODY), 502, "server_error")
    await scene.records.finished(len(scripted) * 3)
    assert {record.outcome for record in scene.records.all} == {"failed"}
    assert len(scene.upstream.requests) == len(scripted) * 3


async def test_no_upstream_is_502(scene: Scene, proxy: Proxy) -> None:
    await scene.upstream.stop()
    anthropic_error(await scene.ask("/v1/messages"), 502, "api_error")
    openai_error(await scene.ask(CHAT_PATH, body=CHAT_BODY), 502, "server_error")
    assert (await scene.ask("/v1/messages", method="HEAD")).status == 502
    await scene.records.finished(3)
    assert [(each.outcome, each.status) for each in scene.records.all] == [("failed", 502)] * 3


# -- 529 and 503


async def test_one_request_too_many_is_529_or_503(
    scene: Scene, anthropic_client: anthropic.AsyncAnthropic
) -> None:
    """OpenAI's clients know no 529."""
    proxy = await scene.start(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT=0)
    scene.upstream.script(silent_response())
    first = await scene.raw()
    await first.send(GET)
    await scene.upstream.received()
    response = await scene.ask("/v1/x")
    anthropic_error(response, 529, "overloaded_error")
    assert response.reason == "Overloaded"
    chat = await scene.ask(CHAT_PATH, body=CHAT_BODY)
    openai_error(chat, 503, "server_error")
    for each in (response, chat):
        assert int(each.header("Retry-After") or "") >= 1
    with pytest.raises(anthropic.OverloadedError) as caught:
        await anthropic_client.with_options(base_url=proxy.url).messages.create(**MESSAGE)
    assert caught.value.type == "overloaded_error"
    assert (await scene.ask("/health", token=None)).status == 200
    assert len(scene.upstream.requests) == 1


# -- the SDKs


async def test_anthropic_sdk_raises_a_class_for_each_error(
    anthropic_client: anthropic.AsyncAnthropic, scene: Scene
) -> None:
    async def error(client: anthropic.AsyncAnthropic, **fields: Any) -> anthropic.APIStatusError:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(**{**MESSAGE, **fields})
        assert caught.value.api_message
        body: Any = caught.value.body  # JSON
        assert caught.value.request_id == body["request_id"]
        assert body["request_id"].startswith("req_")
        return caught.value

    slow = await scene.start(MAX_BODY_SIZE=500, UPSTREAM_FIRST_BYTE_TIMEOUT=0.05)
    client = anthropic_client.with_options(base_url=slow.url)
    errors = [
        await error(client.with_options(api_key="wrong")),
        await error(client, model="x" * 500),
        await error(client.with_options(base_url=f"{slow.url}/nowhere")),
    ]
    scene.upstream.script(silent_response())
    errors.append(await error(client))
    await scene.upstream.stop()
    errors.append(await error(client))
    assert [(type(each), each.type) for each in errors] == [
        (anthropic.AuthenticationError, "authentication_error"),
        (anthropic.RequestTooLargeError, "request_too_large"),
        (anthropic.NotFoundError, "not_found_error"),
        (anthropic.DeadlineExceededError, "timeout_error"),
        (anthropic.InternalServerError, "api_error"),
    ]


async def test_openai_sdk_raises_a_class_for_each_error(
    openai_client: openai.AsyncOpenAI, scene: Scene
) -> None:
    broken = await scene.start(plugins=[Broken()])
    errors = []
    for client in (
        openai_client.with_options(api_key="wrong"),
        openai_client.with_options(base_url=f"{broken.url}/openai/v1"),
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            await client.models.list()
        assert (caught.value.request_id or "").startswith("req_")
        assert "broken" not in caught.value.message
        errors.append((type(caught.value), caught.value.type, caught.value.code))
    assert errors == [
        (openai.AuthenticationError, "invalid_request_error", "invalid_api_key"),
        (openai.InternalServerError, "server_error", None),
    ]

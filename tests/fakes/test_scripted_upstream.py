"""The scripted upstream: faithful to the API by default, exact when told what to send."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import inspect
import json
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
import trustme
from anthropic import AsyncAnthropic
from anthropic.types import (
    Message,
    MessageTokensCount,
    ModelInfo,
    RawMessageStreamEvent,
    message_create_params,
)
from anthropic.types.beta import message_create_params as beta_message_create_params
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse
from pydantic import TypeAdapter

from tornadoproxy.fakes.anthropic_validation import KNOWN_FIELDS
from tornadoproxy.testing import (
    ProtocolError,
    RawConnection,
    ScriptedUpstream,
    Truncated,
    UpstreamExchange,
    bytes_response,
    clean_environment,
    error_response,
    event,
    json_response,
    message_document,
    message_events,
    raw_response,
    request_bytes,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tornado.ioloop import IOLoop

    from tornadoproxy.testing import Document, OpenRaw, Response

MODEL = "claude-sonnet-5-5"
KEY = "a-key"
VERSION = {"anthropic-version": "2023-06-01"}
SHANGHAI: Document = {
    "name": "get_weather",
    "input_schema": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["C", "F"]},
            "at": {"type": "array", "items": {"type": "number"}},
            "now": {"type": "boolean"},
            "zone": {"type": "null"},
        },
    },
}


@pytest.fixture
def sdk(
    io_loop: IOLoop, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AsyncAnthropic]:
    """The SDK's client of the upstream itself."""
    clean_environment(monkeypatch)
    client = AsyncAnthropic(base_url=upstream.url, api_key=KEY, max_retries=0)
    yield client
    io_loop.run_sync(client.close)


def ask(text: str, **fields: Any) -> dict[str, Any]:  # JSON fields of a request
    return {
        "model": MODEL,
        "max_tokens": 200,
        "messages": [{"role": "user", "content": text}],
        **fields,
    }


def post(document: object, headers: dict[str, str] | None = None) -> bytes:
    """A message request's bytes."""
    lines = VERSION if headers is None else headers
    return request_bytes("POST", "/v1/messages", lines, json.dumps(document).encode(), token=KEY)


async def refusal(raw: OpenRaw, upstream: ScriptedUpstream, request: bytes) -> tuple[int, str, str]:
    """Status, type and message of the error that answers `request`."""
    connection = await raw(upstream)
    await connection.send(request)
    response = await connection.response()
    document = json.loads(response.body)
    assert document["type"] == "error"
    assert document["request_id"] == response.header("request-id")
    assert document["request_id"].startswith("req_")
    return response.status, document["error"]["type"], document["error"]["message"]


# --- as the API ------------------------------------------------------------------------------


async def test_a_message_is_one_of_the_sdk(sdk: AsyncAnthropic, upstream: ScriptedUpstream) -> None:
    response = await sdk.messages.with_raw_response.create(**ask("Grüß dich"))
    message = Message.model_validate_json(await response.read())
    assert message.content[0].type == "text"
    assert message.content[0].text == "This is a scripted answer, not Claude's. You said: Grüß dich"
    assert message.stop_reason == "end_turn"
    assert message.model == MODEL
    assert message.usage.output_tokens == 11
    assert message.usage.cache_read_input_tokens == 0
    assert response.headers["content-type"] == "application/json"
    assert response.headers["request-id"].startswith("req_")
    assert response.headers["anthropic-organization-id"]
    assert response.headers["anthropic-ratelimit-requests-limit"] == "4000"
    assert upstream.requests[0].json()["messages"][0]["content"] == "Grüß dich"


async def test_a_stream_is_the_message_and_follows_the_grammar(
    sdk: AsyncAnthropic, upstream: ScriptedUpstream, raw: OpenRaw
) -> None:
    async with sdk.messages.stream(**ask("one two")) as stream:
        message = await stream.get_final_message()
        assert stream.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.response.headers["cache-control"] == "no-cache"
    assert message.content[0].type == "text"
    assert message.content[0].text == "This is a scripted answer, not Claude's. You said: one two"
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == 11

    connection = await raw(upstream)
    await connection.send(upstream.requests[0].raw_head + upstream.requests[0].body)
    body = (await connection.response()).body.decode()
    names = [line[7:] for line in body.splitlines() if line.startswith("event: ")]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert set(names[3:-3]) == {"content_block_delta"}
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    adapter: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)  # a union of the SDK's
    for name, line in zip(
        names, (line for line in body.splitlines() if "data" in line), strict=True
    ):
        document = json.loads(line.removeprefix("data: "))
        assert document["type"] == name
        if name != "ping":
            adapter.validate_python(document)


@pytest.mark.parametrize("stream", [False, True])
async def test_tools(sdk: AsyncAnthropic, stream: bool) -> None:
    asked = ask("tool: Šanghaj", tools=[SHANGHAI])
    message = await complete(sdk, asked, stream)
    assert message.stop_reason == "tool_use"
    call = message.content[-1]
    assert call.type == "tool_use"
    assert call.name == "get_weather"
    assert call.input == {
        "city": "Šanghaj",
        "days": 1,
        "unit": "C",
        "at": [1.5],
        "now": True,
        "zone": None,
    }
    asked["messages"] += [
        {"role": "assistant", "content": [block.to_dict() for block in message.content]},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": call.id,
                    "content": [{"type": "text", "text": "rain"}],
                }
            ],
        },
    ]
    final = await complete(sdk, asked, stream)
    assert final.stop_reason == "end_turn"
    assert final.content[0].type == "text"
    assert final.content[0].text.endswith("The tool said: rain")


async def complete(sdk: AsyncAnthropic, asked: dict[str, Any], stream: bool) -> Message:
    if stream:
        async with sdk.messages.stream(**asked) as events:
            return await events.get_final_message()
    message: Message = await sdk.messages.create(**asked)
    return message


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ({"type": "any"}, "get_weather"),
        ({"type": "tool", "name": "other"}, "other"),
        ({"type": "auto"}, None),
        ({"type": "none"}, None),
    ],
)
async def test_tool_choice(sdk: AsyncAnthropic, choice: Any, called: str | None) -> None:
    tools = [SHANGHAI, {"name": "other", "input_schema": {"type": "object"}}]
    message = await sdk.messages.create(**ask("Hi", tools=tools, tool_choice=choice))
    names = [block.name for block in message.content if block.type == "tool_use"]
    assert names == ([called] if called else [])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", [{"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}])
async def test_thinking_comes_first_and_is_signed(
    sdk: AsyncAnthropic, stream: bool, kind: dict[str, Any]
) -> None:
    message = await complete(sdk, ask("Hi", thinking=kind, max_tokens=2000), stream)
    thinking, text = message.content
    assert thinking.type == "thinking"
    assert thinking.thinking
    assert thinking.signature
    assert text.type == "text"
    assert message.usage.output_tokens_details is not None
    thought = message.usage.output_tokens_details.thinking_tokens
    assert 0 < thought < message.usage.output_tokens


@pytest.mark.parametrize("stream", [False, True])
async def test_max_tokens_and_stop_sequences(sdk: AsyncAnthropic, stream: bool) -> None:
    message = await complete(sdk, ask("Hi", max_tokens=3), stream)
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 3
    assert message.content[0].type == "text"
    assert message.content[0].text == "This is a"

    stopped = await complete(sdk, ask("Hi", stop_sequences=["said", "Claude", "no such"]), stream)
    assert stopped.stop_reason == "stop_sequence"
    assert stopped.stop_sequence == "Claude"
    assert stopped.content[0].type == "text"
    assert stopped.content[0].text == "This is a scripted answer, not "


async def test_structured_output_fits_its_schema(sdk: AsyncAnthropic) -> None:
    form = {"type": "json_schema", "schema": SHANGHAI["input_schema"]}
    message = await sdk.messages.create(**ask("Oslo", output_config={"format": form}))
    assert message.content[0].type == "text"
    assert json.loads(message.content[0].text)["city"] == "Oslo"


async def test_cache_is_read_where_something_is_cached(sdk: AsyncAnthropic) -> None:
    block = {"type": "text", "text": "a b c d", "cache_control": {"type": "ephemeral"}}
    usage = (await sdk.messages.create(**ask("Hi", system=[block]))).usage
    assert usage.cache_read_input_tokens
    assert usage.input_tokens > 0


async def test_a_long_text_comes_back_in_not_too_many_events(sdk: AsyncAnthropic) -> None:
    text = "word " * 1000 + "end"
    message = await complete(sdk, ask(text, max_tokens=5000), True)
    assert message.content[0].type == "text"
    assert message.content[0].text.endswith(text)
    assert len(message_events(message.to_dict(mode="json"))) < 120


async def test_count_tokens(sdk: AsyncAnthropic) -> None:
    asked = ask("one two three")
    del asked["max_tokens"]
    response = await sdk.messages.with_raw_response.count_tokens(**asked)
    assert MessageTokensCount.model_validate_json(await response.read()).input_tokens > 3


async def test_models_are_listed_by_pages(sdk: AsyncAnthropic, upstream: ScriptedUpstream) -> None:
    first = await sdk.models.list(limit=3)
    assert first.has_more
    assert first.last_id == first.data[-1].id
    every = [model async for model in first]
    assert len(every) == 4
    assert [request.target for request in upstream.requests] == [
        "/v1/models?limit=3",
        f"/v1/models?limit=3&after_id={first.last_id}",
    ]
    before = await sdk.models.list(before_id=every[2].id, limit=1)
    assert [model.id for model in before.data] == [every[1].id]
    one = await sdk.models.with_raw_response.retrieve(every[0].id)
    assert ModelInfo.model_validate_json(await one.read()) == every[0]
    with pytest.raises(anthropic.NotFoundError) as missing:
        await sdk.models.retrieve("no-such")
    assert "model: no-such" in str(missing.value)
    with pytest.raises(anthropic.BadRequestError, match="limit"):
        await sdk.models.list(limit=0)


async def test_batches_tell_an_absolute_url(
    sdk: AsyncAnthropic, upstream: ScriptedUpstream
) -> None:
    requests: Any = [
        {"custom_id": "good", "params": ask("Hi")},
        {"custom_id": "bad", "params": ask("Hi", max_tokens=0)},
    ]
    created = await sdk.messages.batches.with_raw_response.create(requests=requests)
    batch = MessageBatch.model_validate_json(await created.read())
    assert batch.results_url == f"{upstream.url}/v1/messages/batches/{batch.id}/results"
    assert (batch.request_counts.succeeded, batch.request_counts.errored) == (1, 1)
    assert await sdk.messages.batches.retrieve(batch.id) == batch
    assert [each.id async for each in await sdk.messages.batches.list()] == [batch.id]
    results = {each.custom_id: each async for each in await sdk.messages.batches.results(batch.id)}
    for result in results.values():
        MessageBatchIndividualResponse.model_validate(result.to_dict(mode="json"))
    assert results["good"].result.type == "succeeded"
    assert results["bad"].result.type == "errored"
    with pytest.raises(anthropic.NotFoundError):
        await sdk.messages.batches.retrieve("no-such")
    with pytest.raises(anthropic.BadRequestError, match="requests: Field required"):
        await sdk.messages.batches.create(requests=[])


# --- what the API refuses --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": None}, "max_tokens: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"model": 5}, "model: "),
        ({"messages": []}, "messages: at least one"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: "),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0.content: "),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content: "),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]},
            "messages.0.content: text content blocks must be non-empty",
        ),
        ({"stream": None}, "stream: "),
        ({"temperature": None}, "temperature: "),
        ({"temperature": 1.5}, "temperature: "),
        ({"stop_sequences": [" "]}, "stop_sequences: "),
        ({"seed": 1}, "seed: Extra inputs are not permitted"),
        ({"thinking": {"type": "enabled", "budget_tokens": 200}}, "thinking.enabled"),
        ({"tool_choice": {"type": "auto"}}, "tool_choice: "),
        ({"tools": [SHANGHAI, SHANGHAI]}, "tools: "),
        ({"tools": [SHANGHAI], "tool_choice": {"type": "required"}}, "tool_choice: "),
        ({"tools": [SHANGHAI], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice: "),
    ],
)
async def test_a_wrong_field_is_named(
    raw: OpenRaw, upstream: ScriptedUpstream, fields: dict[str, Any], message: str
) -> None:
    status, error_type, text = await refusal(raw, upstream, post(ask("Hi", **fields)))
    assert (status, error_type) == (400, "invalid_request_error")
    assert text.startswith(message)


@pytest.mark.parametrize("field", ["model", "max_tokens", "messages"])
async def test_a_missing_field_is_named(
    raw: OpenRaw, upstream: ScriptedUpstream, field: str
) -> None:
    asked = ask("Hi")
    del asked[field]
    status, _, text = await refusal(raw, upstream, post(asked))
    assert (status, text) == (400, f"{field}: Field required")


USE = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": [USE]}],
        [{"role": "assistant", "content": [USE]}, {"role": "user", "content": "and?"}],
        [{"role": "user", "content": [RESULT]}],
        [{"role": "assistant", "content": [USE]}, {"role": "user", "content": [RESULT, RESULT]}],
    ],
)
async def test_a_tool_use_needs_its_result(
    raw: OpenRaw, upstream: ScriptedUpstream, messages: list[Document]
) -> None:
    asked = ask("Hi", tools=[SHANGHAI])
    asked["messages"] += messages
    status, _, text = await refusal(raw, upstream, post(asked))
    assert status == 400
    assert "tool_result" in text


async def test_sampling_depends_on_the_version(raw: OpenRaw, upstream: ScriptedUpstream) -> None:
    asked = ask("Hi", temperature=0.5)
    newer = {"anthropic-version": "2026-10-21"}
    status, _, text = await refusal(raw, upstream, post(asked, newer))
    assert status == 400
    assert text.startswith("temperature: ")
    connection = await raw(upstream)
    await connection.send(post(asked))
    assert (await connection.response()).status == 200


async def test_other_refusals(raw: OpenRaw, upstream: ScriptedUpstream) -> None:
    assert await refusal(raw, upstream, request_bytes("GET", "/v1/models")) == (
        401,
        "authentication_error",
        "x-api-key header is required",
    )
    assert (await refusal(raw, upstream, post(ask("Hi"), {})))[2].startswith("anthropic-version: ")
    assert (await refusal(raw, upstream, post([1])))[0] == 400
    assert (await refusal(raw, upstream, post(ask("Hi", model="gpt-x")))) == (
        404,
        "not_found_error",
        "model: gpt-x",
    )
    garbled = request_bytes("POST", "/v1/messages", VERSION, b"\xff{", token=KEY)
    assert (await refusal(raw, upstream, garbled))[0] == 400
    elsewhere = request_bytes("GET", "/v1/nowhere?a=b", token=KEY)
    assert (await refusal(raw, upstream, elsewhere))[:2] == (404, "not_found_error")


def test_the_known_fields_are_the_sdks() -> None:
    names: set[str] = set()
    for module in (message_create_params, beta_message_create_params):
        names |= module.MessageCreateParamsStreaming.__annotations__.keys()
        names |= inspect.get_annotations(module.MessageCreateParamsBase).keys()
    sent_as_headers = {"betas", "user_profile_id", "workspace_id"}
    assert names - sent_as_headers <= KNOWN_FIELDS


@pytest.mark.parametrize(
    ("status", "error_type", "error"),
    [
        (400, "invalid_request_error", anthropic.BadRequestError),
        (401, "authentication_error", anthropic.AuthenticationError),
        (403, "permission_error", anthropic.PermissionDeniedError),
        (404, "not_found_error", anthropic.NotFoundError),
        (429, "rate_limit_error", anthropic.RateLimitError),
        (500, "api_error", anthropic.InternalServerError),
        (529, "overloaded_error", anthropic.InternalServerError),
    ],
)
async def test_an_error_raises_the_sdks_class(
    sdk: AsyncAnthropic,
    upstream: ScriptedUpstream,
    status: int,
    error_type: str,
    error: type[anthropic.APIStatusError],
) -> None:
    upstream.script(error_response(status, error_type, "the message", request_id="req_7"))
    with pytest.raises(error, match="the message") as raised:
        await sdk.messages.create(**ask("Hi"))
    assert raised.value.status_code == status
    assert raised.value.request_id == "req_7"
    assert error_type in str(raised.value.body)
    assert (await sdk.messages.create(**ask("Hi"))).stop_reason == "end_turn", "the default again"


# --- exact answers ---------------------------------------------------------------------------


async def test_a_request_is_recorded_as_it_was_sent(
    raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    head = (
        b"PUT /v1/a%2Fb?q=\xc3\xa9? HTTP/1.1\r\nhOsT: x\r\nX-Twice: 1\r\n"
        b"x-twice:  2 \r\nContent-Length: 4\r\n\r\n"
    )
    connection = await raw(upstream)
    await connection.send(head + b"\x00\xff\r\n")
    assert (await connection.response()).status == 401
    request = upstream.requests[0]
    assert (request.method, request.version, request.connection) == ("PUT", "1.1", 1)
    assert request.target.encode("latin-1") == b"/v1/a%2Fb?q=\xc3\xa9?"
    assert request.path == "/v1/a%2Fb"
    assert request.raw_head == head
    assert request.headers == [
        ("hOsT", "x"),
        ("X-Twice", "1"),
        ("x-twice", "2"),
        ("Content-Length", "4"),
    ]
    assert request.all("X-TWICE") == ["1", "2"]
    assert request.header("x-none") is None
    assert request.body == b"\x00\xff\r\n"
    assert request.body_sha256 == hashlib.sha256(b"\x00\xff\r\n").hexdigest()


@pytest.mark.parametrize("size", [1, 3, 10_000])
async def test_a_chunked_body_at_every_split(
    raw: OpenRaw, upstream: ScriptedUpstream, size: int
) -> None:
    request = request_bytes(
        "POST",
        "/",
        {"Transfer-Encoding": "chunked"},
        b"5;ext=1\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\nTrailer: x\r\n\r\n",
    )
    connection = await raw(upstream)
    for start in range(0, len(request), size):
        await connection.send(request[start : start + size])
    assert (await connection.response()).status == 401
    assert upstream.requests[0].body == b"hello world"


async def test_a_long_body_is_known_by_its_digest(raw: OpenRaw, upstream: ScriptedUpstream) -> None:
    body = b"0123456789abcdef" * 100_000
    upstream.script(bytes_response(b"ok"))
    connection = await raw(upstream)
    await connection.send(request_bytes("POST", "/", body=body))
    assert (await connection.response()).body == b"ok"
    request = upstream.requests[0]
    assert request.body_length == len(body)
    assert request.body_sha256 == hashlib.sha256(body).hexdigest()
    with pytest.raises(ValueError, match="1600000 bytes is not kept"):
        _ = request.body


async def test_connections_are_kept_and_counted(raw: OpenRaw, upstream: ScriptedUpstream) -> None:
    first = await raw(upstream)
    request = request_bytes("GET", "/v1/models", token=KEY)
    await first.send(request * 2)
    for _ in range(2):
        assert (await first.response()).status == 200
    await first.send(request)
    assert (await first.response()).status == 200
    second = await raw(upstream)
    await second.send(request)
    assert (await second.response()).status == 200
    assert [each.connection for each in upstream.requests] == [1, 1, 1, 2]
    assert (upstream.connections, upstream.open_connections) == (2, 2)
    await first.close()
    await second.close()
    await upstream.all_closed()
    assert (upstream.connections, upstream.open_connections) == (2, 0)


@pytest.mark.parametrize(
    ("version", "connection_header"), [("1.1", "close"), ("1.0", "x"), ("1.0", None)]
)
async def test_a_connection_ends_when_the_request_says_so(
    raw: OpenRaw, upstream: ScriptedUpstream, version: str, connection_header: str | None
) -> None:
    headers = {"Connection": connection_header} if connection_header else {}
    request = request_bytes("GET", "/v1/models", headers, token=KEY)
    connection = await raw(upstream)
    await connection.send(request.replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
    assert (await connection.response()).status == 200
    assert await connection.read_to_end() == b""


async def test_head_and_bodiless_statuses_have_no_body(
    raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    connection = await raw(upstream)
    await connection.send(request_bytes("HEAD", "/v1/models", token=KEY))
    response = await connection.response(to_head=True)
    assert int(response.header("Content-Length") or "") > 100
    upstream.script(bytes_response(b"never sent", status=204), json_response({"whole": True}))
    await connection.send(request_bytes("GET", "/", token=KEY) * 2)
    empty = await connection.response()
    assert (empty.status, empty.header("Content-Length")) == (204, None)
    assert json.loads((await connection.response()).body) == {"whole": True}


async def test_each_piece_of_a_stream_is_a_chunk(raw: OpenRaw, upstream: ScriptedUpstream) -> None:
    events = [event({"type": "ping"}), event({"type": "ping", "é": "ü"})]
    upstream.script(
        sse_response(events),
        sse_response(b"whole"),
        sse_response(events, split=1),
        sse_response(b"", headers={"CONTENT-TYPE": "text/plain"}),
    )
    connection = await raw(upstream)
    await connection.send(request_bytes("GET", "/") * 4)
    received = []
    for _ in range(4):
        head = await connection.head()
        received.append([head.header("content-type")])
        while chunk := await connection.chunk():
            received[-1].append(chunk.decode("latin-1"))
    whole = b"".join(events).decode("latin-1")
    sse = "text/event-stream; charset=utf-8"
    assert received == [
        [sse, *(each.decode("latin-1") for each in events)],
        [sse, "whole"],
        [sse, *whole],
        ["text/plain"],
    ]


async def test_pieces_arrive_one_by_one(upstream: ScriptedUpstream) -> None:
    """A reader in the same loop reads after every write."""
    reads: list[bytes] = []
    done = asyncio.get_running_loop().create_future()

    class Reader(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            reads.append(data)
            if data.endswith(b"!"):
                done.set_result(None)

    upstream.script(raw_response(*(b"%c" % byte for byte in b"HTTP byte by byte!")))
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(Reader, "127.0.0.1", upstream.port)
    transport.write(request_bytes("GET", "/"))
    await done
    transport.close()
    assert b"".join(reads) == b"HTTP byte by byte!"
    assert len(reads) == len(b"HTTP byte by byte!")


async def test_a_reset_is_a_reset_and_comes_after_what_was_sent(
    raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(
        sse_response([b"part"], end="reset"),
        raw_response(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", end="reset"),
    )
    for expected in (b"part", b"short"):
        connection = await raw(upstream)
        await connection.send(request_bytes("GET", "/"))
        with pytest.raises(Truncated) as cut:
            await connection.response()
        assert cut.value.reset
        assert cut.value.response is not None
        assert cut.value.response.body == expected


async def test_a_close_is_a_fin(raw: OpenRaw, upstream: ScriptedUpstream) -> None:
    upstream.script(
        sse_response([b"part"], end="close"),
        raw_response(b"HTTP/1.1 200 OK\r\n\r\nto the end", end="close"),
        raw_response(end="close"),
    )
    connection = await raw(upstream)
    await connection.send(request_bytes("GET", "/"))
    with pytest.raises(Truncated) as cut:
        await connection.response()
    assert not cut.value.reset
    connection = await raw(upstream)
    await connection.send(request_bytes("GET", "/"))
    assert (await connection.response()).body == b"to the end"
    connection = await raw(upstream)
    await connection.send(request_bytes("GET", "/"))
    with pytest.raises(Truncated) as cut:
        await connection.response()
    assert cut.value.response is None


@pytest.mark.parametrize("leave", [RawConnection.close, RawConnection.reset])
@pytest.mark.parametrize(
    "response",
    [silent_response(), sse_response([b"part"], end="hang")],
    ids=["silent", "streaming"],
)
async def test_it_tells_when_its_peer_has_gone(
    raw: OpenRaw, upstream: ScriptedUpstream, response: Response, leave: Any
) -> None:
    upstream.script(response)
    connection = await raw(upstream)
    await connection.send(request_bytes("POST", "/", body=b"x"))
    request = await upstream.received()
    await request.complete()
    before = request.disconnected_at
    assert before is None
    await leave(connection)
    await request.disconnected()
    assert request.disconnected_at is not None
    await upstream.all_closed()


async def test_a_body_that_does_not_come_is_told(raw: OpenRaw, upstream: ScriptedUpstream) -> None:
    connection = await raw(upstream)
    await connection.send(request_bytes("POST", "/", {"Content-Length": "9"}, b"part"))
    request = await upstream.received()
    await connection.close()
    with pytest.raises(ConnectionError, match="after 4 body bytes"):
        await request.complete()


async def test_an_answer_may_come_before_the_body(raw: OpenRaw, upstream: ScriptedUpstream) -> None:
    async def too_large(exchange: UpstreamExchange) -> None:
        await exchange.head(413, {"Content-Length": "0"})
        exchange.close()

    upstream.script(too_large)
    connection = await raw(upstream)
    await connection.send(request_bytes("POST", "/", {"Content-Length": "1000000"}, b"part"))
    assert (await connection.response()).status == 413
    assert await connection.read() == b"", "a FIN, although the body was not read"
    await connection.send(b"more")  # and it is still taken


async def test_an_early_answer_may_keep_the_connection(
    raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    async def early(exchange: UpstreamExchange) -> None:
        await exchange.head(200, {"Content-Length": "0"})

    upstream.script(early)
    connection = await raw(upstream)
    await connection.send(request_bytes("POST", "/", {"Content-Length": "8"}, b"half"))
    assert (await connection.response()).status == 200
    await connection.send(b"more" + request_bytes("GET", "/v1/models", token=KEY))
    assert (await connection.response()).status == 200
    assert upstream.requests[0].body == b"halfmore"
    assert upstream.connections == 1


async def test_an_unread_body_stays_with_its_sender(
    raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    goes_on = asyncio.Event()

    async def reluctant(exchange: UpstreamExchange) -> None:
        await goes_on.wait()
        await bytes_response(b"")(exchange)

    upstream.script(reluctant)
    connection = await raw(upstream)
    body = bytes(32 * 1024 * 1024)  # more than any socket holds
    sending = asyncio.ensure_future(connection.send(request_bytes("POST", "/", body=body)))
    request = await upstream.received()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(sending), 0.2)
    assert request.body_length == 0
    goes_on.set()
    await sending
    assert (await connection.response()).status == 200
    assert request.body_length == len(body)


async def test_a_peer_that_goes_is_seen_behind_an_unread_body(
    raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    upstream.script(UpstreamExchange.disconnected)
    connection = await raw(upstream)
    sending = asyncio.ensure_future(
        connection.send(request_bytes("POST", "/", {"Content-Length": "9999999"}, bytes(2_000_000)))
    )
    request = await upstream.received()
    await sending
    await connection.reset()
    await request.disconnected()


async def test_continue_is_said_when_the_body_is_wanted(
    raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    head = request_bytes("POST", "/", {"Expect": "100-continue", "Content-Length": "4"})
    connection = await raw(upstream)
    await connection.send(head)
    assert await connection.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await connection.send(b"body")
    assert (await connection.response()).status == 401

    async def refuse(exchange: UpstreamExchange) -> None:
        await exchange.head(417, {"Content-Length": "0"})

    upstream.script(refuse)
    await connection.send(head)
    response = await connection.response()
    assert (response.status, response.interim) == (417, [])


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"GET / HTTP/2\r\nHost: x\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\nEvil: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nbad trailer\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_a_failure_and_harms_nobody(
    raw: OpenRaw, upstream: ScriptedUpstream, garbage: bytes
) -> None:
    connection = await raw(upstream)
    await connection.send(garbage)
    await connection.disconnected()
    assert [type(failure) for failure in upstream.failures] == [ProtocolError]
    upstream.failures.clear()
    other = await raw(upstream)
    await other.send(request_bytes("GET", "/v1/models", token=KEY))
    assert (await other.response()).status == 200


async def test_an_answer_that_raises_is_a_failure(raw: OpenRaw, upstream: ScriptedUpstream) -> None:
    async def broken(exchange: UpstreamExchange) -> None:
        assert exchange.request.method == "DELETE"

    upstream.script(broken)
    connection = await raw(upstream)
    await connection.send(request_bytes("GET", "/"))
    with pytest.raises(Truncated) as cut:
        await connection.response()
    assert cut.value.reset
    assert [type(failure) for failure in upstream.failures] == [AssertionError]
    upstream.failures.clear()


async def test_an_answer_to_nobody_ends(raw: OpenRaw, upstream: ScriptedUpstream) -> None:
    ended = asyncio.Event()

    async def endless(exchange: UpstreamExchange) -> None:
        try:
            while True:
                await exchange.send(b"x" * 1000)
        except ConnectionError:
            assert exchange.dead
            ended.set()
            raise

    upstream.script(endless)
    connection = await raw(upstream)
    await connection.send(request_bytes("GET", "/"))
    await connection.read()
    await connection.reset()
    await ended.wait()


async def test_a_slow_reader_slows_the_answer_down(
    raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    sent = 0

    async def flood(exchange: UpstreamExchange) -> None:
        nonlocal sent
        for _ in range(1000):
            await exchange.send(bytes(65536))
            sent += 65536
        exchange.close()

    upstream.script(flood)
    connection = await raw(upstream, receive_buffer=4096)
    await connection.send(request_bytes("GET", "/"))
    await connection.read(1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(upstream.all_closed(), 0.3)
    assert sent < 30_000_000
    await connection.reset()
    await upstream.all_closed()


async def test_it_speaks_tls(raw: OpenRaw) -> None:
    authority = trustme.CA()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    async with ScriptedUpstream(ssl=server_side) as upstream:
        assert upstream.url == f"https://127.0.0.1:{upstream.port}"
        upstream.script(bytes_response(b"x" * 300_000), sse_response([b"part"], end="reset"))
        connection = await raw(upstream, ssl=client_side)
        await connection.send(request_bytes("POST", "/", body=b"y" * 300_000))
        assert (await connection.response()).body == b"x" * 300_000
        assert upstream.requests[0].body_length == 300_000
        await connection.send(request_bytes("GET", "/"))
        with pytest.raises(Truncated):
            await connection.response()
    assert upstream.failures == []


async def test_it_stops_with_everything_and_starts_again(raw: OpenRaw) -> None:
    upstream = ScriptedUpstream()
    stuck = asyncio.Event()

    async def never(_: UpstreamExchange) -> None:
        await stuck.wait()

    async with upstream:
        upstream.script(never)
        connection = await raw(upstream)
        await connection.send(request_bytes("GET", "/"))
        await raw(upstream)
        await upstream.received()
    await upstream.stop()
    assert upstream.open_connections == 0
    with pytest.raises(ConnectionRefusedError):
        await raw(upstream)
    await upstream.start(port=upstream.port)
    again = await raw(upstream)
    await again.send(request_bytes("GET", "/v1/models", token=KEY))
    assert (await again.response()).status == 200
    await upstream.stop()


async def test_a_stop_closes_what_is_about_to_be_a_connection() -> None:
    """Who knocks is accepted, made and served over some turns of the loop; it may stop at each."""
    for turns in range(6):
        async with ScriptedUpstream() as upstream:
            with socket.create_connection((upstream.host, upstream.port)):
                for _ in range(turns):
                    await asyncio.sleep(0)
                await upstream.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        gc.collect()  # one that was left open would be a ResourceWarning, which is an error


async def test_delay_stands_between_events(raw: OpenRaw) -> None:
    async with ScriptedUpstream(delay=0.01) as upstream:
        upstream.script(sse_response([b"a", b"b", b"c"]))
        connection = await raw(upstream)
        before = time.monotonic()
        await connection.send(request_bytes("GET", "/"))
        assert (await connection.response()).body == b"abc"
        assert time.monotonic() - before >= 0.025


def test_a_message_document_becomes_the_events_that_stream_it() -> None:
    other = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
    document = message_document(content=[other], stop_reason="pause_turn")
    events = [json.loads(each.split(b"data: ")[1]) for each in message_events(document)]
    assert events[0]["message"]["content"] == []
    assert events[2]["content_block"] == other
    assert events[3]["type"] == "content_block_stop"
    assert events[4]["delta"]["stop_reason"] == "pause_turn"
    assert events[4]["usage"]["output_tokens"] == document["usage"]["output_tokens"]

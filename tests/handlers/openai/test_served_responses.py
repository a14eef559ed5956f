"""The Responses API, served to the OpenAI SDK and on raw connections: one response at a time."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from anthropic.types import MessageCountTokensParams
from held_stream import Endless, Held, Stream
from openai import AsyncOpenAI
from pydantic import BaseModel
from scene import Scene
from served import EVENTS, RESPONSES_PATH, RESPONSES_STREAM, openai_error, request

from tornadoproxy import Usage
from tornadoproxy.handlers.openai.input_tokens import COUNTED
from tornadoproxy.handlers.openai.responses import RETRY_AFTER
from tornadoproxy.testing import (
    TEST_UPSTREAM_KEY,
    Document,
    Response,
    Truncated,
    bytes_response,
    error_response,
    event,
    json_response,
    message_document,
    sse_response,
)

pytestmark = pytest.mark.usefixtures("proxy")

MODEL = "claude-sonnet-5-5"
HELLO = {"model": MODEL, "input": "Hello"}
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a town.",
    "parameters": {
        "type": "object",
        "properties": {"town": {"type": "string"}},
        "required": ["town"],
        "additionalProperties": False,
    },
    "strict": True,
}
CODEX = {"originator": "codex_exec"}


def events_of(body: bytes) -> list[Document]:
    """Return the events of a stream, whose numbers go up one by one."""
    found = [json.loads(each.partition(b"\ndata: ")[2]) for each in body.rstrip().split(b"\n\n")]
    assert [each["sequence_number"] for each in found] == list(range(len(found)))
    return found


# -- the SDK


async def test_response_is_a_message_of_upstream(openai_client: AsyncOpenAI, scene: Scene) -> None:
    response = await openai_client.responses.create(model=MODEL, input="Hello")
    assert response.output_text.endswith("Hello")
    (received,) = scene.upstream.requests
    assert (received.method, received.target) == ("POST", "/v1/messages")
    assert received.all("x-api-key") == [TEST_UPSTREAM_KEY]
    record = await scene.records.finished()
    assert (record.dialect, record.route, record.model) == ("openai", RESPONSES_PATH, MODEL)
    assert response.usage is not None
    assert record.usage.output_tokens == response.usage.output_tokens > 0


async def test_stream_is_the_same_response(openai_client: AsyncOpenAI, scene: Scene) -> None:
    whole = await openai_client.responses.create(model=MODEL, input="Hello")
    async with openai_client.responses.stream(model=MODEL, input="Hello") as stream:
        deltas = [each.delta async for each in stream if each.type == "response.output_text.delta"]
        streamed = await stream.get_final_response()
    assert len(deltas) > 1
    assert "".join(deltas) == streamed.output_text == whole.output_text
    record = await scene.records.finished(2)
    assert record.usage.output_tokens == streamed.usage.output_tokens  # type: ignore[union-attr]  # it has a usage


class Town(BaseModel):
    name: str


async def test_parse_returns_the_format(openai_client: AsyncOpenAI, scene: Scene) -> None:
    parsed = await openai_client.responses.parse(model=MODEL, input="Ulm", text_format=Town)
    assert parsed.output_parsed == Town(name="Ulm")
    assert scene.upstream.requests[-1].json()["output_config"]["format"]["type"] == "json_schema"


async def test_call_is_continued_with_its_output(openai_client: AsyncOpenAI, scene: Scene) -> None:
    asked: Any = {"model": MODEL, "tools": [WEATHER], "store": False}
    question: Any = {"role": "user", "content": "tool: Ulm"}
    first = await openai_client.responses.create(**asked, input=[question])
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert json.loads(call.arguments) == {"town": "Ulm"}
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny"}
    history: Any = [
        question,
        *(item.model_dump(exclude_none=True) for item in first.output),
        output,
    ]
    second = await openai_client.responses.create(**asked, input=history)
    assert second.output_text.endswith("Sunny")
    *_, turn, result = scene.upstream.requests[-1].json()["messages"]
    (block,) = [each for each in turn["content"] if each["type"] == "tool_use"]
    assert (block["id"], block["name"]) == (call.call_id, "weather")
    assert result["content"][0]["tool_use_id"] == call.call_id


# -- errors


@pytest.mark.parametrize(
    ("status", "raised", "headers", "retry_after"),
    [
        (400, openai.BadRequestError, {}, None),
        (529, openai.InternalServerError, {"retry-after": "7"}, "7"),
        (429, openai.RateLimitError, {"retry-after": "7"}, "7"),
        (429, openai.RateLimitError, {"retry-after-ms": "1500"}, "2"),
        (429, openai.RateLimitError, {}, str(RETRY_AFTER)),
    ],
)
async def test_error_of_upstream_keeps_status_and_id(
    status: int,
    raised: type[openai.APIStatusError],
    headers: dict[str, str],
    retry_after: str | None,
    openai_client: AsyncOpenAI,
    scene: Scene,
) -> None:
    lines = {**headers, "request-id": "req_up"}
    scene.upstream.script(error_response(status, "any_error", "so it is", lines))
    with pytest.raises(raised, match="so it is") as error:
        await openai_client.responses.create(**HELLO)  # type: ignore[call-overload]  # a dict of any type
    assert (error.value.status_code, error.value.request_id) == (status, "req_up")
    assert error.value.response.headers.get("retry-after") == retry_after
    record = await scene.records.finished()
    assert (record.outcome, record.request_id) == ("completed", "req_up")


async def test_first_event_with_an_error_is_a_status(
    openai_client: AsyncOpenAI, scene: Scene
) -> None:
    error = {"type": "error", "error": {"type": "rate_limit_error", "message": "Slow down."}}
    ping = event({"type": "ping"})
    scene.upstream.script(sse_response([ping, event(error)]))
    with pytest.raises(openai.RateLimitError, match="Slow down") as raised:
        await openai_client.responses.create(**HELLO, stream=True)  # type: ignore[call-overload]  # a dict of any type
    assert raised.value.code == "rate_limit_exceeded"
    assert raised.value.response.headers["retry-after"] == str(RETRY_AFTER)
    assert (await scene.records.finished()).outcome == "failed"


OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
BROKEN: dict[str, Response] = {
    "a tidy end": sse_response(EVENTS[:5]),
    "an error": sse_response([*EVENTS[:4], event(OVERLOADED)]),
    "not JSON": sse_response([*EVENTS[:3], b"event: content_block_delta\ndata: {oh no\n\n"]),
}


@pytest.mark.parametrize("fault", BROKEN)
async def test_broken_stream_ends_as_failed(fault: str, scene: Scene) -> None:
    scene.upstream.script(BROKEN[fault])
    with pytest.raises(Truncated) as cut:
        await scene.ask(RESPONSES_STREAM)
    assert cut.value.response is not None
    *_, error, failed = events_of(cut.value.response.body)
    assert (error["type"], failed["type"]) == ("error", "response.failed")
    assert error["error"]["message"] == error["message"]
    assert failed["response"]["error"]["message"] == error["message"]
    assert ("Overloaded" in error["message"]) == (fault == "an error")
    assert (await scene.records.finished()).outcome == "failed"
    response = await scene.ask(f"{RESPONSES_PATH}/{failed['response']['id']}")
    assert response.status == 404


async def test_stream_that_fails_raises_in_the_sdk(
    openai_client: AsyncOpenAI, scene: Scene
) -> None:
    scene.upstream.script(BROKEN["an error"])
    stream = await openai_client.responses.create(**HELLO, stream=True)  # type: ignore[call-overload]  # a dict of any type
    with pytest.raises(openai.APIError, match="Overloaded"):
        [each async for each in stream]


async def test_response_that_is_no_message_is_502(scene: Scene) -> None:
    page = bytes_response(b"<html>hello</html>", {"Content-Type": "text/html"})
    for body in (HELLO, {**HELLO, "stream": True}):
        scene.upstream.script(page)
        openai_error(await scene.ask(RESPONSES_PATH, body), 502, "server_error")


async def test_invalid_request_names_its_field_and_stays_here(scene: Scene) -> None:
    for body, param in (
        (b"{", None),
        (b'{"input": "x"}', "model"),
        (b'{"model": "m", "input": [{"type": "alien"}]}', "input[0].type"),
        (b'{"model": "m", "input": [{"type": "item_reference"}]}', "input[0].id"),
        (b'{"model": "m", "input": "x", "background": true}', "background"),
        (b'{"model": "m", "input": "x", "conversation": "conv_1"}', "conversation"),
    ):
        openai_error(await scene.ask(RESPONSES_PATH, body=body), 400, param=param)
    response = await scene.ask(RESPONSES_PATH, HELLO, headers={"Content-Encoding": "gzip"})
    assert "Content-Encoding" in openai_error(response, 400)
    assert scene.upstream.requests == []


async def test_refusal_is_a_failed_response_for_codex_alone(scene: Scene) -> None:
    refused = message_document("", content=[], stop_reason="refusal")
    endings = []
    for headers in ({}, CODEX):
        scene.upstream.script(json_response(refused))
        response = await scene.ask(RESPONSES_PATH, HELLO, headers=headers)
        endings.append(json.loads(response.body)["status"])
    assert endings == ["completed", "failed"]


# -- streams


async def test_keepalives_follow_the_first_event(scene: Scene) -> None:
    await scene.start(SSE_KEEPALIVE_INTERVAL=0.02)
    stream = Stream()
    held = Held(stream)
    scene.upstream.script(held)
    client = await scene.send(RESPONSES_STREAM)
    held.may_begin.set()
    head = await client.head()
    assert (head.header("x-accel-buffering"), head.header("cache-control")) == ("no", "no-cache")
    body = await client.read_until(b'"keepalive"')
    stream.may_end.set()
    body += await client.read_until(b"event: response.completed")
    assert body.index(b"response.created") < body.index(b"keepalive") < body.index(b"output_item")


async def test_disconnect_ends_the_upstream_request(scene: Scene) -> None:
    scene.upstream.script(sse_response(EVENTS[:4], end="hang"))
    client = await scene.send(RESPONSES_STREAM)
    await client.read_until(b"output_text.delta")
    await client.close()
    record = await scene.records.finished()
    assert (record.outcome, record.usage.partial) == ("abandoned", True)
    await scene.upstream.requests[0].disconnected()


async def test_slow_client_slows_the_upstream_down(scene: Scene) -> None:
    delta = {"type": "text_delta", "text": "x" * 50_000}
    big = event({"type": "content_block_delta", "index": 0, "delta": delta})
    upstream = Endless(b"".join(EVENTS[:3]), big)
    scene.upstream.script(upstream)
    client = await scene.send(RESPONSES_STREAM, receive_buffer=4096)
    await upstream.stalled.wait()
    await client.close()
    assert (await scene.records.finished()).outcome == "abandoned"


async def test_usage_of_an_unreadable_coding_is_partial(scene: Scene) -> None:
    scene.upstream.script(sse_response(EVENTS, headers={"Content-Encoding": "unheard-of"}))
    openai_error(await scene.ask(RESPONSES_STREAM), 502, "server_error")
    assert (await scene.records.finished()).usage == Usage(partial=True)


# -- requests


async def test_path_with_or_without_v1_is_post_only(scene: Scene) -> None:
    for path in (RESPONSES_PATH, "/openai/responses", "/openai/v1/v1/responses"):
        assert (await scene.ask(path, HELLO)).status == 200
        response = await scene.ask(request("PUT", path))
        openai_error(response, 405)
        assert response.header("allow") == "POST"
    assert len(scene.upstream.requests) == 3


UPGRADE = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")]


@pytest.mark.parametrize("headers", [(), UPGRADE])
async def test_websocket_is_refused_with_426(headers: Any, scene: Scene) -> None:
    client = await scene.raw()
    response = await client.ask(request("GET", RESPONSES_PATH, *headers))
    assert "POST" in openai_error(response, 426)
    assert (await client.ask(request("POST", RESPONSES_PATH, body=b"{}"))).status == 400


async def test_settings_hold_as_for_chat(scene: Scene) -> None:
    await scene.start(CHAT_MODELS=f"gpt-5={MODEL}", CHAT_CACHE="always", CHAT_DROP_SAMPLING=1)
    asked = {"model": "gpt-5", "input": "Hi", "temperature": 0.5, "truncation": "auto"}
    response = await scene.ask(RESPONSES_PATH, asked)
    assert response.header("x-tornadoproxy-ignored") == "truncation, temperature"
    sent = scene.upstream.requests[-1].json()
    assert (sent["model"], sent["cache_control"]) == (MODEL, {"type": "ephemeral"})
    record = await scene.records.finished()
    assert (record.requested_model, record.model) == ("gpt-5", MODEL)
    await scene.start(CHAT_STRICT=1)
    openai_error(await scene.ask(RESPONSES_PATH, asked), 400, param="truncation")


async def test_web_search_is_left_out_where_upstream_has_none(scene: Scene) -> None:
    asked = {**HELLO, "tools": [{"type": "web_search"}]}
    offered = []
    for setting in ("upstream", "ignore"):
        await scene.start(RESPONSES_WEB_SEARCH=setting)
        response = await scene.ask(RESPONSES_PATH, asked)
        tools = scene.upstream.requests[-1].json().get("tools", [])
        offered.append((len(tools), response.header("x-tornadoproxy-ignored")))
    assert offered == [(1, None), (0, "tools.web_search")]


# -- counts and compaction


def test_fields_that_are_counted_are_those_of_the_api() -> None:
    of_headers = {"user_profile_id", "workspace_id"}
    assert MessageCountTokensParams.__annotations__.keys() - of_headers == COUNTED


async def test_input_tokens_are_counted_upstream(openai_client: AsyncOpenAI, scene: Scene) -> None:
    counted = await openai_client.responses.input_tokens.count(
        model=MODEL, input="Hello", tools=[WEATHER], parallel_tool_calls=False
    )
    assert counted.input_tokens > 0
    *_, received = scene.upstream.requests  # the list of models before it
    assert received.target == "/v1/messages/count_tokens"
    assert received.json().keys() <= COUNTED
    record = await scene.records.finished()
    assert (record.usage, record.outcome) == (Usage(), "completed")
    for body in (b"[]", b'{"input_tokens": "7"}', b"{"):
        scene.upstream.script(bytes_response(body, {"Content-Type": "application/json"}))
        response = await scene.ask(f"{RESPONSES_PATH}/input_tokens", HELLO)
        openai_error(response, 502, "server_error")


@pytest.mark.parametrize(
    ("reason", "status", "kind", "code"),
    [
        ("refusal", 400, "invalid_request_error", "invalid_prompt"),
        ("end_turn", 502, "server_error", "server_error"),
    ],
)
async def test_compaction_without_a_summary_is_an_error(
    reason: str, status: int, kind: str, code: str, scene: Scene
) -> None:
    scene.upstream.script(json_response(message_document(content=[], stop_reason=reason)))
    response = await scene.ask(f"{RESPONSES_PATH}/compact", HELLO)
    openai_error(response, status, kind, code=code)


async def test_compaction_keeps_what_users_said(openai_client: AsyncOpenAI, scene: Scene) -> None:
    said = [{"role": "user", "content": "It is 7."}, {"role": "assistant", "content": "I see."}]
    path = f"{RESPONSES_PATH}/compact"
    compacted = json.loads((await scene.ask(path, {"model": MODEL, "input": said})).body)
    kept, summary = compacted["output"]
    assert (compacted["object"], summary["type"]) == ("response.compaction", "compaction")
    assert kept["content"] == [{"type": "input_text", "text": "It is 7."}]
    record = await scene.records.finished()
    assert compacted["usage"]["output_tokens"] == record.usage.output_tokens
    await openai_client.responses.create(model=MODEL, input=compacted["output"])
    assert "It is 7." in json.dumps(scene.upstream.requests[-1].json()["messages"])
    openai_error(await scene.ask(path, {"model": MODEL}), 400, param="input")
    missing = {"model": MODEL, "previous_response_id": "resp_missing"}
    response = await scene.ask(path, missing)
    code = "previous_response_not_found"
    openai_error(response, 400, code=code, param="previous_response_id")

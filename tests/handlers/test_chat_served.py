"""The OpenAI dialect on real sockets: the real client, the real proxy, a scripted upstream."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tornadoproxy import Usage
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    Truncated,
    bytes_response,
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
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        Records,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

MODEL = "claude-sonnet-5-5"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CHUNKED = [("Transfer-Encoding", "chunked")]
SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nrequest-id: req_up\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def chat(**fields: Any) -> bytes:
    body = json.dumps({"model": MODEL, "messages": HELLO, **fields}).encode()
    return request_bytes(
        "POST",
        "/openai/v1/chat/completions",
        {"Authorization": f"Bearer {TEST_TOKEN}", "Content-Type": "application/json"},
        body,
    )


# -- the client's side


async def test_create(
    openai_client: AsyncOpenAI, upstream: ScriptedUpstream, records: Records
) -> None:
    completion = await openai_client.chat.completions.create(model=MODEL, messages=HELLO)
    assert completion.choices[0].message.content is not None
    assert completion.choices[0].message.content.endswith("Hello")
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens > 0
    received = upstream.requests[0]
    assert (received.method, received.target) == ("POST", "/v1/messages")
    assert received.all("x-api-key") == [TEST_UPSTREAM_KEY]
    assert received.all("authorization") == []
    assert received.header("anthropic-version") == "2023-06-01"
    record = await records.finished()
    assert record.dialect == "openai"
    assert record.usage.output_tokens == completion.usage.completion_tokens
    assert record.model == completion.model


async def test_the_synchronous_client(proxy: Proxy, openai_client: AsyncOpenAI) -> None:
    def ask() -> str | None:
        with OpenAI(base_url=f"{proxy.url}/openai/v1", api_key=TEST_TOKEN, max_retries=0) as client:
            completion = client.chat.completions.create(model=MODEL, messages=HELLO)
            return completion.choices[0].message.content

    content = await asyncio.to_thread(ask)
    assert content is not None
    assert content.endswith("Hello")


async def test_stream_with_usage(openai_client: AsyncOpenAI, records: Records) -> None:
    stream = await openai_client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [each async for each in stream]
    text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    assert text.endswith("Hello")
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [each.choices[0].finish_reason for each in chunks if each.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert len({(each.id, each.created) for each in chunks}) == 1
    assert (await records.finished()).outcome == "completed"


async def test_parse_with_a_pydantic_model(
    openai_client: AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    class City(BaseModel):
        name: str

    models = json_response({"data": [], "has_more": False})
    upstream.script(models, json_response(message_document('{"name": "Bern"}')))
    completion = await openai_client.chat.completions.parse(
        model=MODEL, messages=HELLO, response_format=City
    )
    assert completion.choices[0].message.parsed == City(name="Bern")
    schema = upstream.requests[-1].json()["output_config"]["format"]["schema"]
    assert schema["properties"]["name"]["type"] == "string"
    assert schema["additionalProperties"] is False


async def test_tools_loop_to_the_end(
    openai_client: AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "tool: Bern"}]
    first = await openai_client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER]
    )
    response = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert response.tool_calls is not None
    call = response.tool_calls[0]
    assert call.type == "function"
    assert isinstance(json.loads(call.function.arguments), dict)
    messages.append(response.to_dict())  # type: ignore[arg-type]  # as the SDK's manual does it
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    second = await openai_client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER]
    )
    assert second.choices[0].finish_reason == "stop"
    result = upstream.requests[-1].json()["messages"][-1]["content"][0]
    assert result == {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}


async def test_stream_helper_accumulates_tools_and_thinking(
    openai_client: AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    document = message_document(
        content=[
            {"type": "thinking", "thinking": "Let me see.", "signature": "signed"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Bern"}},
            {"type": "tool_use", "id": "toolu_2", "name": "get_weather", "input": {}},
        ],
        stop_reason="tool_use",
    )
    upstream.script(sse_response(message_events(document)))
    async with openai_client.chat.completions.stream(
        model=MODEL, messages=HELLO, tools=[WEATHER]
    ) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_completion()
    message = final.choices[0].message
    assert message.content == "I look."
    assert message.tool_calls is not None
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [
        {"city": "Bern"},
        {},
    ]
    extra = message.model_extra or {}
    assert extra["reasoning_content"] == "Let me see."
    assert extra["thinking_blocks"][0]["signature"] == "signed"
    assert extra["thinking_blocks"][0]["thinking"] == "Let me see."


async def test_thinking_survives_a_turn_with_tools(
    openai_client: AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    blocks = [
        {"type": "thinking", "thinking": "Let me see.", "signature": "signed"},
        {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}},
    ]
    upstream.script(json_response(message_document(content=blocks, stop_reason="tool_use")))
    first = await openai_client.chat.completions.create(
        model=MODEL, messages=HELLO, tools=[WEATHER]
    )
    sent_back: Any = first.choices[0].message.to_dict()
    await openai_client.chat.completions.create(
        model=MODEL,
        messages=[
            *HELLO,
            sent_back,
            {"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"},
        ],
        tools=[WEATHER],
    )
    assert upstream.requests[-1].json()["messages"][1]["content"] == blocks


async def test_models(openai_client: AsyncOpenAI, upstream: ScriptedUpstream) -> None:
    models = await openai_client.models.list()
    ids = [model.id for model in models.data]
    assert MODEL in ids
    assert (await openai_client.models.retrieve(MODEL)).owned_by == "anthropic"
    with pytest.raises(openai.NotFoundError) as error:
        await openai_client.models.retrieve("gpt-nonsense")
    assert error.value.code == "model_not_found"
    assert len(upstream.requests) == 1, "the list is kept"


async def test_model_that_star_serves_is_found(
    start_proxy: StartProxy, openai_client: AsyncOpenAI
) -> None:
    proxy = await start_proxy(CHAT_MODELS=f"*={MODEL}")
    client = openai_client.with_options(base_url=f"{proxy.url}/openai/v1")
    assert (await client.models.retrieve("gpt-5.1")).id == "gpt-5.1"
    assert "gpt-5.1" not in [model.id for model in (await client.models.list()).data]


async def test_names_of_models_are_mapped(
    start_proxy: StartProxy, upstream: ScriptedUpstream, raw: OpenRaw
) -> None:
    await start_proxy(CHAT_MODELS=f"gpt-5=claude-opus-5-5 *={MODEL}")
    connection = await raw()
    asked = []
    for name in ("gpt-5", "o9", "claude-haiku-5-5"):
        await connection.send(chat(model=name))
        assert (await connection.response()).status == 200
        asked.append(upstream.requests[-1].json()["model"])
    assert asked == ["claude-opus-5-5", MODEL, "claude-haiku-5-5"]


@pytest.mark.parametrize(
    "path",
    [
        "/openai/v1/chat/completions",
        "/openai/chat/completions",
        "/openai/v1/v1/chat/completions",
    ],
)
async def test_with_and_without_v1(proxy: Proxy, raw: OpenRaw, path: str) -> None:
    connection = await raw()
    request = chat().replace(b"/openai/v1/chat/completions", path.encode(), 1)
    await connection.send(request)
    assert (await connection.response()).status == 200


async def test_sampling_pins_the_version_that_takes_it(
    start_proxy: StartProxy, upstream: ScriptedUpstream, raw: OpenRaw
) -> None:
    await start_proxy(DEFAULT_ANTHROPIC_VERSION="2026-10-21")
    connection = await raw()
    await connection.send(chat())
    await connection.response()
    await connection.send(chat(temperature=1))
    await connection.response()
    await connection.send(chat(temperature=0.7))
    await connection.response()
    assert [each.header("anthropic-version") for each in upstream.requests] == [
        "2026-10-21",
        "2026-10-21",
        "2023-06-01",
    ]
    assert upstream.requests[2].json()["temperature"] == 0.7


async def test_sampling_is_dropped_if_told_so(
    start_proxy: StartProxy, upstream: ScriptedUpstream, raw: OpenRaw
) -> None:
    await start_proxy(CHAT_DROP_SAMPLING=1)
    connection = await raw()
    await connection.send(chat(temperature=0.5))
    response = await connection.response()
    assert "temperature" not in upstream.requests[0].json()
    assert response.header("x-tornadoproxy-ignored") == "temperature"


async def test_what_is_ignored_is_named(proxy: Proxy, raw: OpenRaw) -> None:
    connection = await raw()
    await connection.send(chat(seed=1, **{"x\r\nevil: 1": 2}))
    response = await connection.response()
    assert response.status == 200
    assert response.header("x-tornadoproxy-ignored") == "seed, unknown"
    assert response.header("evil") is None


async def test_strict_refuses_what_would_be_ignored(start_proxy: StartProxy, raw: OpenRaw) -> None:
    await start_proxy(CHAT_STRICT=1)
    connection = await raw()
    await connection.send(chat(seed=1))
    response = await connection.response()
    assert response.status == 400
    assert json.loads(response.body)["error"]["param"] == "seed"


async def test_effort_follows_what_the_model_can_do(
    proxy: Proxy, upstream: ScriptedUpstream, raw: OpenRaw
) -> None:
    supported, not_supported = {"supported": True}, {"supported": False}
    capabilities = {
        "structured_outputs": not_supported,
        "effort": {**not_supported},
        "thinking": {
            **supported,
            "types": {"adaptive": not_supported, "enabled": supported, "disabled": supported},
        },
    }
    models = {"data": [{"id": MODEL, "capabilities": capabilities}], "has_more": False}
    upstream.script(json_response(models))
    connection = await raw()
    await connection.send(chat(reasoning_effort="low", max_tokens=9000))
    assert (await connection.response()).status == 200
    sent = upstream.requests[-1].json()
    assert sent["thinking"]["type"] == "enabled"
    assert 1024 <= sent["thinking"]["budget_tokens"] < 9000
    assert "output_config" not in sent


async def test_limit_is_the_models_own_and_asked_for_once(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    openai_client: AsyncOpenAI,
) -> None:
    proxy = await start_proxy(CHAT_DEFAULT_MAX_TOKENS=None)
    client = openai_client.with_options(base_url=f"{proxy.url}/openai/v1")
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model=MODEL, messages=[])
    assert upstream.requests == []
    await client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=9)
    upstream.script(json_response({"data": [{"id": MODEL, "max_tokens": 64_000}]}))
    for _ in range(2):
        await client.chat.completions.create(model=MODEL, messages=HELLO)
    await client.chat.completions.create(
        model="claude-unlisted",
        messages=HELLO,
        extra_body={"thinking": {"type": "enabled", "budget_tokens": 20_000}},
    )
    targets = [received.target for received in upstream.requests]
    assert targets == ["/v1/messages", "/v1/models?limit=1000", *["/v1/messages"] * 3]
    limits = [each.json()["max_tokens"] for each in upstream.requests if each.method == "POST"]
    assert limits == [9, 64_000, 64_000, 40_000]


async def test_a_list_of_models_that_cannot_be_had_delays_nothing(
    proxy: Proxy, upstream: ScriptedUpstream, raw: OpenRaw
) -> None:
    upstream.script(error_response(500, "api_error", "Internal server error"))
    connection = await raw()
    await connection.send(chat(reasoning_effort="high"))
    assert (await connection.response()).status == 200
    assert upstream.requests[-1].json()["output_config"] == {"effort": "high"}


async def test_answers_sent_back_by_the_sdk_are_accepted(
    openai_client: AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    thought = {"type": "thinking", "thinking": "Let me see.", "signature": ""}
    call = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Bern"}}
    document = message_document(content=[thought, call], stop_reason="max_tokens")
    cut = [
        each.replace(b'}"}}', b'"}}') if b"partial_json" in each else each
        for each in message_events(document)
    ]
    messages: list[ChatCompletionMessageParam] = [*HELLO]
    for _ in range(2):
        upstream.script(sse_response(cut))
        async with openai_client.chat.completions.stream(model=MODEL, messages=messages) as stream:
            with contextlib.suppress(openai.LengthFinishReasonError):
                await stream.until_done()
            response = stream.current_completion_snapshot.choices[0].message
        messages.append(response.to_dict())  # type: ignore[arg-type]  # as the SDK's manual does it
        messages.append({"role": "tool", "tool_call_id": "toolu_1", "content": "cut"})
    completion = await openai_client.chat.completions.with_raw_response.create(
        model=MODEL, messages=messages, prompt_cache_retention="24h"
    )
    assert completion.headers["x-tornadoproxy-ignored"] == "messages.thinking_blocks"
    sent = upstream.requests[-1].json()
    first, second = sent["messages"][1]["content"][0], sent["messages"][3]["content"][0]
    assert first["input"] == second["input"] == {"INVALID_JSON": '{"city": "Bern"'}
    assert first["id"] != second["id"]
    assert sent["cache_control"] == {"type": "ephemeral", "ttl": "1h"}


async def test_options_that_interfaces_always_send_are_accepted(
    openai_client: AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    response = await openai_client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=HELLO,
        temperature=0.7,
        top_p=0.9,
        user="ann@example.com",
        tools=[WEATHER, WEATHER],
        prompt_cache_key="ann",
    )
    assert response.headers["x-tornadoproxy-ignored"] == "prompt_cache_key, top_p"
    sent = upstream.requests[0].json()
    assert (sent["temperature"], sent.get("top_p")) == (0.7, None)
    assert sent["metadata"]["user_id"] == hashlib.sha256(b"ann@example.com").hexdigest()
    assert [tool["name"] for tool in sent["tools"]] == ["get_weather"]
    assert sent["cache_control"] == {"type": "ephemeral"}


@pytest.mark.parametrize(("prefill", "last"), [("no", "user"), ("yes", "assistant")])
async def test_assistant_message_last_is_a_prefill_only_if_set(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    openai_client: AsyncOpenAI,
    prefill: str,
    last: str,
) -> None:
    proxy = await start_proxy(CHAT_PREFILL=prefill)
    client = openai_client.with_options(base_url=f"{proxy.url}/openai/v1")
    await client.chat.completions.create(
        model=MODEL, messages=[*HELLO, {"role": "assistant", "content": "I am "}]
    )
    assert upstream.requests[0].json()["messages"][-1]["role"] == last


@pytest.mark.parametrize(("mode", "cached"), [("auto", [1]), ("always", [0, 1]), ("off", [])])
async def test_cache_setting_decides_what_is_cached(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    openai_client: AsyncOpenAI,
    mode: str,
    cached: list[int],
) -> None:
    proxy = await start_proxy(CHAT_CACHE=mode)
    client = openai_client.with_options(base_url=f"{proxy.url}/openai/v1")
    for tools in ([], [WEATHER]):
        await client.chat.completions.create(model=MODEL, messages=HELLO, tools=tools)
    marked = ["cache_control" in received.json() for received in upstream.requests]
    assert [index for index, is_marked in enumerate(marked) if is_marked] == cached


# -- requests that are wrong


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b'{"model": "m", "messages": [{"role": "user", "content": "\xff"}]}', None),
        (b'{"messages": []}', "model"),
        (b'{"model": "m"}', "messages"),
        (b'{"model": "m", "messages": []}', "messages"),
        (b'{"model": "m", "messages": "hello"}', "messages"),
        (b'{"model": "m", "messages": [{"role": "alien", "content": "x"}]}', "messages[0].role"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "n": 2}', "n"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "top_p": NaN}', None),
    ],
)
async def test_a_wrong_request_names_its_fault_and_goes_nowhere(
    proxy: Proxy, upstream: ScriptedUpstream, raw: OpenRaw, body: bytes, param: str | None
) -> None:
    connection = await raw()
    await connection.send(
        request_bytes(
            "POST",
            "/openai/v1/chat/completions",
            {"Authorization": f"Bearer {TEST_TOKEN}"},
            body,
        )
    )
    response = await connection.response()
    error = json.loads(response.body)["error"]
    assert response.status == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert response.header("x-request-id")
    assert upstream.requests == []


async def test_only_post_completes(proxy: Proxy, upstream: ScriptedUpstream, raw: OpenRaw) -> None:
    connection = await raw()
    await connection.send(
        request_bytes(
            "GET", "/openai/v1/chat/completions", {"Authorization": f"Bearer {TEST_TOKEN}"}
        )
    )
    response = await connection.response()
    assert response.status == 405
    assert response.header("allow") == "POST"
    assert "error" in json.loads(response.body)
    assert upstream.requests == []


async def test_too_large_a_body_is_refused_by_its_length(
    start_proxy: StartProxy, upstream: ScriptedUpstream, raw: OpenRaw
) -> None:
    await start_proxy(MAX_BODY_SIZE=1000)
    connection = await raw()
    await connection.send(chat(padding="x" * 2000))
    response = await connection.response()
    assert response.status == 413
    assert upstream.requests == []


# -- an upstream in trouble


@pytest.mark.parametrize(
    ("status", "error_type", "raised"),
    [
        (400, "invalid_request_error", openai.BadRequestError),
        (403, "permission_error", openai.PermissionDeniedError),
        (404, "not_found_error", openai.NotFoundError),
        (413, "request_too_large", openai.APIStatusError),
        (429, "rate_limit_error", openai.RateLimitError),
        (500, "api_error", openai.InternalServerError),
        (529, "overloaded_error", openai.InternalServerError),
    ],
)
async def test_upstreams_error_keeps_status_message_and_request_id(
    openai_client: AsyncOpenAI,
    upstream: ScriptedUpstream,
    records: Records,
    status: int,
    error_type: str,
    raised: type[openai.APIStatusError],
) -> None:
    headers = {"retry-after": "7", "request-id": "req_up", "x-should-retry": "false"}
    upstream.script(error_response(status, error_type, "model: so it is", headers))
    with pytest.raises(raised) as error:
        await openai_client.chat.completions.create(model=MODEL, messages=HELLO)
    assert error.value.status_code == status
    assert "so it is" in error.value.message
    assert error.value.request_id == "req_up"
    assert error.value.response.headers["retry-after"] == "7"
    assert error.value.response.headers["x-should-retry"] == "false"
    record = await records.finished()
    assert (record.outcome, record.request_id) == ("completed", "req_up")


async def test_a_page_instead_of_an_answer(
    proxy: Proxy, upstream: ScriptedUpstream, raw: OpenRaw, records: Records
) -> None:
    page = bytes_response(b"<html>hello</html>", {"Content-Type": "text/html"})
    upstream.script(page, page)
    connection = await raw()
    for stream in (False, True):
        await connection.send(chat(stream=stream))
        response = await connection.response()
        assert response.status == 502
        assert json.loads(response.body)["error"]["type"] == "server_error"
    assert (await records.finished(2)).outcome == "failed"


async def test_pings_and_line_separators_reach_the_sdk(
    openai_client: AsyncOpenAI, upstream: ScriptedUpstream, proxy: Proxy, raw: OpenRaw
) -> None:
    content = "a\u2028b\u2029c\x85d"
    events = message_events(message_document(content))  # a ping is among them
    upstream.script(
        sse_response(events), sse_response(events), json_response(message_document(content))
    )
    stream = await openai_client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    said = [each.choices[0].delta.content or "" async for each in stream]
    assert "".join(said) == content
    connection = await raw()
    await connection.send(chat(stream=True))
    body = (await connection.response()).body
    assert body.count(b": ping\n\n") == 1
    assert body.decode().splitlines() == body.decode().split("\n")[:-1]
    await connection.send(chat())
    response = (await connection.response()).body.decode()
    assert len(response.splitlines()) == 1
    assert json.loads(response)["choices"][0]["message"]["content"] == content


async def test_a_second_message_in_a_stream_is_an_error(
    openai_client: AsyncOpenAI, upstream: ScriptedUpstream, records: Records
) -> None:
    events = message_events(message_document("Hello"))[:-1]
    upstream.script(sse_response([*events, *message_events(message_document("Hi", id="msg_2"))]))
    stream = await openai_client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    with pytest.raises(openai.APIError):
        [each async for each in stream]
    assert (await records.finished()).outcome == "failed"


async def test_an_error_in_the_middle_of_a_stream(
    openai_client: AsyncOpenAI, upstream: ScriptedUpstream, records: Records
) -> None:
    events = message_events(message_document("Half an answer"))[:4]
    events.append(
        event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    )
    upstream.script(sse_response(events))
    stream = await openai_client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    with pytest.raises(openai.APIError) as error:
        async for _ in stream:
            pass
    assert "Overloaded" in error.value.message
    assert (await records.finished()).outcome == "failed"


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("whole_events", [True, False])
async def test_a_stream_that_breaks_off_never_ends_cleanly(
    proxy: Proxy,
    upstream: ScriptedUpstream,
    raw: OpenRaw,
    records: Records,
    end: Any,
    whole_events: bool,
) -> None:
    events = b"".join(message_events(message_document("Half an answer"))[:5])
    upstream.script(
        raw_response(SSE_HEAD, chunk(events if whole_events else events[:-20]), end=end)
    )
    connection = await raw()
    await connection.send(chat(stream=True))
    with pytest.raises(Truncated) as cut:
        await connection.response()
    assert cut.value.response is not None
    last = cut.value.response.body.rstrip().split(b"\n\n")[-1]
    assert "error" in json.loads(last.removeprefix(b"data: "))
    assert b"[DONE]" not in cut.value.response.body
    assert (await records.finished()).outcome == "failed"


async def test_a_stream_that_ends_early_but_tidily(
    proxy: Proxy, upstream: ScriptedUpstream, raw: OpenRaw
) -> None:
    upstream.script(sse_response(message_events(message_document("Half an answer"))[:5]))
    connection = await raw()
    await connection.send(chat(stream=True))
    with pytest.raises(Truncated) as cut:
        await connection.response()
    assert cut.value.response is not None
    assert b'"error"' in cut.value.response.body
    assert b"[DONE]" not in cut.value.response.body


async def test_each_piece_goes_out_as_it_comes(
    proxy: Proxy, upstream: ScriptedUpstream, raw: OpenRaw
) -> None:
    read_on = asyncio.Event()
    events = message_events(message_document("one two"))

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.send(SSE_HEAD + chunk(events[0]))
        await read_on.wait()
        await exchange.send(b"".join(chunk(each) for each in events[1:]) + b"0\r\n\r\n")

    upstream.script(response)
    connection = await raw()
    await connection.send(chat(stream=True))
    await connection.read_until(b'"role":"assistant"')
    read_on.set()
    await connection.read_until(b"data: [DONE]\n\n")


async def test_a_quiet_stream_is_kept_alive_by_comments(
    start_proxy: StartProxy, upstream: ScriptedUpstream, raw: OpenRaw
) -> None:
    await start_proxy(SSE_KEEPALIVE_INTERVAL=0.05)
    events = message_events(message_document("slow"))
    go_on = asyncio.Event()

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.send(SSE_HEAD + chunk(events[0]))
        await go_on.wait()
        await exchange.send(b"".join(chunk(each) for each in events[1:]) + b"0\r\n\r\n")

    upstream.script(response)
    connection = await raw()
    await connection.send(chat(stream=True))
    await connection.read_until(b": ping\n\n")
    go_on.set()
    await connection.read_until(b"data: [DONE]\n\n")


async def test_a_client_that_leaves_ends_the_request_upstream(
    proxy: Proxy, upstream: ScriptedUpstream, raw: OpenRaw, records: Records
) -> None:
    upstream.script(silent_response())
    connection = await raw()
    await connection.send(chat(stream=True))
    received = await upstream.received()
    await received.complete()
    await connection.close()
    async with asyncio.timeout(1):
        await received.gone()
    assert (await records.finished()).outcome == "abandoned"


async def test_a_client_that_does_not_read_slows_the_upstream_down(
    proxy: Proxy, upstream: ScriptedUpstream, raw: OpenRaw, records: Records
) -> None:
    text = "x" * 8000
    start, _, opened, *_ = message_events(message_document("x"))
    delta = event(
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": text},
        }
    )
    ending = message_events(message_document("x"))[-3:]
    total = 4000  # deltas, 32 MB
    sent = 0
    all_sent = asyncio.Event()

    async def response(exchange: UpstreamExchange) -> None:
        nonlocal sent
        await exchange.read_all()
        await exchange.send(SSE_HEAD + chunk(start) + chunk(opened))
        for _ in range(total):
            await exchange.send(chunk(delta))
            sent += 1
        await exchange.send(b"".join(map(chunk, ending)) + b"0\r\n\r\n")
        all_sent.set()

    upstream.script(response)
    client = await raw(receive_buffer=16_384)
    await client.send(chat(stream=True))
    await client.head()
    before = -1
    while before < sent:  # once nothing more is taken, it stalls for good
        before = sent
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await all_sent.wait()
    assert sent < total / 2
    received = b""
    letters = 0
    while not received.endswith(b"0\r\n\r\n"):
        piece = await client.read()
        assert piece
        letters += piece.count(b"xxxx") * 4
        received = (received + piece)[-64:]
    assert letters > total * len(text) * 0.99  # a run of letters may be split between two reads
    assert (await records.finished()).outcome == "completed"


async def test_room_for_held_bodies_is_given_back(
    proxy: Proxy, upstream: ScriptedUpstream, raw: OpenRaw, records: Records
) -> None:
    connection = await raw()
    for count, request in enumerate((chat(), chat(n=2), chat(stream=True)), start=1):
        await connection.send(request)
        await connection.response()
        await records.finished(count)
        assert proxy.server.status().held_bytes == 0


async def test_what_a_stream_has_used_that_nobody_can_read_is_not_known(
    proxy: Proxy, upstream: ScriptedUpstream, raw: OpenRaw, records: Records
) -> None:
    events = message_events(message_document("Hello"))
    upstream.script(sse_response(events, headers={"Content-Encoding": "unheard-of"}))
    connection = await raw()
    await connection.send(chat(stream=True))
    assert (await connection.response()).status == 502
    assert (await records.finished()).usage == Usage(partial=True)


async def test_a_compressed_request_is_refused(
    proxy: Proxy, upstream: ScriptedUpstream, raw: OpenRaw
) -> None:
    connection = await raw()
    await connection.send(chat().replace(b"Content-Type:", b"Content-Encoding: gzip\r\nX-Type:", 1))
    response = await connection.response()
    assert response.status == 400
    assert "Content-Encoding" in json.loads(response.body)["error"]["message"]
    assert upstream.requests == []


async def test_a_client_that_leaves_while_the_models_are_asked_for_costs_nothing(
    proxy: Proxy, upstream: ScriptedUpstream, raw: OpenRaw, records: Records
) -> None:
    go_on = asyncio.Event()

    async def models(exchange: UpstreamExchange) -> None:
        await go_on.wait()
        await json_response({"data": [], "has_more": False})(exchange)

    upstream.script(models)
    connection = await raw()
    await connection.send(chat(reasoning_effort="high"))
    await upstream.received()
    await connection.close()
    assert (await records.finished()).outcome == "abandoned"
    go_on.set()
    second = await raw()
    await second.send(chat())
    assert (await second.response()).status == 200
    assert [each.target for each in upstream.requests] == ["/v1/models?limit=1000", "/v1/messages"]


async def test_an_answer_without_an_end_is_given_up(
    proxy: Proxy, upstream: ScriptedUpstream, raw: OpenRaw
) -> None:
    piece = chunk(b"x" * 1_000_000)

    async def endless(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, [("Content-Type", "application/json"), *CHUNKED])
        while True:
            await exchange.send(piece)

    upstream.script(endless)
    connection = await raw()
    await connection.send(chat())
    response = await connection.response()
    assert response.status == 502
    assert "too large" in json.loads(response.body)["error"]["message"]
    async with asyncio.timeout(1):
        await upstream.requests[0].gone()


async def test_an_event_that_is_not_json_breaks_the_stream(
    proxy: Proxy, upstream: ScriptedUpstream, raw: OpenRaw, records: Records
) -> None:
    start = message_events(message_document("x"))[0]
    upstream.script(sse_response([start, b"event: content_block_delta\ndata: {oh no\n\n"]))
    connection = await raw()
    await connection.send(chat(stream=True))
    with pytest.raises(Truncated) as cut:
        await connection.response()
    assert cut.value.response is not None
    assert b'"server_error"' in cut.value.response.body
    assert b"[DONE]" not in cut.value.response.body
    assert (await records.finished()).outcome == "failed"


async def test_models_come_in_pages(openai_client: AsyncOpenAI, upstream: ScriptedUpstream) -> None:
    first = {"data": [{"id": "claude-a b"}], "has_more": True, "last_id": "claude-a b"}
    second = {"data": [{"id": "claude-c"}, "junk"], "has_more": False, "last_id": "claude-c"}
    upstream.script(json_response(first), json_response(second))
    listed = await openai_client.models.list()
    assert [model.id for model in listed.data] == ["claude-a b", "claude-c"]
    assert [each.target for each in upstream.requests] == [
        "/v1/models?limit=1000",
        "/v1/models?limit=1000&after_id=claude-a%20b",
    ]


async def test_models_that_cannot_be_had(
    openai_client: AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    upstream.script(
        error_response(403, "permission_error", "not yours"), json_response({"data": "junk"})
    )
    with pytest.raises(openai.PermissionDeniedError, match="not yours"):
        await openai_client.models.list()
    with pytest.raises(openai.InternalServerError) as error:
        await openai_client.models.list()
    assert error.value.status_code == 502
    assert (await openai_client.models.list()).data, "a failure is not kept"

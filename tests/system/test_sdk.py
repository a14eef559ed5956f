"""The real SDKs through the real proxy: what they ask for, and what they make of the answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anthropic
import openai
import pytest

from tornadoproxy.testing import (
    TEST_TOKEN,
    clean_environment,
    error_response,
    json_response,
    message_document,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anthropic.types import MessageParam, ToolParam

    from tornadoproxy.testing import Proxy, Records, ScriptedUpstream

MODEL = "claude-sonnet-5-5"
HELLO: list[MessageParam] = [{"role": "user", "content": "Grüße, 世界 und 😀!"}]
RESPONSE = "This is a scripted answer, not Claude's. You said: Grüße, 世界 und 😀!"
WEATHER: ToolParam = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
def sync_client(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[anthropic.Anthropic]:
    """The SDK's other client, without retries. It blocks: use it in a thread."""
    clean_environment(monkeypatch)
    with anthropic.Anthropic(base_url=proxy.url, api_key=TEST_TOKEN, max_retries=0) as client:
        yield client


# -- messages


async def test_create(
    anthropic_client: anthropic.AsyncAnthropic, upstream: ScriptedUpstream, records: Records
) -> None:
    message = await anthropic_client.messages.create(
        model=MODEL, max_tokens=100, system="Be brief.", messages=HELLO
    )
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": RESPONSE}]
    assert (message.model, message.stop_reason) == (MODEL, "end_turn")
    record = await records.finished()
    assert (record.outcome, record.status, record.model) == ("completed", 200, MODEL)
    assert record.usage.input_tokens == message.usage.input_tokens
    assert record.usage.output_tokens == message.usage.output_tokens
    assert record.request_id == message._request_id


async def test_stream(anthropic_client: anthropic.AsyncAnthropic, records: Records) -> None:
    async with anthropic_client.messages.stream(
        model=MODEL, max_tokens=100, messages=HELLO
    ) as stream:
        texts = [text async for text in stream.text_stream]
        message = await stream.get_final_message()
    assert len(texts) > 5
    assert "".join(texts) == RESPONSE
    assert message.content[0].to_dict() == {"type": "text", "text": RESPONSE}
    assert message.stop_reason == "end_turn"
    record = await records.finished()
    assert (record.outcome, record.status, record.model) == ("completed", 200, MODEL)
    assert record.usage.output_tokens == message.usage.output_tokens


async def test_raw_events(anthropic_client: anthropic.AsyncAnthropic) -> None:
    stream = await anthropic_client.messages.create(
        model=MODEL, max_tokens=100, messages=HELLO, stream=True
    )
    kinds = [event.type async for event in stream]
    assert list(dict.fromkeys(kinds)) == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


@pytest.mark.parametrize("limit", [3, 100])
async def test_stop_reasons(limit: int, anthropic_client: anthropic.AsyncAnthropic) -> None:
    async with anthropic_client.messages.stream(
        model=MODEL, max_tokens=limit, messages=HELLO, stop_sequences=["世界"]
    ) as stream:
        message = await stream.get_final_message()
    if limit == 3:
        assert message.stop_reason == "max_tokens"
    else:
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "世界")


async def test_tools_to_their_result(anthropic_client: anthropic.AsyncAnthropic) -> None:
    asked: MessageParam = {"role": "user", "content": 'tool: "Zürich" \\ {}'}
    async with anthropic_client.messages.stream(
        model=MODEL, max_tokens=100, messages=[asked], tools=[WEATHER]
    ) as stream:
        message = await stream.get_final_message()
    assert message.stop_reason == "tool_use"
    use = message.content[-1]
    assert use.type == "tool_use"
    assert (use.name, use.input) == ("weather", {"city": '"Zürich" \\ {}'})
    called: MessageParam = {"role": "assistant", "content": message.content}
    result: MessageParam = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "12 °C"}],
    }
    response = await anthropic_client.messages.create(
        model=MODEL, max_tokens=100, messages=[asked, called, result], tools=[WEATHER]
    )
    assert response.content[0].type == "text"
    assert response.content[0].text.endswith("The tool said: 12 °C")


async def test_thinking_survives_to_the_next_turn(
    anthropic_client: anthropic.AsyncAnthropic, upstream: ScriptedUpstream
) -> None:
    async with anthropic_client.messages.stream(
        model=MODEL,
        max_tokens=2000,
        messages=HELLO,
        thinking={"type": "enabled", "budget_tokens": 1024},
    ) as stream:
        message = await stream.get_final_message()
    thought = message.content[0]
    assert thought.type == "thinking"
    assert thought.thinking
    assert thought.signature
    turn: list[MessageParam] = [
        *HELLO,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": "And?"},
    ]
    await anthropic_client.messages.create(model=MODEL, max_tokens=100, messages=turn)
    sent = upstream.requests[1].json()["messages"][1]["content"][0]
    assert (sent["thinking"], sent["signature"]) == (thought.thinking, thought.signature)


async def test_large_request(
    anthropic_client: anthropic.AsyncAnthropic, upstream: ScriptedUpstream
) -> None:
    """More than is held in memory, and so streamed through."""
    upstream.script(json_response(message_document("Long.")))
    text = "0123456789abcdef" * 0x20000
    message = await anthropic_client.messages.create(
        model=MODEL, max_tokens=100, messages=[{"role": "user", "content": text}]
    )
    assert message.content[0].to_dict()["text"] == "Long."
    assert upstream.requests[0].body_length > len(text)


async def test_many_at_once(
    anthropic_client: anthropic.AsyncAnthropic, upstream: ScriptedUpstream, records: Records
) -> None:
    """Each gets its own answer."""

    async def ask(number: int) -> bool:
        async with anthropic_client.messages.stream(
            model=MODEL, max_tokens=100, messages=[{"role": "user", "content": f"I am {number}"}]
        ) as stream:
            return (await stream.get_final_text()).endswith(f"You said: I am {number}")

    assert all(await asyncio.gather(*(ask(number) for number in range(50))))
    await records.finished(50)
    assert {record.outcome for record in records.all} == {"completed"}


# -- everything else


async def test_count_tokens(anthropic_client: anthropic.AsyncAnthropic) -> None:
    counted = await anthropic_client.messages.count_tokens(model=MODEL, messages=HELLO)
    assert counted.input_tokens > 0


async def test_models(anthropic_client: anthropic.AsyncAnthropic) -> None:
    """Page after page, and one by its name."""
    listed = [model.id async for model in anthropic_client.models.list(limit=3)]
    assert len(listed) == 4
    model = await anthropic_client.models.retrieve(listed[3])
    assert model.id == listed[3]
    with pytest.raises(anthropic.NotFoundError, match="no-such-model"):
        await anthropic_client.models.retrieve("no-such-model")


async def test_batches(anthropic_client: anthropic.AsyncAnthropic) -> None:
    batch = await anthropic_client.messages.batches.create(
        requests=[
            {
                "custom_id": "one",
                "params": {"model": MODEL, "max_tokens": 100, "messages": HELLO},
            }
        ]
    )
    assert (await anthropic_client.messages.batches.retrieve(batch.id)).id == batch.id
    assert [each.id async for each in anthropic_client.messages.batches.list()] == [batch.id]


async def test_headers_of_the_answer(
    anthropic_client: anthropic.AsyncAnthropic, records: Records
) -> None:
    raw = await anthropic_client.messages.with_raw_response.create(
        model=MODEL, max_tokens=100, messages=HELLO
    )
    assert raw.headers["anthropic-ratelimit-requests-limit"] == "4000"
    assert raw.headers["anthropic-organization-id"]
    assert raw.request_id
    assert raw.request_id == raw.headers["request-id"] == (await records.finished()).request_id
    assert (await raw.parse()).content[0].to_dict()["text"] == RESPONSE


@pytest.mark.parametrize(
    ("status", "error_type", "expected"),
    [
        (400, "invalid_request_error", anthropic.BadRequestError),
        (403, "permission_error", anthropic.PermissionDeniedError),
        (404, "not_found_error", anthropic.NotFoundError),
        (413, "request_too_large", anthropic.APIStatusError),
        (429, "rate_limit_error", anthropic.RateLimitError),
        (500, "api_error", anthropic.InternalServerError),
        (529, "overloaded_error", anthropic.APIStatusError),
    ],
)
async def test_errors_of_the_upstream_raise_the_sdks_classes(
    status: int,
    error_type: str,
    expected: type[anthropic.APIStatusError],
    anthropic_client: anthropic.AsyncAnthropic,
    upstream: ScriptedUpstream,
) -> None:
    upstream.script(error_response(status, error_type, "It is as it is.", (), "req_of_upstream"))
    with pytest.raises(expected) as caught:
        await anthropic_client.messages.create(model=MODEL, max_tokens=9, messages=HELLO)
    error = caught.value
    assert error.status_code == status
    assert error.type == error_type
    assert "It is as it is." in error.message
    assert error.request_id == "req_of_upstream"


async def test_retries_go_by_the_upstreams_headers(
    proxy: Proxy, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch)
    again = error_response(529, "overloaded_error", "Overloaded", {"retry-after-ms": "1"})
    never = error_response(529, "overloaded_error", "Overloaded", {"x-should-retry": "false"})
    async with anthropic.AsyncAnthropic(
        base_url=proxy.url, api_key=TEST_TOKEN, max_retries=5
    ) as client:
        upstream.script(again, again)
        await client.messages.create(model=MODEL, max_tokens=9, messages=HELLO)
        assert len(upstream.requests) == 3
        upstream.script(never)
        with pytest.raises(anthropic.APIStatusError):
            await client.messages.create(model=MODEL, max_tokens=9, messages=HELLO)
        assert len(upstream.requests) == 4


# -- the SDK that blocks


async def test_sync_create_and_stream(sync_client: anthropic.Anthropic) -> None:
    def work() -> tuple[object, list[str], str]:
        message = sync_client.messages.create(model=MODEL, max_tokens=100, messages=HELLO)
        with sync_client.messages.stream(model=MODEL, max_tokens=100, messages=HELLO) as stream:
            texts = list(stream.text_stream)
            final = stream.get_final_text()
        return message.content[0].to_dict()["text"], texts, final

    created, texts, final = await asyncio.to_thread(work)
    assert created == final == "".join(texts) == RESPONSE


async def test_sync_all_else(sync_client: anthropic.Anthropic) -> None:
    def work() -> tuple[int, int]:
        counted = sync_client.messages.count_tokens(model=MODEL, messages=HELLO)
        return counted.input_tokens, len(list(sync_client.models.list(limit=2)))

    tokens, models = await asyncio.to_thread(work)
    assert tokens > 0
    assert models == 4


async def test_sync_errors(sync_client: anthropic.Anthropic, upstream: ScriptedUpstream) -> None:
    upstream.script(error_response(429, "rate_limit_error", "Slower.", (), "req_of_upstream"))

    def work() -> None:
        sync_client.messages.create(model=MODEL, max_tokens=9, messages=HELLO)

    with pytest.raises(anthropic.RateLimitError, match="Slower") as caught:
        await asyncio.to_thread(work)
    assert caught.value.request_id == "req_of_upstream"


# -- OpenAI's, which so far finds nothing but who may enter


async def test_openai_learns_of_a_wrong_key(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    clean_environment(monkeypatch)
    async with openai.AsyncOpenAI(
        base_url=f"{proxy.url}/openai/v1", api_key="wrong", max_retries=0
    ) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Hi"}]
            )
    error = caught.value
    assert (error.type, error.code) == ("invalid_request_error", "invalid_api_key")
    assert error.request_id
    assert error.request_id.startswith("req_")


async def test_openai_learns_that_there_is_nothing(
    openai_client: openai.AsyncOpenAI, upstream: ScriptedUpstream, records: Records
) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await openai_client.completions.create(model=MODEL, prompt="Hi")
    error = caught.value
    assert error.type == "invalid_request_error"
    assert "/openai/v1/completions" in error.message
    assert error.request_id == (await records.finished()).request_id
    assert not upstream.requests

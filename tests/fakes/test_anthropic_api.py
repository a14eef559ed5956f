"""The scripted upstream as the Anthropic API: messages, streams, lists and errors."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message, RawMessageStreamEvent, message_create_params
from anthropic.types.beta import message_create_params as beta_message_create_params
from pydantic import TypeAdapter
from tornado.ioloop import IOLoop

from tornadoproxy.fakes.anthropic_messages import message_for
from tornadoproxy.fakes.anthropic_validation import KNOWN_FIELDS, Refusal, validate
from tornadoproxy.testing import (
    Ask,
    Document,
    ScriptedUpstream,
    clean_environment,
    message_document,
    message_events,
    request_bytes,
)

MODEL = "claude-sonnet-5-5"
KEY = "a-key"
MISSING = "missing"
VERSION = {"anthropic-version": "2023-06-01"}
TEXT = "This is a scripted response, not Claude's. You said: "
TOOL: Document = {
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
USE = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}


@pytest.fixture
def sdk(
    io_loop: IOLoop, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AsyncAnthropic]:
    """The SDK's client of the upstream itself."""
    clean_environment(monkeypatch)
    client = AsyncAnthropic(base_url=upstream.url, api_key=KEY, max_retries=0)
    yield client
    io_loop.run_sync(client.close)


def message_request(text: str = "Hi", **fields: Any) -> dict[str, Any]:  # JSON, as the SDK takes it
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "max_tokens": 200, "messages": messages, **fields}


def assistant(*blocks: Document) -> Document:
    return {"role": "assistant", "content": [*blocks]}


def user(*blocks: Document) -> Document:
    return {"role": "user", "content": [*blocks]}


def message(text: str = "Hi", **fields: Any) -> Message:  # JSON fields of a request
    """Return the message that the API responds with, as the SDK reads it."""
    document = message_for(message_request(text, **fields))
    return Message.model_validate_json(json.dumps(document))


def text_of(message: Message) -> str:
    block = message.content[0]
    assert block.type == "text"
    return block.text


def test_stream_is_the_message_in_valid_events() -> None:
    """The SDK reads it through the proxy in tests/system."""
    document = message_for(message_request("Grüß dich"))
    assert document["content"] == [{"type": "text", "text": f"{TEXT}Grüß dich"}]
    assert (document["stop_reason"], document["usage"]["output_tokens"]) == ("end_turn", 11)
    lines = b"".join(message_events(document)).decode().splitlines()
    names = [line[7:] for line in lines if line.startswith("event: ")]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert set(names[3:-3]) == {"content_block_delta"}
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    adapter: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)  # a union of the SDK's
    documents = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert [document["type"] for document in documents] == names
    for document in documents:
        if document["type"] != "ping":
            adapter.validate_python(document)


def test_tool_is_called_and_its_result_used() -> None:
    called = message("tool: Šanghaj", tools=[TOOL])
    assert called.stop_reason == "tool_use"
    call = called.content[-1].to_dict()
    assert (call["type"], call["name"]) == ("tool_use", "get_weather")
    values = {"days": 1, "unit": "C", "at": [1.5], "now": True, "zone": None}
    assert call["input"] == {"city": "Šanghaj", **values}
    result = {**RESULT, "content": [{"type": "text", "text": "rain"}]}
    final = message(tools=[TOOL], messages=[user(result)])
    assert (final.stop_reason, text_of(final)[-19:]) == ("end_turn", "The tool said: rain")


@pytest.mark.parametrize(
    ("choice", "called"),
    [({"type": "any"}, ["get_weather"]), ({"type": "tool", "name": "other"}, ["other"])],
)
def test_tool_choice_selects_the_tool(choice: Document, called: list[str]) -> None:
    content = message(tools=[TOOL, {"name": "other"}], tool_choice=choice).content
    assert [block.name for block in content if block.type == "tool_use"] == called


def test_controls_of_a_message() -> None:
    short = message(max_tokens=3)
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 3)
    assert text_of(short) == "This is a"
    stopped = message(stop_sequences=["said", "Claude", "no such"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Claude")
    assert text_of(stopped) == "This is a scripted response, not "
    form = {"type": "json_schema", "schema": TOOL["input_schema"]}
    assert json.loads(text_of(message("Oslo", output_config={"format": form})))["city"] == "Oslo"
    block = {"type": "text", "text": "a b c d", "cache_control": {"type": "ephemeral"}}
    assert message(system=[block]).usage.cache_read_input_tokens
    thoughtful = message(thinking={"type": "adaptive"}, max_tokens=2000)
    thinking, text = (block.to_dict() for block in thoughtful.content)
    assert (thinking["type"], text["type"]) == ("thinking", "text")
    assert thinking["thinking"]
    assert thinking["signature"]


def test_message_events_stream_a_document() -> None:
    other = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
    document = message_document(content=[other], stop_reason="pause_turn")
    events = [json.loads(each.split(b"data: ")[1]) for each in message_events(document)]
    assert events[0]["message"]["content"] == []
    assert events[2]["content_block"] == other
    assert events[3]["type"] == "content_block_stop"
    assert events[4]["delta"]["stop_reason"] == "pause_turn"
    assert events[4]["usage"]["output_tokens"] == document["usage"]["output_tokens"]
    long = message_events(message_document("word " * 1000 + "end"))
    assert 50 < len(long) < 120, "at most a hundred deltas"


def test_searches_and_citations_are_streamed() -> None:
    search = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search"}
    cited = {"type": "text", "text": "So.", "citations": [{"type": "char_location"}]}
    document = message_document(content=[{**search, "input": {"query": "x"}}, cited])
    events = [json.loads(each.split(b"data: ")[1]) for each in message_events(document)]
    begun = [each["content_block"] for each in events if "content_block" in each]
    assert begun == [{**search, "input": {}}, {"type": "text", "text": "", "citations": []}]
    deltas = [each["delta"] for each in events if each["type"] == "content_block_delta"]
    assert json.loads("".join(each.get("partial_json", "") for each in deltas)) == {"query": "x"}
    assert deltas[-2] == {"type": "citations_delta", "citation": {"type": "char_location"}}


async def test_models_are_listed_in_pages(sdk: AsyncAnthropic, upstream: ScriptedUpstream) -> None:
    first = await sdk.models.list(limit=3)
    assert first.has_more
    every = [model async for model in first]
    assert len(every) == 4
    assert upstream.requests[1].target == f"/v1/models?limit=3&after_id={first.last_id}"
    before = await sdk.models.list(before_id=every[2].id, limit=1)
    assert [model.id for model in before.data] == [every[1].id]
    assert await sdk.models.retrieve(every[0].id) == every[0]
    with pytest.raises(anthropic.NotFoundError, match="model: no-such"):
        await sdk.models.retrieve("no-such")
    with pytest.raises(anthropic.BadRequestError, match="limit"):
        await sdk.models.list(limit=0)


async def test_batch_results_have_an_absolute_url(
    sdk: AsyncAnthropic, upstream: ScriptedUpstream
) -> None:
    requests: Any = [
        {"custom_id": "good", "params": message_request()},
        {"custom_id": "bad", "params": message_request(max_tokens=0)},
    ]
    batch = await sdk.messages.batches.create(requests=requests)
    assert batch.results_url == f"{upstream.url}/v1/messages/batches/{batch.id}/results"
    assert (batch.request_counts.succeeded, batch.request_counts.errored) == (1, 1)
    results = [each async for each in await sdk.messages.batches.results(batch.id)]
    ends = [(each.custom_id, each.result.type) for each in results]
    assert ends == [("good", "succeeded"), ("bad", "errored")]
    with pytest.raises(anthropic.NotFoundError):
        await sdk.messages.batches.retrieve("no-such")
    with pytest.raises(anthropic.BadRequestError, match="requests: Field required"):
        await sdk.messages.batches.create(requests=[])


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        ({"max_tokens": MISSING}, "max_tokens: Field required"),
        ({"model": MISSING}, "model: Field required"),
        ({"messages": MISSING}, "messages: Field required"),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"model": 5}, "model: "),
        ({"messages": []}, "messages: at least one"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: "),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0.content: "),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content: "),
        (
            {"messages": [user({"type": "text", "text": ""})]},
            "messages.0.content: text content blocks must be non-empty",
        ),
        ({"messages": [assistant(USE)]}, "messages.0: each tool_use needs one tool_result"),
        ({"messages": [assistant(USE), {"role": "user", "content": "?"}]}, "messages.1: each"),
        ({"messages": [user(RESULT)]}, "messages.0: each tool_use needs one tool_result"),
        ({"messages": [assistant(USE), user(RESULT, RESULT)]}, "messages.1: each tool_use"),
        ({"stream": None}, "stream: "),
        ({"temperature": None}, "temperature: "),
        ({"temperature": 1.5}, "temperature: "),
        ({"stop_sequences": [" "]}, "stop_sequences: "),
        ({"seed": 1}, "seed: Extra inputs are not permitted"),
        ({"thinking": {"type": "enabled", "budget_tokens": 200}}, "thinking.enabled"),
        ({"tool_choice": {"type": "auto"}}, "tool_choice: "),
        ({"tools": [TOOL, TOOL]}, "tools: "),
        ({"tools": [TOOL], "tool_choice": {"type": "required"}}, "tool_choice: "),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice: "),
    ],
)
def test_invalid_field_is_named(fields: dict[str, Any], start: str) -> None:
    document = {name: each for name, each in message_request(**fields).items() if each != MISSING}
    with pytest.raises(Refusal) as caught:
        validate(document, "2023-06-01")
    assert (caught.value.status, caught.value.error_type) == (400, "invalid_request_error")
    assert caught.value.message.startswith(start)


def test_sampling_is_refused_from_a_version_on() -> None:
    document = message_request(temperature=0.5)
    validate(document, "2023-06-01")
    with pytest.raises(Refusal, match=r"^temperature: not supported"):
        validate(document, "2026-10-21")


def test_known_fields_are_those_of_the_sdk() -> None:
    names: set[str] = set()
    for module in (message_create_params, beta_message_create_params):
        names |= module.MessageCreateParamsStreaming.__annotations__.keys()
        names |= inspect.get_annotations(module.MessageCreateParamsBase).keys()
    sent_as_headers = {"betas", "user_profile_id", "workspace_id"}
    assert names - sent_as_headers <= KNOWN_FIELDS


async def test_refusals_are_errors_of_the_api(ask: Ask, upstream: ScriptedUpstream) -> None:
    garbled = request_bytes("POST", "/v1/messages", VERSION, b"\xff{", token=KEY)
    unversioned = request_bytes("POST", "/v1/messages", body=b"{}", token=KEY)
    unknown = json.dumps(message_request(model="gpt-x")).encode()
    for request, status, kind, message in (
        (request_bytes("GET", "/v1/models"), 401, "authentication_error", "x-api-key header is"),
        (unversioned, 400, "invalid_request_error", "anthropic-version: "),
        (garbled, 400, "invalid_request_error", ""),
        (garbled.replace(b"\xff{", b"[]"), 400, "invalid_request_error", ""),
        (
            request_bytes("POST", "/v1/messages", VERSION, unknown, token=KEY),
            *(404, "not_found_error", "model: gpt-x"),
        ),
        (request_bytes("GET", "/v1/nowhere?a=b", token=KEY), 404, "not_found_error", ""),
    ):
        response = await ask(request, to=upstream)
        document = json.loads(response.body)
        assert document["type"] == "error"
        assert (response.status, document["error"]["type"]) == (status, kind)
        assert document["error"]["message"].startswith(message)
        assert document["request_id"] == response.header("request-id")

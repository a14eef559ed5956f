"""The hook respond in a served proxy: a plugin's response in place of the upstream's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest
from scene import Scene
from served import CHAT_PATH, MESSAGE_FIELDS, RESPONSES_FIELDS, RESPONSES_PATH, Authorizer

from tornadoproxy import (
    Denied,
    ModelRequest,
    ModelResponse,
    Outcome,
    Permit,
    RequestRecord,
    Usage,
    hookimpl,
)
from tornadoproxy.testing import TEST_TOKEN, Proxy

TEXT = "Grüße, 世界 und 😀!"
BLOCKS = [
    {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
    {"type": "text", "text": TEXT},
    {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": ["ü", 1]}},
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}},
    {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
]

sync_and_async = pytest.mark.parametrize("awaited", [False, True])
each_api = pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/messages", MESSAGE_FIELDS),
        (CHAT_PATH, MESSAGE_FIELDS),
        (RESPONSES_PATH, RESPONSES_FIELDS),
    ],
)


def anthropic_client(proxy: Proxy) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=proxy.url, api_key=TEST_TOKEN, max_retries=0)


def openai_client(proxy: Proxy) -> openai.AsyncOpenAI:
    url = f"{proxy.url}/openai/v1"
    return openai.AsyncOpenAI(base_url=url, api_key=TEST_TOKEN, max_retries=0)


class Responder:
    """Responds with what `decide` returns, and records what it is asked."""

    def __init__(
        self,
        decide: Callable[[ModelRequest], object] = lambda _: ModelResponse(TEXT),
        *,
        awaited: bool = False,
    ) -> None:
        self._decide, self._awaited = decide, awaited
        self.bodies: list[bytes] = []

    @hookimpl
    def respond(self, model_request: ModelRequest, body: bytes) -> Any:
        self.bodies.append(body)

        async def later() -> object:
            await asyncio.sleep(0)
            return self._decide(model_request)

        return later() if self._awaited else self._decide(model_request)


def deny(_: ModelRequest) -> None:
    raise Denied("Back at noon.", status=503, retry_after=60)


def break_down(_: ModelRequest) -> None:
    raise LookupError


@sync_and_async
@each_api
async def test_response_of_a_plugin_reaches_no_upstream(
    scene: Scene, path: str, fields: dict[str, Any], *, awaited: bool
) -> None:
    settled: list[RequestRecord] = []
    responder = Responder(awaited=awaited)
    permit = Permit(settle=settled.append, added_headers={"X-Spent": "3"})
    await scene.start(plugins=[responder, Authorizer(lambda _: permit)])
    response = await scene.ask(path, fields)
    assert (response.status, TEXT in str(json.loads(response.body))) == (200, True)
    assert response.header("x-spent") == ("3" if path == "/v1/messages" else None)
    assert json.loads(responder.bodies[0])["messages"] == MESSAGE_FIELDS["messages"]
    record = await scene.records.finished()
    assert scene.upstream.requests == []
    assert (record.outcome, record.status, record.error) == (Outcome.COMPLETED, 200, None)
    assert (record.upstream, record.attempts, record.upstream_time) == (None, 0, None)
    assert (record.usage, record.cost) == (Usage(0, 0), 0)
    assert record.model == record.requested_model == MESSAGE_FIELDS["model"]
    assert settled == [record]


@pytest.mark.parametrize("content", [TEXT, BLOCKS])
async def test_anthropic_sdk_reads_a_plugins_response(scene: Scene, content: Any) -> None:
    proxy = await scene.start(plugins=[Responder(lambda _: ModelResponse(content, "max_tokens"))])
    expected = [{"type": "text", "text": TEXT}] if content == TEXT else BLOCKS
    async with anthropic_client(proxy) as client:
        whole = await client.messages.create(**MESSAGE_FIELDS)
        async with client.messages.stream(**MESSAGE_FIELDS) as stream:
            streamed = await stream.get_final_message()
    for message in (whole, streamed):
        found = [block.model_dump(exclude_none=True) for block in message.content]
        for block in found:
            block.pop("parsed_output", None)
        assert found == expected
        assert (message.stop_reason, message.model) == ("max_tokens", MESSAGE_FIELDS["model"])
        assert (message.usage.input_tokens, message.usage.output_tokens) == (0, 0)
    assert scene.upstream.requests == []


async def test_openai_sdk_reads_a_plugins_response(scene: Scene) -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": 1}}
    blocks: list[dict[str, Any]] = [{"type": "text", "text": TEXT}, call]
    proxy = await scene.start(plugins=[Responder(lambda _: ModelResponse(blocks, "tool_use"))])
    asked: dict[str, Any] = {
        "model": MESSAGE_FIELDS["model"],
        "messages": [{"role": "user", "content": "Hi"}],
    }
    async with openai_client(proxy) as client:
        (choice,) = (await client.chat.completions.create(**asked)).choices
        stream = await client.chat.completions.create(**asked, stream=True)
        pieces = [chunk.choices[0] async for chunk in stream if chunk.choices]
        response = await client.responses.create(model=asked["model"], input="Hi")
        events = [
            event
            async for event in await client.responses.create(
                model=asked["model"], input="Hi", stream=True
            )
        ]
    assert (choice.message.content, choice.finish_reason) == (TEXT, "tool_calls")
    assert "".join(piece.delta.content or "" for piece in pieces) == TEXT
    assert pieces[-1].finish_reason == "tool_calls"
    assert response.output_text == TEXT
    assert events[-1].type == "response.completed"
    assert scene.upstream.requests == []


async def test_model_without_a_price_costs_nothing(scene: Scene) -> None:
    await scene.start(plugins=[Responder()], DISABLED_PLUGINS="prices")
    await scene.ask("/v1/messages", {**MESSAGE_FIELDS, "model": "not-priced"})
    assert (await scene.records.finished()).cost == 0


@each_api
async def test_first_response_counts(scene: Scene, path: str, fields: dict[str, Any]) -> None:
    last = Responder(deny)
    plugins = {"a": Responder(lambda _: None), "b": Responder(), "c": last}
    await scene.start(plugins=plugins)
    assert TEXT in json.dumps(json.loads((await scene.ask(path, fields)).body), ensure_ascii=False)
    assert last.bodies == []


@each_api
async def test_request_without_a_response_goes_upstream_unchanged(
    scene: Scene, path: str, fields: dict[str, Any]
) -> None:
    await scene.start()
    await scene.ask(path, fields)
    await scene.start(plugins=[responder := Responder(lambda _: None)])
    assert (await scene.ask(path, fields)).status == 200
    first, second = scene.upstream.requests
    assert first.body == second.body == responder.bodies[0]
    heads = [[header for header in sent.headers if header[0] != "Via"] for sent in (first, second)]
    assert heads[0] == heads[1]


async def test_requests_that_run_no_model_are_not_asked_about(scene: Scene) -> None:
    await scene.start(plugins=[responder := Responder()])
    for path, fields in (
        ("/v1/messages/count_tokens", MESSAGE_FIELDS),
        ("/v1/messages/batches", {"requests": []}),
        (f"{RESPONSES_PATH}/input_tokens", RESPONSES_FIELDS),
    ):
        await scene.ask(path, fields)
    await scene.ask("/v1/models")
    assert responder.bodies == []
    assert len(scene.upstream.requests) == 4


@each_api
async def test_refused_request_is_not_asked_about(
    scene: Scene, path: str, fields: dict[str, Any]
) -> None:
    def refuse(_: object) -> None:
        raise Denied("No.")

    await scene.start(plugins=[responder := Responder(), Authorizer(refuse)])
    assert (await scene.ask(path, fields)).status == 403
    assert responder.bodies == []


@sync_and_async
@pytest.mark.parametrize(
    "decide",
    [
        deny,
        break_down,
        *(lambda _, it=it: it for it in ("text", b"{}", {"content": "x"}, 0)),
    ],
)
@each_api
async def test_failed_response_sends_nothing_upstream(
    scene: Scene,
    path: str,
    fields: dict[str, Any],
    decide: Callable[[ModelRequest], object],
    *,
    awaited: bool,
) -> None:
    await scene.start(plugins=[Responder(decide, awaited=awaited)])
    response = await scene.ask(path, fields)
    assert response.status == 503
    assert response.header("retry-after") == ("60" if decide is deny else "1")
    assert (b"Back at noon." in response.body) == (decide is deny)
    assert scene.upstream.requests == []


@pytest.mark.parametrize(
    "given",
    [
        {"content": "x", "stop_reason": "done"},
        {"content": 5},
        {"content": b"x"},
        {"content": ["x"]},
        {"content": [{"text": "x"}]},
        {"content": [{"type": "text", "text": object()}]},
        {"content": [{"type": "text"}]},
        {"content": [{"type": "text", "text": 5}]},
        {"content": [{"type": "thinking", "signature": "x"}]},
        {"content": [{"type": "tool_use", "id": "t", "name": "n", "input": "{}"}]},
        {"content": [{"type": "weather", "degrees": float("nan")}]},
        {"content": [{"type": "weather", "at": object()}]},
    ],
)
def test_response_that_is_no_message_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"stop_reason|content|a block of type"):
        ModelResponse(**given)


async def test_sdk_reads_a_refusal_as_an_error(scene: Scene) -> None:
    proxy = await scene.start(plugins=[Responder(deny)])
    async with anthropic_client(proxy) as client:
        with pytest.raises(anthropic.InternalServerError, match=r"Back at noon\."):
            await client.messages.create(**MESSAGE_FIELDS)

"""OpenAI chat completions and models, served to the OpenAI SDK and on raw connections."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from held_stream import Held, Stream
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam
from scene import Scene
from served import CHAT_PATH, EVENT_STREAM, chunks, openai_error, request

from tornadoproxy import Usage
from tornadoproxy.testing import (
    TEST_UPSTREAM_KEY,
    Document,
    Proxy,
    Response,
    Truncated,
    UpstreamExchange,
    bytes_response,
    error_response,
    event,
    json_response,
    message_document,
    message_events,
    sse_response,
)

pytestmark = pytest.mark.usefixtures("proxy")

MODEL = "claude-sonnet-5-5"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
EVENTS = message_events(message_document("Half an answer"))


def chat(**fields: Any) -> Document:
    """Return a chat completion's request."""
    return {"model": MODEL, "messages": HELLO, **fields}


def chat_bytes(**fields: Any) -> bytes:
    return request("POST", CHAT_PATH, body=json.dumps(chat(**fields)).encode())


# -- the SDK


async def test_create_asks_upstream_for_a_message(openai_client: AsyncOpenAI, scene: Scene) -> None:
    completion = await openai_client.chat.completions.create(model=MODEL, messages=HELLO)
    assert (completion.choices[0].message.content or "").endswith("Hello")
    (received,) = scene.upstream.requests
    assert (received.method, received.target) == ("POST", "/v1/messages")
    assert received.all("x-api-key") == [TEST_UPSTREAM_KEY]
    assert received.header("anthropic-version") == "2023-06-01"
    record = await scene.records.finished()
    assert (record.dialect, record.model) == ("openai", completion.model)
    assert completion.usage is not None
    assert record.usage.output_tokens == completion.usage.completion_tokens > 0


async def test_stream_ends_with_usage(openai_client: AsyncOpenAI, scene: Scene) -> None:
    stream = await openai_client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    *pieces, last = [each async for each in stream]
    assert "".join(each.choices[0].delta.content or "" for each in pieces).endswith("Hello")
    assert pieces[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage is not None
    record = await scene.records.finished()
    reported = (record.outcome, record.usage.output_tokens)
    assert reported == ("completed", last.usage.completion_tokens)


@pytest.mark.parametrize(
    ("status", "raised"), [(400, openai.BadRequestError), (529, openai.InternalServerError)]
)
async def test_error_of_upstream_keeps_status_and_request_id(
    status: int, raised: type[openai.APIStatusError], openai_client: AsyncOpenAI, scene: Scene
) -> None:
    headers = {"retry-after": "7", "request-id": "req_up", "x-should-retry": "false"}
    scene.upstream.script(error_response(status, "any_error", "so it is", headers))
    with pytest.raises(raised, match="so it is") as error:
        await openai_client.chat.completions.create(model=MODEL, messages=HELLO)
    assert (error.value.status_code, error.value.request_id) == (status, "req_up")
    crossed = error.value.response.headers
    assert (crossed["retry-after"], crossed["x-should-retry"]) == ("7", "false")
    record = await scene.records.finished()
    assert (record.outcome, record.request_id) == ("completed", "req_up")


# -- models


async def test_models_are_listed_from_all_pages_and_kept(
    openai_client: AsyncOpenAI, scene: Scene
) -> None:
    first = {"data": [{"id": "claude-a b"}], "has_more": True, "last_id": "claude-a b"}
    second = {"data": [{"id": "claude-c"}, "junk"], "has_more": False, "last_id": "claude-c"}
    scene.upstream.script(json_response(first), json_response(second))
    listed = await openai_client.models.list()
    assert [model.id for model in listed.data] == ["claude-a b", "claude-c"]
    assert (await openai_client.models.retrieve("claude-c")).owned_by == "anthropic"
    with pytest.raises(openai.NotFoundError) as error:
        await openai_client.models.retrieve("gpt-nonsense")
    assert error.value.code == "model_not_found"
    assert [each.target for each in scene.upstream.requests] == [
        "/v1/models?limit=1000",
        "/v1/models?limit=1000&after_id=claude-a%20b",
    ]


async def test_models_that_cannot_be_had_are_asked_for_again(
    openai_client: AsyncOpenAI, scene: Scene
) -> None:
    scene.upstream.script(
        error_response(403, "permission_error", "not yours"), json_response({"data": "junk"})
    )
    with pytest.raises(openai.PermissionDeniedError, match="not yours"):
        await openai_client.models.list()
    with pytest.raises(openai.InternalServerError) as error:
        await openai_client.models.list()
    assert error.value.status_code == 502
    assert (await openai_client.models.list()).data


async def test_chat_models_map_names(scene: Scene) -> None:
    await scene.start(CHAT_MODELS=f"gpt-5=claude-opus-5-5 *={MODEL}")
    for name in ("gpt-5", "o9", "claude-haiku-5-5"):
        assert (await scene.ask(CHAT_PATH, chat(model=name))).status == 200
    models = [received.json()["model"] for received in scene.upstream.requests]
    assert models == ["claude-opus-5-5", MODEL, "claude-haiku-5-5"]
    assert json.loads((await scene.ask("/openai/v1/models/gpt-5.1")).body)["id"] == "gpt-5.1"
    listed = json.loads((await scene.ask("/openai/v1/models")).body)["data"]
    assert not {"gpt-5.1", "*"} & {model["id"] for model in listed}


async def test_effort_depends_on_what_the_model_can_do(scene: Scene) -> None:
    """A model is taken for a new one if the list of models cannot be had."""
    listed = {"data": [{"id": MODEL, "capabilities": {"effort": {"supported": False}}}]}
    failure = error_response(500, "api_error", "Internal server error")
    for models, output_config in ((failure, {"effort": "low"}), (json_response(listed), None)):
        await scene.start()
        scene.upstream.script(models)
        assert (await scene.ask(CHAT_PATH, chat(reasoning_effort="low"))).status == 200
        assert scene.upstream.requests[-1].json().get("output_config") == output_config


async def test_limit_is_the_models_own_asked_for_once(scene: Scene) -> None:
    await scene.start(CHAT_DEFAULT_MAX_TOKENS=None)
    assert (await scene.ask(CHAT_PATH, chat(messages=[]))).status == 400
    assert scene.upstream.requests == []
    await scene.ask(CHAT_PATH, chat(max_completion_tokens=9))
    scene.upstream.script(json_response({"data": [{"id": MODEL, "max_tokens": 64_000}]}))
    for _ in range(2):
        await scene.ask(CHAT_PATH, chat())
    thinking = {"type": "enabled", "budget_tokens": 20_000}
    await scene.ask(CHAT_PATH, chat(model="claude-unlisted", thinking=thinking))
    targets = [received.target for received in scene.upstream.requests]
    assert targets == ["/v1/messages", "/v1/models?limit=1000", *["/v1/messages"] * 3]
    limits = [
        each.json()["max_tokens"] for each in scene.upstream.requests if each.method == "POST"
    ]
    assert limits == [9, 64_000, 64_000, 40_000]


# -- requests


async def test_chat_with_or_without_v1_is_post_only(scene: Scene) -> None:
    for path in (CHAT_PATH, "/openai/chat/completions", "/openai/v1/v1/chat/completions"):
        assert (await scene.ask(path, chat())).status == 200
        response = await scene.ask(path)
        openai_error(response, 405)
        assert response.header("allow") == "POST"
    assert len(scene.upstream.requests) == 3


async def test_sampling_pins_the_version_that_takes_it(scene: Scene) -> None:
    await scene.start(DEFAULT_ANTHROPIC_VERSION="2026-10-21")
    for fields in ({}, {"temperature": 1}, {"temperature": 0.7}):
        await scene.ask(CHAT_PATH, chat(**fields))
    versions = [received.header("anthropic-version") for received in scene.upstream.requests]
    assert versions == ["2026-10-21", "2026-10-21", "2023-06-01"]
    assert scene.upstream.requests[-1].json()["temperature"] == 0.7


async def test_settings_steer_the_translation(scene: Scene, proxy: Proxy) -> None:
    """What they do is tested with the translation itself."""
    asked = chat(temperature=0.5, messages=[*HELLO, {"role": "assistant", "content": "I "}])
    shown = []
    await scene.start(CHAT_DROP_SAMPLING=1, CHAT_PREFILL="yes", CHAT_CACHE="always")
    for to in (None, proxy):
        response = await scene.ask(CHAT_PATH, asked, to=to)
        sent = scene.upstream.requests[-1].json()
        last = sent["messages"][-1]["role"]
        ignored = response.header("x-tornadoproxy-ignored")
        shown.append((ignored, sent.get("temperature"), last, "cache_control" in sent))
    assert shown == [("temperature", None, "assistant", True), (None, 0.5, "user", True)]
    await scene.start(CHAT_CACHE="off", CHAT_STRICT=1)
    assert (await scene.ask(CHAT_PATH, asked)).status == 200
    assert "cache_control" not in scene.upstream.requests[-1].json()
    openai_error(await scene.ask(CHAT_PATH, chat(seed=1)), 400, param="seed")


async def test_invalid_request_names_its_field_and_stays_here(proxy: Proxy, scene: Scene) -> None:
    for body, param in (
        (b"{", None),
        (b'{"messages": []}', "model"),
        (b'{"model": "m", "messages": [{"role": "alien", "content": "x"}]}', "messages[0].role"),
    ):
        openai_error(await scene.ask(CHAT_PATH, body=body), 400, param=param)
        assert proxy.server.status().held_bytes == 0
    syntax, *fields = [record.error for record in scene.records.all]
    assert fields == ["InvalidRequest: at model", "InvalidRequest: at messages[0].role"]
    assert "JSON" in (syntax or "")
    response = await scene.ask(CHAT_PATH, chat(), headers={"Content-Encoding": "gzip"})
    assert "Content-Encoding" in openai_error(response, 400)
    assert scene.upstream.requests == []


async def test_disconnect_while_models_are_asked_for_costs_nothing(scene: Scene) -> None:
    models = Held(json_response({"data": [], "has_more": False}))
    scene.upstream.script(models)
    client = await scene.send(chat_bytes(reasoning_effort="high"))
    await scene.upstream.received()
    await client.close()
    assert (await scene.records.finished()).outcome == "abandoned"
    models.may_begin.set()
    assert (await scene.ask(CHAT_PATH, chat())).status == 200
    assert [each.target for each in scene.upstream.requests] == [
        "/v1/models?limit=1000",
        "/v1/messages",
    ]


# -- responses


async def test_pieces_and_pings_go_out_at_once(scene: Scene) -> None:
    await scene.start(SSE_KEEPALIVE_INTERVAL=0.02)
    stream = Stream()
    scene.upstream.script(stream)
    client = await scene.send(chat_bytes(stream=True))
    head = await client.head()
    assert (head.header("x-accel-buffering"), head.header("cache-control")) == ("no", "no-cache")
    assert (head.header("x-request-id") or "").startswith("req_")
    await client.read_until(b'"role":"assistant"')
    await client.read_until(b": ping\n\n")
    stream.may_end.set()
    await client.read_until(b"data: [DONE]\n\n")


ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
BROKEN: dict[str, Response] = {
    "a tidy end": sse_response(EVENTS[:5]),
    "an error": sse_response([*EVENTS[:4], event(ERROR)]),
    "not JSON": sse_response([EVENTS[0], b"event: content_block_delta\ndata: {oh no\n\n"]),
}


async def test_broken_stream_ends_in_an_error_never_in_done(scene: Scene) -> None:
    for count, (fault, response) in enumerate(BROKEN.items(), 1):
        scene.upstream.script(response)
        with pytest.raises(Truncated) as cut:
            await (await scene.raw()).ask(chat_bytes(stream=True))
        assert cut.value.response is not None
        body = cut.value.response.body
        last = json.loads(body.rstrip().split(b"\n\n")[-1].removeprefix(b"data: "))
        assert last["error"]["type"] == "server_error", fault
        assert ("Overloaded" in last["error"]["message"]) == (fault == "an error")
        assert b"[DONE]" not in body
        assert (await scene.records.finished(count)).outcome == "failed", fault


async def test_response_that_is_no_message_is_502(scene: Scene) -> None:
    page = bytes_response(b"<html>hello</html>", {"Content-Type": "text/html"})
    coded = sse_response(EVENTS, headers={"Content-Encoding": "unheard-of"})
    cases = [(False, page), (True, page), (False, json_response({}, 201)), (True, coded)]
    for stream, scripted in cases:
        scene.upstream.script(scripted)
        openai_error(await scene.ask(CHAT_PATH, chat(stream=stream)), 502, "server_error")
    record = await scene.records.finished(len(cases))
    assert record.usage == Usage(partial=True)  # its coding is unknown
    assert {each.outcome for each in scene.records.all} == {"failed"}


async def test_response_without_an_end_is_502(scene: Scene) -> None:
    piece = chunks(bytes(1_000_000))

    async def endless(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, [("Content-Type", "application/json"), EVENT_STREAM[1]])
        while True:
            await exchange.send(piece)

    scene.upstream.script(endless)
    response = await scene.ask(CHAT_PATH, chat())
    assert "too large" in openai_error(response, 502, "server_error")
    await scene.upstream.requests[0].disconnected()

"""Responses that are stored, as clients of the Responses API continue, retrieve and delete them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any

import openai
import pytest
from held_stream import Held
from openai import AsyncOpenAI
from scene import Scene
from served import EVENTS, RESPONSES_PATH, RESPONSES_STREAM, openai_error, request

from tornadoproxy import Identity, IncomingRequest, hookimpl
from tornadoproxy.handlers.openai.memory_store import MemoryStore
from tornadoproxy.openai.responses.carrier import pack
from tornadoproxy.protocol.body_fields import IN_THREAD
from tornadoproxy.testing import (
    Document,
    Proxy,
    Truncated,
    json_response,
    message_document,
    sse_response,
)

pytestmark = pytest.mark.usefixtures("proxy")

MODEL = "claude-sonnet-5-5"
OFF = {"RESPONSES_STORE": "off"}
PIECES = [b"".join(EVENTS[:4]), b"".join(EVENTS[4:])]


class Names:
    """A plugin by which a credential is its bearer's name."""

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> Identity | None:
        (name,) = request.candidates()
        return Identity(name.reveal().decode())


class HeldStore(MemoryStore):
    """Stores a response once it may."""

    def __init__(self, proxy: Proxy) -> None:
        gateway = proxy.server._gateway
        assert gateway is not None
        super().__init__(1 << 20, 60.0, gateway.body_thread)
        gateway.response_store = self
        self.is_asked = asyncio.Event()
        self.may_store = asyncio.Event()

    async def put(self, *arguments: Any) -> None:
        self.is_asked.set()
        await self.may_store.wait()
        assert super().put(*arguments) is None


async def ask(scene: Scene, **fields: Any) -> Document:
    """Return the response to a request for one."""
    response = await scene.ask(RESPONSES_PATH, {"model": MODEL, **fields})
    assert response.status == 200
    found: Document = json.loads(response.body)
    return found


def said(scene: Scene) -> list[str]:
    """Return the texts of the last request to the upstream."""
    return [
        content if isinstance(content := each["content"], str) else content[0]["text"]
        for each in scene.upstream.requests[-1].json()["messages"]
    ]


async def test_response_continues_all_before_it(scene: Scene) -> None:
    first = await ask(scene, input="One", instructions="Be brief.")
    second = await ask(scene, input="Two", previous_response_id=first["id"])
    await ask(scene, input="Three", previous_response_id=second["id"])
    one, answer, two, _, three = said(scene)
    assert (one, two, three) == ("One", "Two", "Three")
    assert answer == first["output"][0]["content"][0]["text"]
    assert "system" not in scene.upstream.requests[-1].json()
    assert second["previous_response_id"] == first["id"]


async def test_streamed_response_can_be_continued_at_its_end(
    openai_client: AsyncOpenAI, scene: Scene
) -> None:
    async with openai_client.responses.stream(model=MODEL, input="One") as stream:
        async for each in stream:
            if each.type == "response.completed":
                await ask(scene, input="Two", previous_response_id=each.response.id)
    assert said(scene)[::2] == ["One", "Two"]


async def test_history_is_held_like_a_body(scene: Scene, proxy: Proxy) -> None:
    large = "x" * (IN_THREAD + 1)
    scene.upstream.script(json_response(message_document("Hello")))
    created = await ask(scene, input=large, max_output_tokens=9)
    held = Held(json_response(message_document("Hi")))
    scene.upstream.script(held)
    asked = {"model": MODEL, "input": "Two", "previous_response_id": created["id"]}
    client = await scene.send(request("POST", RESPONSES_PATH, body=json.dumps(asked).encode()))
    await scene.upstream.received(2)
    assert IN_THREAD < proxy.server.status().held_bytes < IN_THREAD + 2000
    held.may_begin.set()
    assert (await client.response()).status == 200
    assert proxy.server.status().held_bytes == 0
    assert said(scene) == [large, "Hello", "Two"]


async def test_what_items_carry_is_held_like_a_body(scene: Scene, proxy: Proxy) -> None:
    thought = {"type": "thinking", "thinking": "%x" % 7**100_000, "signature": "c2ln"}
    reasoning = {"type": "reasoning", "summary": [], "encrypted_content": pack([thought])}
    asked = {"model": MODEL, "max_output_tokens": 9, "store": False}
    asked["input"] = [reasoning, {"role": "assistant", "content": "Hello"}]
    held = Held(json_response(message_document("Hi")))
    scene.upstream.script(held)
    body = json.dumps(asked).encode()
    client = await scene.send(request("POST", RESPONSES_PATH, body=body))
    received = await scene.upstream.received()
    held_bytes = proxy.server.status().held_bytes
    held.may_begin.set()
    assert (await client.response()).status == 200
    assert len(body) < held_bytes == received.body_length


async def test_references_stand_for_stored_items(scene: Scene) -> None:
    first = await ask(scene, input="One")
    (item,) = first["output"]
    reference = {"type": "item_reference", "id": item["id"]}
    one, two = ({"role": "user", "content": text} for text in ("One", "Two"))
    await ask(scene, input=[one, reference, two])
    assert said(scene) == ["One", item["content"][0]["text"], "Two"]


async def test_stored_response_is_retrieved_listed_and_deleted(
    openai_client: AsyncOpenAI, scene: Scene
) -> None:
    items: Any = [{"role": "user", "content": f"Number {number}"} for number in range(5)]
    responses, of_response = openai_client.responses, openai_client.responses.input_items
    created = await responses.create(model=MODEL, input=items)
    assert await responses.retrieve(created.id) == created
    listed = [each async for each in await of_response.list(created.id, limit=2)]
    texts = [each.to_dict()["content"] for each in listed]
    numbers = range(4, -1, -1)
    assert texts == [[{"type": "input_text", "text": f"Number {number}"}] for number in numbers]
    page = await of_response.list(created.id, order="asc", after=str(listed[3].id), limit=1)
    assert (page.data, page.has_more) == ([listed[2]], True)
    await responses.delete(created.id)
    for gone in (responses.retrieve, responses.delete, of_response.list):
        with pytest.raises(openai.NotFoundError, match=created.id):
            await gone(created.id)
    assert len(scene.upstream.requests) == 1


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=101", "limit"), ("order=up", "order"), ("after=x", "after")],
)
async def test_invalid_list_names_its_parameter(query: str, param: str, scene: Scene) -> None:
    created = await ask(scene, input="One")
    response = await scene.ask(f"{RESPONSES_PATH}/{created['id']}/input_items?{query}")
    openai_error(response, 400, param=param)


async def test_what_is_not_offered_is_refused_by_name(scene: Scene) -> None:
    created = await ask(scene, input="One")
    path = f"{RESPONSES_PATH}/{created['id']}"
    openai_error(await scene.ask(f"{path}?stream=true"), 400, param="stream")
    assert "background" in openai_error(await scene.ask(request("POST", f"{path}/cancel")), 400)
    for method, at, allowed in (
        ("PATCH", path, "GET, HEAD, DELETE"),
        ("POST", f"{path}/input_items", "GET, HEAD"),
        ("GET", f"{path}/cancel", "POST"),
        ("GET", f"{RESPONSES_PATH}/compact", "POST"),
        ("GET", f"{RESPONSES_PATH}/input_tokens", "POST"),
    ):
        response = await scene.ask(request(method, at))
        openai_error(response, 405)
        assert response.header("allow") == allowed
    for at in ("/openai/v1/conversations", "/openai/v1/conversations/conv_1/items"):
        assert "input" in openai_error(await scene.ask(at), 404)
    openai_error(await scene.ask(f"{path}/unheard-of"), 404)


UNKNOWN: Sequence[tuple[Document, int, str | None, str]] = (
    (
        {"input": "x", "previous_response_id": "resp_0"},
        400,
        "previous_response_not_found",
        "previous_response_id",
    ),
    (
        {"input": [{"role": "user", "content": "x"}, {"type": "item_reference", "id": "rs_0"}]},
        404,
        None,
        "input[1].id",
    ),
)


@pytest.mark.parametrize(("fields", "status", "code", "param"), UNKNOWN)
async def test_unknown_id_is_refused(
    fields: Document, status: int, code: str | None, param: str, scene: Scene
) -> None:
    for settings in ({}, OFF):
        await scene.start(**settings)
        response = await scene.ask(RESPONSES_PATH, {"model": MODEL, **fields})
        message = openai_error(response, status, code=code, param=param)
        assert ("RESPONSES_STORE" in message) == (settings == OFF)
    assert scene.upstream.requests == []


async def test_response_with_store_false_is_not_stored(scene: Scene) -> None:
    for settings, fields in (({}, {"store": False}), (OFF, {}), (OFF, {"store": True})):
        await scene.start(**settings)
        created = await ask(scene, input="One", **fields)
        assert created["store"] is False
        response = await scene.ask(f"{RESPONSES_PATH}/{created['id']}")
        assert ("RESPONSES_STORE" in openai_error(response, 404)) == (settings == OFF)


async def test_other_peoples_responses_do_not_exist(scene: Scene) -> None:
    await scene.start(plugins={"names": Names()}, AUTH_TOKEN=None)
    asked = {"model": MODEL, "input": "One"}
    created = json.loads((await scene.ask(RESPONSES_PATH, asked, token="ada")).body)
    path = f"{RESPONSES_PATH}/{created['id']}"
    assert (await scene.ask(path, token="ada")).status == 200
    openai_error(await scene.ask(path, token="bob"), 404)
    asked["previous_response_id"] = created["id"]
    assert (await scene.ask(RESPONSES_PATH, asked, token="bob")).status == 400
    reference = {"id": created["output"][0]["id"]}
    response = await scene.ask(RESPONSES_PATH, {"model": MODEL, "input": [reference]}, token="bob")
    assert response.status == 404


# -- the end of a response, which waits for the store


@pytest.mark.parametrize("stream", [False, True])
async def test_last_event_is_sent_once_response_is_stored(
    stream: bool, scene: Scene, proxy: Proxy
) -> None:
    store = HeldStore(proxy)
    asked = {"model": MODEL, "input": "One", "stream": stream}
    client = await scene.send(request("POST", RESPONSES_PATH, body=json.dumps(asked).encode()))
    await store.is_asked.wait()
    assert scene.records.all == []
    store.may_store.set()
    body = (await client.response()).body
    record = await scene.records.finished()
    assert (record.outcome, record.bytes_out) == ("completed", len(body))
    end = json.loads(body.split(b"data: ")[-1]) if stream else {"response": json.loads(body)}
    assert (await scene.ask(f"{RESPONSES_PATH}/{end['response']['id']}")).status == 200


async def test_disconnect_while_storing_stores_nothing(scene: Scene, proxy: Proxy) -> None:
    store = HeldStore(proxy)
    scene.upstream.script(sse_response(PIECES))
    client = await scene.send(RESPONSES_STREAM)
    body = await client.read_until(b"output_text.delta")
    await store.is_asked.wait()
    await client.close()
    record = await scene.records.finished()
    assert (record.outcome, record.usage.partial) == ("abandoned", False)
    store.may_store.set()
    (response_id,) = set(re.findall(r'"id":"(resp_\w+)"', body.decode()))
    assert (await scene.ask(f"{RESPONSES_PATH}/{response_id}")).status == 404


async def test_stop_while_storing_sends_the_whole_stream(scene: Scene, proxy: Proxy) -> None:
    store = HeldStore(proxy)
    scene.upstream.script(sse_response(PIECES))
    client = await scene.send(RESPONSES_STREAM)
    await store.is_asked.wait()
    gateway = proxy.server._gateway
    assert gateway is not None
    gateway.in_flight.end_all()
    with pytest.raises(Truncated) as cut:
        await client.response()
    assert cut.value.response is not None
    assert b"event: response.completed" in cut.value.response.body
    assert b"event: error" not in cut.value.response.body


async def test_fault_while_storing_ends_the_request(scene: Scene, proxy: Proxy) -> None:
    store = HeldStore(proxy)
    store.may_store = None  # type: ignore[assignment]  # the fault
    response = await scene.ask(RESPONSES_PATH, {"model": MODEL, "input": "One"})
    openai_error(response, 500, "server_error")

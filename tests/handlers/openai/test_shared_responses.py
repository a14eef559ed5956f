"""Responses that proxies keep in one database, as clients use them through any of the proxies."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from postgres import sqlite_only
from scene import Scene
from served import RESPONSES_PATH, openai_error

from tornadoproxy import ConfigurationError, DatabaseLocation, SecretURL
from tornadoproxy.testing import TEST_TOKEN, Document, Proxy, json_response, message_document

MODEL = "claude-sonnet-5-5"
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}


async def started(scene: Scene, where: DatabaseLocation) -> Proxy:
    named = where.reveal() if isinstance(where, SecretURL) else where
    return await scene.start(RESPONSES_STORE=named)


async def ask(scene: Scene, to: Proxy, **fields: Any) -> Document:
    """Return the response to a request for one."""
    response = await scene.ask(RESPONSES_PATH, {"model": MODEL, **fields}, to=to)
    assert response.status == 200
    found: Document = json.loads(response.body)
    return found


async def test_chain_goes_through_any_proxy(scene: Scene, where: DatabaseLocation) -> None:
    one, two = await started(scene, where), await started(scene, where)
    first = await ask(scene, one, input="One")
    second = await ask(scene, two, input="Two", previous_response_id=first["id"])
    await one.server.drain()
    later = await started(scene, where)
    await ask(scene, later, input="Three", previous_response_id=second["id"])
    turns = scene.upstream.requests[-1].json()["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2 + ["user"]
    async with AsyncOpenAI(base_url=f"{two.url}/openai/v1", api_key=TEST_TOKEN) as client:
        assert (await client.responses.retrieve(second["id"])).to_dict() == second
        (item,) = (await client.responses.input_items.list(second["id"])).data
        assert item.to_dict()["content"] == [{"type": "input_text", "text": "Two"}]
        await client.responses.delete(first["id"])
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first["id"])
    refused = {"model": MODEL, "input": "Three", "previous_response_id": second["id"]}
    response = await scene.ask(RESPONSES_PATH, refused, to=later)
    code, param = "previous_response_not_found", "previous_response_id"
    openai_error(response, 400, code=code, param=param)


async def test_steps_with_references_go_through_any_proxy(
    scene: Scene, where: DatabaseLocation
) -> None:
    """As the AI SDK does: calls whole, all other items of earlier steps as references."""
    proxies = [await started(scene, where), await started(scene, where)]
    items: list[Document] = [{"role": "user", "content": [{"type": "input_text", "text": "Go"}]}]
    steps: list[list[Document]] = []
    for proxy in proxies:
        await scene.ask("/openai/v1/models", to=proxy)  # it would ask for it before the first step
    for step, proxy in zip(range(4), cycle(proxies)):
        content: list[Document] = [
            {"type": "thinking", "thinking": f"Step {step}", "signature": f"c2ln{step}"},
            {"type": "text", "text": f"I look for the {step}th time."},
            {"type": "tool_use", "id": f"toolu_{step}", "name": "look", "input": {}},
        ]
        steps.append(content)
        message = message_document(content=content, stop_reason="tool_use")
        scene.upstream.script(json_response(message))
        made = await ask(scene, proxy, input=items, tools=[TOOL])
        assert [item["type"] for item in made["output"]] == [
            *("reasoning", "message", "function_call")
        ]
        reasoning, text, call = made["output"]
        items += [{"type": "item_reference", "id": each["id"]} for each in (reasoning, text)]
        items += [{key: call[key] for key in ("type", "call_id", "name", "arguments")}]
        items += [{"type": "function_call_output", "call_id": call["call_id"], "output": "!"}]
    turns = scene.upstream.requests[-1].json()["messages"]
    assert [turn["content"] for turn in turns if turn["role"] == "assistant"] == steps[:-1]


@sqlite_only
async def test_failing_database_is_shown_and_serves_what_needs_none(
    scene: Scene, where: Path
) -> None:
    proxy = await started(scene, where)
    first = await ask(scene, proxy, input="One")
    moved = where.rename(where.with_name("moved.db"))
    asked = {"model": MODEL, "input": "Two", "previous_response_id": first["id"]}
    for response in (
        await scene.ask(RESPONSES_PATH, asked),
        await scene.ask(f"{RESPONSES_PATH}/{first['id']}"),
    ):
        assert "Try again" in openai_error(response, 503, "server_error")
        assert response.header("retry-after") == "5"
    await ask(scene, proxy, input="Three")
    ready = await scene.ask("/ready")
    figures = {"failing": True, "failures": 3, "held": 0, "lost": 1}
    assert json.loads(ready.body)["databases"]["responses"] == {"RESPONSES_STORE": figures}
    (status,) = proxy.server.status().databases["responses"]
    assert (status.name, status.lost) == ("RESPONSES_STORE", 1)
    moved.rename(where)
    await ask(scene, proxy, **asked)


async def test_database_that_cannot_be_used_ends_the_start(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^RESPONSES_STORE=.* it is a directory"):
        await started(scene, tmp_path)
    corrupt = tmp_path / "corrupt.db"
    corrupt.write_text("not a database" * 100)
    with pytest.raises(ConfigurationError, match=r"^RESPONSES_STORE=.* not an SQLite database"):
        await started(scene, corrupt)

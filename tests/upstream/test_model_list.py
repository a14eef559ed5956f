"""The upstream's list of models: cached, renewed, and absent."""

from __future__ import annotations

import asyncio
import json

import pytest

from tornadoproxy.errors import UpstreamUnreachable
from tornadoproxy.upstream import model_list
from tornadoproxy.upstream.model_list import ModelList


class Lists:
    """An upstream whose responses are scripted."""

    def __init__(self) -> None:
        self.requests = 0
        self.waiting: list[asyncio.Future[tuple[int, bytes]]] = []

    async def get(self, path: str) -> tuple[int, bytes]:
        self.requests += 1
        self.waiting.append(asyncio.get_running_loop().create_future())
        return await self.waiting[-1]

    def response(self, *names: str) -> None:
        page = {"data": [{"id": name} for name in names], "has_more": False}
        self.waiting.pop().set_result((200, json.dumps(page).encode()))


async def started(models: ModelList) -> asyncio.Task[dict[str, model_list.Model]]:
    task = asyncio.create_task(models.known())
    await asyncio.sleep(0)  # until it waits, and the fetch has begun
    await asyncio.sleep(0)
    return task


async def test_known_waits_for_the_first_list_once() -> None:
    lists = Lists()
    models = ModelList(lists.get)
    both = [await started(models) for _ in range(2)]
    lists.response("a")
    assert [list(await task) for task in both] == [["a"], ["a"]]
    assert models.is_known
    assert list(await models.known()) == ["a"]
    assert lists.requests == 1


async def test_known_returns_the_old_list_while_a_new_one_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_list, "LIFETIME", 0)
    lists = Lists()
    models = ModelList(lists.get)
    first = await started(models)
    lists.response("a")
    await first
    assert models.is_known
    assert list(await models.known()) == ["a"]
    await asyncio.sleep(0)  # the fetch begins
    renewed = asyncio.create_task(models.models())
    await asyncio.sleep(0)
    lists.response("b")
    await renewed
    assert list(await models.known()) == ["b"]
    models.close()


async def test_known_after_an_error_fetches_nothing_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lists = Lists()
    models = ModelList(lists.get)
    task = await started(models)
    lists.waiting.pop().set_exception(UpstreamUnreachable("refused"))
    assert await task == {}
    assert models.is_known
    assert await models.known() == {}
    assert lists.requests == 1
    monkeypatch.setattr(models, "_retry_at", 0.0)
    task = await started(models)
    lists.response("a")
    assert list(await task) == ["a"]


async def test_known_waits_once_for_a_silent_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_list, "FIRST_TIMEOUT", 0.01)
    lists = Lists()
    models = ModelList(lists.get)
    assert await models.known() == {}
    monkeypatch.setattr(model_list, "FIRST_TIMEOUT", 60)
    assert await models.known() == {}
    assert lists.requests == 1
    fetched = asyncio.create_task(models.models())
    await asyncio.sleep(0)
    lists.response("a")  # late, but used
    await fetched
    assert list(await models.known()) == ["a"]

"""The plugin quota_probe: which requests it responds to."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from scene import Scene
from tornadoproxy_budgets import storage as budgets
from tornadoproxy_budgets.caps import Scope

# as Claude Code 2.1.332 sends it
PROBE: dict[str, Any] = {
    "model": "claude-haiku-4-5-20251001",
    "max_tokens": 1,
    "messages": [{"role": "user", "content": "quota"}],
    "metadata": {
        "user_id": json.dumps({"device_id": "d" * 64, "account_uuid": "", "session_id": "s" * 36})
    },
}
PATH = "/v1/messages?beta=true"


async def test_probe_is_answered_without_the_upstream(scene: Scene) -> None:
    await scene.start(ANSWER_QUOTA_PROBE="yes")
    response = await scene.ask(PATH, PROBE)
    message = json.loads(response.body)
    assert (response.status, message["type"], message["model"]) == (200, "message", PROBE["model"])
    record = await scene.records.finished()
    assert (record.cost, record.upstream) == (0, None)
    assert scene.upstream.requests == []


@pytest.mark.parametrize(
    "changed",
    [
        {"max_tokens": 2},
        {"messages": [{"role": "user", "content": "quotas"}]},
        {"messages": [*PROBE["messages"], {"role": "assistant", "content": "x"}]},
        {"system": "x" * 1100},
    ],
)
async def test_other_request_goes_upstream(scene: Scene, changed: dict[str, Any]) -> None:
    await scene.start(ANSWER_QUOTA_PROBE="yes")
    assert (await scene.ask(PATH, {**PROBE, **changed})).status == 200
    assert len(scene.upstream.requests) == 1


async def test_probe_goes_upstream_unless_set(scene: Scene) -> None:
    await scene.start()
    assert (await scene.ask(PATH, PROBE)).status == 200
    assert len(scene.upstream.requests) == 1


async def test_probe_shows_the_cap(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "budgets.db"
    with budgets.database(path) as database, database.transaction() as connection:
        for name, cents in (("token", 100), ("other", 0)):
            scope = Scope("user", name)
            budgets.set_cap(connection, scope, "daily", cents, actor="test", now=time.time())
    await scene.start(ANSWER_QUOTA_PROBE="yes", BUDGETS_DB=path)
    response = await scene.ask(PATH, PROBE)
    assert response.header("anthropic-ratelimit-unified-overage-utilization") == "0"
    assert scene.upstream.requests == []

"""The web console with 5,000 keys and a large ledger."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from budget_team import ADMIN
from console_site import ConsoleSite
from scene import Scene
from tornadoproxy_keys import changes, store
from tornadoproxy_ledger import rows, summing
from tornadoproxy_ledger.summing import Summing

from tornadoproxy import Database, DatabaseLocation, Usage, admin
from tornadoproxy.testing import request_record

pytestmark = [pytest.mark.alone, pytest.mark.timeout(600)]

KEYS, STEP = 5_000, 50_000
ROWS, DAYS = 100_000, 31
FULL_ROWS, FULL_DAYS = 1_000_000, 90
WITHIN = 0.3  # seconds of this process, whatever else the machine does


@pytest.fixture
def memory_path(tmp_path: Path) -> Path:
    """A directory on a disk: the ledger is too large for memory."""
    return tmp_path


def fill(places: dict[str, Any], count: int, days: int) -> None:
    now = int(time.time())
    by = changes.By("test", None, None)
    with store.database(places["KEYS_DB"]) as opened, opened.transaction() as connection:
        for number in range(KEYS):
            groups = (f"group-{number % 40}",)
            changes.create(connection, f"person-{number}", groups, store.Limits(), None, now, by)
    chance = random.Random(1)
    with Database(places["LEDGER_DB"], rows.SCHEMA, name="ledger") as opened:
        for start in range(0, count, STEP):
            records = [
                request_record(
                    request_id=f"req_{number}",
                    time=now - days * 86_400 * (1 - number / count),
                    principal=f"person-{(person := chance.randrange(KEYS))}",
                    groups=(f"group-{person % 40}",),
                    model=f"claude-{number % 12}",
                    status=529 if number % 5_000 == 0 else 200,
                    usage=Usage(100, 50),
                    cost=chance.randrange(10_000_000),
                )
                for number in range(start, start + STEP)
            ]
            with opened.transaction() as connection:
                rows.insert(records, connection)


async def sum_(where: DatabaseLocation) -> None:
    """Sum the hours and days, as a proxy does in the background."""
    database, reader = (Database(where, rows.SCHEMA, name="ledger") for _ in range(2))
    await database.start()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(summing, "PAUSE", 0)  # nobody else writes
        await Summing(database, reader).catch_up()
    await database.close()


@pytest.mark.gen_test(timeout=500)
async def test_pages_come_soon(full_scale: bool, scene: Scene, where: DatabaseLocation) -> None:
    site = ConsoleSite(scene, where)
    count, days = (FULL_ROWS, FULL_DAYS) if full_scale else (ROWS, DAYS)
    fill(site.settings, count, days)
    await sum_(site.settings["LEDGER_DB"])
    await site.start()
    visitor = site.visitor()
    await visitor.sign_in(ADMIN)
    await visitor.get("/sign-in")  # whatever is loaded once
    took = {}
    first, last = (admin.timestamp(time.time() - ago * 86_400)[:10] for ago in (30, 0))
    month = f"from={first}&to={last}"
    for path in (
        *("/now", "/spend", "/spend?by=group", "/spend?by=model", "/people", "/health"),
        *(f"/spend?by={by}&{month}" for by in ("person", "group", "model")),
        *("/people?status=active", "/people?name=person-77", "/people/person?name=person-77"),
        *("/requests", "/requests?principal=person-77", "/requests?model=claude-3"),
        *("/requests?status=529", "/requests?status=error"),
        *(f"/requests?request_id=req_{count // 2}", f"/requests/one?id=req_{count // 2}"),
        *("/requests?principal=person-77&status=error", "/requests?from=2026-01-01&to=2026-01-02"),
    ):
        # the first time: the ledger holds what a report has read for a while
        began = time.process_time()
        assert (await visitor.get(path)).status == 200
        took[path] = round(time.process_time() - began, 3)
    assert {path: each for path, each in took.items() if each > WITHIN} == {}, took

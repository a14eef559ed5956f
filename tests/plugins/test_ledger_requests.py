"""The resource ``requests`` of the Admin API: single rows of the ledger."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from admin_api import AdminApi
from scene import Scene
from tornadoproxy_ledger.rows import SCHEMA, insert

from tornadoproxy import Database, DatabaseLocation, Outcome, Usage
from tornadoproxy.testing import request_record

CENT = 10_000_000
NOON = 1_741_608_000.0  # 2025-03-10T12:00:00Z

RECORDS = [
    request_record(
        request_id=f"req_{number}",
        time=NOON + (number - number % 2) * 60.0,  # two at a time
        principal=None if number == 5 else ("ada", "bob")[number % 2],
        groups=("engines",) if number == 0 else (),
        model=("claude-a", "claude-b", None)[number % 3],
        status=(200, 429, None, 200, 529, 200)[number],
        outcome=(Outcome.COMPLETED, Outcome.DENIED, Outcome.ABANDONED)[number % 3],
        usage=Usage(10, number),
        cost=None if number == 5 else number * CENT + 5,
        upstream="eu" if number == 4 else "default",
        attempts=2 if number == 4 else 1,
        failed_attempts=("default: 529 overloaded_error",) if number == 4 else (),
        session_id="s" if number == 3 else None,
    )
    for number in range(6)
]


@pytest.fixture
def api(scene: Scene, where: DatabaseLocation) -> AdminApi:
    with Database(where, SCHEMA, name="ledger") as opened, opened.transaction() as connection:
        insert(RECORDS, connection)
    return AdminApi(scene, where, "/requests", LEDGER_DB=where)


SEARCHES = [
    ("", "543210"),
    ("principal=ada", "420"),
    ("model=claude-b", "41"),
    ("status=429", "1"),
    ("status=success", "530"),
    ("status=error", "421"),
    ("outcome=abandoned", "52"),
    ("request_id=req_3", "3"),
    ("session_id=s", "3"),
    ("starting_at=2025-03-10T12:02:00Z", "5432"),
    ("ending_at=2025-03-10T12:02:00Z", "10"),
    ("principal=ada&status=error&model=claude-b", "4"),
    ("has_principal=true", "43210"),
    ("principal=nobody", ""),
]


async def test_search_finds_the_newest_first(api: AdminApi, subtests: pytest.Subtests) -> None:
    await api.start()
    for query, found in SEARCHES:
        with subtests.test(query=query):
            for limit in (1000, 1, 2):
                assert await ids(api, query, limit) == [f"req_{number}" for number in found]


async def ids(api: AdminApi, query: str, limit: int) -> list[str]:
    """Return the ids on all pages of a search."""
    found: list[str] = []
    # the requests of this test are in the ledger as well
    query += "" if "ending_at" in query else "&ending_at=2025-03-11T00:00:00Z"
    following = ""
    while True:
        page = await api.call("GET", f"/requests?limit={limit}&{query}{following}")
        assert len(page["data"]) <= limit
        found += [each["id"] for each in page["data"]]
        if not page["has_more"]:
            assert page["next_page"] is None
            return found
        following = f"&page={page['next_page']}"


async def test_one_request_is_shown_with_its_attempts(api: AdminApi) -> None:
    await api.start()
    found: Any = await api.call("GET", "/requests/req_4")
    assert (found["type"], found["id"], found["created_at"]) == (
        "request",
        "req_4",
        "2025-03-10T12:04:00.000Z",
    )
    assert (found["upstream"], found["attempts"]) == ("eu", 2)
    assert found["failed_attempts"] == ["default: 529 overloaded_error"]
    assert (found["cost"], found["output_tokens"], found["status"]) == ("4.0000005", 4, 529)
    assert (await api.call("GET", "/requests/req_0"))["groups"] == ["engines"]
    assert (await api.call("GET", "/requests/req_5"))["cost"] is None
    status, kind, _ = await api.fault("GET", "/requests/req_9")
    assert (status, kind) == (404, "not_found_error")


INVALID = [
    "status=x",
    "status=99",
    "status=4\u0662\u0662",
    "status=1 OR 1",
    "outcome=x",
    "has_principal=x",
    "page=x",
    "starting_at=now",
    "limit=0",
]


async def test_invalid_search_is_refused(api: AdminApi, subtests: pytest.Subtests) -> None:
    await api.start()
    for query in INVALID:
        with subtests.test(query=query):
            status, kind, text = await api.fault("GET", f"/requests?{quote(query, safe='=')}")
            assert (status, kind) == (400, "invalid_request_error")
            assert text.startswith(f"{query.partition('=')[0]}: ")
            assert len(text) < 100

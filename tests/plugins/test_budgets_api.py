"""The spend limits API, as Anthropic's own gateway serves it.

Sources: https://code.claude.com/docs/en/claude-apps-gateway-spend-limits and
https://platform.claude.com/docs/en/api/admin/spend_limits.
"""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from typing import Any
from urllib.parse import quote

import pytest
from anthropic import AsyncAnthropic, NotFoundError
from budget_team import ADMIN, LIMITS, Team, costing
from people import Document
from postgres import sqlite_only
from scene import Scene
from tornadoproxy_budgets import wire
from tornadoproxy_budgets.caps import Scope

from tornadoproxy import DatabaseLocation, InvalidRequest, admin
from tornadoproxy.testing import RawResponse, clean_environment

pytest_plugins = ("budget_team",)

EVERYONE = {"type": "organization"}
ADA = {"type": "user", "user_id": "ada"}
TEAM = {"type": "rbac_group", "rbac_group_id": "team"}
TIME = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class Api(Team):
    async def send(
        self, method: str, target: str = "", document: object = None, *, key: str | None = ADMIN
    ) -> RawResponse:
        response = await self.request(LIMITS + target, document, method=method, token=key)
        assert response.header("request-id")
        assert response.header("content-type") == "application/json"
        return response

    async def call(self, method: str, target: str = "", document: object = None) -> Any:
        response = await self.send(method, target, document)
        assert response.status == 200, response.body
        return json.loads(response.body)

    async def set(self, scope: object, amount: str | None = "1000", period: str = "daily") -> Any:
        return await self.call("POST", "", {"scope": scope, "amount": amount, "period": period})

    async def spend(self, who: str, cents: int = 3) -> None:
        self.upstream.script(costing(cents))
        assert (await self.ask(who)).status == 200


@pytest.fixture
def api(scene: Scene, where: DatabaseLocation) -> Api:
    return Api(scene, where)


def fault_of(response: RawResponse) -> tuple[int, str, str]:
    document = json.loads(response.body)
    assert document["type"] == "error"
    assert document["request_id"] == response.header("request-id")
    return response.status, document["error"]["type"], document["error"]["message"]


# -- limits


async def test_limit_is_created_replaced_read_and_deleted(api: Api) -> None:
    await api.start()
    made = await api.set(EVERYONE, "50000", "monthly")
    assert re.fullmatch("spl_[0-9a-f]{24}", made["id"])
    assert TIME.fullmatch(made["created_at"])
    assert made == {
        "type": "spend_limit",
        "id": made["id"],
        "scope": EVERYONE,
        "amount": "50000",
        "currency": "USD",
        "period": "monthly",
        "is_enabled": True,
        "created_at": made["created_at"],
        "updated_at": made["created_at"],
    }
    replaced = await api.set(EVERYONE, None, "monthly")
    assert (replaced["id"], replaced["created_at"]) == (made["id"], made["created_at"])
    assert replaced["amount"] is None
    target = f"/{made['id']}"
    assert await api.call("GET", target) == replaced
    assert (await api.call("DELETE", target))["id"] == made["id"]
    for method in ("GET", "DELETE"):
        assert fault_of(await api.send(method, target))[:2] == (404, "not_found_error")
    assert api.upstream.requests == []


async def test_scope_has_a_limit_for_each_period(api: Api) -> None:
    await api.start()
    ids = set()
    for scope in (EVERYONE, ADA, TEAM, {**EVERYONE, "shared": True}, {**TEAM, "shared": True}):
        for period in ("daily", "weekly", "monthly"):
            made = await api.set(scope, "1", period)
            assert (made["scope"], made["period"]) == (scope, period)
            assert ("period_to_date_spend" in made) == ("shared" in scope)
            ids.add(made["id"])
    assert len(ids) == 15
    default = await api.call("POST", "", {"scope": ADA, "amount": "007"})
    assert (default["period"], default["amount"]) == ("monthly", "7")
    assert default["id"] in ids


def scoped(**scope: object) -> Document:
    return {"scope": scope, "amount": "1"}


def everyone(**fields: object) -> Document:
    return {"scope": EVERYONE, "amount": "1", **fields}


def posted(document: object) -> admin.Request:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return admin.Request("POST", "test", admin.Query({}), body=body)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (b"\xff", "JSON"),
        (b"[" * 100_000, "JSON"),
        ([], "object"),
        ({"amount": "1"}, "scope"),
        (scoped(), "scope.type"),
        (scoped(type=["user"]), "scope.type"),
        (scoped(type="user"), "scope.user_id"),
        (scoped(type="user", user_id=7), "scope.user_id"),
        (scoped(type="user", user_id="a\nb"), "scope.user_id"),
        (scoped(type="user", user_id="a" * 257), "scope.user_id"),
        (scoped(type="rbac_group", user_id="a"), "scope.user_id: unknown field"),
        (scoped(**ADA, shared=True), "scope.shared"),
        (scoped(**EVERYONE, shared=1), "scope.shared"),
        ({"scope": EVERYONE}, "amount"),
        (everyone(amount=100), "amount"),
        (everyone(amount="1.5"), "amount"),
        (everyone(period="yearly"), "period"),
        (everyone(currency="EUR"), "currency"),
        (everyone(perriod="daily"), "perriod: unknown field"),
    ],
)
def test_invalid_limit_is_refused(document: object, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        wire.wanted(posted(document))
    assert field in str(refused.value)


def test_longest_name_is_accepted() -> None:
    longest = posted(scoped(type="user", user_id="a" * 256))
    assert wire.wanted(longest) == (Scope("user", "a" * 256), "monthly", 1)


async def test_limits_are_listed_in_pages(api: Api) -> None:
    await api.start()
    users = [{"type": "user", "user_id": f"user-{number}"} for number in range(5)]
    ids = [(await api.set(user))["id"] for user in users]

    async def listed(query: str) -> tuple[list[str], bool]:
        document = await api.call("GET", f"?{query}")
        found = [each["id"] for each in document["data"]]
        ends = (found[0], found[-1]) if found else (None, None)
        assert (document["first_id"], document["last_id"]) == ends
        return found, document["has_more"]

    assert await listed("") == await listed("limit=5") == (ids, False)
    assert await listed("limit=2") == (ids[:2], True)
    assert await listed(f"limit=2&after_id={ids[1]}") == (ids[2:4], True)
    assert await listed(f"limit=2&after_id={ids[3]}") == (ids[4:], False)
    assert await listed(f"after_id={ids[4]}") == ([], False)
    assert await listed(f"limit=2&before_id={ids[3]}") == (ids[1:3], True)
    assert await listed(f"limit=3&before_id={ids[3]}") == (ids[:3], False)
    assert await listed(f"before_id={ids[0]}") == ([], False)
    both = await api.send("GET", f"?after_id={ids[0]}&before_id={ids[3]}")
    assert "exclude each other" in fault_of(both)[2]


async def test_invalid_query_is_refused(api: Api) -> None:
    await api.start()
    for target in (
        *("?limit=0", "?limit=1001", "?limit=ten", "?limit=" + "1" * 5000, "?limit=1&limit=2"),
        *("?after_id=spl_unknown", "?before_id=spl_unknown", "?page=nonsense", "?page=page_W10="),
        *("?scope_type=workspace", "/effective?period[]=yearly", "/effective?page=page_e30="),
        *("/effective?sort=spend_desc", "/effective?sort=name&period[]=daily"),
        "/effective?" + "&".join(f"user_ids[]={number}" for number in range(101)),
        *("/audit?after_id=spl_1", "/audit?after_id=" + "1" * 19),
    ):
        refused = fault_of(await api.send("GET", target))
        assert refused[:2] == (400, "invalid_request_error"), target
    assert await api.call("GET", "?limit=1000")
    assert await api.call("GET", "/effective?" + "user_ids[]=ada&" * 100)
    assert await api.call("GET", "/audit?after_id=" + "1" * 18)


# -- the report


async def test_report_has_limits_and_spending(api: Api) -> None:
    await api.start()
    of_team = await api.set(TEAM, "700", "weekly")
    of_ada = await api.set(ADA, None)
    of_all = await api.set(EVERYONE, "900", "daily")
    pool = await api.set({**TEAM, "shared": True}, "5000", "monthly")
    await api.spend("ada+team")
    await api.spend("bob", 1)
    report = await api.call("GET", "/effective")
    assert report["next_page"] is None
    assert report["data"][0] == {
        "type": "spend_summary",
        "actor": {
            "type": "user_actor",
            "user_id": "ada",
            "name": None,
            "email_address": None,
            "deleted": False,
        },
        "scope": ADA,
        "source": ADA,
        "spend_limit_id": of_ada["id"],
        "amount": None,
        "currency": "USD",
        "period": "daily",
        "period_to_date_spend": "3",
        "groups": ["team"],
    }
    rows = {
        (row["actor"]["user_id"], row["period"]): (row["source"], row["spend_limit_id"])
        for row in report["data"]
    }
    assert rows == {
        ("ada", "daily"): (ADA, of_ada["id"]),
        ("ada", "weekly"): (TEAM, of_team["id"]),
        ("ada", "monthly"): (None, None),
        ("bob", "daily"): (EVERYONE, of_all["id"]),
        ("bob", "weekly"): (None, None),
        ("bob", "monthly"): (None, None),
    }
    assert (await api.call("GET", f"/{pool['id']}"))["period_to_date_spend"] == "3"


async def test_report_is_filtered_sorted_and_paged(api: Api) -> None:
    await api.start()
    await api.set({"type": "user", "user_id": "eve"})
    for who, cents in (("ada", 2), ("Bob", 5), ("cyd", 1), ("dan", 5)):
        await api.spend(who, cents)

    async def names(query: str) -> list[list[str]]:
        pages, page = [], ""
        while True:
            document = await api.call("GET", f"/effective?{query}{page}")
            pages.append([row["actor"]["user_id"] for row in document["data"]])
            if document["next_page"] is None:
                return pages
            page = f"&page={quote(document['next_page'])}"

    daily = "period[]=daily"
    assert await names(daily) == [["Bob", "ada", "cyd", "dan", "eve"]]
    assert await names(f"{daily}&limit=2") == [["Bob", "ada"], ["cyd", "dan"], ["eve"]]
    assert await names("limit=1&q=B") == [["Bob"] * 3]
    by_spending = [["Bob", "dan"], ["ada", "cyd"], ["eve"]]
    assert await names(f"{daily}&sort=spend_desc&limit=2") == by_spending
    assert await names(f"{daily}&user_ids[]=zoe&user_ids[]=ada") == [["ada", "zoe"]]
    assert await names("period[]=weekly&period[]=daily&user_ids[]=ada") == [["ada", "ada"]]


async def test_sdk_manages_limits(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    clean_environment(monkeypatch)
    proxy = await api.start()
    await api.set(EVERYONE)
    async with AsyncAnthropic(base_url=proxy.url, api_key=ADMIN, max_retries=0) as client:
        limits = client.beta.organization.spend_limits
        scope: Any = ADA
        made = await limits.set(scope=scope, amount="50000", period="weekly")
        assert (made.type, made.amount, made.period) == ("spend_limit", "50000", "weekly")
        assert await limits.retrieve(made.id) == made
        for number in range(4):
            await limits.set(scope={"type": "user", "user_id": f"u{number}"}, amount=None)
        found = [each async for each in limits.list(limit=2, scope_type=["user"])]
        assert (found[0].id, len(found)) == (made.id, 5)
        await api.spend("ada")
        report = limits.effective.list(limit=1, period=["weekly"], user_ids=["ada", "bob"])
        rows = [(row.amount, row.period_to_date_spend) async for row in report]
        assert rows == [("50000", "3"), (None, "0")]
        assert (await limits.delete(made.id)).type == "spend_limit_deleted"
        with pytest.raises(NotFoundError, match="no spend limit with this id"):
            await limits.retrieve(made.id)


# -- the audit log


@sqlite_only
async def test_audit_log_has_each_change(api: Api) -> None:
    await api.start()
    first = await api.set(ADA, "1")
    second = await api.set(ADA, "2")
    await api.call("DELETE", f"/{first['id']}")
    await api.send("DELETE", f"/{first['id']}")  # does not exist any more: no change
    trail = await api.call("GET", "/audit")
    assert trail["has_more"] is False
    assert [
        (event["id"], event["action"], event["before"], event["after"]) for event in trail["data"]
    ] == [(3, "delete", second, None), (2, "set", first, second), (1, "set", None, first)]
    for event in trail["data"]:
        assert event["type"] == "spend_limit_audit_event"
        assert (event["actor"], event["spend_limit_id"]) == ("admin-key:ops", first["id"])
        assert TIME.fullmatch(event["created_at"])
    assert (trail["first_id"], trail["last_id"]) == (3, 1)
    for query, ids, has_more in (("limit=2", [3, 2], True), ("limit=2&after_id=2", [1], False)):
        page = await api.call("GET", f"/audit?{query}")
        assert ([event["id"] for event in page["data"]], page["has_more"]) == (ids, has_more)
    with closing(sqlite3.connect(api.path)) as connection:
        assert ADMIN not in "\n".join(connection.iterdump())

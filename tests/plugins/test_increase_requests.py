"""Requests for higher spend limits, and the people and groups of the Admin API.

Sources: https://platform.claude.com/docs/en/api/admin/spend_limits, ``…/users`` and
``…/rbac_groups``.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from admin_api import AdminApi, fault_of
from admin_sdk import Sdk, check_shape
from budget_team import Prices, asking, costing
from people import MESSAGES, People, locked, pause
from postgres import sqlite_only
from scene import Scene
from tornadoproxy_keys import changes, store
from tornadoproxy_keys.changes import By
from tornadoproxy_keys.store import Limits

from tornadoproxy import DatabaseLocation
from tornadoproxy.testing import Proxy, RawResponse

pytest_plugins = ("admin_sdk",)

OWN = "/v1/spend_limit_increase_requests"
REQUESTS = "/spend_limit_increase_requests"


class Increases(AdminApi):
    async def start(self, **variables: Any) -> Proxy:
        return await super().start(plugins=[People(), Prices()], **variables)

    async def own(self, who: str, document: object = None, method: str = "POST") -> RawResponse:
        """Send a request to the page on which people ask for more."""
        return await self.request(OWN, document, method=method, token=who)

    async def ask(self, who: str = "ada", **fields: object) -> Any:
        response = await self.own(who, fields)
        assert response.status == 200, response.body
        return json.loads(response.body)

    async def limit(self, cents: int, period: str = "daily") -> None:
        wanted = {"scope": {"type": "organization"}, "amount": str(cents), "period": period}
        await self.call("POST", "/spend_limits", wanted)

    async def spend(self, who: str) -> int:
        self.upstream.script(costing(3))
        return (await self.request(MESSAGES, asking(), token=who)).status


@pytest.fixture
def api(scene: Scene, where: DatabaseLocation) -> Increases:
    return Increases(scene, where, REQUESTS, BUDGETS_DB=where, DISABLED_PLUGINS="prices")


async def test_blocked_person_asks_and_goes_on_once_approved(api: Increases) -> None:
    await api.start()
    await api.limit(3)
    assert await api.spend("ada") == 200
    assert await api.spend("ada") == 429
    made = await api.ask(period="daily", requested_amount="100", reason="Release week")
    assert made == {
        "type": "spend_limit_increase_request",
        "id": made["id"],
        "actor": made["spend_summary"]["actor"],
        "created_at": made["created_at"],
        "period": "daily",
        "status": "pending",
        "resolved_at": None,
        "resolved_by": None,
        "requested_amount": "100",
        "reason": "Release week",
        "spend_summary": made["spend_summary"],
    }
    assert made["spend_summary"]["period_to_date_spend"] == "3"
    path = f"{REQUESTS}/{made['id']}"
    assert await api.call("GET", path) == made
    approved = await api.call("POST", f"{path}/approve", {"amount": "200"})
    assert (approved["status"], approved["spend_limit"]["amount"]) == ("approved", "200")
    assert approved["spend_limit"]["scope"] == {"type": "user", "user_id": "ada"}
    assert approved["resolved_by"] == {
        "type": "scoped_api_key_actor",
        "scoped_api_key_id": "admin-key:ops",
    }
    assert await api.spend("ada") == 200
    assert api.upstream.requests[-1].path == MESSAGES, "no request of these went upstream"
    for action in ("approve", "deny"):
        body = {"amount": "300"} if action == "approve" else None
        assert "already approved" in (await api.fault("POST", f"{path}/{action}", body))[2]
    events = (await api.call("GET", "/audit_events"))["data"]
    assert [(each["resource"]["type"], each["action"], each["actor"]) for each in events] == [
        ("spend_limit_increase_request", "approve", "admin-key:ops"),
        ("spend_limit", "set", "admin-key:ops"),
        ("spend_limit_increase_request", "create", "user:ada"),
        ("spend_limit", "set", "admin-key:ops"),
    ]


async def test_new_requests_and_decisions_are_logged_once(
    api: Increases, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await api.start()
    made = [await api.ask(who, reason="our secret plan") for who in ("ada", "bob", "ada")]
    ada, bob, again = (each["id"] for each in made)
    assert again == ada
    once = {"Idempotency-Key": "once"}
    for _ in range(2):
        await api.call("POST", f"{REQUESTS}/{ada}/approve", {"amount": "1"}, **once)
        await api.call("POST", f"{REQUESTS}/{bob}/deny")
    logged = [each.getMessage() for each in caplog.records if "limit" in each.getMessage()]
    assert [line for line in logged if "slir_" in line and "/v1/" not in line] == [
        f"{ada} is pending: ada asks for a higher monthly limit",
        f"{bob} is pending: bob asks for a higher monthly limit",
        f"{ada} is approved by admin-key:ops: ada had asked for a higher monthly limit",
        f"{bob} is denied by admin-key:ops: bob had asked for a higher monthly limit",
    ]
    assert "our secret plan" not in caplog.text


async def test_denied_request_stays_denied(api: Increases) -> None:
    await api.start()
    made = await api.ask()
    assert (made["period"], made["spend_summary"]) == ("monthly", None)
    path = f"{REQUESTS}/{made['id']}"
    for _ in range(2):
        assert (await api.call("POST", f"{path}/deny"))["status"] == "denied"
    assert "already denied" in (await api.fault("POST", f"{path}/approve", {"amount": "1"}))[2]
    assert (await api.call("GET", "/spend_limits"))["data"] == []
    assert len((await api.call("GET", "/audit_events"))["data"]) == 2
    again = await api.ask()
    assert again["id"] != made["id"]


async def test_person_has_one_pending_request_for_a_period(api: Increases) -> None:
    await api.start()
    first = await api.ask(reason="first")
    assert await api.ask(reason="second") == first
    assert (await api.ask(period="weekly"))["id"] != first["id"]
    assert len((await api.call("GET", "/audit_events"))["data"]) == 2


async def test_person_sees_their_own_requests_alone(api: Increases) -> None:
    await api.start()
    ids = {who: (await api.ask(who))["id"] for who in ("ada", "bob")}
    for who, id_ in ids.items():
        listed = json.loads((await api.own(who, method="GET")).body)
        assert [each["id"] for each in listed["data"]] == [id_]
    everybody = await api.call()
    assert [each["id"] for each in everybody["data"]] == [ids["bob"], ids["ada"]], "newest first"


INVALID: list[tuple[dict[str, object], str]] = [
    ({"period": "yearly"}, "period"),
    ({"period": 7}, "period"),
    ({"requested_amount": 100}, "requested_amount"),
    ({"reason": "x" * 1001}, "reason"),
    ({"reason": 7}, "reason"),
    ({"amount": "1"}, "amount: unknown field"),
]


async def test_invalid_request_of_a_person_is_refused(
    api: Increases, subtests: pytest.Subtests
) -> None:
    await api.start()
    for fields, field in INVALID:
        with subtests.test(fields=fields):
            status, kind, text = fault_of(await api.own("ada", fields))
            assert (status, kind) == (400, "invalid_request_error")
            assert text.startswith(field)


async def test_invalid_resolution_is_refused(api: Increases) -> None:
    await api.start()
    path = f"{REQUESTS}/{(await api.ask())['id']}"
    tag = (await api.send("GET", path)).header("etag") or ""
    for fields in ({}, {"amount": None}, {"amount": 1}, {"amount": "1", "period": "x"}, {"a": 1}):
        assert (await api.fault("POST", f"{path}/approve", fields))[0] == 400
    assert (await api.fault("POST", f"{path}/deny", {"amount": "1"}))[0] == 400
    for action, method in (("", "GET"), ("/approve", "POST"), ("/deny", "POST")):
        body = {"amount": "1"} if action == "/approve" else None
        refused = await api.fault(method, f"{REQUESTS}/slir_x{action}", body)
        assert refused[:2] == (404, "not_found_error")
    assert (await api.fault("POST", f"{path}/deny", if_match='"other"'))[0] == 412
    once = {"Idempotency-Key": "once", "If-Match": tag}
    first = await api.call("POST", f"{path}/approve", {"amount": "1"}, **once)
    assert await api.call("POST", f"{path}/approve", {"amount": "1"}, **once) == first
    for query in ("status[]=open", "page=x", "page=page_WyJ4Il0="):
        assert (await api.fault("GET", f"{REQUESTS}?{query}"))[0] == 400


@sqlite_only
@pytest.mark.usefixtures("short_locks")
async def test_locked_database_is_a_503(api: Increases) -> None:
    await api.start()
    made = await api.ask()
    with locked(api.path):
        for response in (
            await api.own("ada", {"period": "weekly"}),
            await api.send("POST", f"{REQUESTS}/{made['id']}/deny"),
        ):
            status, kind, text = fault_of(response)
            assert (status, kind) == (503, "overloaded_error")
            assert "temporarily unavailable" in text
    assert (await api.call("GET", f"{REQUESTS}/{made['id']}"))["status"] == "pending"


async def test_without_an_admin_key_nobody_asks(api: Increases) -> None:
    proxy = await api.start(ADMIN_KEY=None)
    assert OWN not in {page.path for _, page in proxy.plugins.pages()}


async def test_anonymous_client_cannot_ask(api: Increases) -> None:
    await api.start_proxy(**{**api.settings, "AUTH_TOKEN": None, "ALLOW_ANONYMOUS": "yes"})
    assert fault_of(await api.request(OWN, {}, method="POST", token=None))[0] == 403


@pytest.mark.parametrize("beta", [False, True])
async def test_sdk_resolves_requests(beta: bool, api: Increases, sdk: Sdk) -> None:
    def requests(client: Any) -> Any:
        root = client.beta if beta else client
        return root.organization.spend_limits.increase_requests

    url = (await api.start()).url
    await api.limit(500)
    ids = [(await api.ask(who, period="daily"))["id"] for who in ("ada", "bob", "eve")]
    listed = await sdk(url, lambda client: requests(client).list(limit=2))
    assert [each.id for each in listed] == ids[::-1]
    assert listed[0].spend_summary.amount == "500"
    approved = await sdk(
        url, lambda client: requests(client).approve(ids[0], amount="900", period="weekly")
    )
    assert (approved.status, approved.spend_limit.period) == ("approved", "weekly")
    denied = await sdk(url, lambda client: requests(client).deny(ids[1]))
    assert (denied.status, denied.resolved_by.scoped_api_key_id) == ("denied", "admin-key:ops")
    one = await sdk(url, lambda client: requests(client).retrieve(ids[2]))
    assert one.status == "pending"
    some = await sdk(
        url,
        lambda client: requests(client).list(status=["approved", "denied"], actor_ids=["ada"]),
    )
    assert [each.id for each in some] == ids[:1]
    effective = await sdk(
        url,
        lambda client: client.organization.spend_limits.effective.list(user_ids=["ada"]),
        checked=False,
    )
    check_shape(effective[:2])  # the third has no limit, which is an extension
    assert [(each.period, each.amount) for each in effective][:2] == [
        ("daily", "500"),
        ("weekly", "900"),
    ]


# -- users and groups


async def test_sdk_lists_people_and_groups(api: Increases, sdk: Sdk) -> None:
    with store.database(api.where) as database, database.transaction() as connection:
        for name, groups in (("ada", ("team",)), ("bob@example.org", ("team", "leads"))):
            given = (name, groups, Limits(), None, 1_700_000_000)
            changes.create(connection, *given, By("test"))
        changes.create(connection, "gone", ("x",), Limits(), None, 7, By("test"))
        changes.revoke(connection, "gone", 8, By("test"))
    url = (await api.start(KEYS_DB=api.where, SHARED_LIMITS=None)).url
    for who in ("ada+late", "eve+late"):
        assert await api.spend(who) == 200
    while len((await api.call("GET", "/users"))["data"]) < 3:
        await pause()  # the budgets save who has sent requests a moment later
    users = await sdk(url, lambda client: client.organization.users.list(limit=1))
    assert [(each.name, each.email, each.role) for each in users] == [
        ("ada", "", "user"),
        ("bob@example.org", "bob@example.org", "user"),
        ("eve", "", "user"),
    ]
    assert users[0].groups == ["late", "team"]
    one = await sdk(url, lambda client: client.organization.users.retrieve("ada"))
    assert one == users[0]
    for query, count in (("email=bob@example.org", 1), ("roles[]=user", 3), ("roles[]=admin", 0)):
        assert len((await api.call("GET", f"/users?{query}"))["data"]) == count
    assert (await api.fault("GET", "/users?roles[]=king"))[0] == 400
    for path in ("/users/gone", "/rbac_groups/x", "/rbac_groups/x/members"):
        assert (await api.fault("GET", path))[:2] == (404, "not_found_error")
    groups = await sdk(url, lambda client: client.organization.rbac_groups.list(limit=2))
    assert [each.id for each in groups] == ["late", "leads", "team"]
    team = await sdk(url, lambda client: client.organization.rbac_groups.retrieve("team"))
    assert team == groups[2]
    members = await sdk(
        url, lambda client: client.organization.rbac_groups.members.list("team", limit=1)
    )
    assert [each.user_id for each in members] == ["ada", "bob@example.org"]
    assert (await api.fault("POST", "/users/ada", {"role": "user"}))[0] == 405

"""The spend limits API, as Anthropic's own gateway serves it, and the same by command line.

Sources: https://code.claude.com/docs/en/claude-apps-gateway-spend-limits and
https://platform.claude.com/docs/en/api/admin/spend_limits.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from anthropic import AsyncAnthropic, NotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from tornadoproxy_budgets import admin_keys, storage, wire
from tornadoproxy_budgets.engine import Batch

from tornadoproxy import Database, Identity, IncomingRequest, InvalidRequest, Usage, hookimpl
from tornadoproxy.testing import TEST_TOKEN, clean_environment, request_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
    )

WRITER = "an-admin-key-that-may-change-anything"
READER = "an-admin-key-that-may-read-and-no-more"
LIMITS = "/v1/organizations/spend_limits"
EVERYONE = {"type": "organization"}
ADA = {"type": "user", "user_id": "ada"}
TEAM = {"type": "rbac_group", "rbac_group_id": "team"}
TIME = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class People:
    """Whoever says a name is that person; see the tests of requests."""

    @hookimpl(tryfirst=True)
    def authenticate(self, request: IncomingRequest) -> Identity | None:
        for candidate in request.candidates():
            name, *groups = candidate.reveal().decode().split("+")
            return Identity(name, groups=tuple(groups))
        return None

    @hookimpl(tryfirst=True)
    def price(self, usage: Usage) -> int:
        return (usage.output_tokens or 0) * 12_345_678  # nanos: 1.2345678 cents


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "budgets.db"


async def start(start_proxy: StartProxy, path: Path, **variables: object) -> Proxy:
    keys = {"BUDGETS_ADMIN_KEY": f"ops={WRITER}", "BUDGETS_ADMIN_READ_KEY": READER}
    return await start_proxy(plugins=[People()], **{"BUDGETS_DB": path, **keys, **variables})


async def send(
    raw: OpenRaw,
    method: str,
    target: str = "",
    document: object = None,
    *,
    key: str | None = WRITER,
) -> RawResponse:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    connection = await raw()
    await connection.send(
        request_bytes(method, LIMITS + target, body=b"" if document is None else body, token=key)
    )
    response = await connection.response(to_head=method == "HEAD")
    await connection.close()
    assert response.header("request-id")
    assert response.header("content-type") == "application/json"
    return response


async def call(raw: OpenRaw, method: str, target: str = "", document: object = None) -> Any:
    response = await send(raw, method, target, document)
    assert response.status == 200, response.body
    return json.loads(response.body)


async def set_limit(
    raw: OpenRaw, scope: object, amount: str | None = "1000", period: str = "daily"
) -> Any:
    return await call(raw, "POST", "", {"scope": scope, "amount": amount, "period": period})


async def speak(raw: OpenRaw, who: str, words: int = 3) -> None:
    """Have somebody spend as many times 1.2345678 cents."""
    document = {
        "model": "claude-sonnet-5-5",
        "max_tokens": words,
        "messages": [{"role": "user", "content": "Hi"}],
    }
    connection = await raw()
    body = json.dumps(document).encode()
    headers = {"anthropic-version": "2023-06-01"}
    await connection.send(request_bytes("POST", "/v1/messages", headers, body, token=who))
    assert (await connection.response()).status == 200


def error_of(response: RawResponse) -> tuple[int, str, str]:
    document = json.loads(response.body)
    assert document["type"] == "error"
    assert document["request_id"] == response.header("request-id")
    return response.status, document["error"]["type"], document["error"]["message"]


# -- limits


async def test_a_limit_from_its_setting_to_its_end(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start(start_proxy, path)
    made = await set_limit(raw, EVERYONE, "50000", "monthly")
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
    replaced = await set_limit(raw, EVERYONE, None, "monthly")
    assert (replaced["id"], replaced["created_at"]) == (made["id"], made["created_at"])
    assert replaced["amount"] is None
    assert await call(raw, "GET", f"/{made['id']}") == replaced
    assert await call(raw, "DELETE", f"/{made['id']}") == {
        "type": "spend_limit_deleted",
        "id": made["id"],
    }
    for method in ("GET", "DELETE"):
        gone = await send(raw, method, f"/{made['id']}")
        assert error_of(gone)[:2] == (404, "not_found_error")
    assert upstream.requests == []


async def test_a_scope_has_a_limit_for_each_period(
    start_proxy: StartProxy, path: Path, raw: OpenRaw
) -> None:
    await start(start_proxy, path)
    scopes = (EVERYONE, ADA, TEAM, {**EVERYONE, "shared": True}, {**TEAM, "shared": True})
    ids = set()
    for scope in scopes:
        for period in ("daily", "weekly", "monthly"):
            made = await set_limit(raw, scope, "1", period)
            assert (made["scope"], made["period"]) == (scope, period)
            assert ("period_to_date_spend" in made) == ("shared" in scope)
            ids.add(made["id"])
    assert len(ids) == 15
    default = await call(raw, "POST", "", {"scope": ADA, "amount": "007"})
    assert (default["period"], default["amount"]) == ("monthly", "7")
    assert default["id"] in ids


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        ([], "object"),
        ({"amount": "1"}, "scope"),
        ({"scope": "organization", "amount": "1"}, "scope"),
        ({"scope": {}, "amount": "1"}, "scope.type"),
        ({"scope": {"type": ["user"]}, "amount": "1"}, "scope.type"),
        ({"scope": {"type": "seat_tier", "seat_tier": "x"}, "amount": "1"}, "scope.type"),
        ({"scope": {"type": "user"}, "amount": "1"}, "scope.user_id"),
        ({"scope": {"type": "user", "user_id": ""}, "amount": "1"}, "scope.user_id"),
        ({"scope": {"type": "user", "user_id": 7}, "amount": "1"}, "scope.user_id"),
        ({"scope": {"type": "user", "user_id": "a\nb"}, "amount": "1"}, "scope.user_id"),
        ({"scope": {"type": "user", "user_id": "a" * 257}, "amount": "1"}, "scope.user_id"),
        ({"scope": {"type": "rbac_group", "user_id": "a"}, "amount": "1"}, "scope.user_id"),
        ({"scope": {**ADA, "shared": True}, "amount": "1"}, "scope.shared"),
        ({"scope": {**EVERYONE, "shared": 1}, "amount": "1"}, "scope.shared"),
        ({"scope": EVERYONE}, "amount"),
        ({"scope": EVERYONE, "amount": 100}, "amount"),
        ({"scope": EVERYONE, "amount": "1.5"}, "amount"),
        ({"scope": EVERYONE, "amount": "-1"}, "amount"),
        ({"scope": EVERYONE, "amount": ""}, "amount"),
        ({"scope": EVERYONE, "amount": "1" * 16}, "amount"),
        ({"scope": EVERYONE, "amount": "1", "period": "yearly"}, "period"),
        ({"scope": EVERYONE, "amount": "1", "period": ["daily"]}, "period"),
        ({"scope": EVERYONE, "amount": "1", "currency": "EUR"}, "currency"),
        ({"scope": EVERYONE, "amount": "1", "perriod": "daily"}, "perriod"),
    ],
)
async def test_what_is_no_limit_is_refused(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, document: object, field: str
) -> None:
    await start(start_proxy, path)
    status, kind, text = error_of(await send(raw, "POST", "", document))
    assert (status, kind) == (400, "invalid_request_error")
    assert field in text
    assert (await call(raw, "GET"))["data"] == []
    assert (await call(raw, "GET", "/audit"))["data"] == []


async def test_limits_are_listed_page_by_page(
    start_proxy: StartProxy, path: Path, raw: OpenRaw
) -> None:
    await start(start_proxy, path)
    ids = []
    for number in range(5):
        made = await set_limit(raw, {"type": "user", "user_id": f"user-{number}"})
        ids.append(made["id"])

    async def listed(query: str) -> tuple[list[str], bool]:
        document = await call(raw, "GET", f"?{query}")
        found = [each["id"] for each in document["data"]]
        assert document["first_id"] == (found[0] if found else None)
        assert document["last_id"] == (found[-1] if found else None)
        return found, document["has_more"]

    assert await listed("") == (ids, False)
    assert await listed("limit=2") == (ids[:2], True)
    assert await listed(f"limit=2&after_id={ids[1]}") == (ids[2:4], True)
    assert await listed(f"limit=2&after_id={ids[3]}") == (ids[4:], False)
    assert await listed(f"after_id={ids[4]}") == ([], False)
    assert await listed(f"limit=2&before_id={ids[3]}") == (ids[1:3], True)
    assert await listed(f"limit=3&before_id={ids[3]}") == (ids[:3], False)
    assert await listed(f"before_id={ids[0]}") == ([], False)


async def test_limits_are_listed_by_the_type_of_their_scope(
    start_proxy: StartProxy, path: Path, raw: OpenRaw
) -> None:
    await start(start_proxy, path)
    for scope in (ADA, EVERYONE, TEAM):
        await set_limit(raw, scope)
    for query, found in (
        ("scope_type=user", ["user"]),
        ("scope_type[]=rbac_group", ["rbac_group"]),
        ("scope_type[]=user&scope_type[]=organization", ["user", "organization"]),
        ("beta=true", ["user", "organization", "rbac_group"]),
    ):
        document = await call(raw, "GET", f"?{query}")
        assert [each["scope"]["type"] for each in document["data"]] == found


@pytest.mark.parametrize(
    "target",
    [
        "?limit=0",
        "?limit=1001",
        "?limit=ten",
        "?limit=0000010009999999",
        "?limit=" + "1" * 5000,
        "?limit=-1",
        "?limit=1&limit=2",
        "?after_id=spl_unknown",
        "?before_id=spl_unknown",
        "?after_id=a&before_id=b",
        "?page=nonsense",
        "?page=page_W10=",
        "?scope_type=workspace",
        "/effective?period[]=yearly",
        "/effective?sort=spend_desc",
        "/effective?sort=spend_desc&period[]=daily&period[]=weekly",
        "/effective?sort=name",
        "/effective?page=page_e30=",
        "/effective?limit=0",
        "/effective?" + "&".join(f"user_ids[]={number}" for number in range(101)),
        "/audit?after_id=spl_1",
        "/audit?limit=x",
    ],
)
async def test_a_wrong_query_is_refused(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, target: str
) -> None:
    await start(start_proxy, path)
    assert error_of(await send(raw, "GET", target))[:2] == (400, "invalid_request_error")


async def test_methods_and_paths(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start(start_proxy, path)
    for method, target in (("PUT", ""), ("DELETE", ""), ("POST", "/effective"), ("POST", "/x")):
        response = await send(raw, method, target, {})
        assert response.status == 405
        assert "GET" in (response.header("allow") or "")
    assert (await send(raw, "HEAD")).status == 200
    assert error_of(await send(raw, "GET", "/increase_requests"))[0] == 404
    assert upstream.requests == []


# -- who may


async def test_only_an_admin_key_opens_it(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    await start(start_proxy, path)
    for key in (None, TEST_TOKEN, "ada", WRITER[:-1], WRITER + "x", f"ops={WRITER}"):
        for method, target in (
            ("GET", ""),
            ("POST", ""),
            ("GET", "/x"),
            ("DELETE", "/x"),
            ("GET", "/effective"),
            ("GET", "/audit"),
        ):
            response = await send(raw, method, target, key=key)
            status, kind, text = error_of(response)
            assert (status, kind) == (401, "authentication_error")
            assert response.header("www-authenticate") == "Bearer"
            assert WRITER not in text
            assert text.startswith("No credential was sent") == (key is None)
            assert "an admin key of this proxy's BUDGETS_ADMIN_KEY" in text
            assert "x-api-key" not in text
    assert upstream.requests == []


async def test_a_reader_reads_and_changes_nothing(
    start_proxy: StartProxy, path: Path, raw: OpenRaw
) -> None:
    await start(start_proxy, path)
    made = await set_limit(raw, EVERYONE)
    for target in ("", f"/{made['id']}", "/effective", "/audit"):
        assert (await send(raw, "GET", target, key=READER)).status == 200
    for method, target, document in (
        ("POST", "", {"scope": EVERYONE, "amount": "1"}),
        ("DELETE", f"/{made['id']}", None),
    ):
        refused = await send(raw, method, target, document, key=READER)
        assert error_of(refused)[:2] == (403, "permission_error")
    assert await call(raw, "GET", f"/{made['id']}") == made


async def test_x_api_key_goes_before_bearer(
    start_proxy: StartProxy, path: Path, raw: OpenRaw
) -> None:
    await start(start_proxy, path)
    for headers, status in (
        ({"x-api-key": WRITER}, 200),
        ({"x-api-key": WRITER, "authorization": "Bearer wrong"}, 200),
        ({"x-api-key": "wrong", "authorization": f"Bearer {WRITER}"}, 401),
    ):
        connection = await raw()
        await connection.send(request_bytes("GET", LIMITS, headers))
        assert (await connection.response()).status == status


async def test_without_an_admin_key_it_is_off_and_never_open(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    off = {"BUDGETS_ADMIN_KEY": None, "BUDGETS_ADMIN_READ_KEY": None}
    await start(start_proxy, path, **off)
    for key in (WRITER, TEST_TOKEN, None):
        for method, body in (("GET", None), ("POST", {"scope": EVERYONE, "amount": "1"})):
            response = await send(raw, method, "", body, key=key)
            status, kind, text = error_of(response)
            assert (status, kind) == (404, "not_found_error")
            assert "BUDGETS_ADMIN_KEY" in text
    assert upstream.requests == []


@given(st.lists(st.text("abc=-_.0", min_size=32, max_size=40), max_size=3, unique=True))
@settings(max_examples=200, deadline=None)
def test_a_key_is_its_own_name_never(keys: list[str]) -> None:
    """Named or not, what is after the name is the key, and the name is none of it."""
    words = [f"name-{position}={key}" for position, key in enumerate(keys)]
    found = admin_keys.parse_keys(" ".join(words))
    assert [key.name for key in found] == [f"name-{position}" for position in range(len(keys))]
    assert [key.secret.reveal().decode() for key in found] == keys
    assert not any(key in repr(found) for key in keys)


@pytest.mark.parametrize("key", ["A" * 42 + "==", "0=" + "a" * 32, "-" * 32])
def test_a_key_without_a_name_is_named_by_its_place(key: str) -> None:
    (found,) = admin_keys.parse_keys(key)
    assert (found.name, found.secret.reveal().decode()) == ("1", key)


# -- what was spent


async def test_the_report_tells_of_limits_and_spend(
    start_proxy: StartProxy, path: Path, raw: OpenRaw
) -> None:
    await start(start_proxy, path)
    of_team = await set_limit(raw, TEAM, "700", "weekly")
    of_ada = await set_limit(raw, ADA, None)
    of_all = await set_limit(raw, EVERYONE, "900", "daily")
    pool = await set_limit(raw, {**TEAM, "shared": True}, "5000", "monthly")
    await speak(raw, "ada+team")
    await speak(raw, "bob")
    report = await call(raw, "GET", "/effective")
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
        "period_to_date_spend": "3.704",
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
    shared = await call(raw, "GET", f"/{pool['id']}")
    assert shared["period_to_date_spend"] == "3.704"


async def test_the_report_is_chosen_sorted_and_paged(
    start_proxy: StartProxy, path: Path, raw: OpenRaw
) -> None:
    await start(start_proxy, path)
    await set_limit(raw, {"type": "user", "user_id": "eve"})
    for who, words in (("ada", 2), ("Bob", 5), ("cyd", 1), ("dan", 5)):
        await speak(raw, who, words)

    async def names(query: str) -> list[list[str]]:
        """The names on each page."""
        pages = []
        page = ""
        while page is not None:
            document = await call(raw, "GET", f"/effective?{query}{page}")
            pages.append([row["actor"]["user_id"] for row in document["data"]])
            following = document["next_page"]
            if following is None:
                return pages
            page = f"&page={quote(following)}"
        raise AssertionError

    daily = "period[]=daily"
    assert await names(daily) == [["Bob", "ada", "cyd", "dan", "eve"]]
    assert await names(f"{daily}&limit=2") == [["Bob", "ada"], ["cyd", "dan"], ["eve"]]
    assert await names("limit=1&q=B") == [["Bob"] * 3]
    assert await names(f"{daily}&sort=spend_desc&limit=2") == [
        ["Bob", "dan"], ["ada", "cyd"], ["eve"]
    ]  # fmt: skip
    assert await names(f"{daily}&user_ids[]=zoe&user_ids[]=ada") == [["ada", "zoe"]]
    assert await names("period[]=weekly&period[]=daily&user_ids[]=ada") == [["ada", "ada"]]


async def test_the_sdk_manages_limits(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch)
    proxy = await start(start_proxy, path)
    async with AsyncAnthropic(base_url=proxy.url, api_key=WRITER, max_retries=0) as client:
        limits = client.beta.organization.spend_limits
        made = await limits.set(
            scope={"type": "user", "user_id": "ada"}, amount="50000", period="weekly"
        )
        assert (made.type, made.amount, made.period) == ("spend_limit", "50000", "weekly")
        assert made.created_at == made.updated_at
        assert await limits.retrieve(made.id) == made
        for number in range(4):
            await limits.set(scope={"type": "user", "user_id": f"u{number}"}, amount=None)
        found = [each async for each in limits.list(limit=2, scope_type=["user"])]
        assert [each.id for each in found[:1]] == [made.id]
        assert len(found) == 5
        await speak(raw, "ada")
        rows = [
            row
            async for row in limits.effective.list(
                limit=1, period=["weekly"], user_ids=["ada", "bob"]
            )
        ]
        assert [(row.amount, row.period_to_date_spend) for row in rows] == [
            ("50000", "3.704"),
            (None, "0"),
        ]
        assert (await limits.delete(made.id)).type == "spend_limit_deleted"
        with pytest.raises(NotFoundError, match="no spend limit with this id"):
            await limits.retrieve(made.id)


@given(st.lists(st.one_of(st.text(max_size=20), st.integers()), max_size=3))
def test_a_cursor_comes_back_as_it_was(key: list[str | int]) -> None:
    types = [type(part) for part in key]
    assert wire.cursor_key(wire.cursor(*key), *types) == key
    with pytest.raises(InvalidRequest):
        wire.cursor_key(wire.cursor(*key), *types, str)


# -- the trail of changes


async def test_each_change_is_written_down(
    start_proxy: StartProxy, path: Path, raw: OpenRaw
) -> None:
    await start(start_proxy, path)
    first = await set_limit(raw, ADA, "1")
    second = await set_limit(raw, ADA, "2")
    await call(raw, "DELETE", f"/{first['id']}")
    await send(raw, "DELETE", f"/{first['id']}")  # is not there: no change
    trail = await call(raw, "GET", "/audit")
    assert trail["has_more"] is False
    assert [
        (event["id"], event["action"], event["before"], event["after"]) for event in trail["data"]
    ] == [
        (3, "delete", second, None),
        (2, "set", first, second),
        (1, "set", None, first),
    ]
    for event in trail["data"]:
        assert event["type"] == "spend_limit_audit_event"
        assert event["actor"] == "admin-key:ops"
        assert event["spend_limit_id"] == first["id"]
        assert TIME.fullmatch(event["created_at"])
    assert (trail["first_id"], trail["last_id"]) == (3, 1)
    page = await call(raw, "GET", "/audit?limit=2")
    assert ([event["id"] for event in page["data"]], page["has_more"]) == ([3, 2], True)
    page = await call(raw, "GET", "/audit?limit=2&after_id=2")
    assert ([event["id"] for event in page["data"]], page["has_more"]) == ([1], False)
    with closing(sqlite3.connect(path)) as connection:
        assert WRITER not in "\n".join(connection.iterdump())


async def test_a_locked_file_changes_nothing_and_says_so(
    start_proxy: StartProxy, path: Path, raw: OpenRaw
) -> None:
    await start(start_proxy, path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = await send(raw, "POST", "", {"scope": ADA, "amount": "1"})
        other.execute("ROLLBACK")
    status, kind, text = error_of(refused)
    assert (status, kind) == (503, "overloaded_error")
    assert "nothing was changed" in text
    assert (await call(raw, "GET"))["data"] == []
    await set_limit(raw, ADA)


# -- the command line


def budgets(path: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if "TORNADO" not in key}
    if path is not None:
        environment["BUDGETS_DB"] = str(path)
    return subprocess.run(
        [sys.executable, "-m", "tornadoproxy", "budgets", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def table(path: Path, *arguments: str) -> list[list[str | None]]:
    """The rows of a list."""
    done = budgets(path, *arguments, "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [list(row.values()) for row in json.loads(done.stdout)]
    # the same, without what is missing, stands in a terminal
    words = budgets(path, *arguments).stdout.split()
    assert all(word in words for row in rows for cell in row for word in (cell or "").split())
    return rows


def test_a_cap_from_its_setting_to_its_end_by_command(path: Path) -> None:
    done = budgets(path, "set", "--everyone", "--period", "monthly", "--amount", "500")
    found = re.fullmatch(r"(spl_\w+): \$500\.00 monthly for everyone, each\n", done.stdout)
    assert found, done
    cap_id = found[1]
    options = ("--group", "team", "--shared", "--period", "daily", "--amount", "$12.5")
    assert "$12.50 daily for all together in group team" in budgets(path, "set", *options).stdout
    listed = table(path, "list")
    assert listed[0] == [cap_id, "everyone, each", "monthly", "$500.00", None]
    assert listed[1][1:] == ["all together in group team", "daily", "$12.50", "$0.00"]
    budgets(path, "set", "--everyone", "--period", "monthly", "--amount", "unlimited")
    assert f"removed {cap_id}: unlimited monthly" in budgets(path, "remove", cap_id).stdout
    trail = table(path, "audit", "--since", "1d")
    assert [(row[2], row[3], row[6], row[7]) for row in trail if row[3] == cap_id] == [
        ("delete", cap_id, "unlimited", None),
        ("set", cap_id, "$500.00", "unlimited"),
        ("set", cap_id, None, "$500.00"),
    ]
    assert all(str(row[1]).startswith("command-line") for row in trail)
    assert len(table(path, "audit", "--limit", "1")) == 1
    assert table(path, "audit", "--since", "2187-01-01") == []
    assert (path.stat().st_mode & 0o777) == 0o600


async def test_show_tells_what_is_left(
    start_proxy: StartProxy, path: Path, raw: OpenRaw, records: Records
) -> None:
    proxy = await start(start_proxy, path)
    await set_limit(raw, TEAM, "5", "weekly")
    await set_limit(raw, {**EVERYONE, "shared": True}, "4", "monthly")
    await set_limit(raw, {"type": "rbac_group", "rbac_group_id": "x", "shared": True}, "2")
    await speak(raw, "ada+team")
    await speak(raw, "bob", 1)
    await proxy.server.drain()
    rows = await asyncio.to_thread(table, path, "show", "ada")
    assert [row[:6] for row in rows] == [
        ["user ada", "daily", None, None, "$0.037037034", None],
        ["user ada", "weekly", "$0.05", "each in group team", "$0.037037034", "$0.012962966"],
        ["user ada", "monthly", None, None, "$0.037037034", None],
        ["everyone together", "monthly", "$0.04", "everyone together", "$0.049382712", "$0.00"],
    ]
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT00:00:00Z", str(row[6])) for row in rows)
    everybody = await asyncio.to_thread(table, path, "show")
    assert [row[0] for row in everybody[:6]] == ["user ada"] * 3 + ["user bob"] * 3
    assert len(everybody) == 8


def test_budgets_set_without_keys_warns(path: Path, tmp_path: Path) -> None:
    options = ("set", "--user", "ada", "--period", "daily", "--amount", "1")
    assert "counts as one and the same person, token" in budgets(path, *options).stderr
    assert budgets(path, *options, "--keys-db", str(tmp_path / "keys.db")).stderr == ""


async def test_budgets_without_keys_warn_at_start(
    start_proxy: StartProxy, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await start_proxy(BUDGETS_DB=path, KEYS_DB=path)
    assert caplog.text == ""
    await start_proxy(BUDGETS_DB=path)
    assert "BUDGETS_DB is set without KEYS_DB" in caplog.text


def test_no_name_gives_a_terminal_orders(path: Path) -> None:
    """An authenticator may vouch for any."""
    with (
        Database(path, storage.SCHEMA, name="budgets") as database,
        database.transaction() as connection,
    ):
        storage.save(connection, Batch(groups={"ada\x1b]0;root\x07\nbob": ()}))
    shown = budgets(path, "show").stdout
    assert "ada\\x1b]0;root\\x07\\nbob" in shown
    assert shown.replace("\n", "").isprintable()


def faults() -> Sequence[tuple[tuple[str, ...], str]]:
    amount = ("--period", "daily", "--amount", "1")
    return (
        (("set", *amount), "--everyone"),
        (("set", "--user", "ada", "--group", "team", *amount), "not allowed with"),
        (("set", "--user", "ada", "--shared", *amount), "not with --user"),
        (("set", "--user", "", *amount), "printable characters"),
        (("set", "--everyone", "--period", "yearly", "--amount", "1"), "daily, weekly, monthly"),
        (("set", "--everyone", "--period", "daily", "--amount", "-1"), "amount"),
        (("set", "--everyone", "--period", "daily", "--amount", "1.999"), "12.50"),
        (("remove", "spl_unknown"), "there is no cap with this id"),
        (("audit", "--limit", "0"), "whole number"),
        ((), "COMMAND"),
    )


@pytest.mark.parametrize(("arguments", "wanted"), faults())
def test_a_mistake_is_told_in_a_line(path: Path, arguments: tuple[str, ...], wanted: str) -> None:
    path.touch()
    done = budgets(path, *arguments)
    assert done.returncode == 2
    assert wanted in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_has_to_be_named_and_there(path: Path) -> None:
    done = budgets(None, "list")
    assert (done.returncode, "BUDGETS_DB is not set" in done.stderr) == (2, True)
    done = budgets(path, "list")
    assert (done.returncode, "is not there" in done.stderr) == (2, True)
    assert not path.exists()
    # as below a directory that may not be searched, but for root, too
    done = budgets(path.with_name("x" * 300), "list")
    assert (done.returncode, "failed in its command" in done.stderr) == (2, False)


async def test_key_is_asked_for_before_body(
    start_proxy: StartProxy, raw: OpenRaw, tmp_path: Path
) -> None:
    await start_proxy(BUDGETS_DB=tmp_path / "budgets.db", BUDGETS_ADMIN_KEY=WRITER)
    client = await raw()
    await client.send(request_bytes("POST", LIMITS, {"Content-Length": "9999"}, token="guess"))
    assert (await client.response()).status == 401

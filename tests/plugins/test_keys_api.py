"""The resource ``api_keys`` of the Admin API.

Source: https://platform.claude.com/docs/en/api/admin/api_keys.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sqlite3
import time
from contextlib import closing
from operator import attrgetter
from typing import Any

import pytest
from admin_api import AdminApi
from admin_sdk import Sdk
from budget_team import ADMIN
from people import MESSAGES, Document, follower_intervals, message, run_command, until
from postgres import sqlite_only
from scene import Scene
from tornadoproxy_keys import KEYS_DB, Keys, store
from tornadoproxy_keys.store import UsageRow

from tornadoproxy import DatabaseLocation, Follower
from tornadoproxy.testing import RawResponse

pytest_plugins = ("admin_sdk",)

OTHER = "another-admin-key-of-more-than-32-characters"
KEY = re.compile(r"tp-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
FUTURE, PAST = "2999-01-01T00:00:00Z", "2001-01-01T00:00:00+01:00"


class KeysApi(AdminApi):
    async def create(self, name: str = "ada", **fields: object) -> Any:
        return await self.call("POST", document={"name": name, **fields})

    async def update(self, id_: str, **fields: object) -> Any:
        return await self.call("POST", f"/api_keys/{id_}", fields)

    async def status_of(self, key: str) -> int:
        """Return the status of a request for a message with this key."""
        return (await self.request(MESSAGES, message(), token=key)).status

    def run(self, *arguments: str) -> str:
        """Return the output of the command ``keys``, run while the proxy runs."""
        process = run_command(Keys(), {KEYS_DB: self.where}, *arguments)
        assert process.returncode == 0, process.stderr
        return process.stdout

    def change(self, statement: str, *values: object) -> None:
        with store.database(self.where) as database, database.transaction() as connection:
            connection.execute(statement, values)


@pytest.fixture
def api(scene: Scene, where: DatabaseLocation) -> KeysApi:
    keys = f"ops={ADMIN} other={OTHER}"
    return KeysApi(scene, where, "/api_keys", KEYS_DB=where, ADMIN_KEY=keys)


async def test_created_key_is_accepted_and_shown_once(api: KeysApi) -> None:
    await api.start()
    made = await api.create(groups=["team", "team"], models=["claude-*"], concurrency=3)
    key = made.pop("key")
    assert (found := KEY.fullmatch(key))
    assert made == {
        "type": "api_key",
        "id": found[1],
        "name": "ada",
        "status": "active",
        "created_at": made["created_at"],
        "created_by": None,
        "expires_at": None,
        "archived_at": None,
        "partial_key_hint": f"tp-{found[1]}-...",
        "principal": {"type": "user_actor", "user_id": "ada"},
        "scope": {"type": "organization"},
        "workspace_id": None,
        "groups": ["team"],
        "models": ["claude-*"],
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "concurrency": 3,
        "last_used_at": None,
    }
    assert await api.call("GET", f"/api_keys/{made['id']}") == made
    assert await api.status_of(key) == 200, "at once, in this proxy"
    events = await api.call("GET", "/audit_events")
    assert key[16:] not in json.dumps([events, await api.call()])
    (event,) = events["data"]
    assert (event["actor"], event["action"], event["before"]) == ("admin-key:ops", "create", None)
    assert event["after"] == {name: made[name] for name in made if name != "last_used_at"}


async def test_updated_key_has_its_new_fields(api: KeysApi) -> None:
    await api.start()
    made = await api.create(tokens_per_minute=7)
    key, id_ = made["key"], made["id"]
    changed = await api.update(id_, name="Ada L.", groups=["x"], expires_at=FUTURE, models=["no-*"])
    assert (changed["name"], changed["groups"], changed["models"]) == ("Ada L.", ["x"], ["no-*"])
    assert (changed["principal"]["user_id"], changed["tokens_per_minute"]) == ("Ada L.", 7)
    assert changed["expires_at"] == "2999-01-01T00:00:00.000Z"
    assert await api.status_of(key) == 403, "a model that it may not use"
    restored = await api.update(
        id_, models=None, tokens_per_minute=None, expires_at=None, name=None
    )
    assert (restored["models"], restored["tokens_per_minute"], restored["expires_at"]) == (
        [],
        None,
        None,
    )
    assert restored["name"] == "Ada L.", "a name that is null stays, as in Anthropic's API"
    assert await api.status_of(key) == 200
    while not (found := [each for each in api.records.all if each.principal == "Ada L."]):
        await api.records.finished(len(api.records.all) + 1)
    assert found[0].groups == ("x",)
    await api.update(id_)
    actions = [each["action"] for each in (await api.call("GET", "/audit_events"))["data"]]
    assert actions == ["update", "update", "create"], "an update without a change is none"


async def test_status_of_a_key_decides_whether_it_is_accepted(api: KeysApi) -> None:
    await api.start()
    made = await api.create()
    id_, key = made["id"], made["key"]
    for status, response in (
        ("inactive", 401),
        ("active", 200),
        ("archived", 401),
        ("archived", 401),
    ):
        assert (await api.update(id_, status=status))["status"] == status
        assert await api.status_of(key) == response
    for status in ("active", "inactive"):
        refused = await api.fault("POST", f"/api_keys/{id_}", {"status": status})
        assert refused[:2] == (400, "invalid_request_error")
        assert "stays archived" in refused[2]
    assert (await api.call("GET", f"/api_keys/{id_}"))["archived_at"]


async def test_name_of_an_active_or_inactive_key_is_taken(api: KeysApi) -> None:
    await api.start(AUTH_TOKEN="x" * 32)
    ada, bob = await api.create("ada"), await api.create("bob")
    await api.update(ada["id"], status="inactive")
    for path, fields in (
        ("/api_keys", {"name": "ada"}),
        (f"/api_keys/{bob['id']}", {"name": "ada"}),
    ):
        status, kind, text = await api.fault("POST", path, fields)
        assert (status, kind) == (409, "invalid_request_error")
        assert ada["id"] in text
    await api.update(ada["id"], status="archived")
    await api.create("ada")
    for path in ("/api_keys", f"/api_keys/{bob['id']}"):
        assert (
            "of the clients with AUTH_TOKEN"
            in (await api.fault("POST", path, {"name": "token"}))[2]
        )


INVALID: list[tuple[Document, str]] = [
    ({}, "name"),
    ({"name": None}, "name"),
    *(({"name": name}, "name") for name in ("", " a", "a\n", "a" * 101, 7)),
    *(({"groups": value}, "groups") for value in ("team", [7], [""], ["a"] * 21)),
    ({"models": ["claude-*", " "]}, "models"),
    *(({"concurrency": value}, "concurrency") for value in (0, -1, True, 1.5, "1", 10**12)),
    *(({"expires_at": value}, "expires_at") for value in (PAST, "tomorrow", 7, "2999-01-01")),
    ({"expires_at": "9999-12-31T23:59:59-14:00"}, "expires_at"),
    ({"status": "active"}, "status: unknown field"),
    ({"nmae": "ada"}, "nmae: unknown field"),
]


async def test_invalid_field_is_refused(api: KeysApi, subtests: pytest.Subtests) -> None:
    await api.start()
    for document, field in INVALID:
        with subtests.test(document=document):
            named = document if "name" in document or not document else {"name": "ada", **document}
            status, kind, text = await api.fault("POST", None, named)
            assert (status, kind) == (400, "invalid_request_error")
            assert text.startswith(field)
            assert (await api.call())["data"] == []


async def test_rotated_key_has_a_new_secret(api: KeysApi) -> None:
    await api.start()
    made = await api.create()
    rotate = f"/api_keys/{made['id']}/rotate"
    second = await api.call("POST", rotate, {"grace_seconds": 60})
    assert second["id"] == made["id"]
    third = await api.call("POST", rotate)
    keys = [each["key"] for each in (made, second, third)]
    assert [await api.status_of(key) for key in keys] == [401, 401, 200]
    for fields in ({"grace_seconds": -1}, {"grace_seconds": True}, {"grace": 1}):
        assert (await api.fault("POST", rotate, fields))[0] == 400
    await api.update(made["id"], status="inactive")
    assert "only an active one" in (await api.fault("POST", rotate))[2]
    for path in ("/api_keys/nobody/rotate", "/api_keys/nobody"):
        assert (await api.fault("POST", path))[:2] == (404, "not_found_error")
    assert (await api.fault("GET", "/api_keys/nobody"))[0] == 404


async def test_repeated_creation_gives_the_same_key(api: KeysApi) -> None:
    await api.start()
    once = {"Idempotency-Key": "b7c1e6a2-once"}
    wanted = {"name": "ada"}
    first, *others = await asyncio.gather(
        *(api.call("POST", document=wanted, **once) for _ in range(5))
    )
    assert all(other == first for other in others)
    assert await api.status_of(first["key"]) == 200
    assert len((await api.call())["data"]) == 1
    refused = await api.fault("POST", None, {"name": "bob"}, **once)
    assert refused[:2] == (409, "invalid_request_error")
    assert "Idempotency-Key" in refused[2]
    assert (await api.fault("POST", None, wanted, **once, key=OTHER))[0] == 409, "another's is new"
    rotate = f"/api_keys/{first['id']}/rotate"
    again = {"Idempotency-Key": "b7c1e6a2-again"}
    rotated = await api.call("POST", rotate, **again)
    assert (await api.call("POST", rotate, **again))["key"] == rotated["key"] != first["key"]
    assert (await api.call("POST", document=wanted, **once))["key"] is None, "it was replaced"
    assert len((await api.call("GET", "/audit_events"))["data"]) == 2
    api.change("UPDATE api_key_trail SET time = ?", time.time() - 86_401)
    assert (await api.fault("POST", None, wanted, **once))[0] == 409, "forgotten: the name is taken"
    assert (await api.fault("POST", None, wanted, idempotency_key="k" * 256))[0] == 400


@sqlite_only
async def test_database_holds_no_secret(api: KeysApi) -> None:
    await api.start()
    once = {"Idempotency-Key": "b7c1e6a2-once"}
    made = await api.call("POST", document={"name": "ada"}, **once)
    secret = made["key"].rpartition(f"{made['id']}-")[2]
    with closing(sqlite3.connect(api.path)) as connection:
        content = "\n".join(connection.iterdump())
    raw = base64.urlsafe_b64decode(secret + "=").hex().upper()
    for each in (secret, raw, once["Idempotency-Key"], ADMIN):
        assert each not in content
    assert made["id"] in content


@follower_intervals
async def test_change_at_one_proxy_reaches_another(
    interval: float, api: KeysApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Follower, "INTERVAL", interval)
    first = await api.start()
    await api.start()  # requests go to this one from now on
    made = await api.create()

    async def ask() -> RawResponse:
        return await api.request(MESSAGES, message(), token=made["key"], to=first)

    await until(200, ask)
    await api.update(made["id"], status="inactive")
    await until(401, ask)


async def test_change_of_a_changed_key_is_refused(api: KeysApi) -> None:
    await api.start()
    made = await api.create()
    path = f"/api_keys/{made['id']}"
    tag = (await api.send("GET", path)).header("etag") or ""
    assert (await api.send("POST", path, {"concurrency": 2}, if_match=tag)).status == 200
    for target, fields in ((path, {"concurrency": 3}), (f"{path}/rotate", None)):
        assert (await api.fault("POST", target, fields, if_match=tag))[0] == 412
    assert (await api.call("GET", path))["concurrency"] == 2


async def test_command_and_api_change_the_same_keys(api: KeysApi) -> None:
    await api.start()
    made = await api.create("ada")
    made_by_command = KEY.fullmatch(api.run("create", "--name", "bob").strip())
    assert made_by_command
    assert {each["name"] for each in (await api.call())["data"]} == {"ada", "bob"}
    assert '"state": "live"' in api.run("list", "--format", "json")
    api.run("revoke", "ada")
    assert (await api.call("GET", f"/api_keys/{made['id']}"))["status"] == "archived"
    await api.update(made_by_command[1], status="inactive")
    assert '"state": "disabled"' in api.run("list", "--format", "json")
    events = (await api.call("GET", "/audit_events"))["data"]
    assert [(each["action"], each["actor"].partition(":")[0]) for each in events] == [
        ("update", "admin-key"),
        ("update", "command-line"),
        ("create", "command-line"),
        ("create", "admin-key"),
    ]


async def test_command_shows_the_audit_trail(api: KeysApi) -> None:
    await api.start()
    made = await api.create("ada")
    await api.update(made["id"], status="archived")
    api.run("create", "--name", "bob")
    shown = json.loads(api.run("audit", "--format", "json"))
    assert [(each["action"], each["name"], each["status"]) for each in shown] == [
        ("create", "bob", "active"),
        ("update", "ada", "archived"),
        ("create", "ada", "active"),
    ]
    assert shown[1]["actor"] == "admin-key:ops"
    assert shown[1]["id"] == made["id"]
    assert len(json.loads(api.run("audit", "--limit", "1", "--format", "json"))) == 1


async def test_concurrent_commands_and_requests_lose_no_change(api: KeysApi) -> None:
    await api.start()
    names = [f"n{number}" for number in range(8)]

    async def by_command(name: str) -> None:
        await asyncio.to_thread(api.run, "create", "--name", f"c{name}")

    api.run("create", "--name", "first")
    created = [
        task
        for name in names
        for task in (api.create(name), api.create(name="same", groups=[name]))
    ]
    results = await asyncio.gather(*created, by_command("1"), return_exceptions=True)
    assert sum(isinstance(result, AssertionError) for result in results) == len(names) - 1
    listed = [each["name"] for each in (await api.call())["data"]]
    assert sorted(listed) == sorted([*names, "same", "first", "c1"])
    assert len((await api.call("GET", "/audit_events"))["data"]) == len(listed)


async def test_keys_are_listed_in_pages_and_by_status(api: KeysApi) -> None:
    await api.start()
    ids = [(await api.create(f"n{number}"))["id"] for number in range(5)]
    for number, id_ in enumerate(ids):
        api.change("UPDATE api_key SET created = ? WHERE id = ?", 100 + number // 2, id_)
    ids = [each["id"] for each in (await api.call())["data"]]

    async def listed(query: str) -> tuple[list[str], bool]:
        document = await api.call("GET", f"/api_keys?{query}")
        found = [each["id"] for each in document["data"]]
        ends = (found[0], found[-1]) if found else (None, None)
        assert (document["first_id"], document["last_id"]) == ends
        return found, document["has_more"]

    assert await listed("limit=5") == (ids, False)
    assert await listed("limit=2") == (ids[:2], True)
    assert await listed(f"limit=2&after_id={ids[1]}") == (ids[2:4], True)
    assert await listed(f"after_id={ids[4]}") == ([], False)
    assert await listed(f"limit=2&before_id={ids[3]}") == (ids[1:3], True)
    assert await listed(f"limit=3&before_id={ids[3]}") == (ids[:3], False)
    page = (await api.call("GET", "/api_keys?limit=3"))["next_page"]
    assert await listed(f"limit=3&page={page}") == (ids[3:], False)
    assert (await api.fault("GET", "/api_keys?after_id=nobody"))[0] == 400

    await api.update(ids[0], status="inactive")
    await api.update(ids[1], status="archived")
    api.change("UPDATE api_key SET expires = 7 WHERE id = ?", ids[2])
    for status, found in (
        ("active", ids[3:]),
        ("inactive", ids[:1]),
        ("archived", ids[1:2]),
        ("expired", ids[2:3]),
    ):
        assert (await listed(f"status={status}"))[0] == found
        for id_ in found:
            assert (await api.call("GET", f"/api_keys/{id_}"))["status"] == status
    name = (await api.call("GET", f"/api_keys/{ids[3]}"))["name"]
    assert (await listed(f"name={name}"))[0] == [ids[3]]
    for query in ("workspace_id=wrkspc_1", "created_by_user_id=user_1"):
        assert await listed(query) == ([], False)
    assert (await api.fault("GET", "/api_keys?status=deleted"))[0] == 400


async def test_last_use_of_a_key_is_shown(api: KeysApi) -> None:
    await api.start()
    made = await api.create()
    row = UsageRow(made["id"], "2026-11-30", 1, 1, 1, 0, 0, 0, 0, 1_796_000_040)  # to the minute
    with store.database(api.where) as database, database.transaction() as connection:
        store.add_usage([row], connection)
    (listed,) = (await api.call())["data"]
    one = await api.call("GET", f"/api_keys/{made['id']}")
    assert listed["last_used_at"] == one["last_used_at"] == "2026-11-30T00:54:00.000Z"


@pytest.mark.parametrize("resource", ["organization", "beta.organization"])
async def test_sdk_manages_keys(resource: str, api: KeysApi, sdk: Sdk) -> None:
    keys = attrgetter(f"{resource}.api_keys")
    url = (await api.start()).url
    ids = sorted([(await api.create(f"n{number}"))["id"] for number in range(5)])
    api.change("UPDATE api_key SET created = 100")
    found = await sdk(url, lambda client: keys(client).list(limit=2))
    assert [each.id for each in found] == ids
    back = await sdk(url, lambda client: keys(client).list(before_id=ids[3], limit=2))
    assert {each.id for each in back} == set(ids[:3])
    one = await sdk(url, lambda client: keys(client).retrieve(ids[0]))
    assert (one.id, one.status) == (ids[0], "active")
    updated = await sdk(
        url, lambda client: keys(client).update(ids[0], name="eve", status="inactive")
    )
    assert (updated.name, updated.status) == ("eve", "inactive")
    inactive = await sdk(url, lambda client: keys(client).list(status="inactive"))
    assert [each.id for each in inactive] == ids[:1]


async def test_sdk_creates_a_key_once(api: KeysApi, sdk: Sdk) -> None:
    """The SDK has no method for this extension; it posts it, with a key for repetitions."""
    url = (await api.start()).url

    def create(client: Any) -> Any:
        once = {"headers": {"Idempotency-Key": "once"}}
        path = "/v1/organizations/api_keys"
        return client.post(path, body={"name": "zoe"}, cast_to=object, options=once)

    made = await sdk(url, create, checked=False)
    assert KEY.fullmatch(made["key"])
    assert await sdk(url, create, checked=False) == made

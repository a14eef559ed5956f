"""The plugin keys in a running proxy: authentication, limits, and an unusable database."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any

import pytest
from people import (
    CHAT,
    MESSAGES,
    RESPONSES,
    Document,
    Held,
    Served,
    error_of,
    locked,
    message,
    pause,
    response,
    until,
)
from postgres import sqlite_only
from scene import Scene
from tornadoproxy_keys import KEYS_DB, Keys, changes, store
from tornadoproxy_keys.changes import By
from tornadoproxy_keys.store import Limits, UsageRow

from tornadoproxy import (
    ConfigurationError,
    DatabaseConnection,
    DatabaseLocation,
    Follower,
    Settings,
)
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    Proxy,
    RawResponse,
    json_response,
    message_document,
    request_bytes,
)


class Keyed(Served):
    """A proxy with a keys database, its keys, and what surrounds it."""

    async def start(self, **given: Any) -> Proxy:
        return await self.start_proxy(**{"KEYS_DB": self.where, **given})

    @contextmanager
    def database(self) -> Iterator[DatabaseConnection]:
        """Open a transaction in the way that a command does."""
        database = store.database(self.where)
        with database, database.transaction() as connection:
            yield connection

    def create(
        self,
        name: str = "ada",
        limits: Limits | None = None,
        *,
        groups: tuple[str, ...] = (),
        expires: int | None = None,
    ) -> str:
        with self.database() as connection:
            now = int(time.time())
            given = (name, groups, limits or Limits(), expires, now)
            return changes.create(connection, *given, By("test"))[1]

    def revoke(self, name: str = "ada") -> None:
        with self.database() as connection:
            changes.revoke(connection, name, int(time.time()), By("test"))

    def rotate(self, name: str = "ada", *, grace: int = 0) -> str:
        with self.database() as connection:
            return changes.rotate(connection, name, grace, int(time.time()), By("test"))[1]

    def usage(self) -> UsageRow:
        """Return the usage of the only key that has been used."""
        with self.database() as connection:
            (row,) = store.read_usage(connection, "2000-01-01")
        return row

    async def get(self, *keys: str, target: str = "/v1/models") -> RawResponse:
        """Send a GET with these lines of ``x-api-key``."""
        headers = [("X-Api-Key", key) for key in keys]
        return await self.request(target, headers=headers, token=None)

    async def ask(
        self, key: str, target: str = MESSAGES, document: Document | None = None
    ) -> RawResponse:
        return await self.request(target, document or message(), token=key)

    async def until(self, status: int, key: str) -> RawResponse:
        return await until(status, lambda: self.get(key))


@pytest.fixture
def keyed(scene: Scene, where: DatabaseLocation) -> Keyed:
    return Keyed(scene, where)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the database often, and rely on memory for a short time only."""
    monkeypatch.setattr(Follower, "INTERVAL", 0.02)
    monkeypatch.setattr(Follower, "MAX_UNVERIFIED", 0.3)


# Authentication


async def test_rejected_key_says_why(keyed: Keyed) -> None:
    revoked = keyed.create("bob")
    keyed.revoke("bob")
    expired = keyed.create("cy", expires=1_700_000_000)
    replaced = keyed.create("dee")
    keyed.rotate("dee")
    live = keyed.create("eve")
    await keyed.start()
    for key, reason in (
        (revoked, "revoked at 2"),
        (expired, "expired at 2023-11-14T22:13:20Z"),
        (replaced, "replaced and expired at 2"),
        (f"{live}x", "unknown"),
        (live[:-1], "unknown"),
        ("tp-", "unknown"),
    ):
        response = await keyed.get(key)
        assert response.status == 401
        assert response.header("www-authenticate") == "Bearer"
        text = error_of(response)["message"]
        assert reason in text
        assert not any(name in text for name in ("bob", "cy", "dee", "eve"))
        assert key == "tp-" or key not in text
    assert keyed.upstream.requests == []


async def test_one_valid_credential_in_either_header_suffices(keyed: Keyed) -> None:
    revoked = keyed.create("bob")
    keyed.revoke("bob")
    live = keyed.create(groups=("engines", "london"))
    await keyed.start()
    assert (await keyed.ask(live)).status == 200, "as Authorization"
    assert (await keyed.records.finished()).groups == ("engines", "london")
    (sent,) = keyed.upstream.requests
    assert sent.all("x-api-key") == [TEST_UPSTREAM_KEY]
    assert live.encode() not in sent.raw_head
    for keys, principal in (
        ((live,), "ada"),
        (("a-dummy", live), "ada"),
        ((revoked, live), "ada"),
        ((revoked, TEST_TOKEN), "token"),
        ((revoked, "a-dummy"), None),
        ((), None),
    ):
        finished = len(keyed.records.all)
        assert (await keyed.get(*keys)).status == (401 if principal is None else 200)
        assert (await keyed.records.finished(finished + 1)).principal == principal


@pytest.mark.parametrize(
    "variables", [{"DISABLED_PLUGINS": "token"}, {"ALLOW_ANONYMOUS": 1}], ids=str
)
async def test_without_a_token_only_keys_are_accepted(
    variables: dict[str, Any], keyed: Keyed
) -> None:
    key = keyed.create()
    proxy = await keyed.start(AUTH_TOKEN=None, HOST="0.0.0.0", **variables)
    assert not [line for _, line in proxy.lines if "ANYONE" in line and "ALLOW" not in line]
    for keys in ((), ("",), ("anything", "tp-wrong")):
        for target in ("/v1/models", "/elsewhere", "/openai/v1/models"):
            response = await keyed.get(*keys, target=target)
            assert response.status == 401
            assert response.header("www-authenticate") == "Bearer"
            message = error_of(response)["message"]
            assert message.startswith("No credential was sent") != any(keys)
    for target in (MESSAGES, CHAT):
        assert (await keyed.ask("anything", target)).status == 401
    assert keyed.upstream.requests == []
    assert (await keyed.get(key)).status == 200


async def test_key_named_like_the_token_is_rejected_beside_it(keyed: Keyed) -> None:
    key = keyed.create("token")
    proxy = await keyed.start(AUTH_TOKEN=None)
    assert (await keyed.get(key)).status == 200
    proxy.reload(AUTH_TOKEN=TEST_TOKEN)
    response = await keyed.get(key)
    assert response.status == 401
    assert "the name of the clients with AUTH_TOKEN" in error_of(response)["message"]


# Settings


@sqlite_only
def test_configure_says_which_clients_enter_and_writes_nothing(keyed: Keyed) -> None:
    settings = Settings.defaults(KEYS_DB).replace({KEYS_DB: keyed.path})
    line = str(Keys().configure(settings))
    assert line.startswith(f"no keys in {keyed.path} yet; create one with `")
    assert re.search(rf" -m tornadoproxy keys create --name ada --keys-db {keyed.path}`$", line)
    assert not keyed.path.exists()
    keyed.create()
    assert Keys().configure(settings) == f"clients with a key in {keyed.path}"
    keyed.revoke()
    assert "no keys" in str(Keys().configure(settings))


@sqlite_only
async def test_corrupt_database_ends_the_start(keyed: Keyed) -> None:
    content = b"SQLite format 3\0" + b"x" * 5000
    keyed.path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"plugin\.db.*cannot be used"):
        await keyed.start()
    assert keyed.path.read_bytes() == content


# Limits


async def test_request_for_other_models_is_rejected(keyed: Keyed) -> None:
    key = keyed.create("ada", Limits(models=("claude-sonnet-*",)))
    await keyed.start()
    advised = message(tools=[{"type": "advisor_20260301", "model": "claude-opus-5-5"}])
    for target, document in ((MESSAGES, advised), ("/v1/messages/batches?beta=true", {"x": 1})):
        response = await keyed.ask(key, target, document)
        assert response.status == 403
        assert error_of(response)["message"].startswith("This key is for the model claude-sonnet-*")
    assert keyed.upstream.requests == []


async def test_models_of_a_key_hold_for_responses(keyed: Keyed) -> None:
    key = keyed.create("ada", Limits(models=("claude-sonnet-*",)))
    await keyed.start()
    created = await keyed.ask(key, RESPONSES, response())
    assert created.status == 200
    path = f"{RESPONSES}/{json.loads(created.body)['id']}"
    assert (await keyed.get(key, target=path)).status == 200
    assert (await keyed.ask(key, f"{RESPONSES}/input_tokens", response())).status == 200
    refused = await keyed.ask(key, f"{path}/cancel", {})
    assert (refused.status, error_of(refused)["type"]) == (400, "invalid_request_error")
    for target in (RESPONSES, f"{RESPONSES}/compact"):
        refused = await keyed.ask(key, target, response(model="claude-opus-5-5"))
        assert (refused.status, error_of(refused)["type"]) == (403, "permission_error")


async def test_parallel_requests_enter_up_to_the_limit(keyed: Keyed) -> None:
    key = keyed.create("ada", Limits(requests_per_minute=7))
    other = keyed.create("bob", Limits(requests_per_minute=7))
    await keyed.start()
    statuses = [each.status for each in await asyncio.gather(*(keyed.ask(key) for _ in range(15)))]
    assert (statuses.count(429), len(keyed.upstream.requests)) == (8, 7)
    refused = await keyed.ask(key, CHAT)
    error = error_of(refused)
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "reached its limit of 7 requests a minute" in error["message"]
    assert 1 <= int(refused.header("retry-after") or 0) <= 60
    assert (await keyed.ask(other)).status == 200


async def test_tokens_count_when_a_response_ends(keyed: Keyed) -> None:
    key = keyed.create("ada", Limits(tokens_per_minute=100))
    await keyed.start()
    usage = {"input_tokens": 60, "output_tokens": 40}
    keyed.upstream.script(json_response(message_document("Hi", usage=usage)))
    assert [(await keyed.ask(key)).status for _ in range(2)] == [200, 429]


async def test_parallel_requests_run_up_to_the_limit(keyed: Keyed) -> None:
    key = keyed.create("ada", Limits(concurrency=3))
    await keyed.start()
    held = Held(json_response({}))
    keyed.upstream.script(*[held] * 3)
    asking = [asyncio.ensure_future(keyed.ask(key)) for _ in range(8)]
    for refused in islice(asyncio.as_completed(asking), 5):
        response = await refused
        assert (response.status, error_of(response)["type"]) == (429, "rate_limit_error")
        assert "3 requests at once" in error_of(response)["message"]
        assert response.header("retry-after") == "1"
    await keyed.upstream.received(3)
    held.released.set()
    statuses = sorted(response.status for response in await asyncio.gather(*asking))
    assert statuses == [200] * 3 + [429] * 5
    assert (await keyed.ask(key)).status == 200


@pytest.mark.parametrize(
    ("target", "limits"),
    [(MESSAGES, Limits(concurrency=2)), ("/v1/files", Limits(requests_per_minute=2))],
)
async def test_slow_bodies_count_against_the_limits(
    target: str, limits: Limits, keyed: Keyed
) -> None:
    key = keyed.create("ada", limits)
    await keyed.start()
    slow = request_bytes("POST", target, body=b"{}", token=key)[:-1]
    clients = [await keyed.raw() for _ in range(3)]
    for client in clients:
        await client.send(slow)
    responses = [asyncio.ensure_future(client.response()) for client in clients]
    refused, slow_ones = await asyncio.wait(responses, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result().status for task in refused] == [429]
    for task in slow_ones:
        task.cancel()


async def test_limits_of_a_key_do_not_apply_to_the_token(keyed: Keyed) -> None:
    keyed.create("token", Limits(("claude-haiku-*",), 1, 1, 1))
    await keyed.start()
    assert [(await keyed.ask(TEST_TOKEN)).status for _ in range(3)] == [200] * 3


# Changes while the proxy runs


@pytest.mark.usefixtures("quick")
async def test_changed_keys_apply_without_a_restart(keyed: Keyed) -> None:
    await keyed.start(AUTH_TOKEN=None)
    key = keyed.create()
    await keyed.until(200, key)
    new = keyed.rotate(grace=3600)
    await keyed.until(200, new)
    assert (await keyed.get(key)).status == 200, "for the grace time"
    newest = keyed.rotate()
    assert "replaced" in error_of(await keyed.until(401, new))["message"]
    assert "replaced" in error_of(await keyed.get(key))["message"]
    held = Held(json_response({}))
    keyed.upstream.script(held)
    connection = await keyed.begin(newest)
    keyed.revoke()
    assert "revoked" in error_of(await keyed.until(401, newest))["message"]
    held.released.set()
    assert (await connection.response()).status == 200, "a request in flight goes on"


# An unusable database


@sqlite_only
@pytest.mark.usefixtures("quick")
async def test_lost_database_rejects_keys_until_it_is_back(
    keyed: Keyed, caplog: pytest.LogCaptureFixture
) -> None:
    key = keyed.create()
    await keyed.start()
    away = keyed.path.with_name("away.db")
    keyed.path.rename(away)
    assert (await keyed.get(key)).status == 200, "the last check is recent"
    response = await keyed.until(503, key)
    assert error_of(response)["type"] == "overloaded_error"
    assert response.header("retry-after") is not None
    assert (await keyed.get(TEST_TOKEN)).status == 200

    def logged() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.name == Follower.__module__]

    while not logged():
        await keyed.get(key)
        await pause()
    assert re.match("rejecting all keys: .*it was deleted or moved", logged()[0])
    await asyncio.sleep(5 * Follower.INTERVAL)  # during which nothing more is logged
    away.rename(keyed.path)
    await keyed.until(200, key)
    assert len(logged()) == 2
    assert "accepting keys again" in logged()[1]


@sqlite_only
@pytest.mark.usefixtures("quick")
async def test_broken_table_rejects_keys(keyed: Keyed) -> None:
    key = keyed.create()
    await keyed.start()
    with closing(sqlite3.connect(keyed.path, isolation_level=None)) as connection:
        connection.execute("UPDATE api_key SET group_names = 'not JSON'")
        await keyed.until(503, key)
        connection.execute("UPDATE api_key SET group_names = '[]'")
    await keyed.until(200, key)


@sqlite_only
@pytest.mark.usefixtures("quick")
async def test_long_lock_rejects_keys_and_loses_no_usage(keyed: Keyed) -> None:
    key = keyed.create()
    proxy = await keyed.start()
    with locked(keyed.path):
        assert (await keyed.ask(key)).status == 200, "no request waits for the lock"
        await keyed.until(503, key)
    await keyed.until(200, key)
    await proxy.server.drain()
    used = [record for record in keyed.records.all if record.principal == "ada"]
    row = keyed.usage()
    assert (row.key_id, row.requests) == (key.split("-")[1], len(used))
    assert (row.input_tokens, row.cost) == (used[0].usage.input_tokens, used[0].cost)

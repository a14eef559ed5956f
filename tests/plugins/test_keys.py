"""The plugin keys: authentication, beside other plugins and with an unusable database."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from people import CHAT, MESSAGES, Held, error_of, locked
from tornadoproxy_keys import KEYS_DB, Keys, gate, store
from tornadoproxy_keys.usage_count import UsageCount

from tornadoproxy import ConfigurationError, Settings, Usage
from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY, json_response, request_record

if TYPE_CHECKING:
    from keyed import Keyed


pytest_plugins = ("keyed",)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the database often, and rely on memory for a short time only."""
    monkeypatch.setattr(gate, "REFRESH", 0.02)
    monkeypatch.setattr(gate, "MAX_UNVERIFIED", 0.3)


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
    await keyed.start()
    response = await keyed.get(key)
    assert response.status == 401
    assert "the name of the clients with AUTH_TOKEN" in error_of(response)["message"]
    await keyed.start(AUTH_TOKEN=None)
    assert (await keyed.get(key)).status == 200


# Settings


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


async def test_corrupt_database_ends_the_start(keyed: Keyed) -> None:
    content = b"SQLite format 3\0" + b"x" * 5000
    keyed.path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"keys\.db.*cannot be used"):
        await keyed.start()
    assert keyed.path.read_bytes() == content


# Changes while the proxy runs


@pytest.mark.usefixtures("quick")
async def test_changed_keys_apply_without_a_restart(keyed: Keyed) -> None:
    await keyed.start(AUTH_TOKEN=None)
    key = keyed.create()
    assert (await keyed.get(key)).status == 401
    await keyed.until(200, key)
    new = keyed.rotate(grace=3600)
    await keyed.until(200, new)
    assert (await keyed.get(key)).status == 200, "for the grace time"
    newest = keyed.rotate()
    assert "replaced" in error_of(await keyed.until(401, new))["message"]
    assert "replaced" in error_of(await keyed.get(key))["message"]
    held = Held(json_response({}))
    keyed.upstream.script(held)
    connection = await keyed.send(newest)
    await keyed.upstream.received(len(keyed.upstream.requests) + 1)
    keyed.revoke()
    assert "revoked" in error_of(await keyed.until(401, newest))["message"]
    held.released.set()
    assert (await connection.response()).status == 200, "a request in flight goes on"


@pytest.mark.usefixtures("quick")
async def test_only_hashes_are_stored_and_nothing_is_logged(
    keyed: Keyed, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    await keyed.start()
    first = keyed.create()
    second = keyed.rotate(grace=3600)
    await keyed.until(200, second)
    await keyed.get(first + "x")
    secrets = [key.split("-", 2)[2] for key in (first, second)]
    files = {file.name: file.read_bytes() for file in keyed.path.parent.iterdir()}
    assert files.keys() >= {"keys.db", "keys.db-wal"}
    stored = b"".join(files.values())
    assert not any(secret.encode() in stored for secret in secrets)
    assert store.hashed(second.encode()) in stored
    assert not any(secret in caplog.text for secret in secrets)


# An unusable database


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
        return [each.getMessage() for each in caplog.records if each.name == gate.__name__]

    while not logged():
        await keyed.get(key)
    assert re.match("rejecting all keys: .*it was deleted or moved", logged()[0])
    away.rename(keyed.path)
    await keyed.until(200, key)
    assert len(logged()) == 2
    assert "accepting keys again" in logged()[1]


@pytest.mark.usefixtures("quick")
async def test_broken_table_rejects_keys(keyed: Keyed) -> None:
    key = keyed.create()
    await keyed.start()
    with closing(sqlite3.connect(keyed.path, isolation_level=None)) as connection:
        connection.execute("UPDATE api_key SET group_names = 'not JSON'")
        await keyed.until(503, key)
        connection.execute("UPDATE api_key SET group_names = '[]'")
    await keyed.until(200, key)


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


def test_usage_without_a_price_is_counted() -> None:
    count = UsageCount()
    for usage in (Usage(), Usage(partial=True), Usage(1), Usage(None, 2, 3, 4)):
        count.add("k", request_record(usage=usage, time=90_000.0))
    count.add("k", request_record(usage=Usage(1), cost=7, time=86_399.0))
    today, before = count.take()
    assert (today.day, today.requests, today.unpriced, today.cost) == ("1970-01-02", 4, 3, 0)
    assert (today.input_tokens, today.output_tokens) == (1, 2)
    assert (today.cache_read_input_tokens, today.cache_creation_input_tokens) == (3, 4)
    assert (before.day, before.requests, before.cost, before.last_used) == (
        *("1970-01-01", 1, 7),
        86_340,
    )
    assert count.take() == []

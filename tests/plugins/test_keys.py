"""The keys plugin: who enters, beside whom, and what happens when its file cannot be used."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sqlite3
import subprocess
import time
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from anthropic import AsyncAnthropic, AuthenticationError
from openai import AsyncOpenAI
from openai import AuthenticationError as OpenAIAuthenticationError
from tornadoproxy_keys import KEYS_DB, Keys, gate, store
from tornadoproxy_keys.store import Limits, UsageRow

from tornadoproxy import INACTIVE, ConfigurationError, Database, DatabaseUnavailable, Settings
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    clean_environment,
    request_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

MODEL = "claude-sonnet-5-5"
MESSAGE = json.dumps(
    {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]}
).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A transaction, as a command has one."""
    with Database(path, store.SCHEMA, name="keys") as database, database.transaction() as it:
        yield it


def make_key(
    path: Path,
    name: str = "ada",
    *,
    groups: tuple[str, ...] = (),
    expires: int | None = None,
) -> str:
    with opened(path) as connection:
        return store.create(connection, name, groups, Limits(), expires, int(time.time()))


def revoke(path: Path, name: str = "ada") -> None:
    with opened(path) as connection:
        store.revoke(connection, name, int(time.time()))


def rotate(path: Path, name: str = "ada", *, grace: int = 0) -> str:
    with opened(path) as connection:
        return store.rotate(connection, name, grace, int(time.time()))[1]


def usage_of(path: Path) -> UsageRow:
    """What is written of the only key that was used."""
    with opened(path) as connection:
        (row,) = store.read_usage(connection, "2000-01-01")
    return row


def error_of(response: RawResponse) -> str:
    message: str = json.loads(response.body)["error"]["message"]
    return message


class Asker:
    """Asks the proxy started last, on one connection after the other."""

    def __init__(self, raw: OpenRaw) -> None:
        self._raw = raw

    async def __call__(
        self,
        *credentials: str,
        method: str = "GET",
        target: str = "/v1/models",
        body: bytes = b"",
    ) -> RawResponse:
        connection = await self._raw()
        headers = [("X-Api-Key", credential) for credential in credentials]
        await connection.send(request_bytes(method, target, headers, body))
        response = await connection.response()
        await connection.close()
        return response

    async def until(self, status: int, credential: str, *, within: float = 5.0) -> RawResponse:
        """Ask until the answer is `status`."""
        async with asyncio.timeout(within):
            while (response := await self(credential)).status != status:
                pass
        return response


@pytest.fixture
def ask(raw: OpenRaw) -> Asker:
    return Asker(raw)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is looked at often, and not trusted for long without."""
    monkeypatch.setattr(gate, "REFRESH", 0.02)
    monkeypatch.setattr(gate, "MAX_UNVERIFIED", 0.3)


# Who enters


async def test_the_anthropic_sdk_enters_by_a_key(
    path: Path,
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = make_key(path, groups=("engines", "london"))
    proxy = await start_proxy(KEYS_DB=path)
    clean_environment(monkeypatch)
    async with AsyncAnthropic(base_url=proxy.url, api_key=key, max_retries=0) as client:
        await client.messages.create(
            model=MODEL, max_tokens=50, messages=[{"role": "user", "content": "Hi"}]
        )
    record = await records.finished()
    assert (record.principal, record.groups) == ("ada", ("engines", "london"))
    assert upstream.requests[0].all("x-api-key") == [TEST_UPSTREAM_KEY]
    assert key.encode() not in upstream.requests[0].raw_head


async def test_the_openai_sdk_enters_by_a_key(
    path: Path, start_proxy: StartProxy, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(path)
    proxy = await start_proxy(KEYS_DB=path)
    clean_environment(monkeypatch)
    url = f"{proxy.url}/openai/v1"
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
        await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}]
        )
    assert (await records.finished()).principal == "ada"


async def test_a_revoked_key_is_an_authentication_error_to_both_sdks(
    path: Path, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(path)
    revoke(path)
    proxy = await start_proxy(KEYS_DB=path)
    clean_environment(monkeypatch)
    async with AsyncAnthropic(base_url=proxy.url, api_key=key, max_retries=0) as client:
        with pytest.raises(AuthenticationError) as refused:
            await client.models.list()
    assert refused.value.type == "authentication_error"
    assert "revoked" in refused.value.message
    url = f"{proxy.url}/openai/v1"
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as openai:
        with pytest.raises(OpenAIAuthenticationError) as also:
            await openai.models.list()
    assert also.value.code == "invalid_api_key"
    assert "revoked" in also.value.message


async def test_a_key_enters_beside_the_token_by_either_header(
    path: Path, start_proxy: StartProxy, raw: OpenRaw, ask: Asker, records: Records
) -> None:
    key = make_key(path)
    await start_proxy(KEYS_DB=path)
    assert (await ask(key)).status == 200
    connection = await raw()
    await connection.send(request_bytes("GET", "/v1/models", token=key))
    assert (await connection.response()).status == 200
    assert (await ask(TEST_TOKEN)).status == 200
    await records.finished(3)
    assert [record.principal for record in records.all] == ["ada", "ada", "token"]
    assert (await ask("sk-ant-of-somebody")).status == 401
    assert (await ask()).status == 401


async def test_what_is_wrong_with_a_key_is_said(
    path: Path, start_proxy: StartProxy, ask: Asker, upstream: ScriptedUpstream
) -> None:
    revoked = make_key(path, "bob")
    revoke(path, "bob")
    expired = make_key(path, "cy", expires=1_700_000_000)
    replaced = make_key(path, "dee")
    rotate(path, "dee")
    live = make_key(path, "eve")
    await start_proxy(KEYS_DB=path)
    for key, reason in (
        (revoked, "revoked at 2"),
        (expired, "expired at 2023-11-14T22:13:20Z"),
        (replaced, "replaced by a new one"),
        (f"{live}x", "not known here"),
        (live[:-1], "not known here"),
        ("tp-", "not known here"),
    ):
        response = await ask(key)
        assert response.status == 401
        assert response.header("www-authenticate") == "Bearer"
        assert reason in error_of(response)
        assert not any(name in error_of(response) for name in ("bob", "cy", "dee", "eve"))
        assert key == "tp-" or key not in error_of(response)
    assert upstream.requests == []


async def test_one_credential_that_is_right_is_enough(
    path: Path, start_proxy: StartProxy, ask: Asker
) -> None:
    revoked = make_key(path, "bob")
    revoke(path, "bob")
    live = make_key(path)
    await start_proxy(KEYS_DB=path)
    assert (await ask("a-dummy", live)).status == 200
    assert (await ask(revoked, live)).status == 200
    assert (await ask(revoked, TEST_TOKEN)).status == 200
    assert (await ask(revoked, "a-dummy")).status == 401


async def test_a_key_that_ends_during_its_stream_ends_no_stream(
    path: Path, start_proxy: StartProxy, raw: OpenRaw, ask: Asker, upstream: ScriptedUpstream
) -> None:
    key = make_key(path, expires=int(time.time()) + 2)
    await start_proxy(KEYS_DB=path)
    over = asyncio.Event()

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, {"Content-Length": "4"})
        await exchange.send(b"be")
        await over.wait()
        await exchange.send(b"st")

    upstream.script(response)
    connection = await raw()
    await connection.send(request_bytes("POST", "/v1/messages", body=MESSAGE, token=key))
    await upstream.received()
    assert "expired" in error_of(await ask.until(401, key))
    over.set()
    assert (await connection.response()).body == b"best"


# Nobody without a credential


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({}, id="loopback"),
        pytest.param({"DISABLED_PLUGINS": "token"}, id="without the token plugin"),
        pytest.param(
            {"DISABLED_PLUGINS": "token", "HOST": "0.0.0.0"}, id="elsewhere without that plugin"
        ),
        pytest.param({"ALLOW_ANONYMOUS": 1}, id="allow anonymous"),
        pytest.param({"ALLOW_ANONYMOUS": 1, "HOST": "0.0.0.0"}, id="elsewhere, allow anonymous"),
    ],
)
async def test_without_a_token_only_keys_enter(
    variables: dict[str, Any],  # Any: as `start_proxy` takes them
    path: Path,
    start_proxy: StartProxy,
    ask: Asker,
    upstream: ScriptedUpstream,
) -> None:
    key = make_key(path)
    await start_proxy(KEYS_DB=path, AUTH_TOKEN=None, **variables)
    for credentials in ((), ("anything",), ("",), ("anything", "tp-wrong"), ("tp-wrong",)):
        for method, target in (
            ("GET", "/v1/models"),
            ("POST", "/v1/messages"),
            ("POST", "/v1/messages/count_tokens"),
            ("GET", "/elsewhere"),
            ("GET", "/openai/v1/models"),
        ):
            body = MESSAGE if method == "POST" else b""
            response = await ask(*credentials, method=method, target=target, body=body)
            assert response.status == 401
            assert response.header("www-authenticate") == "Bearer"
            assert "x-api-key" not in error_of(response)
            sent = any(credentials)
            assert error_of(response).startswith("No credential was sent") != sent
            if not target.startswith("/openai"):
                assert json.loads(response.body)["error"]["type"] == "authentication_error"
            else:
                assert json.loads(response.body)["error"]["code"] == "invalid_api_key"
    assert upstream.requests == []
    assert (await ask(key)).status == 200


async def test_keys_alone_guard_any_address(
    path: Path, start_proxy: StartProxy, ask: Asker
) -> None:
    key = make_key(path)
    proxy = await start_proxy(KEYS_DB=path, AUTH_TOKEN=None, HOST="0.0.0.0")
    assert dict(proxy.lines)["token"] == "nobody: no AUTH_TOKEN is set"
    assert not [line for _, line in proxy.lines if "ANYONE" in line]
    assert (await ask("")).status == 401
    assert (await ask("anything")).status == 401
    assert (await ask(key)).status == 200


async def test_key_named_as_the_token_is_refused_beside_it(
    path: Path, start_proxy: StartProxy, ask: Asker, records: Records
) -> None:
    key = make_key(path, "token")
    await start_proxy(KEYS_DB=path)
    response = await ask(key)
    assert response.status == 401
    assert "everybody who has AUTH_TOKEN: ask for one with another name" in error_of(response)
    await start_proxy(KEYS_DB=path, AUTH_TOKEN=None)
    assert (await ask(key)).status == 200


async def test_before_the_first_key_nobody_enters(
    path: Path, start_proxy: StartProxy, ask: Asker
) -> None:
    await start_proxy(KEYS_DB=path, AUTH_TOKEN=None)
    assert (await ask("anything")).status == 401
    assert path.stat().st_mode & 0o777 == 0o600


# Settings


async def test_without_its_setting_it_is_inactive(proxy: Proxy) -> None:
    (info,) = (info for info in proxy.plugins.describe() if info.name == "keys")
    assert info.state == "inactive"
    assert Keys().configure(Settings.defaults(KEYS_DB)) is INACTIVE


def test_it_says_who_enters_and_writes_nothing(path: Path) -> None:
    line = Keys().configure(Settings.defaults(KEYS_DB).replace({KEYS_DB: path}))
    assert str(line).startswith(f"nobody yet, as there is no key in {path}: make one with `")
    assert not path.exists()
    (command,) = re.findall("`(.*)`", str(line))
    ran = subprocess.run(shlex.split(command), capture_output=True, check=True, env={}, cwd="/")
    assert ran.stdout.startswith(b"tp-")
    line = Keys().configure(Settings.defaults(KEYS_DB).replace({KEYS_DB: path}))
    assert line == f"whoever has a key in {path}"


def test_a_path_that_cannot_be_right_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="directory"):
        Keys().configure(Settings.defaults(KEYS_DB).replace({KEYS_DB: tmp_path}))


async def test_another_file_takes_a_start(path: Path, start_proxy: StartProxy, ask: Asker) -> None:
    key = make_key(path)
    proxy = await start_proxy(KEYS_DB=path)
    with pytest.raises(ConfigurationError, match="KEYS_DB"):
        proxy.reload(KEYS_DB=path.with_name("other.db"))
    with pytest.raises(ConfigurationError, match="keys"):
        proxy.reload(KEYS_DB=None)
    proxy.reload()
    assert (await ask(key)).status == 200


# While the proxy runs


async def test_what_a_command_changes_holds_without_a_start(
    path: Path, start_proxy: StartProxy, ask: Asker
) -> None:
    await start_proxy(KEYS_DB=path, AUTH_TOKEN=None)
    key = make_key(path)
    assert (await ask(key)).status == 401
    await ask.until(200, key)
    new = rotate(path, grace=3600)
    await ask.until(200, new)
    assert (await ask(key)).status == 200  # for the grace time
    newest = rotate(path)
    assert "replaced" in error_of(await ask.until(401, new))
    assert "replaced" in error_of(await ask(key))
    assert (await ask(newest)).status == 200
    revoke(path)
    assert "revoked" in error_of(await ask.until(401, newest))


async def test_only_hashes_are_kept_and_nothing_is_logged(
    path: Path, start_proxy: StartProxy, ask: Asker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    await start_proxy(KEYS_DB=path)
    first = make_key(path)
    second = rotate(path, grace=3600)
    await ask.until(200, second)
    await ask(first + "x")
    secrets = [key.split("-", 2)[2].encode() for key in (first, second)]
    files = sorted(path.parent.iterdir())
    assert {file.name for file in files} >= {"keys.db", "keys.db-wal"}
    for file in files:
        content = file.read_bytes()
        assert not any(secret in content for secret in secrets)
    stored = path.read_bytes() + path.with_name("keys.db-wal").read_bytes()
    assert store.hashed(second.encode()) in stored
    assert not any(secret.decode() in caplog.text for secret in secrets)


async def test_usage_is_written_by_the_end(
    path: Path, start_proxy: StartProxy, ask: Asker, records: Records
) -> None:
    key = make_key(path)
    proxy = await start_proxy(KEYS_DB=path)
    assert (await ask(key, method="POST", target="/v1/messages", body=MESSAGE)).status == 200
    await ask(key)
    await ask(TEST_TOKEN)
    await proxy.server.drain()
    used = records.all[0]
    row = usage_of(path)
    assert row.key_id == key.split("-")[1]
    assert row.day == time.strftime("%Y-%m-%d", time.gmtime(used.time))
    assert row.requests == 2
    assert (used.usage.input_tokens or 0) > 0
    assert row.input_tokens == used.usage.input_tokens
    assert row.output_tokens == used.usage.output_tokens
    # one of the two used no tokens; of the other the cost is known or said not to be
    assert (row.cost, row.unpriced) == ((used.cost, 0) if used.cost is not None else (0, 1))
    assert row.last_used % 60 == 0
    assert 0 <= records.all[1].time - row.last_used < 60


# When the file cannot be used


@pytest.mark.usefixtures("quick")
async def test_a_lost_file_lets_no_key_in_until_it_is_back(
    path: Path, start_proxy: StartProxy, ask: Asker, caplog: pytest.LogCaptureFixture
) -> None:
    key = make_key(path)
    await start_proxy(KEYS_DB=path)
    away = path.with_name("away.db")
    path.rename(away)
    assert (await ask(key)).status == 200  # for as long as it was looked at lately
    response = await ask.until(503, key)
    assert json.loads(response.body)["error"]["type"] == "overloaded_error"
    assert response.header("retry-after") is not None
    openai = await ask(key, target="/openai/v1/models")
    assert openai.status == 503
    assert json.loads(openai.body)["error"]["type"] == "server_error"
    assert (await ask(TEST_TOKEN)).status == 200

    def told() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.name == gate.__name__]

    while not told():
        await ask(key)
    assert "it was deleted or moved" in told()[0]
    away.rename(path)
    await ask.until(200, key)
    assert len(told()) == 2
    assert "let in again" in told()[1]


@pytest.mark.usefixtures("quick")
async def test_another_file_in_its_place_lets_no_key_in(
    path: Path, start_proxy: StartProxy, ask: Asker
) -> None:
    key = make_key(path)
    await start_proxy(KEYS_DB=path)
    other, away = path.with_name("other.db"), path.with_name("away.db")
    mallory = make_key(other, "mallory")
    path.rename(away)
    other.rename(path)
    await ask.until(503, key)
    assert (await ask(mallory)).status == 503
    away.rename(path)
    await ask.until(200, key)
    assert (await ask(mallory)).status == 401


@pytest.mark.parametrize(
    ("breaks", "mends"),
    [
        ("UPDATE api_key SET group_names = 'not JSON'", "UPDATE api_key SET group_names = '[]'"),
        (
            "UPDATE api_key_secret SET key_id = 'nobody'",
            "UPDATE api_key_secret SET key_id = (SELECT id FROM api_key)",
        ),
        ("ALTER TABLE api_key RENAME TO other", "ALTER TABLE other RENAME TO api_key"),
    ],
)
@pytest.mark.usefixtures("quick")
async def test_a_table_that_is_broken_lets_no_key_in(
    breaks: str, mends: str, path: Path, start_proxy: StartProxy, ask: Asker
) -> None:
    key = make_key(path)
    await start_proxy(KEYS_DB=path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(breaks)
        connection.commit()
        await ask.until(503, key)
        connection.execute(mends)
        connection.commit()
    await ask.until(200, key)


@pytest.mark.usefixtures("quick")
async def test_a_lock_that_lasts_keeps_keys_out_and_loses_no_usage(
    path: Path, start_proxy: StartProxy, ask: Asker, records: Records
) -> None:
    key = make_key(path)
    proxy = await start_proxy(KEYS_DB=path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert (await ask(key)).status == 200  # nobody waits for the lock
        await ask.until(503, key, within=10)
        connection.execute("ROLLBACK")
    await ask.until(200, key, within=10)
    await proxy.server.drain()
    entered = sum(record.principal == "ada" for record in records.all)
    assert entered >= 2
    assert usage_of(path).requests == entered


@pytest.mark.usefixtures("quick")
async def test_a_full_disk_loses_no_usage(
    path: Path, start_proxy: StartProxy, ask: Asker, records: Records
) -> None:
    key = make_key(path)
    plugin = Keys()
    proxy = await start_proxy(plugins={"mine": plugin}, DISABLED_PLUGINS="keys", KEYS_DB=path)
    assert plugin._gate is not None
    database = plugin._gate._database
    # to SQLite, a file that may have no more pages is a full disk
    await database.run(lambda connection: connection.execute("PRAGMA max_page_count = 1"))
    with pytest.raises(DatabaseUnavailable, match="full"):
        await _fill(database)
    assert (await ask(key)).status == 200
    await ask.until(503, key)
    with opened(path) as connection:
        connection.execute("DELETE FROM api_key_usage")
    await ask.until(200, key)
    await proxy.server.drain()
    assert usage_of(path).requests == sum(record.principal == "ada" for record in records.all)


async def _fill(database: Database) -> None:
    for number in range(10_000):
        filler = UsageRow("", f"1999-{number}", 0, 0, 0, 0, 0, 0, 0, 0)
        await database.run(partial(store.add_usage, [filler]))


@pytest.mark.parametrize("content", [b"no database " * 1000, b"SQLite format 3\0" + b"x" * 5000])
async def test_a_file_that_is_no_database_ends_the_start(
    content: bytes, path: Path, start_proxy: StartProxy
) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"keys\.db.*cannot be used"):
        await start_proxy(KEYS_DB=path)
    assert path.read_bytes() == content

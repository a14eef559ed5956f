"""The plugin in a real proxy, in place of the plugin token."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from tornadoproxy import ConfigurationError
from tornadoproxy.testing import TEST_TOKEN, Ask, Proxy, Records, ScriptedUpstream, StartProxy

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop

ALICES_TOKEN = "alices-long-random-token"
BOBS_TOKEN = "bobs-long-random-token"
CAROLS_TOKEN = "carols-long-random-token"

Start: TypeAlias = Callable[[], Awaitable[Proxy]]


def hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture
def people_file(tmp_path: Path) -> Path:
    path = tmp_path / "people.json"
    path.write_text(json.dumps({"alice": hashed(ALICES_TOKEN), "bob": hashed(BOBS_TOKEN)}))
    return path


@pytest.fixture
def start(start_proxy: StartProxy, people_file: Path) -> Start:
    return lambda: start_proxy(DISABLED_PLUGINS="token", PEOPLE_FILE=people_file)


@pytest.fixture
def proxy(io_loop: IOLoop, start: Start) -> Proxy:
    """Replace the proxy of the other fixtures."""
    started: Proxy = io_loop.run_sync(start)
    return started


async def test_token_has_the_name_of_its_person(
    proxy: Proxy, ask: Ask, upstream: ScriptedUpstream, records: Records
) -> None:
    assert (await ask("/v1/models", token=BOBS_TOKEN)).status == 200
    assert len(upstream.requests) == 1
    assert (await records.finished()).principal == "bob"


@pytest.mark.parametrize(
    "token",
    ["nobodys", TEST_TOKEN, hashed(BOBS_TOKEN), None],
    ids=["unknown", "token plugin's", "hash", "none"],
)
async def test_other_credentials_are_rejected(
    proxy: Proxy, ask: Ask, upstream: ScriptedUpstream, records: Records, token: str | None
) -> None:
    response = await ask("/v1/models", token=token)

    assert response.status == 401
    assert json.loads(response.body)["error"]["type"] == "authentication_error"
    assert upstream.requests == []
    assert (await records.finished()).principal is None


async def test_reload_replaces_the_people(proxy: Proxy, ask: Ask, people_file: Path) -> None:
    people_file.write_text(json.dumps({"carol": hashed(CAROLS_TOKEN)}))
    proxy.reload()

    assert (await ask("/v1/models", token=BOBS_TOKEN)).status == 401
    assert (await ask("/v1/models", token=CAROLS_TOKEN)).status == 200


async def test_reload_of_an_invalid_file_changes_nothing(
    proxy: Proxy, ask: Ask, people_file: Path
) -> None:
    people_file.write_text(json.dumps({"carol": hashed(CAROLS_TOKEN), "dave": ""}))

    with pytest.raises(ConfigurationError, match="'dave' needs the SHA-256"):
        proxy.reload()
    assert (await ask("/v1/models", token=CAROLS_TOKEN)).status == 401
    assert (await ask("/v1/models", token=BOBS_TOKEN)).status == 200


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "an object of names and hashes"),
        (b"{}", "an object of names and hashes"),
        (f'{{"": "{hashed("t")}"}}'.encode(), "a name is empty"),
        (b'{"alice": "in-the-clear"}', "'alice' needs the SHA-256"),
        (b'{"alice": 5}', "'alice' needs the SHA-256"),
        (f'{{"alice": "{hashed("t").upper()}"}}'.encode(), "'alice' needs the SHA-256"),
        (f'{{"alice": "{hashed("t")}", "bob": "{hashed("t")}"}}'.encode(), "the same token"),
    ],
)
async def test_invalid_file_is_refused(
    start: Start, people_file: Path, content: bytes, fault: str
) -> None:
    people_file.write_bytes(content)

    with pytest.raises(ConfigurationError, match=fault) as caught:
        await start()
    assert all(line.startswith("PEOPLE_FILE") for line in caught.value.faults)
    assert "in-the-clear" not in str(caught.value)


async def test_every_fault_is_reported_at_once(start: Start, people_file: Path) -> None:
    people_file.write_text(json.dumps({"alice": "short", "bob": "short"}))

    with pytest.raises(ConfigurationError) as caught:
        await start()
    assert len(caught.value.faults) == 3


async def test_without_a_file_the_start_fails(start_proxy: StartProxy) -> None:
    with pytest.raises(ConfigurationError, match="PEOPLE_FILE is not set"):
        await start_proxy(DISABLED_PLUGINS="token")


def test_plugins_lists_the_authenticator(tmp_path: Path, people_file: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tornadoproxy", "plugins"],
        cwd=tmp_path,
        env={**os.environ, "DISABLED_PLUGINS": "token", "PEOPLE_FILE": str(people_file)},
        check=True,
        capture_output=True,
        text=True,
    )
    shown = ran.stdout.splitlines()
    rows = [line.split() for line in shown]
    assert rows[1][:3] == ["1", "people", "tornadoproxy-example-auth"]
    details = shown[shown.index("people (tornadoproxy_example_auth:PeopleAuthenticator)") :]
    assert "authenticate" in details[1]
    assert [row[1] for row in rows if "disabled" in row] == ["token"]

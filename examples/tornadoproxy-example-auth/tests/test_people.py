"""The real proxy, with this package installed in place of the token plugin."""

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
from tornadoproxy.testing import TEST_TOKEN, Proxy, Records, ScriptedUpstream, StartProxy

if TYPE_CHECKING:
    from tornado.httpclient import AsyncHTTPClient, HTTPResponse
    from tornado.ioloop import IOLoop

ALICES_TOKEN = "alices-long-random-token"
BOBS_TOKEN = "bobs-long-random-token"
CAROLS_TOKEN = "carols-long-random-token"

Ask: TypeAlias = "Callable[[dict[str, str]], Awaitable[HTTPResponse]]"
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
    """In place of the one with the token plugin: the clients of the fixtures all use it."""
    started: Proxy = io_loop.run_sync(start)
    return started


@pytest.fixture
def ask(http_client: AsyncHTTPClient, base_url: str) -> Ask:
    return lambda headers: http_client.fetch(
        f"{base_url}/v1/models", headers=headers, raise_error=False
    )


@pytest.mark.parametrize(
    "headers",
    [{"x-api-key": BOBS_TOKEN}, {"Authorization": f"Bearer {BOBS_TOKEN}"}],
    ids=["x-api-key", "bearer"],
)
async def test_the_right_person_gets_in_by_name(
    ask: Ask, upstream: ScriptedUpstream, records: Records, headers: dict[str, str]
) -> None:
    response = await ask(headers)

    assert response.code == 200
    assert len(upstream.requests) == 1
    assert (await records.finished()).principal == "bob"


@pytest.mark.parametrize(
    "headers",
    [{"x-api-key": "nobodys"}, {"x-api-key": TEST_TOKEN}, {"x-api-key": hashed(BOBS_TOKEN)}, {}],
    ids=["unknown", "token plugin's", "hash", "none"],
)
async def test_nobody_else_gets_in(
    ask: Ask, upstream: ScriptedUpstream, records: Records, headers: dict[str, str]
) -> None:
    response = await ask(headers)

    assert response.code == 401
    assert json.loads(response.body)["error"]["type"] == "authentication_error"
    assert upstream.requests == []
    assert (await records.finished()).principal is None


async def test_people_come_and_go_without_a_restart(
    proxy: Proxy, ask: Ask, people_file: Path
) -> None:
    people_file.write_text(json.dumps({"carol": hashed(CAROLS_TOKEN)}))
    proxy.reload()

    assert (await ask({"x-api-key": BOBS_TOKEN})).code == 401
    assert (await ask({"x-api-key": CAROLS_TOKEN})).code == 200


async def test_a_file_that_is_wrong_changes_nothing(
    proxy: Proxy, ask: Ask, people_file: Path
) -> None:
    people_file.write_text(json.dumps({"carol": hashed(CAROLS_TOKEN), "dave": ""}))

    with pytest.raises(ConfigurationError, match="'dave' needs the SHA-256"):
        proxy.reload()
    assert (await ask({"x-api-key": CAROLS_TOKEN})).code == 401
    assert (await ask({"x-api-key": BOBS_TOKEN})).code == 200


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
async def test_a_wrong_file_is_refused_readably(
    start: Start, people_file: Path, content: bytes, fault: str
) -> None:
    people_file.write_bytes(content)

    with pytest.raises(ConfigurationError, match=fault) as caught:
        await start()
    assert all(line.startswith("PEOPLE_FILE") for line in caught.value.faults)
    assert "in-the-clear" not in str(caught.value)


async def test_every_fault_is_told_at_once(start: Start, people_file: Path) -> None:
    people_file.write_text(json.dumps({"alice": "short", "bob": "short"}))

    with pytest.raises(ConfigurationError) as caught:
        await start()
    assert len(caught.value.faults) == 3


async def test_it_does_not_start_without_a_file(start_proxy: StartProxy) -> None:
    with pytest.raises(ConfigurationError, match="PEOPLE_FILE is not set"):
        await start_proxy(DISABLED_PLUGINS="token")


def test_the_token_plugin_is_not_even_imported(tmp_path: Path, people_file: Path) -> None:
    script = (
        "import os, sys\n"
        "from tornadoproxy.cli import main as cli\n"
        "status = cli.main(['check'], os.environ)\n"
        "print([status, *(name in sys.modules for name in sys.argv[1:])])\n"
    )
    shown = run(
        ["-c", script, "tornadoproxy_example_auth", "tornadoproxy_token"],
        tmp_path,
        DISABLED_PLUGINS="token",
        PEOPLE_FILE=str(people_file),
        UPSTREAM_API_KEY="key",
    )

    assert shown[-1] == "[0, True, False]"
    assert any("2 people of PEOPLE_FILE" in line for line in shown)


def test_it_is_listed_as_the_one_that_authenticates(tmp_path: Path, people_file: Path) -> None:
    shown = run(
        ["-m", "tornadoproxy", "plugins"],
        tmp_path,
        DISABLED_PLUGINS="token",
        PEOPLE_FILE=str(people_file),
    )

    rows = [line.split() for line in shown]
    assert rows[1][:3] == ["1", "people", "tornadoproxy-example-auth"]
    details = shown[shown.index("people (tornadoproxy_example_auth:PeopleAuthenticator)") :]
    assert "authenticate" in details[1]
    assert [row[1] for row in rows if "disabled" in row] == ["token"]


def run(arguments: list[str], directory: Path, **variables: str) -> list[str]:
    """What Python prints, line by line; it must end with 0."""
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env={**os.environ, **variables},
        check=True,
        capture_output=True,
        text=True,
    )
    return ran.stdout.splitlines()

"""``python -m tornadoproxy keys``: each of its commands, as people run it."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from tornadoproxy_keys import store
from tornadoproxy_keys.store import UsageRow

from tornadoproxy import Database
from tornadoproxy.testing import request_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from tornadoproxy.testing import OpenRaw, StartProxy

KEY = re.compile(r"tp-([0-9a-f]{12})-[A-Za-z0-9_-]{43}\n")
DAY = 86_400


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


class Keys:
    """The command, with its file."""

    def __init__(self, path: Path, **variables: str) -> None:
        self._path = path
        self._variables = {"KEYS_DB": str(path), **variables}

    def run(self, *arguments: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tornadoproxy", "keys", *arguments],
            cwd=self._path.parent,
            env={"PYTHONIOENCODING": encoding, **self._variables},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=30,
            check=False,
        )

    def done(self, *arguments: str) -> str:
        """What a command that succeeds prints."""
        process = self.run(*arguments)
        assert process.returncode == 0, process.stderr
        return process.stdout

    def refused(self, *arguments: str) -> str:
        """What a command that fails says, in a line."""
        process = self.run(*arguments)
        assert process.returncode == 2
        assert process.stdout == ""
        assert process.stderr.startswith("tornadoproxy: ")
        assert process.stderr.count("\n") == 1
        return process.stderr

    def listed(self) -> list[dict[str, Any]]:  # Any: JSON
        documents: list[dict[str, Any]] = json.loads(self.done("list", "--format", "json"))
        return documents


@pytest.fixture
def keys(path: Path) -> Keys:
    return Keys(path)


def id_of(shown: str) -> str:
    """The public part of a key, as it was shown."""
    matched = KEY.fullmatch(shown)
    assert matched
    return matched[1]


def seconds(text: str) -> float:
    """Of a time as it is shown in JSON."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").timestamp()


def test_create_shows_the_key_and_nothing_else_on_standard_output(keys: Keys) -> None:
    process = keys.run("create", "--name", "Ada Lovelace")
    assert process.returncode == 0
    id_ = id_of(process.stdout)
    assert "Ada Lovelace" in process.stderr
    (document,) = keys.listed()
    created = document.pop("created")
    assert abs(seconds(created) - time.time()) < 60
    assert document == {
        "id": id_,
        "name": "Ada Lovelace",
        "groups": [],
        "models": [],
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "concurrency": None,
        "expires": None,
        "revoked": None,
        "last_used": None,
        "state": "live",
    }


def test_create_takes_all_that_a_key_may_have(keys: Keys) -> None:
    keys.done(
        *("create", "--name", "ada", "--group", "engines", "london", "--group", "engines"),
        *("--models", "claude-sonnet-*", "claude-haiku-5", "--expires", "30d"),
        *("--requests-per-minute", "60", "--tokens-per-minute", "100000", "--concurrency", "4"),
    )
    (document,) = keys.listed()
    assert document["groups"] == ["engines", "london"]
    assert document["models"] == ["claude-sonnet-*", "claude-haiku-5"]
    assert abs(seconds(document["expires"]) - seconds(document["created"]) - 30 * DAY) <= 60
    limits = [document[f"{what}_per_minute"] for what in ("requests", "tokens")]
    assert (*limits, document["concurrency"]) == (60, 100_000, 4)
    lines = keys.done("list").splitlines()
    assert max(map(len, lines)) <= 80
    cells = re.split("  +", "  ".join(lines))
    assert cells[:5] == ["id", "name", "state", "groups", "models"]
    for cell in ("ada", "live", "engines, london", "claude-sonnet-*, claude-haiku-5", "100000"):
        assert cell in cells
    (of_csv,) = csv.DictReader(io.StringIO(keys.done("list", "--format", "csv")))
    assert (of_csv["name"], of_csv["created"]) == ("ada", document["created"])


def test_a_date_is_valid_to_its_end(keys: Keys) -> None:
    keys.done("create", "--name", "ada", "--expires", "2187-01-31")
    keys.done("create", "--name", "bob", "--expires", "never")
    ends = {document["name"]: document["expires"] for document in keys.listed()}
    assert ends == {"ada": "2187-02-01T00:00:00Z", "bob": None}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--name", "a\nb"], "printable"),
        (["--name", "a\x1b[31m"], "printable"),
        (["--name", "a\u202eb"], "printable"),
        (["--name", ""], "printable"),
        (["--name", " ada"], "blanks"),
        (["--name", "x" * 101], "100"),
        (["--name", "ada", "--group", "x\ty"], "printable"),
        (["--name", "ada", "--models", "x\x7f"], "printable"),
        (["--name", "ada", "--group", *map(str, range(21))], "20 groups"),
        (["--name", "ada", "--expires", "30"], "such as 90m"),
        (["--name", "ada", "--expires", "0d"], "such as 90m"),
        (["--name", "ada", "--expires", "9999999d"], "ten years"),
        (["--name", "ada", "--expires", "2027-02-30"], "2027-01-31"),
        (["--name", "ada", "--expires", "9999-12-31"], "2027-01-31"),
        (["--name", "ada", "--expires", "2020-01-01"], "over already"),
        (["--name", "ada", "--concurrency", "0"], "from 1 on"),
        (["--name", "ada", "--requests-per-minute", "-1"], "from 1 on"),
        (["--name", "ada", "--tokens-per-minute", "many"], "from 1 on"),
        ([], "--name"),
    ],
)
def test_what_makes_no_sense_is_refused_and_makes_nothing(
    arguments: list[str], said: str, keys: Keys, path: Path
) -> None:
    assert said in keys.refused("create", *arguments)
    assert not path.exists() or keys.listed() == []


def test_a_name_is_taken_by_one_live_key(keys: Keys, path: Path) -> None:
    first = keys.done("create", "--name", "ada")
    assert id_of(first) in keys.refused("create", "--name", "ada")
    keys.done("revoke", "ada")
    keys.done("create", "--name", "ada")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE api_key SET expires = 1 WHERE revoked IS NULL")
        connection.commit()
    keys.done("create", "--name", "ada")
    assert sorted(document["state"] for document in keys.listed()) == ["expired", "live", "revoked"]


def test_revoke_and_rotate_take_an_id_or_a_name(keys: Keys) -> None:
    id_ = id_of(keys.done("create", "--name", "ada"))
    new = keys.run("rotate", "ada", "--grace", "24h")
    assert id_of(new.stdout) == id_
    assert "stays valid until" in new.stderr
    again = keys.run("rotate", id_)
    assert id_of(again.stdout) == id_
    assert again.stdout != new.stdout
    assert "The old one is over" in again.stderr
    assert f"{id_} of ada is revoked" in keys.done("revoke", id_)
    assert "already" in keys.done("revoke", id_)
    assert "revoked" in keys.refused("rotate", id_)
    assert "no live one" in keys.refused("revoke", "ada")
    assert "no live one" in keys.refused("rotate", "nobody")
    (document,) = keys.listed()
    assert document["state"] == "revoked"
    assert document["revoked"] is not None


def test_usage_is_shown_by_key_and_day(keys: Keys, path: Path) -> None:
    ids = {name: id_of(keys.done("create", "--name", name)) for name in ("ada", "bob")}
    now = int(time.time())
    today, before = (time.strftime("%Y-%m-%d", time.gmtime(at)) for at in (now, now - 40 * DAY))
    with Database(path, store.SCHEMA, name="keys") as database, database.transaction() as it:
        for _ in range(2):
            row = UsageRow(ids["ada"], today, 2, 10, 20, 30, 40, 1_500_000_001, 1, now)
            store.add_usage([row], it)
        store.add_usage(
            [
                UsageRow(ids["bob"], today, 1, 0, 0, 0, 0, 0, 0, now - 60),
                UsageRow(ids["bob"], before, 7, 0, 0, 0, 0, 0, 0, now - 40 * DAY),
            ],
            it,
        )
    documents = json.loads(keys.done("usage", "ada", "--format", "json"))
    assert documents == [
        {
            "day": today,
            "id": ids["ada"],
            "name": "ada",
            "requests": 4,
            "input_tokens": 20,
            "output_tokens": 40,
            "cache_read_input_tokens": 60,
            "cache_creation_input_tokens": 80,
            "cost_usd": "3.000000002",
            "unpriced_requests": 2,
        }
    ]
    shown = re.findall(r"(ada|bob) +([0-9]+)[^$]* (\$[0-9.]+) +([0-9])$", keys.done("usage"), re.M)
    assert sorted(shown) == [("ada", "4", "$3.000000002", "2"), ("bob", "1", "$0.00", "0")]
    for since in ("41d", before):
        days = json.loads(keys.done("usage", "bob", "--since", since, "--format", "json"))
        assert [document["requests"] for document in days] == [7, 1]
    assert "no key of that name" in keys.refused("usage", "nobody")
    used = {document["name"]: document["last_used"] for document in keys.listed()}
    assert used["bob"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - 60))


def test_create_names_the_file_and_makes_no_directory(keys: Keys, path: Path) -> None:
    assert f"made in {path}. " in keys.run("create", "--name", "ada").stderr
    elsewhere = Keys(path, KEYS_DB=str(path.parent / "absent" / "keys.db"))
    assert f"there is no directory {path.parent / 'absent'}: make it" in elsewhere.refused(
        "create", "--name", "ada"
    )
    assert not (path.parent / "absent").exists()


@pytest.mark.parametrize("variable", ["AUTH_TOKEN", "AUTH_TOKEN_FILE"])
def test_create_with_the_token_s_name_is_refused(path: Path, variable: str) -> None:
    (path.parent / "token").write_text("canary-token-9f2c7b5e41")
    value = "token" if variable.endswith("FILE") else "canary-token-9f2c7b5e41"
    keys = Keys(path, **{variable: value})
    for name in ("token", "token-2"):
        assert "of everybody who has AUTH_TOKEN" in keys.refused("create", "--name", name)
    keys.done("create", "--name", "tokens")
    Keys(path).done("create", "--name", "token")


def test_a_name_that_the_terminal_cannot_write_is_escaped(keys: Keys) -> None:
    assert keys.run("create", "--name", "Jürg", encoding="ascii").returncode == 0
    process = keys.run("list", encoding="ascii")
    assert process.returncode == 0
    assert "J\\xfcrg" in process.stdout


@pytest.mark.parametrize("command", ["list", "revoke ada", "rotate ada", "usage"])
def test_only_create_makes_the_file(command: str, keys: Keys, path: Path) -> None:
    assert "keys create" in keys.refused(*command.split())
    assert list(path.parent.iterdir()) == []


def test_without_a_file_named_it_says_what_to_set(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tornadoproxy", "keys", "list"],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert "KEYS_DB is not set" in process.stderr


def test_a_file_that_cannot_be_used_is_told_in_a_line(keys: Keys, path: Path) -> None:
    path.write_bytes(b"no database " * 1000)
    assert "not an SQLite database" in keys.refused("create", "--name", "ada")
    path.unlink()
    keys.done("create", "--name", "ada")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert "locked" in keys.refused("revoke", "ada")
        connection.execute("ROLLBACK")
    assert keys.listed()[0]["state"] == "live"


def test_a_file_that_cannot_be_looked_for_is_told_in_a_line(path: Path) -> None:
    # as below a directory that may not be searched, but for root, too
    told = Keys(path.with_name("x" * 300)).refused("list")
    assert "failed in its command" not in told


def test_a_key_that_cannot_be_shown_is_not_made(keys: Keys, path: Path) -> None:
    with open("/dev/full", "wb") as full:
        process = subprocess.run(
            [sys.executable, "-m", "tornadoproxy", "keys", "create", "--name", "ada"],
            cwd=path.parent,
            env={"KEYS_DB": str(path)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    assert process.returncode == 2
    assert "standard output" in process.stderr
    assert "tp-" not in process.stderr
    assert keys.listed() == []


async def test_a_running_proxy_takes_what_commands_change(
    keys: Keys, path: Path, start_proxy: StartProxy, raw: OpenRaw
) -> None:
    await start_proxy(KEYS_DB=path)

    async def status(key: str) -> int | None:
        connection = await raw()
        await connection.send(request_bytes("GET", "/v1/models", token=key))
        return (await connection.response()).status

    # a fresh process takes longer than the proxy, whose loop stands still meanwhile
    key = keys.done("create", "--name", "ada").strip()
    while await status(key) != 200:
        pass
    new = keys.done("rotate", "ada").strip()
    while await status(key) != 401:
        pass
    assert await status(new) == 200
    keys.done("revoke", "ada")
    while await status(new) != 401:
        pass

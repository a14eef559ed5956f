"""The command ``keys``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from people import Stored, run_command
from postgres import sqlite_only
from program import run
from tornadoproxy_keys import KEYS_DB, Keys, store
from tornadoproxy_keys.store import UsageRow
from tornadoproxy_token import AUTH_TOKEN, AUTH_TOKEN_FILE

from tornadoproxy import DatabaseConnection, DatabaseLocation, Secret

KEY = re.compile(r"tp-([0-9a-f]{12})-[A-Za-z0-9_-]{43}\n")
DAY = 86_400


class KeysCommand(Stored):
    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command(Keys(), {KEYS_DB: self.where}, *arguments)

    def done(self, *arguments: str) -> str:
        """Return the output of a command that succeeds."""
        process = self.run(*arguments)
        assert process.returncode == 0, process.stderr
        return process.stdout

    def refused(self, *arguments: str) -> str:
        """Return the error of a command that fails."""
        process = self.run(*arguments)
        assert (process.returncode, process.stdout) == (2, "")
        return process.stderr

    def listed(self) -> list[dict[str, Any]]:  # Any: JSON
        documents: list[dict[str, Any]] = json.loads(self.done("list", "--format", "json"))
        return documents

    def change(self, work: Callable[[DatabaseConnection], object]) -> None:
        database = store.database(self.where)
        with database, database.transaction() as connection:
            work(connection)


@pytest.fixture
def keys(where: DatabaseLocation) -> KeysCommand:
    return KeysCommand(where)


def id_of(shown: str) -> str:
    matched = KEY.fullmatch(shown)
    assert matched
    return matched[1]


def seconds(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").timestamp()


def test_create_writes_only_the_key_to_standard_output(keys: KeysCommand) -> None:
    process = keys.run("create", "--name", "Ada Lovelace")
    assert process.returncode == 0
    id_ = id_of(process.stdout)
    assert f"the key of Ada Lovelace, created in {keys.where}. " in process.stderr
    (document,) = keys.listed()
    assert abs(seconds(document.pop("created")) - time.time()) < 60
    nothing = ("requests_per_minute", "tokens_per_minute", "concurrency")
    assert document == {
        "id": id_,
        "name": "Ada Lovelace",
        "groups": [],
        "models": [],
        **dict.fromkeys((*nothing, "expires", "revoked", "last_used")),
        "state": "live",
    }


def test_create_takes_groups_models_expiry_and_limits(keys: KeysCommand) -> None:
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
    # an id of digits alone is aligned to the right, as numbers are
    cells = re.split("  +", "  ".join(keys.done("list").splitlines()).strip())
    assert cells[:5] == ["id", "name", "state", "groups", "models"]


def test_key_is_valid_until_the_end_of_a_date(keys: KeysCommand) -> None:
    keys.done("create", "--name", "ada", "--expires", "2187-01-31")
    keys.done("create", "--name", "bob", "--expires", "never")
    ends = {document["name"]: document["expires"] for document in keys.listed()}
    assert ends == {"ada": "2187-02-01T00:00:00Z", "bob": None}


@sqlite_only
@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--name", "a\u202eb"], "printable"),
        (["--name", ""], "printable"),
        (["--name", " ada"], "blanks"),
        (["--name", "x" * 101], "100"),
        (["--name", "ada", "--group", "x\ty"], "printable"),
        (["--name", "ada", "--models", "x\x7f"], "printable"),
        (["--name", "ada", "--group", *map(str, range(21))], "at most 20 groups"),
        (["--name", "ada", "--models", *map(str, range(21))], "at most 20 patterns of models"),
        (["--name", "ada", "--expires", "30"], "such as 90m"),
        (["--name", "ada", "--expires", "2027-02-30"], "2027-01-31"),
        (["--name", "ada", "--expires", "9999-12-31"], "2027-01-31"),
        (["--name", "ada", "--expires", "2020-01-01"], "in the future"),
        (["--name", "ada", "--concurrency", "0"], "from 1 on"),
        ([], "--name"),
    ],
)
def test_invalid_key_is_refused(arguments: list[str], fault: str, keys: KeysCommand) -> None:
    assert fault in keys.refused("create", *arguments)
    assert not keys.path.exists() or keys.listed() == []


def test_name_and_words_may_be_as_long_as_the_limit(keys: KeysCommand) -> None:
    groups = [f"{number:0100}" for number in range(20)]
    keys.done("create", "--name", "x" * 100, "--group", *groups)
    assert keys.listed()[0]["groups"] == groups


def test_key_expires_at_its_end() -> None:
    row = store.KeyRow("k-1", "ada", (), store.Limits(), 0, 10, None)
    assert [row.state(now) for now in (9.9, 10)] == ["live", "expired"]


def test_name_belongs_to_one_live_key(keys: KeysCommand) -> None:
    first = keys.done("create", "--name", "ada")
    assert id_of(first) in keys.refused("create", "--name", "ada")
    keys.done("revoke", "ada")
    keys.done("create", "--name", "ada")
    expire = "UPDATE api_key SET expires = 1 WHERE revoked IS NULL"
    keys.change(lambda connection: connection.execute(expire))
    keys.done("create", "--name", "ada")
    assert sorted(document["state"] for document in keys.listed()) == ["expired", "live", "revoked"]


def test_revoke_and_rotate_take_an_id_or_a_name(keys: KeysCommand) -> None:
    id_ = id_of(keys.done("create", "--name", "ada"))
    new = keys.run("rotate", "ada", "--grace", "24h")
    assert id_of(new.stdout) == id_
    assert "stays valid until" in new.stderr
    again = keys.run("rotate", id_)
    assert id_of(again.stdout) == id_
    assert again.stdout != new.stdout
    assert "The old one is no longer valid" in again.stderr
    assert f"{id_} of ada is revoked" in keys.done("revoke", id_)
    assert "was already revoked at 2" in keys.done("revoke", id_)
    assert "is revoked; create a new one" in keys.refused("rotate", id_)
    assert "no live one" in keys.refused("revoke", "ada")
    assert "no live one" in keys.refused("rotate", "nobody")
    (document,) = keys.listed()
    assert document["state"] == "revoked"
    assert document["revoked"] is not None


def test_usage_is_listed_by_key_and_day(keys: KeysCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    ids = {name: id_of(keys.done("create", "--name", name)) for name in ("ada", "bob")}
    now = int(time.time())
    today, before = (time.strftime("%Y-%m-%d", time.gmtime(at)) for at in (now, now - 40 * DAY))
    twice = UsageRow(ids["ada"], today, 2, 10, 20, 30, 40, 1_500_000_001, 1, now)
    rows = [
        twice,
        UsageRow(ids["ada"], today, 0, 0, 0, 0, 0, 0, 0, now - 60),
        UsageRow(ids["bob"], today, 1, 0, 0, 0, 0, 0, 0, now - 60),
        UsageRow(ids["bob"], before, 7, 0, 0, 0, 0, 0, 0, now - 40 * DAY),
    ]
    keys.change(lambda connection: store.add_usage([twice, *rows], connection))
    (document,) = json.loads(keys.done("usage", "ada", "--format", "json"))
    assert list(document.values()) == [
        *(today, ids["ada"], "ada", 4, 20, 40, 60, 80, "3.000000002", 2)
    ]
    shown = re.findall(r"(ada|bob) +([0-9]+)[^$]* (\$[0-9.]+) +([0-9])$", keys.done("usage"), re.M)
    assert sorted(shown) == [("ada", "4", "$3.000000002", "2"), ("bob", "1", "$0.00", "0")]
    for since in ("41d", before):
        days = json.loads(keys.done("usage", "bob", "--since", since, "--format", "json"))
        assert [document["requests"] for document in days] == [7, 1]
    assert "no key of the name nobody" in keys.refused("usage", "nobody")
    used = {document["name"]: document["last_used"] for document in keys.listed()}
    for name, last in (("ada", now), ("bob", now - 60)):
        assert used[name] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(last))


@sqlite_only
@pytest.mark.parametrize("setting", [AUTH_TOKEN, AUTH_TOKEN_FILE])
def test_key_cannot_be_named_like_the_token(keys: KeysCommand, setting: Any) -> None:
    values = {KEYS_DB: keys.path, setting: (Secret("canary-token-9f2c7b5e41"),)}
    for name, status in (("token", 2), ("token-2", 2), ("tokens", 0)):
        process = run_command(Keys(), values, "create", "--name", name)
        assert process.returncode == status
        assert ("of the clients with AUTH_TOKEN" in process.stderr) == (status == 2)
    keys.done("create", "--name", "token")


@sqlite_only
def test_only_create_creates_the_database(keys: KeysCommand) -> None:
    assert "KEYS_DB is not set" in run_command(Keys(), {}, "list").stderr
    for command in ("list", "revoke ada", "rotate ada", "usage"):
        assert "`keys create` creates it" in keys.refused(*command.split())
    assert list(keys.path.parent.iterdir()) == []


@sqlite_only
def test_program_escapes_a_name(keys: KeysCommand) -> None:
    keys.done("create", "--name", "Jürg")
    shown = run(keys.path.parent, "keys", "list", KEYS_DB=str(keys.path), PYTHONIOENCODING="ascii")
    assert (shown.returncode, "J\\xfcrg" in shown.stdout) == (0, True)


@sqlite_only
def test_key_that_cannot_be_shown_is_not_created(keys: KeysCommand) -> None:
    with open("/dev/full", "wb") as full:
        process = subprocess.run(
            [sys.executable, "-m", "tornadoproxy", "keys", "create", "--name", "ada"],
            env={"PATH": os.defpath, "KEYS_DB": str(keys.path)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=50,
            check=False,
        )
    assert process.returncode == 2
    assert "standard output" in process.stderr
    assert "tp-" not in process.stderr
    assert keys.listed() == []

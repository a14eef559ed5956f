"""The command ``db``: the databases of all plugins, shown, migrated and copied."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest
from in_process import Commands

from tornadoproxy import SecretURL

KEY = {"UPSTREAM_API_KEY": "sk-ant-upstream"}


def test_sqlite_files_move_to_postgresql(commands: Commands, postgres: SecretURL) -> None:
    files = KEY | {"KEYS_DB": "team.db", "BUDGETS_DB": "team.db", "RESPONSES_STORE": "team.db"}
    commands.run("keys", "create", "--name", "ada", **files)
    commands.run("budgets", "set", "--everyone", "--period", "daily", "--amount", "5", **files)
    commands.run("db", "migrate", **files)
    with closing(sqlite3.connect(commands.directory / "team.db")) as connection, connection:
        connection.execute("INSERT INTO stored_contents VALUES (x'00ff', x'7b7d')")
        connection.execute("INSERT INTO stored_items VALUES (1, 0, 0, NULL, NULL, x'00ff')")
    server = KEY | {"DATABASE_URL": postgres.reveal(), "RESPONSES_STORE": postgres.reveal()}
    assert commands.run("db", "status", **server).status == 1
    assert commands.run("db", "migrate", **server).status == 0
    copied = commands.run("db", "copy", "--from", "team.db", **server)
    assert copied.status == 0
    assert "keys: copied and verified rows: 1 of api_key, 1 of api_key_secret" in copied.output
    assert "budgets: copied and verified rows: 1 of budgets_caps" in copied.output
    assert (
        "responses: copied and verified rows: 0 of stored_responses, 1 of stored_contents, "
        "1 of stored_items"
    ) in copied.output
    assert "ledger" not in copied.output
    assert "ada" in commands.run("keys", "list", **server).output
    assert "$5" in commands.run("budgets", "list", **server).output
    shown = commands.run("db", "status", "--format", "json", **server)
    assert (shown.status, {row["state"] for row in json.loads(shown.output)}) == (0, {"up to date"})
    again = ("db", "copy", "--from", "team.db", "keys")
    assert "already holds data of keys" in commands.refusal(*again, **server)
    assert commands.run(*again, "--replace", **server).status == 0


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (("status", "prices"), {}, "prices is no plugin with a database: name responses, "),
        (("copy",), {"KEYS_DB": "a.db"}, "--from and --to are missing"),
        (("copy", "--to", "b.db"), {"KEYS_DB": "b.db"}, "there is nothing to copy"),
        (("copy", "--to", "a.db"), {"KEYS_DB": "a.db"}, "a.db would be copied into itself"),
        (("copy", "--from", "a.db"), {}, "database to copy keys into: set KEYS_DB, or add --to"),
        (("copy", "--to", "postgresql://u:password@host/db"), {}, "could be read by every user"),
    ],
)
def test_impossible_command_is_refused(
    arguments: tuple[str, ...], variables: dict[str, str], message: str, commands: Commands
) -> None:
    commands.run("keys", "create", "--name", "ada", KEYS_DB="a.db")
    refusal = commands.refusal("db", *arguments, **KEY, **variables)
    assert message in refusal
    assert "password@" not in refusal


@pytest.mark.parametrize(
    ("statement", "state"),
    [
        ("UPDATE tornadoproxy_schema SET version = 9", "is newer than this program"),
        ("DELETE FROM tornadoproxy_schema", "has no tables"),
        ("UPDATE tornadoproxy_schema SET version = 1 WHERE name = 'ledger'", "must be migrated"),
    ],
)
def test_status_names_a_schema_that_does_not_fit(
    statement: str, state: str, commands: Commands
) -> None:
    commands.run("db", "migrate", **KEY, LEDGER_DB="ledger.db")
    with closing(sqlite3.connect(commands.directory / "ledger.db")) as connection, connection:
        connection.execute(statement)
    done = commands.run("db", "status", **KEY, LEDGER_DB="ledger.db")
    assert (done.status, state in done.output) == (1, True)


def test_status_names_a_database_that_cannot_be_used(commands: Commands) -> None:
    (commands.directory / "ledger.db").write_text("not a database" * 100)
    done = commands.run("db", "status", "--format", "csv", **KEY, LEDGER_DB="ledger.db")
    assert (done.status, "it is not an SQLite database" in done.output) == (1, True)

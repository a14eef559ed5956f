"""The command ``budgets``."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from people import run_command
from postgres import sqlite_only
from tornadoproxy_budgets import BUDGETS_DB, Budgets, storage
from tornadoproxy_budgets.periods import day_of
from tornadoproxy_budgets.state import Batch, Seen, Subject
from tornadoproxy_keys import KEYS_DB

from tornadoproxy import DatabaseLocation

Budget = Callable[..., CompletedProcess[str]]

SETTING = ("set", "--period", "daily", "--amount", "1")


@pytest.fixture
def budgets(where: DatabaseLocation) -> Budget:
    return partial(run_command, Budgets(), {BUDGETS_DB: where})


def table(budgets: Budget, *arguments: str) -> list[list[str | None]]:
    done = budgets(*arguments, "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [list(row.values()) for row in json.loads(done.stdout)]
    words = budgets(*arguments).stdout.split()
    assert all(word in words for row in rows for cell in row for word in (cell or "").split())
    return rows


def save(where: DatabaseLocation, batch: Batch) -> None:
    with storage.database(where) as database, database.transaction() as connection:
        storage.save(connection, batch)


@sqlite_only
def test_cap_is_set_listed_replaced_and_removed(where: Path, budgets: Budget) -> None:
    everyone = ("set", "--everyone", "--period", "monthly", "--amount")
    done = budgets(*everyone, "500")
    found = re.fullmatch(r"(spl_\w+): \$500\.00 monthly for each person\n", done.stdout)
    assert found, done
    cap_id = found[1]
    shared = ("set", "--group", "team", "--shared", "--period", "daily", "--amount", "$12.5")
    assert "$12.50 daily for group team together" in budgets(*shared).stdout
    listed = table(budgets, "list")
    assert listed[0] == [cap_id, "each person", "monthly", "$500.00", None]
    assert listed[1][1:] == ["group team together", "daily", "$12.50", "$0.00"]
    budgets(*everyone, "unlimited")
    assert f"removed {cap_id}: unlimited monthly" in budgets("remove", cap_id).stdout
    trail = table(budgets, "audit", "--since", "1d")
    assert [(row[2], row[3], row[6], row[7]) for row in trail if row[3] == cap_id] == [
        ("delete", cap_id, "unlimited", None),
        ("set", cap_id, "$500.00", "unlimited"),
        ("set", cap_id, None, "$500.00"),
    ]
    assert all(str(row[1]).startswith("command-line") for row in trail)
    assert len(table(budgets, "audit", "--limit", "1")) == 1
    assert table(budgets, "audit", "--since", "2187-01-01") == []
    assert (where.stat().st_mode & 0o777) == 0o600


def test_show_has_spending_and_the_rest(where: DatabaseLocation, budgets: Budget) -> None:
    for options in (
        ("--group", "team", "--period", "weekly", "--amount", "0.05"),
        ("--everyone", "--shared", "--period", "monthly", "--amount", "0.04"),
        ("--group", "x", "--shared", "--period", "daily", "--amount", "2"),
    ):
        budgets("set", *options)
    today = day_of(time.time())
    spent: dict[tuple[int, Subject], int] = {
        (today, ("user", "ada")): 37_037_034,
        (today, ("user", "bob")): 12_345_678,
    }
    save(where, Batch(spent=spent, seen={"ada": Seen(("team",)), "bob": Seen(())}))
    rows = table(budgets, "show", "ada")
    assert [row[:6] for row in rows] == [
        ["user ada", "daily", None, None, "$0.037037034", None],
        [
            *("user ada", "weekly", "$0.05", "each member of group team"),
            *("$0.037037034", "$0.012962966"),
        ],
        ["user ada", "monthly", None, None, "$0.037037034", None],
        ["everyone together", "monthly", "$0.04", "everyone together", "$0.049382712", "$0.00"],
    ]
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT00:00:00Z", str(row[6])) for row in rows)
    everybody = table(budgets, "show")
    assert [row[0] for row in everybody[:6]] == ["user ada"] * 3 + ["user bob"] * 3
    assert len(everybody) == 8


@sqlite_only
def test_set_without_keys_warns(where: Path, budgets: Budget) -> None:
    assert "count as one person, token" in budgets(*SETTING, "--user", "ada").stderr
    values = {BUDGETS_DB: where, KEYS_DB: where.with_name("keys.db")}
    assert run_command(Budgets(), values, *SETTING, "--user", "ada").stderr == ""


@sqlite_only
@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (SETTING, "--everyone"),
        ((*SETTING, "--user", "ada", "--group", "team"), "not allowed with"),
        ((*SETTING, "--user", "ada", "--shared"), "cannot be used with --user"),
        ((*SETTING, "--user", ""), "printable characters"),
        (("set", "--everyone", "--period", "yearly", "--amount", "1"), "weekly"),
        (("set", "--everyone", "--period", "daily", "--amount", "-1"), "amount"),
        (("set", "--everyone", "--period", "daily", "--amount", "1.999"), "12.50"),
        (("remove", "spl_unknown"), "there is no cap with the id spl_unknown"),
        (("audit", "--limit", "0"), "whole number"),
        ((), "COMMAND"),
    ],
)
def test_invalid_arguments_are_refused(
    arguments: tuple[str, ...], fault: str, where: Path, budgets: Budget
) -> None:
    where.touch()
    done = budgets(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert fault in done.stderr


@sqlite_only
def test_only_set_creates_the_database(where: Path, budgets: Budget) -> None:
    assert "BUDGETS_DB is not set" in run_command(Budgets(), {}, "list").stderr
    for command in (("list",), ("show",), ("audit",), ("remove", "spl_x")):
        done = budgets(*command)
        assert done.returncode == 2
        assert "does not exist; `budgets set` creates it" in done.stderr
    assert not where.exists()

"""``plugins``: the plugins in order, with states, settings and reasons."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import TYPE_CHECKING

import pytest
from test_check import AUTHENTICATOR, TOKEN

from tornadoproxy import __version__

if TYPE_CHECKING:
    from in_process import Commands


class Listing:
    """The output of ``plugins``, parsed: its table, and the details by plugin."""

    def __init__(self, text: str) -> None:
        table, *details = text.removesuffix("\n").split("\n\n")
        head, *self.rows = [re.split(r" {2,}", line.strip()) for line in table.splitlines()]
        assert head == ["order", "name", "distribution", "version", "state"]
        self.states = {row[1]: row[4] for row in self.rows}
        self.heads: dict[str, str] = {}
        self.details: dict[str, dict[str, list[str]]] = {}
        for head_line, *lines in map(str.splitlines, details):
            name = head_line.split()[0]
            self.heads[name] = head_line
            found: dict[str, list[str]] = {}
            self.details[name] = found
            label = ""
            for line in lines:
                label = line[2:12].strip() or label
                found.setdefault(label, []).append(line[12:])
        assert [row[1] for row in self.rows] == list(self.details)
        assert max(map(len, text.splitlines())) <= 80

    def setting(self, plugin: str, name: str) -> list[str]:
        """The columns of one setting, after its name."""
        (found,) = [
            cells[1:]
            for line in self.details[plugin]["settings"]
            if (cells := re.split(r" {2,}", line))[0] == name
        ]
        return found


def test_plugins_are_listed_in_order_with_their_origin(commands: Commands) -> None:
    commands.install("team", AUTHENTICATOR)
    done = commands.run("plugins", "--disabled-plugins", "access_log", "--metrics", "yes")
    assert (done.status, done.errors) == (0, "")
    shown = Listing(done.output)
    assert shown.rows[:2] == [
        ["1", "team", "team", "1.5", "active"],
        ["2", "token", "tornadoproxy", __version__, "active"],
    ]
    assert ["-", "access_log", "tornadoproxy", __version__, "disabled"] in shown.rows
    assert shown.details["access_log"] == {}
    assert shown.heads["token"] == "token (tornadoproxy_token:TokenAuthenticator)"
    assert shown.details["token"]["hooks"] == ["declare_settings, configure, authenticate"]
    assert shown.details["metrics"]["pages"][1:] == ["/metrics  GET      authenticated"]
    assert "pages" not in shown.details["token"]


def test_plugin_that_is_inactive_is_listed_last(commands: Commands) -> None:
    idle = AUTHENTICATOR.replace('f"the team {settings[TEAM]}"', "INACTIVE")
    commands.install("idle", idle.replace("Identity,", "Identity, INACTIVE,"))
    shown = Listing(commands.run("plugins").output)
    order = [row[0] for row in shown.rows]
    assert order[order.index("-") :] == ["-"] * order.count("-")
    assert shown.states["idle"] == "inactive"
    assert shown.details["idle"]["hooks"] == ["declare_settings, configure, authenticate"]


def test_settings_are_listed_with_value_and_place(commands: Commands) -> None:
    commands.install("team", AUTHENTICATOR)
    (commands.directory / ".env").touch(mode=0o600)

    def listed(name: str, *arguments: str, **variables: str) -> list[str]:
        file = f"# ours\nTEAM_NAME=one\nAUTH_TOKEN={TOKEN}"
        done = commands.run("plugins", *arguments, file=file, **variables)
        assert done.status == 0
        assert TOKEN not in done.output
        return Listing(done.output).setting("team" if name == "TEAM_NAME" else "token", name)

    assert listed("ALLOW_ANONYMOUS") == ["no", "by default"]
    assert listed("AUTH_TOKEN") == ["set", ".env, line 3"]
    assert listed("TEAM_NAME") == ["one", ".env, line 2"]
    assert listed("TEAM_NAME", TEAM_NAME="x" * 36) == ["x" * 36, "in the environment"]
    assert listed("TEAM_NAME", TEAM_NAME="x" * 37) == [f"{'x' * 35}…", "in the environment"]
    assert listed("TEAM_NAME", "--team-name", "three") == ["three", "on the command line"]


def test_json_and_csv_say_the_same(commands: Commands) -> None:
    of_json = json.loads(commands.run("plugins", "--format", "json").output)
    (token,) = [each for each in of_json if each["name"] == "token"]
    assert token["hooks"] == ["declare_settings", "configure", "authenticate"]
    setting = {"name": "ALLOW_ANONYMOUS", "value": "no", "from": "by default"}
    assert setting in token["settings"]
    of_csv = csv.DictReader(io.StringIO(commands.run("plugins", "--format", "csv").output))
    names = [row["name"] for row in of_csv]
    assert names == [each["name"] for each in of_json]
    assert names[0] == "token"


def test_broken_plugin_is_listed_with_the_reason(commands: Commands) -> None:
    commands.install("broken", "raise RuntimeError('no luck ' + 'x ' * 80)")
    done = commands.run("plugins")
    assert done.status == 2
    shown = Listing(done.output)
    assert (shown.states["broken"], shown.states["token"]) == ("broken", "loaded")
    reason = " ".join(shown.details["broken"]["refused"])
    assert reason.startswith("loading it failed: RuntimeError: no luck x x")
    assert done.errors.startswith("tornadoproxy: plugin 'broken'")


@pytest.mark.parametrize(
    ("variables", "columns", "told"),
    [
        ({"PORT": "nonsense"}, [], "PORT must be a whole number"),
        ({"HOST": "0.0.0.0"}, ["not set", "by default"], "HOST is 0.0.0.0 and no AUTH_TOKEN"),
    ],
)
def test_plugins_are_listed_although_settings_are_wrong(
    commands: Commands, variables: dict[str, str], columns: list[str], told: str
) -> None:
    done = commands.run("plugins", **variables)
    assert done.status == 2
    shown = Listing(done.output)
    assert shown.states["token"] == "loaded"
    assert shown.setting("token", "AUTH_TOKEN") == columns
    (fault,) = done.errors.splitlines()
    assert fault.startswith(f"tornadoproxy: {told}")


def test_plugins_are_not_listed_if_the_disabled_are_unknown(commands: Commands) -> None:
    told = ".env, line 1: has no =: write NAME=value"
    assert commands.refusal("plugins", file="nonsense") == told

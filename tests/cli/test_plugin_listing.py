"""``plugins``: the plugins in order, with states, settings and reasons."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import TYPE_CHECKING

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

    def team(*arguments: str, file: str, **variables: str) -> list[str]:
        done = commands.run("plugins", *arguments, file=file, **variables)
        assert done.status == 0
        return Listing(done.output).setting("team", "TEAM_NAME")

    in_file = "# ours\nTEAM_NAME=one\n"
    assert team(file="") == ["us", "by default"]
    assert team(file=in_file) == ["one", ".env, line 2"]
    assert team(file=in_file, TEAM_NAME="two") == ["two", "in the environment"]
    in_flag = team("--team-name", "three", file=in_file, TEAM_NAME="two")
    assert in_flag == ["three", "on the command line"]
    long, _ = team(file="", TEAM_NAME="x" * 200)
    assert re.fullmatch("x+…", long)


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


def test_secret_setting_is_listed_without_its_value(commands: Commands) -> None:
    (commands.directory / ".env").touch(mode=0o600)
    done = commands.run("plugins", file=f"AUTH_TOKEN={TOKEN}\n")
    assert Listing(done.output).setting("token", "AUTH_TOKEN") == ["set", ".env, line 1"]
    assert TOKEN not in done.output


def test_broken_plugin_is_listed_with_the_reason(commands: Commands) -> None:
    commands.install("broken", "raise RuntimeError('no luck ' + 'x ' * 80)")
    done = commands.run("plugins")
    assert done.status == 2
    shown = Listing(done.output)
    assert (shown.states["broken"], shown.states["token"]) == ("broken", "loaded")
    reason = " ".join(shown.details["broken"]["refused"])
    assert reason.startswith("loading it failed: RuntimeError: no luck x x")
    assert done.errors.startswith("tornadoproxy: plugin 'broken'")


def test_plugins_are_listed_although_a_setting_is_wrong(commands: Commands) -> None:
    done = commands.run("plugins", PORT="nonsense", AUTH_TOKEN=TOKEN)
    assert done.status == 2
    shown = Listing(done.output)
    assert shown.states["token"] == "loaded"
    assert shown.setting("token", "AUTH_TOKEN") == []
    (fault,) = done.errors.splitlines()
    assert fault.startswith("tornadoproxy: PORT must be a whole number")


def test_plugins_are_listed_although_one_refuses_the_settings(commands: Commands) -> None:
    done = commands.run("plugins", HOST="0.0.0.0")
    assert done.status == 2
    shown = Listing(done.output)
    assert shown.states["token"] == "loaded"
    assert shown.setting("token", "AUTH_TOKEN") == ["not set", "by default"]
    (fault,) = done.errors.splitlines()
    assert fault.startswith("tornadoproxy: HOST is 0.0.0.0 and no AUTH_TOKEN is set; set one")


def test_plugins_are_not_listed_if_the_disabled_are_unknown(commands: Commands) -> None:
    told = "tornadoproxy: .env, line 1: has no =: write NAME=value\n"
    assert commands.run("plugins", file="nonsense") == (2, "", told)


def test_unknown_flag_suggests_the_flag_of_a_plugin(commands: Commands) -> None:
    done = commands.run("plugins", "--access-log", "off", "--acess-log", "off")
    told = "tornadoproxy: unknown flag --acess-log: did you mean --access-log?\n"
    assert (done.status, done.errors) == (2, told)

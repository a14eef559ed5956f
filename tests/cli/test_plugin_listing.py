"""``plugins``: the plugins in order, with states, settings and reasons."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any, NamedTuple

import pytest
from in_process import Commands
from test_check import AUTHENTICATOR, TOKEN

from tornadoproxy import __version__


class Listed(NamedTuple):
    """The output of ``plugins --format json``: the plugins by name, in their order."""

    status: int
    plugins: dict[str, dict[str, Any]]  # JSON
    errors: str

    def setting(self, plugin: str, name: str) -> list[str]:
        """The value of a setting and the place that sets it."""
        (found,) = [each for each in self.plugins[plugin]["settings"] if each["name"] == name]
        return list(found.values())[1:]


def listed(commands: Commands, *arguments: str, file: str = "", **variables: str) -> Listed:
    done = commands.run("plugins", "--format", "json", *arguments, file=file, **variables)
    assert TOKEN not in done.output
    plugins = {each["name"]: each for each in json.loads(done.output)}
    return Listed(done.status, plugins, done.errors)


def test_plugins_are_listed_with_their_details(commands: Commands) -> None:
    commands.install("team", AUTHENTICATOR)
    done = commands.run("plugins", "--disabled-plugins", "access_log", "--metrics", "yes")
    assert (done.status, done.errors) == (0, "")
    for line in (
        r"order  name +distribution +version +state",
        r" *1 +team +team +1\.5 +active",
        rf" *2 +token +tornadoproxy +{re.escape(__version__)} +active",
        rf" *- +access_log +tornadoproxy +{re.escape(__version__)} +disabled",
        r"token \(tornadoproxy_token:TokenAuthenticator\)",
        r"  hooks +declare_settings, configure, authenticate",
        r"  pages +path +methods +access",
        r" +/metrics +GET +authenticated",
        r"  settings +name +value +from",
        r" +ALLOW_ANONYMOUS +no +by default",
    ):
        assert re.search(f"(?m)^{line}$", done.output), line
    assert max(map(len, done.output.splitlines())) <= 80


def test_json_and_csv_say_the_same(commands: Commands) -> None:
    plugins = listed(commands).plugins
    assert plugins["token"]["hooks"] == ["declare_settings", "configure", "authenticate"]
    of_csv = csv.DictReader(io.StringIO(commands.run("plugins", "--format", "csv").output))
    rows = list(of_csv)
    assert [row["name"] for row in rows] == list(plugins)
    assert rows[0] == {name: str(plugins["token"][name]) for name in rows[0]}


def test_plugin_that_is_inactive_is_listed_last(commands: Commands) -> None:
    idle = AUTHENTICATOR.replace('f"the team {settings[TEAM]}"', "INACTIVE")
    commands.install("idle", idle.replace("Identity,", "Identity, INACTIVE,"))
    plugins = listed(commands).plugins
    assert plugins["idle"]["state"] == "inactive"
    active = [each["order"] is not None for each in plugins.values()]
    assert active == sorted(active, reverse=True)
    assert 0 < sum(active) < len(active)


def test_settings_are_listed_with_value_and_place(commands: Commands) -> None:
    commands.install("team", AUTHENTICATOR)
    file = f"# ours\nTEAM_NAME=one\nAUTH_TOKEN={TOKEN}"

    def team(*arguments: str, **variables: str) -> list[str]:
        return listed(commands, *arguments, file=file, **variables).setting("team", "TEAM_NAME")

    assert listed(commands, file=file).setting("token", "AUTH_TOKEN") == ["set", ".env, line 3"]
    assert team() == ["one", ".env, line 2"]
    assert team(TEAM_NAME="x" * 36) == ["x" * 36, "in the environment"]
    assert team(TEAM_NAME="x" * 37) == [f"{'x' * 35}…", "in the environment"]
    assert team("--team-name", "three") == ["three", "on the command line"]


def test_broken_plugin_is_listed_with_the_reason(commands: Commands) -> None:
    commands.install("broken", "raise RuntimeError('no luck ' + 'x ' * 80)")
    done = commands.run("plugins")
    assert done.status == 2
    assert re.search(r"(?m)^ *- +broken .* broken$", done.output)
    assert re.search(r"(?m)^ *\d+ +token .* loaded$", done.output)
    assert "  refused   loading it failed: RuntimeError: no luck x x" in done.output
    assert max(map(len, done.output.splitlines())) <= 80
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
    found = listed(commands, **variables)
    assert (found.status, found.plugins["token"]["state"]) == (2, "loaded")
    assert found.setting("token", "AUTH_TOKEN") == columns
    assert found.errors.startswith(f"tornadoproxy: {told}")


def test_plugins_are_not_listed_if_the_disabled_are_unknown(commands: Commands) -> None:
    told = ".env, line 1: has no =: write NAME=value"
    assert commands.refusal("plugins", file="nonsense") == told

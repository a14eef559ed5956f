"""``help``, ``--help``, ``version`` and ``token``: texts, whatever the settings are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from in_process import Commands

from tornadoproxy import Setting, __version__, parsers
from tornadoproxy.cli.help_text import commands_text, default_text, settings_text
from tornadoproxy.config import env_file
from tornadoproxy.config.command_line import COMMANDS
from tornadoproxy.config.core_settings import (
    CORE_SETTINGS,
    TLS_CERT,
    TLS_KEY,
    UPSTREAM_API_KEY_FILE,
    UPSTREAM_CA_FILE,
)
from tornadoproxy.config.sources import Sources
from tornadoproxy.plugin.manager import Plugins

TEAM = """
from tornadoproxy import Command, Setting, hookimpl, parsers

@hookimpl
def declare_settings():
    return [Setting("TEAM_NAME", parsers.text, default="us", help="team that may enter")]

@hookimpl
def commands():
    return [Command("team", "show the team", lambda parser: None, lambda own, settings: 0)]
"""


@pytest.mark.parametrize("word", ["version", "--version"])
def test_version_is_printed(commands: Commands, word: str) -> None:
    assert commands.run(word) == (0, f"tornadoproxy {__version__}\n", "")


def test_token_is_random_and_reads_no_settings(commands: Commands) -> None:
    first, second = (commands.run("token", file="NONSENSE") for _ in range(2))
    assert (first.status, first.errors) == (0, "")
    assert re.fullmatch(r"[\w-]{43}\n", first.output)
    assert first.output != second.output
    told = "token takes no flags: remove what follows it"
    assert commands.refusal("token", "--port", "1") == told


@pytest.mark.parametrize("arguments", [["-h"], ["help"], ["help", "help"]])
def test_help_lists_every_command(commands: Commands, arguments: list[str]) -> None:
    commands.install("team", TEAM)
    done = commands.run(*arguments)
    assert (done.status, done.errors) == (0, "")
    text = " ".join(done.output.split())
    for command, what in {**COMMANDS, "team": "show the team"}.items():
        assert f" {command} {what} " in text
    listed = done.output.partition("Commands:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^  (\S+)", listed, re.MULTILINE)[: len(COMMANDS)] == list(COMMANDS)
    assert "`python -m tornadoproxy help settings`" in text
    assert "UPSTREAM_BASE_URL" not in text


@pytest.mark.parametrize("arguments", [["--help", "settings"], ["help", "settings"]])
def test_help_settings_lists_every_setting(commands: Commands, arguments: list[str]) -> None:
    done = commands.run(*arguments)
    assert (done.status, done.errors) == (0, "")
    shown = re.sub(r"\n {4}(?! )", " ", done.output)  # long lines unwrapped
    for setting in (*CORE_SETTINGS, *Plugins.load().declared_settings()):
        no_flag = "" if setting.flag else "no flag; "
        where = f"{no_flag}default: {default_text(setting)}"
        line = rf"(?m)^  (.*\b)?{setting.name}\b.* \({re.escape(where)}\)$"
        assert re.search(line, shown), setting.name
        if setting.flag:
            assert f"  {setting.flag}, {setting.name}" in done.output
    for flag in ("--auth-token,", "--upstream-api-key,", "--https-proxy"):
        assert flag not in done.output


def test_help_settings_groups_them_by_plugin(commands: Commands) -> None:
    commands.install("team", TEAM)
    shown = commands.run("help", "settings").output
    group = "\nSettings of the plugin team:\n  --team-name, TEAM_NAME (default: us)\n"
    assert f"{group}      team that may enter\n" in shown
    assert "\nSettings of the plugin token:\n  AUTH_TOKEN (no flag; default: none)\n" in shown


def test_help_settings_works_while_settings_are_wrong(commands: Commands) -> None:
    done = commands.run("help", "settings", file="nonsense")
    assert done.status == 0
    assert "--upstream-base-url" in done.output
    assert "`python -m tornadoproxy check` shows why" in done.output


@pytest.mark.parametrize(
    ("command", "own"),
    [
        *((name, "") for name in COMMANDS if name not in ("plugins", "help")),
        ("plugins", "--format"),
        ("plugins new", "--directory"),
        ("keys create", "\nCreate a key and print it, once.\n"),
        ("keys revoke", "Every setting's flag may follow"),
        ("team", "\nShow the team.\n"),
    ],
)
def test_help_of_a_command_shows_its_arguments(commands: Commands, command: str, own: str) -> None:
    commands.install("team", TEAM)
    done = commands.run(*command.split(), "--help", PORT="x", file="")
    assert (done.status, done.errors) == (0, "")
    assert done.output.startswith(f"usage: python -m tornadoproxy {command} [-h]")
    assert own in done.output
    assert "UPSTREAM_BASE_URL" not in done.output
    assert commands.run("help", *command.split()).output == done.output
    assert commands.run("--help", *command.split()).output == done.output


def test_help_fits_a_terminal() -> None:
    plugins = Plugins.load().describe()
    lines = [*commands_text(plugins).splitlines(), *settings_text(plugins).splitlines()]
    assert max(map(len, lines)) <= 80


def test_default_is_shown_as_it_is_written() -> None:
    shown: dict[Any, dict[object, str]] = {
        parsers.size: {500 << 20: "500MB", 1500: "1500", 1 << 40: "1TB"},
        parsers.seconds(): {0.5: "0.5", 600.0: "600"},
        parsers.boolean: {True: "yes", False: "no"},
        parsers.words: {(): "none", ("a", "b"): "a b"},
        parsers.text: {None: "none"},
        parsers.integer(): {0: "0"},
    }
    for parse, texts in shown.items():
        for default, text in texts.items():
            assert default_text(Setting("X", parse, default=default, help="")) == text


def test_example_file_knows_every_name_and_default(tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / ".env.example"
    sets_nothing = env_file.read(str(file), required=True)
    assert (sets_nothing.faults, dict(sets_nothing.entries)) == ((), {})
    path = tmp_path / ".env"
    path.write_text(re.sub(r"^#(?=[A-Z])", "", file.read_text(), flags=re.MULTILINE))
    example = Sources({}, {}, env_file.read(str(path), required=True))
    declared = (*CORE_SETTINGS, *Plugins.load().declared_settings())
    assert example.env_file.faults == ()
    assert example.env_file.entries.keys() == {setting.name for setting in declared}
    files = {TLS_CERT, TLS_KEY, UPSTREAM_API_KEY_FILE, UPSTREAM_CA_FILE}
    for setting in declared:
        # secrets are placeholders, which are refused
        if setting.secret or setting.name.endswith("_FILE") or setting in files:
            continue
        value = example.read([setting])[setting]
        if setting.default not in (None, ()):
            assert value == setting.default, setting.name

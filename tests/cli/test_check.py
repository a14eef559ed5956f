"""``check``: facts of valid settings, faults of others; flags, environment and ``.env``."""

from __future__ import annotations

import os
import re
import socket

import pytest
from in_process import Commands

from tornadoproxy.cli import main as cli
from tornadoproxy.plugin.manager import Plugins

TOKEN = "canary-token-9f2c7b5e41"
KEY = "sk-canary-key-51d0a7"

AUTHENTICATOR = """
from tornadoproxy import Identity, Setting, hookimpl, parsers

TEAM = Setting("TEAM_NAME", parsers.text, default="us", help="team that may enter")

@hookimpl
def declare_settings():
    return [TEAM]

@hookimpl
def configure(settings):
    return f"the team {settings[TEAM]}"

@hookimpl
def authenticate(request):
    return Identity("everybody")
"""


def test_check_of_valid_settings_prints_facts(commands: Commands) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:  # which is not a fault: nothing listens
        port = str(taken.getsockname()[1])
        done = commands.run("check", "--port", port, AUTH_TOKEN=TOKEN, UPSTREAM_API_KEY=KEY)
    assert (done.status, done.errors) == (0, "")
    facts = dict(re.findall(r"^  (\S+) +(.*)$", done.output, re.MULTILINE))
    assert facts["address"] == f"http://127.0.0.1:{port}"
    assert facts["upstream"] == "https://api.anthropic.com, key from UPSTREAM_API_KEY"
    assert re.fullmatch(r"token, access_log\b.* \(in the order asked\)", facts["plugins"])
    assert facts["token"] == "clients with AUTH_TOKEN"
    assert TOKEN not in done.output
    assert KEY not in done.output


@pytest.mark.parametrize("command", [(), ("serve",), ("demo",)])
def test_command_that_serves_refuses_a_wrong_flag(
    commands: Commands, command: tuple[str, ...]
) -> None:
    told = "PORT must be a whole number from 0 to 65535, not 'x' (on the command line)"
    assert commands.refusal(*command, "--port", "x") == told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--prot", "1"], "unknown flag --prot: did you mean --port?"),
        (["--hepl=1"], "unknown flag --hepl: did you mean --help?"),
        (["--up"], "unknown flag --up"),
        (["--port"], "PORT is set but empty: give it a value or unset it (on the"),
        (["--port", "-5"], "PORT must be a whole number from 0 to 65535, not '-5' (on the"),
        (["--port", "--log-level", "info"], "PORT is set but empty: give it a value or unset it"),
        (["--env-file"], "--env-file names no file: write the path after it"),
        (["--env-file", "absent"], "absent does not exist: create it or name"),
        (["--help=x"], "argument -h/--help: takes no value (see `python"),
        (["x"], "there is an argument that belongs to no flag: the command comes"),
        (["-p", "1"], "there is an unknown flag, which is not shown here"),
        (["--access-log-form=x"], "unknown flag --access-log-form: did you mean --access-log-form"),
        (["--auth-token", TOKEN], "AUTH_TOKEN is secret, but every user can read a process's"),
        (["--keys-db", f"postgresql://u:{TOKEN}@db/x"], "KEYS_DB contains a password, but every"),
    ],
)
def test_argument_that_is_wrong_is_one_line(
    commands: Commands, arguments: list[str], told: str
) -> None:
    line = commands.refusal("check", *arguments, UPSTREAM_API_KEY=KEY)
    assert line.startswith(told)
    assert TOKEN not in line


@pytest.mark.parametrize(
    ("variables", "file", "told"),
    [
        ({"UPSTREAM_API_KEY_FILE": KEY}, None, "UPSTREAM_API_KEY_FILE must name a readable file"),
        ({"AUTH_TOKEN": f"{TOKEN}\1"}, None, "AUTH_TOKEN must contain no control characters"),
        ({"HOST": "0.0.0.0"}, None, "HOST is 0.0.0.0 and no AUTH_TOKEN is set; set one"),
        ({"DISABLED_PLUGINS": "token"}, None, "No plugin authenticates requests"),
        ({}, f"{TOKEN}\n", ".env, line 1: has no =: write NAME=value"),
        ({}, "PROT=1\n", ".env, line 1: unknown setting PROT: did you mean PORT?"),
    ],
)
def test_setting_that_is_wrong_is_one_line(
    commands: Commands, variables: dict[str, str], file: str | None, told: str
) -> None:
    line = commands.refusal("check", file=file, ANTHROPIC_API_KEY=KEY, **variables)
    assert line.startswith(told)
    assert TOKEN not in line
    assert KEY not in line


def test_faults_of_all_sources_are_reported_at_once(commands: Commands) -> None:
    variables = {"LOG_LEVEL": "loud", "ACCESS_LOG_FORMAT": "xml"}
    done = commands.run("check", "--nonsense", file="PROT=1\n", **variables)
    assert done.status == 2
    starts = ["unknown flag", ".env, line 1:", "LOG_LEVEL must", "ACCESS_LOG_FORMAT must"]
    for line, start in zip(done.errors.splitlines(), starts, strict=True):
        assert line.startswith(f"tornadoproxy: {start}")


def test_contradictions_and_plugin_refusals_are_reported_at_once(commands: Commands) -> None:
    (commands.directory / "key.pem").touch(mode=0o600)
    done = commands.run("check", HOST="0.0.0.0", TLS_KEY="key.pem")
    told = [line.split()[1] for line in done.errors.splitlines()]
    assert told == ["TLS_KEY", "https://api.anthropic.com", "HOST"]


def test_core_settings_are_checked_although_a_plugin_is_broken(commands: Commands) -> None:
    commands.install("broken", "raise RuntimeError('no\\nluck')")
    done = commands.run("check", PORT="x", TEAM_NAME="ours")
    assert done.status == 2
    plugin, port = done.errors.splitlines()
    assert plugin.startswith("tornadoproxy: plugin 'broken'")
    assert "RuntimeError: no luck" in plugin
    assert port.startswith("tornadoproxy: PORT must be")


def test_warnings_do_not_fail_the_check(commands: Commands) -> None:
    commands.install("team", AUTHENTICATOR)
    variables = {"UPSTREAM_API_KEY": KEY, "DISABLED_PLUGINS": "token"}
    file = f"AUTH_TOKEN={TOKEN}\nQUITE_ELSE=1"
    done = commands.run("check", "--team-name", "them", file=file, PROT="1", **variables)
    assert done.status == 0
    assert "the team them" in done.output
    assert [line.partition(": ")[2] for line in done.errors.splitlines()] == [
        "PROT in the environment is not read: did you mean PORT?",
        ".env: 2 names that are no setting of tornadoproxy: ignored",
    ]
    assert commands.run("check", LOG_LEVEL="error", **variables).errors == ""


def test_flags_are_read_before_the_file_that_is_named(commands: Commands) -> None:
    def port(*arguments: str) -> str:
        done = commands.run("check", *arguments, UPSTREAM_API_KEY=KEY)
        return done.output.partition("http://127.0.0.1:")[2].partition("\n")[0]

    (commands.directory / ".env").write_text("PORT=3")
    (commands.directory / "other").write_text("PORT=4")
    assert port() == "3"
    assert port("--env-file", "other") == "4"
    assert port("--env-file=other", "--port=1") == "1"


def test_flag_of_a_switch_needs_no_value(commands: Commands) -> None:
    variables = {"HOST": "0.0.0.0", "UPSTREAM_API_KEY": KEY}
    for switch, status in (("", 0), ("=yes", 0), ("=no", 2)):
        assert commands.run("check", f"--allow-anonymous{switch}", **variables).status == status


def test_interrupt_before_it_serves_has_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Plugins, "load", interrupt)
    assert cli.main(["check", "--env-file", os.devnull], {}) == 130

"""The command line: the real program, in a process of its own."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tornadoproxy import Secret, Setting, Settings, __version__, parsers
from tornadoproxy.cli import banner
from tornadoproxy.cli import main as cli
from tornadoproxy.cli.help_text import commands_text, default_text, settings_text
from tornadoproxy.config import env_file
from tornadoproxy.config.command_line import COMMANDS
from tornadoproxy.config.core_settings import (
    CORE_SETTINGS,
    HOST,
    TLS_CERT,
    TLS_KEY,
    UPSTREAM_API_KEY,
    UPSTREAM_API_KEY_FILE,
    UPSTREAM_CA_FILE,
)
from tornadoproxy.config.sources import Sources
from tornadoproxy.plugin.manager import Plugins

ROOT = Path(__file__).parents[2]
TOKEN = "canary-token-9f2c7b5e41"
KEY = "sk-canary-key-51d0a7"
PATIENCE = 20.0  # seconds; a limit for what would otherwise hang, never an expectation


def environment(**variables: str) -> dict[str, str]:
    """As little as possible, so that nothing of this machine's has a say."""
    coverage = {name: text for name, text in os.environ.items() if name.startswith("COVERAGE")}
    return {"PATH": os.defpath, **coverage, **variables}


def run(
    directory: Path, *arguments: str, file: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end in `directory`, with `file` as its ``.env``."""
    if file is not None:
        (directory / ".env").write_text(file)
    return subprocess.run(
        [sys.executable, "-m", "tornadoproxy", *arguments],
        cwd=directory,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def install(directory: Path, name: str, source: str) -> str:
    """Install a package with one plugin in `directory`; returns the PYTHONPATH that finds it."""
    info = directory / f"{name}-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[tornadoproxy]\n{name} = {name}\n")
    (directory / f"{name}.py").write_text(source)
    return str(directory)


AUTHENTICATOR = """
from tornadoproxy import Identity, Setting, hookimpl, parsers

TEAM = Setting("TEAM_NAME", parsers.text, default="us", help="The team that may enter.")

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


class TestVersionAndToken:
    @pytest.mark.parametrize("word", ["version", "--version"])
    def test_version(self, tmp_path: Path, word: str) -> None:
        done = run(tmp_path, word)
        assert (done.returncode, done.stdout) == (0, f"tornadoproxy {__version__}\n")

    def test_a_token_is_strong_alone_and_new(self, tmp_path: Path) -> None:
        tokens = set()
        for _ in range(2):
            done = run(tmp_path, "token", file="NONSENSE")
            assert (done.returncode, done.stderr) == (0, "")
            assert re.fullmatch(r"[\w-]{43}\n", done.stdout)
            tokens.add(done.stdout)
        assert len(tokens) == 2

    def test_a_token_takes_no_flags(self, tmp_path: Path) -> None:
        done = run(tmp_path, "token", "--port", "1")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "tornadoproxy: token takes no flags: leave out what follows it\n"


class TestHelp:
    @pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], ["help", "help"]])
    def test_help_names_every_command(self, tmp_path: Path, arguments: list[str]) -> None:
        done = run(tmp_path, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        text = " ".join(done.stdout.split())
        for command, what in COMMANDS.items():
            assert f" {command} {what} " in text
        assert "`python -m tornadoproxy help settings`" in text
        assert "UPSTREAM_BASE_URL" not in text

    @pytest.mark.parametrize("arguments", [["--help", "settings"], ["help", "settings"]])
    def test_help_settings_names_every_setting(self, tmp_path: Path, arguments: list[str]) -> None:
        done = run(tmp_path, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        shown = re.sub(r"\n {4}(?! )", " ", done.stdout)  # long lines unwrapped
        for setting in (*CORE_SETTINGS, *Plugins.load().declared_settings()):
            where = (
                f"no flag; default: {default_text(setting)}"
                if setting.secret
                else f"default: {default_text(setting)}"
            )
            line = rf"(?m)^  (.*\b)?{setting.name}\b.* \({re.escape(where)}\)$"
            assert re.search(line, shown), setting.name
            if setting.flag:
                assert f"  {setting.flag}, {setting.name}" in done.stdout

    def test_help_settings_has_no_flag_for_a_secret(self, tmp_path: Path) -> None:
        shown = run(tmp_path, "help", "settings").stdout
        assert "AUTH_TOKEN (no flag; default: none)" in shown
        assert "--auth-token," not in shown
        assert "--upstream-api-key," not in shown
        assert "--https-proxy" not in shown

    def test_help_settings_names_those_of_other_plugins(self, tmp_path: Path) -> None:
        path = install(tmp_path / "site", "team", AUTHENTICATOR)
        shown = run(tmp_path, "help", "settings", PYTHONPATH=path).stdout
        assert (
            "\nOf the plugin team:\n  --team-name, TEAM_NAME (default: us)\n"
            "      The team that may enter.\n"
        ) in shown

    @pytest.mark.parametrize(
        ("command", "own"),
        [
            *((name, "") for name in COMMANDS if name not in ("plugins", "help")),
            ("prices", "\nShow what models cost, and since when.\n"),
            ("plugins", "--format"),
            ("plugins new", "--directory"),
            ("keys create", "--requests-per-minute"),
            ("keys create", "\nMake a key, and show it, this once.\n"),
            ("keys revoke", "Every setting's flag may follow"),
            ("usage", "--since"),
        ],
    )
    def test_help_of_a_command_shows_its_own(self, tmp_path: Path, command: str, own: str) -> None:
        # whatever else is wrong
        done = run(tmp_path, *command.split(), "--help", PORT="x", file="")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"usage: python -m tornadoproxy {command} [-h]")
        assert own in done.stdout
        assert "UPSTREAM_BASE_URL" not in done.stdout
        assert run(tmp_path, "help", *command.split()).stdout == done.stdout

    def test_works_while_the_settings_are_wrong(self, tmp_path: Path) -> None:
        done = run(tmp_path, "help", "settings", file="nonsense")
        assert done.returncode == 0
        assert "--upstream-base-url" in done.stdout
        assert "`python -m tornadoproxy check` says why" in done.stdout

    def test_fits_a_terminal(self) -> None:
        plugins = Plugins.load().describe()
        lines = [*commands_text(plugins).splitlines(), *settings_text(plugins).splitlines()]
        assert max(map(len, lines)) <= 80

    @pytest.mark.parametrize(
        ("parse", "default", "shown"),
        [
            (parsers.size, 500 << 20, "500MB"),
            (parsers.size, 1500, "1500"),
            (parsers.size, 1 << 40, "1TB"),
            (parsers.seconds(), 0.5, "0.5"),
            (parsers.seconds(), 600.0, "600"),
            (parsers.boolean, True, "yes"),
            (parsers.boolean, False, "no"),
            (parsers.words, (), "none"),
            (parsers.words, ("a", "b"), "a b"),
            (parsers.text, None, "none"),
            (parsers.integer(), 0, "0"),
        ],
    )
    def test_shows_defaults_as_one_writes_them(
        self,
        parse: Any,
        default: object,
        shown: str,  # Any: parsers of several types
    ) -> None:
        assert default_text(Setting("X", parse, default=default, help="")) == shown


class TestCheck:
    def test_says_what_is_in_order(self, tmp_path: Path) -> None:
        done = run(tmp_path, "check", "--port", "1", AUTH_TOKEN=TOKEN, UPSTREAM_API_KEY=KEY)
        assert (done.returncode, done.stderr) == (0, "")
        facts = dict(re.findall(r"^  (\S+) +(.*)$", done.stdout, re.MULTILINE))
        assert facts["address"] == "http://127.0.0.1:1"
        assert facts["upstream"] == "https://api.anthropic.com, key from UPSTREAM_API_KEY"
        assert re.fullmatch(r"token, access_log\b.* \(in the order asked\)", facts["plugins"])
        assert facts["token"] == "clients with AUTH_TOKEN"
        assert TOKEN not in done.stdout
        assert KEY not in done.stdout

    def test_touches_no_port(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            done = run(tmp_path, "check", "--port", port, UPSTREAM_API_KEY=KEY)
        assert done.returncode == 0

    def test_serve_is_what_is_checked_by_default(self, tmp_path: Path) -> None:
        told = {run(tmp_path, *command, "--port", "x").stderr for command in ([], ["serve"])}
        assert told == {
            "tornadoproxy: PORT must be a whole number from 0 to 65535, not 'x' "
            "(on the command line)\n"
        }

    @pytest.mark.parametrize(
        ("arguments", "variables", "file", "told"),
        [
            ([], {}, None, "https://api.anthropic.com needs a key: set UPSTREAM_API_KEY or"),
            (["--prot", "1"], {}, None, "unknown flag --prot: did you mean --port?"),
            (["--prot=1"], {}, None, "unknown flag --prot: did you mean --port?"),
            (["--hepl"], {}, None, "unknown flag --hepl: did you mean --help?"),
            (["--up"], {}, None, "unknown flag --up"),
            (["--port"], {}, None, "PORT is set but empty: give it a value or unset it (on the"),
            (["--env-file"], {}, None, "--env-file names no file: write the path after it"),
            (["--help=x"], {}, None, "argument -h/--help: takes no value (see `python"),
            (["x"], {}, None, "there is an argument that belongs to no flag: the command comes"),
            (["-p", "1"], {}, None, "there is an unknown flag, which is not repeated here"),
            (
                ["--access-log-form", "json"],
                {},
                None,
                "unknown flag --access-log-form: did you mean --access-log-format?",
            ),
            (
                ["--auth-token", TOKEN],
                {},
                None,
                "AUTH_TOKEN is secret, and everybody can read a process's arguments: set it in",
            ),
            (["--upstream-api-key", KEY], {}, None, "UPSTREAM_API_KEY is secret, and everybody"),
            (["--env-file", "absent"], {}, None, "absent does not exist: create it or name"),
            ([], {"AUTH_TOKEN": ""}, None, "AUTH_TOKEN is set but empty: give it a value or"),
            ([], {"AUTH_TOKEN_FILE": "absent"}, None, "AUTH_TOKEN_FILE must name a readable file"),
            ([], {"HOST": "0.0.0.0"}, None, "HOST is 0.0.0.0 and no AUTH_TOKEN is set: set one"),
            ([], {"DISABLED_PLUGINS": "token"}, None, "No plugin authenticates requests"),
            ([], {"DISABLED_PLUGINS": "tokn"}, None, "DISABLED_PLUGINS names "),
            (
                [],
                {"UPSTREAM_BASE_URL": "http://localhost:8000"},
                None,
                "UPSTREAM_BASE_URL is http://localhost:8000, where this proxy itself listens",
            ),
            ([], {}, f"{TOKEN}\n", ".env, line 1: has no =: write NAME=value"),
            ([], {}, f"AUTH_TOKEN='{TOKEN}\n", ".env, line 1: cannot be parsed: write NAME=value"),
            (
                [],
                {},
                "PROT=1\n",
                ".env, line 1: unknown setting PROT: did you mean PORT?",
            ),
            (
                [],
                {"AUTH_TOKEN": "your-secret-token-here"},
                None,
                "AUTH_TOKEN is still the documentation's placeholder: put a secret of your own",
            ),
        ],
    )
    def test_tells_a_fault_in_one_line(
        self,
        tmp_path: Path,
        arguments: list[str],
        variables: dict[str, str],
        file: str | None,
        told: str,
    ) -> None:
        if "UPSTREAM_API_KEY" not in told or arguments:
            variables = {"UPSTREAM_API_KEY": KEY, **variables}
        done = run(tmp_path, "check", *arguments, file=file, **variables)
        assert done.returncode == 2
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"tornadoproxy: {told}")
        assert TOKEN not in line
        assert KEY not in line

    def test_tells_all_faults_at_once(self, tmp_path: Path) -> None:
        done = run(
            tmp_path,
            "check",
            "--nonsense",
            file="PROT=1\n",
            LOG_LEVEL="loud",
            ACCESS_LOG_FORMAT="xml",
        )
        assert done.returncode == 2
        starts = ["unknown flag", ".env, line 1:", "LOG_LEVEL must", "ACCESS_LOG_FORMAT must"]
        lines = done.stderr.splitlines()
        assert len(lines) == len(starts)
        for line, start in zip(lines, starts, strict=True):
            assert line.startswith(f"tornadoproxy: {start}")

    def test_tells_contradictions_and_what_plugins_refuse_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "key.pem").touch(mode=0o600)
        done = run(tmp_path, "check", HOST="0.0.0.0", TLS_KEY="key.pem")
        told = [line.split()[1] for line in done.stderr.splitlines()]
        assert told == ["TLS_KEY", "https://api.anthropic.com", "HOST"]

    def test_judges_the_core_even_if_a_plugin_is_broken(self, tmp_path: Path) -> None:
        path = install(tmp_path / "site", "broken", "raise RuntimeError('no\\nluck')")
        done = run(tmp_path, "check", PYTHONPATH=path, PORT="x", TEAM_NAME="ours")
        assert done.returncode == 2
        plugin, port = done.stderr.splitlines()
        assert plugin.startswith("tornadoproxy: plugin 'broken'")
        assert "RuntimeError: no luck" in plugin
        assert port.startswith("tornadoproxy: PORT must be")

    def test_warns_and_goes_on(self, tmp_path: Path) -> None:
        path = install(tmp_path / "site", "team", AUTHENTICATOR)
        variables = {"PYTHONPATH": path, "UPSTREAM_API_KEY": KEY, "DISABLED_PLUGINS": "token"}
        file = f"AUTH_TOKEN={TOKEN}\nQUITE_ELSE=1"
        done = run(tmp_path, "check", "--team-name", "them", file=file, PROT="1", **variables)
        assert done.returncode == 0
        assert "the team them" in done.stdout
        assert [line.partition(": ")[2] for line in done.stderr.splitlines()] == [
            "PROT in the environment is not read: did you mean PORT?",
            ".env: 2 names that are no setting of tornadoproxy: ignored",
        ]
        assert run(tmp_path, "check", LOG_LEVEL="error", **variables).stderr == ""

    @pytest.mark.parametrize(
        ("command", "told"),
        [
            ("chekc", "did you mean check?"),
            (TOKEN, "the command must be one of serve, check, plugins, token, demo"),
        ],
    )
    def test_an_unknown_command_is_a_fault(self, tmp_path: Path, command: str, told: str) -> None:
        done = run(tmp_path, command, UPSTREAM_API_KEY=KEY)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert told in line
        assert TOKEN not in line

    def test_a_wrong_value_of_a_secret_is_not_repeated(self, tmp_path: Path) -> None:
        for variables in (
            {"UPSTREAM_API_KEY": f"{KEY} {KEY}"},
            {"HTTPS_PROXY": f"socks5://user:{KEY}@proxy.example"},
            {"UPSTREAM_BASE_URL": f"https://user:{KEY}@api.example"},
            {"AUTH_TOKEN_FILE": KEY},
        ):
            done = run(tmp_path, "check", **variables)
            assert done.returncode == 2
            assert KEY not in done.stderr

    def test_flags_environment_and_file_in_this_order(self, tmp_path: Path) -> None:
        def port(*arguments: str, **variables: str) -> str:
            done = run(
                tmp_path, "check", *arguments, file="PORT=3", UPSTREAM_API_KEY=KEY, **variables
            )
            found = re.search(r"127\.0\.0\.1:(\d)", done.stdout)
            assert found
            return found[1]

        assert port("--port", "1", PORT="2") == "1"
        assert port("--port=1", PORT="2") == "1"
        assert port(PORT="2") == "2"
        assert port() == "3"

    def test_another_file(self, tmp_path: Path) -> None:
        (tmp_path / "other").write_text("PORT=4")
        arguments = ["check", "--env-file", "other"]
        done = run(tmp_path, *arguments, file="PORT=3", UPSTREAM_API_KEY=KEY)
        assert "127.0.0.1:4\n" in done.stdout

    def test_a_switch_needs_no_value(self, tmp_path: Path) -> None:
        variables = {"HOST": "0.0.0.0", "UPSTREAM_API_KEY": KEY}
        for switch, status in (
            ("--allow-anonymous", 0),
            ("--allow-anonymous=yes", 0),
            ("--allow-anonymous=no", 2),
        ):
            assert run(tmp_path, "check", switch, **variables).returncode == status


class Listing:
    """What `python -m tornadoproxy plugins` printed: its table, and the details by plugin."""

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


class TestPlugins:
    def test_are_listed_in_order_with_where_they_come_from(self, tmp_path: Path) -> None:
        done = run(tmp_path, "plugins")
        assert (done.returncode, done.stderr) == (0, "")
        shown = Listing(done.stdout)
        assert shown.rows[:2] == [
            ["1", "token", "tornadoproxy", __version__, "active"],
            ["2", "access_log", "tornadoproxy", __version__, "active"],
        ]
        assert shown.heads["token"] == "token (tornadoproxy_token:TokenAuthenticator)"
        assert shown.details["token"]["hooks"] == ["declare_settings, configure, authenticate"]
        assert "request_finished" in shown.details["access_log"]["hooks"][0]

    def test_have_pages_with_methods_and_who_may_enter(self, tmp_path: Path) -> None:
        shown = Listing(run(tmp_path, "plugins", "--metrics", "yes").stdout)
        assert shown.details["metrics"]["pages"][1:] == ["/metrics  GET      authenticated"]
        assert "pages" not in shown.details["token"]

    def test_that_nothing_is_asked_of_are_inactive_and_last(self, tmp_path: Path) -> None:
        idle = AUTHENTICATOR.replace('f"the team {settings[TEAM]}"', "INACTIVE")
        path = install(tmp_path / "site", "idle", idle.replace("Identity,", "Identity, INACTIVE,"))
        shown = Listing(run(tmp_path, "plugins", PYTHONPATH=path).stdout)
        order = [row[0] for row in shown.rows]
        assert order[order.index("-") :] == ["-"] * order.count("-")
        assert shown.states["idle"] == "inactive"
        assert shown.details["idle"]["hooks"] == ["declare_settings, configure, authenticate"]

    def test_of_others_and_disabled_ones(self, tmp_path: Path) -> None:
        path = install(tmp_path / "site", "team", AUTHENTICATOR)
        done = run(tmp_path, "plugins", "--disabled-plugins", "access_log", PYTHONPATH=path)
        shown = Listing(done.stdout)
        assert done.returncode == 0
        assert shown.rows[:2] == [
            ["1", "team", "team", "1.5", "active"],
            ["2", "token", "tornadoproxy", __version__, "active"],
        ]
        assert ["-", "access_log", "tornadoproxy", __version__, "disabled"] in shown.rows
        assert shown.details["access_log"] == {}

    def test_have_settings_with_values_from_somewhere(self, tmp_path: Path) -> None:
        path = install(tmp_path / "site", "team", AUTHENTICATOR)

        def team(*arguments: str, file: str, **variables: str) -> list[str]:
            done = run(tmp_path, "plugins", *arguments, file=file, PYTHONPATH=path, **variables)
            assert done.returncode == 0
            return Listing(done.stdout).setting("team", "TEAM_NAME")

        in_file = "# ours\nTEAM_NAME=one\n"
        assert team(file="") == ["us", "by default"]
        assert team(file=in_file) == ["one", ".env, line 2"]
        assert team(file=in_file, TEAM_NAME="two") == ["two", "in the environment"]
        assert team("--team-name", "three", file=in_file, TEAM_NAME="two") == [
            "three",
            "on the command line",
        ]
        long = team(file="", TEAM_NAME="x" * 200)
        assert long[0].startswith("xxx")
        assert long[0].endswith("…")

    def test_plugins_in_other_formats_say_the_same(self, tmp_path: Path) -> None:
        of_json = json.loads(run(tmp_path, "plugins", "--format", "json").stdout)
        (token,) = [each for each in of_json if each["name"] == "token"]
        assert token["hooks"] == ["declare_settings", "configure", "authenticate"]
        setting = {"name": "ALLOW_ANONYMOUS", "value": "no", "from": "by default"}
        assert setting in token["settings"]
        of_csv = csv.DictReader(io.StringIO(run(tmp_path, "plugins", "--format", "csv").stdout))
        names = [row["name"] for row in of_csv]
        assert names == [each["name"] for each in of_json]
        assert names[0] == "token"

    def test_show_no_secret(self, tmp_path: Path) -> None:
        (tmp_path / ".env").touch(mode=0o600)
        done = run(tmp_path, "plugins", file=f"AUTH_TOKEN={TOKEN}\n")
        assert Listing(done.stdout).setting("token", "AUTH_TOKEN") == ["set", ".env, line 1"]
        assert TOKEN not in done.stdout
        done = run(tmp_path, "plugins", file="")
        assert Listing(done.stdout).setting("token", "AUTH_TOKEN") == ["not set", "by default"]

    def test_that_are_broken_are_shown_with_the_reason(self, tmp_path: Path) -> None:
        path = install(tmp_path / "site", "broken", "raise RuntimeError('no luck ' + 'x ' * 80)")
        done = run(tmp_path, "plugins", PYTHONPATH=path)
        assert done.returncode == 2
        shown = Listing(done.stdout)
        assert shown.states["broken"] == "broken"
        reason = " ".join(shown.details["broken"]["refused"])
        assert reason.startswith("loading it failed: RuntimeError: no luck x x")
        assert shown.states["token"] == "loaded"
        assert done.stderr.startswith("tornadoproxy: plugin 'broken'")

    def test_are_listed_although_a_setting_is_wrong(self, tmp_path: Path) -> None:
        done = run(tmp_path, "plugins", PORT="nonsense", AUTH_TOKEN=TOKEN)
        assert done.returncode == 2
        shown = Listing(done.stdout)
        assert shown.states["token"] == "loaded"
        assert shown.setting("token", "AUTH_TOKEN") == []
        (fault,) = done.stderr.splitlines()
        assert fault.startswith("tornadoproxy: PORT must be a whole number")

    def test_that_refuse_the_settings_say_why(self, tmp_path: Path) -> None:
        done = run(tmp_path, "plugins", HOST="0.0.0.0")
        assert done.returncode == 2
        shown = Listing(done.stdout)
        assert shown.states["token"] == "loaded"
        assert shown.setting("token", "AUTH_TOKEN") == ["not set", "by default"]
        (fault,) = done.stderr.splitlines()
        assert fault.startswith("tornadoproxy: HOST is 0.0.0.0 and no AUTH_TOKEN is set: set one")

    def test_cannot_be_listed_if_the_disabled_ones_are_not_known(self, tmp_path: Path) -> None:
        done = run(tmp_path, "plugins", file="nonsense")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "tornadoproxy: .env, line 1: has no =: write NAME=value\n"

    def test_an_unknown_flag_is_told(self, tmp_path: Path) -> None:
        done = run(tmp_path, "plugins", "--access-log", "off", "--acess-log", "off")
        assert done.returncode == 2
        assert done.stderr == (
            "tornadoproxy: unknown flag --acess-log: did you mean --access-log?\n"
        )


class TestExampleFile:
    FILES = frozenset({TLS_CERT, TLS_KEY, UPSTREAM_API_KEY_FILE, UPSTREAM_CA_FILE})

    def test_sets_nothing(self) -> None:
        example = env_file.read(ROOT / ".env.example", required=True)
        assert (example.faults, dict(example.entries)) == ((), {})

    def test_knows_every_name_and_default(self, tmp_path: Path) -> None:
        text = (ROOT / ".env.example").read_text()
        path = tmp_path / ".env"
        path.write_text(re.sub(r"^#(?=[A-Z])", "", text, flags=re.MULTILINE))
        example = Sources({}, {}, env_file.read(path, required=True))
        declared = (*CORE_SETTINGS, *Plugins.load().declared_settings())
        assert example.env_file.faults == ()
        assert example.env_file.entries.keys() == {setting.name for setting in declared}
        for setting in declared:
            # secrets are placeholders, which are refused
            if not setting.secret and not setting.name.endswith("_FILE"):
                self.check(example, setting)

    def check(self, example: Sources, setting: Setting[Any]) -> None:
        if setting in self.FILES:
            return
        value = example.read([setting])[setting]
        if setting.default not in (None, ()):
            assert value == setting.default, setting.name


class TestBanner:
    SETTINGS = Settings.defaults().replace({UPSTREAM_API_KEY: Secret(KEY)})

    @pytest.mark.parametrize(
        ("host", "listening", "client"),
        [
            ("127.0.0.1", "http://127.0.0.1:9", "http://127.0.0.1:9"),
            ("0.0.0.0", "http://0.0.0.0:9", "http://127.0.0.1:9"),
            ("::", "http://[::]:9", "http://[::1]:9"),
            ("proxy.example", "http://proxy.example:9", "http://proxy.example:9"),
        ],
    )
    def test_shows_a_url_that_works(self, host: str, listening: str, client: str) -> None:
        settings = self.SETTINGS.replace({HOST: host})
        facts = banner.facts(settings, 9, (), ())
        assert ("address", listening) in facts
        lines = "\n".join(banner.banner(settings, 9, facts, "x"))
        assert f"ANTHROPIC_BASE_URL={client}\n" in lines
        assert f'base_url="{client}/openai/v1"' in lines
        assert banner.streaming_curl(settings, 9, "x").startswith(f"curl -N {client}/v1/messages")

    def test_shows_tls(self) -> None:
        settings = self.SETTINGS.replace({TLS_CERT: Path("cert.pem")})
        assert banner.listening_url(settings, 443) == "https://127.0.0.1"

    def test_says_where_the_key_comes_from(self) -> None:
        def upstream(settings: Settings) -> str:
            return dict(banner.facts(settings, 9, (), ()))["upstream"]

        assert upstream(self.SETTINGS).endswith("key from UPSTREAM_API_KEY")
        assert upstream(Settings.defaults()).endswith("no key")
        by_file = Settings.defaults().replace({UPSTREAM_API_KEY_FILE: Secret(KEY)})
        assert upstream(by_file).endswith("key from UPSTREAM_API_KEY_FILE")

    def test_names_a_variable_in_the_reader_s_own_language(self) -> None:
        lines = "\n".join(banner.banner(self.SETTINGS, 9, [("a", "b")], "$AUTH_TOKEN"))
        assert 'export ANTHROPIC_AUTH_TOKEN="$AUTH_TOKEN"' in lines
        assert 'api_key=os.environ["AUTH_TOKEN"]' in lines
        lines = "\n".join(banner.banner(self.SETTINGS, 9, [("a", "b")], "throw-away"))
        assert 'api_key="throw-away"' in lines

    def test_credential_of_others_is_a_placeholder(self) -> None:
        declared = Plugins.load().declared_settings()
        nothing = Sources({}, {}, env_file.EnvFile(Path(".env"), {}))
        settings = Settings.defaults(*declared)
        title, command = banner.credential(settings, nothing, declared)
        assert title == "to paste first; replace your-token with your credential, if you need one:"
        assert command == "export AUTH_TOKEN=your-token"
        (keys,) = [setting for setting in declared if setting.name == "KEYS_DB"]
        keyed = settings.replace({keys: Path("keys.db")})
        assert banner.credential(keyed, nothing, declared) == (
            "to paste first; replace your-key with a key of yours:",
            "export AUTH_TOKEN=your-key",
        )


def test_an_interruption_before_it_serves_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Plugins, "load", interrupt)
    assert cli.main(["check", "--env-file", os.devnull], {}) == 130

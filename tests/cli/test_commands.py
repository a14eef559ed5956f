"""Plugins' own commands: the hook ``commands``, and ``python -m tornadoproxy NAME``."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tornadoproxy import ConfigurationError, Setting, parsers
from tornadoproxy.cli.help_text import settings_text
from tornadoproxy.cli.own_parser import own_parser
from tornadoproxy.config.command_line import COMMANDS, read
from tornadoproxy.config.core_settings import CORE_SETTINGS
from tornadoproxy.plugin.manager import Plugins

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tornadoproxy.config.command_line import Arguments

CREDENTIAL = "sk-canary-51d0a79c"
PATIENCE = 20.0  # seconds; a limit for what would otherwise hang, never an expectation

SHOP = """
    import sys
    from tornadoproxy import Command, ConfigurationError, Setting, hookimpl, parsers

    SHOP_DB = Setting("SHOP_DB", parsers.text, default="shop.db", help="The shop's file.")
    SHOP_KEY = Setting("SHOP_KEY", parsers.secret, default=None, help="Its key.", secret=True)

    def add_arguments(parser):
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        sell = actions.add_parser("sell", help="sell something")
        sell.add_argument("what")
        sell.add_argument("--price", type=parsers.integer(1))
        actions.add_parser("list", help="list everything")
        actions.add_parser("fail", help="fail in one of several ways").add_argument("how")

    def run(own, settings):
        if own.action == "sell":
            print(own.what, own.price, settings[SHOP_DB])
            return 7 if own.price is None else 0
        if own.action == "list":
            for number in range(200_000):
                print(number)
            return 0
        print("begun")
        if own.how == "mistake":
            raise ConfigurationError("there is no such thing: sell another", "and no money")
        if own.how == "crash":
            raise KeyError("CREDENTIAL")
        if own.how == "interrupt":
            raise KeyboardInterrupt
        if own.how == "exit":
            sys.exit(5)
        return "done"

    @hookimpl
    def declare_settings():
        return [SHOP_DB, SHOP_KEY]

    @hookimpl
    def configure(settings):
        raise AssertionError("a command configures nothing")

    @hookimpl
    def startup():
        raise AssertionError("a command starts nothing")

    @hookimpl
    def commands():
        return [Command("shop", "keep a shop", add_arguments, run)]
""".replace("CREDENTIAL", CREDENTIAL)


class Site:
    """A directory of installed packages, each a module with one plugin."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def install(self, name: str, source: str) -> None:
        info = self.path / f"{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[tornadoproxy]\n{name} = installed_{name}\n")
        (self.path / f"installed_{name}.py").write_text(textwrap.dedent(source))

    def points(self) -> list[EntryPoint]:
        found = distributions(path=[str(self.path)])
        return [point for dist in found for point in dist.entry_points]

    def command(self, *arguments: str) -> list[str]:
        """How the program is started; see `environment`."""
        return [sys.executable, "-m", "tornadoproxy", *arguments]

    def environment(self, **variables: str) -> dict[str, str]:
        """As little as possible, so that nothing of this machine's has a say."""
        coverage = {name: text for name, text in os.environ.items() if name.startswith("COVERAGE")}
        return {"PATH": os.defpath, "PYTHONPATH": str(self.path), **coverage, **variables}

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.path,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(site.path)
    yield site
    for name in [name for name in sys.modules if name.startswith("installed_")]:
        del sys.modules[name]


@pytest.fixture
def shop(site: Site) -> Site:
    site.install("shop", SHOP)
    return site


class TestRun:
    def test_it_gets_its_arguments_and_the_settings(self, shop: Site) -> None:
        done = shop.run("shop", "sell", "tea", "--price", "3")
        assert (done.returncode, done.stdout, done.stderr) == (0, "tea 3 shop.db\n", "")

    def test_its_exit_status_is_the_program_s(self, shop: Site) -> None:
        assert shop.run("shop", "sell", "tea").returncode == 7
        assert shop.run("shop", "fail", "exit").returncode == 5

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--shop-db", "other.db", "sell", "tea"),
            ("sell", "--shop-db=other.db", "tea"),
            ("sell", "tea", "--port", "1", "--shop-db", "other.db"),
        ],
    )
    def test_the_flags_of_settings_are_known_wherever_they_stand(
        self, shop: Site, arguments: tuple[str, ...]
    ) -> None:
        assert shop.run("shop", *arguments).stdout == "tea None other.db\n"

    def test_settings_come_from_where_they_always_do(self, shop: Site) -> None:
        (shop.path / ".env").write_text("SHOP_DB=from-file\n")
        (shop.path / "other").write_text("SHOP_DB=from-other\n")
        assert shop.run("shop", "sell", "tea").stdout == "tea None from-file\n"
        assert shop.run("shop", "sell", "tea", SHOP_DB="set").stdout == "tea None set\n"
        done = shop.run("shop", "sell", "tea", "--env-file", "other")
        assert done.stdout == "tea None from-other\n"

    def test_a_mistake_is_told_in_lines(self, shop: Site) -> None:
        done = shop.run("shop", "fail", "mistake")
        assert (done.returncode, done.stdout) == (2, "begun\n")
        assert done.stderr == (
            "tornadoproxy: there is no such thing: sell another\ntornadoproxy: and no money\n"
        )

    def test_a_crash_is_told_without_its_text(self, shop: Site) -> None:
        done = shop.run("shop", "fail", "crash")
        assert (done.returncode, done.stdout) == (2, "begun\n")
        (line,) = done.stderr.splitlines()
        assert line.startswith("tornadoproxy: plugin 'shop' failed in its command shop: KeyError")
        assert "installed_shop.py, line " in line
        assert CREDENTIAL not in line

    def test_what_is_no_exit_status_is_a_fault(self, shop: Site) -> None:
        done = shop.run("shop", "fail", "otherwise")
        assert done.returncode == 2
        assert done.stderr == (
            "tornadoproxy: plugin 'shop' failed in its command shop: it must return the exit "
            "status, not a str\n"
        )

    def test_an_interruption_is_no_traceback(self, shop: Site) -> None:
        done = shop.run("shop", "fail", "interrupt")
        assert (done.returncode, done.stderr) == (130, "")

    def test_a_reader_that_leaves_is_quiet(self, shop: Site) -> None:
        with subprocess.Popen(
            shop.command("shop", "list"),
            cwd=shop.path,
            env=shop.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as running:
            assert running.stdout is not None
            assert running.stderr is not None
            assert running.stdout.readline() == b"0\n"
            running.stdout.close()
            assert running.stderr.read() == b""
            assert running.wait(PATIENCE) == 141

    def test_a_reader_that_never_was_is_quiet(self, shop: Site) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            shop.command("shop", "sell", "tea"),
            cwd=shop.path,
            env=shop.environment(),
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, b"")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device to try")
    def test_a_full_device_is_told(self, shop: Site) -> None:
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                shop.command("shop", "sell", "tea", "--price", "1"),
                cwd=shop.path,
                env=shop.environment(),
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        assert done.returncode == 2
        assert done.stderr == (
            "tornadoproxy: standard output takes nothing: No space left on device\n"
        )


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["shop", "sell", "tea", "--pirce", CREDENTIAL], "unknown flag --pirce: did you mean"),
            (["shop", "sell", "tea", "--prot", "1"], "unknown flag --prot: did you mean --port?"),
            (["shop", "sell", "tea", "--price"], "argument --price: expected one argument (see"),
            (["shop", "sell", "tea", "--port", "x"], "PORT must be a whole number from 0"),
            (["shop", "sell", "tea", "--shop-key", CREDENTIAL], "SHOP_KEY is secret, and every"),
            (["shop", "sell"], "the following arguments are required: what (see `python -m"),
            (
                ["shp", "sell"],
                "the command must be one of serve, check, plugins, token, demo",
            ),
            ([CREDENTIAL], "the command must be one of serve, check, plugins, token, demo"),
        ],
    )
    def test_is_one_line(self, shop: Site, arguments: list[str], told: str) -> None:
        done = shop.run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"tornadoproxy: {told}")
        assert CREDENTIAL not in line

    def test_in_the_word_suggests_the_nearest_of_all(self, shop: Site) -> None:
        assert shop.run("shpo").stderr.endswith(": did you mean shop?\n")
        assert shop.run("chekc").stderr.endswith(": did you mean check?\n")

    def test_a_wrong_setting_is_told_before_anything_is_done(self, shop: Site) -> None:
        done = shop.run("shop", "sell", "tea", LOG_LEVEL="loud")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("tornadoproxy: LOG_LEVEL must be")

    def test_a_plugin_that_cannot_be_used_keeps_commands_from_running(self, shop: Site) -> None:
        shop.install("broken", "raise RuntimeError('no luck')")
        done = shop.run("shop", "sell", "tea")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("tornadoproxy: plugin 'broken'")
        assert shop.run("shop", "sell", "tea", DISABLED_PLUGINS="broken").returncode == 7

    def test_a_disabled_plugin_has_no_commands(self, shop: Site) -> None:
        done = shop.run("shop", "list", DISABLED_PLUGINS="shop")
        assert done.returncode == 2
        assert done.stderr.startswith("tornadoproxy: the command must be one of")


class TestArguments:
    """What argparse makes of them, without a process."""

    DB: Setting[str] = Setting("SHOP_DB", parsers.text, default="", help="")

    def read(self, *arguments: str) -> Arguments:
        own = own_parser("shop", "keep a shop", self.add_arguments)
        return read(("shop", *arguments), (*CORE_SETTINGS, self.DB), own)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("what", nargs="*")
        parser.add_argument("--count", type=parsers.integer(1, 9))
        parser.add_argument("--number", type=int)
        parser.add_argument("--until", type=self.until)
        parser.add_argument("--sort", choices=["day", "name"])
        parser.add_argument("--force", "-f", action="store_true")

    def until(self, text: str) -> str:
        raise argparse.ArgumentTypeError(f"must be a day to come, not {text!r}")

    def test_keep_their_order(self) -> None:
        read = self.read("a", "--shop-db", "x", "b", "-5", "--force", "--count", "2")
        assert read.faults == ()
        assert read.flags == {"SHOP_DB": "x"}
        assert (read.own.what, read.own.count, read.own.force) == (["a", "b", "-5"], 2, True)

    def test_after_two_dashes_are_no_flags(self) -> None:
        read = self.read("--", "--port", "--shop-db", "-x")
        assert read.faults == ()
        assert read.flags == {}
        assert read.own.what == ["--port", "--shop-db", "-x"]

    def test_are_not_abbreviated(self) -> None:
        assert self.read("--coun", "2").faults == ("unknown flag --coun: did you mean --count?",)

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["--count", CREDENTIAL], "argument --count: must be a whole number from 1 to 9 (see "),
            (["--count=12"], "argument --count: must be a whole number from 1 to 9 (see "),
            (["--number", CREDENTIAL], "argument --number: has a wrong value (see "),
            (["--number", "x"], "argument --number: has a wrong value (see "),
            (["--until", CREDENTIAL], "argument --until: must be a day to come (see "),
            (["--sort", CREDENTIAL], "argument --sort: must be one of day, name (see "),
            (["--sort", "dya"], "argument --sort: must be one of day, name: did you mean day? ("),
            ([f"--force={CREDENTIAL}"], "argument --force/-f: takes no value (see "),
        ],
    )
    def test_that_are_wrong_are_not_repeated(self, arguments: list[str], told: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            self.read(*arguments)
        (fault,) = caught.value.faults
        assert fault.startswith(told)
        assert "`python -m tornadoproxy shop --help`" in fault
        assert CREDENTIAL not in fault

    @pytest.mark.parametrize("flag", [f"-{CREDENTIAL}", f"--{CREDENTIAL.upper()}"])
    def test_that_look_like_no_flag_are_not_repeated(self, flag: str) -> None:
        (fault,) = self.read(flag).faults
        assert fault.startswith("there is an unknown flag, which is not repeated here")


class TestHelp:
    def test_lists_commands_after_the_core_s(self, shop: Site) -> None:
        done = shop.run("--help")
        assert (done.returncode, done.stderr) == (0, "")
        listed = done.stdout.partition("Commands:\n")[2].partition("\n\n")[0]
        names = re.findall(r"^  (\S+)", listed, re.MULTILINE)
        assert names[: len(COMMANDS)] == list(COMMANDS)
        assert re.search(r"^  shop +keep a shop$", listed, re.MULTILINE)

    def test_groups_the_settings_by_plugin(self, shop: Site) -> None:
        text = settings_text(Plugins.load((), [*shop.points(), *TOKEN]).describe())
        assert text.count("\nOf the plugin ") == 2
        of_shop = text.partition("\nOf the plugin shop:\n")[2].partition("\nOf the plugin ")[0]
        assert "SHOP_DB" in of_shop
        assert "AUTH_TOKEN" not in of_shop

    def test_of_a_command_is_the_command_s_own(self, shop: Site) -> None:
        done = shop.run("shop", "--help", PORT="nonsense")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: python -m tornadoproxy shop [-h] ACTION ...\n")
        assert shop.run("help", "shop").stdout == done.stdout
        assert shop.run("--help", "shop").stdout == done.stdout
        assert "sell something" in done.stdout
        assert "UPSTREAM_BASE_URL" not in done.stdout
        done = shop.run("shop", "sell", "-h")
        assert done.returncode == 0
        assert done.stdout.startswith("usage: python -m tornadoproxy shop sell ")
        assert "--price" in done.stdout


TOKEN = [
    point
    for dist in distributions(name="tornadoproxy")
    for point in dist.entry_points
    if (point.group, point.name) == ("tornadoproxy", "token")
][:1]


def offering(*commands: str) -> str:
    """A plugin whose commands are the expressions `commands`."""
    return f"""
        from tornadoproxy import Command, Setting, hookimpl, parsers

        def nothing(parser): pass
        def run(own, settings): return 0

        @hookimpl
        def commands():
            return [{", ".join(commands)}]
    """


class TestRefused:
    def fault(self, site: Site) -> str:
        with pytest.raises(ConfigurationError) as caught:
            Plugins.load((), [*site.points(), *TOKEN])
        (fault,) = caught.value.faults
        return fault

    @pytest.mark.parametrize(
        ("offered", "told"),
        [
            ("'keys'", "it offers a str, which is not a Command"),
            ("Command('Keys', 'x', nothing, run)", "a command's name is in lower case"),
            ("Command('my keys', 'x', nothing, run)", "a command's name is in lower case"),
            ("Command('--keys', 'x', nothing, run)", "a command's name is in lower case"),
            ("Command('acme', 'x\\ny', nothing, run)", "the help of a command is one line"),
            ("Command('check', 'x', nothing, run)", "its command check is taken by the proxy"),
        ],
    )
    def test_a_command_that_is_none(self, site: Site, offered: str, told: str) -> None:
        site.install("acme", offering(offered))
        fault = self.fault(site)
        assert fault.startswith("plugin 'acme' of acme 1.5 cannot be used")
        assert told in fault

    def test_a_name_that_another_plugin_has(self, site: Site) -> None:
        site.install("acme", offering("Command('buy', 'x', nothing, run)"))
        site.install("zeta", offering("Command('buy', 'x', nothing, run)"))
        fault = self.fault(site)
        assert fault.startswith("plugin 'zeta' of zeta 1.5 cannot be used")
        assert "the name of its command buy is taken by acme: rename it" in fault

    def test_a_name_that_it_offers_twice(self, site: Site) -> None:
        site.install("acme", offering(*["Command('buy', 'x', nothing, run)"] * 2))
        assert "the name of its command buy is taken by itself" in self.fault(site)

    @pytest.mark.parametrize("how", ["async def commands(): return []", "def commands(): 1 / 0"])
    def test_a_hook_that_cannot_be_asked(self, site: Site, how: str) -> None:
        source = f"from tornadoproxy import hookimpl\n@hookimpl\n{how}\n"
        site.install("acme", source)
        assert self.fault(site).startswith("plugin 'acme' of acme 1.5 cannot be used")

    @pytest.mark.parametrize(
        ("flag", "told"),
        [
            ("--port", "its flag --port is the program's or a setting's: rename it"),
            ("--auth-token", "its flag --auth-token is the program's or a setting's: rename it"),
            ("--env-file", "its flag --env-file is the program's or a setting's: rename it"),
            ("no flag", "ValueError"),
        ],
    )
    def test_a_flag_that_is_a_setting_s(self, site: Site, flag: str, told: str) -> None:
        # in a sub-command, and in a group there
        site.install(
            "acme",
            f"""
            from tornadoproxy import Command, hookimpl

            def add_arguments(parser):
                buy = parser.add_subparsers().add_parser("buy")
                if not "{flag}".startswith("-"):
                    raise ValueError
                buy.add_argument_group("more").add_argument("--fine")
                buy.add_argument_group("more").add_argument("{flag}")

            @hookimpl
            def commands():
                return [Command("acme", "x", add_arguments, lambda own, settings: 0)]
            """,
        )
        for arguments in (["acme", "buy"], ["check"], ["plugins"]):
            done = site.run(*arguments, UPSTREAM_API_KEY="key")
            assert done.returncode == 2
            (line,) = done.stderr.splitlines()
            assert line.startswith("tornadoproxy: plugin 'acme' failed in its command acme: ")
            assert told in line
        # nobody else pays for looking into it
        assert site.run("--help").returncode == 0

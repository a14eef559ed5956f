"""Commands of plugins: how they run, fail and are refused."""

from __future__ import annotations

import pytest
from in_process import Commands

CREDENTIAL = "sk-canary-51d0a79c"

SHOP = """
import sys
from tornadoproxy import Command, ConfigurationError, Setting, hookimpl, parsers

SHOP_DB = Setting("SHOP_DB", parsers.text, default="shop.db", help="file of the shop")
SHOP_KEY = Setting("SHOP_KEY", parsers.secret, default=None, help="its key", secret=True)

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
        raise ConfigurationError("no such thing: sell another", "and no money")
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


@pytest.fixture
def shop(commands: Commands) -> Commands:
    commands.install("shop", SHOP)
    return commands


@pytest.mark.parametrize(
    "arguments",
    [
        "--shop-db from-flag sell tea --price 3",
        "sell --shop-db=from-flag tea --price=3",
        "sell tea --price 3 --port 1 --shop-db from-flag",
    ],
)
def test_command_takes_flags_of_settings_anywhere(shop: Commands, arguments: str) -> None:
    assert shop.run("shop", *arguments.split()) == (0, "tea 3 from-flag\n", "")


def test_command_reads_settings_from_all_sources(shop: Commands) -> None:
    (shop.directory / "other").write_text("SHOP_DB=from-other\n")
    sell = ("shop", "sell", "tea")
    assert shop.run(*sell, file="SHOP_DB=from-file\n") == (7, "tea None from-file\n", "")
    assert shop.run(*sell, SHOP_DB="set").output == "tea None set\n"
    assert shop.run(*sell, "--env-file", "other").output == "tea None from-other\n"


FAILED = "tornadoproxy: plugin 'shop' failed in its command shop: "


@pytest.mark.parametrize(
    ("how", "status", "errors"),
    [
        ("exit", 5, ""),
        ("interrupt", 130, ""),
        ("mistake", 2, "tornadoproxy: no such thing: sell another\ntornadoproxy: and no money\n"),
        ("otherwise", 2, f"{FAILED}it must return the exit status, not a str\n"),
    ],
)
def test_command_that_ends_gives_the_exit_status(
    shop: Commands, how: str, status: int, errors: str
) -> None:
    assert shop.run("shop", "fail", how) == (status, "begun\n", errors)


def test_command_that_crashes_is_reported_without_its_text(shop: Commands) -> None:
    done = shop.run("shop", "fail", "crash")
    assert (done.status, done.output) == (2, "begun\n")
    (line,) = done.errors.splitlines()
    assert line.startswith(f"{FAILED}KeyError")
    assert "shop.py, line " in line
    assert CREDENTIAL not in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["shop", "sell", "tea", "--pirce", CREDENTIAL], "unknown flag --pirce: did you mean"),
        (["shop", "sell", "tea", "--price"], "argument --price: expected one argument (see"),
        (["shop", "sell", "tea", "--port", "x"], "PORT must be a whole number from 0"),
        (["shop", "sell"], "the following arguments are required: what (see `python -m"),
        (["shop", "sel"], "argument ACTION: must be one of sell, list, fail: did you mean sell?"),
        ([CREDENTIAL], "the command must be one of serve, check, plugins, db, token"),
    ],
)
def test_command_line_that_is_wrong_is_one_line(
    shop: Commands, arguments: list[str], told: str
) -> None:
    line = shop.refusal(*arguments)
    assert line.startswith(told)
    assert CREDENTIAL not in line


def test_unknown_command_suggests_the_nearest_of_all(shop: Commands) -> None:
    assert shop.refusal("shpo").endswith(": did you mean shop?")
    assert shop.refusal("chekc").endswith(": did you mean check?")
    assert "did you mean" not in shop.refusal("shop", DISABLED_PLUGINS="shop")


def test_command_beside_a_broken_plugin_does_not_run(shop: Commands) -> None:
    shop.install("broken", "raise RuntimeError('no luck')")
    assert shop.refusal("shop", "sell", "tea").startswith("plugin 'broken'")
    assert shop.run("shop", "sell", "tea", DISABLED_PLUGINS="broken").status == 7


OFFER = """
from tornadoproxy import Command, Setting, hookimpl, parsers

def nothing(parser): pass
def run(own, settings): return 0

@hookimpl
def commands():
    return [OFFERED]
"""


@pytest.mark.parametrize(
    ("offered", "told"),
    [
        ("'keys'", "it offers a str, which is not a Command"),
        ("Command('Keys', 'x', nothing, run)", "a command's name is in lower case"),
        ("Command('--keys', 'x', nothing, run)", "a command's name is in lower case"),
        ("Command('acme', 'x\\ny', nothing, run)", "the help of a command is one line"),
        ("Command('check', 'x', nothing, run)", "its command check is taken by the proxy"),
        ("Command('usage', 'x', nothing, run)", "its command usage is taken by ledger: rename it"),
        ("*[Command('buy', 'x', nothing, run)] * 2", "its command buy is taken by itself"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_command_that_cannot_be_offered_refuses_its_plugin(
    commands: Commands, offered: str, told: str
) -> None:
    commands.install("zeta", OFFER.replace("OFFERED", offered))
    fault = commands.refusal("zeta", "--port", "1")
    assert fault.startswith("plugin 'zeta' of zeta 1.5 cannot be used")
    assert told in fault


def test_hook_commands_that_is_async_refuses_its_plugin(commands: Commands) -> None:
    commands.install("zeta", OFFER.replace("def commands", "async def commands"))
    assert commands.refusal("zeta").startswith("plugin 'zeta' of zeta 1.5 cannot be used")


FLAGS = """
from tornadoproxy import Command, hookimpl

def add_arguments(parser):
    buy = parser.add_subparsers().add_parser("buy")
    if not "FLAG".startswith("-"):
        raise ValueError
    buy.add_argument_group("more").add_argument("--fine")
    buy.add_argument_group("more").add_argument("FLAG")

@hookimpl
def commands():
    return [Command("acme", "x", add_arguments, lambda own, settings: 0)]
"""


@pytest.mark.parametrize("flag", ["--port", "--auth-token", "--env-file", "no flag"])
def test_command_with_the_flag_of_a_setting_is_refused(commands: Commands, flag: str) -> None:
    commands.install("acme", FLAGS.replace("FLAG", flag))
    told = f"its flag {flag} is the program's or a setting's: rename it"
    for arguments in (["acme", "buy"], ["check"], ["plugins"]):
        done = commands.run(*arguments, UPSTREAM_API_KEY="key")
        assert done.status == 2
        (line,) = done.errors.splitlines()
        assert line.startswith("tornadoproxy: plugin 'acme' failed in its command acme: ")
        assert (told if flag.startswith("-") else "ValueError") in line
    assert commands.run("--help").status == 0

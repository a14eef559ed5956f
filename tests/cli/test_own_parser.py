"""A command's own arguments beside the flags of settings; no error repeats a value."""

from __future__ import annotations

import argparse

import pytest

from tornadoproxy import ConfigurationError, Setting, parsers
from tornadoproxy.cli.own_parser import own_parser
from tornadoproxy.config.command_line import Arguments, read
from tornadoproxy.config.core_settings import CORE_SETTINGS

CREDENTIAL = "sk-canary-51d0a79c"
DB: Setting[str] = Setting("SHOP_DB", parsers.text, default="", help="")


def until(text: str) -> str:
    raise argparse.ArgumentTypeError(f"must be a day to come, not {text!r}")


def paid(text: str) -> str:
    raise ValueError(f"{text} is not paid")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="*")
    parser.add_argument("--count", type=parsers.integer(1, 9))
    parser.add_argument("--number", type=int)
    parser.add_argument("--until", type=until)
    parser.add_argument("--bill", type=paid)
    parser.add_argument("--sort", choices=["day", "name"])
    parser.add_argument("--force", "-f", action="store_true")


def parsed(*arguments: str) -> Arguments:
    own = own_parser("shop", "keep a shop", add_arguments)
    return read(("shop", *arguments), (*CORE_SETTINGS, DB), own)


def test_arguments_keep_their_order() -> None:
    found = parsed("a", "--shop-db", "x", "b", "-5", "--force", "--count", "2")
    assert found.faults == ()
    assert found.flags == {"SHOP_DB": "x"}
    assert (found.own.what, found.own.count, found.own.force) == (["a", "b", "-5"], 2, True)
    found = parsed("--", "--port", "--shop-db", "-x")
    assert (found.faults, found.flags) == ((), {})
    assert found.own.what == ["--port", "--shop-db", "-x"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--count", CREDENTIAL], "argument --count: must be a whole number from 1 to 9 (see "),
        (["--number", "x"], "argument --number: has an invalid value (see "),
        (["--until", CREDENTIAL], "argument --until: must be a day to come (see "),
        ([f"--bill={CREDENTIAL}"], "argument --bill: has an invalid value (see "),
        (["--sort", CREDENTIAL], "argument --sort: must be one of day, name (see "),
        (["--sort", "dya"], "argument --sort: must be one of day, name: did you mean day? ("),
        ([f"--force={CREDENTIAL}"], "argument --force/-f: takes no value (see "),
    ],
)
def test_value_that_is_wrong_is_not_repeated(arguments: list[str], told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parsed(*arguments)
    (fault,) = caught.value.faults
    assert fault.startswith(told)
    assert "`python -m tornadoproxy shop --help`" in fault
    assert CREDENTIAL not in fault


def test_unknown_flag_is_repeated_only_if_it_looks_like_one() -> None:
    assert parsed("--coun", "2").faults == ("unknown flag --coun: did you mean --count?",)
    for flag in (f"-{CREDENTIAL}", f"--{CREDENTIAL.upper()}", f"--{'a' * 62}"):
        (fault,) = parsed(flag).faults
        assert fault.startswith("there is an unknown flag, which is not shown here")

"""Reads the command line: which command, and which flags.

Every setting that is not secret has a flag. Reading never fails: what is wrong becomes a fault, so
that it is told together with the faults of other places. A fault does not repeat an argument
unless it looks like a flag: it may be a credential.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tornadoproxy import parsers
from tornadoproxy.errors import ConfigurationError
from tornadoproxy.sources import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tornadoproxy.settings import Setting

COMMANDS = {
    "serve": "listen and relay; this is the default",
    "check": "judge settings and plugins without listening; exits with 2 if there is a fault",
    "plugins": "list the plugins in the order asked, with their hooks",
    "token": "print a new strong token",
    "demo": "serve in front of a scripted upstream: needs no key and no network",
}
DEFAULT_ENV_FILE = Path(".env")


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a command line says.

    :param command: one of `COMMANDS`.
    :param flags: the text of each flag given, by its setting's variable.
    :param env_file: the ``.env`` file to read.
    :param env_file_named: whether the command line named it, so that it must exist.
    :param help: whether help is asked for, instead of the command.
    :param version: whether the version is asked for, instead of the command.
    :param faults: what is wrong, a line each.
    """

    command: str
    flags: Mapping[str, str] = field(repr=False)
    env_file: Path
    env_file_named: bool
    help: bool
    version: bool
    faults: tuple[str, ...]


def read(arguments: Sequence[str], declared: Iterable[Setting[Any]]) -> Arguments:
    """Read `arguments`, those after the program's name.

    :param declared: the settings whose flags are known.
    :raises ConfigurationError: argparse itself can make nothing of them.
    """
    settings = {setting.name: setting for setting in declared}
    command, rest, faults = _command(arguments)
    parser = _parser(settings.values())
    given, unknown = parser.parse_known_args(rest)
    texts: dict[str, str] = {
        name: text for name in settings if (text := getattr(given, name)) is not None
    }
    faults += [_secret_fault(settings[name]) for name in texts if settings[name].secret]
    faults += _unknown(unknown, [_flag(setting) for setting in settings.values()])
    return Arguments(
        command,
        {name: text for name, text in texts.items() if not settings[name].secret},
        env_file=DEFAULT_ENV_FILE if given.env_file is None else Path(given.env_file),
        env_file_named=given.env_file is not None,
        help=given.help,
        version=given.version,
        faults=tuple(faults),
    )


class _Parser(argparse.ArgumentParser):
    """argparse, whose errors are faults."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(message)


def _command(arguments: Sequence[str]) -> tuple[str, Sequence[str], list[str]]:
    if not arguments or arguments[0].startswith("-"):
        return "serve", arguments, []
    command, *rest = arguments
    if command in COMMANDS:
        return command, rest, []
    known = ", ".join(COMMANDS)
    return "serve", rest, [f"the command must be one of {known}{nearest(command, COMMANDS)}"]


def _parser(declared: Iterable[Setting[Any]]) -> _Parser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--env-file")
    for setting in declared:
        # a flag without its value is set but empty, which is told when the setting is read
        alone = "true" if setting.parse is parsers.boolean else ""
        parser.add_argument(_flag(setting), dest=setting.name, nargs="?", const=alone)
    return parser


def _flag(setting: Setting[Any]) -> str:
    """The flag of `setting`; a secret one's is known, too, to say why it is none."""
    return setting.flag or "--" + setting.name.lower().replace("_", "-")


def _secret_fault(setting: Setting[Any]) -> str:
    return (
        f"{setting.name} is secret, and everybody can read a process's arguments: set it in the "
        "environment or in .env"
    )


def _unknown(arguments: Sequence[str], known: Sequence[str]) -> list[str]:
    """A fault for each flag that is unknown, or else for each argument that belongs to none."""
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
    if not flags and arguments:
        return ["there is an argument that belongs to no flag: the command comes first, then flags"]
    return [
        f"unknown flag {flag}{nearest(flag, (*known, '--env-file', '--help', '--version'))}"
        if re.fullmatch(r"--[a-z][a-z0-9-]{1,60}", flag)
        else "there is an unknown flag, which is not repeated here: see --help"
        for flag in flags
    ]

"""The command line: which command, which flags, and a command's own arguments.

Every setting that is not secret has a flag, which every command takes. The command's own parser
gets the rest. What is wrong becomes a fault, reported with the faults of the other sources. A fault
repeats an argument only if it looks like a flag: anything else may be a credential.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from tornadoproxy.config import parsers
from tornadoproxy.config.responses_settings import store
from tornadoproxy.config.setting import flag_of
from tornadoproxy.config.sources import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tornadoproxy.config.setting import Setting

COMMANDS = {
    "serve": "listen and relay; this is the default",
    "check": "validate settings and plugins, then exit; the status is 2 if one is invalid",
    "plugins": "list the plugins, their hooks and settings; `plugins new NAME` creates one",
    "db": "show, migrate and copy the databases of plugins and responses",
    "token": "print a new random token",
    "codex-catalog": "print the catalog of models for the Codex CLI, from the upstream's list",
    "demo": "serve in front of a scripted upstream; needs no key, no network and no .env",
    "help": "list the commands; `help COMMAND` explains one, `help settings` lists the settings",
    "version": "print the version",
}
DEFAULT_ENV_FILE = ".env"
PROGRAM = "python -m tornadoproxy"

_ENV_FILE = "--env-file"
_HELP = ("-h", "--help")
# compiled when they are used: most starts have few flags
_PASSWORD = "://[^/]*:[^/]*@"  # noqa: S105  # a pattern
_NUMBER = r"-[0-9.]"


class OwnParser(Protocol):
    """What parses a command's own arguments; see `tornadoproxy.cli.own_parser`."""

    prog: str

    def parse_known_args(self, args: Sequence[str]) -> tuple[Any, list[str]]:
        """Return the parsed arguments, and those that are unknown."""

    def flags(self) -> Iterable[str]:
        """Return the command's own flags."""


class Arguments(Struct, frozen=True):
    """A command line, parsed.

    :param flags: the text of each flag, by its setting's variable.
    :param env_file: the ``.env`` file to read.
    :param env_file_named: whether the command line names it, so that it must exist.
    :param own: what the command's own parser made of the rest; ``None`` without one.
    :param faults: what is wrong, a line each.
    """

    flags: Mapping[str, str]
    env_file: str
    env_file_named: bool
    own: Any  # what a parser returns has the command's own attributes
    faults: tuple[str, ...]

    __repr__ = object.__repr__  # a flag may hold a credential


def command(arguments: Sequence[str]) -> str:
    """Return the word that names the command; it may be unknown, and must not be shown then."""
    if not arguments or arguments[0] in _HELP:
        return "help" if arguments else "serve"
    if arguments[0] == "--version":
        return "version"
    return "serve" if arguments[0].startswith("-") else arguments[0]


def asks_for_help(arguments: Iterable[str]) -> bool:
    """Whether one of `arguments` is ``-h`` or ``--help``."""
    return any(argument.partition("=")[0] in _HELP for argument in arguments)


def unknown_command(word: str, known: Iterable[str]) -> str:
    """Return the fault for a `word` that is none of the `known` commands."""
    known = tuple(known)
    return f"the command must be one of {', '.join(known)}{nearest(word, known)}"


def read(
    arguments: Sequence[str], declared: Iterable[Setting[Any]], own: OwnParser | None = None
) -> Arguments:
    """Parse `arguments`, those after the program's name.

    :param declared: the settings whose flags are known.
    :param own: the command's own parser; it prints help, and raises `SystemExit` then.
    :raises ConfigurationError: the command's own arguments are wrong.
    """
    # a secret one has no flag, but it is recognized to say so
    settings = {flag_of(setting.name): setting for setting in declared if not setting.no_flag}
    rest = arguments[1:] if arguments and not arguments[0].startswith("-") else arguments
    given, unknown = _taken(rest, settings)
    env_file = given.pop(_ENV_FILE, None)
    known, mend, parsed = [*settings, _ENV_FILE, *_HELP], "see `help`", None
    if own is not None:
        parsed, unknown = own.parse_known_args(unknown)
        known += own.flags()
        mend = f"the command comes first, then its own: see `{own.prog} --help`"
    secret = [settings[flag] for flag, text in given.items() if _holds_secret(settings[flag], text)]
    faults = [*map(_secret_fault, secret), *_unknown(unknown, known, mend)]
    if env_file == "":
        faults.append(f"{_ENV_FILE} names no file: write the path after it")
    return Arguments(
        {settings[flag].name: text for flag, text in given.items() if settings[flag] not in secret},
        env_file=env_file or _env_file(command(arguments)),
        env_file_named=bool(env_file),
        own=parsed,
        faults=tuple(faults),
    )


def setting_flags(declared: Iterable[Setting[Any]]) -> frozenset[str]:
    """Return the flags that every command takes: those of `declared`, and ``--env-file``."""
    flags = (flag_of(setting.name) for setting in declared if not setting.no_flag)
    return frozenset({_ENV_FILE, *flags})


def _taken(
    arguments: Sequence[str], settings: Mapping[str, Setting[Any]]
) -> tuple[dict[str, str], list[str]]:
    """Return the texts of the settings' flags and of ``--env-file``, and all other arguments."""
    given: dict[str, str] = {}
    others: list[str] = []
    at = 0
    while at < len(arguments):
        flag, equals, text = arguments[at].partition("=")
        at += 1
        if flag == "--":
            others += arguments[at - 1 :]
            break
        if flag not in settings and flag != _ENV_FILE:
            others.append(arguments[at - 1])
            continue
        if not equals:
            if at < len(arguments) and not _looks_like_flag(arguments[at]):
                text = arguments[at]
                at += 1
            elif flag in settings and settings[flag].parse is parsers.boolean:
                text = "true"
        given[flag] = text  # empty is a fault, found where the setting is read
    return given, others


def _looks_like_flag(argument: str) -> bool:
    return argument.startswith("-") and argument != "-" and not re.match(_NUMBER, argument)


def _env_file(name: str) -> str:
    """Return the ``.env`` file of the command `name`: the demo reads none, and shows no secret."""
    return os.devnull if name == "demo" else DEFAULT_ENV_FILE


def _holds_secret(setting: Setting[Any], text: str) -> bool:
    """Whether the text of a flag is secret, or a database's URL with a password."""
    if setting.parse in (parsers.database, store) and re.search(_PASSWORD, text):
        return True
    return setting.secret


def _secret_fault(setting: Setting[Any]) -> str:
    kind = "is secret" if setting.secret else "contains a password"
    return (
        f"{setting.name} {kind}, but every user can read a process's arguments: set it in the "
        "environment or in .env"
    )


def _unknown(arguments: Sequence[str], known: Iterable[str], mend: str) -> list[str]:
    """Return a fault for each unknown flag, or one for arguments that belong to no flag."""
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
    if not flags and arguments:
        return [f"there is an argument that belongs to no flag: {mend}"]
    return [
        f"unknown flag {flag}{nearest(flag, known)}"
        if re.fullmatch(r"--[a-z][a-z0-9-]{1,60}", flag)
        else "there is an unknown flag, which is not shown here: see `help settings`"
        for flag in flags
    ]

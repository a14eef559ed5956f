"""Reads the command line: which command, which flags, and a command's own arguments.

Every setting that is not secret has a flag, which every command knows. What is left goes to the
command's own parser. What is wrong becomes a fault, so that it is told together with the faults of
other places. A fault does not repeat an argument unless it looks like a flag:
it may be a credential.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from msgspec import Struct

from tornadoproxy.config import parsers
from tornadoproxy.config.sources import nearest
from tornadoproxy.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tornadoproxy.config.setting import Setting

COMMANDS = {
    "serve": "listen and relay; this is the default",
    "check": "validate settings and plugins, then exit, with 2 if one is wrong",
    "plugins": "list the plugins, their hooks and settings; `plugins new NAME` writes one",
    "token": "print a new strong token",
    "demo": "serve in front of a scripted upstream: needs no key, no network and no .env",
    "help": "print the commands; `help COMMAND` what one takes, `help settings` the settings",
    "version": "print the version",
}
DEFAULT_ENV_FILE = Path(".env")
_NO_ENV_FILE = Path(os.devnull)
PROGRAM = "python -m tornadoproxy"

_ENV_FILE = "--env-file"
_HELP = ("-h", "--help")


class Arguments(Struct, frozen=True):
    """What a command line says.

    :param flags: the text of each flag given, by its setting's variable.
    :param env_file: the ``.env`` file to read.
    :param env_file_named: whether the command line named it, so that it must exist.
    :param own: what the command's own parser made of the rest; empty without one.
    :param faults: what is wrong, a line each.
    """

    flags: Mapping[str, str]
    env_file: Path
    env_file_named: bool
    own: argparse.Namespace
    faults: tuple[str, ...]

    __repr__ = object.__repr__  # a field may hold a credential


def command(arguments: Sequence[str]) -> str:
    """The word that names the command; it need not be one of `COMMANDS`, and is not to be shown."""
    if not arguments or arguments[0] in _HELP:
        return "help" if arguments else "serve"
    if arguments[0] == "--version":
        return "version"
    return "serve" if arguments[0].startswith("-") else arguments[0]


def unknown_command(word: str, known: Iterable[str]) -> str:
    """The fault of a `word` that is none of the `known` commands."""
    known = tuple(known)
    return f"the command must be one of {', '.join(known)}{nearest(word, known)}"


def read(
    arguments: Sequence[str],
    declared: Iterable[Setting[Any]],
    own: argparse.ArgumentParser | None = None,
) -> Arguments:
    """Read `arguments`, those after the program's name.

    :param declared: the settings whose flags are known.
    :param own: the command's own parser, by `own_parser`; ``None`` while it is not known. Help is
        its business: it prints it, and raises `SystemExit`.
    :raises ConfigurationError: argparse itself can make nothing of them.
    """
    settings = {setting.name: setting for setting in declared}
    rest = arguments[1:] if arguments and not arguments[0].startswith("-") else arguments
    given, unknown = _parser(settings.values()).parse_known_args(rest)
    known = [*map(_flag, settings.values()), _ENV_FILE, *_HELP]
    namespace, mend = argparse.Namespace(), "see `help`"
    if own is not None:
        namespace, unknown = own.parse_known_args(unknown)
        known += _flags(own)
        mend = f"the command comes first, then its own: see `{own.prog} --help`"
    texts: dict[str, str] = {
        name: text for name in settings if (text := getattr(given, name)) is not None
    }
    faults = [_secret_fault(settings[name]) for name in texts if settings[name].secret]
    faults += _unknown(unknown, known, mend)
    return Arguments(
        {name: text for name, text in texts.items() if not settings[name].secret},
        env_file=_env_file(command(arguments)) if given.env_file is None else Path(given.env_file),
        env_file_named=given.env_file is not None,
        own=namespace,
        faults=tuple(faults),
    )


def _env_file(name: str) -> Path:
    """The ``.env`` file of the command `name`. The demo needs no setting, and shows no real one."""
    return _NO_ENV_FILE if name == "demo" else DEFAULT_ENV_FILE


def own_parser(
    name: str, what: str, add_arguments: Callable[[argparse.ArgumentParser], None]
) -> argparse.ArgumentParser:
    """A parser for the own arguments of the command `name`.

    The help of each sub-command says what it does, and that every setting's flag may follow.

    :param what: what the command does.
    :param add_arguments: adds them.
    """
    parser = _Parser(
        prog=f"{PROGRAM} {name}",
        description=_sentence(what),
        epilog=f"Every setting's flag may follow, too, and --env-file: `{PROGRAM} help settings`.",
    )
    add_arguments(parser)
    for action in parser._actions:  # nothing public names the sub-commands
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                sub = action.choices[choice.dest]
                sub.description = sub.description or _sentence(choice.help or "")
                sub.epilog = sub.epilog or parser.epilog
    return parser


def _sentence(phrase: str) -> str:
    return phrase and phrase[:1].upper() + phrase[1:].rstrip(".") + "."


def taken_flags(
    parser: argparse.ArgumentParser, declared: Iterable[Setting[Any]]
) -> tuple[str, ...]:
    """Those flags of a command's own that are the program's, or a setting's, already."""
    taken = {_ENV_FILE, *map(_flag, declared)}
    return tuple(dict.fromkeys(flag for flag in _flags(parser) if flag in taken))


class _Parser(argparse.ArgumentParser):
    """argparse, whose errors are faults, and repeat no value."""

    def __init__(self, **options: Any) -> None:  # Any: as argparse has them
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        message = re.sub("ignored explicit argument .*", "takes no value", message, flags=re.DOTALL)
        message = re.sub("ambiguous option: .*", "a flag is ambiguous", message, flags=re.DOTALL)
        raise ConfigurationError(f"{message} (see `{self.prog} --help`)")

    # The next two are not in argparse's documentation. Its own messages repeat the value, and
    # nothing that is documented sees the value apart from them.

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:  # Any: as argparse
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            # argparse's own text is about the type's name, while the type said what is wrong
            complaint = _without(arg_string, str(error.__context__))
            raise argparse.ArgumentError(action, complaint) from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # Any: as argparse
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f"must be one of {', '.join(choices)}{nearest(str(value), choices)}"
            )


def _without(argument: str, complaint: str) -> str:
    """The `complaint`, if it does not repeat the `argument`."""
    told = " ".join(complaint.split()).replace(f", not {argument!r}", "")
    repeated = repr(argument) in told or (len(argument) > 3 and argument in told)
    return told if told and not repeated else "has a wrong value"


def _parser(declared: Iterable[Setting[Any]]) -> _Parser:
    parser = _Parser(prog=PROGRAM, add_help=False)
    parser.add_argument(_ENV_FILE)
    for setting in declared:
        # a flag without its value is set but empty, which is told when the setting is read
        alone = "true" if setting.parse is parsers.boolean else ""
        parser.add_argument(_flag(setting), dest=setting.name, nargs="?", const=alone)
    return parser


def _flag(setting: Setting[Any]) -> str:
    """The flag of `setting`; a secret one's is known, too, to say why it is none."""
    return setting.flag or "--" + setting.name.lower().replace("_", "-")


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The flags of a command's parser, and of those of its sub-commands."""
    for action in parser._actions:  # nothing public names them
        yield from action.option_strings
        if isinstance(action.choices, Mapping):
            for sub in action.choices.values():
                if isinstance(sub, argparse.ArgumentParser):
                    yield from _flags(sub)


def _secret_fault(setting: Setting[Any]) -> str:
    return (
        f"{setting.name} is secret, and everybody can read a process's arguments: set it in the "
        "environment or in .env"
    )


def _unknown(arguments: Sequence[str], known: Iterable[str], mend: str) -> list[str]:
    """A fault for each flag that is unknown, or else one for the arguments that belong to none."""
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
    if not flags and arguments:
        return [f"there is an argument that belongs to no flag: {mend}"]
    return [
        f"unknown flag {flag}{nearest(flag, known)}"
        if re.fullmatch(r"--[a-z][a-z0-9-]{1,60}", flag)
        else "there is an unknown flag, which is not repeated here: see `help settings`"
        for flag in flags
    ]

"""The parser of a command's own arguments: argparse, whose errors repeat no value."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from tornadoproxy.config.command_line import PROGRAM
from tornadoproxy.config.sources import nearest
from tornadoproxy.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class OwnParser(argparse.ArgumentParser):
    """argparse with errors as faults that never repeat a value, which may be a credential."""

    def __init__(self, **options: Any) -> None:  # Any: argparse's own options
        super().__init__(**{"allow_abbrev": False, **options})
        self._given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # as argparse's
        """Parse `args`, and remember them for `error`."""
        self._given = args or ()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise the fault for an error that argparse is about to report."""
        error = sys.exception()
        if isinstance(error, argparse.ArgumentError):
            name = f"argument {error.argument_name}: " if error.argument_name else ""
            message = name + self._complaint(error)
        raise ConfigurationError(f"{message} (see `{self.prog} --help`)")

    def flags(self) -> Iterator[str]:
        """The flags of this parser and of its sub-commands."""
        for action in self._actions:  # nothing public names them
            yield from action.option_strings
            if isinstance(action.choices, Mapping):
                for sub in action.choices.values():
                    if isinstance(sub, OwnParser):
                        yield from sub.flags()

    def _complaint(self, error: argparse.ArgumentError) -> str:
        if error.__context__ is None:
            return _without_value(error.message)
        # argparse's message names the type; the exception that the type raised says what is wrong
        complaint = " ".join(str(error.__context__).split())
        complaint = complaint.partition(", not '")[0].partition(', not "')[0]
        values = {part for word in self._given for part in (word, word.partition("=")[2])}
        repeats = any(len(value) > 3 and value in complaint for value in values)
        return "has an invalid value" if repeats or not complaint or "'" in complaint else complaint


def own_parser(
    name: str, what: str, add_arguments: Callable[[argparse.ArgumentParser], None]
) -> OwnParser:
    """Return the parser for the own arguments of the command `name`.

    The help of each sub-command says what it does, and that every setting's flag may follow.

    :param what: what the command does.
    :param add_arguments: adds the arguments.
    """
    parser = OwnParser(
        prog=f"{PROGRAM} {name}",
        description=_sentence(what),
        epilog=f"Every setting's flag may follow, and --env-file: see `{PROGRAM} help settings`.",
    )
    add_arguments(parser)
    for action in parser._actions:  # nothing public names the sub-commands
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                sub = action.choices[choice.dest]
                sub.description = sub.description or _sentence(choice.help or "")
                sub.epilog = sub.epilog or parser.epilog
    return parser


def _without_value(message: str) -> str:
    """Return argparse's `message` about a value without the value."""
    start, _, choices = message.rpartition(" (choose from ")
    if start.startswith("invalid choice: "):
        names = choices.removesuffix(")").replace("'", "").split(", ")
        value = start.removeprefix("invalid choice: ").strip("'\"")
        return f"must be one of {', '.join(names)}{nearest(value, names)}"
    if message.startswith("ignored explicit argument "):
        return "takes no value"
    return "a flag is ambiguous" if message.startswith("ambiguous option: ") else message


def _sentence(phrase: str) -> str:
    return phrase and phrase[:1].upper() + phrase[1:].rstrip(".") + "."

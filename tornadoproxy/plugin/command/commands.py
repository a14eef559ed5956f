"""A plugin's own command, as the hook ``commands`` declares it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    import argparse

    from tornadoproxy.config.settings import Settings


class Command(Struct, frozen=True):
    """``python -m tornadoproxy NAME …``

    :param name: the word on the command line, in lower case.
    :param help: what it does, in one line, for ``--help``.
    :param add_arguments: adds the command's own arguments and sub-commands to its parser. Every
        command accepts the flags of all settings without declaring them. What a ``type`` raises is
        shown, unless it repeats the value: use `tornadoproxy.config.parsers`.
    :param run: runs the command with the settings and the parsed arguments. It writes to
        ``sys.stdout`` and returns the exit status. A `ConfigurationError` is printed to standard
        error in one line, with exit status 2. No plugin is configured or started for it.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Settings], int]

    def __post_init__(self) -> None:
        # no pattern: compiling it takes a thousandth of the start
        is_word = self.name.isascii() and self.name.islower() and self.name[0].isalpha()
        if not is_word or not all(word.isalnum() for word in self.name.split("-")):
            raise ValueError(f"a command's name is in lower case, like usage, not {self.name!r}")
        if len(self.help.splitlines()) != 1:
            raise ValueError(f"the help of a command is one line; that of {self.name} is not")

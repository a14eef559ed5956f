"""A plugin's own command, as the hook ``commands`` declares it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    import argparse

    from tornadoproxy.config.settings import Settings


class Command(Struct, frozen=True):
    """``python -m tornadoproxy NAME …``

    :param name: the word on the command line, in lower case.
    :param help: what it does, in a line, for ``--help``.
    :param add_arguments: adds the command's own arguments and sub-commands to its parser. The
        flags of all settings are known to every command, and are no business of this one. What a
        ``type`` raises is shown, unless it repeats the value: `tornadoproxy.config.parsers` are
        made for it.
    :param run: does it, given the settings and what the parser made of the arguments. It writes
        to ``sys.stdout`` and returns the exit status. A mistake is a `ConfigurationError`: it is
        told in a line on standard error, and the exit status is 2. No plugin is configured or
        started for it.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Settings], int]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", self.name):
            raise ValueError(f"a command's name is in lower case, like usage, not {self.name!r}")
        if len(self.help.splitlines()) != 1:
            raise ValueError(f"the help of a command is one line; that of {self.name} is not")

"""The own arguments of the core's commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.cli import databases, new_plugin
from tornadoproxy.cli.own_parser import OwnParser, own_parser
from tornadoproxy.config.command_line import COMMANDS
from tornadoproxy.plugin.command import tables

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Sequence


def core_parser(command: str, arguments: Sequence[str]) -> OwnParser:
    """Return the parser of the core's `command`, with which `arguments` begin."""
    adders: dict[str, Callable[[ArgumentParser], None]] = {
        "check": _add_online,
        "db": databases.add_arguments,
        "plugins": new_plugin.add_arguments if "new" in arguments[1:2] else tables.add_format,
    }
    return own_parser(command, COMMANDS[command], adders.get(command, lambda _: None))


def _add_online(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--online", action="store_true", help="also ask the upstream whether it accepts the key"
    )

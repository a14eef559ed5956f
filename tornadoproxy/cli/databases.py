"""The command ``db``: the databases of plugins and responses, shown, migrated and copied."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from tornadoproxy.config.parsers import database as location
from tornadoproxy.errors import ConfigurationError
from tornadoproxy.plugin.command import tables
from tornadoproxy.server.configuration import databases
from tornadoproxy.storage.copying import copy

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from tornadoproxy.config.settings import Settings
    from tornadoproxy.plugin.hookspecs import OpenDatabase
    from tornadoproxy.plugin.manager import Plugins
    from tornadoproxy.storage.contract import DatabaseLocation
    from tornadoproxy.storage.database import Database

_COLUMNS = {
    "plugin": "plugin",
    "database": "database",
    "schema": "schema",
    "newest": "newest",
    "state": "state",
}


class _Kept(NamedTuple):
    """What one plugin keeps: the setting's name and value, and how to open a database."""

    plugin: str
    setting: str
    where: DatabaseLocation | None
    made: OpenDatabase


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of ``db``."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    status = commands.add_parser("status", help="show each plugin's database and its schema")
    tables.add_format(status)
    status.set_defaults(do=_status)
    migrate = commands.add_parser("migrate", help="create the tables, or bring them up to date")
    migrate.set_defaults(do=_migrate)
    copying = commands.add_parser(
        "copy", help="copy the data of plugins from one database into another, and verify it"
    )
    for flag, what in (("--from", "read from"), ("--to", "write to")):
        copying.add_argument(
            flag,
            type=_location,
            metavar="PATH|URL",
            help=f"database to {what} (default: what each plugin's setting names)",
        )
    copying.add_argument(
        "--replace", action="store_true", help="delete what the other database holds"
    )
    copying.set_defaults(do=_copy)
    for command in (status, migrate, copying):
        command.add_argument("plugin", nargs="*", metavar="PLUGIN", help="only these plugins")


def run(own: argparse.Namespace, plugins: Plugins, settings: Settings) -> int:
    """Run the subcommand, and return the exit status.

    :raises ConfigurationError: a database cannot be used, or the arguments are wrong.
    """
    kept = [_Kept(*each) for each in databases(plugins, settings)]
    names = [each.plugin for each in kept]
    for name in own.plugin:
        if name not in names:
            raise ConfigurationError(
                f"{name} is no plugin with a database: name {', '.join(names) or 'none'}."
            )
    do: Callable[[argparse.Namespace, Sequence[_Kept]], int] = own.do
    return do(own, [each for each in kept if each.plugin in own.plugin or not own.plugin])


def _status(own: argparse.Namespace, kept: Sequence[_Kept]) -> int:
    rows = [_state(each.plugin, each.made(each.where)) for each in kept if each.where is not None]
    tables.write(_COLUMNS, rows, own.format)
    return int(any(state != "up to date" for *_, state in rows))


def _state(plugin: str, database: Database) -> tuple[str, str, int | None, int, str]:
    newest = len(database.schema)
    try:
        version = database.version()
    except ConfigurationError as error:
        return plugin, str(database.where), None, newest, str(error)
    if version == 0:
        state = "has no tables"
    elif version == newest:
        state = "up to date"
    else:
        state = "must be migrated" if version < newest else "is newer than this program"
    return plugin, str(database.where), version, newest, state


def _migrate(own: argparse.Namespace, kept: Sequence[_Kept]) -> int:
    del own
    for each in kept:
        if each.where is not None:
            database = each.made(each.where)
            with database:
                print(f"{each.plugin}: {database.where} is up to date")  # noqa: T201
    return 0


def _copy(own: argparse.Namespace, kept: Sequence[_Kept]) -> int:
    source, target = vars(own)["from"], own.to
    if source is None and target is None:
        raise ConfigurationError("--from and --to are missing: name at least one of them.")
    copied = False
    for each in kept:
        where = source or each.where
        if where is None or (old := each.made(where)).version() == 0:
            continue
        to = target or each.where
        if to is None:
            raise ConfigurationError(
                f"there is no database to copy {each.plugin} into: set {each.setting}, or add --to."
            )
        if to == where:
            raise ConfigurationError(f"{where} would be copied into itself: name another database.")
        new = each.made(to)
        with new:
            rows = copy(old, new, replace=own.replace, progress=_Progress(each.plugin))
        copied = True
        counts = ", ".join(f"{count:,} of {table}" for table, count in rows.items())
        print(f"{each.plugin}: copied and verified rows: {counts}")  # noqa: T201
    if not copied:
        raise ConfigurationError("there is nothing to copy: no plugin has tables in the source.")
    return 0


def _location(text: str) -> DatabaseLocation:
    if re.search(r"://[^/]*:[^/]*@", text):
        raise ConfigurationError(
            "a password in --from or --to could be read by every user of this machine: set the "
            "URL in the environment or in .env instead, or the password in PGPASSWORD."
        )
    return location(text)


class _Progress:
    """Shows on a terminal, once a second, how far a copy is."""

    def __init__(self, plugin: str) -> None:
        self._plugin = plugin
        self._shown_at = time.monotonic()

    def __call__(self, table: str, copied: int, total: int) -> None:
        now = time.monotonic()
        if now - self._shown_at >= 1.0:
            self._shown_at = now
            sys.stderr.write(f"{self._plugin}: {copied:,} of {total:,} rows of {table}\n")

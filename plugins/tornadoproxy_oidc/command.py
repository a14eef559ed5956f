"""The command ``python -m tornadoproxy sign-ins``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from tornadoproxy import ConfigurationError, tables
from tornadoproxy_oidc import store

if TYPE_CHECKING:
    import argparse

    from tornadoproxy import DatabaseLocation

_COLUMNS = {
    "name": "name",
    "email": "email",
    "groups": "groups",
    "signed_in": "signed in",
    "checked": "checked",
    "expires": "expires",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="list the people who are signed in")
    tables.add_format(listing)
    end = actions.add_parser("end", help="end every sign-in of a person, within two seconds")
    end.add_argument("name", help="the person's name, as `sign-ins list` shows it")


def run(arguments: argparse.Namespace, where: DatabaseLocation | None) -> int:
    """Run the subcommand; return the exit status.

    :raises ConfigurationError: the database cannot be used, or the person is not signed in.
    """
    if where is None:
        raise ConfigurationError("OIDC_DB is not set; set it to the database of the sign-ins.")
    database = store.database(where)
    database.check(created_by="tornadoproxy")
    now = int(time.time())
    if arguments.action == "list":
        with database.reading() as connection:
            found = store.live_sessions(connection, now)
        tables.write(_COLUMNS, [_row(session) for session in found], arguments.format)
        return 0
    with database, database.transaction() as connection:
        found = store.live_sessions(connection, now, arguments.name)
        for session in found:
            store.revoke(connection, session.id, now)
    if not found:
        raise ConfigurationError(f"{arguments.name} is not signed in; see `sign-ins list`.")
    sys.stdout.write(f"ended {len(found)} sign-ins of {arguments.name}\n")
    return 0


def _row(session: store.Session) -> list[tables.Cell]:
    person = session.person
    times = (session.created, session.checked, session.expires)
    return [
        *(person["sub"], person.get("email"), person["groups"]),
        *(tables.timestamp(each) for each in times),
    ]

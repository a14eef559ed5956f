"""The command ``python -m tornadoproxy keys``.

A key is the only text on standard output, so that a script can read it; remarks go to standard
error.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tornadoproxy import ConfigurationError, Database, admin, tables, usd
from tornadoproxy_keys import changes, store
from tornadoproxy_keys.changes import By
from tornadoproxy_keys.store import Limits
from tornadoproxy_keys.wire import MAX_TEXT, MAX_WORDS, is_text

if TYPE_CHECKING:
    from tornadoproxy import DatabaseLocation

# each column: its name in JSON and CSV, its title in text
_KEY_COLUMNS = {
    "id": "id",
    "name": "name",
    "state": "state",
    "groups": "groups",
    "models": "models",
    "requests_per_minute": "requests/min",
    "tokens_per_minute": "tokens/min",
    "concurrency": "at once",
    "created": "created",
    "expires": "expires",
    "revoked": "revoked",
    "last_used": "last used",
}
_AUDIT_COLUMNS = {
    "time": "time",
    "actor": "actor",
    "action": "action",
    "id": "id",
    "name": "name",
    "status": "status",
}
_USAGE_COLUMNS = {
    "day": "day",
    "id": "id",
    "name": "name",
    "requests": "requests",
    "input_tokens": "input",
    "output_tokens": "output",
    "cache_read_input_tokens": "cache read",
    "cache_creation_input_tokens": "cache written",
    "cost_usd": "cost",
    "unpriced_requests": "unpriced",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands to the parser of ``keys``."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    create = commands.add_parser("create", help="create a key and print it, once")
    create.add_argument(
        "--name",
        required=True,
        type=_text,
        help="name of its owner: the principal in logs and limits",
    )
    create.add_argument(
        "--group",
        nargs="+",
        action="extend",
        default=[],
        type=_text,
        metavar="GROUP",
        help="groups of its owner (default: none)",
    )
    create.add_argument(
        "--models",
        nargs="+",
        action="extend",
        default=[],
        type=_text,
        metavar="PATTERN",
        help="models that it may use, such as claude-sonnet-* (default: all)",
    )
    create.add_argument(
        "--expires",
        type=_end,
        default=None,
        help="when it expires: 30d, 12h, a date (its end, in UTC), or never (default: never)",
    )
    for limit, what in (
        ("--requests-per-minute", "requests within a minute"),
        ("--tokens-per-minute", "tokens within a minute, those read from the cache left out"),
        ("--concurrency", "requests at once"),
    ):
        create.add_argument(
            limit,
            type=tables.count,
            metavar="N",
            help=f"{what}, for each proxy process (default: no limit)",
        )
    create.set_defaults(do=_create)

    list_ = commands.add_parser("list", help="list the keys, without their secrets")
    tables.add_format(list_)
    list_.set_defaults(do=_list)

    revoke = commands.add_parser("revoke", help="revoke a key permanently")
    revoke.add_argument("key", metavar="ID|NAME", help="id of the key, or name of its owner")
    revoke.set_defaults(do=_revoke)

    rotate = commands.add_parser("rotate", help="replace the secret of a key and print it, once")
    rotate.add_argument("key", metavar="ID|NAME", help="id of the key, or name of its owner")
    rotate.add_argument(
        "--grace",
        type=tables.age,
        default=timedelta(),
        help="time for which the old secret stays valid, such as 24h or 7d (default: none)",
    )
    rotate.set_defaults(do=_rotate)

    audit = commands.add_parser("audit", help="list who changed which key, latest change first")
    tables.add_limit(audit, 100, "number of changes")
    tables.add_format(audit)
    audit.set_defaults(do=_audit)

    usage = commands.add_parser("usage", help="show usage by key and day")
    usage.add_argument("name", nargs="?", metavar="NAME", help="only the keys of this owner")
    usage.add_argument(
        "--since",
        type=tables.since,
        default=timedelta(days=30),
        metavar="AGE|DATE",
        help="first day, in UTC: 7d, 4w, 2026-11-30 (default: 30d)",
    )
    tables.add_format(usage)
    usage.set_defaults(do=_usage)


def run(arguments: argparse.Namespace, where: DatabaseLocation | None, *, has_token: bool) -> int:
    """Run the subcommand in the arguments.

    :param where: the keys database.
    :param has_token: whether ``AUTH_TOKEN`` is set, whose principal no key may be named after.
    :return: the exit status.
    :raises ConfigurationError: the arguments or the database are invalid.
    """
    if where is None:
        raise ConfigurationError("KEYS_DB is not set; set it to the keys database.")
    do: Callable[[argparse.Namespace, Database], None] = arguments.do
    if do is _create and has_token and store.is_token_name(arguments.name):
        raise ConfigurationError(
            f"--name: {arguments.name} is the name of the clients with AUTH_TOKEN; choose another."
        )
    database = store.database(where)
    database.check(created_by=None if do is _create else "keys create")
    with database:
        do(arguments, database)
    return 0


def _create(arguments: argparse.Namespace, database: Database) -> None:
    for words, what in ((arguments.group, "groups"), (arguments.models, "patterns of models")):
        if len(words) > MAX_WORDS:
            raise ConfigurationError(f"a key can have at most {MAX_WORDS} {what}; name fewer.")
    limits = Limits(
        tuple(dict.fromkeys(arguments.models)),
        arguments.requests_per_minute,
        arguments.tokens_per_minute,
        arguments.concurrency,
    )
    groups = tuple(dict.fromkeys(arguments.group))
    with database.transaction() as connection:
        _, key = changes.create(
            connection, arguments.name, groups, limits, arguments.expires, _now(), _by()
        )
        _show_key(key)
    _remark(
        f"This is the key of {arguments.name}, created in {_absolute(database.where)}. "
        "It is not shown again."
    )


def _absolute(where: DatabaseLocation) -> DatabaseLocation:
    return where.absolute() if isinstance(where, Path) else where


def _list(arguments: argparse.Namespace, database: Database) -> None:
    with database.transaction() as connection:
        keys = store.read(connection).keys
        used = store.last_used(connection)
    rows = [
        (
            row.id,
            row.name,
            row.state(_now()),
            row.groups,
            row.limits.models,
            row.limits.requests_per_minute,
            row.limits.tokens_per_minute,
            row.limits.concurrency,
            _time(row.created),
            _time(row.expires),
            _time(row.revoked),
            _time(used.get(row.id)),
        )
        for row in keys
    ]
    tables.write(_KEY_COLUMNS, rows, arguments.format)


def _revoke(arguments: argparse.Namespace, database: Database) -> None:
    now = _now()
    with database.transaction() as connection:
        row = changes.revoke(connection, arguments.key, now, _by())
    if row.revoked is not None:
        sys.stdout.write(
            f"The key {row.id} of {row.name} was already revoked at {_time(row.revoked)}.\n"
        )
    else:
        sys.stdout.write(f"The key {row.id} of {row.name} is revoked.\n")


def _rotate(arguments: argparse.Namespace, database: Database) -> None:
    now, grace = _now(), int(arguments.grace.total_seconds())
    with database.transaction() as connection:
        row, key = changes.rotate(connection, arguments.key, grace, now, _by())
        _show_key(key)
    until = f"stays valid until {_time(now + grace)}" if grace else "is no longer valid"
    _remark(f"This is the new key of {row.name}. It is not shown again. The old one {until}.")


def _audit(arguments: argparse.Namespace, database: Database) -> None:
    with database.transaction() as connection:
        events = store.TRAIL.read(connection, arguments.limit)
    rows = [
        (
            tables.timestamp(event.time),
            event.actor,
            event.action,
            event.subject,
            *((event.after or {}).get(name) for name in ("name", "status")),
        )
        for event in events
    ]
    tables.write(_AUDIT_COLUMNS, rows, arguments.format)


def _usage(arguments: argparse.Namespace, database: Database) -> None:
    first = datetime.fromtimestamp(tables.moment(arguments.since, time.time()), UTC).date()
    with database.transaction() as connection:
        names = {row.id: row.name for row in store.read(connection).keys}
        found = store.read_usage(connection, first.isoformat())
    if arguments.name is not None:
        if arguments.name not in names.values():
            raise ConfigurationError(
                f"there is no key of the name {arguments.name}; `keys list` shows the names."
            )
        found = [row for row in found if names.get(row.key_id) == arguments.name]
    dollar = "$" if arguments.format == "text" else ""
    rows = [
        (
            row.day,
            row.key_id,
            names.get(row.key_id),
            row.requests,
            row.input_tokens,
            row.output_tokens,
            row.cache_read_input_tokens,
            row.cache_creation_input_tokens,
            f"{dollar}{usd(row.cost)}",
            row.unpriced,
        )
        for row in found
    ]
    tables.write(_USAGE_COLUMNS, rows, arguments.format)


# Parsers of arguments


def _text(value: str) -> str:
    if not is_text(value):
        raise argparse.ArgumentTypeError(
            f"must be 1 to {MAX_TEXT} printable characters, without blanks at its ends"
        )
    return value


def _end(value: str) -> int | None:
    """Return when a key expires, in seconds since the epoch."""
    if value == "never":
        return None
    if "-" not in value:
        return _now() + int(tables.age(value).total_seconds())
    try:
        day = datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC)
        end = int((day + timedelta(days=1)).timestamp())
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            "must be a time such as 30d, a date such as 2027-01-31, or never"
        ) from None
    if end <= _now():
        raise argparse.ArgumentTypeError("must be in the future")
    return end


# Output


def _by() -> By:
    return By(admin.command_line_actor())


def _now() -> int:
    return int(time.time())


def _time(seconds: int | None) -> str | None:
    return None if seconds is None else tables.timestamp(seconds)


def _show_key(key: str) -> None:
    """Write a key within its transaction, so that a key that cannot be shown is not created."""
    sys.stdout.write(f"{key}\n")
    sys.stdout.flush()


def _remark(text: str) -> None:
    sys.stderr.write(f"{text}\n")

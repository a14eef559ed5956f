"""``python -m tornadoproxy keys``: makes, shows and ends keys, and shows what was used with them.

A key goes to standard output alone, so that a script can take it from there; what there is to say
about it goes to standard error.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tornadoproxy import ConfigurationError, Database, tables, usd
from tornadoproxy_keys import store
from tornadoproxy_keys.store import Limits

if TYPE_CHECKING:
    from pathlib import Path

MAX_TEXT = 100  # characters of a name, a group or a pattern
MAX_WORDS = 20  # groups, or patterns, of a key

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

    create = commands.add_parser("create", help="make a key, and show it, this once")
    create.add_argument(
        "--name", required=True, type=_text, help="whose it is: the principal in logs and limits"
    )
    create.add_argument(
        "--group",
        nargs="+",
        action="extend",
        default=[],
        type=_text,
        metavar="GROUP",
        help="groups that the person belongs to",
    )
    create.add_argument(
        "--models",
        nargs="+",
        action="extend",
        default=[],
        type=_text,
        metavar="PATTERN",
        help="the models that it may use, as claude-sonnet-* is; all unless given",
    )
    create.add_argument(
        "--expires",
        type=_end,
        default=None,
        help="30d, 12h, a date (to its end, in UTC), or never, which is the default",
    )
    for limit, what in (
        ("--requests-per-minute", "requests within a minute"),
        ("--tokens-per-minute", "tokens within a minute, those read from the cache left out"),
        ("--concurrency", "requests at once"),
    ):
        create.add_argument(
            limit, type=tables.count, metavar="N", help=f"{what}, for each proxy process"
        )
    create.set_defaults(do=_create)

    list_ = commands.add_parser("list", help="show the keys, without their secrets")
    tables.add_format(list_)
    list_.set_defaults(do=_list)

    revoke = commands.add_parser("revoke", help="end a key for good")
    revoke.add_argument("key", metavar="ID|NAME")
    revoke.set_defaults(do=_revoke)

    rotate = commands.add_parser("rotate", help="give a key a new secret, and show it, this once")
    rotate.add_argument("key", metavar="ID|NAME")
    rotate.add_argument(
        "--grace",
        type=tables.age,
        default=timedelta(),
        help="how long the old secret stays valid: 24h, 7d; not at all unless given",
    )
    rotate.set_defaults(do=_rotate)

    usage = commands.add_parser("usage", help="show what was used, by key and day")
    usage.add_argument("name", nargs="?", metavar="NAME", help="of this name only")
    usage.add_argument(
        "--since",
        type=tables.since,
        default=timedelta(days=30),
        metavar="AGE|DATE",
        help="the first day, in UTC: 7d, 4w, 2026-11-30 (default: 30d)",
    )
    tables.add_format(usage)
    usage.set_defaults(do=_usage)


def run(arguments: argparse.Namespace, path: Path | None, *, has_token: bool) -> int:
    """Do what the arguments ask for.

    :param path: the file that holds the keys.
    :param has_token: whether ``AUTH_TOKEN`` is set, whose principal's name no key may have.
    :return: the exit status.
    :raises ConfigurationError: it cannot be done.
    """
    if path is None:
        raise ConfigurationError("KEYS_DB is not set: name the file that holds the keys")
    do: Callable[[argparse.Namespace, Database], None] = arguments.do
    if do is _create and has_token and store.is_token_name(arguments.name):
        raise ConfigurationError(
            f"the name {arguments.name} is that of everybody who has AUTH_TOKEN: take another one"
        )
    database = Database(path, store.SCHEMA, name="keys")
    database.check()  # which says why, where nothing below a directory can be looked for
    if do is not _create and not path.exists():
        raise ConfigurationError(f"KEYS_DB={path} is not there: `keys create` makes it")
    with database:
        do(arguments, database)
    return 0


def _create(arguments: argparse.Namespace, database: Database) -> None:
    for words, what in ((arguments.group, "groups"), (arguments.models, "patterns of models")):
        if len(words) > MAX_WORDS:
            raise ConfigurationError(f"a key has at most {MAX_WORDS} {what}")
    limits = Limits(
        tuple(dict.fromkeys(arguments.models)),
        arguments.requests_per_minute,
        arguments.tokens_per_minute,
        arguments.concurrency,
    )
    groups = tuple(dict.fromkeys(arguments.group))
    with database.transaction() as connection:
        key = store.create(connection, arguments.name, groups, limits, arguments.expires, _now())
        _show_key(key)
    _remark(
        f"This is the key of {arguments.name}, made in {database.path.absolute()}. "
        "It is shown this once."
    )


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
        row = store.revoke(connection, arguments.key, now)
    if row.revoked is not None:
        sys.stdout.write(
            f"The key {row.id} of {row.name} was revoked at {_time(row.revoked)} already.\n"
        )
    else:
        sys.stdout.write(f"The key {row.id} of {row.name} is revoked.\n")


def _rotate(arguments: argparse.Namespace, database: Database) -> None:
    now, grace = _now(), int(arguments.grace.total_seconds())
    with database.transaction() as connection:
        row, key = store.rotate(connection, arguments.key, grace, now)
        _show_key(key)
    until = f"stays valid until {_time(now + grace)}" if grace else "is over"
    _remark(f"This is the new key of {row.name}. It is shown this once. The old one {until}.")


def _usage(arguments: argparse.Namespace, database: Database) -> None:
    first = datetime.fromtimestamp(tables.moment(arguments.since, time.time()), UTC).date()
    with database.transaction() as connection:
        names = {row.id: row.name for row in store.read(connection).keys}
        found = store.read_usage(connection, first.isoformat())
    if arguments.name is not None:
        if arguments.name not in names.values():
            raise ConfigurationError("there is no key of that name: see `keys list`")
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


# From text to value


def _text(value: str) -> str:
    if not (0 < len(value) <= MAX_TEXT and value.isprintable() and value == value.strip()):
        raise argparse.ArgumentTypeError(
            f"must be 1 to {MAX_TEXT} printable characters, without blanks at its ends"
        )
    return value


def _end(value: str) -> int | None:
    """When a key ends, in seconds since the epoch."""
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
        raise argparse.ArgumentTypeError("must not be over already")
    return end


# From value to text


def _now() -> int:
    return int(time.time())


def _time(seconds: int | None) -> str | None:
    return None if seconds is None else tables.timestamp(seconds)


def _show_key(key: str) -> None:
    """Within the transaction: a key that nobody could see is not made."""
    sys.stdout.write(f"{key}\n")
    sys.stdout.flush()


def _remark(text: str) -> None:
    sys.stderr.write(f"{text}\n")

"""``python -m tornadoproxy keys``: makes, shows and ends keys, and shows what was used with them.

A key goes to standard output alone, so that a script can take it from there; what there is to say
about it goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TextIO

from tornadoproxy import ConfigurationError, Database, usd
from tornadoproxy_keys import store
from tornadoproxy_keys.store import KeyRow, Limits, UsageRow

if TYPE_CHECKING:
    from pathlib import Path

MAX_TEXT = 100  # characters of a name, a group or a pattern
MAX_WORDS = 20  # groups, or patterns, of a key
MAX_CELL = 40  # characters of a table's cell

_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_LONGEST = 10 * 366 * 86_400  # seconds


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
        create.add_argument(limit, type=_count, metavar="N", help=f"{what}, for each proxy process")
    create.set_defaults(do=_create)

    list_ = commands.add_parser("list", help="show the keys, without their secrets")
    _add_format(list_)
    list_.set_defaults(do=_list)

    revoke = commands.add_parser("revoke", help="end a key for good")
    revoke.add_argument("key", metavar="ID|NAME")
    revoke.set_defaults(do=_revoke)

    rotate = commands.add_parser("rotate", help="give a key a new secret, and show it, this once")
    rotate.add_argument("key", metavar="ID|NAME")
    rotate.add_argument(
        "--grace",
        type=_duration,
        default=0,
        help="how long the old secret stays valid: 24h, 7d; not at all unless given",
    )
    rotate.set_defaults(do=_rotate)

    usage = commands.add_parser("usage", help="show what was used, by key and day")
    usage.add_argument("name", nargs="?", metavar="NAME", help="of this name only")
    usage.add_argument(
        "--days", type=_count, default=30, metavar="N", help="the last days, today included (30)"
    )
    _add_format(usage)
    usage.set_defaults(do=_usage)


def run(arguments: argparse.Namespace, path: Path | None) -> int:
    """Do what the arguments ask for.

    :param path: the file that holds the keys.
    :return: the exit status.
    :raises ConfigurationError: it cannot be done.
    """
    if path is None:
        raise ConfigurationError("KEYS_DB is not set: name the file that holds the keys")
    do: Callable[[argparse.Namespace, Database], None] = arguments.do
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
    _remark(f"This is the key of {arguments.name}. It is shown this once.")


def _list(arguments: argparse.Namespace, database: Database) -> None:
    with database.transaction() as connection:
        keys = store.read(connection).keys
        used = store.last_used(connection)
    if arguments.format == "json":
        _show_json([_key_document(row, used.get(row.id)) for row in keys])
        return
    _show_table(
        ("id", "name", "groups", "models", "requests/min", "tokens/min", "at once", "created",
         "expires", "last used", "state"),
        [
            (
                row.id,
                row.name,
                ", ".join(row.groups),
                ", ".join(row.limits.models),
                row.limits.requests_per_minute,
                row.limits.tokens_per_minute,
                row.limits.concurrency,
                _time(row.created),
                _time(row.expires),
                _time(used.get(row.id)),
                row.state(_now()),
            )
            for row in keys
        ],
    )  # fmt: skip


def _revoke(arguments: argparse.Namespace, database: Database) -> None:
    now = _now()
    with database.transaction() as connection:
        row = store.revoke(connection, arguments.key, now)
    if row.revoked is not None:
        _write(f"The key {row.id} of {row.name} was revoked at {_time(row.revoked)} already.\n")
    else:
        _write(f"The key {row.id} of {row.name} is revoked.\n")


def _rotate(arguments: argparse.Namespace, database: Database) -> None:
    now = _now()
    with database.transaction() as connection:
        row, key = store.rotate(connection, arguments.key, arguments.grace, now)
        _show_key(key)
    until = f"stays valid until {_time(now + arguments.grace)}" if arguments.grace else "is over"
    _remark(f"This is the new key of {row.name}. It is shown this once. The old one {until}.")


def _usage(arguments: argparse.Namespace, database: Database) -> None:
    since = datetime.now(UTC).date() - timedelta(days=min(arguments.days, 36_500) - 1)
    with database.transaction() as connection:
        names = {row.id: row.name for row in store.read(connection).keys}
        rows = store.read_usage(connection, since.isoformat())
    if arguments.name is not None:
        if arguments.name not in names.values():
            raise ConfigurationError("there is no key of that name: see `keys list`")
        rows = [row for row in rows if names.get(row.key_id) == arguments.name]
    if arguments.format == "json":
        _show_json([_usage_document(row, names.get(row.key_id)) for row in rows])
        return
    _show_table(
        ("day", "id", "name", "requests", "input", "output", "cache read", "cache write",
         "cost", "unpriced"),
        [
            (
                row.day,
                row.key_id,
                names.get(row.key_id),
                row.requests,
                row.input_tokens,
                row.output_tokens,
                row.cache_read_input_tokens,
                row.cache_creation_input_tokens,
                f"${usd(row.cost)}",
                row.unpriced,
            )
            for row in rows
        ],
    )  # fmt: skip


# From text to value


def _text(value: str) -> str:
    if not (0 < len(value) <= MAX_TEXT and value.isprintable() and value == value.strip()):
        raise argparse.ArgumentTypeError(
            f"must be 1 to {MAX_TEXT} printable characters, without blanks at its ends"
        )
    return value


def _count(value: str) -> int:
    if not re.fullmatch("[0-9]{1,12}", value) or int(value) == 0:
        raise argparse.ArgumentTypeError("must be a whole number from 1 on")
    return int(value)


def _duration(value: str) -> int:
    """Seconds."""
    matched = re.fullmatch("([0-9]{1,9})([mhdw])", value)
    seconds = int(matched[1]) * _UNITS[matched[2]] if matched else 0
    if not 0 < seconds <= _LONGEST:
        raise argparse.ArgumentTypeError("must be a time such as 90m, 24h, 30d or 4w, to ten years")
    return seconds


def _end(value: str) -> int | None:
    """When a key ends, in seconds since the epoch."""
    if value == "never":
        return None
    if "-" not in value:
        return _now() + _duration(value)
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


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="how it is shown"
    )


# From value to text


def _now() -> int:
    return int(time.time())


def _time(seconds: int | None) -> str | None:
    """To the minute, in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%MZ")


def _iso(seconds: int | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _key_document(row: KeyRow, used: int | None) -> dict[str, object]:
    return {
        "id": row.id,
        "name": row.name,
        "groups": row.groups,
        "models": row.limits.models,
        "requests_per_minute": row.limits.requests_per_minute,
        "tokens_per_minute": row.limits.tokens_per_minute,
        "concurrency": row.limits.concurrency,
        "created": _iso(row.created),
        "expires": _iso(row.expires),
        "revoked": _iso(row.revoked),
        "last_used": _iso(used),
        "state": row.state(_now()),
    }


def _usage_document(row: UsageRow, name: str | None) -> dict[str, object]:
    return {
        "day": row.day,
        "id": row.key_id,
        "name": name,
        "requests": row.requests,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "cache_read_input_tokens": row.cache_read_input_tokens,
        "cache_creation_input_tokens": row.cache_creation_input_tokens,
        "cost_usd": usd(row.cost),
        "unpriced_requests": row.unpriced,
    }


def _show_key(key: str) -> None:
    """Within the transaction: a key that nobody could see is not made."""
    _write(f"{key}\n")
    sys.stdout.flush()


def _remark(text: str) -> None:
    _write(f"{text}\n", sys.stderr)


def _show_json(documents: Sequence[object]) -> None:
    _write(json.dumps(documents, indent=2) + "\n")


def _show_table(head: tuple[str, ...], rows: Sequence[tuple[str | int | None, ...]]) -> None:
    lines = [head, *(tuple(_cell(value) for value in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        _write("  ".join(cells).rstrip() + "\n")


def _cell(value: str | int | None) -> str:
    text = "-" if value is None or value == "" else str(value)
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 3]}..."


def _write(text: str, stream: TextIO | None = None) -> None:
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

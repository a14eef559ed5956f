"""The command ``python -m tornadoproxy budgets``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tornadoproxy import ConfigurationError, Database, admin, tables, usd
from tornadoproxy_budgets import storage
from tornadoproxy_budgets.caps import Cap, Scope, check_name
from tornadoproxy_budgets.engine import Engine
from tornadoproxy_budgets.money import NANOS_PER_CENT, parse_dollars
from tornadoproxy_budgets.periods import PERIODS, Period, reset_time
from tornadoproxy_budgets.state import EVERYONE, Subject

if TYPE_CHECKING:
    from tornadoproxy import DatabaseLocation

_UNLIMITED = "unlimited"

# each column: its name in JSON and CSV, its title in text
_CAP_COLUMNS = {
    "id": "id",
    "for": "for",
    "period": "period",
    "amount": "amount",
    "spent_together": "spent together",
}
_SPENT_COLUMNS = {
    "who": "who",
    "period": "period",
    "amount": "amount",
    "from": "from",
    "spent": "spent",
    "left": "left",
    "resets": "resets",
}
_CHANGE_COLUMNS = {
    "time": "time",
    "who": "who",
    "what": "what",
    "id": "id",
    "for": "for",
    "period": "period",
    "before": "before",
    "after": "after",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands to the parser of ``budgets``."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    set_ = commands.add_parser("set", help="set or replace a cap")
    who = set_.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", type=_name, metavar="NAME", help="cap for one person")
    who.add_argument("--group", type=_name, metavar="NAME", help="cap for each member of a group")
    who.add_argument("--everyone", action="store_true", help="cap for each person")
    set_.add_argument(
        "--shared",
        action="store_true",
        help="with --group or --everyone: one cap for all of them together, besides personal caps",
    )
    set_.add_argument(
        "--period", choices=PERIODS, required=True, help="period of the cap, from 00:00 UTC"
    )
    set_.add_argument(
        "--amount",
        type=_amount,
        required=True,
        metavar="USD",
        help=f"US dollars, such as 12.50; 0 allows no spend; {_UNLIMITED} overrides a wider cap",
    )
    set_.set_defaults(do=_set)

    list_ = commands.add_parser("list", help="list the caps, and the spend of shared ones")
    tables.add_format(list_)
    list_.set_defaults(do=_list)

    remove = commands.add_parser("remove", help="remove a cap")
    remove.add_argument("id", metavar="ID", help="id of the cap from `budgets list`: spl_…")
    remove.set_defaults(do=_remove)

    show = commands.add_parser("show", help="show each person's caps, spend and remaining amount")
    show.add_argument(
        "name", nargs="?", type=_name, metavar="NAME", help="only the caps of this person"
    )
    tables.add_format(show)
    show.set_defaults(do=_show)

    audit = commands.add_parser("audit", help="list who changed which cap, latest change first")
    tables.add_limit(audit, 100, "number of changes")
    audit.add_argument(
        "--since",
        type=tables.since,
        metavar="AGE|DATE",
        help="first day, in UTC: 7d, 2026-11-30 (default: that of the first change)",
    )
    tables.add_format(audit)
    audit.set_defaults(do=_audit)


def run(arguments: argparse.Namespace, where: DatabaseLocation | None, *, keyed: bool) -> int:
    """Run the subcommand in the arguments.

    :param where: the budgets database.
    :param keyed: whether ``KEYS_DB`` is set, so that keys distinguish people.
    :return: the exit status.
    :raises ConfigurationError: the arguments or the database are invalid.
    """
    if where is None:
        raise ConfigurationError("BUDGETS_DB is not set; set it to the budgets database.")
    do: Callable[[argparse.Namespace, Database], None] = arguments.do
    database = storage.database(where)
    database.check(created_by=None if do is _set else "budgets set")
    with database:
        do(arguments, database)
    if do is _set and not keyed:
        from tornadoproxy_budgets import ONE_PERSON

        sys.stderr.write(f"{ONE_PERSON}.\n")
    return 0


def _set(arguments: argparse.Namespace, database: Database) -> None:
    if arguments.user is not None:
        if arguments.shared:
            raise ConfigurationError(
                "--shared cannot be used with --user; use --group or --everyone."
            )
        scope = Scope("user", arguments.user)
    elif arguments.group is not None:
        scope = Scope("rbac_group", arguments.group, arguments.shared)
    else:
        scope = Scope("organization", shared=arguments.shared)
    with database.transaction() as connection:
        cap = storage.set_cap(
            connection,
            scope,
            arguments.period,
            arguments.amount,
            actor=admin.command_line_actor(),
            now=time.time(),
        )
    sys.stdout.write(f"{cap.id}: {_described(cap)}\n")


def _list(arguments: argparse.Namespace, database: Database) -> None:
    now = time.time()
    engine = _loaded(database, now)
    rows = [
        (
            cap.id,
            str(cap.scope),
            cap.period,
            _limit(cap),
            f"${usd(engine.spent((cap.scope.type, cap.scope.name), cap.period, now))}"
            if cap.scope.shared
            else None,
        )
        for cap in engine.caps
    ]
    tables.write(_CAP_COLUMNS, rows, arguments.format)


def _remove(arguments: argparse.Namespace, database: Database) -> None:
    with database.transaction() as connection:
        cap = storage.remove_cap(
            connection, arguments.id, actor=admin.command_line_actor(), now=time.time()
        )
    if cap is None:
        raise ConfigurationError(
            f"there is no cap with the id {arguments.id}; `budgets list` shows the ids."
        )
    sys.stdout.write(f"removed {cap.id}: {_described(cap)}\n")


def _show(arguments: argparse.Namespace, database: Database) -> None:
    now = time.time()
    engine = _loaded(database, now)
    rows: list[Sequence[str | None]] = []
    for name in engine.principals() if arguments.name is None else [arguments.name]:
        groups, allowance = engine.seen(name)
        for period in PERIODS:
            cap = engine.personal(name, groups, period, allowance)
            rows.append(_row(engine, f"user {name}", ("user", name), period, cap, now))
    shared = [cap for cap in engine.caps if cap.scope.shared]
    for cap in shared:
        if _concerns(cap, arguments.name, engine):
            subject = (cap.scope.type, cap.scope.name)
            rows.append(_row(engine, str(cap.scope), subject, cap.period, cap, now))
    tables.write(_SPENT_COLUMNS, rows, arguments.format)


def _audit(arguments: argparse.Namespace, database: Database) -> None:
    with database.transaction() as connection:
        changes = storage.read_changes(connection, arguments.limit)
    since = arguments.since
    first = 0.0 if since is None else tables.moment(since, time.time())
    rows = []
    for change in changes:
        if change.time < first:
            break
        cap = change.after or change.before
        assert cap is not None
        rows.append(
            (
                tables.timestamp(change.time),
                change.actor,
                change.action,
                change.cap_id,
                str(cap.scope),
                cap.period,
                _limit(change.before),
                _limit(change.after),
            )
        )
    tables.write(_CHANGE_COLUMNS, rows, arguments.format)


def _loaded(database: Database, now: float) -> Engine:
    engine = Engine(now)
    with database.transaction() as connection:
        engine.load(storage.load(connection, engine.day))
    return engine


def _row(
    engine: Engine, who: str, subject: Subject, period: Period, cap: Cap | None, now: float
) -> Sequence[str | None]:
    spent = engine.spent(subject, period, now)
    nanos = None if cap is None else cap.nanos
    return (
        who,
        period,
        _limit(cap),
        None if cap is None else str(cap.scope),
        f"${usd(spent)}",
        None if nanos is None else f"${usd(max(nanos - spent, 0))}",
        tables.timestamp(reset_time(period, engine.day)),
    )


def _concerns(cap: Cap, name: str | None, engine: Engine) -> bool:
    """Return whether a shared cap limits the person `name`; every one does if that is ``None``."""
    if name is None or (cap.scope.type, cap.scope.name) == EVERYONE:
        return True
    return cap.scope.name in engine.seen(name).groups


def _described(cap: Cap) -> str:
    return f"{_limit(cap)} {cap.period} for {cap.scope}"


def _limit(cap: Cap | None) -> str | None:
    if cap is None:
        return None
    return _UNLIMITED if cap.cents is None else f"${usd(cap.cents * NANOS_PER_CENT)}"


def _name(value: str) -> str:
    try:
        return check_name(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _amount(value: str) -> int | None:
    if value.lower() == _UNLIMITED:
        return None
    try:
        return parse_dollars(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

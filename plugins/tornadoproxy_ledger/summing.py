"""The task that sums the ledger's hours and days, see `tornadoproxy_ledger.summed`.

The newest day that has rows without sums comes first, so that a ledger which was written without
sums gets them in the background: each hour in a step of its own, then the day from its hours. A
step reads on a connection of its own, as of one moment, and saves the sums in a short transaction,
unless rows have changed in between. Of several proxies with one database, one does this at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tornadoproxy import DatabaseUnavailable
from tornadoproxy_ledger import reading, relations
from tornadoproxy_ledger.summed import DAY, HOUR, KEYS, SETTLED, WIDTHS, start_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from tornadoproxy import Database, DatabaseConnection

    T = TypeVar("T")

INTERVAL = 300.0  # seconds between two looks for what can be summed
PAUSE = 0.02  # seconds between two steps, so that other writers get their turn
LEASE = 60.0  # seconds for which one proxy sums and others do not
TOLD = 60.0  # seconds between two messages about the progress
TOGETHER = 1_000  # sums in one statement

_COLUMNS = (
    "kind", "seconds", "start", "number", "principal", '"groups"', "model", "claude_code", "used",
    "other_call", *relations.COUNTS,
)  # fmt: skip
_ABSENT = {name: 0 if name == "other_call" else None for name in _COLUMNS[4:10]}

_logger = logging.getLogger(__name__)


class Step(NamedTuple):
    """The hour or day to sum."""

    seconds: int
    start: int


class Sums(NamedTuple):
    """What a step has read.

    :param generation: the changes of rows that it knows of.
    """

    step: Step
    generation: int
    rows: Sequence[tuple[Any, ...]]  # Any: each column has a type of its own


class Summing:
    """The task.

    :param database: the one that is written.
    :param reader: the same, which is not started.
    """

    def __init__(self, database: Database, reader: Database) -> None:
        self._database = database
        self._reader = reader

    async def keep_up(self) -> None:
        """Sum what has settled, again and again."""
        while True:
            pause = INTERVAL
            try:
                if not await self.catch_up():
                    pause = LEASE  # the other proxy may have been killed
            except DatabaseUnavailable:
                pass  # the database has logged the failure; the next look makes up for it
            except Exception as error:
                # without its text, which may contain names
                _logger.warning(
                    "summing the ledger's usage failed with %s: reports read rows instead",
                    type(error).__name__,
                )
            await asyncio.sleep(pause)

    async def catch_up(self) -> bool:
        """Sum all that has settled, and log how far that is if it takes long.

        :return: whether it is summed; otherwise another proxy sums it.
        """
        began = told = time.monotonic()
        while steps := await self._read(partial(due, time.time())):
            if not await self._database.run(partial(_claim, time.time())):
                return False
            try:
                for step in steps:
                    await self._sum(step)
            finally:
                with contextlib.suppress(DatabaseUnavailable):
                    await self._database.run(_release)
            if time.monotonic() - told >= TOLD:
                told = time.monotonic()
                left = await self._read(days_left)
                _logger.info("summing the ledger's usage: %d earlier days are left", left)
        if told != began:
            _logger.info("summed the ledger's usage in %.0f s", time.monotonic() - began)
        return True

    async def _sum(self, step: Step) -> None:
        # a step whose rows change meanwhile is due again
        sums = await self._read(partial(read, step, self._reader.dialect))
        if sums is not None:
            await self._database.run(partial(save, sums))
        await asyncio.sleep(PAUSE)

    async def _read(self, read: Callable[[DatabaseConnection], T]) -> T:
        return await reading.read(self._reader, read)


def due(now: float, connection: DatabaseConnection) -> list[Step]:
    """Return the steps of the newest day that can be summed further; none, if all are summed."""
    settled = start_of(now - SETTLED, HOUR)
    whole = _whole_days(connection)
    before = settled
    while (day := _newest_day(before, connection)) is not None:
        if day not in whole:
            done = _hours_of(day, connection)
            until = min(day + DAY, settled)
            steps = [Step(HOUR, at) for at in range(day, until, HOUR) if at not in done][::-1]
            if until == day + DAY:
                steps.append(Step(DAY, day))
            if steps:
                return steps
        before = day
        while before - DAY in whole:
            before -= DAY
    return []


def days_left(connection: DatabaseConnection) -> int:
    """Return how many days from the first request's to now are not summed."""
    (first,) = connection.execute("SELECT min(time) FROM requests").fetchone()
    if first is None:
        return 0
    days = range(start_of(first, DAY), start_of(time.time(), DAY), DAY)
    return len(set(days) - _whole_days(connection))


def read(step: Step, dialect: str, connection: DatabaseConnection) -> Sums | None:
    """Return the sums of an hour, from its rows, or of a day, from its hours.

    :return: ``None`` if an hour of the day is not summed.
    """
    if step.seconds == DAY and len(_hours_of(step.start, connection)) < DAY // HOUR:
        return None
    (generation,) = connection.execute("SELECT generation FROM usage_state").fetchone()
    bounds = {"since": step.start, "until": step.start + step.seconds}
    found = []
    for kind, widths in WIDTHS.items():
        if step.seconds not in widths:
            continue
        if step.seconds == HOUR:
            sources = relations.rows(relations.FUNCTIONS[dialect])
        else:
            sources = (relations.sums(kind, HOUR),)
        keys = KEYS[kind]
        sums = dict[tuple[Any, ...], list[int]]()  # Any: as above
        for source in sources:
            statement = relations.sums_of(source, keys, by_model=kind == "models")
            for row in connection.execute(statement, bounds):
                key, counts = row[: len(keys)], row[len(keys) :]
                known = sums.get(key, [0] * len(counts))
                sums[key] = [one + other for one, other in zip(known, counts, strict=True)]
        found += [
            (kind, *step, number, *(_ABSENT | dict(zip(keys, key, strict=True))).values(), *counts)
            for number, (key, counts) in enumerate(sums.items())
        ]
    return Sums(step, generation, found)


def save(sums: Sums, connection: DatabaseConnection) -> bool:
    """Save the sums of a step; return whether they are still those of the rows."""
    seconds, start = sums.step
    # this waits for a change of rows that is just being committed
    unchanged = connection.execute(
        "UPDATE usage_state SET generation = generation WHERE generation = ?", (sums.generation,)
    )
    if not unchanged.rowcount:
        return False
    for kind in WIDTHS:
        connection.execute(
            "DELETE FROM usage_sums WHERE kind = ? AND seconds = ? AND start = ?",
            (kind, seconds, start),
        )
    connection.execute("DELETE FROM usage_summed WHERE seconds = ? AND start = ?", (seconds, start))
    for first in range(0, len(sums.rows), TOGETHER):
        connection.insert("usage_sums", _COLUMNS, sums.rows[first : first + TOGETHER])
    connection.insert("usage_summed", ("seconds", "start"), [sums.step])
    return True


def _whole_days(connection: DatabaseConnection) -> set[int]:
    found = connection.execute("SELECT start FROM usage_summed WHERE seconds = ?", (DAY,))
    return {start for (start,) in found}


def _hours_of(day: int, connection: DatabaseConnection) -> set[int]:
    """Return the hours of a day that are summed."""
    found = connection.execute(
        "SELECT start FROM usage_summed WHERE seconds = ? AND start >= ? AND start < ?",
        (HOUR, day, day + DAY),
    )
    return {start for (start,) in found}


def _newest_day(before: float, connection: DatabaseConnection) -> int | None:
    """Return the day of the newest request before a moment."""
    statement = "SELECT max(time) FROM requests WHERE time < ?"
    (newest,) = connection.execute(statement, (before,)).fetchone()
    return None if newest is None else start_of(newest, DAY)


def _claim(now: float, connection: DatabaseConnection) -> bool:
    """Return whether no other proxy sums; then none does for `LEASE` seconds."""
    claimed = connection.execute(
        # a clock that was wrong has no say
        "UPDATE usage_state SET summing_until = ? WHERE summing_until <= ? OR summing_until > ?",
        (now + LEASE, now, now + LEASE),
    )
    return claimed.rowcount > 0


def _release(connection: DatabaseConnection) -> None:
    connection.execute("UPDATE usage_state SET summing_until = 0")

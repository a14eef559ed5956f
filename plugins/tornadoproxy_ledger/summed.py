"""Which hours and days have sums in the table ``usage_sums``, so that reports need not read rows.

``usage_summed`` lists them. There are two kinds of sums, each of what reports group by: ``models``
by model and product, of each hour, and ``people`` by principal, groups and product, of each hour
and each day in UTC. A report reads sums where they exist and answer its question, and rows
elsewhere, as of one moment, so that it is always exactly what the rows add up to.

An hour is summed once it has settled, when `SETTLED` seconds have passed since its end. Code that
writes, changes or deletes rows of an hour that ended more than `LATE` seconds ago calls `forget` in
the same transaction; the hour and its day are then summed again. ``usage_state.generation`` counts
these changes: sums that were made of rows read before such a change are not saved, see
`tornadoproxy_ledger.summing`. Each process decides this by its own clock, so the clocks of proxies
that share a database must differ by less than `SETTLED` - `LATE` seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from tornadoproxy import DatabaseConnection

HOUR, DAY = 3600, 86_400  # seconds
LATE = 300.0  # seconds
SETTLED = 3600.0  # seconds

WIDTHS = {"models": (HOUR,), "people": (DAY, HOUR)}
"""The kinds of sums with the seconds that each is of, the longest first."""

KEYS = {
    "models": ("model", "claude_code", "used", "other_call"),
    "people": ("principal", '"groups"', "claude_code", "used"),
}
"""The columns that the sums of a kind are grouped by."""


class Segment(NamedTuple):
    """A part of a report's range.

    :param seconds: what the sums are of that it is read from; ``None`` is rows.
    """

    seconds: int | None
    since: float
    until: float


def start_of(moment: float, seconds: int) -> int:
    """Return when the hour or day of a moment begins."""
    return int(moment // seconds) * seconds


def forget(moments: Iterable[float], connection: DatabaseConnection) -> None:
    """Have the hours and days of `moments` summed again, because their rows have changed."""
    _count_change(connection)
    starts = {(seconds, start_of(each, seconds)) for each in moments for seconds in (HOUR, DAY)}
    connection.executemany(
        "DELETE FROM usage_summed WHERE seconds = ? AND start = ?", sorted(starts)
    )


def delete_some(before: float, connection: DatabaseConnection) -> bool:
    """Forget all hours and days that begin before a moment, and delete the oldest of their sums.

    The hour and the day of the moment itself are summed again from the rows that are left, which
    replaces their sums.

    :return: whether more sums may have to be deleted.
    """
    _count_change(connection)
    connection.execute("DELETE FROM usage_summed WHERE start < ?", (before,))
    deleted = 0
    for kind, widths in WIDTHS.items():
        for seconds in widths:
            deleted += connection.execute(
                "DELETE FROM usage_sums WHERE kind = :kind AND seconds = :seconds AND start = ("
                "SELECT min(start) FROM usage_sums"
                " WHERE kind = :kind AND seconds = :seconds AND start <= :last)",
                {"kind": kind, "seconds": seconds, "last": before - seconds},
            ).rowcount
    return deleted > 0


def _count_change(connection: DatabaseConnection) -> None:
    # before the deletion: this waits for sums that are just being saved
    connection.execute("UPDATE usage_state SET generation = generation + 1")


def segments(
    since: float, until: float, widths: Collection[int], connection: DatabaseConnection
) -> list[Segment]:
    """Return the parts of a range in the order of time.

    :param widths: the seconds of the sums that may be read, the longest first.
    """
    if not widths:
        return [Segment(None, since, until)]
    known = set(
        connection.execute(
            "SELECT seconds, start FROM usage_summed WHERE start >= ? AND start < ?", (since, until)
        )
    )
    found = list[Segment]()
    for each in _parts(since, until, widths, known):
        if found and found[-1].seconds == each.seconds:
            found[-1] = found[-1]._replace(until=each.until)
        else:
            found.append(each)
    return found


def _parts(
    since: float, until: float, widths: Collection[int], known: Collection[tuple[int, int]]
) -> Iterator[Segment]:
    at = since
    while at < until:
        for seconds in widths:
            if (seconds, at) in known and at + seconds <= until:
                yield Segment(seconds, at, at + seconds)
                at += seconds
                break
        else:
            end = min(start_of(at, HOUR) + HOUR, until)
            yield Segment(None, at, end)
            at = end

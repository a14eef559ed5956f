"""The sums of the ledger's hours and days, which reports read in place of rows."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from in_process import Commands
from people import run_command
from postgres import PostgreSQLServer
from scene import Scene
from test_ledger import ledger, write
from tornadoproxy_ledger import LEDGER_DB, Ledger, relations, rows, summed, summing
from tornadoproxy_ledger.reports import DIMENSIONS, Counts, Key, Report, Selection, read
from tornadoproxy_ledger.summed import DAY, HOUR
from tornadoproxy_ledger.summing import Step, Summing

from tornadoproxy import (
    Database,
    DatabaseLocation,
    ModelUsage,
    Outcome,
    RequestRecord,
    SecretURL,
    Usage,
)
from tornadoproxy.testing import request_record

MONDAY = 1_741_564_800  # 2025-03-10T00:00:00Z
MODELS = ("opus", "sonnet", None)
VALUES = {
    "model": ("opus", "sonnet", "haiku", "none"),
    "principal": ("ada", "bob", "nobody"),
    "group": ("team", "leads"),
    "product": ("claude_code", "messages_api"),
    "actor_type": ("user_actor",),
}


def steps(database: Database) -> list[Step]:
    with database.reading() as connection:
        return summing.due(time.time(), connection)


def sum_(database: Database, step: Step) -> bool:
    with database.reading() as connection:
        sums = summing.read(step, database.dialect, connection)
    if sums is None:
        return False
    with database.transaction() as connection:
        return summing.save(sums, connection)


def sum_all(where: DatabaseLocation) -> None:
    with ledger(where) as database:
        while due := steps(database):
            for step in due:
                assert sum_(database, step)


def is_summed(where: DatabaseLocation) -> set[tuple[int, int]]:
    with ledger(where) as database, database.reading() as connection:
        return set(connection.execute("SELECT seconds, start FROM usage_summed"))


def report(where: DatabaseLocation, **asked: Any) -> Report:
    given = {"since": None, "until": None, "width": None, "by": frozenset(), "only": {}, **asked}
    with ledger(where) as database, database.reading() as connection:
        return read(Selection(**given), connection, database.dialect)


def costs(where: DatabaseLocation, **asked: Any) -> list[int]:
    return [counts.cost_nanos for counts in report(where, **asked).values()]


def used(hours: float, **changes: Any) -> RequestRecord:
    return request_record(
        **{"time": MONDAY + hours * HOUR, "usage": Usage(10, 5), "cost": 7, **changes}
    )


# What reports read is what the rows add up to


def any_record(chance: random.Random) -> RequestRecord:
    """Return a record of any kind, often at the edge of an hour."""
    read, written = (chance.choice((None, chance.randrange(9))) for _ in range(2))
    usage = Usage(read, written, 3, 2, 1, 1)
    if chance.random() < 0.2:
        usage = Usage(
            1,
            partial=chance.random() < 0.5,
            others=tuple(
                ModelUsage(chance.choice((*MODELS, "haiku")), Usage(1, 2), chance.randrange(5))
                for _ in range(chance.randrange(1, 4))
            ),
        )
    hour = MONDAY + chance.randrange(3 * 24) * HOUR
    return request_record(
        time=hour + chance.choice((0, HOUR - 0.25, chance.random() * HOUR)),
        principal=chance.choice(("ada", "bob", None)),
        groups=chance.choice(((), ("team",), ("team", "leads"), ("leads", "leads"))),
        model=chance.choice(MODELS),
        usage=usage,
        cost=chance.choice((None, 100 + chance.randrange(100))),
        status=chance.choice((200, 429, None)),
        outcome=chance.choice(list(Outcome)),
        session_id=chance.choice((None, "s")),
    )


def any_selection(chance: random.Random) -> Selection:
    first, last = sorted(chance.sample(range(3 * 24 * 4 + 4), 2))
    by = chance.choice(
        (
            {"model", "product"},
            {"principal", "group", "actor_type", "product"},
            {"model"},
            {"group"},
            {"principal"},
            set(DIMENSIONS),
        )
    )
    only = chance.sample(sorted(by), chance.choice((0, 0, 1)))
    return Selection(
        since=chance.choice((None, MONDAY + first * 900, MONDAY + first // 96 * DAY)),
        until=chance.choice((None, MONDAY + last * 900, MONDAY + (last // 96 + 1) * DAY + 0.5)),
        width=chance.choice((None, 60, HOUR, DAY)),
        by=frozenset(each for each in by if chance.random() < 0.7),
        only={name: frozenset(chance.choices(VALUES[name], k=2)) for name in only},
        used=chance.random() < 0.5,
        counts=tuple(chance.sample(relations.COUNTS, chance.choice((3, len(relations.COUNTS))))),
    )


@cache
def models_of(record: RequestRecord, *, by_model: bool) -> Sequence[tuple[str | None, Counts]]:
    """Return what a request counts for each model; for ``None`` alone, if models do not matter."""
    usage, others, priced = record.usage, record.usage.others, record.cost is not None
    of_usage = {name: getattr(usage, name) or 0 for name in relations.USED}
    cost = (record.cost or 0) - (sum(each.cost or 0 for each in others) if priced else 0)
    failed = record.outcome in {Outcome.DENIED, Outcome.FAILED, Outcome.DRAINED}
    errors = int(failed or (record.status or 0) >= 400)
    is_used = usage.input_tokens is not None or usage.output_tokens is not None or bool(others)
    was_sent = record.outcome in {Outcome.ABANDONED, Outcome.DRAINED}
    unpriced = not priced and (is_used or usage.partial or record.model is not None or was_sent)
    one = (1, errors, int(unpriced), int(usage.partial))
    found = {record.model: Counts(*one, priced=int(priced), cost_nanos=cost, **of_usage)}
    for each in others:
        mine = found.setdefault(each.model, Counts(*one, int(priced)))
        mine.input_tokens += each.usage.input_tokens or 0
        mine.output_tokens += each.usage.output_tokens or 0
        mine.cost_nanos += (each.cost or 0) if priced else 0
    if by_model:
        return [*found.items()]
    whole = Counts()
    for counts in found.values():
        whole.add(replace(counts, requests=0, errors=0, unpriced=0, partial=0))
    whole.add(Counts(*one))
    return [(None, whole)]


def expected(records: Sequence[RequestRecord], asked: Selection) -> Report:
    found: Report = defaultdict(Counts)
    first = summed.start_of(min(each.time for each in records), DAY)
    since = first if asked.since is None else asked.since
    for record in records:
        usage = record.usage
        was_used = (usage.input_tokens, usage.output_tokens, usage.others) != (None, None, ())
        if not since <= record.time < (asked.until or 2**40) or (asked.used and not was_used):
            continue
        start = int(asked.since or 0)
        if asked.width is not None:
            start = summed.start_of(record.time, asked.width)
        by_model = "model" in asked.by | asked.only.keys()
        groups: list[str | None] = [*dict.fromkeys(record.groups)] or [None]
        wanted = [each for each in groups if each in asked.only.get("group", groups)]
        for group in wanted if "group" in asked.by else wanted[:1]:
            for model, counts in models_of(record, by_model=by_model):
                named = {
                    "model": model,
                    "principal": record.principal,
                    "product": "claude_code" if record.session_id else "messages_api",
                    "actor_type": None if record.principal is None else "user_actor",
                }
                if all(named[name] in asked.only[name] for name in asked.only if name != "group"):
                    values: dict[str, str | None] = {**named, "group": group}
                    key: Key = tuple(values[n] if n in asked.by else None for n in DIMENSIONS)
                    found[start, key].add(counts)
    return found


def readable(found: Report, asked: Selection) -> dict[Any, Any]:
    """Return a report with what is counted, and whether a cost is known."""
    return {
        place: {
            name: each.priced > 0 if name == "priced" else getattr(each, name)
            for name in asked.counts
        }
        for place, each in found.items()
    }


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3))]
)
def test_report_equals_what_the_rows_add_up_to(seed: int, where: DatabaseLocation) -> None:
    chance = random.Random(seed)
    records = list[RequestRecord]()
    read_from = set[int | None]()
    with ledger(where) as database:
        for _ in range(8):
            more = [any_record(chance) for _ in range(chance.choice((1, 40)))]
            records += more
            with database.transaction() as connection:
                rows.insert(more, connection)
            if chance.random() < 0.2:
                before = MONDAY + chance.randrange(12) * HOUR / 3
                records = [each for each in records if each.time >= before]
                with database.transaction() as connection:
                    rows.delete_some(before, connection)
            # a few steps, or all
            for _ in range(chance.choice((1, 5))):
                for step in steps(database)[: chance.choice((3, 99))]:
                    assert sum_(database, step)
            with database.reading() as connection:
                parts = summed.segments(MONDAY, MONDAY + 3 * DAY, (DAY, HOUR), connection)
                read_from |= {part.seconds for part in parts}
                for _ in range(40):
                    asked = any_selection(chance)
                    found = readable(read(asked, connection, database.dialect), asked)
                    wanted = readable(expected(records, asked), asked)
                    assert found.keys() == wanted.keys(), asked
                    for place, counts in found.items():
                        assert counts == wanted[place], asked
    assert read_from == {DAY, HOUR, None}


COMMANDS = (
    *("--by key", "--by group", "--by model", "--by key,model", "--by day"),
    *("--by month --tz utc --group team", "--by key,day --tz utc --since 2025-03-11"),
)


@pytest.fixture
def restored_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    yield monkeypatch
    monkeypatch.undo()
    time.tzset()


def test_command_reads_the_same_with_and_without_sums(
    where: DatabaseLocation, restored_zone: pytest.MonkeyPatch
) -> None:
    chance = random.Random(5)
    write(where, *(any_record(chance) for _ in range(150)))

    def usage() -> list[str]:
        found = []
        for zone in ("UTC", "Asia/Tokyo", "Asia/Kolkata"):
            restored_zone.setenv("TZ", zone)
            time.tzset()
            found += [
                run_command(Ledger(), {LEDGER_DB: where}, *options.split()).stdout
                for options in COMMANDS
            ]
        return found

    before = usage()
    assert len(set(before)) > 7
    sum_all(where)
    with ledger(where) as database, database.transaction() as connection:
        # what would show if a report read rows that are summed
        connection.execute("UPDATE requests SET input_tokens = 1000000")
    changed = [at for at, text in enumerate(usage()) if text != before[at]]
    both, by_day = COMMANDS.index("--by key,model"), COMMANDS.index("--by day")
    # days of Kolkata begin in the middle of UTC's hours
    assert changed == [
        both,
        both + len(COMMANDS),
        both + 2 * len(COMMANDS),
        by_day + 2 * len(COMMANDS),
    ]


# Which hours and days are summed


async def test_running_proxy_sums_what_has_settled(
    scene: Scene, where: DatabaseLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    settled = summed.start_of(now - summed.SETTLED, HOUR)
    times = (now - 40 * DAY, now - 2 * DAY, settled - 1, settled, now)
    write(where, *(used(0, time=each) for each in times))
    monkeypatch.setattr(summing, "INTERVAL", 0.05)
    monkeypatch.setattr(summing, "PAUSE", 0)
    await scene.start(LEDGER_DB=where)
    days = {summed.start_of(each, DAY) for each in times if each < settled}
    whole = {(DAY, day) for day in days if day + DAY <= settled}
    hours = {(HOUR, at) for day in days for at in range(day, min(day + DAY, settled), HOUR)}
    while await asyncio.to_thread(is_summed, where) != whole | hours:
        await asyncio.sleep(0.02)  # no event tells of it; the test's own limit ends this
    assert sum(costs(where)) == 5 * 7
    write(where, used(0, time=now - 40 * DAY))
    assert await asyncio.to_thread(is_summed, where) != whole | hours
    assert sum(costs(where)) == 6 * 7
    while await asyncio.to_thread(is_summed, where) != whole | hours:
        await asyncio.sleep(0.02)
    assert sum(costs(where)) == 6 * 7


def test_corrected_row_is_summed_again(where: DatabaseLocation) -> None:
    write(where, used(1, cost=None), used(30))
    sum_all(where)
    with ledger(where) as database, database.transaction() as connection:
        connection.execute("UPDATE requests SET cost_nanos = 100 WHERE cost_nanos IS NULL")
        summed.forget([MONDAY + HOUR], connection)
    for _ in range(2):
        assert costs(where) == [107]
        assert costs(where, by=frozenset({"principal"})) == [107]
        sum_all(where)
    # as the documentation says for changes by hand
    with ledger(where) as database, database.transaction() as connection:
        connection.execute("UPDATE requests SET cost_nanos = 5")
        connection.execute("DELETE FROM usage_summed")
    assert costs(where) == [10]
    sum_all(where)
    assert costs(where) == [10]


def test_row_written_while_its_hour_is_summed_is_not_missed(where: DatabaseLocation) -> None:
    write(where, used(1))
    with ledger(where) as database:
        with database.reading() as connection:
            sums = summing.read(Step(HOUR, MONDAY + HOUR), database.dialect, connection)
        write(where, used(1.5))
        assert sums is not None
        with database.transaction() as connection:
            assert not summing.save(sums, connection)
        assert sum_(database, Step(HOUR, MONDAY + HOUR))
    assert costs(where) == [14]


async def test_uncommitted_row_makes_its_hour_wait(
    postgres: SecretURL, postgres_server: PostgreSQLServer
) -> None:
    """Another proxy's transaction has written the row, and ends while the hour is saved."""
    write(postgres, used(1))
    database = ledger(postgres)
    await database.start(statement_timeout=10)
    with ledger(postgres) as other, other.transaction() as connection:
        rows.insert([used(1.5)], connection)
        with database.reading() as reading:
            sums = summing.read(Step(HOUR, MONDAY + HOUR), "postgresql", reading)
        assert sums is not None
        saving = asyncio.create_task(database.run(partial(summing.save, sums), exclusive=False))
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
        with postgres_server.connect(postgres.reveal().rpartition("/")[2]) as watching:
            while not watching.execute(waiting).fetchall():
                await asyncio.sleep(0.02)
    assert await saving is False
    await database.close()
    assert costs(postgres) == [14]


def test_day_is_summed_from_all_its_hours_alone(where: DatabaseLocation) -> None:
    write(where, used(1), used(2))
    with ledger(where) as database:
        *hours, day = steps(database)
        assert day == Step(DAY, MONDAY)
        assert hours == [Step(HOUR, MONDAY + hour * HOUR) for hour in reversed(range(24))]
        assert [sum_(database, step) for step in hours[1:]] == [True] * 23
        assert not sum_(database, day)
        assert steps(database) == [hours[0], day]
        assert sum_(database, hours[0])
        assert sum_(database, day)
        assert steps(database) == []


def test_deletion_takes_the_sums_of_deleted_rows(where: DatabaseLocation) -> None:
    write(where, *(used(hour) for hour in (1, 2.25, 2.75, 30)))
    sum_all(where)
    with ledger(where) as database:
        before = MONDAY + 2.5 * HOUR
        with database.transaction() as connection:
            while rows.delete_some(before, connection):
                pass
            left = "SELECT seconds, min(start) FROM usage_sums GROUP BY 1"
            assert dict(connection.execute(left).fetchall()) == {
                HOUR: MONDAY + 2 * HOUR,
                DAY: MONDAY,
            }
    assert costs(where) == [14]
    sum_all(where)
    assert costs(where) == [14]
    assert report(where, by=frozenset({"principal"}), width=DAY).keys() == {
        (day, (None, "ada", None, None, None)) for day in (MONDAY, MONDAY + DAY)
    }


def test_deletion_ends_while_what_it_leaves_is_summed_again(where: DatabaseLocation) -> None:
    before = MONDAY + 2.5 * HOUR
    write(where, *(used(hour) for hour in (1, 2.25, 2.75)))
    more = []
    for _ in range(3):
        sum_all(where)
        with ledger(where) as database, database.transaction() as connection:
            more.append(rows.delete_some(before, connection))
        assert costs(where) == [7]
    assert more == [True, False, False]


async def test_one_proxy_sums_at_a_time(
    where: DatabaseLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summing, "PAUSE", 0)
    write(where, used(1))
    databases = [ledger(where) for _ in range(2)]
    for each in databases:
        await each.start()
    claim = partial(summing._claim, time.time())
    assert [await each.run(claim) for each in databases] == [True, False]
    await Summing(databases[1], ledger(where)).catch_up()
    assert is_summed(where) == set()
    # the other one ended without releasing it
    later = time.time() + summing.LEASE
    assert await databases[1].run(partial(summing._claim, later))
    await databases[0].run(summing._release)
    await Summing(databases[1], ledger(where)).catch_up()
    assert (DAY, MONDAY) in is_summed(where)
    for each in databases:
        await each.close()


async def test_proxy_that_stops_lets_the_next_one_sum(
    scene: Scene, where: DatabaseLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summing, "PAUSE", 60)  # it stops after the first of 25 steps
    write(where, used(1))
    proxy = await scene.start(LEDGER_DB=where)
    while not await asyncio.to_thread(is_summed, where):
        await asyncio.sleep(0.02)  # as above
    await proxy.server.drain()
    with ledger(where) as database, database.transaction() as connection:
        assert summing._claim(time.time(), connection)


async def test_proxy_sums_soon_after_another_was_killed(
    scene: Scene, where: DatabaseLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summing, "LEASE", 0.5)
    monkeypatch.setattr(summing, "PAUSE", 0)
    write(where, used(1))
    with ledger(where) as database, database.transaction() as connection:
        assert summing._claim(time.time(), connection)
    await scene.start(LEDGER_DB=where)
    while (DAY, MONDAY) not in await asyncio.to_thread(is_summed, where):
        await asyncio.sleep(0.02)  # as above


async def test_summing_that_fails_is_logged_and_tried_again(
    scene: Scene,
    where: DatabaseLocation,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(summing, "INTERVAL", 0.05)
    monkeypatch.setattr(summing, "PAUSE", 0)
    write(where, used(1), used(1))
    with ledger(where) as database, database.transaction() as connection:
        connection.execute("UPDATE requests SET input_tokens = ?", (2**62,))
    await scene.start(LEDGER_DB=where)
    while "summing the ledger's usage failed with " not in caplog.text:
        await asyncio.sleep(0.02)  # as above
    with ledger(where) as database, database.transaction() as connection:
        connection.execute("UPDATE requests SET input_tokens = 1")
    while (DAY, MONDAY) not in await asyncio.to_thread(is_summed, where):
        await asyncio.sleep(0.02)
    assert costs(where) == [14]


def test_numbers_that_cannot_be_true_do_not_break_reports(where: DatabaseLocation) -> None:
    most = 2**63 - 1
    others = (ModelUsage("haiku", Usage(most), most),)
    usage = Usage(most, most, most, most, most, most, others=others)
    write(where, *(used(hour / 10, usage=usage, cost=most) for hour in range(20)))
    for _ in range(2):
        (counts,) = report(where).values()
        assert (counts.input_tokens, counts.cost_nanos) == (
            40 * rows.MAX_NUMBER,
            20 * rows.MAX_NUMBER,
        )
        sum_all(where)


async def test_progress_of_a_long_summing_is_logged(
    where: DatabaseLocation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(summing, "TOLD", 0)
    monkeypatch.setattr(summing, "PAUSE", 0)
    now = summed.start_of(time.time(), DAY)
    write(where, *(used(0, time=now - day * DAY) for day in (5, 3)))
    database = ledger(where)
    await database.start()
    await Summing(database, ledger(where)).catch_up()
    await database.close()
    told = [each.getMessage() for each in caplog.records if "summ" in each.getMessage()]
    assert told[0] == "summing the ledger's usage: 4 earlier days are left"
    assert told[-1].startswith("summed the ledger's usage in ")


def test_existing_ledger_gets_its_sums(where: DatabaseLocation) -> None:
    before = Database(where, rows.SCHEMA[:4], name="ledger")
    with before, before.transaction() as connection:
        connection.insert("requests", rows._COLUMNS, [rows._row(used(1))])
    assert costs(where) == [7]
    sum_all(where)
    assert costs(where) == [7]
    assert len(is_summed(where)) == 25


def test_copy_of_a_ledger_has_its_sums(
    where: DatabaseLocation, tmp_path: Path, commands: Commands
) -> None:
    write(where, used(1), used(30, principal="bob"))
    sum_all(where)
    copied = tmp_path / "copied.db"
    place = where.reveal() if isinstance(where, SecretURL) else str(where)
    done = commands.run("db", "copy", "--to", str(copied), "ledger", LEDGER_DB=place)
    assert "50 of usage_summed" in done.output, done.errors
    assert is_summed(copied) == is_summed(where)
    for asked in ({"by": frozenset({"model"})}, {"by": frozenset({"principal"}), "width": DAY}):
        assert report(copied, **asked) == report(where, **asked)


def test_counts_are_in_the_order_of_the_columns() -> None:
    assert [each.name for each in fields(Counts)] == [*relations.COUNTS]

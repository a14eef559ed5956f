"""The engine of the plugin budgets, without I/O."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tornadoproxy_budgets import storage
from tornadoproxy_budgets.caps import Cap, Scope
from tornadoproxy_budgets.engine import CapReached, Engine, Reservation
from tornadoproxy_budgets.money import cents_text, parse_cents, parse_dollars
from tornadoproxy_budgets.periods import PERIODS, Period, day_of, first_day, reset_time
from tornadoproxy_budgets.state import EVERYONE, Batch, State, Subject

CENT = 10_000_000
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()  # a Tuesday

EVERYONE_EACH = Scope("organization")
EVERYONE_TOGETHER = Scope("organization", shared=True)


def cap(scope: Scope, cents: int | None, period: Period = "daily", created: float = 0) -> Cap:
    return Cap(f"spl_{scope}_{period}", scope, period, cents, created, created)


def engine(*caps: Cap, now: float = NOON) -> Engine:
    made = Engine(now)
    nothing: dict[Period, dict[Subject, int]] = {period: {} for period in PERIODS}
    assert made.load(State(made.day, caps, nothing, {}))
    return made


def admit(
    made: Engine, name: str, nanos: int, *, groups: tuple[str, ...] = (), now: float = NOON
) -> Reservation:
    return made.reserve(name, groups, made.applying(name, groups), nanos, now)


def limits(made: Engine, name: str, *groups: str) -> dict[Period, int]:
    return {each.cap.period: each.nanos // CENT for each in made.applying(name, groups)}


# -- periods


@given(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)))  # noqa: DTZ001 - taken as UTC
def test_period_follows_the_calendar(naive: datetime) -> None:
    time = naive.replace(tzinfo=UTC)
    day = day_of(time.timestamp())
    midnight = time.replace(hour=0, minute=0, second=0, microsecond=0)
    monday = midnight - timedelta(days=midnight.weekday())
    first = midnight.replace(day=1)
    begins: dict[Period, datetime] = {"daily": midnight, "weekly": monday, "monthly": first}
    for period, time in begins.items():
        assert first_day(period, day) == day_of(time.timestamp())
    next_month = (first + timedelta(days=32)).replace(day=1)
    assert reset_time("daily", day) == (midnight + timedelta(days=1)).timestamp()
    assert reset_time("weekly", day) == (monday + timedelta(days=7)).timestamp()
    assert reset_time("monthly", day) == next_month.timestamp()


# -- money


@pytest.mark.parametrize(
    ("text", "cents"), [("12.5", 1250), ("$12.05", 1205), ("0", 0), ("9" * 13, int("9" * 13) * 100)]
)
def test_dollars_are_parsed(text: str, cents: int) -> None:
    assert parse_dollars(text) == cents


@pytest.mark.parametrize("text", ["", "-1", "1.005", "1e3", "٣", "1" * 14])
def test_invalid_dollars_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be an amount"):
        parse_dollars(text)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1_0", "٣", "1" * 16])
def test_invalid_cents_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cents"):
        parse_cents(text)


@pytest.mark.parametrize(
    ("nanos", "cents"),
    [(0, "0"), (CENT, "1"), (120_505 * CENT // 10, "12050.5"), (4_999, "0"), (5_000, "0.001")],
)
def test_cents_text_has_at_most_three_decimals(nanos: int, cents: str) -> None:
    assert cents_text(nanos) == cents


# -- caps that apply


def test_own_cap_precedes_the_groups_and_everyones() -> None:
    made = engine(
        cap(EVERYONE_EACH, 100),
        cap(EVERYONE_EACH, 500, "monthly"),
        cap(Scope("rbac_group", "team"), 200),
        cap(Scope("user", "ada"), 300),
        cap(Scope("user", "eve"), None),
    )
    assert limits(made, "ada", "team") == {"daily": 300, "monthly": 500}
    assert limits(made, "eve", "team") == {"monthly": 500}, "unlimited in one period"
    assert limits(made, "bob", "team") == {"daily": 200, "monthly": 500}
    assert limits(made, "bob", "others") == {"daily": 100, "monthly": 500}
    # the names of users and of groups are two different things
    assert limits(made, "team") == {"daily": 100, "monthly": 500}


def test_lowest_cap_of_several_groups_applies() -> None:
    made = engine(
        cap(EVERYONE_EACH, 1),
        cap(Scope("rbac_group", "a"), 300),
        cap(Scope("rbac_group", "b"), 200),
        cap(Scope("rbac_group", "c"), None),
    )
    assert limits(made, "ada", "a", "b", "c") == {"daily": 200}
    assert limits(made, "ada", "a", "c") == {"daily": 300}
    assert limits(made, "ada", "c") == {}, "no limit, in place of everyone's"


def test_shared_cap_applies_besides_the_personal_one() -> None:
    made = engine(
        cap(EVERYONE_TOGETHER, 1000, "monthly"),
        cap(Scope("rbac_group", "team", shared=True), 500, "weekly"),
        cap(Scope("user", "ada"), None),
    )
    assert limits(made, "ada", "team") == {"monthly": 1000, "weekly": 500}
    assert limits(made, "ada") == {"monthly": 1000}


# -- admission


def test_reservation_is_at_most_the_rest_of_the_cap() -> None:
    made = engine(cap(EVERYONE_EACH, 10), cap(EVERYONE_TOGETHER, 1000))
    made.settle(admit(made, "ada", 0), 4 * CENT, NOON)
    held = admit(made, "ada", 10**15)
    assert made.reserved(EVERYONE) == made.reserved(("user", "ada")) == 6 * CENT
    with pytest.raises(CapReached):
        admit(made, "ada", 1)
    admit(made, "bob", 1)
    made.settle(held, 0, NOON)
    admit(made, "ada", 1)


def test_refusal_names_the_spent_cap_that_resets_last() -> None:
    made = engine(
        cap(EVERYONE_EACH, 10), cap(EVERYONE_EACH, 10, "weekly"), cap(EVERYONE_EACH, 15, "monthly")
    )
    made.settle(admit(made, "ada", 5 * CENT), 5 * CENT, NOON)
    settled = admit(made, "ada", 0)
    held = admit(made, "ada", 20 * CENT)
    made.settle(settled, 7 * CENT, NOON)
    with pytest.raises(CapReached) as caught:
        admit(made, "ada", 1)
    refusal = caught.value
    # the month's is held only: it may be free again in a moment
    assert (refusal.cap.period, refusal.held) == ("weekly", False)
    assert (refusal.spent, refusal.nanos) == (12 * CENT, 10 * CENT)
    assert refusal.reset == datetime(2026, 11, 30, tzinfo=UTC).timestamp()
    made.settle(held, 0, NOON)


def test_cost_belongs_to_the_period_of_the_end() -> None:
    made = engine(cap(EVERYONE_EACH, 100))
    before = datetime(2026, 11, 24, 23, 59, 59, tzinfo=UTC).timestamp()
    open_request = admit(made, "ada", 100 * CENT, now=before)
    with pytest.raises(CapReached):  # the reservation goes over midnight
        admit(made, "ada", 1, now=before + 2)
    made.settle(open_request, 30 * CENT, before + 2)
    assert made.spent(("user", "ada"), "daily", before + 2) == 30 * CENT
    batch = made.take_unsaved()
    assert batch.spent == {(day_of(before + 2), ("user", "ada")): 30 * CENT}


@pytest.mark.parametrize(
    ("days", "cents"),
    [(0, (9, 9, 9)), (1, (0, 9, 9)), (6, (0, 9, 9)), (7, (0, 0, 9)), (8, (0, 0, 0))],
)
def test_period_ends_after_its_last_day(days: int, cents: tuple[int, int, int]) -> None:
    monday = NOON - 86_400
    made = engine(now=monday)
    made.settle(admit(made, "ada", 0, now=monday), 9 * CENT, monday)
    later = monday + days * 86_400
    assert tuple(made.spent(("user", "ada"), each, later) // CENT for each in PERIODS) == cents


def test_clock_set_back_frees_nothing() -> None:
    made = engine(cap(EVERYONE_EACH, 100))
    made.settle(admit(made, "ada", CENT), 100 * CENT, NOON)
    with pytest.raises(CapReached):
        admit(made, "ada", 1, now=NOON - 3 * 86_400)
    assert made.spent(("user", "ada"), "daily", NOON - 40 * 86_400) == 100 * CENT
    assert made.spent(("user", "ada"), "daily", NOON) == 100 * CENT


def test_state_of_another_day_is_not_loaded() -> None:
    made = engine()
    yesterday = State(made.day - 1, (), {period: {} for period in PERIODS}, {})
    made.settle(admit(made, "ada", 1), CENT, NOON)
    assert not made.load(yesterday)
    assert made.spent(("user", "ada"), "daily", NOON) == CENT


def test_groups_are_those_of_the_last_request() -> None:
    made = engine(cap(Scope("user", "eve"), 1))
    for groups in (("a",), ("b", "b")):
        made.settle(admit(made, "ada", 1, groups=groups), 2, NOON)
    assert made.seen("ada").groups == ("b", "b")
    assert made.principals() == ["ada", "eve"]
    assert made.spent(("rbac_group", "b"), "daily", NOON) == 2, "once, though named twice"


def test_state_has_the_sums_of_each_period() -> None:
    today = day_of(NOON)
    ada: Subject = ("user", "ada")
    # today, Monday, Sunday, the 1st, and the day before
    spent = {(today - days, ada): int(10**at) for at, days in enumerate((0, 1, 2, 23, 24))}
    connection: Any  # sqlite3's does without the method `insert`, which nothing here needs
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript("".join(storage.SCHEMA))
        storage.save(connection, Batch(spent=spent))
        loaded = storage.load(connection, today).spent
    assert {period: sums[ada] for period, sums in loaded.items()} == {
        "daily": 1,
        "weekly": 11,
        "monthly": 1111,
    }


# -- interleavings


NAMES = ("ada", "bob", "eve")
GROUPS = {"ada": ("team",), "bob": ("team", "other"), "eve": ()}
SCOPES = (
    EVERYONE_EACH,
    EVERYONE_TOGETHER,
    Scope("user", "ada"),
    Scope("rbac_group", "team"),
    Scope("rbac_group", "team", shared=True),
)


class Open(NamedTuple):
    """A request in flight, in one of the processes."""

    process: int
    name: str
    reservation: Reservation
    nanos: int


class Interleavings(RuleBasedStateMachine):
    """Two processes with one database, each killed and restarted at any time.

    Their sums are compared with those of a plain list of requests.
    """

    @initialize()
    def start(self) -> None:
        self.connection: Any = sqlite3.connect(":memory:", isolation_level=None)
        for script in storage.SCHEMA:
            self.connection.executescript(script)
        self.now = NOON
        self.open: list[Open] = []
        # day, person and cost of requests that have ended; unsaved and seen ones by process
        self.saved: list[tuple[int, str, int]] = []
        self.unsaved: list[list[tuple[int, str, int]]] = [[], []]
        self.seen: list[list[tuple[int, str, int]]] = [[], []]
        self.engines = [Engine(self.now), Engine(self.now)]
        for process in (0, 1):
            self.save_and_load(process)

    def teardown(self) -> None:
        self.connection.close()

    @rule(
        scope=st.sampled_from(SCOPES),
        period=st.sampled_from(PERIODS),
        cents=st.one_of(st.none(), st.integers(0, 20)),
    )
    def set_cap(self, scope: Scope, period: Period, cents: int | None) -> None:
        storage.set_cap(self.connection, scope, period, cents, actor="test", now=self.now)

    @rule(process=st.integers(0, 1), name=st.sampled_from(NAMES), nanos=st.integers(0, 8 * CENT))
    def ask(self, process: int, name: str, nanos: int) -> None:
        made = self.engines[process]
        applying = made.applying(name, GROUPS[name])
        left = {
            each: each.nanos
            - self.known_spent(process, each.subject, each.cap.period)
            - self.expected_reserved(process, each.subject)
            for each in applying
        }
        try:
            reservation = made.reserve(name, GROUPS[name], applying, nanos, self.now)
        except CapReached:
            assert min(left.values()) <= 0
            return
        own = [rest for each, rest in left.items() if not each.cap.scope.shared]
        assert min(left.values(), default=1) > 0
        assert reservation.nanos == min([nanos, *own])
        self.open.append(Open(process, name, reservation, nanos))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), part=st.sampled_from((0, 1, 3, 4)))
    def end(self, data: st.DataObject, part: int) -> None:
        """End a request for a part of its estimate, in quarters."""
        ended = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        cost = ended.nanos * part // 4
        self.engines[ended.process].settle(ended.reservation, cost, self.now)
        if cost:
            self.unsaved[ended.process].append((day_of(self.now), ended.name, cost))

    @rule(process=st.integers(0, 1))
    def save_and_load(self, process: int) -> None:
        made = self.engines[process]
        storage.save(self.connection, made.take_unsaved())
        self.saved += self.unsaved[process]
        self.unsaved[process] = []
        assert made.load(storage.load(self.connection, made.roll(self.now)))
        self.seen[process] = list(self.saved)

    @rule(process=st.integers(0, 1))
    def load(self, process: int) -> None:
        """Load while requests have ended since the last batch was taken."""
        made = self.engines[process]
        assert made.load(storage.load(self.connection, made.roll(self.now)))
        self.seen[process] = list(self.saved)

    @rule(process=st.integers(0, 1))
    def fail_to_save(self, process: int) -> None:
        made = self.engines[process]
        made.put_back(made.take_unsaved())

    @rule(process=st.integers(0, 1))
    def crash_and_restart(self, process: int) -> None:
        self.open = [each for each in self.open if each.process != process]
        self.unsaved[process] = []
        self.engines[process] = Engine(self.now)
        self.save_and_load(process)

    @rule(hours=st.integers(1, 30))
    def wait(self, hours: int) -> None:
        self.now += hours * 3600

    def expected_reserved(self, process: int, subject: Subject) -> int:
        return sum(
            each.reservation.nanos
            for each in self.open
            if each.process == process and counts_for(each.name, subject)
        )

    def known_spent(self, process: int, subject: Subject, period: Period) -> int:
        """Return the sum that a process knows: that of its last load, and its own."""
        first = first_day(period, day_of(self.now))
        return sum(
            cost
            for day, name, cost in (*self.seen[process], *self.unsaved[process])
            if day >= first and counts_for(name, subject)
        )

    @invariant()
    def nothing_leaks_and_nothing_is_lost(self) -> None:
        for process, made in enumerate(getattr(self, "engines", ())):
            for subject in (EVERYONE, *(("user", name) for name in NAMES), ("rbac_group", "team")):
                assert made.reserved(subject) == self.expected_reserved(process, subject)
                for period in PERIODS:
                    assert made.spent(subject, period, self.now) == self.known_spent(
                        process, subject, period
                    )


def counts_for(name: str, subject: Subject) -> bool:
    scope_type, of = subject
    if scope_type == "organization":
        return True
    return of == name if scope_type == "user" else of in GROUPS[name]


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

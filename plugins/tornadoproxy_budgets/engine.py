"""Decides who may spend, and counts what was spent. Pure: the time and the state are given to it.

The theory. For whoever a cap may be for, a *subject* (a user, a group, everyone), two numbers are
kept: what has been spent in the current day, week and month, and what is reserved by requests in
flight. A request is admitted if for each cap that applies to it, spent + reserved < cap. From then
on its estimate is reserved, for each subject that it counts for, until it is over: then the
reservation goes, and what it cost is added, once.

So of all requests admitted under a personal cap, only the last can take it over the cap, and by no
more than its estimate: each of those before was counted when that one was admitted, with its
estimate or its cost. What costs more than was estimated adds the difference.

A reservation is never more than what is left of the person's own caps. Otherwise one person could
reserve a whole shared cap with requests that cost nothing in the end. Of those admitted under a
shared cap, the last one of each person can take it over the cap.

A reservation belongs to no period: it counts in each until the request is over. The cost belongs
to the period in which it is over. A period begins with nothing spent. The day never goes back,
whatever the clock does.

What has been spent by processes that share the database comes with `load`, as does all that was
spent before the start. What was counted here and is not saved yet is kept apart, so that it can be
added to what was loaded. Reservations are of this process alone: a crash ends the requests and
their reservations together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from tornadoproxy_budgets.caps import Cap, Scope, ScopeType
from tornadoproxy_budgets.periods import PERIODS, Period, day_of, first_day, reset_time

Subject: TypeAlias = tuple[ScopeType, str]

EVERYONE: Subject = ("organization", "")


class Applying(NamedTuple):
    """A cap that limits a person.

    :param subject: whose spending it counts.
    :param nanos: how much that may be.
    """

    cap: Cap
    subject: Subject
    nanos: int


class CapReached(Exception):
    """Nothing more may be spent for now.

    :param cap: the cap; of several, the one that holds longest.
    :param spent: what has been spent of it, in nanos.
    :param nanos: how much it is.
    :param reset: when its period ends, in seconds since the epoch.
    :param held: whether requests in flight hold what is left of it: then it is not spent yet, and
        may be free again when they are over.
    """

    def __init__(self, cap: Cap, spent: int, nanos: int, reset: int, *, held: bool) -> None:
        super().__init__(cap.id)
        self.cap = cap
        self.spent = spent
        self.nanos = nanos
        self.reset = reset
        self.held = held


class Reservation(NamedTuple):
    """What a request in flight may cost, and whom it counts for."""

    subjects: tuple[Subject, ...]
    nanos: int


@dataclass(frozen=True, slots=True)
class State:
    """What a database says.

    :param day: the day that it was asked on.
    :param spent: what each subject but everyone spent in the periods that `day` is in.
    :param groups: the groups that each user was seen with last.
    """

    day: int
    caps: tuple[Cap, ...]
    spent: Mapping[Period, Mapping[Subject, int]]
    groups: Mapping[str, tuple[str, ...]]


@dataclass(slots=True)
class Batch:
    """What is to be saved.

    :param spent: what each subject but everyone spent on a day, in nanos, besides what is saved.
    :param groups: the groups of those users who were seen with others before.
    """

    spent: dict[tuple[int, Subject], int] = field(default_factory=dict)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.spent or self.groups)


class Engine:
    """The caps, and what is spent and reserved of them.

    :param now: the time, in seconds since the epoch; so everywhere below.
    """

    def __init__(self, now: float) -> None:
        self._day = day_of(now)
        self._caps: dict[Scope, dict[Period, Cap]] = {}
        # the same, by what is at hand when a request comes
        self._personal: dict[Period, dict[Subject, Cap]] = {}
        self._shared: list[Applying] = []
        self._spent: dict[Period, dict[Subject, int]] = {period: {} for period in PERIODS}
        self._reserved: dict[Subject, int] = {}
        self._groups: dict[str, tuple[str, ...]] = {}
        self._unsaved = Batch()

    @property
    def day(self) -> int:
        return self._day

    @property
    def unsaved(self) -> bool:
        """Whether there is something to save."""
        return bool(self._unsaved)

    @property
    def caps(self) -> tuple[Cap, ...]:
        """All caps, in the order of their creation."""
        caps = (cap for by_period in self._caps.values() for cap in by_period.values())
        return tuple(sorted(caps, key=lambda cap: (cap.created, cap.id)))

    # -- a request's life

    def applying(self, principal: str, groups: tuple[str, ...]) -> list[Applying]:
        """The caps that limit a person; none if there is no limit."""
        found = []
        for caps in self._personal.values():
            cap = _personal(caps, principal, groups)
            if cap is not None and (nanos := cap.nanos) is not None:
                found.append(Applying(cap, ("user", principal), nanos))
        for shared in self._shared:
            if shared.subject == EVERYONE or shared.subject[1] in groups:
                found.append(shared)
        return found

    def check(self, applying: Iterable[Applying], now: float) -> None:
        """Refuse a person who has a cap of which nothing is left, whatever may be reserved.

        :param applying: what `applying` says of this person.
        :raises CapReached: there is one.
        """
        self._roll(now)
        reached = [
            each
            for each in applying
            if self._spent[each.cap.period].get(each.subject, 0) >= each.nanos
        ]
        if reached:
            raise self._refusal(reached)

    def reserve(
        self,
        principal: str,
        groups: tuple[str, ...],
        applying: Iterable[Applying],
        nanos: int,
        now: float,
    ) -> Reservation:
        """Admit a request that may cost `nanos`; no more is reserved than the person has left.

        :param applying: what `applying` says of this person.
        :raises CapReached: it is not admitted.
        """
        self._roll(now)
        reserved = self._reserved
        reached = []
        for each in applying:
            used = self._spent[each.cap.period].get(each.subject, 0)
            left = each.nanos - used - reserved.get(each.subject, 0)
            if left <= 0:
                reached.append(each)
            elif not each.cap.scope.shared:
                nanos = min(nanos, left)
        if reached:
            raise self._refusal(reached)
        if self._groups.get(principal) != groups:
            self._groups[principal] = self._unsaved.groups[principal] = groups
        subjects: tuple[Subject, ...] = (("user", principal), EVERYONE)
        if groups:
            subjects += tuple(("rbac_group", group) for group in dict.fromkeys(groups))
        for subject in subjects:
            reserved[subject] = reserved.get(subject, 0) + nanos
        return Reservation(subjects, nanos)

    def settle(self, reservation: Reservation, cost: int, now: float) -> None:
        """End a request that did cost `cost`, in nanos. To be called once for each."""
        self._roll(now)
        for subject in reservation.subjects:
            left = self._reserved.get(subject, 0) - reservation.nanos
            if left:
                self._reserved[subject] = left
            else:
                self._reserved.pop(subject, None)
            if cost:
                for spent in self._spent.values():
                    spent[subject] = spent.get(subject, 0) + cost
                if subject is not EVERYONE:
                    key = (self._day, subject)
                    self._unsaved.spent[key] = self._unsaved.spent.get(key, 0) + cost

    # -- looking in

    def personal(self, principal: str, groups: tuple[str, ...], period: Period) -> Cap | None:
        """The personal cap that counts for a person, be it one without a limit."""
        return _personal(self._personal.get(period, {}), principal, groups)

    def spent(self, subject: Subject, period: Period, now: float) -> int:
        """What `subject` has spent in the current `period`, in nanos."""
        self._roll(now)
        return self._spent[period].get(subject, 0)

    def reserved(self, subject: Subject) -> int:
        """What requests in flight may cost `subject`, in nanos."""
        return self._reserved.get(subject, 0)

    def groups(self, principal: str) -> tuple[str, ...]:
        """The groups that a user was seen with last."""
        return self._groups.get(principal, ())

    def principals(self) -> list[str]:
        """Every user who was ever admitted, or has a cap, in the order of their names."""
        capped = {scope.name for scope in self._caps if scope.type == "user"}
        return sorted(capped.union(self._groups))

    # -- the database's side

    def load(self, state: State) -> bool:
        """Take over what a database says, in place of what it said before.

        :return: whether `state` is of the current day; if not, nothing is changed.
        """
        if state.day != self._day:
            return False
        self._take_caps(state.caps)
        for period in PERIODS:
            spent = dict(state.spent[period])
            first = first_day(period, self._day)
            for (day, subject), nanos in self._unsaved.spent.items():
                if day >= first:
                    spent[subject] = spent.get(subject, 0) + nanos
            spent[EVERYONE] = sum(nanos for (kind, _), nanos in spent.items() if kind == "user")
            self._spent[period] = spent
        self._groups = {**state.groups, **self._unsaved.groups}
        return True

    def roll(self, now: float) -> int:
        """Begin the periods that `now` is in, and return the day."""
        self._roll(now)
        return self._day

    def take_unsaved(self) -> Batch:
        """What is to be saved, which then counts as saved."""
        batch, self._unsaved = self._unsaved, Batch()
        return batch

    def put_back(self, batch: Batch) -> None:
        """Have a batch saved again that could not be."""
        for key, nanos in batch.spent.items():
            self._unsaved.spent[key] = self._unsaved.spent.get(key, 0) + nanos
        self._unsaved.groups = {**batch.groups, **self._unsaved.groups}

    def _take_caps(self, caps: Iterable[Cap]) -> None:
        self._caps = {}
        self._personal = {}
        self._shared = []
        for cap in caps:
            self._caps.setdefault(cap.scope, {})[cap.period] = cap
            subject = (cap.scope.type, cap.scope.name)
            if not cap.scope.shared:
                self._personal.setdefault(cap.period, {})[subject] = cap
            elif cap.nanos is not None:
                self._shared.append(Applying(cap, subject, cap.nanos))

    def _roll(self, now: float) -> None:
        day = day_of(now)
        if day <= self._day:
            return
        for period in PERIODS:
            if first_day(period, day) > self._day:
                self._spent[period].clear()
        self._day = day

    def _refusal(self, reached: list[Applying]) -> CapReached:
        """Tell of the cap that holds longest: one that is spent, rather than one held."""
        refusals = []
        for cap, subject, nanos in reached:
            spent = self._spent[cap.period].get(subject, 0)
            reset = reset_time(cap.period, self._day)
            refusals.append(CapReached(cap, spent, nanos, reset, held=spent < nanos))
        return max(refusals, key=lambda refusal: (not refusal.held, refusal.reset))


def _personal(caps: Mapping[Subject, Cap], principal: str, groups: tuple[str, ...]) -> Cap | None:
    """Which of one period's personal caps counts."""
    own = caps.get(("user", principal))
    if own is not None:
        return own
    if groups:
        of_groups = [cap for each in groups if (cap := caps.get(("rbac_group", each))) is not None]
        if of_groups:
            return min(of_groups, key=lambda cap: (cap.cents is None, cap.cents or 0, cap.created))
    return caps.get(EVERYONE)

"""The decision whether a request may spend, and the sums spent. Without I/O, the clock included.

For each *subject* of a cap (a user, a group, everyone) the engine keeps two numbers: the sum spent
in the current day, week and month, and the sum reserved by requests in flight. It admits a request
if spent + reserved < cap holds for each cap that applies. It then reserves the request's estimate
for each subject, until the request ends and `settle` replaces the reservation by the cost, once.

Therefore only the last request admitted under a personal cap can exceed the cap, by at most its
estimate: every earlier one was counted with its estimate or its cost when that one was admitted.
A request that costs more than its estimate adds the difference.

A reservation is never larger than the rest of the person's own caps. Without that rule one person
could reserve a whole shared cap with requests that cost little in the end. Under a shared cap the
last admitted request of each person can exceed the cap.

A reservation belongs to no period: it counts in each one until the request ends. The cost belongs
to the period in which the request ends. A period begins with nothing spent. The day never goes
back, whatever the clock does.

`load` brings the sums of all processes that share the database, and those from before the start.
Sums that are not saved yet are kept apart, so that they can be added to the loaded ones.
Reservations belong to this process alone: a crash ends the requests and their reservations
together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from tornadoproxy_budgets.caps import Cap, Scope, cap_of
from tornadoproxy_budgets.periods import PERIODS, Period, day_of, first_day, reset_time
from tornadoproxy_budgets.state import EVERYONE, Batch, Seen, State, Subject

if TYPE_CHECKING:
    from tornadoproxy import Allowance

_UNSEEN = Seen(())


class Applying(NamedTuple):
    """A cap that limits a person.

    :param subject: the subject whose spending counts.
    :param nanos: the amount of the cap.
    """

    cap: Cap
    subject: Subject
    nanos: int


class Fullest(Struct, frozen=True):
    """The cap of a person that is spent the most, in parts of its amount.

    :param spent: the sum spent, in nanos.
    :param nanos: the amount of the cap.
    """

    cap: Cap
    spent: int
    nanos: int


class CapReached(Exception):
    """A cap that leaves nothing to spend for now.

    :param cap: the cap; of several, the one that resets last.
    :param spent: the sum spent, in nanos.
    :param nanos: the amount of the cap.
    :param reset: when its period ends, in seconds since the epoch.
    :param held: whether requests in flight have reserved the rest of the cap, which is then not
        spent yet and may become free when they end.
    """

    def __init__(self, cap: Cap, spent: int, nanos: int, reset: int, *, held: bool) -> None:
        super().__init__(cap.id)
        self.cap = cap
        self.spent = spent
        self.nanos = nanos
        self.reset = reset
        self.held = held


class Reservation(Struct, frozen=True):
    """The amount that a request in flight has reserved, for each of its subjects."""

    subjects: tuple[Subject, ...]
    nanos: int


class Engine:
    """The caps, and the sums spent and reserved under them.

    :param now: the time in seconds since the epoch, as in every method.
    """

    def __init__(self, now: float) -> None:
        self._day = day_of(now)
        self._day_ends = reset_time("daily", self._day)
        self._caps: dict[Scope, dict[Period, Cap]] = {}
        # the same, indexed for the look-ups of a request
        self._personal: dict[Period, dict[Subject, Cap]] = {}
        self._shared: list[Applying] = []
        self._applying: dict[tuple[str, tuple[str, ...], Allowance | None], Sequence[Applying]] = {}
        self._spent: dict[Period, dict[Subject, int]] = {period: {} for period in PERIODS}
        self._reserved: dict[Subject, int] = {}
        self._seen: dict[str, Seen] = {}
        self._unsaved = Batch()

    @property
    def day(self) -> int:
        return self._day

    @property
    def unsaved(self) -> bool:
        """Whether there are sums to save."""
        return bool(self._unsaved)

    @property
    def caps(self) -> tuple[Cap, ...]:
        """All caps in the order of their creation."""
        caps = (cap for by_period in self._caps.values() for cap in by_period.values())
        return tuple(sorted(caps, key=lambda cap: (cap.created, cap.id)))

    # -- a request's life

    def applying(
        self, principal: str, groups: tuple[str, ...], allowance: Allowance | None = None
    ) -> Sequence[Applying]:
        """Return the caps that limit a person.

        :param allowance: what the person's authenticator allows.
        """
        key = principal, groups, allowance
        found = self._applying.get(key)
        if found is None:
            found = self._applying[key] = self._find_applying(*key)
        return found

    def _find_applying(
        self, principal: str, groups: tuple[str, ...], allowance: Allowance | None
    ) -> Sequence[Applying]:
        found = []
        for period in PERIODS:
            cap = self.personal(principal, groups, period, allowance)
            if cap is not None and (nanos := cap.nanos) is not None:
                found.append(Applying(cap, ("user", principal), nanos))
        for shared in self._shared:
            if shared.subject == EVERYONE or shared.subject[1] in groups:
                found.append(shared)
        return found

    def check(self, applying: Iterable[Applying], now: float) -> None:
        """Refuse a person who has spent a cap; reservations do not count.

        :param applying: the result of `applying` for this person.
        :raises CapReached: a cap is spent.
        """
        self._roll(now)
        reached = [
            each
            for each in applying
            if self._spent[each.cap.period].get(each.subject, 0) >= each.nanos
        ]
        if reached:
            raise self.refusal(reached)

    def reserve(
        self,
        principal: str,
        groups: tuple[str, ...],
        applying: Iterable[Applying],
        nanos: int,
        now: float,
        allowance: Allowance | None = None,
    ) -> Reservation:
        """Admit a request that may cost `nanos`, and reserve at most what the person has left.

        :param applying: the result of `applying` for this person.
        :raises CapReached: the request is not admitted.
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
            raise self.refusal(reached)
        return self.hold(principal, groups, nanos, allowance)

    def hold(
        self,
        principal: str,
        groups: tuple[str, ...],
        nanos: int,
        allowance: Allowance | None = None,
    ) -> Reservation:
        """Reserve `nanos` whatever the caps are."""
        if self._seen.get(principal) != (groups, allowance):
            self._seen[principal] = self._unsaved.seen[principal] = Seen(groups, allowance)
        subjects = subjects_of(principal, groups)
        for subject in subjects:
            self._reserved[subject] = self._reserved.get(subject, 0) + nanos
        return Reservation(subjects, nanos)

    def settle(self, reservation: Reservation, cost: int, now: float) -> None:
        """Replace the reservation of a request that has ended by its cost in nanos, once."""
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

    # -- views

    def personal(
        self,
        principal: str,
        groups: tuple[str, ...],
        period: Period,
        allowance: Allowance | None = None,
    ) -> Cap | None:
        """Return the personal cap that applies to a person, possibly one without a limit."""
        caps = self._personal.get(period, {})
        cap = _narrow(caps, principal, groups)
        if cap is None and allowance is not None:
            cap = cap_of(allowance, period)
        return caps.get(EVERYONE) if cap is None else cap

    def fullest(self, applying: Iterable[Applying], now: float) -> Fullest | None:
        """Return the cap that is spent the most; ``None`` without a cap.

        :param applying: the result of `applying` for a person.
        """
        self._roll(now)
        spent = self._spent
        fullest, most = None, -1.0
        for cap, subject, nanos in applying:
            used = spent[cap.period].get(subject, 0)
            part = used / nanos if nanos else 1.0
            if part > most:
                fullest, most = Fullest(cap, used, nanos), part
        return fullest

    def spent(self, subject: Subject, period: Period, now: float) -> int:
        """Return the sum that `subject` has spent in the current `period`, in nanos."""
        self._roll(now)
        return self._spent[period].get(subject, 0)

    def spent_under(
        self, applying: Iterable[Applying], now: float
    ) -> tuple[int, list[tuple[Cap, Subject, int, int]]]:
        """Return the day, and of each cap the cap, its subject, its amount, and the sum spent."""
        self._roll(now)
        spent = self._spent
        return self._day, [
            (cap, subject, nanos, spent[cap.period].get(subject, 0))
            for cap, subject, nanos in applying
        ]

    def reserved(self, subject: Subject) -> int:
        """Return the sum that requests in flight have reserved for `subject`, in nanos."""
        return self._reserved.get(subject, 0)

    def seen(self, principal: str) -> Seen:
        """Return what is known of a user from the last request."""
        return self._seen.get(principal, _UNSEEN)

    def principals(self) -> list[str]:
        """Return every user who was ever admitted or has a cap, sorted by name."""
        capped = {scope.name for scope in self._caps if scope.type == "user"}
        return sorted(capped.union(self._seen))

    # -- the database

    def load(self, state: State) -> bool:
        """Replace the loaded sums and caps by those of `state`.

        :return: whether `state` is of the current day; if not, nothing changes.
        """
        if state.day != self._day:
            return False
        self.load_caps(state.caps)
        for period in PERIODS:
            spent = dict(state.spent[period])
            first = first_day(period, self._day)
            for (day, subject), nanos in self._unsaved.spent.items():
                if day >= first:
                    spent[subject] = spent.get(subject, 0) + nanos
            spent[EVERYONE] = sum(nanos for (kind, _), nanos in spent.items() if kind == "user")
            self._spent[period] = spent
        self._seen = {**state.seen, **self._unsaved.seen}
        return True

    def load_caps(self, caps: Iterable[Cap]) -> None:
        """Replace the caps."""
        self._caps = {}
        self._personal = {}
        self._shared = []
        self._applying = {}
        for cap in caps:
            self._caps.setdefault(cap.scope, {})[cap.period] = cap
            subject = (cap.scope.type, cap.scope.name)
            if not cap.scope.shared:
                self._personal.setdefault(cap.period, {})[subject] = cap
            elif cap.nanos is not None:
                self._shared.append(Applying(cap, subject, cap.nanos))

    def learn(self, applying: Applying, nanos: int, now: float) -> None:
        """Take note that others know that at least `nanos` are spent under a cap."""
        self._roll(now)
        spent = self._spent[applying.cap.period]
        spent[applying.subject] = max(spent.get(applying.subject, 0), nanos)

    def roll(self, now: float) -> int:
        """Begin the periods of `now`, and return the day."""
        self._roll(now)
        return self._day

    def take_unsaved(self) -> Batch:
        """Return the sums to save, which count as saved from now on."""
        batch, self._unsaved = self._unsaved, Batch()
        return batch

    def put_back(self, batch: Batch) -> None:
        """Take back a batch that could not be saved."""
        for key, nanos in batch.spent.items():
            self._unsaved.spent[key] = self._unsaved.spent.get(key, 0) + nanos
        self._unsaved.seen = {**batch.seen, **self._unsaved.seen}

    def _roll(self, now: float) -> None:
        if now < self._day_ends:
            return
        day = day_of(now)
        for period in PERIODS:
            if first_day(period, day) > self._day:
                self._spent[period].clear()
        self._day = day
        self._day_ends = reset_time("daily", day)

    def refusal(self, reached: list[Applying]) -> CapReached:
        """Return the error for caps that leave nothing.

        It is for the one that resets last; a spent cap goes before a held one.
        """
        refusals = []
        for cap, subject, nanos in reached:
            spent = self._spent[cap.period].get(subject, 0)
            reset = reset_time(cap.period, self._day)
            refusals.append(CapReached(cap, spent, nanos, reset, held=spent < nanos))
        return max(refusals, key=lambda refusal: (not refusal.held, refusal.reset))


@lru_cache(4096)  # most requests are of people who have asked before
def subjects_of(principal: str, groups: tuple[str, ...]) -> tuple[Subject, ...]:
    """Return the subjects that a person's spending counts for."""
    of_groups: tuple[Subject, ...] = tuple(("rbac_group", each) for each in dict.fromkeys(groups))
    return (("user", principal), EVERYONE, *of_groups)


def _narrow(caps: Mapping[Subject, Cap], principal: str, groups: tuple[str, ...]) -> Cap | None:
    """Return the cap of one period that is the person's own, or of a group of theirs."""
    own = caps.get(("user", principal))
    if own is not None:
        return own
    if groups:
        of_groups = [cap for each in groups if (cap := caps.get(("rbac_group", each))) is not None]
        if of_groups:
            return min(of_groups, key=lambda cap: (cap.cents is None, cap.cents or 0, cap.created))
    return None

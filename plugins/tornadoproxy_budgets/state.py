"""What the engine loads from the database, and saves there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from tornadoproxy_budgets.caps import Cap, ScopeType

if TYPE_CHECKING:
    from tornadoproxy import Allowance
    from tornadoproxy_budgets.periods import Period

Subject: TypeAlias = tuple[ScopeType, str]

EVERYONE: Subject = ("organization", "")


class Seen(NamedTuple):
    """What is known of a user from the last request.

    :param allowance: what the authenticator allowed; ``None`` is all.
    """

    groups: tuple[str, ...]
    allowance: Allowance | None = None


@dataclass(frozen=True, slots=True)
class State:
    """The content of a database.

    :param day: the day on which it was read.
    :param spent: the sum that each subject but everyone spent in the periods of `day`.
    :param seen: the users who have sent requests.
    """

    day: int
    caps: tuple[Cap, ...]
    spent: Mapping[Period, Mapping[Subject, int]]
    seen: Mapping[str, Seen]


@dataclass(slots=True)
class Batch:
    """What is not saved yet.

    :param spent: the sum that each subject but everyone spent on a day, in nanos.
    :param seen: the users of whom something has changed.
    """

    spent: dict[tuple[int, Subject], int] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.spent or self.seen)

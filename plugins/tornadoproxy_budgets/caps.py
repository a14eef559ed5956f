"""Caps: their scope, period and amount. Without I/O.

A *personal* cap limits each person in its scope: one user, each member of a group, or everyone.
For each period one personal cap applies to a person: the user's own; otherwise the lowest of those
of the user's groups; otherwise the one in the user's `Allowance`, which the authenticator knows;
otherwise everyone's. Anthropic's own gateway has the same rules, but for the allowance
(https://code.claude.com/docs/en/claude-apps-gateway-spend-limits).

A *shared* cap limits the sum that all members of a group, or everyone, spend. It applies in
addition to the personal cap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from tornadoproxy_budgets.money import NANOS_PER_CENT

if TYPE_CHECKING:
    from tornadoproxy import Allowance
    from tornadoproxy_budgets.periods import Period

# the names of the Admin API
ScopeType: TypeAlias = Literal["organization", "rbac_group", "user"]

SCOPE_TYPES: tuple[ScopeType, ...] = get_args(ScopeType)

MAX_NAME = 256  # characters


@dataclass(frozen=True, slots=True)
class Scope:
    """The people whom a cap limits.

    :param type: one user, a group, or everyone.
    :param name: the user's principal, or the group's name; empty for everyone.
    :param shared: whether the cap limits their sum, and not each of them.
    """

    type: ScopeType
    name: str = ""
    shared: bool = False

    def __str__(self) -> str:
        if self.type == "user":
            return f"user {self.name}"
        if self.type == "rbac_group":
            if self.shared:
                return f"group {self.name} together"
            return f"each member of group {self.name}"
        return "everyone together" if self.shared else "each person"


@dataclass(frozen=True, slots=True)
class Cap:
    """The amount that may be spent in each period.

    :param id: ``spl_…``; empty if it is that of an `Allowance`.
    :param cents: the amount; ``None`` is no limit, which overrides a wider cap.
    :param created: when the cap was created, in seconds since the epoch.
    :param updated: when the cap was last set.
    """

    id: str
    scope: Scope
    period: Period
    cents: int | None
    created: float
    updated: float

    @property
    def nanos(self) -> int | None:
        return None if self.cents is None else self.cents * NANOS_PER_CENT


def cap_of(allowance: Allowance, period: Period) -> Cap | None:
    """Return the cap of an allowance; ``None`` if it has none in this period."""
    cents: int | None = getattr(allowance, period)
    if cents is None:
        return None
    group = allowance.group
    scope = Scope("organization") if group is None else Scope("rbac_group", group)
    return Cap("", scope, period, cents, 0.0, 0.0)


def check_name(name: str) -> str:
    """Return `name` if it can be a user's or group's name.

    :raises ValueError: with the end of a sentence that says what is wrong.
    """
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise ValueError(f"must be from 1 to {MAX_NAME} printable characters")
    return name

"""Caps: who they are for, for which period, and how much. Pure.

A cap is one of two kinds. A *personal* one is what each person it is for may spend: for a user,
for each member of a group, or for everyone. For each period one of them counts: the user's own;
else the lowest of those of the user's groups; else everyone's; else there is none. This is what
Anthropic's own gateway does
(https://code.claude.com/docs/en/claude-apps-gateway-spend-limits).

A *shared* one is what all members of a group, or everyone, may spend together. It applies besides
the personal one, whatever that says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from tornadoproxy_budgets.money import NANOS_PER_CENT

if TYPE_CHECKING:
    from tornadoproxy_budgets.periods import Period

# in the words of the Admin API
ScopeType: TypeAlias = Literal["organization", "rbac_group", "user"]

SCOPE_TYPES: tuple[ScopeType, ...] = get_args(ScopeType)

MAX_NAME = 256  # characters


@dataclass(frozen=True, slots=True)
class Scope:
    """Who a cap is for.

    :param type: one user, a group, or everyone.
    :param name: the user's principal, or the group's name; empty for everyone.
    :param shared: whether they share it, in place of each having one.
    """

    type: ScopeType
    name: str = ""
    shared: bool = False

    def __str__(self) -> str:
        if self.type == "user":
            return f"user {self.name}"
        if self.type == "rbac_group":
            together = "all together in" if self.shared else "each in"
            return f"{together} group {self.name}"
        return "everyone together" if self.shared else "everyone, each"


@dataclass(frozen=True, slots=True)
class Cap:
    """What may be spent in each period.

    :param id: ``spl_…``.
    :param cents: how much; ``None`` means that there is no limit, in place of a wider cap.
    :param created: when it was set first, in seconds since the epoch.
    :param updated: when it was set last.
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


def check_name(name: str) -> str:
    """A user's or group's name, if it can be one.

    :raises ValueError: with the end of a sentence that says what is wrong.
    """
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise ValueError(f"must be from 1 to {MAX_NAME} printable characters")
    return name

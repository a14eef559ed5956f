"""The deciding hooks: which results count, and who awaits the plugins."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from tornadoproxy.plugin.failures import OurOwnError
from tornadoproxy.plugin.request import Identity

_Ended = tuple[object, BaseException | None]  # as `outcome` returns it

Asking = Generator[Awaitable[_Ended], _Ended, Any]  # Any: a result that was accepted
"""A pass over the plugins: it yields each awaitable, and is sent the awaited outcome."""


class Question(Struct, frozen=True):
    """A deciding hook that the plugins are asked.

    :param hook: its name.
    :param first_counts: whether the first result decides, and a request without one is rejected;
        otherwise every plugin is asked.
    :param result: what a result other than ``None`` must be, in words.
    :param unavailable: the client's message when a plugin failed.
    """

    hook: str
    first_counts: bool
    result: str
    unavailable: str


WHO = Question(
    "authenticate",
    first_counts=True,
    result="an Identity with a principal",
    unavailable="Authentication is temporarily unavailable: try again.",
)
MAY_ENTER = Question(
    "admit",
    first_counts=False,
    result="a Permit",
    unavailable="Authorization is temporarily unavailable: try again.",
)
MAY = replace(MAY_ENTER, hook="authorize")


def run(asking: Asking) -> Any | Awaitable[Any]:
    """Return what `asking` returns, or an awaitable of it once a plugin has to be awaited."""
    try:
        waiting = next(asking)
    except StopIteration as done:
        return done.value
    return _run_on(asking, waiting)


async def _run_on(asking: Asking, waiting: Awaitable[_Ended]) -> Any:  # Any: as there
    try:
        while True:
            waiting = asking.send(await waiting)
    except StopIteration as done:
        return done.value


def vouches(_plugin: str, result: object) -> bool:
    """Return whether `result` is a valid result of `WHO`."""
    return isinstance(result, Identity) and _fault_of(result) is None


def nonsense(question: Question, result: object) -> OurOwnError:
    """Return the failure of a plugin whose `result` is invalid."""
    if isinstance(result, Identity) and (fault := _fault_of(result)):
        return OurOwnError(fault)
    return OurOwnError(f"its {type(result).__name__} is neither None nor {question.result}")


def _fault_of(identity: Identity) -> str | None:
    """Return what is wrong with `identity`, without its values: they may be a credential."""
    principal: object = identity.principal
    anonymous: object = identity.anonymous
    groups: object = identity.groups
    if not isinstance(principal, str) or not principal:
        return "its Identity's principal must be a non-empty str"
    if not isinstance(anonymous, bool):
        return f"its Identity's anonymous must be a bool, not a {type(anonymous).__name__}"
    if not isinstance(groups, tuple):
        return f"its Identity's groups must be a tuple of str, not a {type(groups).__name__}"
    if groups and not all(isinstance(group, str) and group for group in groups):
        return "its Identity's groups must be non-empty str"
    return None

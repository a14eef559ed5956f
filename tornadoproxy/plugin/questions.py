"""The deciding hooks: what the plugins are asked, which answers count, who waits for them."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from tornadoproxy.plugin.failures import OurOwnError
from tornadoproxy.plugin.request import Identity

_Ended = tuple[object, BaseException | None]  # as `outcome` returns it

Asking = Generator[Awaitable[_Ended], _Ended, Any]  # Any: an answer that was accepted
"""A pass over the plugins: it yields what has to be awaited, and is sent what came of it."""


class Question(Struct, frozen=True):
    """A deciding hook that the plugins are asked.

    :param hook: its name.
    :param first_counts: the first answer settles it, and without one the request is refused;
        otherwise all are asked.
    :param answer: what an answer that is not ``None`` must be, in words.
    :param unavailable: what the client is told of a plugin that failed.
    """

    hook: str
    first_counts: bool
    result: str
    unavailable: str


WHO = Question(
    "authenticate",
    first_counts=True,
    result="an Identity with a principal",
    unavailable="Authentication is unavailable at the moment: try again.",
)
MAY_ENTER = Question(
    "admit",
    first_counts=False,
    result="a Permit",
    unavailable="Whether this is permitted cannot be known at the moment: try again.",
)
MAY = replace(MAY_ENTER, hook="authorize")


def run(asking: Asking) -> Any | Awaitable[Any]:
    """Return what `asking` returns, or an awaitable of that if it has to wait for a plugin."""
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
    """Whether `answer` counts as an answer to `WHO`."""
    return isinstance(result, Identity) and _fault_of(result) is None


def nonsense(question: Question, result: object) -> OurOwnError:
    """Return the failure of a plugin whose `answer` does not count."""
    if isinstance(result, Identity) and (fault := _fault_of(result)):
        return OurOwnError(fault)
    return OurOwnError(f"its {type(result).__name__} is neither None nor {question.result}")


def _fault_of(identity: Identity) -> str | None:
    """What is wrong with `identity`, in words without its values: they may be a credential."""
    principal: object = identity.principal
    anonymous: object = identity.anonymous
    groups: object = identity.groups
    if not isinstance(principal, str) or not principal:
        return "its Identity's principal must be a text that is not empty"
    if not isinstance(anonymous, bool):
        return f"its Identity's anonymous must be a bool, not a {type(anonymous).__name__}"
    if not isinstance(groups, tuple):
        return f"its Identity's groups must be a tuple of texts, not a {type(groups).__name__}"
    if groups and not all(isinstance(group, str) and group for group in groups):
        return "its Identity's groups must be texts that are not empty"
    return None

"""The keys that open the spend limits API, and who holds each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tornadoproxy import Denied, Secret, parsers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tornadoproxy import IncomingRequest

MIN_LENGTH = 32  # characters, as Anthropic's own gateway asks for

_NAMED = re.compile(rb"([A-Za-z][A-Za-z0-9_.-]{0,31})=(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class AdminKey:
    """One key.

    :param name: what the trail of changes calls it.
    """

    name: str
    secret: Secret = field(repr=False)


def parse_keys(value: str) -> tuple[AdminKey, ...]:
    """Keys separated by blanks, each ``NAME=KEY`` or ``KEY`` alone, which is named by its place.

    :raises ValueError: with the end of a sentence that says what is wrong, and no key.
    """
    keys = []
    for position, word in enumerate(parsers.secrets(value), 1):
        name, secret = str(position), word
        matched = _NAMED.fullmatch(word.reveal())
        # a key in base64 may end in "=": no name, then
        if matched and len(matched[2]) >= MIN_LENGTH:
            name, secret = matched[1].decode(), Secret(matched[2])
        if len(secret.reveal()) < MIN_LENGTH:
            raise ValueError(
                f"must be keys of at least {MIN_LENGTH} characters: `python -m tornadoproxy token` "
                "makes one"
            )
        keys.append(AdminKey(name, secret))
    if len({key.name for key in keys}) < len(keys):
        raise ValueError("must give each key a name of its own")
    return tuple(keys)


class AdminKeys:
    """Who may read and who may change the caps.

    :param write: they may do both.
    :param read: they may read.
    """

    def __init__(self, write: Iterable[AdminKey] = (), read: Iterable[AdminKey] = ()) -> None:
        self._keys = (
            *((key, True) for key in write),
            *((key, False) for key in read),
        )

    def admit(self, request: IncomingRequest, *, to_change: bool) -> str:
        """The name of the key that a request presents.

        Every candidate is compared with every key, so that the time tells nothing.

        :raises AuthenticationFailed: it presents none of them.
        :raises Denied: there are no keys, or it is one that may only read.
        """
        if not self._keys:
            raise Denied(
                "The spend limits API is off: set BUDGETS_ADMIN_KEY to a key for it, or use "
                "`python -m tornadoproxy budgets`.",
                status=404,
            )
        found: tuple[AdminKey, bool] | None = None
        for candidate in request.candidates():
            for key, may_change in self._keys:
                if key.secret.matches(candidate):
                    found = key, may_change
        if found is None:
            raise request.authentication_failed("an admin key of this proxy's BUDGETS_ADMIN_KEY")
        key, may_change = found
        if to_change and not may_change:
            raise Denied("This admin key may only read. Use one of BUDGETS_ADMIN_KEY.")
        return key.name

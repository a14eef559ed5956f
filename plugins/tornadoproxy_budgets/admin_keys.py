"""The admin keys of the spend limits API."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from tornadoproxy import Denied, Secret, parsers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tornadoproxy import IncomingRequest

MIN_LENGTH = 32  # characters, the minimum of Anthropic's own gateway

_NAMED = re.compile(rb"([A-Za-z][A-Za-z0-9_.-]{0,31})=(.*)", re.DOTALL)


class AdminKey(NamedTuple):
    """One admin key.

    :param name: its holder's name in the audit log.
    """

    name: str
    secret: Secret


def parse_keys(value: str) -> tuple[AdminKey, ...]:
    """Return the keys in `value`, separated by blanks, each ``NAME=KEY`` or ``KEY``.

    A key without a name is named by its position.

    :raises ValueError: with the end of a sentence that says what is wrong and contains no key.
    """
    keys = []
    for position, word in enumerate(parsers.secrets(value), 1):
        name, secret = str(position), word
        matched = _NAMED.fullmatch(word.reveal())
        # a base64 key without a name may contain "=" as well, but little follows it
        if matched and len(matched[2]) >= MIN_LENGTH:
            name, secret = matched[1].decode(), Secret(matched[2])
        if len(secret.reveal()) < MIN_LENGTH:
            raise ValueError(
                f"must contain only keys of at least {MIN_LENGTH} characters; "
                "`python -m tornadoproxy token` creates one"
            )
        keys.append(AdminKey(name, secret))
    if len({key.name for key in keys}) < len(keys):
        raise ValueError("must give each key a different name")
    return tuple(keys)


class AdminKeys:
    """The keys that may change the caps, and those that may only read them.

    :param write: keys that may read and change.
    :param read: keys that may read.
    """

    def __init__(self, write: Iterable[AdminKey] = (), read: Iterable[AdminKey] = ()) -> None:
        self._keys = (
            *((key, True) for key in write),
            *((key, False) for key in read),
        )

    def admit(self, request: IncomingRequest, *, to_change: bool) -> str:
        """Return the name of the key that a request presents.

        Every candidate is compared with every key, so that the duration reveals nothing.

        :raises AuthenticationFailed: the request presents none of the keys.
        :raises Denied: no key is set, or the key may only read.
        """
        if not self._keys:
            raise Denied(
                "The spend limits API is disabled: set BUDGETS_ADMIN_KEY to enable it, or use "
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

"""The admin keys."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from tornadoproxy import ConfigurationError, Secret, parsers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tornadoproxy import IncomingRequest

MIN_LENGTH = 32  # characters, the minimum of Anthropic's own gateway

_NAMED = re.compile(rb"([A-Za-z][A-Za-z0-9_.-]{0,31})=(.*)", re.DOTALL)


class AdminKey(NamedTuple):
    """One admin key.

    :param name: its holder's name in the audit trail.
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
                "`tornadoproxy token` prints one"
            )
        keys.append(AdminKey(name, secret))
    if len({key.name for key in keys}) < len(keys):
        raise ValueError("must give each key a different name")
    return tuple(keys)


class AdminKeys:
    """The keys that may change what is administered, and those that may only read it.

    :param write: keys that may read and change.
    :param read: keys that may read.
    :raises ConfigurationError: one key is in both.
    """

    def __init__(self, write: Iterable[AdminKey], read: Iterable[AdminKey]) -> None:
        self._keys = (
            *((key, True) for key in write),
            *((key, False) for key in read),
        )
        if len({key.secret for key, _ in self._keys}) < len(self._keys):
            raise ConfigurationError(
                "ADMIN_KEY and ADMIN_READ_KEY share a key, or one of them has a key twice; replace "
                "one of the two."
            )

    def find(self, request: IncomingRequest) -> tuple[AdminKey, bool] | None:
        """Return the key that a request presents, and whether it may change anything.

        Every candidate is compared with every key, so that the duration reveals nothing.

        :return: ``None`` if it presents none of the keys.
        """
        found: tuple[AdminKey, bool] | None = None
        for candidate in request.candidates():
            for key, may_change in self._keys:
                if key.secret.matches(candidate):
                    found = key, may_change
        return found

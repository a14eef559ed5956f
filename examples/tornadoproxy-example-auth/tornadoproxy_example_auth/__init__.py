"""An authenticator by a JSON file of names and hashed tokens.

::

    {"alice": "9e6e15f8a9fd0cc98665c467d2f26fe369ee1529388e823ef4e110835101e8d5"}

Each value is the SHA-256 of the person's token in hexadecimal. The tokens are long and random
(``python -m tornadoproxy token`` creates one) and cannot be guessed, so a plain hash is enough.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tornadoproxy import (
    AuthenticationFailed,
    ConfigurationError,
    Identity,
    IncomingRequest,
    Secret,
    Setting,
    Settings,
    hookimpl,
    parsers,
)

PEOPLE_FILE: Setting[Path | None] = Setting(
    "PEOPLE_FILE",
    parsers.readable_file,
    default=None,
    help="JSON file of people, each name with the SHA-256 of its token. Reloaded on SIGHUP.",
)


class PeopleAuthenticator:
    """The plugin: it accepts the tokens whose hashes are in the file."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    @hookimpl
    def declare_settings(self) -> Iterable[Setting[Path | None]]:
        return (PEOPLE_FILE,)

    @hookimpl
    def configure(self, settings: Settings) -> str:
        """Load the file; an invalid file leaves the people as they are."""
        self._names = _names_by_hash(settings[PEOPLE_FILE])
        return f"{len(self._names)} people of PEOPLE_FILE"

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> Identity | None:
        candidates = request.candidates()
        for candidate in candidates:
            # by its hash, so that the duration of the look-up reveals nothing about a token
            name = self._names.get(_hash(candidate))
            if name is not None:
                return Identity(principal=name)
        if candidates:
            raise AuthenticationFailed("This token is unknown: ask for one of your own.")
        return None  # without a credential another plugin may accept the request


def _hash(token: Secret) -> str:
    return hashlib.sha256(token.reveal()).hexdigest()


def _names_by_hash(path: Path | None) -> dict[str, str]:
    if path is None:
        raise ConfigurationError("PEOPLE_FILE is not set; set it to a JSON file of people.")
    try:
        people = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"PEOPLE_FILE {path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise ConfigurationError(f"PEOPLE_FILE {path} is not JSON; correct it.") from None
    faults = tuple(_faults(people))
    if faults:
        raise ConfigurationError(*(f"PEOPLE_FILE {path}: {fault}" for fault in faults))
    return {hashed: name for name, hashed in people.items()}


def _faults(people: object) -> Iterator[str]:
    """Yield the faults of the content, without values, which may be plain tokens."""
    if not isinstance(people, dict) or not people:
        yield 'it must be an object of names and hashes, such as {"alice": "9e6e…"}.'
        return
    for name, hashed in people.items():
        if not name:
            yield "a name is empty; enter one."
        if not isinstance(hashed, str) or not re.fullmatch("[0-9a-f]{64}", hashed):
            yield f"{name!r} needs the SHA-256 of a token, 64 digits of 0-9 and a-f."
    if len({repr(hashed) for hashed in people.values()}) < len(people):
        yield "two people have the same token; give each their own."

"""Credentials, and URLs that contain one, that cannot be printed by accident."""

from __future__ import annotations

import hashlib
import hmac
import re


class Secret:
    """Bytes whose ``repr`` and ``str`` hide them, compared in constant time.

    :param value: the credential. Text is encoded as UTF-8; bytes that ``surrogateescape`` has put
        into text (the environment, file names) are restored.
    """

    __slots__ = ("_known_digest", "_value")

    def __init__(self, value: bytes | str) -> None:
        self._value = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        self._known_digest: bytes | None = None

    def reveal(self) -> bytes:
        """Return the credential itself, to be sent and for nothing else."""
        return self._value

    def matches(self, other: Secret) -> bool:
        """Return whether both are equal, in a time that depends on neither.

        Digests of equal length are compared, so that the time does not depend on the lengths.
        """
        return hmac.compare_digest(self._digest(), other._digest())

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.matches(other)

    def __hash__(self) -> int:
        return hash(self._digest())

    def _digest(self) -> bytes:
        if self._known_digest is None:
            self._known_digest = hashlib.sha256(self._value).digest()
        return self._known_digest

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a Secret is not pickled")


class SecretURL:
    """A URL whose ``str`` and ``repr`` contain neither its password nor its query.

    :param url: the URL: ``postgresql://proxy:secret@db.example/claude?sslmode=verify-full``.
    """

    __slots__ = ("_secret",)

    def __init__(self, url: str) -> None:
        self._secret = Secret(url)

    def reveal(self) -> str:
        """Return the whole URL, to connect and for nothing else."""
        return self._secret.reveal().decode("utf-8", "surrogateescape")

    def __str__(self) -> str:
        scheme, _, rest = self.reveal().partition("://")
        # a password with a "/" or "?" that is not percent-encoded must not be shown either
        user, at, place = rest.rpartition("@")
        name, colon, _ = user.partition(":")
        place = re.split("[?#]", place, maxsplit=1)[0]
        return f"{scheme}://{name}{':***' if colon else ''}{at}{place}"

    def __repr__(self) -> str:
        return f"SecretURL('{self}')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretURL) and self._secret == other._secret

    def __hash__(self) -> int:
        return hash(self._secret)

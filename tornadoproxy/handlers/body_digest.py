"""A credential that is valid for one body only: the body is compared with its digest."""

from __future__ import annotations

import hashlib
import hmac

from tornadoproxy.errors import AuthenticationFailed


class BodyDigest:
    """The digest of a body that is on its way. The last piece is kept back until it is known.

    :param sha256: what the digest must be, in hexadecimal.
    """

    __slots__ = ("_digest", "_expected", "_kept")

    def __init__(self, sha256: str) -> None:
        self._expected = sha256.lower()
        self._digest = hashlib.sha256()
        self._kept = b""

    def feed(self, piece: bytes) -> bytes:
        """Take a piece, and return the one before."""
        self._digest.update(piece)
        before, self._kept = self._kept, piece
        return before

    def end(self) -> bytes:
        """Return the last piece, since the body has ended.

        :raises AuthenticationFailed: it is not the body that the credential is for.
        """
        if not hmac.compare_digest(self._digest.hexdigest(), self._expected):
            raise AuthenticationFailed(
                "The body is not the one that the credential was made for: sign it as it is sent."
            )
        return self._kept

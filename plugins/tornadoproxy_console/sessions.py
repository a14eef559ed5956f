"""Who is signed in. The sessions of one proxy, in memory: a restart ends them.

A session holds the credential that it began with, or a sign-in that gives one, which is checked
again with each request. So it ends when the credential is revoked, and can do nothing that the
credential cannot.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import Counter
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING

from msgspec import Struct

from tornadoproxy import SignedIn

if TYPE_CHECKING:
    from tornadoproxy import IncomingRequest, Secret

COOKIE = "tornadoproxy_console"
LIFETIME = 12 * 3600.0  # seconds
MOST = 10_000  # sessions


class Session(Struct, frozen=True):
    """One session.

    :param signed_in: gives the credential of its holder.
    :param is_admin_key: whether that is an admin key, which no plugin authenticates.
    :param holder: the hash of the key that was typed, which tells how many sessions it has.
    :param form_token: the token that each of its forms sends, against forged requests.
    :param until: when it ends, in monotonic seconds.
    """

    signed_in: SignedIn
    is_admin_key: bool
    holder: bytes
    form_token: str
    until: float

    def has_form_token(self, sent: str) -> bool:
        """Return whether a form has the session's token."""
        return hmac.compare_digest(self.form_token.encode(), sent.encode())


class Sessions:
    """The sessions, by the hash of what their cookies hold."""

    def __init__(self) -> None:
        self._by_hash: dict[bytes, Session] = {}  # the oldest first

    def begin(self, signed_in: SignedIn, *, is_admin_key: bool, key: str = "") -> str:
        """Begin a session, and return what its cookie holds.

        :param key: that was typed; empty for another way to sign in.
        """
        token = secrets.token_urlsafe(32)
        until = time.monotonic() + LIFETIME
        self._by_hash[_hash(token)] = Session(
            signed_in, is_admin_key, _hash(key or token), secrets.token_urlsafe(32), until
        )
        if len(self._by_hash) > MOST:
            self._end_one()
        return token

    def _end_one(self) -> None:
        """End the oldest session of the key with the most: nobody can end those of others."""
        ((most, _),) = Counter(each.holder for each in self._by_hash.values()).most_common(1)
        del self._by_hash[next(key for key, each in self._by_hash.items() if each.holder == most)]

    def find(self, token: str) -> Session | None:
        """Return the session of a cookie; ``None`` if there is none, or it has ended."""
        found = self._by_hash.get(_hash(token))
        if found is not None and found.until <= time.monotonic():
            self.end(token)
            return None
        return found

    def end(self, token: str) -> Session | None:
        """End the session of a cookie, and return it, if there is one."""
        return self._by_hash.pop(_hash(token), None)


def holder_of(key: Secret) -> SignedIn:
    """Return the sign-in of whoever has typed a key, which ends with the session alone."""

    async def credential() -> Secret:
        return key

    async def end() -> None:
        pass

    return SignedIn(credential, end)


def cookie_of(request: IncomingRequest) -> str:
    """Return what a request's cookie of the console holds; empty without one."""
    try:
        cookies = SimpleCookie(request.headers.get("Cookie", ""))
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""


def cookie_header(token: str, path: str, *, secure: bool) -> str:
    """Return the header ``Set-Cookie`` of a session; an empty `token` removes the cookie."""
    age = int(LIFETIME) if token else 0
    ending = "; Secure" if secure else ""
    return f"{COOKIE}={token}; Path={path}; Max-Age={age}; HttpOnly; SameSite=Strict{ending}"


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()

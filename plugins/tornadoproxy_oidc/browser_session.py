"""A person who has signed in with a browser, for another plugin's page, such as the web console.

The page asks for a bearer with each request. Shortly before one expires it is renewed as Claude
Code renews its own: the provider says whether the person still may.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tornadoproxy import AuthenticationFailed, DatabaseUnavailable, Denied, Secret
from tornadoproxy_oidc.provider import RETRY, ProviderUnavailable
from tornadoproxy_oidc.sessions import ENDED, EXPIRED, SessionEnded

if TYPE_CHECKING:
    from tornadoproxy_oidc.sessions import Sessions, Tokens

RENEWAL = 300.0
"""Seconds before a bearer expires in which it is renewed, as Claude Code does."""


class BrowserSession:
    """The tokens of a person.

    :param tokens: new ones.
    """

    def __init__(self, sessions: Sessions, tokens: Tokens) -> None:
        self._sessions = sessions
        self._take(tokens)
        self._ended = False
        self._retry_at = 0.0
        self._renewing: asyncio.Task[None] | None = None

    async def credential(self) -> Secret:
        """Return a bearer of the person; see `SignedIn`.

        :raises AuthenticationFailed: the sign-in has ended.
        :raises Denied: 503, whether it has ended cannot be known.
        """
        due = self._expires - time.time() < RENEWAL and time.monotonic() >= self._retry_at
        if due and self._tokens.refresh_token is not None:
            if self._renewing is None:
                self._renewing = asyncio.create_task(self._renew(self._tokens.refresh_token))
            # what has begun is finished if the browser disconnects: the token is used up
            await asyncio.shield(self._renewing)
        if self._ended:
            raise AuthenticationFailed(ENDED)
        if self._expires <= time.time():
            if self._tokens.refresh_token is None:
                raise AuthenticationFailed(EXPIRED)
            raise Denied(
                "Whether you are still signed in cannot be known: the identity provider does not "
                "respond. Try again.",
                status=503,
                retry_after=RETRY,
            )
        return Secret(self._tokens.bearer)

    async def end(self) -> None:
        """End the sign-in.

        :raises DatabaseUnavailable: the database cannot be used.
        """
        await self._sessions.end(self._tokens)

    async def _renew(self, refresh_token: str) -> None:
        try:
            self._take(await self._sessions.refresh(refresh_token))
        except SessionEnded:
            self._ended = True
        except (ProviderUnavailable, DatabaseUnavailable):
            self._retry_at = time.monotonic() + RETRY
        finally:
            self._renewing = None

    def _take(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._expires = time.time() + self._sessions.sealer.lifetime

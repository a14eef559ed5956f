"""People who are signed in: their grants, bearer and refresh tokens in a running proxy.

A bearer token is verified without the database. Each proxy holds the sessions that were revoked
lately in memory, and a `Follower` keeps them up to date. While the database cannot be read for
longer, bearer tokens are rejected with 503.

A refresh token is used once and replaced. Several Claude Codes of one person share it, so one that
was replaced is accepted for `GRACE` seconds more; used after that, it was stolen from one side or
the other, and the session is revoked. Only one of them asks the provider whether the person still
may: providers that rotate their own tokens would take two questions for a theft.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from joserfc.errors import ExpiredTokenError, JoseError

from tornadoproxy import Attempts, AuthenticationFailed, DatabaseUnavailable, Denied, Follower
from tornadoproxy_oidc import store
from tornadoproxy_oidc.people import InvalidClaims, person_of
from tornadoproxy_oidc.provider import ProviderUnavailable
from tornadoproxy_oidc.relying_party import ProviderRefused
from tornadoproxy_oidc.sealing import SESSION_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import TypeVar

    from tornadoproxy import DatabaseConnection, DatabaseLocation, DatabaseStatus
    from tornadoproxy_oidc.people import Person
    from tornadoproxy_oidc.relying_party import RelyingParty, SignedIn
    from tornadoproxy_oidc.sealing import Sealer
    from tornadoproxy_oidc.store import Document, Grant, Session
    from tornadoproxy_oidc.tokens import Seen

    T = TypeVar("T")

GRANT_LIFE = 600  # seconds from the request of a code to the approval
MAX_BEGUN = 30
"""Sign-ins that a client may begin within `GRANT_LIFE` seconds, at all proxies together."""
GRACE = 60  # seconds for which a replaced refresh token is accepted
LEASE = 10  # seconds after which a proxy that asks the provider is taken for dead
WAIT = 0.2  # seconds between two looks at whether another proxy has asked
MAX_WAIT = 6.0  # seconds

EXPIRED = "Your sign-in has expired: run /login."
ENDED = "Your sign-in was ended: run /login."
REFUSED = "This bearer is not valid here: run /login."

_logger = logging.getLogger(__name__)


class Tokens(NamedTuple):
    """What a device gets: see RFC 6749 §5.1."""

    bearer: str
    refresh_token: str | None
    person: Document
    session_id: str


class SessionEnded(Exception):
    """A refresh token is unknown, expired, revoked, or its person may no longer."""


class _Check(NamedTuple):
    """What a refresh has to do next.

    :param session: ``None`` if the refresh token is not valid.
    :param ask: whether this proxy has to ask the provider; otherwise, if there are no `tokens`,
        another one does.
    :param stolen: whether the session was revoked because of this use of the token.
    """

    session: Session | None
    ask: bool = False
    tokens: Tokens | None = None
    stolen: bool = False


class Sessions:
    """The sign-ins of one database in a running proxy.

    :param lifetime: seconds after which a person has to sign in anew.
    :ivar sealer: the keys.
    :ivar party: the proxy as a client of the provider.
    """

    def __init__(
        self, where: DatabaseLocation, sealer: Sealer, party: RelyingParty, lifetime: int
    ) -> None:
        self._database = store.database(where)
        self.sealer = sealer
        self.party = party
        self.lifetime = lifetime
        self._revoked: frozenset[str] = frozenset()
        self._follower = Follower(self._database, self._load, "sign-ins")
        self._tasks: set[asyncio.Task[Any]] = set()

    def check(self) -> None:
        """Refuse an invalid setting by a `ConfigurationError`."""
        self._database.check()

    async def open(self, deadline: float) -> None:
        """Open the database, and follow its revocations.

        :raises ConfigurationError: the database cannot be used.
        """
        await self._database.start(self._follower.follow, statement_timeout=deadline)
        self._follower.start()

    async def close(self) -> None:
        """Finish what is in progress, and close the database."""
        self._follower.stop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=4)
        await self._database.close()

    @property
    def status(self) -> DatabaseStatus:
        """The database in figures."""
        return self._database.status

    # Bearers

    def person(self, seen: Seen) -> Person:
        """Return who has signed in.

        :raises AuthenticationFailed: the bearer is not valid, or its session is revoked.
        :raises Denied: a policy denies one of the groups.
        :raises DatabaseUnavailable: revocations cannot be verified.
        """
        person = self.person_offline(seen)
        self.party.claims.policies.check(person.groups)
        self._follower.check()
        return person

    def person_offline(self, seen: Seen) -> Person:
        """Return who has signed in, as far as is known without the database.

        :raises AuthenticationFailed: the bearer is not valid, or its session is known as revoked.
        """
        person, session_id = self.verified(seen)
        if session_id in self._revoked:
            raise AuthenticationFailed(ENDED)
        return person

    def verified(self, seen: Seen) -> tuple[Person, str]:
        """Return who has signed in and the session's id, whether or not it is revoked.

        :raises AuthenticationFailed: the bearer is not valid.
        """
        try:
            claims = self.sealer.claims(seen.token, seen.key_id)
        except ExpiredTokenError:
            raise AuthenticationFailed(EXPIRED) from None
        except (JoseError, ValueError):
            raise AuthenticationFailed(REFUSED) from None
        return person_of(claims, self.party.claims), claims["sid"]

    # A device's sign-in

    async def begin(self, remote_ip: str, user_code: str) -> tuple[str, Grant] | None:
        """Begin a sign-in; return the device's code and the grant.

        :param user_code: the code that a person types; anything else if none is to be typed.
        :return: ``None`` if the address has begun `MAX_BEGUN` within `GRANT_LIFE` seconds.
        """
        device = secrets.token_urlsafe(32)
        now = int(time.time())
        grant = store.Grant(
            device=store.hashed(device),
            user_code=user_code,
            remote_ip=remote_ip,
            client=Attempts.client_of(remote_ip),
            created=now,
            expires=now + GRANT_LIFE,
            state="pending",
        )

        def work(connection: DatabaseConnection) -> bool:
            if store.grants_of_client(connection, grant.client, now - GRANT_LIFE) >= MAX_BEGUN:
                return False
            store.add_grant(connection, grant)
            return True

        return (device, grant) if await self._database.run(work) else None

    async def pending(self, user_code: str) -> Grant | None:
        """Return the grant that waits for the approval of this code."""
        grant = await self._read(lambda on: store.grant_by_user_code(on, user_code))
        waits = grant is not None and grant.state == "pending" and grant.expires > time.time()
        return grant if waits else None

    async def approve(self, device: bytes, signed_in: SignedIn) -> bool:
        """Approve a device's sign-in; return whether it was still pending."""
        sealed = None
        if signed_in.refresh_token is not None:
            sealed = self.sealer.seal("provider", {"token": signed_in.refresh_token})
        now = int(time.time())
        return await self._database.run(
            lambda on: store.decide(on, device, "approved", now, signed_in.person, sealed)
        )

    async def deny(self, device: bytes) -> bool:
        """Deny a device's sign-in; return whether it was still pending."""
        now = int(time.time())
        return await self._database.run(lambda on: store.decide(on, device, "denied", now))

    async def poll(self, device_code: str, most: int | None = None) -> Tokens | str:
        """Return the tokens of an approved device, once; or else the error of RFC 8628 §3.5.

        :param most: seconds after which the session ends at the latest.
        """
        device, now = store.hashed(device_code), int(time.time())
        grant = await self._read(lambda on: store.grant_by_device(on, device))
        if grant is None or grant.state == "redeemed":
            return "expired_token"
        if grant.state == "denied":
            return "access_denied"
        if grant.state == "pending":
            return "authorization_pending" if grant.expires > now else "expired_token"
        assert grant.person is not None, "an approved grant has one"
        sealed = grant.provider_token
        lifetime = self.lifetime if sealed else self.sealer.lifetime
        session = store.Session(
            id=secrets.token_urlsafe(SESSION_ID * 3 // 4),
            person=grant.person,
            provider_token=sealed,
            created=now,
            expires=now + min(most or self.lifetime, lifetime),
            checked=now,
        )

        def work(connection: DatabaseConnection) -> Tokens | str:
            if not store.redeem(connection, device):
                return "expired_token"
            store.add_session(connection, session)
            return self._issue(connection, session)

        return await self._database.run(work)

    # Refresh and revocation

    async def refresh(self, token: str) -> Tokens:
        """Return new tokens for a refresh token.

        What has begun is finished if the client disconnects: the provider's token may be used up.

        :raises SessionEnded: the person has to sign in anew.
        :raises ProviderUnavailable: whether the person still may is unknown at present.
        :raises DatabaseUnavailable: the database cannot be used.
        """
        return await self._finish(self._refresh_token(token))

    async def _refresh_token(self, token: str) -> Tokens:
        until = time.monotonic() + MAX_WAIT
        if (session_id := self.sealer.session_of(token)) is None:  # costs the database nothing
            raise SessionEnded
        while True:
            found = await self._database.run(lambda on: self._look(on, token, session_id))
            if found.session is None:
                if found.stolen:
                    await self._apply_revocations()
                raise SessionEnded
            if found.tokens is not None:
                return found.tokens
            if found.ask:
                return await self._ask(token, found.session)
            if time.monotonic() > until:
                raise ProviderUnavailable
            await asyncio.sleep(WAIT)

    def _look(self, connection: DatabaseConnection, token: str, session_id: str) -> _Check:
        now = int(time.time())
        session = store.session_by_id(connection, session_id)
        if session is None or session.expires <= now:
            return _Check(None)
        known, replaced = store.refresh_token(connection, token)
        if not known or (replaced is not None and replaced + GRACE < now):
            _logger.warning(
                "a replaced refresh token of %s was used: its session is revoked",
                session.person["sub"],
            )
            store.revoke(connection, session.id, now)
            return _Check(None, stolen=True)
        if session.checked + GRACE > now and (replaced is not None or session.checking == 0):
            store.replace_refresh_token(connection, token, now)
            return _Check(session, tokens=self._issue(connection, session))
        if session.checking + LEASE > now:
            return _Check(session)
        store.update_session(connection, replace(session, checking=now))
        return _Check(session, ask=True)

    async def _ask(self, token: str, session: Session) -> Tokens:
        """Ask the provider, and note what it says."""
        opened = self.sealer.opened("provider", session.provider_token or "")
        signed_in = None
        refusal: Exception | str = "the key of its token was removed from OIDC_SIGNING_KEY"
        try:
            if opened is not None:
                signed_in = await self.party.refresh(opened["token"], session.person)
        except ProviderUnavailable:
            await self._database.run(
                lambda on: store.update_session(on, replace(session, checking=0))
            )
            raise
        except (ProviderRefused, InvalidClaims, Denied) as error:
            refusal = error
        now = int(time.time())
        if signed_in is None:
            _logger.warning("%s is signed out: %s", session.person["sub"], refusal)
            await self._revoke(lambda on: store.revoke(on, session.id, now))
            raise SessionEnded
        sealed = self.sealer.seal("provider", {"token": signed_in.refresh_token})
        checked = replace(
            session, person=signed_in.person, provider_token=sealed, checked=now, checking=0
        )

        def work(connection: DatabaseConnection) -> Tokens | None:
            if store.session_by_id(connection, session.id) is None:  # revoked meanwhile
                return None
            store.update_session(connection, checked)
            store.replace_refresh_token(connection, token, now)
            return self._issue(connection, checked)

        tokens = await self._database.run(work)
        if tokens is None:
            raise SessionEnded
        return tokens

    async def revoke(self, token: str, seen: Seen | None) -> None:
        """Revoke the session of a refresh token or bearer; do nothing if it has none.

        :param seen: what a bearer says of itself; ``None`` if `token` is a refresh token.
        :raises DatabaseUnavailable: the database cannot be used.
        """
        try:
            session_id = self.sealer.session_of(token) if seen is None else self.verified(seen)[1]
        except AuthenticationFailed:
            return
        if session_id is None:
            return
        now = int(time.time())

        def work(connection: DatabaseConnection) -> None:
            if seen is not None or store.refresh_token(connection, token)[0]:
                store.revoke(connection, session_id, now)

        await self._finish(self._revoke(work))

    async def end(self, tokens: Tokens) -> None:
        """Revoke the session of these tokens.

        :raises DatabaseUnavailable: the database cannot be used.
        """
        now = int(time.time())
        await self._finish(self._revoke(lambda on: store.revoke(on, tokens.session_id, now)))

    async def _revoke(self, work: Callable[[DatabaseConnection], None]) -> None:
        await self._database.run(work)
        await self._apply_revocations()

    async def _apply_revocations(self) -> None:
        # a failure is the next load's: the session is revoked
        with contextlib.suppress(DatabaseUnavailable):
            await self._follower.reload()

    def _issue(self, connection: DatabaseConnection, session: Session) -> Tokens:
        refresh_token = None
        if session.provider_token is not None:
            refresh_token = self.sealer.refresh_token(session.id)
            store.forget_refresh_tokens(connection, session.id, int(time.time()) - GRACE)
            store.add_refresh_token(connection, refresh_token, session.id)
        bearer = self.sealer.bearer({**session.person, "sid": session.id})
        return Tokens(bearer, refresh_token, session.person, session.id)

    # The database

    async def _read(self, work: Callable[[DatabaseConnection], T]) -> T:
        return await self._database.run(work, exclusive=False)

    async def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _load(self) -> None:
        since = int(time.time()) - self.sealer.lifetime - 60
        self._revoked = await self._read(lambda on: store.revoked(on, since))

"""Authentication by keys in a running proxy.

The keys are held in memory; a `Follower` loads them again, in the database's own thread, when
another process has changed them. A key that a command creates or revokes takes effect within two
seconds, and no request waits for the disk. While the database cannot be read for longer, all keys
are rejected with 503.

A key is looked up by its SHA-256 hash in a dict. The duration reveals nothing useful: a client
without a key cannot choose the beginning of its hash, and cannot guess a secret of 32 random bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tornadoproxy import (
    AuthenticationFailed,
    ConfigurationError,
    DatabaseUnavailable,
    Denied,
    Follower,
    Identity,
    IncomingRequest,
    ModelRequest,
    Permit,
    RequestRecord,
    tables,
)
from tornadoproxy_keys import store
from tornadoproxy_keys.live_key import KeyIdentity, Limited, LiveKey, LivePerson, People
from tornadoproxy_keys.usage_count import UsageCount

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tornadoproxy import AllowedModels, DatabaseConnection, DatabaseLocation, DatabaseStatus
    from tornadoproxy_keys.shared_limits import SharedLimits
    from tornadoproxy_keys.store import KeyRow

T = TypeVar("T")

# Many proxies add to the usage of a key, one after the other, and would wait until a statement's
# deadline: one that waits for others for longer than this does it less often.
SHORT = 0.05  # seconds
REST = 30  # times as long as it takes beyond that, the proxy waits before the next time
MAX_REST = 10.0  # seconds

_PREFIX = store.PREFIX.encode()


class _Entry(NamedTuple):
    """The key of a secret, and when a replaced secret expires."""

    key: LiveKey
    expires: int | None


class Gate:
    """The keys of one database in a running proxy.

    :ivar where: the database.
    :param shared: the limits of several proxies together; ``None`` if each proxy has its own.
    :param local: whether each proxy applies the limits by itself while `shared` cannot be used;
        otherwise requests with a limited key are rejected with 503.
    :ivar has_token: whether ``AUTH_TOKEN`` is set, whose principal no key may be named after.
    """

    def __init__(
        self, where: DatabaseLocation, shared: SharedLimits | None = None, *, local: bool = False
    ) -> None:
        self.where = where
        self._shared = shared
        self._local = local
        self.has_token = False
        self._database = store.database(where)
        self._follower = Follower(self._database, self._reload, "keys")
        self._rows: store.Rows | None = None
        self._entries: dict[bytes, _Entry] = {}
        self._keys: dict[str, LiveKey] = {}
        self._people = People()
        self._usage = UsageCount()
        self._adding_time = 0.0  # seconds; set by the database's thread
        self._handed_over_at = 0.0

    def check(self) -> None:
        """Refuse an invalid setting.

        :raises ConfigurationError: in one line.
        """
        self._database.check()

    def has_keys(self) -> bool:
        """Return whether there is a live key: in memory, or before `open`, in the database."""
        if self._rows is not None:
            return any(key.row.state(time.time()) == "live" for key in self._keys.values())
        try:
            with self._database.reading() as connection:
                keys = store.read(connection).keys
        except ConfigurationError:  # it has no keys table yet, or the start reports the error
            return False
        return any(row.state(time.time()) == "live" for row in keys)

    async def open(self, deadline: float) -> None:
        """Load the keys, and reload them when they change.

        :param deadline: seconds for a statement; see `Database.start`.
        :raises ConfigurationError: the database cannot be used.
        """
        await self._database.start(self._load, statement_timeout=deadline)
        self._follower.start(self._hand_over_if_rested)

    def database_status(self) -> list[DatabaseStatus]:
        """Return the state of the database, and of the server of ``SHARED_LIMITS`` if it is set."""
        states = [self._database.status]
        if self._shared is not None:
            states.append(self._shared.status)
        return states

    async def close(self) -> None:
        """Write the usage, and close the database."""
        self._follower.stop()
        self._hand_over_usage()
        await self._database.close()
        if self._shared is not None:
            await self._shared.close()

    def rows(self) -> list[KeyRow]:
        """Return the rows of all keys at the last load."""
        return [key.row for key in self._keys.values()]

    async def read(self, work: Callable[[DatabaseConnection], T]) -> T:
        """Do `work`, which only reads, in the database, and return its result.

        :raises DatabaseUnavailable: the database cannot be used.
        """
        return await self._database.run(work, exclusive=False)

    async def change(self, work: Callable[[DatabaseConnection], T]) -> T:
        """Do `work` in the database, apply what it changed, and return its result.

        The work is finished even if the caller is cancelled.

        :raises DatabaseUnavailable: the database cannot be used; nothing was changed.
        """
        return await asyncio.shield(asyncio.ensure_future(self._change(work)))

    def authenticate(self, request: IncomingRequest) -> Identity | None:
        """Return the identity of the request's key; ``None`` if it has other credentials as well.

        :raises AuthenticationFailed: all of its credentials are invalid keys.
        :raises DatabaseUnavailable: it has a key, and keys cannot be verified.
        """
        refusal = None
        others = False
        for candidate in request.candidates():
            key = candidate.reveal()
            if not key.startswith(_PREFIX):
                others = True
                continue
            self._follower.check()
            entry = self._entries.get(store.hashed(key))
            refusal = _refusal(entry, time.time())
            if entry is not None and refusal is None:
                if not (self.has_token and entry.key.named_as_token):
                    return entry.key.identity
                refusal = (
                    "This key has the name of the clients with AUTH_TOKEN: ask for one with "
                    "another name."
                )
        if refusal is not None and not others:
            raise AuthenticationFailed(refusal)
        return None

    def admit(
        self, request: IncomingRequest, identity: Identity
    ) -> Permit | Awaitable[Permit] | None:
        """Apply the limits of a key or person, and reject anonymous identities.

        :raises AuthenticationFailed: the identity is anonymous.
        :raises Denied: 429.
        """
        if identity.anonymous:
            raise request.authentication_failed("a key of this proxy")
        limited = self._limited(identity)
        # telemetry and other pages cost nothing, and a person's program sends them by itself
        if limited is None or (request.is_page and isinstance(limited, LivePerson)):
            return None
        if self._shared is not None and limited.is_limited:
            return self._admit_shared(limited, self._shared)
        limited.admit(time.monotonic())
        return Permit(partial(self._settle, limited))

    def authorize(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> Permit | None:
        """Restrict a request to its key's models, and have its tokens counted.

        :raises Denied: 403.
        """
        limited = self._limited(identity)
        if limited is None:
            return None
        models = self.allowed_models(identity)
        if models is not None:
            models.check(request, model_request)
        if model_request is None or limited.limits.tokens_per_minute is None:
            return None
        return Permit(partial(self._count_tokens, limited, model_request))

    def allowed_models(self, identity: Identity) -> AllowedModels | None:
        """Return the models of the request's key; ``None`` is all."""
        return identity.key.models if isinstance(identity, KeyIdentity) else None

    def _limited(self, identity: Identity) -> Limited | None:
        if isinstance(identity, KeyIdentity):
            return identity.key
        allowance = identity.allowance
        if allowance is None or not allowance.has_limits:
            return None
        return self._people.get(identity.principal, allowance, time.monotonic())

    def _admit_shared(self, limited: Limited, shared: SharedLimits) -> asyncio.Future[Permit]:
        permit: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        shared.admit(limited, partial(self._decided, limited, shared, permit))
        return permit

    def _decided(
        self,
        limited: Limited,
        shared: SharedLimits,
        permit: asyncio.Future[Permit],
        lease: str,
        failed: BaseException | None,
    ) -> None:
        if permit.cancelled():
            shared.release(limited.id, lease)
        elif failed is None:
            limited.in_flight += 1
            permit.set_result(Permit(partial(self._settle_shared, limited, shared, lease)))
        elif self._local and isinstance(failed, DatabaseUnavailable):
            self._admit_alone(limited, permit)
        else:
            permit.set_exception(failed)

    def _admit_alone(self, limited: Limited, permit: asyncio.Future[Permit]) -> None:
        try:
            limited.admit(time.monotonic())
        except Denied as refused:
            permit.set_exception(refused)
        else:
            permit.set_result(Permit(partial(self._settle, limited)))

    def _settle_shared(
        self, limited: Limited, shared: SharedLimits, lease: str, record: RequestRecord
    ) -> None:
        shared.release(limited.id, lease)
        self._settle(limited, record)

    def _count_tokens(self, limited: Limited, asked: ModelRequest, record: RequestRecord) -> None:
        tokens = limited.count_tokens(asked, record)
        if self._shared is not None and tokens:
            self._shared.count_tokens(limited.id, tokens)

    def _settle(self, limited: Limited, record: RequestRecord) -> None:
        limited.in_flight -= 1
        if isinstance(limited, LiveKey):
            self._usage.add(limited.id, record)

    async def _change(self, work: Callable[[DatabaseConnection], T]) -> T:
        result = await self._database.run(work)
        # a failure is the next check's: the change itself is made
        with contextlib.suppress(DatabaseUnavailable):
            await self._follower.reload()
        return result

    async def _load(self) -> None:
        await self._follower.follow()
        if self._shared is not None:
            await self._shared.open()

    def _hand_over_if_rested(self) -> None:
        rest = min(max(self._adding_time - SHORT, 0) * REST, MAX_REST)
        # while the database fails, the sums are kept here, where they do not grow
        if not self._database.failing and time.monotonic() >= self._handed_over_at + rest:
            self._handed_over_at = time.monotonic()
            self._hand_over_usage()

    async def _reload(self) -> None:
        anew = await self._database.run(self._read, exclusive=False)
        if anew is not None:
            rows, content = anew
            self._take(content)
            self._rows = rows

    def _read(self, connection: DatabaseConnection) -> tuple[store.Rows, store.Content] | None:
        """Read the keys in the database's thread; ``None`` if they are unchanged.

        They are, if the ledger or the usage of another proxy has changed the file.
        """
        rows = store.fetch(connection)
        return None if rows == self._rows else (rows, store.content_of(rows))

    def _take(self, content: store.Content) -> None:
        for row in content.keys:
            key = self._keys.get(row.id)
            if key is None:
                self._keys[row.id] = LiveKey(row)
            elif key.row != row:
                key.update(row)
        self._entries = {
            row.hash: _Entry(self._keys[row.key_id], row.expires) for row in content.secrets
        }

    def _hand_over_usage(self) -> None:
        for row in self._usage.take():
            self._database.write_behind(self._add_usage, row)

    def _add_usage(self, rows: Sequence[store.UsageRow], connection: DatabaseConnection) -> None:
        began = time.monotonic()
        store.add_usage(rows, connection)
        self._adding_time = time.monotonic() - began


def _refusal(entry: _Entry | None, now: float) -> str | None:
    """Return why a key is rejected; ``None`` if it is accepted."""
    if entry is None:
        return "This key is unknown: check that it is complete, or ask for a new one."
    row = entry.key.row
    if row.revoked is not None:
        return f"This key was revoked at {tables.timestamp(row.revoked)}: ask for a new one."
    if row.expires is not None and row.expires <= now:
        return f"This key expired at {tables.timestamp(row.expires)}: ask for a new one."
    if row.disabled is not None:
        return "This key is disabled: ask for it to be enabled, or for a new one."
    if entry.expires is not None and entry.expires <= now:
        ended = tables.timestamp(entry.expires)
        return f"This key was replaced and expired at {ended}: use the new one."
    return None

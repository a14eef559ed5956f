"""Who enters a running proxy by a key, and what each key does there.

The keys are held in memory. About once a second the file is asked whether somebody changed it, and
then read, in the database's own thread: so a key that was made or revoked on the command line is
so here within two seconds, and no request waits for the disk.

A file that cannot be read might hold a revocation. For `MAX_UNVERIFIED` seconds the keys stay as
they were read last, so that a short lock keeps nobody out; after that no key is let in (503) until
the file can be read again.

A key is found by its SHA-256 hash, in a dict. How long that takes tells nothing of use: who has not
got a key cannot choose what its hash begins with, and a secret of 32 random bytes is not guessed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tornadoproxy import (
    AuthenticationFailed,
    ConfigurationError,
    Database,
    DatabaseUnavailable,
    Identity,
    IncomingRequest,
    ModelRequest,
    Permit,
    RequestRecord,
    tables,
)
from tornadoproxy_keys import model_rules, store
from tornadoproxy_keys.live_key import KeyIdentity, LiveKey
from tornadoproxy_keys.usage_count import UsageCount

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

REFRESH = 1.0  # seconds between two looks at the file
MAX_UNVERIFIED = 30.0  # seconds

_PREFIX = store.PREFIX.encode()

_logger = logging.getLogger(__name__)


class _Entry(NamedTuple):
    """A secret's key, and when the secret ends, if it was replaced."""

    key: LiveKey
    expires: int | None


class Gate:
    """The keys of one file, in a running proxy.

    :ivar path: the file's.
    :ivar has_token: whether ``AUTH_TOKEN`` is set, so that no key may have its principal's name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.has_token = False
        self._database = Database(path, store.SCHEMA, name="keys")
        self._rows: store.Rows | None = None
        self._stale = True
        self._verified_at = 0.0
        self._reason = "it has not been looked at for too long"
        self._refused = False
        self._entries: dict[bytes, _Entry] = {}
        self._keys: dict[str, LiveKey] = {}
        self._usage = UsageCount()
        self._refreshing: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Refuse a path that cannot be right.

        :raises ConfigurationError: with one line that says why.
        """
        self._database.check()

    def has_keys(self) -> bool:
        """Whether the file holds a live key, as far as it can be read."""
        if not self.path.exists():
            return False
        try:
            with self._database.reading() as connection:
                keys = store.read(connection).keys
        except ConfigurationError:  # no key was ever made in it; or the start says what is wrong
            return False
        return any(row.state(time.time()) == "live" for row in keys)

    async def open(self) -> None:
        """Read the keys, and go on doing so.

        :raises ConfigurationError: the file cannot be used.
        """
        await asyncio.to_thread(self._database.open)
        self._database.start()
        try:
            await self._refresh()
        except BaseException as error:
            await self._database.close()
            if isinstance(error, DatabaseUnavailable):
                raise ConfigurationError(str(error)) from None
            raise
        self._refreshing = asyncio.create_task(self._keep_fresh())

    async def close(self) -> None:
        """Write out what was used, and close the file."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        self._hand_over_usage()
        await self._database.close()

    def authenticate(self, request: IncomingRequest) -> Identity | None:
        """Whose key the request presents; ``None`` if it presents anything that is none of ours.

        :raises AuthenticationFailed: all that it presents are keys of ours that are not valid.
        :raises DatabaseUnavailable: it presents one, and it is not known which are valid.
        """
        refusal = None
        others = False
        for candidate in request.candidates():
            key = candidate.reveal()
            if not key.startswith(_PREFIX):
                others = True
                continue
            if time.monotonic() - self._verified_at > MAX_UNVERIFIED:
                raise DatabaseUnavailable(self._reason)
            entry = self._entries.get(store.hashed(key))
            refusal = _refusal(entry, time.time())
            if entry is not None and refusal is None:
                if not (self.has_token and entry.key.named_as_token):
                    return entry.key.identity
                refusal = (
                    "This key has the name that stands for everybody who has AUTH_TOKEN: ask for "
                    "one with another name."
                )
        if refusal is not None and not others:
            raise AuthenticationFailed(refusal)
        return None

    def admit(self, request: IncomingRequest, identity: Identity) -> Permit | None:
        """Hold a key to its limits of requests and tokens; refuse those who are anonymous.

        :raises AuthenticationFailed: the identity is anonymous.
        :raises Denied: 429.
        """
        if identity.anonymous:
            raise request.authentication_failed("a key of this proxy")
        if not isinstance(identity, KeyIdentity):
            return None
        key = identity.key
        key.admit(time.monotonic())
        return Permit(partial(self._settle, key))

    def authorize(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> Permit | None:
        """Hold a key's request to its models, and have the tokens counted that it uses.

        :raises Denied: 403.
        """
        if not isinstance(identity, KeyIdentity):
            return None
        key = identity.key
        if key.models is not None:
            model_rules.check(key.models, key.row.limits.models, request, model_request)
        if model_request is None or key.row.limits.tokens_per_minute is None:
            return None
        return Permit(partial(key.count_tokens, model_request))

    def _settle(self, key: LiveKey, record: RequestRecord) -> None:
        key.in_flight -= 1
        self._usage.add(key.row.id, record)

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH)
            # while the database fails it is summed up here, where it takes no more room
            if not self._database.failing:
                self._hand_over_usage()
            try:
                await self._refresh()
            except DatabaseUnavailable as error:
                self._reason = str(error)
            # whatever else it may be: the keys are not verified then, and are looked at again
            except Exception as error:
                self._reason = f"what is in {self.path} cannot be read: {type(error).__name__}"
            self._tell_whether_refused()

    async def _refresh(self) -> None:
        """Read the keys again, if the file has changed.

        :raises DatabaseUnavailable: the file cannot be used.
        """
        asked_at = time.monotonic()
        if await self._database.changed():
            self._stale = True
        if self._stale:
            anew = await self._database.run(self._read)
            if anew is not None:
                rows, content = anew
                self._take(content)
                self._rows = rows
            self._stale = False
        self._verified_at = asked_at

    def _read(self, connection: sqlite3.Connection) -> tuple[store.Rows, store.Content] | None:
        """In the database's thread: what is stored; ``None`` if that is as it was.

        The ledger, or another proxy's usage, may be what changed in the file.
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

    def _tell_whether_refused(self) -> None:
        refused = time.monotonic() - self._verified_at > MAX_UNVERIFIED
        if refused and not self._refused:
            _logger.error(
                "nobody is let in by a key, for it is not known which were revoked: %s",
                self._reason,
            )
        elif self._refused and not refused:
            _logger.warning("keys are let in again: %s can be read", self.path)
        self._refused = refused

    def _hand_over_usage(self) -> None:
        for row in self._usage.take():
            self._database.write_behind(store.add_usage, row)


def _refusal(entry: _Entry | None, now: float) -> str | None:
    """Why a key does not enter; ``None`` if it does."""
    if entry is None:
        return "This key is not known here: see that it is whole, or ask for a new one."
    row = entry.key.row
    if row.revoked is not None:
        return f"This key was revoked at {tables.timestamp(row.revoked)}: ask for a new one."
    if row.expires is not None and row.expires <= now:
        return f"This key expired at {tables.timestamp(row.expires)}: ask for a new one."
    if entry.expires is not None and entry.expires <= now:
        ended = tables.timestamp(entry.expires)
        return f"This key was replaced by a new one, and ended at {ended}: use that."
    return None

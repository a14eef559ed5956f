"""The tables: keys, the hashes of their secrets, and the usage of each day.

Only commands change keys, and only running proxies add usage.

A secret is stored as its SHA-256 hash. Slow, salted hashes protect passwords, which can be guessed.
A secret of 32 random bytes cannot be guessed however fast the hash is, and a fast hash can be
computed for every request.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from tornadoproxy import ConfigurationError, Database

if TYPE_CHECKING:
    from tornadoproxy import DatabaseConnection, DatabaseLocation

PREFIX = "tp-"

_TOKEN_NAME = re.compile(r"token(-[0-9]+)?").fullmatch

SCHEMA = (
    """
CREATE TABLE api_key (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    group_names TEXT NOT NULL,
    models TEXT NOT NULL,
    requests_per_minute INTEGER,
    tokens_per_minute INTEGER,
    concurrency INTEGER,
    created INTEGER NOT NULL,
    expires INTEGER,
    revoked INTEGER
);
CREATE TABLE api_key_secret (
    hash BLOB PRIMARY KEY,
    key_id TEXT NOT NULL REFERENCES api_key (id),
    expires INTEGER
);
CREATE TABLE api_key_usage (
    key_id TEXT NOT NULL,
    day TEXT NOT NULL,
    requests INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_read_input_tokens INTEGER NOT NULL,
    cache_creation_input_tokens INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    unpriced INTEGER NOT NULL,
    last_used INTEGER NOT NULL,
    PRIMARY KEY (key_id, day)
);
""",
)

_KEY_COLUMNS = (
    "id, name, group_names, models, requests_per_minute, tokens_per_minute, concurrency, "
    "created, expires, revoked"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a key; ``None``, or no models, is no limit.

    :param models: patterns of the models that it may use.
    :param requests_per_minute: the most requests within a minute.
    :param tokens_per_minute: the tokens within a minute after which requests are rejected.
    :param concurrency: the most requests in flight.
    """

    models: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class KeyRow:
    """The row of a key. Times are in whole seconds since the epoch.

    :param id: the public part of the key.
    :param name: the principal.
    :param groups: the principal's groups.
    :param expires: when the key expires; ``None`` is never.
    :param revoked: when the key was revoked.
    """

    id: str
    name: str
    groups: tuple[str, ...]
    limits: Limits
    created: int
    expires: int | None
    revoked: int | None

    def state(self, now: float) -> str:
        """Return ``live``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "live"


@dataclass(frozen=True, slots=True)
class SecretRow:
    """The row of a key's secret.

    :param hash: see `hashed`.
    :param key_id: the id of its key.
    :param expires: when a replaced secret expires; ``None`` for the current one.
    """

    hash: bytes
    key_id: str
    expires: int | None


@dataclass(frozen=True, slots=True)
class UsageRow:
    """The usage of a key on one day.

    :param day: in UTC: ``2026-01-31``.
    :param cost: the known costs, in billionths of a US dollar.
    :param unpriced: requests that used tokens and whose cost is unknown.
    :param last_used: when the last request began, to the minute, in seconds since the epoch.
    """

    key_id: str
    day: str
    requests: int
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    cost: int
    unpriced: int
    last_used: int


# Any: the types of the columns
Rows: TypeAlias = tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Content:
    """All keys and their secrets."""

    keys: tuple[KeyRow, ...]
    secrets: tuple[SecretRow, ...]


def database(where: DatabaseLocation) -> Database:
    """Return the keys database; `Database.changed` reports changed keys, and not their usage."""
    return Database(
        where, SCHEMA, name="keys", setting="KEYS_DB", watched=("api_key", "api_key_secret")
    )


def is_token_name(name: str) -> bool:
    """Return whether `name` is the principal of clients with one of the ``AUTH_TOKEN``."""
    return _TOKEN_NAME(name) is not None


def hashed(key: bytes) -> bytes:
    """Return the hash of a whole key, which is stored in its place."""
    return hashlib.sha256(key).digest()


def fetch(connection: DatabaseConnection) -> Rows:
    """Return the raw rows of every key, the oldest first, and of every secret."""
    # read first: a key that is created meanwhile has no secret yet, and no secret lacks its key
    hashes = connection.execute(
        "SELECT hash, key_id, expires FROM api_key_secret ORDER BY hash"
    ).fetchall()
    keys = connection.execute(
        f"SELECT {_KEY_COLUMNS} FROM api_key ORDER BY created, id"  # noqa: S608  # a constant
    ).fetchall()
    return keys, hashes


def content_of(rows: Rows) -> Content:
    """Return the keys and secrets in the raw rows of `fetch`."""
    keys, hashes = rows
    return Content(
        tuple(
            KeyRow(
                id=id_,
                name=name,
                groups=tuple(json.loads(groups)),
                limits=Limits(tuple(json.loads(models)), *limits),
                created=created,
                expires=expires,
                revoked=revoked,
            )
            for id_, name, groups, models, *limits, created, expires, revoked in keys
        ),
        tuple(SecretRow(*row) for row in hashes),
    )


def read(connection: DatabaseConnection) -> Content:
    """Return every key, the oldest first, and every secret."""
    return content_of(fetch(connection))


def create(
    connection: DatabaseConnection,
    name: str,
    groups: tuple[str, ...],
    limits: Limits,
    expires: int | None,
    now: int,
) -> str:
    """Create a key and return it; it cannot be read later.

    :raises ConfigurationError: there is a live key of that name.
    """
    for row in read(connection).keys:
        if row.name == name and row.state(now) == "live":
            raise ConfigurationError(
                f"there is a live key of the name {name}, {row.id}; revoke or rotate it, or choose "
                "another name."
            )
    id_ = secrets.token_hex(6)
    connection.execute(
        f"INSERT INTO api_key ({_KEY_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",  # noqa: S608  # a constant
        (
            id_,
            name,
            json.dumps(groups),
            json.dumps(limits.models),
            limits.requests_per_minute,
            limits.tokens_per_minute,
            limits.concurrency,
            now,
            expires,
        ),
    )
    return _new_secret(connection, id_)


def find(connection: DatabaseConnection, id_or_name: str, now: int) -> KeyRow:
    """Return the key of that id, or the live key of that name.

    :raises ConfigurationError: there is none.
    """
    keys = read(connection).keys
    for row in keys:
        if row.id == id_or_name:
            return row
    for row in keys:
        if row.name == id_or_name and row.state(now) == "live":
            return row
    raise ConfigurationError(
        f"there is no key of the id {id_or_name}, and no live one of that name; see `keys list`."
    )


def revoke(connection: DatabaseConnection, id_or_name: str, now: int) -> KeyRow:
    """Revoke a key, and return its row from before.

    :raises ConfigurationError: there is no such key.
    """
    row = find(connection, id_or_name, now)
    connection.execute(
        "UPDATE api_key SET revoked = ? WHERE id = ? AND revoked IS NULL", (now, row.id)
    )
    return row


def rotate(
    connection: DatabaseConnection, id_or_name: str, grace: int, now: int
) -> tuple[KeyRow, str]:
    """Give a key a new secret.

    :param grace: the most seconds for which the previous secrets stay valid.
    :return: the key's row, and the new key.
    :raises ConfigurationError: there is no such key, or it is not live.
    """
    row = find(connection, id_or_name, now)
    if row.state(now) != "live":
        raise ConfigurationError(f"the key {row.id} is {row.state(now)}; create a new one.")
    connection.execute(
        "UPDATE api_key_secret SET expires = CASE WHEN expires < :end THEN expires ELSE :end END "
        "WHERE key_id = :id",
        {"end": now + grace, "id": row.id},
    )
    return row, _new_secret(connection, row.id)


def add_usage(rows: Iterable[UsageRow], connection: DatabaseConnection) -> None:
    """Add to the usage of those days."""
    connection.executemany(
        """
        INSERT INTO api_key_usage AS counted VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (key_id, day) DO UPDATE SET
            requests = counted.requests + excluded.requests,
            input_tokens = counted.input_tokens + excluded.input_tokens,
            output_tokens = counted.output_tokens + excluded.output_tokens,
            cache_read_input_tokens =
                counted.cache_read_input_tokens + excluded.cache_read_input_tokens,
            cache_creation_input_tokens =
                counted.cache_creation_input_tokens + excluded.cache_creation_input_tokens,
            cost = counted.cost + excluded.cost,
            unpriced = counted.unpriced + excluded.unpriced,
            last_used = CASE WHEN counted.last_used > excluded.last_used
                THEN counted.last_used ELSE excluded.last_used END
        """,
        [
            (
                row.key_id,
                row.day,
                row.requests,
                row.input_tokens,
                row.output_tokens,
                row.cache_read_input_tokens,
                row.cache_creation_input_tokens,
                row.cost,
                row.unpriced,
                row.last_used,
            )
            # in one order everywhere, so that no two processes wait for each other's rows
            for row in sorted(rows, key=lambda row: (row.key_id, row.day))
        ],
    )


def read_usage(connection: DatabaseConnection, since: str) -> list[UsageRow]:
    """Return the usage of that day and of later ones, the oldest first."""
    rows = connection.execute(
        "SELECT * FROM api_key_usage WHERE day >= ? ORDER BY day, key_id", (since,)
    )
    return [UsageRow(*row) for row in rows]


def last_used(connection: DatabaseConnection) -> dict[str, int]:
    """Return when each key was last used, by its id."""
    return dict(
        connection.execute("SELECT key_id, max(last_used) FROM api_key_usage GROUP BY key_id")
    )


def _new_secret(connection: DatabaseConnection, id_: str) -> str:
    key = f"{PREFIX}{id_}-{secrets.token_urlsafe(32)}"
    connection.execute(
        "INSERT INTO api_key_secret VALUES (?, ?, NULL)", (hashed(key.encode()), id_)
    )
    return key

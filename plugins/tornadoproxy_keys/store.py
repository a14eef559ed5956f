"""The tables: keys, the hashes of their secrets, the usage of each day, and the audit trail.

`tornadoproxy_keys.changes` changes keys; only running proxies add usage.

A secret is stored as its SHA-256 hash. Slow, salted hashes protect passwords, which can be guessed.
A secret of 32 random bytes cannot be guessed however fast the hash is, and a fast hash can be
computed for every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from tornadoproxy import ConfigurationError, Database, admin

if TYPE_CHECKING:
    from tornadoproxy import DatabaseConnection, DatabaseLocation

PREFIX = "tp-"

TRAIL = admin.AuditTable("api_key_trail", "api_key")

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
    f"""
ALTER TABLE api_key ADD COLUMN disabled INTEGER;
CREATE INDEX api_key_by_age ON api_key (created, id);
CREATE INDEX api_key_by_name ON api_key (name);
CREATE INDEX api_key_secret_by_key ON api_key_secret (key_id);
{TRAIL.schema}""",
)

_KEY_COLUMNS = (
    "id, name, group_names, models, requests_per_minute, tokens_per_minute, concurrency, "
    "created, expires, revoked, disabled"
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
    :param disabled: since when the key is disabled; ``None`` if it is not.
    """

    id: str
    name: str
    groups: tuple[str, ...]
    limits: Limits
    created: int
    expires: int | None
    revoked: int | None
    disabled: int | None = None

    def state(self, now: float) -> str:
        """Return ``live``, ``disabled``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        if self.expires is not None and self.expires <= now:
            return "expired"
        return "live" if self.disabled is None else "disabled"

    def holds_name(self, now: float) -> bool:
        """Return whether no other key may have its name."""
        return self.state(now) in ("live", "disabled")


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


# Any: the columns
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
    return re.fullmatch(r"token(-[0-9]+)?", name) is not None


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
    return Content(tuple(map(_key, keys)), tuple(SecretRow(*row) for row in hashes))


def read(connection: DatabaseConnection) -> Content:
    """Return every key, the oldest first, and every secret."""
    return content_of(fetch(connection))


def by_id(connection: DatabaseConnection, id_: str) -> KeyRow | None:
    """Return the key of that id; ``None`` if there is none."""
    return next(iter(_select(connection, "id = ?", (id_,))), None)


def by_name(connection: DatabaseConnection, name: str, now: int) -> KeyRow | None:
    """Return the live or disabled key of that name; ``None`` if there is none."""
    found = _select(connection, "name = ?", (name,))
    return next((row for row in found if row.holds_name(now)), None)


def page(
    connection: DatabaseConnection,
    condition: str,
    values: Sequence[object],
    *,
    limit: int,
    after: KeyRow | None,
    before: KeyRow | None,
) -> list[KeyRow]:
    """Return the keys that follow `after`, or those that precede `before`, the oldest first.

    :param condition: in SQL, of the keys to return.
    :param values: its parameters.
    :param limit: the most keys.
    """
    edge = before or after
    if edge is not None:
        condition += f" AND (created, id) {'<' if before else '>'} (?, ?)"
        values = (*values, edge.created, edge.id)
    order = "created DESC, id DESC" if before else "created, id"
    found = _select(connection, f"{condition} ORDER BY {order} LIMIT ?", (*values, limit))
    return found[::-1] if before else found


def find(connection: DatabaseConnection, id_or_name: str, now: int) -> KeyRow:
    """Return the key of that id, or the live or disabled key of that name.

    :raises ConfigurationError: there is none.
    """
    row = by_id(connection, id_or_name) or by_name(connection, id_or_name, now)
    if row is None:
        raise ConfigurationError(
            f"there is no key of the id {id_or_name}, and no live one of that name; see "
            "`keys list`."
        )
    return row


def insert(connection: DatabaseConnection, row: KeyRow) -> None:
    """Write the row of a new key."""
    connection.execute(
        f"INSERT INTO api_key ({_KEY_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608  # a constant
        _values(row),
    )


def update(connection: DatabaseConnection, row: KeyRow) -> None:
    """Write the row of a key that exists."""
    connection.execute(
        """
        UPDATE api_key SET name = ?, group_names = ?, models = ?, requests_per_minute = ?,
            tokens_per_minute = ?, concurrency = ?, created = ?, expires = ?, revoked = ?,
            disabled = ?
        WHERE id = ?
        """,
        (*_values(row)[1:], row.id),
    )


def add_secret(connection: DatabaseConnection, id_: str, entropy: bytes) -> str:
    """Give a key one more secret, and return the whole key; it cannot be read later.

    :param entropy: what the secret is made of, 32 bytes.
    """
    key = key_text(id_, entropy)
    connection.execute(
        "INSERT INTO api_key_secret VALUES (?, ?, NULL)", (hashed(key.encode()), id_)
    )
    return key


def expire_secrets(connection: DatabaseConnection, id_: str, end: int) -> None:
    """Let the secrets of a key expire at `end`, unless they do so earlier."""
    connection.execute(
        "UPDATE api_key_secret SET expires = CASE WHEN expires < :end THEN expires ELSE :end END "
        "WHERE key_id = :id",
        {"end": end, "id": id_},
    )


def is_current(connection: DatabaseConnection, key: str) -> bool:
    """Return whether a whole key has not been replaced."""
    rows = connection.execute(
        "SELECT 1 FROM api_key_secret WHERE hash = ? AND expires IS NULL", (hashed(key.encode()),)
    )
    return rows.fetchone() is not None


def key_text(id_: str, entropy: bytes) -> str:
    """Return the whole key with that id and secret."""
    return f"{PREFIX}{id_}-{base64.urlsafe_b64encode(entropy).rstrip(b'=').decode()}"


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


def last_used(connection: DatabaseConnection, ids: Sequence[str] | None = None) -> dict[str, int]:
    """Return when each key was last used, by its id.

    :param ids: of the keys; ``None`` is all.
    """
    where = "" if ids is None else f"WHERE key_id IN ({', '.join('?' * len(ids)) or 'NULL'})"
    return dict(
        connection.execute(
            f"SELECT key_id, max(last_used) FROM api_key_usage {where} GROUP BY key_id",  # noqa: S608  # question marks
            ids or (),
        )
    )


def _select(
    connection: DatabaseConnection, condition: str, values: Sequence[object]
) -> list[KeyRow]:
    rows = connection.execute(
        f"SELECT {_KEY_COLUMNS} FROM api_key WHERE {condition}",  # noqa: S608  # constants
        tuple(values),
    )
    return [_key(row) for row in rows]


def _key(row: tuple[Any, ...]) -> KeyRow:  # Any: the columns
    id_, name, groups, models, requests, tokens, concurrency, *times = row
    limits = Limits(tuple(json.loads(models)), requests, tokens, concurrency)
    return KeyRow(id_, name, tuple(json.loads(groups)), limits, *times)


def _values(row: KeyRow) -> tuple[object, ...]:
    limits = row.limits
    return (
        *(row.id, row.name, json.dumps(row.groups), json.dumps(limits.models)),
        *(limits.requests_per_minute, limits.tokens_per_minute, limits.concurrency),
        *(row.created, row.expires, row.revoked, row.disabled),
    )

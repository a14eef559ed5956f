"""The tables: sign-ins of devices, sessions, refresh tokens and revocations.

Codes and refresh tokens are stored as SHA-256 hashes: they are random, so that a fast hash protects
them. The provider's own refresh token is sealed (`tornadoproxy_oidc.sealing`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from tornadoproxy import Database
from tornadoproxy_oidc.settings import MAX_BEARER

if TYPE_CHECKING:
    from tornadoproxy import DatabaseConnection, DatabaseLocation

SCHEMA = (
    """
CREATE TABLE oidc_grant (
    device BLOB PRIMARY KEY,
    user_code TEXT NOT NULL UNIQUE,
    remote_ip TEXT NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    state TEXT NOT NULL,
    person TEXT,
    provider_token TEXT
);
CREATE INDEX oidc_grant_by_ip ON oidc_grant (remote_ip, created);
CREATE INDEX oidc_grant_by_end ON oidc_grant (expires);
CREATE TABLE oidc_session (
    id TEXT PRIMARY KEY,
    principal TEXT NOT NULL,
    person TEXT NOT NULL,
    provider_token TEXT,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    checked INTEGER NOT NULL,
    checking INTEGER NOT NULL
);
CREATE INDEX oidc_session_by_end ON oidc_session (expires);
CREATE INDEX oidc_session_by_principal ON oidc_session (principal);
CREATE TABLE oidc_refresh (
    hash BLOB PRIMARY KEY,
    session_id TEXT NOT NULL,
    replaced INTEGER
);
CREATE INDEX oidc_refresh_by_session ON oidc_refresh (session_id);
CREATE TABLE oidc_revocation (
    session_id TEXT PRIMARY KEY,
    revoked INTEGER NOT NULL
);
""",
    """
ALTER TABLE oidc_grant ADD COLUMN client TEXT NOT NULL DEFAULT '';
DROP INDEX oidc_grant_by_ip;
CREATE INDEX oidc_grant_by_client ON oidc_grant (client, created);
DELETE FROM oidc_session WHERE id IN (SELECT session_id FROM oidc_revocation);
""",
)

Document: TypeAlias = dict[str, Any]  # Any: JSON


@dataclass(frozen=True, slots=True)
class Grant:
    """One sign-in of a device.

    :param client: whose attempts it counts to; see `Attempts.client_of`.
    :param state: ``pending``, ``approved``, ``denied`` or ``redeemed``.
    :param person: who approved it; see `tornadoproxy_oidc.people.document_of`.
    """

    device: bytes
    user_code: str
    remote_ip: str
    client: str
    created: int
    expires: int
    state: str
    person: Document | None = None
    provider_token: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A person who is signed in on one device.

    :param checked: when the provider last said that the person may.
    :param checking: since when a proxy asks the provider; 0 if none does.
    """

    id: str
    person: Document
    provider_token: str | None
    created: int
    expires: int
    checked: int
    checking: int = 0


def database(where: DatabaseLocation) -> Database:
    """Return the database of sign-ins; `Database.changed` reports revocations."""
    return Database(where, SCHEMA, name="oidc", setting="OIDC_DB", watched=("oidc_revocation",))


def hashed(token: str) -> bytes:
    """Return what is stored of a code or token."""
    return hashlib.sha256(token.encode()).digest()


# Grants


def add_grant(connection: DatabaseConnection, grant: Grant) -> None:
    """Write a new grant, and delete what has long expired."""
    old = (grant.created - 3600,)
    connection.execute(
        "DELETE FROM oidc_refresh WHERE session_id IN "
        "(SELECT id FROM oidc_session WHERE expires < ?)",
        old,
    )
    connection.execute("DELETE FROM oidc_session WHERE expires < ?", old)
    connection.execute("DELETE FROM oidc_grant WHERE expires < ?", old)
    connection.execute(
        "INSERT INTO oidc_grant VALUES (?, ?, ?, ?, ?, ?, NULL, NULL, ?)",
        (
            *(grant.device, grant.user_code, grant.remote_ip),
            *(grant.created, grant.expires, grant.state, grant.client),
        ),
    )


def grants_of_client(connection: DatabaseConnection, client: str, since: int) -> int:
    """Return how many sign-ins a client has begun since then."""
    row = connection.execute(
        "SELECT count(*) FROM oidc_grant WHERE client = ? AND created > ?", (client, since)
    ).fetchone()
    return int(row[0])


def grant_by_user_code(connection: DatabaseConnection, user_code: str) -> Grant | None:
    """Return the grant of the code that a person types."""
    return _grant(connection, "user_code", user_code)


def grant_by_device(connection: DatabaseConnection, device: bytes) -> Grant | None:
    """Return the grant of the hash of a device's code."""
    return _grant(connection, "device", device)


def _grant(connection: DatabaseConnection, column: str, value: object) -> Grant | None:
    columns = (
        "device, user_code, remote_ip, client, created, expires, state, person, provider_token"
    )
    row = connection.execute(
        f"SELECT {columns} FROM oidc_grant WHERE {column} = ?",  # noqa: S608  # constants
        (value,),
    ).fetchone()
    if row is None:
        return None
    device, user_code, remote_ip, client, created, expires, state, person, provider_token = row
    return Grant(
        device=bytes(device),
        user_code=user_code,
        remote_ip=remote_ip,
        client=client,
        created=created,
        expires=expires,
        state=state,
        person=None if person is None else json.loads(person),
        provider_token=provider_token,
    )


def decide(
    connection: DatabaseConnection,
    device: bytes,
    state: str,
    now: int,
    person: Document | None = None,
    provider_token: str | None = None,
) -> bool:
    """Approve or deny a grant that is pending and has not expired; return whether it was."""
    changed = connection.execute(
        "UPDATE oidc_grant SET state = ?, person = ?, provider_token = ? "
        "WHERE device = ? AND state = 'pending' AND expires > ?",
        (
            *(state, None if person is None else json.dumps(person), provider_token),
            *(device, now),
        ),
    )
    return changed.rowcount == 1


def redeem(connection: DatabaseConnection, device: bytes) -> bool:
    """Take an approved grant, once; return whether it was approved."""
    changed = connection.execute(
        "UPDATE oidc_grant SET state = 'redeemed', person = NULL, provider_token = NULL "
        "WHERE device = ? AND state = 'approved'",
        (device,),
    )
    return changed.rowcount == 1


# Sessions


def add_session(connection: DatabaseConnection, session: Session) -> None:
    """Write a new session."""
    connection.execute(
        "INSERT INTO oidc_session VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(session.id, session.person["sub"], json.dumps(session.person)),
            *(session.provider_token, session.created, session.expires),
            *(session.checked, session.checking),
        ),
    )


def session_by_id(connection: DatabaseConnection, id_: str) -> Session | None:
    """Return a session; ``None`` if it was revoked."""
    row = connection.execute(
        "SELECT id, person, provider_token, created, expires, checked, checking FROM oidc_session "
        "WHERE id = ?",
        (id_,),
    ).fetchone()
    return None if row is None else Session(row[0], json.loads(row[1]), *row[2:])


def live_sessions(
    connection: DatabaseConnection, now: int, principal: str | None = None
) -> list[Session]:
    """Return the sessions that have neither ended nor been revoked, the oldest first.

    :param principal: whose; ``None`` is everybody's.
    """
    rows = connection.execute(
        "SELECT id, person, provider_token, created, expires, checked, checking FROM oidc_session "
        "WHERE expires > :now AND (principal = :principal OR :everybody = 1) "
        "ORDER BY created, id",
        {"now": now, "principal": principal or "", "everybody": int(principal is None)},
    )
    return [Session(row[0], json.loads(row[1]), *row[2:]) for row in rows]


def update_session(connection: DatabaseConnection, session: Session) -> None:
    """Write what a check has changed."""
    connection.execute(
        "UPDATE oidc_session SET principal = ?, person = ?, provider_token = ?, checked = ?, "
        "checking = ? WHERE id = ?",
        (
            *(session.person["sub"], json.dumps(session.person), session.provider_token),
            *(session.checked, session.checking, session.id),
        ),
    )


def add_refresh_token(connection: DatabaseConnection, token: str, session_id: str) -> None:
    """Give a session one more refresh token."""
    connection.execute("INSERT INTO oidc_refresh VALUES (?, ?, NULL)", (hashed(token), session_id))


def refresh_token(connection: DatabaseConnection, token: str) -> tuple[bool, int | None]:
    """Return whether a refresh token is stored, and when it was replaced."""
    row = connection.execute(
        "SELECT replaced FROM oidc_refresh WHERE hash = ?", (hashed(token),)
    ).fetchone()
    return (False, None) if row is None else (True, row[0])


def forget_refresh_tokens(connection: DatabaseConnection, session_id: str, before: int) -> None:
    """Delete the refresh tokens of a session that were replaced before then."""
    connection.execute(
        "DELETE FROM oidc_refresh WHERE session_id = ? AND replaced < ?", (session_id, before)
    )


def replace_refresh_token(connection: DatabaseConnection, token: str, now: int) -> None:
    """Note that a refresh token is replaced, unless it was before."""
    connection.execute(
        "UPDATE oidc_refresh SET replaced = ? WHERE hash = ? AND replaced IS NULL",
        (now, hashed(token)),
    )


# Revocations


def revoke(connection: DatabaseConnection, session_id: str, now: int) -> None:
    """Delete a session: it ends immediately, and its bearer tokens once replicas know.

    Earlier revocations, which no bearer outlives, are deleted.
    """
    connection.execute("DELETE FROM oidc_revocation WHERE revoked < ?", (now - MAX_BEARER - 3600,))
    connection.execute("DELETE FROM oidc_session WHERE id = ?", (session_id,))
    connection.execute(
        "INSERT INTO oidc_revocation VALUES (?, ?) ON CONFLICT (session_id) DO NOTHING",
        (session_id, now),
    )
    connection.execute("DELETE FROM oidc_refresh WHERE session_id = ?", (session_id,))


def revoked(connection: DatabaseConnection, since: int) -> frozenset[str]:
    """Return the sessions that were revoked since then."""
    rows = connection.execute("SELECT session_id FROM oidc_revocation WHERE revoked >= ?", (since,))
    return frozenset(row[0] for row in rows)

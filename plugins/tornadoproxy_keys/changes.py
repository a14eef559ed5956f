"""Changes of keys, each recorded in the audit trail by the transaction that makes it.

A request that repeats one with the same ``Idempotency-Key`` gets the same key. The key is stored
nowhere for that: its secret is derived from the admin key, the ``Idempotency-Key`` and a random
salt in the audit trail, none of which gives it without the others.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tornadoproxy import ConfigurationError, admin
from tornadoproxy_keys import store, wire

if TYPE_CHECKING:
    from tornadoproxy import DatabaseConnection
    from tornadoproxy_keys.store import KeyRow, Limits


@dataclass(frozen=True, slots=True)
class By:
    """Who makes a change.

    :param actor: for the audit trail.
    :param once: see `admin.Request.once`.
    :param derive: see `admin.Request.derive`.
    """

    actor: str
    once: admin.Once | None = None
    derive: Callable[[bytes], bytes] | None = None


def create(
    connection: DatabaseConnection,
    name: str,
    groups: tuple[str, ...],
    limits: Limits,
    expires: int | None,
    now: int,
    by: By,
) -> tuple[KeyRow, str]:
    """Create a key; return its row, and the key, which cannot be read later.

    :raises ConfigurationError: there is a live or disabled key of that name.
    """
    if (row := store.by_name(connection, name, now)) is not None:
        raise ConfigurationError(
            f"there is a {row.state(now)} key of the name {name}, {row.id}; revoke or rotate it, "
            "or choose another name."
        )
    row = store.KeyRow(secrets.token_hex(6), name, groups, limits, now, expires, None)
    store.insert(connection, row)
    return row, _new_secret(connection, "create", None, row, by)


def update(connection: DatabaseConnection, before: KeyRow, after: KeyRow, by: By) -> None:
    """Change a key from `before`, its present row, to `after`; do nothing if they are equal."""
    if after != before:
        store.update(connection, after)
        _record(connection, "update", before, after, by)


def revoke(connection: DatabaseConnection, id_or_name: str, now: int, by: By) -> KeyRow:
    """Revoke a key, and return its row from before.

    :raises ConfigurationError: there is no such key.
    """
    row = store.find(connection, id_or_name, now)
    if row.revoked is None:
        update(connection, row, replace(row, revoked=now), by)
    return row


def rotate(
    connection: DatabaseConnection, id_or_name: str, grace: int, now: int, by: By
) -> tuple[KeyRow, str]:
    """Give a key a new secret; return the key's row, and the new key.

    :param grace: the most seconds for which the previous secrets stay valid.
    :raises ConfigurationError: there is no such key, or it is not live.
    """
    row = store.find(connection, id_or_name, now)
    if row.state(now) != "live":
        raise ConfigurationError(f"the key {row.id} is {row.state(now)}; create a new one.")
    store.expire_secrets(connection, row.id, now + grace)
    return row, _new_secret(connection, "rotate", row, row, by)


def repeated(connection: DatabaseConnection, by: By) -> tuple[KeyRow, str | None] | None:
    """Return what the earlier request did that `by` repeats; ``None`` if it is the first.

    :return: the key's present row, and the key, unless it has been replaced since.
    :raises Denied: 409, the earlier request had another body.
    """
    earlier = store.TRAIL.earlier(connection, by.once)
    if earlier is None:
        return None
    assert by.derive is not None, "it comes with the Idempotency-Key"
    row = store.by_id(connection, earlier.subject)
    assert row is not None, "keys are never deleted"
    key = store.key_text(row.id, by.derive(earlier.salt))
    return row, key if store.is_current(connection, key) else None


def _new_secret(
    connection: DatabaseConnection, action: str, before: KeyRow | None, after: KeyRow, by: By
) -> str:
    salt, entropy = None, secrets.token_bytes(32)
    if by.derive is not None:
        salt = secrets.token_bytes(16)
        entropy = by.derive(salt)
    _record(connection, action, before, after, by, salt)
    return store.add_secret(connection, after.id, entropy)


def _record(
    connection: DatabaseConnection,
    action: str,
    before: KeyRow | None,
    after: KeyRow,
    by: By,
    salt: bytes | None = None,
) -> None:
    store.TRAIL.record(
        connection,
        by.actor,
        action,
        after.id,
        None if before is None else wire.key_document(before),
        wire.key_document(after),
        once=by.once,
        salt=salt,
    )

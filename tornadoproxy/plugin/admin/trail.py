"""The audit trail of a plugin: a table in its own database.

An event is recorded in the transaction that makes the change, so that there is neither a change
without its event nor the reverse. A request with an ``Idempotency-Key`` is found again by it.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from tornadoproxy.errors import Denied

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tornadoproxy.storage.contract import DatabaseConnection

REPEATABLE = 86_400.0  # seconds for which a request with an Idempotency-Key can be repeated


class Event(Struct, frozen=True):
    """One change of a resource.

    :param id: a number that increases with each event of its trail.
    :param time: of the change, in seconds since the epoch.
    :param actor: who made it: ``admin-key:ops``, ``command-line:ada``.
    :param action: what was done: ``create``, ``update``, ``rotate``.
    :param type: of the resource: ``api_key``.
    :param subject: the resource's id.
    :param before: its document before the change; ``None`` if there was none.
    :param after: its document after the change; ``None`` if it was removed.
    """

    id: int
    time: float
    actor: str
    action: str
    type: str
    subject: str
    before: Mapping[str, Any] | None  # Any: JSON
    after: Mapping[str, Any] | None


class Once(Struct, frozen=True):
    """What a request has in common with its repetitions.

    :param key: the hash of the admin key's name and the ``Idempotency-Key``.
    :param fingerprint: the hash of its method, path and body.
    """

    key: str
    fingerprint: str


class Earlier(Struct, frozen=True):
    """An earlier request with the same ``Idempotency-Key``.

    :param subject: the id of the resource that it created or changed.
    :param salt: what its secret was derived with.
    """

    subject: str
    salt: bytes


class AuditTable:
    """The table of an audit trail.

    :param name: of the table.
    :param type: of the resources whose changes it has.
    """

    def __init__(self, name: str, type: str) -> None:  # noqa: A002  # as in the documents
        self._name = name
        self._type = type

    @property
    def schema(self) -> str:
        """The script that creates the table, for the plugin's database."""
        return f"""
CREATE TABLE {self._name} (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    before TEXT,
    after TEXT,
    once TEXT,
    fingerprint TEXT,
    salt BLOB
);
CREATE INDEX {self._name}_by_once ON {self._name} (once) WHERE once IS NOT NULL;
"""

    def record(
        self,
        connection: DatabaseConnection,
        actor: str,
        action: str,
        subject: str,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
        *,
        once: Once | None = None,
        salt: bytes | None = None,
    ) -> None:
        """Add an event; its documents must hold no secret.

        :param once: see `Request.once`.
        :param salt: what the secret of the change was derived with.
        """
        connection.execute(
            f"INSERT INTO {self._name} (time, actor, action, subject, before, after, once,"  # noqa: S608  # a constant
            " fingerprint, salt) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(time.time(), actor, action, subject, _text(before), _text(after)),
                *((once.key, once.fingerprint) if once else (None, None)),
                salt,
            ),
        )

    def earlier(self, connection: DatabaseConnection, once: Once | None) -> Earlier | None:
        """Return the earlier request that this one repeats; ``None`` if it is the first.

        :param once: see `Request.once`.
        :raises Denied: 409, the earlier one had the same ``Idempotency-Key`` and another body.
        """
        if once is None:
            return None
        row = connection.execute(
            f"SELECT fingerprint, subject, salt FROM {self._name}"  # noqa: S608  # a constant
            " WHERE once = ? AND time > ? ORDER BY id DESC LIMIT 1",
            (once.key, time.time() - REPEATABLE),
        ).fetchone()
        if row is None:
            return None
        if row[0] != once.fingerprint:
            raise Denied(
                "Idempotency-Key: it was sent with another request within the last 24 hours; send "
                "a new one.",
                status=409,
                error_type="invalid_request_error",
            )
        return Earlier(row[1], bytes(row[2] or b""))

    def read(
        self, connection: DatabaseConnection, limit: int, before: int | None = None
    ) -> list[Event]:
        """Return events, the newest first.

        :param limit: the most events.
        :param before: only events older than the one with this id.
        """
        rows = connection.execute(
            "SELECT id, time, actor, action, subject, before, after"  # noqa: S608  # a constant
            f" FROM {self._name} WHERE id < ? ORDER BY id DESC LIMIT ?",
            (1 << 62 if before is None else before, limit),
        )
        return [
            Event(id_, at, actor, action, self._type, subject, _parsed(before_it), _parsed(after))
            for id_, at, actor, action, subject, before_it, after in rows
        ]


def command_line_actor() -> str:
    """Return who runs a command, for an audit trail."""
    import getpass  # commands alone need it

    try:
        return f"command-line:{getpass.getuser()}"
    except (KeyError, OSError):  # a user id without a name, as in containers
        return "command-line"


def _text(document: Mapping[str, Any] | None) -> str | None:
    return None if document is None else json.dumps(document)


def _parsed(text: str | None) -> Any:
    return None if text is None else json.loads(text)

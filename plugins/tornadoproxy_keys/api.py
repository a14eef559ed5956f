"""The resource ``api_keys`` of the Admin API."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from tornadoproxy import Denied, InvalidRequest, admin
from tornadoproxy_keys import changes, store, wire
from tornadoproxy_keys.changes import By

if TYPE_CHECKING:
    from tornadoproxy import DatabaseConnection
    from tornadoproxy_keys.gate import Gate
    from tornadoproxy_keys.store import KeyRow


class KeysApi:
    """The resources that show and change keys.

    :param gate: the keys of the running proxy.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def api(self) -> admin.Api:
        """Return the plugin's part of the Admin API."""
        resource = admin.Resource
        return admin.Api(
            "keys",
            (
                resource("api_keys", {"GET": self._list, "POST": self._create}),
                resource("api_keys/([^/]+)", {"GET": self._get, "POST": self._update}),
                resource("api_keys/([^/]+)/rotate", {"POST": self._rotate}),
            ),
            {"api_keys": self._trail},
            self._people,
        )

    async def _list(self, request: admin.Request) -> admin.Document:
        return await self._gate.read(partial(_listed, query=request.query))

    async def _get(self, request: admin.Request) -> admin.Document:
        return await self._gate.read(partial(_shown, id_=request.arguments[0]))

    async def _create(self, request: admin.Request) -> admin.Document:
        wanted = wire.wanted(request.document(*wire.FIELDS))
        self._check_name(wanted.name)
        by = _by(request)

        def create(connection: DatabaseConnection) -> admin.Document:
            if (earlier := changes.repeated(connection, by)) is not None:
                return _with_key(*earlier)
            _check_free(connection, wanted)
            row, key = changes.create(
                connection, wanted.name, wanted.groups, wanted.limits, wanted.expires, _now(), by
            )
            return _with_key(row, key)

        return await self._gate.change(create)

    async def _update(self, request: admin.Request) -> admin.Document:
        document = request.document("status", *wire.FIELDS)
        (id_,) = request.arguments

        def update(connection: DatabaseConnection) -> admin.Document:
            before = _existing(store.by_id(connection, id_))
            request.check_match(wire.key_document(before))
            after = wire.with_status(wire.changed(before, document), document.get("status"))
            if after.name != before.name:
                self._check_name(after.name)
            if after.holds_name(_now()):
                _check_free(connection, after)
            changes.update(connection, before, after, _by(request))
            return _shown(connection, id_)

        return await self._gate.change(update)

    async def _rotate(self, request: admin.Request) -> admin.Document:
        grace = wire.grace(request.document("grace_seconds"))
        (id_,) = request.arguments
        by = _by(request)

        def rotate(connection: DatabaseConnection) -> admin.Document:
            if (earlier := changes.repeated(connection, by)) is not None:
                return _with_key(*earlier)
            row = _existing(store.by_id(connection, id_))
            request.check_match(wire.key_document(row))
            if wire.status_of(row) != "active":
                raise InvalidRequest(
                    f"This key is {wire.status_of(row)}: only an active one can be rotated."
                )
            return _with_key(*changes.rotate(connection, id_, grace, _now(), by))

        return await self._gate.change(rotate)

    async def _people(self) -> list[admin.Person]:
        now = time.time()
        rows = [row for row in self._gate.rows() if row.holds_name(now)]
        return [admin.Person(row.name, row.groups, row.created) for row in rows]

    async def _trail(self, limit: int, before: int | None) -> list[admin.Event]:
        return await self._gate.read(partial(store.TRAIL.read, limit=limit, before=before))

    def _check_name(self, name: str) -> None:
        if self._gate.has_token and store.is_token_name(name):
            raise InvalidRequest(
                f"name: {name} is the name of the clients with AUTH_TOKEN; choose another."
            )


def _listed(connection: DatabaseConnection, query: admin.Query) -> admin.Document:
    """Return the page of keys that a query asks for."""
    limit = query.limit()
    conditions, values = _filters(query)
    after, before = (
        None if id_ is None else _edge(connection, name, id_)
        for name, id_ in zip(("after_id", "before_id"), query.bounds(), strict=True)
    )
    # one more than the page shows, to know whether another page follows
    found = store.page(
        connection, " AND ".join(conditions), values, limit=limit + 1, after=after, before=before
    )
    has_more = len(found) > limit
    shown = found[-limit:] if before else found[:limit]
    used = store.last_used(connection, [row.id for row in shown])
    return admin.list_document(
        [_document(row, used.get(row.id)) for row in shown],
        has_more=has_more,
        next_page=admin.cursor(shown[-1].id) if has_more and not before else None,
    )


def _filters(query: admin.Query) -> tuple[list[str], list[object]]:
    """Return the conditions on the keys in SQL, and their parameters."""
    conditions, values = ["TRUE"], list[object]()
    if (status := query.value("status", wire.STATUSES)) is not None:
        conditions.append(wire.CONDITIONS[status])
        values.append(_now())
    if (name := query.value("name")) is not None:
        conditions.append("name = ?")
        values.append(name)
    # who created a key is in the audit trail alone, and there are no workspaces
    if query.value("created_by_user_id") or query.value("workspace_id"):
        conditions.append("FALSE")
    return conditions, values


def _edge(connection: DatabaseConnection, name: str, id_: str) -> KeyRow:
    row = store.by_id(connection, id_)
    if row is None:
        raise InvalidRequest(f"{name}: no item of this list has this id.")
    return row


def _shown(connection: DatabaseConnection, id_: str) -> admin.Document:
    row = _existing(store.by_id(connection, id_))
    return _document(row, store.last_used(connection, [id_]).get(id_))


def _document(row: KeyRow, used: int | None) -> admin.Document:
    last_used = None if used is None else admin.timestamp(used)
    return {**wire.key_document(row), "last_used_at": last_used}


def _with_key(row: KeyRow, key: str | None) -> admin.Document:
    """Return the document of a new or rotated key; without the key, if it was replaced since."""
    return {**_document(row, None), "key": key}


def _existing(row: KeyRow | None) -> KeyRow:
    if row is None:
        raise Denied("There is no API key with this id.", status=404)
    return row


def _check_free(connection: DatabaseConnection, row: KeyRow) -> None:
    other = store.by_name(connection, row.name, _now())
    if other is not None and other.id != row.id:
        raise Denied(
            f"name: the key {other.id} has the name {row.name}; choose another, or archive that "
            "key.",
            status=409,
            error_type="invalid_request_error",
        )


def _by(request: admin.Request) -> By:
    return By(request.actor, request.once, request.derive)


def _now() -> int:
    return int(time.time())

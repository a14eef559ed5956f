"""The tables of stored responses, and the work on them within a transaction.

``stored_responses`` has a row for each response; ``stored_contents`` one for each different part of
a principal's responses; ``stored_items`` one for each part of a response, in their order, which
names its content. A client that keeps no state sends its whole history with each turn: that adds
contents for what is new, and short rows for the rest.

Clients and the upstream choose ids, which may be long, or nothing that a database can store. Keys
are therefore hashes of principal and id. Times are in whole seconds since the epoch.

Work that writes must exclude others, so that no content is deleted while another process refers to
it. Large work is done in several statements, since each has a deadline.
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from tornadoproxy.handlers.openai.stored_parts import MAX_LINKS, Part, Parts, too_large
from tornadoproxy.openai.responses import made_id
from tornadoproxy.protocol.request_fields import MAX_MESSAGE_BODY

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from tornadoproxy.storage.contract import DatabaseConnection

SCHEMA = (
    """
CREATE TABLE stored_responses (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key BLOB NOT NULL UNIQUE,
    principal TEXT NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    previous BLOB,
    previous_id BLOB,
    size INTEGER NOT NULL,
    own BLOB NOT NULL
);
CREATE INDEX stored_responses_by_expiry ON stored_responses (expires);
CREATE TABLE stored_contents (
    digest BLOB PRIMARY KEY,
    body BLOB NOT NULL
);
CREATE TABLE stored_items (
    response INTEGER NOT NULL,
    position INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    key BLOB,
    item_id BLOB,
    content BLOB NOT NULL,
    PRIMARY KEY (response, position)
) WITHOUT ROWID;
CREATE INDEX stored_items_by_key ON stored_items (key, response);
CREATE INDEX stored_items_by_content ON stored_items (content);
""",
)

# the values of stored_items.kind
SHARED, INPUT, OUTPUT = range(3)

PARAMETERS = 500
"""The most values that one statement looks for."""

ROWS = 2_000
"""The most rows that one statement inserts."""

BATCH = 1 << 20
"""The bytes of contents that one statement inserts, unless one content is larger."""

STEP = 10
"""The responses that one step of `delete_expired` deletes."""

_ITEM_COLUMNS = ("response", "position", "kind", "key", "item_id", "content")

# The statements differ in the number of their parameters alone.
# ruff: noqa: S608


class Lifetime(NamedTuple):
    """When a response is put, and when it expires."""

    created: int
    expires: int


def put(principal: str, parts: Parts, lifetime: Lifetime, connection: DatabaseConnection) -> None:
    """Write a response in place of one of the same id."""
    number = _insert(principal, parts, lifetime, connection)
    if number is None:
        delete(principal, parts.id, lifetime.created, connection)
        number = _insert(principal, parts, lifetime, connection)
    rows = list(_rows(principal, parts))
    contents = {digest: body for *_, digest, body in rows}
    for some in _batches(list(contents), PARAMETERS):
        known = connection.execute(
            f"SELECT digest FROM stored_contents WHERE digest IN ({_places(some)})", some
        )
        for (digest,) in known.fetchall():
            del contents[digest]
    for batch in _by_size(contents.items()):
        connection.insert("stored_contents", ("digest", "body"), batch)
    numbered = ((number, position, *row[:-1]) for position, row in enumerate(rows))
    for several in _batches(numbered, ROWS):
        connection.insert("stored_items", _ITEM_COLUMNS, several)


def history(
    principal: str, response_id: str, now: float, connection: DatabaseConnection
) -> list[Part] | None:
    """Return the items of a response and of all that it continues; see `ResponseStore.history`.

    :raises InvalidRequest: they are too large for a request.
    """
    rows = connection.execute(
        """
        WITH RECURSIVE chain (id, previous, depth, size) AS (
            SELECT id, previous, 1, size FROM stored_responses
            WHERE key = :key AND expires > :now
            UNION ALL
            SELECT earlier.id, earlier.previous, chain.depth + 1, chain.size + earlier.size
            FROM chain JOIN stored_responses AS earlier ON earlier.key = chain.previous
            WHERE earlier.expires > :now AND chain.size <= :most AND chain.depth <= :links
        )
        SELECT depth, chain.size, previous IS NULL, item_id, body
        FROM chain
        LEFT JOIN stored_items ON response = chain.id AND kind <> 0
            AND (SELECT max(size) FROM chain) <= :most
        LEFT JOIN stored_contents ON digest = content
        ORDER BY depth DESC, position
        """,
        {
            "key": _key(principal, response_id),
            "now": now,
            "most": MAX_MESSAGE_BODY,
            "links": MAX_LINKS,
        },
    ).fetchall()
    if not rows:
        return None
    depth, size, is_whole, *_ = rows[0]
    if size > MAX_MESSAGE_BODY or depth > MAX_LINKS:
        raise too_large("previous_response_id")
    if not is_whole:
        return None
    return [_item(item_id, body) for *_, item_id, body in rows if body is not None]


def items(
    principal: str, ids: Sequence[str], now: float, connection: DatabaseConnection
) -> dict[str, Part]:
    """Return the items of at most `PARAMETERS` ids; see `ResponseStore.items`.

    :raises InvalidRequest: they are too large for a request.
    """
    by_key = {_key(principal, each): each for each in ids}
    found = connection.execute(
        f"""
        WITH wanted (key) AS (VALUES {", ".join(["(?)"] * len(by_key))})
        SELECT wanted.key, digest, length(body) FROM wanted JOIN stored_contents ON digest = (
            SELECT content FROM stored_items JOIN stored_responses ON id = response
            WHERE stored_items.key = wanted.key AND expires > ?
            ORDER BY response DESC, position DESC LIMIT 1
        )
        """,
        (*by_key, now),
    ).fetchall()
    if sum(size for *_, size in found) > MAX_MESSAGE_BODY:
        raise too_large("input")
    digests = list({digest for _, digest, _ in found})
    if not digests:
        return {}
    bodies = dict(
        connection.execute(
            f"SELECT digest, body FROM stored_contents WHERE digest IN ({_places(digests)})",
            digests,
        ).fetchall()
    )
    return {by_key[key]: Part(by_key[key], bodies[digest]) for key, digest, _ in found}


def get(
    principal: str, response_id: str, now: float, connection: DatabaseConnection
) -> Parts | None:
    """Return a response; ``None`` if it is not kept."""
    rows = connection.execute(
        "SELECT id, previous_id, own FROM stored_responses WHERE key = ? AND expires > ?",
        (_key(principal, response_id), now),
    ).fetchall()
    if not rows:
        return None
    ((number, previous, own),) = rows
    parts = connection.execute(
        "SELECT kind, item_id, body FROM stored_items JOIN stored_contents ON digest = content"
        " WHERE response = ? ORDER BY position",
        (number,),
    ).fetchall()
    (_, _, shared), *items = parts  # it has the first position
    inputs = [kind for kind, _, _ in items].count(INPUT)
    whole = tuple(_item(item_id, body) for _, item_id, body in items)
    return Parts(response_id, _decoded(previous), own, Part(None, shared), whole, inputs)


def delete(principal: str, response_id: str, now: float, connection: DatabaseConnection) -> bool:
    """Delete a response, expired or not; return whether it was kept."""
    found = connection.execute(
        "SELECT id, expires FROM stored_responses WHERE key = ?", (_key(principal, response_id),)
    ).fetchall()
    for number, _ in found:
        _delete(number, connection)
    return any(expires > now for _, expires in found)


def delete_expired(now: float, connection: DatabaseConnection) -> bool:
    """Delete up to `STEP` responses that have expired, the oldest first.

    :return: whether more of them may exist.
    """
    found = connection.execute(
        "SELECT id FROM stored_responses WHERE expires <= ? ORDER BY expires LIMIT ?", (now, STEP)
    ).fetchall()
    for (number,) in found:
        _delete(number, connection)
    return len(found) == STEP


def _insert(
    principal: str, parts: Parts, lifetime: Lifetime, connection: DatabaseConnection
) -> int | None:
    """Insert the row of a response; return its number, or ``None`` if there is one of its id."""
    previous = parts.previous
    inserted: list[tuple[int]] = connection.execute(
        "INSERT INTO stored_responses"
        " (key, principal, created, expires, previous, previous_id, size, own)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING RETURNING id",
        (
            _key(principal, parts.id),
            _text(principal),
            *lifetime,
            None if previous is None else _key(principal, previous),
            None if previous is None else _encoded(previous),
            parts.size,
            parts.own,
        ),
    ).fetchall()
    return inserted[0][0] if inserted else None


def _delete(number: int, connection: DatabaseConnection) -> None:
    """Delete a response, its items, and the contents that no other response has."""
    while rows := connection.execute(
        "SELECT position, content FROM stored_items WHERE response = ? ORDER BY position LIMIT ?",
        (number, PARAMETERS),
    ).fetchall():
        last = rows[-1][0]
        connection.execute(
            "DELETE FROM stored_items WHERE response = ? AND position <= ?", (number, last)
        )
        digests = list({content for _, content in rows})
        connection.execute(
            f"DELETE FROM stored_contents WHERE digest IN ({_places(digests)})"
            " AND NOT EXISTS (SELECT 1 FROM stored_items WHERE content = digest)",
            digests,
        )
    connection.execute("DELETE FROM stored_responses WHERE id = ?", (number,))


def _rows(
    principal: str, parts: Parts
) -> Iterator[tuple[int, bytes | None, bytes | None, bytes, bytes]]:
    """Yield the kind, key, id, digest and body of each part of a response."""
    shared = parts.shared.body
    yield SHARED, None, None, _digest(principal, shared), shared
    for index, item in enumerate(parts.items):
        is_input = index < parts.inputs
        encoded = None if item.id is None else _encoded(item.id)
        name = made_id(parts.id, index) if item.id is None and is_input else item.id
        key = None if name is None else _key(principal, name)
        kind = INPUT if is_input else OUTPUT
        yield kind, key, encoded, _digest(principal, item.body), item.body


def _key(principal: str, of: str) -> bytes:
    return _hash(principal, _encoded(of), 16)


def _digest(principal: str, body: bytes) -> bytes:
    return _hash(principal, body, 32)


def _hash(principal: str, content: bytes, size: int) -> bytes:
    owner = _encoded(principal)
    hashed = blake2b(b"%d:%b" % (len(owner), owner), digest_size=size)
    hashed.update(content)
    return hashed.digest()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(text: bytes | None) -> str | None:
    return None if text is None else text.decode("utf-8", "surrogatepass")


def _item(item_id: bytes | None, body: bytes) -> Part:
    return Part(_decoded(item_id), body)


def _text(principal: str) -> str:
    """Return a principal as any database can store it, for people who look into the table."""
    return principal[:256].replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def _places(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))


def _batches(values: Iterable[Any], size: int) -> Iterator[list[Any]]:  # Any: rows or their values
    remaining = iter(values)
    while batch := list(islice(remaining, size)):
        yield batch


def _by_size(contents: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    for each in contents:
        batch.append(each)
        size += len(each[1])
        if size > BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

"""The queries and lists of the Admin API. Without I/O.

Lists are paged by ``after_id`` and ``before_id``, or by ``page``, a cursor of the list's own.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

from msgspec import Struct

from tornadoproxy.errors import InvalidRequest

Document: TypeAlias = dict[str, Any]  # Any: JSON

MAX_LIMIT = 1000

_NUMBER = re.compile("[0-9]{1,9}")


class Query(Struct, frozen=True):
    """The fields of a query.

    :param fields: each name with its values; ``name[]`` is the same as ``name``.
    """

    fields: Mapping[str, Sequence[str]]

    def values(self, name: str, known: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return all values of a field that may be repeated.

        :param known: the values that it can have; ``None`` is any.
        :raises InvalidRequest: it has another one.
        """
        values = (*self.fields.get(f"{name}[]", ()), *self.fields.get(name, ()))
        if known is not None:
            one_of(name, values, known)
        return values

    def value(self, name: str, known: Sequence[str] | None = None) -> str | None:
        """Return the value of a field; ``None`` if it is absent or empty.

        :raises InvalidRequest: the field is repeated, or has a value that is not `known`.
        """
        values = [value for value in self.values(name) if value]
        if len(self.values(name)) > 1:
            raise InvalidRequest(f"{name}: send it once.")
        if known is not None:
            one_of(name, values, known)
        return values[0] if values else None

    def limit(self, default: int = 20, most: int = MAX_LIMIT) -> int:
        """Return the most items of a page.

        :raises InvalidRequest: the field is not a number from 1 to `most`.
        """
        value = self.value("limit")
        if value is None:
            return default
        if not (_NUMBER.fullmatch(value) and 1 <= int(value) <= most):
            raise InvalidRequest(f"limit: must be a whole number from 1 to {most}.")
        return int(value)

    def bounds(self) -> tuple[str | None, str | None]:
        """Return the id after which the page begins, and the one before which it ends.

        :raises InvalidRequest: the query has more than one of these, or a cursor of another list.
        """
        after, before, page = (self.value(name) for name in ("after_id", "before_id", "page"))
        if sum(each is not None for each in (after, before, page)) > 1:
            raise InvalidRequest(
                "after_id, before_id and page exclude each other; send one of them."
            )
        if page is not None:
            (after,) = cursor_key(page, str)
        return after, before

    def shown(self, ids: Sequence[str]) -> tuple[Sequence[str], bool]:
        """Return the ids of the page, and whether more follow.

        :param ids: those of the whole list, in its order.
        :raises InvalidRequest: the query names an id that is not in the list.
        """
        limit = self.limit()
        after, before = self.bounds()
        if before is not None:
            ids = ids[: _position(ids, "before_id", before)]
            return ids[-limit:], len(ids) > limit
        if after is not None:
            ids = ids[_position(ids, "after_id", after) + 1 :]
        return ids[:limit], len(ids) > limit

    def time(self, name: str) -> float | None:
        """Return a time in seconds since the epoch; ``None`` if the field is absent.

        :raises InvalidRequest: it is not an RFC 3339 timestamp with a time zone.
        """
        value = self.value(name)
        return None if value is None else parse_timestamp(name, value)


def list_document(
    items: Sequence[Document], *, has_more: bool, next_page: str | None = None
) -> Document:
    """Return the document of a page of items with ids."""
    return {
        "data": list(items),
        "has_more": has_more,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "next_page": next_page,
    }


def cursor(*key: object) -> str:
    """Return the cursor by which a client continues after the item with `key`, which is JSON."""
    return "page_" + base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def cursor_key(page: str, *types: type) -> list[Any]:  # Any: as `types` say
    """Return the key in a cursor.

    :param types: the types of the key's parts.
    :raises InvalidRequest: `page` is not such a cursor.
    """
    try:
        key = json.loads(base64.urlsafe_b64decode(page.removeprefix("page_")))
        if [type(part) for part in key] == list(types):
            return list(key)
    except (ValueError, TypeError, RecursionError, binascii.Error):
        pass
    raise InvalidRequest("page: must be next_page of the previous response, with the same query.")


def one_of(name: str, values: Sequence[str], known: Sequence[str]) -> None:
    """Refuse values that are not `known`.

    :raises InvalidRequest: there is one.
    """
    if not set(values) <= set(known):
        raise InvalidRequest(f"{name}: must be one of {', '.join(known)}.")


def only(where: str, document: Mapping[str, object], known: Sequence[str]) -> None:
    """Refuse a field that is not `known`: a misspelled one must not be ignored.

    :param where: what comes before its name in the message.
    :raises InvalidRequest: there is one.
    """
    for name in document:
        if name not in known:
            raise InvalidRequest(
                f"{where}{name[:100]}: unknown field; the fields are {', '.join(known)}."
            )


def parse_timestamp(name: str, value: str) -> float:
    """Return a time in RFC 3339 in seconds since the epoch.

    :param name: of the field, for the error.
    :raises InvalidRequest: it is none, has no time zone, or is after the year 9999 in UTC.
    """
    try:
        # a client may have left the "+" of an offset in a query as it is
        found = datetime.fromisoformat(value.replace(" ", "+"))
        if found.tzinfo is not None:
            return found.astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        pass
    raise InvalidRequest(f"{name}: must be a timestamp such as 2026-11-30T00:00:00Z.")


def timestamp(time: float) -> str:
    """Return a time in seconds since the epoch as in RFC 3339: ``2026-08-08T00:00:00.123Z``."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _position(ids: Sequence[str], field: str, wanted: str) -> int:
    try:
        return ids.index(wanted)
    except ValueError:
        raise InvalidRequest(f"{field}: no item of this list has this id.") from None

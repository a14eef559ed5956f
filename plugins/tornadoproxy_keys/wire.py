"""The JSON documents of the resource ``api_keys``. Without I/O.

They are those of Anthropic's Admin API (https://platform.claude.com/docs/en/api/admin/api_keys).
Extensions of this proxy: groups, models, limits, ``archived_at``, ``last_used_at``, and the
creation and rotation of a key, whose response has the whole ``key``, once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tornadoproxy import InvalidRequest, admin
from tornadoproxy_keys import store
from tornadoproxy_keys.store import KeyRow, Limits

MAX_TEXT = 100  # characters of a name, a group or a pattern
MAX_WORDS = 20  # groups or patterns of a key
MAX_COUNT = 10**12 - 1
MAX_GRACE = 10 * 366 * 86_400  # seconds

STATUSES = ("active", "inactive", "archived", "expired")

_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrency")
FIELDS = ("name", "groups", "models", *_LIMITS, "expires_at")

_STATUS_OF = {"live": "active", "disabled": "inactive", "revoked": "archived"}

# in SQL; each has the present time as its only parameter
CONDITIONS: Mapping[str, str] = {
    "active": "revoked IS NULL AND disabled IS NULL AND (expires IS NULL OR expires > ?)",
    "inactive": "revoked IS NULL AND disabled IS NOT NULL AND (expires IS NULL OR expires > ?)",
    "expired": "revoked IS NULL AND expires <= ?",
    "archived": "revoked <= ?",
}


def is_text(value: object) -> bool:
    """Return whether `value` can be a name, a group or a pattern."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAX_TEXT
        and value.isprintable()
        and value == value.strip()
    )


def status_of(row: KeyRow) -> str:
    """Return the status of a key in the words of the API."""
    state = row.state(time.time())
    return _STATUS_OF.get(state, state)


def key_document(row: KeyRow) -> admin.Document:
    """Return the document of a key, without its secret."""
    limits = row.limits
    return {
        "type": "api_key",
        "id": row.id,
        "name": row.name,
        "status": status_of(row),
        "created_at": admin.timestamp(row.created),
        "created_by": None,
        "expires_at": _timestamp(row.expires),
        "archived_at": _timestamp(row.revoked),
        "partial_key_hint": f"{store.PREFIX}{row.id}-...",
        "principal": {"type": "user_actor", "user_id": row.name},
        "scope": {"type": "organization"},
        "workspace_id": None,
        "groups": list(row.groups),
        "models": list(limits.models),
        **{name: getattr(limits, name) for name in _LIMITS},
    }


def changed(row: KeyRow, document: Mapping[str, Any]) -> KeyRow:
    """Return `row` with the fields of a body; those that are absent stay as they are.

    :raises InvalidRequest: a field is invalid.
    """
    limits: dict[str, Any] = {  # Any: each field has a type of its own
        name: _count(name, document[name]) for name in _LIMITS if name in document
    }
    if "models" in document:
        limits["models"] = _words("models", document["models"])
    fields: dict[str, Any] = {"limits": replace(row.limits, **limits)}
    if document.get("name") is not None:
        fields["name"] = _name(document["name"])
    if "groups" in document:
        fields["groups"] = _words("groups", document["groups"])
    if "expires_at" in document:
        fields["expires"] = _end(document["expires_at"])
    return replace(row, **fields)


def with_status(row: KeyRow, status: object) -> KeyRow:
    """Return `row` with a status; ``None`` leaves it as it is.

    :raises InvalidRequest: it is none that a key can be given.
    """
    if status is None or status == status_of(row):
        return row
    if status not in ("active", "inactive", "archived"):
        raise InvalidRequest("status: must be active, inactive or archived.")
    if row.revoked is not None:
        raise InvalidRequest("status: an archived key stays archived; create a new one.")
    now = int(time.time())
    if status == "archived":
        return replace(row, revoked=now)
    return replace(row, disabled=None if status == "active" else now)


def wanted(document: Mapping[str, Any]) -> KeyRow:
    """Return the row of the key that a body asks for, without an id.

    :raises InvalidRequest: a field is invalid, or the name is missing.
    """
    if document.get("name") is None:
        raise InvalidRequest("name: missing; it is the name of the key's owner.")
    return changed(KeyRow("", "", (), Limits(), 0, None, None), document)


def grace(document: Mapping[str, Any]) -> int:
    """Return the seconds for which the previous secrets of a rotated key stay valid.

    :raises InvalidRequest: they are invalid.
    """
    seconds = document.get("grace_seconds", 0)
    if type(seconds) is not int or not 0 <= seconds <= MAX_GRACE:
        raise InvalidRequest(f"grace_seconds: must be a whole number from 0 to {MAX_GRACE}.")
    return seconds


def _timestamp(seconds: int | None) -> str | None:
    return None if seconds is None else admin.timestamp(seconds)


def _name(value: object) -> str:
    if not is_text(value):
        raise InvalidRequest(
            f"name: must be 1 to {MAX_TEXT} printable characters, without blanks at its ends."
        )
    return str(value)


def _words(field: str, value: object) -> tuple[str, ...]:
    words = [] if value is None else value
    if not isinstance(words, list) or len(words) > MAX_WORDS or not all(map(is_text, words)):
        raise InvalidRequest(
            f"{field}: must be a list of at most {MAX_WORDS} texts, each of 1 to {MAX_TEXT} "
            "printable characters without blanks at its ends."
        )
    return tuple(dict.fromkeys(words))


def _count(field: str, value: object) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= MAX_COUNT:
        raise InvalidRequest(f"{field}: must be a whole number from 1 on, or null for no limit.")
    return value


def _end(value: object) -> int | None:
    if value is None:
        return None
    end = admin.parse_timestamp("expires_at", value if isinstance(value, str) else "")
    if end <= time.time():
        raise InvalidRequest("expires_at: must be in the future, or null for never.")
    return int(end)

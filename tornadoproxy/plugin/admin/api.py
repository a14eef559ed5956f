"""A plugin's part of the Admin API, and the requests that its resources get."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeAlias
from urllib.parse import unquote

from msgspec import Struct

from tornadoproxy.errors import Denied, InvalidRequest
from tornadoproxy.plugin.admin.query import Document, Query, only
from tornadoproxy.plugin.admin.trail import Event, Once

# what a request changes without changing the resource, or is shown once
_VOLATILE = frozenset({"key", "last_used_at", "period_to_date_spend", "spend_summary"})

Trail: TypeAlias = Callable[[int, int | None], Awaitable[Sequence[Event]]]
"""Returns up to so many events, the newest first, of those older than the one with this id."""


class Request(Struct, frozen=True):
    """An authenticated request for a resource.

    :param method: ``GET``, ``POST`` or ``DELETE``.
    :param actor: who sends it, for the audit trail: ``admin-key:ops``.
    :param query: the query.
    :param arguments: the decoded groups of the resource's path.
    :param body: the body, at most 1 MiB.
    :param may_change: whether the admin key may change anything, and not only read.
    :param if_match: the entity tag that the resource must have; ``None`` for any.
    :param once: what it has in common with its repetitions; ``None`` without an
        ``Idempotency-Key``.
    :param derive: returns 32 bytes that only this admin key and ``Idempotency-Key`` give with the
        salt that it is called with; for a secret that a repetition must show again, and that is
        stored nowhere.
    """

    method: str
    actor: str
    query: Query
    arguments: tuple[str, ...] = ()
    body: bytes = b""
    may_change: bool = False
    if_match: str | None = None
    once: Once | None = None
    derive: Callable[[bytes], bytes] | None = None

    def __repr__(self) -> str:
        # query and body may hold what no log may show
        return f"Request(method={self.method!r}, actor={self.actor!r})"

    def document(self, *known: str) -> Document:
        """Return the body as a JSON object; an absent one is empty.

        :param known: the names of its fields.
        :raises InvalidRequest: it is none, or has another field.
        """
        try:
            document = json.loads(self.body or b"{}")
        except (ValueError, RecursionError):
            raise InvalidRequest("The request body is not valid JSON.") from None
        if not isinstance(document, dict):
            raise InvalidRequest("The request body must be a JSON object.")
        only("", document, known)
        return document

    def check_match(self, current: Document) -> None:
        """Refuse a change of a resource that has changed since the client read it.

        :param current: its document, read in the transaction that changes it.
        :raises Denied: 412 (RFC 9110 §13.1.1).
        """
        if self.if_match in (None, "*"):
            return
        tags = [tag.strip() for tag in (self.if_match or "").split(",")]
        if entity_tag(current) not in tags:
            raise Denied(
                "If-Match: this resource has changed meanwhile; get it again, then decide.",
                status=412,
                error_type="invalid_request_error",
            )


class Resource(Struct, frozen=True):
    """One resource of the Admin API.

    :param path: a regular expression that must match the whole path below ``/v1/organizations/``:
        ``rooms/([^/]+)``.
    :param methods: for each method the function that serves it and returns the response's
        document. It may raise a `ProxyError`; a `DatabaseUnavailable` becomes a 503.
    """

    path: str
    methods: Mapping[str, Callable[[Request], Awaitable[Document]]]


class Resources:
    """Resources, found by path: the first one that matches."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self._resources = tuple((re.compile(each.path), each) for each in resources)

    def find(self, path: str) -> tuple[Resource, tuple[str, ...]] | None:
        """Return the resource at a path below ``/v1/organizations/``, which is percent-encoded.

        :return: with the decoded groups of its path; ``None`` if there is none.
        """
        for pattern, resource in self._resources:
            if matched := pattern.fullmatch(path):
                return resource, tuple(map(unquote, matched.groups("")))
        return None


class Person(Struct, frozen=True):
    """A person whom a plugin knows.

    :param name: the principal.
    :param groups: the groups that the principal belongs to.
    :param since: when the plugin first knew them, in seconds since the epoch.
    """

    name: str
    groups: tuple[str, ...]
    since: float


class Api(Struct, frozen=True):
    """A plugin's part of the Admin API.

    :param name: the plugin's name.
    :param resources: its resources; the first whose path matches serves a request.
    :param trails: the audit trails of their changes, by name. A change is recorded in the
        transaction that makes it.
    :param people: returns the people whom the plugin knows; ``None`` if it knows none.
    """

    name: str
    resources: tuple[Resource, ...]
    trails: Mapping[str, Trail] = {}
    people: Callable[[], Awaitable[Sequence[Person]]] | None = None


def entity_tag(document: Document) -> str:
    """Return the entity tag of a resource (RFC 9110 §8.8.3)."""
    lasting = {name: value for name, value in document.items() if name not in _VOLATILE}
    return f'"{hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:32]}"'

"""The requests of the Admin API: from the page of the whole API to a plugin's resource."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING

from tornadoproxy import (
    Attempts,
    AuthenticationFailed,
    DatabaseUnavailable,
    Denied,
    InvalidRequest,
    Page,
    PageResponse,
    admin,
)
from tornadoproxy_admin.events import AuditEvents
from tornadoproxy_admin.people import People

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tornadoproxy import IncomingRequest, PageRequest
    from tornadoproxy_admin.administrators import Administrator, Administrators

PATH = "/v1/organizations"

MAX_IDEMPOTENCY_KEY = 255  # characters
LARGE = 100  # items; more are encoded in a thread, because they would block the event loop

_ALL_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class Service:
    """The whole Admin API.

    :ivar administrators: who may use it.
    """

    def __init__(self, administrators: Administrators) -> None:
        self.administrators = administrators
        self._attempts = Attempts("wrong admin keys")
        self._resources = admin.Resources(())

    def page(self, apis: Sequence[admin.Api]) -> Page:
        """Return the page that serves the resources of `apis`, and the service's own."""
        own: tuple[admin.Resource, ...] = (
            admin.Resource("me", {"GET": _organization}),
            admin.Resource("audit_events", {"GET": AuditEvents(apis).list}),
        )
        own += People(apis).resources()
        declared = (resource for api in apis for resource in api.resources)
        self._resources = admin.Resources((*own, *declared))
        return Page(
            f"{PATH}(?:/.*)?",
            self._serve,
            _ALL_METHODS,
            public=True,
            overrides=True,
            admit=self._admit,
        )

    async def _admit(self, request: IncomingRequest) -> None:
        """Refuse a request of anybody else before its body is read."""
        self._attempts.check(request.remote_ip)
        try:
            await self.administrators.admit(request)
        except AuthenticationFailed:
            if request.candidates():
                self._attempts.count(request.remote_ip)
            raise

    async def _serve(self, page_request: PageRequest) -> PageResponse:
        incoming = page_request.incoming
        administrator = await self.administrators.admit(incoming)
        resource, arguments = self._find(incoming.path.removeprefix(PATH))
        method = "GET" if incoming.method == "HEAD" else incoming.method
        serve = resource.methods.get(method)
        if serve is None:
            raise Denied(
                f"This resource supports only {', '.join(resource.methods)}.",
                status=405,
                headers={"Allow": ", ".join(resource.methods)},
            )
        request = _request(page_request, method, administrator, arguments)
        try:
            document = await serve(request)
        except DatabaseUnavailable:
            raise Denied(
                "The database is temporarily unavailable; nothing was changed. The proxy's log "
                "says what is wrong.",
                status=503,
                retry_after=5,
            ) from None
        headers = {} if "data" in document else {"ETag": admin.entity_tag(document)}
        if len(document.get("data", ())) < LARGE:
            return PageResponse(_dumped(document), headers=headers)
        return PageResponse(await asyncio.to_thread(_dumped, document), headers=headers)

    def _find(self, path: str) -> tuple[admin.Resource, tuple[str, ...]]:
        found = self._resources.find(path.removeprefix("/"))
        if found is None:
            raise Denied(
                f"The Admin API of this proxy does not serve {PATH}{path[:200]}.", status=404
            )
        return found


def _request(
    page_request: PageRequest, method: str, administrator: Administrator, arguments: tuple[str, ...]
) -> admin.Request:
    headers, body = page_request.incoming.headers, page_request.body
    once, repeated = None, headers.get("Idempotency-Key", "").encode()
    if repeated and method == "POST":
        if len(repeated) > MAX_IDEMPOTENCY_KEY:
            raise InvalidRequest(
                f"Idempotency-Key: must be at most {MAX_IDEMPOTENCY_KEY} characters."
            )
        once = admin.Once(
            hashlib.sha256(administrator.actor.encode() + b"\0" + repeated).hexdigest(),
            hashlib.sha256(page_request.incoming.path.encode() + b"\0" + body).hexdigest(),
        )
    return admin.Request(
        method=method,
        actor=administrator.actor,
        query=admin.Query(page_request.query),
        arguments=arguments,
        body=body,
        may_change=administrator.may_change,
        if_match=headers.get("If-Match"),
        once=once,
        derive=None if once is None else lambda salt: administrator.derive(salt, repeated),
    )


async def _organization(request: admin.Request) -> admin.Document:
    return {
        "type": "organization",
        "id": "00000000-0000-0000-0000-000000000000",
        "name": "tornadoproxy",
        "actor": request.actor,
        "may_change": request.may_change,
    }


def _dumped(document: admin.Document) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()

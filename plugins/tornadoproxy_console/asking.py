"""What the console asks in the name of who is signed in.

An administrator's requests go to the Admin API's own page, with the admin key, as if they came by
HTTP: there is one check of keys, and one audit trail. A person has no admin key: what they may see
of themselves, and nothing else, is read from the same resources.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote

from msgspec.structs import replace
from tornado.httputil import HTTPHeaders

from tornadoproxy import (
    AuthenticationFailed,
    DatabaseUnavailable,
    Denied,
    Identity,
    PageRequest,
    ProxyError,
    Secret,
    admin,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence
    from typing import Any, TypeAlias

    from tornadoproxy import IncomingRequest, RunningProxy

    Query: TypeAlias = Mapping[str, str | Sequence[str]]

ORGANIZATION = "/v1/organizations/"
NOTHING: Mapping[str, Any] = {}  # Any: empty


class Person:
    """A person with a credential of their own, who sees their own usage and limits.

    :param identity: who they are.
    :param page_request: where it comes from is taken from this.
    """

    is_admin = False
    may_change = False

    def __init__(
        self,
        identity: Identity,
        resources: admin.Resources,
        proxy: RunningProxy,
        page_request: PageRequest,
    ) -> None:
        self.name = identity.principal
        self.groups = identity.groups
        self._identity = identity
        self._resources = resources
        self._proxy = proxy
        self._page_request = page_request

    async def get(self, path: str, field: str, query: Query = NOTHING) -> admin.Document | None:
        """Return the document of a resource about this person; ``None`` if there is no such one.

        :param field: of the query, that restricts it to a person.
        :raises ProxyError: the resource's own.
        """
        found = self._resources.find(path)
        if found is None:
            return None
        resource, arguments = found
        request = admin.Request(
            method="GET",
            actor=f"user:{self.name}",
            query=admin.Query({**_fields(query), field: (self.name,)}),
            arguments=arguments,
        )
        try:
            return await resource.methods["GET"](request)
        except DatabaseUnavailable:
            raise Denied(
                "The database is temporarily unavailable. Try again.", status=503, retry_after=5
            ) from None

    async def ask(self, method: str, path: str, document: object = None) -> admin.Document | None:
        """Return the document of a page for people; ``None`` if this proxy has no such page.

        :raises ProxyError: the page's own.
        """
        incoming = replace(
            self._page_request.incoming, method=method, path=path, headers=HTTPHeaders()
        )
        request = replace(self._page_request, incoming=incoming, identity=self._identity, query={})
        return await _unless_absent(_sent(self._proxy, request, document))


class Administrator:
    """A holder of an admin key.

    :param page_request: whose headers are replaced by the key's.
    """

    is_admin = True

    def __init__(self, proxy: RunningProxy, page_request: PageRequest, key: Secret) -> None:
        self._proxy = proxy
        self._page_request = page_request
        self._key = key
        self.name = ""
        self.may_change = False
        self.groups: tuple[str, ...] = ()

    async def enter(self) -> None:
        """Find out whose key it is, and whether it may change anything.

        :raises AuthenticationFailed: it is no admin key.
        """
        try:
            me = await self.ask("GET", "me")
        except ProxyError as error:
            if error.status == 404:  # there is no Admin API
                raise AuthenticationFailed("There are no admin keys.") from None
            raise
        self.name, self.may_change = me["actor"].partition(":")[2], me["may_change"]

    async def get(self, path: str, query: Query = NOTHING) -> admin.Document:
        """Return the document of a resource.

        :raises ProxyError: the Admin API's own.
        """
        return await self.ask("GET", path, query)

    async def find(self, path: str, query: Query = NOTHING) -> admin.Document | None:
        """Return the document of a resource; ``None`` if this proxy has no such resource."""
        return await _unless_absent(self.ask("GET", path, query))

    async def ask(
        self,
        method: str,
        path: str,
        query: Query = {},  # noqa: B006  # nobody changes it
        document: object = None,
        headers: Mapping[str, str] = {},
    ) -> admin.Document:
        """Return the document of the response to a request.

        :param path: below ``/v1/organizations/``, not encoded.
        :raises ProxyError: the Admin API's own.
        """
        incoming = with_credential(
            self._page_request.incoming, self._key, method, ORGANIZATION + quote(path), headers
        )
        request = replace(self._page_request, incoming=incoming, query=_fields(query))
        return await _sent(self._proxy, request, document)


def with_credential(
    request: IncomingRequest,
    credential: Secret,
    method: str,
    path: str,
    headers: Mapping[str, str] = {},
) -> IncomingRequest:
    """Return a request with nothing of `request` but where it comes from."""
    lines = HTTPHeaders({**headers, "X-Api-Key": credential.reveal().decode("latin-1")})
    return replace(request, method=method, path=path, headers=lines)


async def _sent(proxy: RunningProxy, request: PageRequest, document: object) -> admin.Document:
    """Send a request with a document, or none; return the document of the response."""
    body = b"" if document is None else json.dumps(document).encode()
    response = await proxy.ask(replace(request, body=body))
    found: admin.Document = json.loads(response.body)
    return found


async def _unless_absent(asked: Awaitable[admin.Document]) -> admin.Document | None:
    """Return the document; ``None`` if the response is 404."""
    try:
        return await asked
    except ProxyError as error:
        if error.status != 404:
            raise
        return None


def _fields(query: Query) -> dict[str, tuple[str, ...]]:
    return {
        name: (value,) if isinstance(value, str) else tuple(value) for name, value in query.items()
    }

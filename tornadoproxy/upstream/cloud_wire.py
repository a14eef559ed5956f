"""The base of wires to clouds: a credential that ends, and errors of a form of their own.

A large body is changed and signed in a thread.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from msgspec.structs import replace

from tornadoproxy.protocol.body_fields import IN_THREAD
from tornadoproxy.protocol.wire import ErrorDecoder, Wire

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tornadoproxy.protocol.wire import OutgoingRequest, ResponseDecoder, ResponseHead
    from tornadoproxy.upstream.credential import RefreshedCredential

T = TypeVar("T")


class CloudWire(Wire, Generic[T]):
    """A cloud that speaks the Anthropic API, or nearly.

    A subclass overrides `form` and `authorize`.

    :param credential: what `authorize` gets; ``None``: the upstream's API key is sent.
    :ivar request_ids: headers of a response whose value becomes its ``request-id``, if it has none.
    :ivar errors: decodes the errors.
    """

    request_ids: tuple[str, ...] = ()
    errors: type[ErrorDecoder] = ErrorDecoder

    def __init__(self, credential: RefreshedCredential[T] | None) -> None:
        self._credential = credential

    def form(self, request: OutgoingRequest) -> OutgoingRequest:
        """Return the request in the upstream's form, without its credential.

        For a large body it runs in a thread.
        """
        return request

    def authorize(self, request: OutgoingRequest, credential: T) -> OutgoingRequest:
        """Return the request with its credential; like `form`, perhaps in a thread."""
        raise NotImplementedError

    def prepare(self, request: OutgoingRequest) -> OutgoingRequest | Awaitable[OutgoingRequest]:
        """See `Wire`."""
        credential = None if self._credential is None else self._credential.current()
        if _is_large(request) or (self._credential is not None and credential is None):
            return self._prepare_later(request)
        return self._prepared(request, credential)

    async def _prepare_later(self, request: OutgoingRequest) -> OutgoingRequest:
        credential = None if self._credential is None else await self._credential.get()
        if _is_large(request):
            return await asyncio.to_thread(self._prepared, request, credential)
        return self._prepared(request, credential)

    def _prepared(self, request: OutgoingRequest, credential: T | None) -> OutgoingRequest:
        formed = self.form(request)
        # an error could not be read in a compressed response
        formed = replace(formed, headers=formed.with_headers(("Accept-Encoding", "identity")))
        return formed if credential is None else self.authorize(formed, credential)

    def read(
        self, request: OutgoingRequest, head: ResponseHead
    ) -> tuple[ResponseHead, ResponseDecoder | None]:
        """See `Wire`."""
        if head.header("request-id") is None:
            found = next((id_ for name in self.request_ids if (id_ := head.header(name))), None)
            if found is not None:
                head = head._replace(fields=head.with_fields(("request-id", found)))
        if head.status < 400 or request.method == "HEAD" or head.header("content-encoding"):
            return head, None
        return self.errors.of(head)

    async def load_credential(self) -> None:
        """See `Wire`."""
        if self._credential is not None:
            await self._credential.get()

    async def renew_credential(self) -> bool:
        """See `Wire`."""
        return self._credential is not None and await self._credential.renew()


class TokenWire(CloudWire[str]):
    """A cloud whose credential is an access token, sent as ``Authorization: Bearer``."""

    def authorize(self, request: OutgoingRequest, credential: str) -> OutgoingRequest:
        """See `CloudWire`."""
        bearer = ("Authorization", f"Bearer {credential}")
        return replace(request, headers=request.with_headers(bearer))


def _is_large(request: OutgoingRequest) -> bool:
    return request.body is not None and len(request.body) > IN_THREAD

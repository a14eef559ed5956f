"""The base of wires whose credential is an access token, and whose errors have a form of their own.

A large body is changed in a thread.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tornadoproxy.protocol.wire import ErrorDecoder, Wire

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tornadoproxy.protocol.wire import OutgoingRequest, ResponseDecoder, ResponseHead
    from tornadoproxy.upstream.credential import RefreshedCredential

IN_THREAD = 256 * 1024
"""The largest body that is changed in the event loop, in bytes."""


class TokenWire(Wire):
    """A cloud that speaks the Anthropic API, or nearly. A subclass overrides `form`.

    :param token: sent as ``Authorization: Bearer``; ``None``: the upstream's API key is sent.
    :ivar request_ids: headers of a response whose value becomes its ``request-id``, if it has none.
    """

    request_ids: tuple[str, ...] = ()

    def __init__(self, token: RefreshedCredential[str] | None) -> None:
        self._token = token

    def form(self, request: OutgoingRequest) -> OutgoingRequest:
        """Return the request in the upstream's form, without its credential.

        For a large body it runs in a thread.
        """
        return request

    def prepare(self, request: OutgoingRequest) -> OutgoingRequest | Awaitable[OutgoingRequest]:
        """See `Wire`."""
        token = None if self._token is None else self._token.current()
        if _is_large(request) or (self._token is not None and token is None):
            return self._prepare_later(request)
        return _authorized(self.form(request), token)

    async def _prepare_later(self, request: OutgoingRequest) -> OutgoingRequest:
        large = _is_large(request)
        formed = await asyncio.to_thread(self.form, request) if large else self.form(request)
        return _authorized(formed, None if self._token is None else await self._token.get())

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
        return ErrorDecoder.of(head)

    async def renew_credential(self) -> bool:
        """See `Wire`."""
        return self._token is not None and await self._token.renew()


def _is_large(request: OutgoingRequest) -> bool:
    return request.body is not None and len(request.body) > IN_THREAD


def _authorized(request: OutgoingRequest, token: str | None) -> OutgoingRequest:
    # an error could not be read in a compressed response
    added = [("Accept-Encoding", "identity")]
    if token is not None:
        added.append(("Authorization", f"Bearer {token}"))
    return replace(request, headers=request.with_headers(*added))

"""What the three kinds have in common: who signs a request, and the errors of AWS.

A large body is read and signed in a thread, since that takes some 5 ms a megabyte.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tornadoproxy import ErrorDecoder, Wire
from tornadoproxy_aws.errors import with_api_status

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from botocore.credentials import ReadOnlyCredentials

    from tornadoproxy import OutgoingRequest, ResponseDecoder, ResponseHead
    from tornadoproxy_aws.signing import Signer

IN_THREAD = 256 * 1024
"""The largest body that is read and signed in the event loop, in bytes."""


class AWSWire(Wire):
    """A service of AWS that speaks the Anthropic API, or nearly.

    :param signer: signs the requests; ``None``: the upstream's API key authenticates them.
    """

    def __init__(self, signer: Signer | None) -> None:
        self._signer = signer
        self.needs_body = signer is not None

    def form(self, request: OutgoingRequest) -> OutgoingRequest:
        """Return the request in the upstream's form, before it is signed."""
        return request

    def prepare(self, request: OutgoingRequest) -> OutgoingRequest | Awaitable[OutgoingRequest]:
        """See `Wire`."""
        signer = self._signer
        present = None if signer is None else signer.credentials.current()
        if _is_large(request) or (signer is not None and present is None):
            return self._prepare_later(request)
        return self._formed_and_signed(request, present)

    async def _prepare_later(self, request: OutgoingRequest) -> OutgoingRequest:
        loaded = None if self._signer is None else await self._signer.credentials.get()
        if _is_large(request):
            return await asyncio.to_thread(self._formed_and_signed, request, loaded)
        return self._formed_and_signed(request, loaded)

    def _formed_and_signed(
        self, request: OutgoingRequest, credentials: ReadOnlyCredentials | None
    ) -> OutgoingRequest:
        formed = self.form(request)
        if self._signer is None:
            return formed
        assert credentials is not None
        return self._signer.sign(formed, credentials)

    def read(
        self, request: OutgoingRequest, head: ResponseHead
    ) -> tuple[ResponseHead, ResponseDecoder | None]:
        """See `Wire`."""
        request_id = head.header("x-amzn-requestid")
        if request_id is not None and head.header("request-id") is None:
            head = head._replace(fields=head.with_fields(("Request-Id", request_id)))
        if head.status < 400 or request.method == "HEAD" or head.header("content-encoding"):
            return head, None
        return ErrorDecoder.of(with_api_status(head))

    async def renew_credential(self) -> bool:
        """See `Wire`."""
        return self._signer is not None and await self._signer.credentials.renew()


def _is_large(request: OutgoingRequest) -> bool:
    return request.body is not None and len(request.body) > IN_THREAD

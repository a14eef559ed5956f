"""What the three kinds have in common: signatures, and the errors of AWS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy import CloudWire
from tornadoproxy_aws.errors import with_api_status

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials

    from tornadoproxy import OutgoingRequest, ResponseDecoder, ResponseHead
    from tornadoproxy_aws.signing import Signer


class AWSWire(CloudWire["ReadOnlyCredentials"]):
    """A service of AWS that speaks the Anthropic API, or nearly.

    :param signer: signs the requests; ``None``: the upstream's API key authenticates them.
    """

    request_ids = ("x-amzn-requestid",)

    def __init__(self, signer: Signer | None) -> None:
        super().__init__(None if signer is None else signer.credentials)
        self._signer = signer
        self.needs_body = signer is not None

    def authorize(
        self, request: OutgoingRequest, credential: ReadOnlyCredentials
    ) -> OutgoingRequest:
        """See `CloudWire`."""
        assert self._signer is not None
        return self._signer.sign(request, credential)

    def read(
        self, request: OutgoingRequest, head: ResponseHead
    ) -> tuple[ResponseHead, ResponseDecoder | None]:
        """See `Wire`."""
        return super().read(request, with_api_status(head))

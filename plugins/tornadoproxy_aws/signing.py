"""AWS Signature Version 4, by botocore's signer, over a request as it is sent.

The host, the path, the query, the body and those headers are signed that decide what the request
does. The core adds ``Via`` and the framing afterwards, and every proxy in between may change
hop-by-hop and forwarding headers: none of these is signed.

Source: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from msgspec.structs import replace

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials

    from tornadoproxy import BaseURL, OutgoingRequest, RefreshedCredential

_SIGNED = ("anthropic-", "x-amz")
_OF_SIGNATURES = ("Authorization", "Date", "X-Amz-Content-SHA256", "X-Amz-Date")
_TOKEN = "X-Amz-Security-Token"  # noqa: S105  # a header's name


class Signer:
    """Signs the requests to one upstream.

    :param base_url: the upstream's.
    :param service: the service's name in signatures.
    :ivar credentials: what it signs with.
    """

    def __init__(
        self,
        base_url: BaseURL,
        service: str,
        region: str,
        credentials: RefreshedCredential[ReadOnlyCredentials],
    ) -> None:
        self.credentials = credentials
        self._base_url = base_url
        self._service = service
        self._region = region

    def sign(self, request: OutgoingRequest, credentials: ReadOnlyCredentials) -> OutgoingRequest:
        """Return the request with its signature; its body must be whole.

        :param credentials: those of `credentials` that are valid now.
        """
        plain = replace(request, headers=request.with_headers(without=(*_OF_SIGNATURES, _TOKEN)))
        signed = AWSRequest(
            method=plain.method,
            url=f"{self._base_url}{plain.target}",
            headers={"Host": self._base_url.authority, **_headers_to_sign(plain)},
            data=plain.body or b"",
        )
        SigV4Auth(credentials, self._service, self._region).add_auth(signed)
        names = ("X-Amz-Date", _TOKEN, "Authorization")
        added = [(name, signed.headers[name]) for name in names if name in signed.headers]
        return replace(plain, headers=plain.with_headers(*added))


def _headers_to_sign(request: OutgoingRequest) -> dict[str, str]:
    """Return the client's headers that are signed: ASCII, whose bytes nobody reads differently."""
    names = {name.lower() for name, _ in request.headers}
    values = {
        name: request.header(name) or ""
        for name in names
        if name == "content-type" or name.startswith(_SIGNED)
    }
    return {name: value for name, value in values.items() if value.isascii()}

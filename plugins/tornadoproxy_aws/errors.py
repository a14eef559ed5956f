"""Errors of AWS: the status that each has in the Anthropic API, from which its type follows.

Sources: the errors of ``InvokeModel`` and ``InvokeModelWithResponseStream`` in
https://docs.aws.amazon.com/bedrock/latest/APIReference/, and
https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tornadoproxy import ResponseHead

_STATUSES = {
    "AccessDeniedException": 403,
    "InternalServerException": 500,
    "ModelErrorException": 500,
    "ModelNotReadyException": 529,
    "ModelStreamErrorException": 500,
    "ModelTimeoutException": 504,
    "ResourceNotFoundException": 404,
    "ServiceQuotaExceededException": 429,
    "ServiceUnavailableException": 503,
    "ThrottlingException": 429,
    "ValidationException": 400,
    # the proxy's own credential, which AWS refuses with 400 and 403
    "ExpiredTokenException": 401,
    "IncompleteSignature": 401,
    "IncompleteSignatureException": 401,
    "InvalidClientTokenId": 401,
    "InvalidSignatureException": 401,
    "MissingAuthenticationToken": 401,
    "MissingAuthenticationTokenException": 401,
    "UnrecognizedClientException": 401,
}


def with_api_status(head: ResponseHead) -> ResponseHead:
    """Return the head of a response; that of an error has the Anthropic API's status for it."""
    # ThrottlingException:http://internal.amazon.com/coral/com.amazon.bedrock/
    name = (head.header("x-amzn-errortype") or "").partition(":")[0]
    status = _STATUSES.get(name, head.status)
    return head if status == head.status else head._replace(status=status, reason="")


def status_of_event(name: str) -> int:
    """Return the same for an error within a stream, whose name begins in lower case."""
    return _STATUSES.get(name[:1].upper() + name[1:], 500)

"""The Anthropic API of a Foundry resource, without what it lacks.

Sources: the package anthropic, ``anthropic/lib/foundry.py``, and
https://platform.claude.com/docs/en/build-with-claude/claude-in-microsoft-foundry
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tornadoproxy import ErrorDecoder, TokenWire

if TYPE_CHECKING:
    from tornadoproxy import OutgoingRequest, RefreshedCredential, Secret

_lacks = re.compile(r"/v1/(models|messages/batches|organizations)(/.*)?").fullmatch


class FoundryErrors(ErrorDecoder):
    """The errors of Foundry."""

    def message_of(self, document: object) -> str | None:
        """See `ErrorDecoder`."""
        message = super().message_of(document)
        error = document.get("error") if isinstance(document, dict) else None
        if isinstance(error, dict) and error.get("code") == "DeploymentNotFound":
            return f"model: {message}"
        return message


class FoundryWire(TokenWire):
    """One resource; a model's name is that of its deployment.

    :param api_key: sent as ``api-key`` as well, as the package anthropic does.
    """

    request_ids = ("apim-request-id", "x-ms-request-id")
    errors = FoundryErrors

    def __init__(self, token: RefreshedCredential[str] | None, api_key: Secret | None) -> None:
        super().__init__(token)
        self._api_key = api_key

    def serves(self, method: str, path: str) -> bool:
        """See `Wire`."""
        return _lacks(path) is None

    def form(self, request: OutgoingRequest) -> OutgoingRequest:
        """See `TokenWire`."""
        if self._api_key is None:
            return request
        key = self._api_key.reveal().decode("latin-1")
        return replace(request, headers=request.with_headers(("api-key", key)))

"""The Anthropic API on AWS: Amazon Bedrock's ``mantle`` endpoint and Claude Platform on AWS.

Requests and responses are those of the Anthropic API; they are signed, and a header or two differ.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tornadoproxy import read_fields, write_fields
from tornadoproxy_aws.wire import AWSWire

if TYPE_CHECKING:
    from tornadoproxy import OutgoingRequest
    from tornadoproxy_aws.signing import Signer

USER_PROFILE = "anthropic-user-profile-id"

_SERVED_BY_MANTLE = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
_ACTION_URLS = re.compile(r"/v1/user_profiles/[^/]+/action_urls/?").fullmatch


class MantleWire(AWSWire):
    """Bedrock's Anthropic API, which reads the user profile in the body."""

    def serves(self, method: str, path: str) -> bool:
        """See `Wire`. AWS documents messages and count_tokens there, and no other."""
        return method == "POST" and path.rstrip("/") in _SERVED_BY_MANTLE

    def form(self, request: OutgoingRequest) -> OutgoingRequest:
        """See `CloudWire`."""
        profile = request.header(USER_PROFILE)
        if profile is None or request.body is None:
            return request
        fields = read_fields(request.body)
        fields.setdefault("user_profile_id", json.dumps(profile).encode())
        headers = request.with_headers(without=(USER_PROFILE,))
        return replace(request, headers=headers, body=write_fields(fields))


class PlatformWire(AWSWire):
    """Claude Platform on AWS, where each request names its workspace.

    :param workspace: its id.
    """

    def __init__(self, signer: Signer | None, workspace: str) -> None:
        super().__init__(signer)
        self._workspace = workspace

    def serves(self, method: str, path: str) -> bool:
        """See `Wire`."""
        return _ACTION_URLS(path) is None

    def form(self, request: OutgoingRequest) -> OutgoingRequest:
        """See `CloudWire`."""
        headers = request.with_headers(("Anthropic-Workspace-Id", self._workspace))
        return replace(request, headers=headers)

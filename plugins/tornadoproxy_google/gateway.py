"""Claude on Google Cloud, managed by Anthropic: the Anthropic API below a path of its own.

Source: the package anthropic, ``anthropic/lib/google_cloud/_client.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from tornadoproxy import TokenWire

if TYPE_CHECKING:
    from tornadoproxy import OutgoingRequest, RefreshedCredential

_OF_ORGANIZATION = ("/v1/organizations/", "/v1/user_profiles/")


class GoogleCloudWire(TokenWire):
    """The API of one workspace; what belongs to the organization has another path.

    :param location: the path of project and location, without a slash at its ends.
    """

    request_ids = ("x-goog-request-id",)

    def __init__(
        self, token: RefreshedCredential[str] | None, location: str, workspace: str
    ) -> None:
        super().__init__(token)
        self._organization = f"/v1/{location}/claudeOrganization/invoke"
        self._workspace = f"/v1/{location}/workspaces/{workspace}/invoke"

    def form(self, request: OutgoingRequest) -> OutgoingRequest:
        """See `TokenWire`."""
        path = request.target.partition("?")[0]
        is_workspace = not f"{path}/".startswith(_OF_ORGANIZATION)
        before = self._workspace if is_workspace else self._organization
        return replace(request, target=before + request.target)

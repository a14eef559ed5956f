"""``GET /managed/settings``: Claude Code's settings for a person, by the policy of a group.

Claude Code does not start if this responds with anything but 200, 304 or 404. It is therefore
served from memory, needs neither the database nor the provider, and has no limit of rate: a bearer
is verified by its signature, and by the revocations that are known.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tornadoproxy import AuthenticationFailed, Page, PageRequest, PageResponse
from tornadoproxy_oidc.tokens import unverified

if TYPE_CHECKING:
    from collections.abc import Callable

    from tornadoproxy_oidc.policies import Policies
    from tornadoproxy_oidc.sessions import Sessions

_NONE = {"type": "not_found_error", "message": "No settings are managed for your groups."}


class ManagedSettingsPage:
    """The page.

    :param policies: returns the present policies.
    """

    def __init__(self, sessions: Sessions, policies: Callable[[], Policies]) -> None:
        self._sessions = sessions
        self._policies = policies

    def page(self) -> Page:
        """Return the page. It is public because it authenticates by itself."""
        return Page("/managed/settings", self._serve, public=True)

    def _serve(self, request: PageRequest) -> PageResponse:
        for candidate in request.incoming.candidates():
            seen = unverified(candidate.reveal())
            if seen is not None:
                break
        else:
            raise AuthenticationFailed("This page needs the bearer of a sign-in: run /login.")
        person = self._sessions.person_offline(seen)
        settings = self._policies().of(person.groups).settings
        if settings is None:
            body = json.dumps({"type": "error", "error": _NONE}).encode()
            return PageResponse(body, status=404)
        headers = {"ETag": settings.etag, "Vary": "Authorization"}
        known = request.incoming.headers.get("If-None-Match", "")
        if settings.etag in (each.strip().removeprefix("W/") for each in known.split(",")):
            return PageResponse(b"", status=304, headers=headers)
        return PageResponse(settings.body, headers=headers)

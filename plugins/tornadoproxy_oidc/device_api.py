"""What Claude Code calls to sign in: discovery, device authorization, token and revocation.

Claude Code gives up a sign-in at the first 5xx of a poll, so no response to a poll is one:
while the database cannot be used, the sign-in is pending.

Sources: RFC 6749, RFC 7009, RFC 8414, RFC 8628.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

from tornadoproxy import Attempts, DatabaseUnavailable, Page, PageRequest, PageResponse
from tornadoproxy_oidc.provider import ProviderUnavailable
from tornadoproxy_oidc.sessions import GRANT_LIFE, SessionEnded, Tokens
from tornadoproxy_oidc.tokens import unverified

if TYPE_CHECKING:
    from tornadoproxy_oidc.sessions import Sessions

INTERVAL = 5
"""Seconds between two polls."""

POLL_TIMEOUT = 4.0
"""Seconds for a poll, less than ``PLUGIN_TIMEOUT``, after which the sign-in is pending."""

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"

# without vowels and what is easily confused; 20 to the power of 8 is 25 billion
_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"

_DESCRIPTIONS = {
    "authorization_pending": "Nobody has approved this sign-in yet.",
    "slow_down": "Too many requests: wait longer between two.",
    "access_denied": "The sign-in was denied in the browser.",
    "expired_token": "The sign-in has expired, or was completed before: begin a new one.",
}


class DeviceApi:
    """The endpoints.

    :param base: the public URL.
    :param notice: shown by Claude Code; ``None`` shows nothing.
    :param tells_email: whether a device gets the e-mail address, for the person to confirm.
    """

    def __init__(
        self, sessions: Sessions, base: str, notice: str | None, *, tells_email: bool
    ) -> None:
        self._sessions = sessions
        self._base = base
        self._notice = notice
        self._tells_email = tells_email
        # a poll may come early by what the network varies
        self._polls = Attempts("polls", 2, 2 * INTERVAL - 2)

    def pages(self) -> tuple[Page, ...]:
        """Return the endpoints, all of them public."""
        well_known = "/.well-known/oauth-authorization-server"
        return (
            Page(well_known.replace(".", r"\."), self._discovery, public=True),
            Page("/oauth/device_authorization", self._begin, ("POST",), public=True),
            Page("/oauth/token", self._token, ("POST",), public=True),
            Page("/oauth/revoke", self._revoke, ("POST",), public=True),
        )

    def _discovery(self, _request: PageRequest) -> PageResponse:
        return _json(
            {
                "issuer": self._base,
                "device_authorization_endpoint": f"{self._base}/oauth/device_authorization",
                "token_endpoint": f"{self._base}/oauth/token",
                "revocation_endpoint": f"{self._base}/oauth/revoke",
                "grant_types_supported": [DEVICE_GRANT, "refresh_token"],
                "response_types_supported": [],
                "token_endpoint_auth_methods_supported": ["none"],
                "revocation_endpoint_auth_methods_supported": ["none"],
                "scopes_supported": ["openid", "profile", "email"],
                "gateway_protocol_version": 1,
            }
        )

    async def _begin(self, request: PageRequest) -> PageResponse:
        try:
            begun = await self._sessions.begin(request.incoming.remote_ip, _user_code())
        except DatabaseUnavailable:
            return _unavailable()
        if begun is None:
            return _error(
                "slow_down", "Too many sign-ins from your address: wait ten minutes.", 429
            )
        device_code, grant = begun
        page = f"{self._base}/device"
        response: dict[str, Any] = {  # Any: JSON
            "device_code": device_code,
            "user_code": grant.user_code,
            "verification_uri": page,
            "verification_uri_complete": f"{page}?user_code={quote(grant.user_code)}",
            "expires_in": GRANT_LIFE,
            "interval": INTERVAL,
        }
        if self._notice is not None:
            response["login_notice"] = self._notice
        return _json(response)

    async def _token(self, request: PageRequest) -> PageResponse:
        form = form_of(request)
        kind = form.get("grant_type")
        if kind == DEVICE_GRANT and (code := form.get("device_code")):
            return await self._poll(code)
        if kind == "refresh_token" and (token := form.get("refresh_token")):
            return await self._refresh(token)
        if kind in (None, DEVICE_GRANT, "refresh_token"):
            return _error("invalid_request", "The request lacks its grant_type, or its code.")
        return _error("unsupported_grant_type", f"Use {DEVICE_GRANT} or refresh_token.")

    async def _poll(self, code: str) -> PageResponse:
        if self._polls.wait(code[:64]):
            return _error("slow_down", status=429)
        self._polls.count(code[:64])
        try:
            async with asyncio.timeout(POLL_TIMEOUT):
                found = await self._sessions.poll(code)
        except (DatabaseUnavailable, TimeoutError):
            found = "authorization_pending"
        return _error(found) if isinstance(found, str) else self._tokens(found)

    async def _refresh(self, token: str) -> PageResponse:
        try:
            return self._tokens(await self._sessions.refresh(token))
        except SessionEnded:
            return _error("invalid_grant", "The session has ended: run /login.", 401)
        except (ProviderUnavailable, DatabaseUnavailable):
            return _unavailable()

    async def _revoke(self, request: PageRequest) -> PageResponse:
        token = form_of(request).get("token")
        if token is None:
            return _error("invalid_request", "The request lacks its token.")
        try:
            await self._sessions.revoke(token, unverified(token.encode()))
        except DatabaseUnavailable:
            return _unavailable()
        return PageResponse(b"")  # whether the token was valid or not (RFC 7009 §2.2)

    def _tokens(self, tokens: Tokens) -> PageResponse:
        response: dict[str, Any] = {  # Any: JSON
            "access_token": tokens.bearer,
            "token_type": "Bearer",
            "expires_in": self._sessions.sealer.lifetime,
        }
        if tokens.refresh_token is not None:
            response["refresh_token"] = tokens.refresh_token
        if self._tells_email and (email := tokens.person.get("email")):
            response["email"] = email
        return _json(response)


def _user_code() -> str:
    letters = "".join(secrets.choice(_LETTERS) for _ in range(8))
    return f"{letters[:4]}-{letters[4:]}"


def form_of(request: PageRequest) -> dict[str, str]:
    """Return the fields of a form that are sent once; a repeated one counts as absent."""
    fields = parse_qs(request.body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[0] for name, values in fields.items() if len(values) == 1}


def _error(code: str, description: str | None = None, status: int = 400) -> PageResponse:
    text = description or _DESCRIPTIONS[code]
    return _json({"error": code, "error_description": text}, status)


def _unavailable() -> PageResponse:
    return _error("temporarily_unavailable", "Sign-in is not possible at present: try again.", 503)


def _json(document: dict[str, Any], status: int = 200) -> PageResponse:
    return PageResponse(
        json.dumps(document).encode(), status=status, headers={"Pragma": "no-cache"}
    )

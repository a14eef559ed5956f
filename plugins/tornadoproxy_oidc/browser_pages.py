"""What a person sees in the browser: the approval of a device, and the way to the provider.

Another plugin's page, such as the web console, signs people in the same way: in place of a device
that polls, the page asks once the browser is back.

The person compares the code with the one on the device and continues to the provider; a sealed
cookie binds what comes back to this browser, to this device, and to the provider's response. No
page leads anywhere but to the provider.

Against forged requests a form counts only if the browser says that this origin sent it
(``Sec-Fetch-Site``, or ``Origin`` in old browsers).
"""

from __future__ import annotations

import re
import secrets
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tornadoproxy import (
    Attempts,
    AuthenticationFailed,
    DatabaseUnavailable,
    Denied,
    Page,
    PageRequest,
    PageResponse,
    SignedIn,
    SignInWay,
)
from tornadoproxy_oidc import html
from tornadoproxy_oidc.browser_session import BrowserSession
from tornadoproxy_oidc.device_api import form_of
from tornadoproxy_oidc.people import InvalidClaims
from tornadoproxy_oidc.provider import ProviderUnavailable
from tornadoproxy_oidc.relying_party import ProviderRefused
from tornadoproxy_oidc.sessions import GRANT_LIFE

if TYPE_CHECKING:
    from tornadoproxy import IncomingRequest
    from tornadoproxy_oidc.sessions import Sessions
    from tornadoproxy_oidc.store import Document, Grant

MAX_CODES = 10
"""Codes that an address may submit within `GRANT_LIFE` seconds."""

DOWN = ("Try again in a minute", "Sign-in is not possible at present.")
UNKNOWN = (
    "Code not recognized",
    "The code is mistyped, was used, or is older than ten minutes. Begin again on your device.",
)
FORGED = ("Not accepted", "This request came from another site. Type the code on this page.")
ELSEWHERE = (
    "Not begun here",
    "This sign-in was not begun in this browser, or took too long. Begin again.",
)


class BrowserPages:
    """The pages.

    :param base: the public URL.
    """

    def __init__(self, sessions: Sessions, base: str) -> None:
        self._sessions = sessions
        parts = urlsplit(base)
        self._host = parts.netloc
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._path = parts.path
        secure = parts.scheme == "https"
        # the prefix keeps other hosts of the domain from setting it (RFC 6265bis §4.1.3.2)
        self._cookie = "__Host-tp-device" if secure else "tp-device"
        self._attributes = f"Path=/; HttpOnly; SameSite=Lax{'; Secure' if secure else ''}"
        self._codes = Attempts("codes", MAX_CODES, GRANT_LIFE)

    def way(self, title: str) -> SignInWay:
        """Return the way to sign in for the pages of other plugins.

        :param title: what people know the provider by.
        """
        return SignInWay("oidc", title, self._begin, self._signed_in)

    def pages(self) -> tuple[Page, ...]:
        """Return the pages, all of them public."""
        return (
            Page("/device", self._device, ("GET", "POST"), public=True),
            Page("/device/deny", self._deny, ("POST",), public=True),
            Page("/oauth/callback", self._callback, public=True),
        )

    async def _begin(self, request: PageRequest, back: str) -> PageResponse:
        """Lead a browser to the provider for another page; see `SignInWay.begin`.

        :raises Denied: the browser uses another host, or its address has begun too many sign-ins.
        """
        if urlsplit(request.base_url).netloc != self._host:
            raise Denied(
                f"This way to sign in is at {self._origin} only: open this page there.", status=400
            )
        # nobody can type this code, so that no other page approves the sign-in
        nothing = secrets.token_urlsafe(16)
        try:
            begun = await self._sessions.begin(request.incoming.remote_ip, nothing)
        except DatabaseUnavailable:
            raise Denied(DOWN[1], status=503) from None
        if begun is None:
            raise Denied("Too many sign-ins from your address: wait ten minutes.", status=429)
        code, grant = begun
        return await self._to_provider(grant, code=code, back=back)

    async def _signed_in(self, request: PageRequest, seconds: int) -> SignedIn:
        """Return who has signed in; see `SignInWay.finish`.

        :raises AuthenticationFailed: nobody has in this browser, or it is done already.
        :raises Denied: 503, the database cannot be used.
        """
        kept = self._kept(request.incoming)
        if kept is None or "code" not in kept:
            raise AuthenticationFailed(ELSEWHERE[1])
        try:
            tokens = await self._sessions.poll(kept["code"], seconds)
        except DatabaseUnavailable:
            raise Denied(DOWN[1], status=503) from None
        if isinstance(tokens, str):
            raise AuthenticationFailed(ELSEWHERE[1])
        session = BrowserSession(self._sessions, tokens)
        return SignedIn(session.credential, session.end)

    async def _device(self, request: PageRequest) -> PageResponse:
        if request.incoming.method == "POST":
            return await self._continue(request)
        (code, *_) = request.query.get("user_code", ("",))
        user_code = _user_code(code)
        # a look-up tells whether a code exists, so that it counts as an attempt
        grant = None if user_code is None else await self._waiting(request, user_code)
        if isinstance(grant, PageResponse):
            return grant
        return html.form(f"{self._path}/device", grant, request.incoming.remote_ip)

    async def _continue(self, request: PageRequest) -> PageResponse:
        """Send a person who has confirmed the code to the provider."""
        grant = await self._submitted(request)
        return grant if isinstance(grant, PageResponse) else await self._to_provider(grant)

    async def _to_provider(self, grant: Grant, **kept: str) -> PageResponse:
        """Return the page that leads to the provider.

        :param kept: what the cookie keeps besides.
        """
        try:
            begun = await self._sessions.party.begin()
        except ProviderUnavailable:
            return html.message(*DOWN, status=503)
        kept |= {
            "device": grant.device.hex(),
            "state": begun.state,
            "nonce": begun.nonce,
            "verifier": begun.verifier,
        }
        until = int(time.time()) + GRANT_LIFE
        cookie = self._sessions.sealer.seal("browser", {**kept, "until": until})
        return html.leave(
            begun.url, f"{self._cookie}={cookie}; Max-Age={GRANT_LIFE}; {self._attributes}"
        )

    async def _deny(self, request: PageRequest) -> PageResponse:
        grant = await self._submitted(request)
        if isinstance(grant, PageResponse):
            return grant
        try:
            await self._sessions.deny(grant.device)
        except DatabaseUnavailable:
            return html.message(*DOWN, status=503)
        return html.message("Denied", "The device was not signed in. You can close this window.")

    async def _submitted(self, request: PageRequest) -> Grant | PageResponse:
        """Return the grant whose code a form of this page submits."""
        if not self._is_ours(request.incoming):
            return html.message(*FORGED, status=403)
        user_code = _user_code(form_of(request).get("user_code", ""))
        if user_code is None:
            return html.message(*UNKNOWN)
        return await self._waiting(request, user_code)

    async def _waiting(self, request: PageRequest, user_code: str) -> Grant | PageResponse:
        if self._codes.wait(request.incoming.remote_ip):
            return html.message(
                "Too many codes", "Wait ten minutes before you try another one.", status=429
            )
        self._codes.count(request.incoming.remote_ip)
        try:
            grant = await self._sessions.pending(user_code)
        except DatabaseUnavailable:
            return html.message(*DOWN, status=503)
        return html.message(*UNKNOWN) if grant is None else grant

    async def _callback(self, request: PageRequest) -> PageResponse:
        """Take what the provider sends the browser back with."""
        forget = f"{self._cookie}=; Max-Age=0; {self._attributes}"
        kept = self._kept(request.incoming)
        try:
            title, text, status = await self._finish(request, kept)
        except (ProviderUnavailable, DatabaseUnavailable):
            title, text, status = *DOWN, 503
        if kept is not None and "back" in kept and status == 200:
            return html.leave(kept["back"])
        return html.message(title, text, status=status, cookie=forget)

    async def _finish(self, request: PageRequest, kept: Document | None) -> tuple[str, str, int]:
        query = {name: values[0] for name, values in request.query.items() if len(values) == 1}
        if kept is None or query.get("state") != kept["state"]:
            return (*ELSEWHERE, 400)
        device = bytes.fromhex(kept["device"])
        party = self._sessions.party
        try:
            await party.check_issuer(query.get("iss"))
            if "error" in query or "code" not in query:
                await self._sessions.deny(device)
                return "Not signed in", "Your identity provider did not sign you in.", 403
            signed_in = await party.finish(query["code"], kept["verifier"], kept["nonce"])
            if not await self._sessions.approve(device, signed_in):
                return (*ELSEWHERE, 400)
        except ProviderRefused:
            return "Not signed in", "Your identity provider's response is not valid.", 400
        except (InvalidClaims, Denied) as refusal:
            await self._sessions.deny(device)
            text = str(refusal)
            if isinstance(refusal, InvalidClaims):
                text = f"Your identity provider's response is unusable: {text}."
            return "Not signed in", text, 403
        name = signed_in.person.get("email") or signed_in.person["sub"]
        return (
            "You are signed in",
            f"Return to your device, {name}. You can close this window.",
            200,
        )

    def _kept(self, request: IncomingRequest) -> Document | None:
        """Return what the cookie of this browser keeps of the sign-in that it has begun."""
        for pair in "; ".join(request.headers.get_list("Cookie")).split("; "):
            name, _, value = pair.partition("=")
            if name == self._cookie:
                kept = self._sessions.sealer.opened("browser", value)
                return kept if kept is not None and kept["until"] > time.time() else None
        return None

    def _is_ours(self, request: IncomingRequest) -> bool:
        site = request.headers.get("Sec-Fetch-Site")
        if site is not None:
            return site == "same-origin"
        return request.headers.get("Origin") == self._origin


def _user_code(text: str) -> str | None:
    """Return a code as it is stored, however a person types it; ``None`` if it is none."""
    letters = re.sub(r"[\s-]", "", text).upper()
    return f"{letters[:4]}-{letters[4:]}" if re.fullmatch(r"[B-Z]{8}", letters) else None

"""Asks a service over HTTP who a credential belongs to: OAuth 2.0 Token Introspection (RFC 7662).

The service gets ``token=…`` as a form. It answers ``{"active": true, "sub": "alice"}``, perhaps
with ``groups`` and ``exp``, or ``{"active": false}``. Whatever else it answers, and whatever goes
wrong, refuses the request: 503.

A yes is remembered for a short time, under a hash of the credential; a no is not, so that whoever
has just been let in by the service is let in here. Requests with one credential that come while
the service is being asked about it wait for the same answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from tornado.httpclient import AsyncHTTPClient

from tornadoproxy import (
    INACTIVE,
    AuthenticationFailed,
    Identity,
    Inactive,
    IncomingRequest,
    Secret,
    Setting,
    Settings,
    hookimpl,
    parsers,
)

MAX_REMEMBERED = 10_000  # credentials
MAX_CALLS = 100  # at once


def _url(value: str) -> str:
    if not value.startswith(("https://", "http://")):
        raise ValueError("must begin with https://, as https://login.example.com/introspect does")
    return parsers.text(value)


URL: Setting[str] = Setting(
    "AUTH_SERVICE_URL",
    _url,
    default="",
    help="Where the authentication service is asked about a credential.",
)
KEY: Setting[Secret | None] = Setting(
    "AUTH_SERVICE_KEY",
    parsers.secret,
    default=None,
    help="The key by which the authentication service knows this proxy.",
    secret=True,
)
TIMEOUT: Setting[float] = Setting(
    "AUTH_SERVICE_TIMEOUT",
    parsers.seconds(minimum=0.001),
    default=3.0,
    help="Seconds that the authentication service may take; keep it below PLUGIN_TIMEOUT.",
)
CACHE_SECONDS: Setting[float] = Setting(
    "AUTH_SERVICE_CACHE_SECONDS",
    parsers.seconds(),
    default=30.0,
    help="Seconds for which a yes of the authentication service is remembered; 0 is not at all.",
)


class Response(msgspec.Struct):
    """What the service answers. A text where a list is asked for is no list of its letters."""

    active: bool
    sub: str = ""
    groups: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...] = ()
    exp: float = float("inf")


class AuthService:
    """Knows people by what the service says of their credentials."""

    def __init__(self) -> None:
        self._settings: Settings | None = None
        self._client: AsyncHTTPClient | None = None
        self._remembered: dict[bytes, tuple[Identity, float]] = {}
        self._asked: dict[bytes, asyncio.Task[Identity | None]] = {}

    @hookimpl
    def declare_settings(self) -> tuple[Setting[Any], ...]:  # Any: each has a type of its own
        return URL, KEY, TIMEOUT, CACHE_SECONDS

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        if not settings[URL]:
            return INACTIVE
        self._settings = settings
        self._remembered.clear()
        return f"whoever {settings[URL]} vouches for"

    @hookimpl
    def startup(self) -> None:
        # of our own: the shared one may have been configured by somebody else
        self._client = AsyncHTTPClient(force_instance=True, max_clients=MAX_CALLS)

    @hookimpl
    async def authenticate(self, request: IncomingRequest) -> Identity | None:
        candidates = request.candidates()
        for candidate in candidates:
            if identity := await self._identity(candidate):
                return identity
        if candidates:
            raise AuthenticationFailed("This credential is not known, or is no longer valid.")
        return None

    @hookimpl
    async def shutdown(self) -> None:
        if self._asked:  # calls that nobody waits for any more; their deadline ends them
            await asyncio.wait(self._asked.values())
        if self._client is not None:
            self._client.close()

    async def _identity(self, credential: Secret) -> Identity | None:
        key = hashlib.sha256(credential.reveal()).digest()
        identity, until = self._remembered.get(key, (None, 0.0))
        if time.time() < until:
            return identity
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.create_task(self._ask(credential, key))
            task.add_done_callback(lambda done: self._answered(key, done))
        # one whose time is up does not end the call for those who wait for it, too
        return await asyncio.shield(task)

    def _answered(self, key: bytes, task: asyncio.Task[Identity | None]) -> None:
        del self._asked[key]
        if not task.cancelled():
            task.exception()  # taken, also if nobody waits for it any more

    async def _ask(self, credential: Secret, key: bytes) -> Identity | None:
        """Whom the service says that `credential` belongs to; ``None`` if to nobody."""
        assert self._settings is not None, "configured"
        assert self._client is not None, "started"
        settings = self._settings
        headers = {"Accept": "application/json"}
        if service_key := settings[KEY]:
            headers["Authorization"] = f"Bearer {service_key.reveal().decode('latin-1')}"
        response = await self._client.fetch(
            settings[URL],
            method="POST",
            headers=headers,
            body=urlencode({"token": credential.reveal()}),
            connect_timeout=settings[TIMEOUT],
            request_timeout=settings[TIMEOUT],
            follow_redirects=False,
        )
        scripted = msgspec.json.decode(response.body, type=Response)
        if not scripted.active:
            return None
        if not scripted.sub:
            raise ValueError("the service names nobody")
        identity = Identity(principal=scripted.sub, groups=scripted.groups)
        self._remember(key, identity, min(time.time() + settings[CACHE_SECONDS], scripted.exp))
        return identity

    def _remember(self, key: bytes, identity: Identity, until: float) -> None:
        self._remembered.pop(key, None)
        while len(self._remembered) >= MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]  # the oldest
        self._remembered[key] = (identity, until)

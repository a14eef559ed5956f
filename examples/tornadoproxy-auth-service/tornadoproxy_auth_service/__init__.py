"""An authenticator by OAuth 2.0 Token Introspection (RFC 7662): a service validates credentials.

The service gets ``token=…`` as a form. It responds with ``{"active": true, "sub": "alice"}``,
optionally with ``groups`` and ``exp``, or with ``{"active": false}``. Any other response and any
error rejects the request with 503.

A yes is cached for a short time under the hash of the credential. A no is not cached, so that a
credential that the service has just accepted is accepted here as well. Concurrent requests with the
same credential wait for the same response.
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
    help="URL of the authentication service's introspection endpoint.",
)
KEY: Setting[Secret | None] = Setting(
    "AUTH_SERVICE_KEY",
    parsers.secret,
    default=None,
    help="key of this proxy for the authentication service",
    secret=True,
)
TIMEOUT: Setting[float] = Setting(
    "AUTH_SERVICE_TIMEOUT",
    parsers.seconds(minimum=0.001),
    default=3.0,
    help="seconds the authentication service may take; keep it below PLUGIN_TIMEOUT",
)
CACHE_SECONDS: Setting[float] = Setting(
    "AUTH_SERVICE_CACHE_SECONDS",
    parsers.seconds(),
    default=30.0,
    help="seconds an accepted credential is cached; 0 disables the cache",
)


class Response(msgspec.Struct):
    """The service's response. A text in place of a list is invalid, not a list of its letters."""

    active: bool
    sub: str = ""
    groups: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...] = ()
    exp: float = float("inf")


class AuthService:
    """The plugin: it accepts the credentials that the service accepts."""

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
        return f"clients that {settings[URL]} accepts"

    @hookimpl
    def startup(self) -> None:
        # an instance of its own, because another plugin may have configured the shared one
        self._client = AsyncHTTPClient(force_instance=True, max_clients=MAX_CALLS)

    @hookimpl
    async def authenticate(self, request: IncomingRequest) -> Identity | None:
        candidates = request.candidates()
        for candidate in candidates:
            if identity := await self._identity(candidate):
                return identity
        if candidates:
            raise AuthenticationFailed(
                "This credential is unknown or no longer valid: get a new one."
            )
        return None

    @hookimpl
    async def shutdown(self) -> None:
        if self._asked:  # abandoned calls, which end by their timeout
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
        # a request that reaches its deadline must not cancel the call for the others
        return await asyncio.shield(task)

    def _answered(self, key: bytes, task: asyncio.Task[Identity | None]) -> None:
        del self._asked[key]
        if not task.cancelled():
            task.exception()  # retrieved, so that an abandoned call logs no warning

    async def _ask(self, credential: Secret, key: bytes) -> Identity | None:
        """Return the identity that the service returns for `credential`; ``None`` for a no."""
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
            raise ValueError("the service names no person")
        identity = Identity(principal=scripted.sub, groups=scripted.groups)
        self._remember(key, identity, min(time.time() + settings[CACHE_SECONDS], scripted.exp))
        return identity

    def _remember(self, key: bytes, identity: Identity, until: float) -> None:
        self._remembered.pop(key, None)
        while len(self._remembered) >= MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]  # the oldest
        self._remembered[key] = (identity, until)

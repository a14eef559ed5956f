"""A device, a browser and a person who sign in at a proxy with the plugin oidc."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any
from urllib.parse import urlencode

import pytest
from joserfc import jws
from oidc_provider import AUDIENCE, CLIENT, CLIENT_SECRET, ScriptedProvider
from scene import Scene

from tornadoproxy import DatabaseLocation
from tornadoproxy.testing import Proxy, RawResponse

BASE = "http://localhost:1"  # the URL is only told: requests go to the proxy's own port
SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
SIGNING_KEY = "k" * 40
FORM = "application/x-www-form-urlencoded"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
MESSAGE = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 10,
    "messages": [{"role": "user", "content": "Hi"}],
}


def document(response: RawResponse) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(response.body)
    return found


def claims_of(bearer: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(jws.extract_compact(bearer.encode()).payload or b"")
    return found


def target_of(page: str) -> str:
    """Return where a page leads its browser."""
    found = re.search(r'http-equiv="refresh" content="0;url=([^"]+)"', page)
    assert found, page
    return unescape(found[1])


class SigningIn:
    """A proxy, its provider, and what a device and a browser ask of them."""

    def __init__(self, scene: Scene, provider: ScriptedProvider, where: DatabaseLocation) -> None:
        self.scene = scene
        self.provider = provider
        self.where = where

    async def start(self, **given: Any) -> Proxy:
        settings = {
            "OIDC_ISSUER": self.provider.url,
            "OIDC_AUDIENCES": AUDIENCE,
            "OIDC_CLIENT_ID": CLIENT,
            "OIDC_CLIENT_SECRET": CLIENT_SECRET,
            "OIDC_PUBLIC_URL": BASE,
            "OIDC_SIGNING_KEY": SIGNING_KEY,
            "OIDC_DB": self.where,
        }
        return await self.scene.start(**{**settings, **given})

    # The device

    async def post(self, path: str, to: Proxy | None = None, **form: str) -> RawResponse:
        headers = {"Content-Type": FORM}
        body = urlencode(form).encode()
        return await self.scene.ask(
            path, method="POST", headers=headers, body=body, token=None, to=to
        )

    async def begin(self, to: Proxy | None = None) -> dict[str, Any]:
        response = await self.post("/oauth/device_authorization", to, surface="claude_code")
        assert response.status == 200, response.body
        return document(response)

    async def poll(self, begun: dict[str, Any], to: Proxy | None = None) -> RawResponse:
        code = begun["device_code"]
        return await self.post("/oauth/token", to, grant_type=DEVICE_GRANT, device_code=code)

    async def refresh(self, token: str, to: Proxy | None = None) -> RawResponse:
        return await self.post("/oauth/token", to, grant_type="refresh_token", refresh_token=token)

    async def get(self, bearer: str, to: Proxy | None = None) -> RawResponse:
        return await self.scene.ask("/v1/models", token=bearer, to=to)

    # The browser

    async def submit(
        self, code: str, path: str = "/device", headers: dict[str, str] | None = None
    ) -> RawResponse:
        """Submit the form with a code."""
        body = urlencode({"user_code": code}).encode()
        given = {"Content-Type": FORM, **(SAME_ORIGIN if headers is None else headers)}
        return await self.scene.ask(path, method="POST", headers=given, body=body, token=None)

    async def call_back(self, query: str, cookie: str | None) -> RawResponse:
        """Come back from the provider."""
        headers = {} if cookie is None else {"Cookie": cookie}
        return await self.scene.ask(f"/oauth/callback?{query}", headers=headers, token=None)

    async def go_to_provider(self, begun: dict[str, Any]) -> tuple[str, str]:
        """Confirm the code; return the query of the way back from the provider, and the cookie."""
        left = await self.submit(begun["user_code"])
        assert left.status == 200, left.body
        cookie = (left.header("set-cookie") or "").partition(";")[0]
        return self.provider.authorize(target_of(left.body.decode())), cookie

    async def approve(self, begun: dict[str, Any]) -> RawResponse:
        return await self.call_back(*await self.go_to_provider(begun))

    async def sign_in(self) -> dict[str, Any]:
        """Sign in, and return the tokens."""
        begun = await self.begin()
        page = await self.approve(begun)
        assert page.status == 200, page.body
        response = await self.poll(begun)
        assert response.status == 200, response.body
        return document(response)


@pytest.fixture
def signing_in(scene: Scene, provider: ScriptedProvider, where: DatabaseLocation) -> SigningIn:
    return SigningIn(scene, provider, where)

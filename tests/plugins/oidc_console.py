"""A proxy with the plugin oidc and a web console, and a browser without JavaScript."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

import pytest
from signing_in import BASE, FORM, SigningIn, target_of

from tornadoproxy.testing import Proxy, RawResponse

HOST = BASE.removeprefix("http://")
SIGN_IN = "/console/sign-in/oidc"


async def start(signing_in: SigningIn, **given: Any) -> Proxy:
    settings = {"CONSOLE": "yes", "BUDGETS_DB": signing_in.where, "OIDC_ADMIN_GROUPS": "root"}
    return await signing_in.start(**{**settings, **given})


class Browser:
    """A browser with cookies, and without JavaScript.

    :ivar cookies: by name.
    :ivar set: the last header ``Set-Cookie`` of each name.
    :ivar page: the last page.
    """

    def __init__(self, signing_in: SigningIn, host: str = HOST) -> None:
        self._signing_in = signing_in
        self._host = host
        self.cookies: dict[str, str] = {}
        self.set: dict[str, str] = {}
        self.page = ""

    async def send(
        self,
        path: str,
        fields: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> RawResponse:
        """Ask for a path; with fields, send a form of the last page."""
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        given = {"Host": self._host, **({"Cookie": cookies} if cookies else {}), **(headers or {})}
        body, method = b"", "GET"
        if fields is not None:
            token = re.search(r'name="form_token" value="([^"]+)"', self.page)
            fields = {**({"form_token": token[1]} if token else {}), **fields}
            body, method = urlencode(fields).encode(), "POST"
            given = {"Content-Type": FORM, "Origin": f"http://{self._host}", **given}
        response = await self._signing_in.scene.ask(
            path, method=method, headers=given, body=body, token=None
        )
        if (line := response.header("set-cookie")) is not None:
            name, _, value = line.partition(";")[0].partition("=")
            self.set[name] = line
            self.cookies.pop(name, None)
            if value:
                self.cookies[name] = value
        self.page = response.body.decode()
        return response

    async def get(self, path: str) -> RawResponse:
        """Ask for a path, and follow redirects."""
        response = await self.send(path)
        while response.status == 303:
            response = await self.send(response.header("location") or "")
        return response

    def target(self) -> str:
        """Return where the last page leads."""
        return target_of(self.page)

    async def to_provider(self, following: str = "/") -> str:
        """Begin to sign in; return the query with which the provider sends the browser back."""
        left = await self.send(SIGN_IN, {"next": following})
        assert left.status == 200, left.body
        return self._signing_in.provider.authorize(self.target())

    async def sign_in(self, following: str = "/") -> RawResponse:
        query = await self.to_provider(following)
        came_back = await self.send(f"/oauth/callback?{query}")
        assert came_back.status == 200, came_back.body
        return await self.get(self.target())


@pytest.fixture
def browser(signing_in: SigningIn) -> Browser:
    return Browser(signing_in)

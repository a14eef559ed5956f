"""A proxy with a web console, and clients of it: one that follows links, and browsers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from admin_api import AdminApi
from budget_team import ADMIN, READER, Prices
from people import MESSAGES, message, pause
from scene import Scene

from tornadoproxy import DatabaseLocation
from tornadoproxy.storage import worker
from tornadoproxy.testing import Proxy, RawResponse, json_response, message_document

CANARY = "<img src=x onerror=alert(1)>"
FORM = ("Content-Type", "application/x-www-form-urlencoded")


class ConsoleSite(AdminApi):
    """A proxy with all that the console shows.

    :param where: an SQLite file, beside which the other files are, or one PostgreSQL database.
    """

    def __init__(self, scene: Scene, where: DatabaseLocation) -> None:
        places = {"KEYS_DB": "keys", "BUDGETS_DB": "budgets", "LEDGER_DB": "ledger"}
        databases: dict[str, Any] = {
            name: where.with_name(f"{file}.db") if isinstance(where, Path) else where
            for name, file in places.items()
        }
        super().__init__(scene, where, "", ADMIN_READ_KEY=f"viewer={READER}", **databases)
        self.settings |= {"CONSOLE": "yes", "DISABLED_PLUGINS": "prices"}

    async def start(self, plugins: Any = (), **variables: Any) -> Proxy:
        return await self.start_proxy(
            plugins=[Prices(), *plugins], **{**self.settings, **variables}
        )

    async def key(self, name: str = "ada", **fields: object) -> str:
        """Create a key for a person, and return it."""
        made = await self.call("POST", "/api_keys", {"name": name, **fields})
        key: str = made["key"]
        return key

    async def spend(self, key: str, cents: int = 25, agent: str = "test", **fields: Any) -> None:
        """Send a request for a message that costs this much, and wait until the ledger has it."""
        usage = {"input_tokens": 100, "output_tokens": cents}
        self.upstream.script(json_response(message_document("Hi", usage=usage)))
        before = await self._rows()
        headers = [("User-Agent", agent)]
        response = await self.request(MESSAGES, message(**fields), token=key, headers=headers)
        assert response.status == 200
        async with asyncio.timeout(10):
            while await self._rows() == before:
                await pause()

    async def _rows(self) -> int:
        """Return the number of people's requests that the ledger has."""
        found = await self.call("GET", "/requests?limit=1000&has_principal=true")
        return len(found["data"])

    def visitor(self) -> Visitor:
        return Visitor(self)


@pytest.fixture
def site(scene: Scene, where: DatabaseLocation, monkeypatch: pytest.MonkeyPatch) -> ConsoleSite:
    """A proxy that is not started yet, whose ledger has a request soon after its end."""
    monkeypatch.setattr(worker, "LINGER", 0.01)
    return ConsoleSite(scene, where)


class Visitor:
    """A client with a cookie, and without JavaScript.

    :ivar cookie: ``NAME=VALUE``; empty without one.
    :ivar page: the last page.
    """

    def __init__(self, site: ConsoleSite) -> None:
        self._site = site
        self.cookie = ""
        self.page = ""

    async def get(self, path: str, *headers: tuple[str, str], follow: bool = True) -> RawResponse:
        """Ask for a path below ``/console``."""
        response = await self._send("GET", path, headers)
        while follow and response.status == 303:
            location = response.header("location") or ""
            response = await self._send("GET", location.removeprefix("/console"), headers)
        return response

    async def post(
        self,
        path: str,
        fields: Mapping[str, str] | None = None,
        *headers: tuple[str, str],
        token: str | None = None,
    ) -> RawResponse:
        """Send a form, by default with the token that the last page has."""
        found = re.search(r'name="form_token" value="([^"]+)"', self.page)
        form_token = found[1] if found and token is None else token or ""
        body = urlencode({"form_token": form_token, **(fields or {})}).encode()
        return await self._send("POST", path, (FORM, *headers), body)

    async def sign_in(self, key: str, following: str = "") -> RawResponse:
        """Sign in, and return the response, a redirection if that succeeds."""
        return await self.post("/sign-in", {"key": key, "next": following})

    async def _send(self, method: str, path: str, headers: Any, body: bytes = b"") -> RawResponse:
        own = [("Cookie", self.cookie)] if self.cookie else []
        response = await self._site.request(
            f"/console{path}", method=method, headers=[*own, *headers], body=body, token=None
        )
        if (cookie := response.header("set-cookie")) is not None:
            value = cookie.partition(";")[0]
            self.cookie = "" if value.endswith("=") else value
        self.page = response.body.decode()
        return response


async def signed_in(site: ConsoleSite, key: str = ADMIN) -> Visitor:
    visitor = site.visitor()
    await visitor.sign_in(key)
    return visitor


def hidden(page: str, near: str) -> dict[str, str]:
    """The fields of the form that has this text."""
    form = next(each for each in re.findall(r"<form.*?</form>", page, re.DOTALL) if near in each)
    inputs = [each for each in re.findall(r"<input [^>]*>", form) if "checkbox" not in each]
    found = [re.findall(r'\b(name|value)="([^"]*)"', each) for each in inputs]
    return {fields["name"]: unescape(fields.get("value", "")) for fields in map(dict, found)}

"""The web console in a browser: each page and form, with JavaScript and without."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from browsers import Window, browsing
from budget_team import ADMIN
from console_site import ConsoleSite
from scene import Scene

from tornadoproxy import DatabaseLocation

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180), pytest.mark.gen_test(timeout=150)]

CANARY = "<img src=x onerror=alert(1)>"


@pytest.fixture
def site(scene: Scene, where: DatabaseLocation) -> ConsoleSite:
    return ConsoleSite(scene, where)


class Browser(Window):
    """A window in which somebody is signed in."""

    def __init__(self, page: Any, url: str) -> None:
        super().__init__(page)
        self.url = f"{url}/console"

    async def open(self, path: str) -> None:
        response = await self.page.goto(self.url + path)
        assert response.status == 200, await self.page.content()

    async def sign_in(self, key: str) -> None:
        await self.page.goto(f"{self.url}/sign-in")
        await self.page.get_by_label("Key").fill(key)
        await self.page.get_by_role("button", name="Sign in").click()
        await self.page.get_by_role("button", name="Sign out").wait_for()


@contextlib.asynccontextmanager
async def window(url: str, key: str = "", **options: Any) -> AsyncIterator[Browser]:
    """A window, signed in with `key`, in which nothing may go wrong."""
    async with browsing() as browser:
        context = await browser.new_context(**options)
        found = Browser(await context.new_page(), url)
        if key:
            await found.sign_in(key)
        yield found
        assert found.faults == []


async def test_sign_in_health_and_me_look_right(site: ConsoleSite) -> None:
    proxy = await site.start()
    ada = await site.key("ada", groups=["engines"])
    await site.call("POST", "/spend_limits", {"scope": {"type": "organization"}, "amount": "200"})
    for cents in (5, 20, 40):
        await site.spend(ada, cents)
    async with window(proxy.url) as found:
        await found.open("/sign-in")
        await found.shoot("sign-in")
        await found.sign_in(ada)
        await found.shoot("me")
        await found.page.get_by_role("button", name="Copy").first.wait_for()
        await found.page.get_by_role("button", name="Sign out").click()
        await found.sign_in(ADMIN)
        await found.open("/health")
        await found.shoot("health")


@pytest.mark.parametrize("scripts", [True, False])
async def test_sign_in_and_out(scripts: bool, site: ConsoleSite) -> None:
    proxy = await site.start()
    async with window(proxy.url, java_script_enabled=scripts) as found:
        page = found.page
        await page.goto(f"{found.url}/health")
        await page.get_by_label("Key").fill(ADMIN)
        await page.keyboard.press("Enter")
        await page.get_by_role("heading", name="Plugins").wait_for()
        assert page.url == f"{found.url}/health"
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_role("heading", name="Sign in").wait_for()

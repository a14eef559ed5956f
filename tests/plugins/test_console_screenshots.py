"""Each page of the web console in a browser: how it looks, and whether it is accessible.

Screenshots are saved in ``.screenshots``. Those that the documentation shows are made with::

    SCREENSHOTS=docs/screenshots python -m pytest -m browser -k look_right
"""

from __future__ import annotations

from pathlib import Path

import pytest
from browsers import window
from budget_team import ADMIN
from console_team import TeamSite
from scene import Scene

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
long = pytest.mark.gen_test(timeout=280)


@pytest.fixture
def site(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TeamSite:
    return TeamSite(scene, tmp_path, monkeypatch)


@long
async def test_pages_of_administrators_look_right(site: TeamSite) -> None:
    proxy = await site.start()
    async with window(proxy.url, ADMIN) as found:
        for path, name in (
            ("/now", "now"),
            ("/spend", "spend"),
            ("/people", "people"),
            ("/people/person?name=backend", "person"),
            ("/requests", "requests"),
            ("/health", "health"),
        ):
            await found.open(path)
            if name == "now":
                await found.page.get_by_text("live", exact=True).wait_for()
            if name in ("now", "spend", "person", "requests"):
                await found.picture(name)
            await found.shoot(name)
        await found.open("/requests?principal=backend")
        await found.page.locator("tbody a").first.click()
        await found.page.get_by_role("heading", name="Attempts").wait_for()
        await found.shoot("request")
        await found.open("/people")
        await found.page.get_by_label("Name").last.fill("design")
        await found.page.get_by_role("button", name="Create a key").click()
        await found.page.get_by_text("cannot be shown again").wait_for()
        await found.shoot("key")
        await found.page.goto(f"{found.url}/nothing")
        await found.shoot("error")
        found.faults.clear()  # the browser notes the 404
    await site.close()


@long
async def test_pages_of_people_look_right(site: TeamSite) -> None:
    proxy = await site.start()
    async with window(proxy.url) as found:
        await found.open("/sign-in")
        await found.shoot("sign-in")
        await found.sign_in(site.keys["backend"])
        await found.page.get_by_role("button", name="Copy").first.wait_for()
        await found.picture("me-phone", dark=True, phone=True)
        await found.page.get_by_text("Ask for a higher limit").click()
        await found.shoot("me")
    await site.close()

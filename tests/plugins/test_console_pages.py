"""The web console in a browser: each page and form, with JavaScript and without."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest
from browsers import Window, browsing
from budget_team import ADMIN
from console_site import ConsoleSite
from people import MESSAGES, Held, message
from scene import Scene

from tornadoproxy import DatabaseLocation
from tornadoproxy.testing import error_response, json_response, message_document

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]
long = pytest.mark.gen_test(timeout=150)

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


@long
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


@long
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


async def filled(site: ConsoleSite) -> None:
    """Two people with keys, caps, spend and a failed request."""
    ada = await site.key("ada", groups=["engines"], models=["claude-*"], requests_per_minute=100)
    bob = await site.key("bob@example.org", groups=["engines", "operations"])
    everyone = {"type": "organization"}
    await site.call("POST", "/spend_limits", {"scope": everyone, "amount": "500"})
    together = {"type": "rbac_group", "rbac_group_id": "engines", "shared": True}
    await site.call("POST", "/spend_limits", {"scope": together, "amount": "100000"})
    await site.call(
        "POST",
        "/spend_limits",
        {"scope": {"type": "user", "user_id": "ada"}, "amount": None, "period": "daily"},
    )
    for key, cents in ((ada, 25), (bob, 5), (bob, 75), (ada, 12)):
        await site.spend(key, cents)
    site.upstream.script(error_response(529, "overloaded_error", "Busy"))
    await site.request(MESSAGES, message(), token=bob)


@long
async def test_spend_people_and_requests_look_right(site: ConsoleSite) -> None:
    proxy = await site.start()
    await filled(site)
    async with window(proxy.url, ADMIN) as found:
        for path, name in (
            ("/spend", "spend"),
            ("/people", "people"),
            ("/people/person?name=ada", "person"),
            ("/requests", "requests"),
        ):
            await found.open(path)
            await found.shoot(name)
        await found.page.locator("tbody a").first.click()
        await found.page.get_by_role("heading", name="Attempts").wait_for()
        await found.shoot("request")
        await found.open("/people")
        await found.page.get_by_label("Name").last.fill("eve")
        await found.page.get_by_role("button", name="Create a key").click()
        await found.page.get_by_text("cannot be shown again").wait_for()
        await found.shoot("key")


@long
@pytest.mark.parametrize("scripts", [True, False])
async def test_each_form_works(scripts: bool, site: ConsoleSite) -> None:
    proxy = await site.start()
    async with window(proxy.url, ADMIN, java_script_enabled=scripts) as found:
        page = found.page

        def button(name: str) -> Any:
            return page.get_by_role("button", name=name, exact=True)

        await found.open("/people")
        await page.locator("#new-name").fill("ada")
        await page.get_by_label("Tokens a minute").fill("1000")
        await button("Create a key").click()
        await page.locator("code.secret").wait_for()
        await page.get_by_role("link", name="ada").click()
        await page.get_by_label("Requests at once").fill("7")
        await button("Save").click()
        await page.get_by_text("Saved.").wait_for()
        assert await page.get_by_label("Requests at once").input_value() == "7"
        await page.get_by_label("The old key stays valid for").select_option("a day")
        await button("Rotate").click()
        await page.locator("code.secret").wait_for()
        await page.get_by_role("link", name="ada").click()
        await page.get_by_text("Revoke this key").click()
        await button("Revoke").click()
        await page.get_by_text("revoked", exact=True).wait_for()

        await page.get_by_role("link", name="Spend", exact=True).click()
        await page.get_by_label("Limit in dollars").fill("12.50")
        await button("Set a limit").click()
        await page.get_by_text("Saved.").wait_for()
        cap = page.get_by_label("Limit in dollars: Everybody a month")
        assert await cap.input_value() == "12.50"
        await cap.fill("20")
        await cap.press("Enter")
        await page.get_by_text("Saved.").wait_for()
        assert await cap.input_value() == "20.00"
        await button("Remove").click()
        await page.get_by_text("Removed.").wait_for()
        assert await cap.count() == 0


@long
async def test_keyboard_reaches_everything_in_order(site: ConsoleSite) -> None:
    proxy = await site.start()
    async with window(proxy.url, ADMIN) as found:
        await found.open("/health")
        reached = []
        for _ in range(9):
            await found.page.keyboard.press("Tab")
            reached.append(await found.page.evaluate("document.activeElement.innerText.trim()"))
        assert reached[:2] == ["Skip to the content", "tornadoproxy"]
        assert "Sign out" in reached
        await found.page.keyboard.press("Shift+Tab")
        await found.page.reload()
        await found.page.keyboard.press("Tab")
        await found.page.keyboard.press("Enter")
        assert await found.page.evaluate("document.activeElement.id") == "content"


@long
async def test_key_revoked_meanwhile_leads_to_the_sign_in(site: ConsoleSite) -> None:
    proxy = await site.start()
    async with window(proxy.url, ADMIN) as found:
        await found.open("/spend")
        proxy.reload(ADMIN_KEY="x" * 32)
        await found.page.get_by_label("Limit in dollars").fill("1")
        await found.page.get_by_role("button", name="Set a limit").click()
        await found.page.get_by_role("heading", name="Sign in").wait_for()
    proxy.reload(ADMIN_KEY=ADMIN)
    assert (await site.call("GET", "/spend_limits"))["data"] == []


@long
async def test_console_cannot_be_framed(site: ConsoleSite) -> None:
    proxy = await site.start()
    async with browsing() as browser:
        page = await browser.new_page()
        errors: list[str] = []
        page.on("console", lambda each: errors.append(each.text))
        await page.set_content(f'<iframe src="{proxy.url}/console/sign-in"></iframe>')
        while not any("frame-ancestors" in each for each in errors):
            await page.wait_for_event("console")
        assert "Sign in" not in await page.frames[-1].content()


@long
@pytest.mark.parametrize("text", [CANARY, "\"'><svg onload=alert(1)>", "</script><script>alert(1)"])
async def test_no_text_becomes_a_script(text: str, site: ConsoleSite) -> None:
    """A dialog, or a script that the policy refuses, is a fault of the window."""
    proxy = await site.start()
    key = await site.key(text, groups=[text])
    await site.call(
        "POST", "/spend_limits", {"scope": {"type": "user", "user_id": text}, "amount": "9"}
    )
    await site.spend(key, model=text)
    async with window(proxy.url, ADMIN) as found:
        for path in ("/people", "/spend", "/requests"):
            await found.open(path)
            await found.page.get_by_text(text).first.wait_for()
        await found.page.locator("tbody a").first.click()
        await found.page.get_by_role("link", name=text).click()
        await found.page.get_by_role("heading", name=text).wait_for()
        query = quote(text)
        for path in (f"/spend?by={query}", f"/people?name={query}", f"/requests?principal={query}"):
            await found.open(path)


@long
async def test_now_is_live_while_requests_run(site: ConsoleSite) -> None:
    proxy = await site.start()
    ada = await site.key("ada")
    bob = await site.key("bob")
    async with window(proxy.url, ADMIN) as found:
        page = found.page
        await found.open("/now?person=bob")
        await page.get_by_text("live", exact=True).wait_for()
        for _ in range(20):
            assert (await site.request(MESSAGES, message(), token=ada)).status == 200
            assert (await site.request(MESSAGES, message(), token=bob)).status == 200
        rows = page.locator("#rows tr")
        while await rows.count() < 20:
            await page.wait_for_timeout(50)
        assert await rows.filter(has_text="ada").count() == 0
        held = Held(json_response(message_document("Hi")))
        site.upstream.script(held)
        begun = await site.begin(bob)
        running = page.locator("#in-flight tr")
        await running.filter(has_text="bob").wait_for()
        assert await running.filter(has_text="no response yet").count() == 1
        await found.open("/now")
        await page.get_by_text("live", exact=True).wait_for()
        await found.shoot("now")
        held.released.set()
        await begun.response()
        await page.get_by_text("There are no requests in flight.").wait_for()
        proxy.reload(ADMIN_KEY="x" * 32)
        await page.get_by_role("heading", name="Sign in").wait_for()

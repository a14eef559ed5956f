"""The web console in a browser: each page and form, with JavaScript and without."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from browsers import browsing, window
from budget_team import ADMIN
from console_site import CANARY, ConsoleSite
from people import MESSAGES, Held, message
from postgres import sqlite_only
from tls import OwnTLS

from tornadoproxy.testing import json_response, message_document

# what a browser does is the same on either database
pytestmark = [pytest.mark.browser, pytest.mark.timeout(180), sqlite_only]
long = pytest.mark.gen_test(timeout=150)

pytest_plugins = ("console_site",)


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
        await page.get_by_role("link", name="Open the page of ada").click()
        await page.get_by_label("Requests at once").fill("7")
        await button("Save").click()
        await page.get_by_text("Saved.").wait_for()
        assert await page.get_by_label("Requests at once").input_value() == "7"
        await button("Disable").click()
        await page.get_by_text("disabled", exact=True).wait_for()
        await button("Enable").click()
        await page.get_by_text("active", exact=True).wait_for()
        await page.get_by_label("The old key stays valid for").select_option("a day")
        await button("Rotate").click()
        await page.locator("code.secret").wait_for()
        await page.get_by_role("link", name="Open the page of ada").click()
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
@pytest.mark.parametrize("scripts", [True, False])
async def test_each_search_works(scripts: bool, site: ConsoleSite) -> None:
    proxy = await site.start()
    ada, bob = await site.key("ada", groups=["engines"]), await site.key("bob")
    for key in (ada, bob):
        await site.spend(key)
    async with window(proxy.url, ADMIN, java_script_enabled=scripts) as found:
        page = found.page

        async def show(button: str = "Show") -> None:
            await page.get_by_role("button", name=button, exact=True).first.click()

        async def people(shown: str, heading: str) -> None:
            await page.get_by_role("region", name=heading).get_by_text(shown).first.wait_for()

        await found.open("/now")
        await page.get_by_label("Person").fill("bob")
        await show()
        await page.locator("#rows").get_by_text("bob").wait_for()
        assert await page.locator("#rows").get_by_text("ada").count() == 0

        await found.open("/requests")
        await page.get_by_label("Person", exact=True).fill("ada")
        await page.get_by_label("Status").fill("success")
        await page.get_by_label("include requests without a person").check()
        await show("Search")
        await people("ada", "Requests")
        assert await page.locator("#rows").get_by_text("bob").count() == 0

        await found.open("/people")
        await page.locator("#search").fill("ada")
        await page.get_by_label("State").select_option("active")
        await show("Search")
        await people("ada", "Keys")
        assert await page.get_by_role("link", name="bob").count() == 0

        await found.open("/spend")
        await page.get_by_label("By").select_option("Group")
        await show()
        await people("engines", "Group")
        today = await page.get_by_label("To", exact=True).input_value()
        await page.get_by_label("From").fill(today)
        await show()
        await page.get_by_text("As a table").click()
        await people("$0.52", "Day")
        await page.locator("#top-period").select_option("Today")
        await show()
        await people("bob", "Highest spend")
        async with page.expect_download() as download:
            await page.get_by_role("link", name="Download CSV").click()
        assert (await download.value).suggested_filename.endswith(".csv")


@long
async def test_second_administrator_sees_the_limit_of_the_first(site: ConsoleSite) -> None:
    proxy = await site.start()
    await site.call("POST", "/spend_limits", {"scope": {"type": "organization"}, "amount": "100"})
    label = "Limit in dollars: Everybody a month"
    async with window(proxy.url, ADMIN) as first, window(proxy.url, ADMIN) as second:
        for each in (first, second):
            await each.open("/spend")
        for each, amount in ((first, "2"), (second, "3")):
            await each.page.get_by_label(label).fill(amount)
            await each.page.get_by_role("button", name="Save").click()
            await each.page.get_by_role("heading", name="Spend", exact=True).wait_for()
        await first.page.get_by_text("Saved.").wait_for()
        await second.page.get_by_text("has changed meanwhile").wait_for()
        assert await second.page.get_by_label(label).input_value() == "2.00"
        assert [each for each in second.faults if "412" not in each] == []
        second.faults.clear()  # the browser notes the 412


@long
async def test_session_and_live_page_under_tls(site: ConsoleSite, own_tls: OwnTLS) -> None:
    proxy = await site.start(**own_tls.settings)
    async with window(proxy.url, ADMIN, ignore_https_errors=True) as found:
        await found.open("/now")
        await found.page.get_by_text("live", exact=True).wait_for()
        (cookie,) = await found.page.context.cookies()
        assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Strict")


@long
async def test_person_asks_for_a_higher_limit(site: ConsoleSite) -> None:
    proxy = await site.start()
    key = await site.key("ada")
    async with window(proxy.url, key, java_script_enabled=False) as found:
        page = found.page
        await page.get_by_text("Ask for a higher limit").click()
        await page.get_by_label("Wanted limit in dollars").fill("40")
        await page.get_by_label("Reason").fill("Release week")
        await page.get_by_role("button", name="Send").click()
        await page.get_by_text("not answered yet").wait_for()
    async with window(proxy.url, ADMIN) as found:
        page = found.page
        await found.open("/spend")
        await page.get_by_text("Release week").wait_for()
        await page.get_by_label("New limit in dollars: ada a month").fill("30")
        await page.get_by_role("button", name="Approve").click()
        await page.get_by_text("Approved.").wait_for()
        limit = page.get_by_label("Limit in dollars: Person ada a month")
        assert await limit.input_value() == "30.00"


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
        "POST", "/spend_limits", {"scope": {"type": "user", "user_id": text}, "amount": "9000"}
    )
    await site.spend(key, model=text)
    async with window(proxy.url, ADMIN) as found:
        for path in ("/people", "/spend", "/requests"):
            await found.open(path)
            await found.page.get_by_text(text).first.wait_for()
        await found.open("/now")
        await found.page.get_by_text("live", exact=True).wait_for()
        held = Held(json_response(message_document("Hi", model=text)))
        site.upstream.script(held)
        begun = await site.begin(key)
        for rows in ("#in-flight", "#rows"):
            await found.page.locator(rows).get_by_text(text).first.wait_for()
        shown = await found.page.locator("#rows tr").count()
        held.released.set()
        await begun.response()
        while await found.page.locator("#rows tr").count() == shown:
            await found.page.wait_for_timeout(20)
        await found.open("/requests")
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

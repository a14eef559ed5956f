"""A real browser: Chromium, driven by Playwright.

Tests that use it are marked ``browser``, and skipped where Chromium or Playwright is absent.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SHOTS = ROOT / ".screenshots"
AXE = ROOT / "tests" / "system" / "axe" / "node_modules" / "axe-core" / "axe.min.js"

WIDE = {"width": 1280, "height": 900}
NARROW = {"width": 375, "height": 740}
PHONE = {"width": 390, "height": 844}


def chromium() -> str:
    """Return the path of Chromium, or skip the test."""
    pytest.importorskip("playwright", reason="playwright is absent: pip install '.[browser]'")
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
    if found is None:
        pytest.skip("Chromium is absent: apt-get install chromium, or set CHROMIUM")
    return found


@contextlib.asynccontextmanager
async def browsing() -> AsyncIterator[Any]:  # Any: Playwright's types need Playwright
    """A running browser."""
    path = chromium()
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            await browser.close()


class Window:
    """A window of a browser, which notes what must not happen in it.

    :ivar faults: errors of scripts, refused content, and failed requests.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.faults.append(f"dialog: {dialog.message}"))
        page.on("console", self._note)

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type}: {message.text}")

    async def check_accessible(self) -> None:
        """Fail with what axe-core finds."""
        if not AXE.exists():
            pytest.skip("axe-core is absent: npm install --prefix tests/system/axe")
        await self.page.evaluate(AXE.read_text())
        found = await self.page.evaluate("axe.run()")
        assert [
            (each["id"], [node["html"][:200] for node in each["nodes"]])
            for each in found["violations"]
        ] == []

    async def shoot(self, name: str) -> None:
        """Save a screenshot, wide and narrow, light and dark, and check each for accessibility."""
        SHOTS.mkdir(exist_ok=True)
        for scheme in ("light", "dark"):
            await self.page.emulate_media(color_scheme=scheme)
            for width, size in (("wide", WIDE), ("narrow", NARROW)):
                await self.page.set_viewport_size(size)
                assert await self.page.evaluate(
                    "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
                ), f"{name} scrolls sideways ({width})"
                await self.page.screenshot(
                    path=SHOTS / f"{name}-{scheme}-{width}.png", full_page=True
                )
                await self.check_accessible()
        await self.page.emulate_media(color_scheme="light")
        await self.page.set_viewport_size(WIDE)

    async def picture(self, name: str, *, dark: bool = False, phone: bool = False) -> None:
        """Save what a window shows of the page for the documentation, if that is asked for."""
        folder = os.environ.get("SCREENSHOTS")
        if folder is None:
            return
        await self.page.emulate_media(color_scheme="dark" if dark else "light")
        await self.page.set_viewport_size(PHONE if phone else WIDE)
        await self.page.screenshot(path=Path(folder, f"{name}.png"))


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

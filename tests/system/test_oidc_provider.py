"""Sign-in with a real, certified provider: npm's oidc-provider, in a browser.

It runs where ``npm install --prefix tests/system/oidc_provider`` has been run, as ``.ci/run`` does,
and where there is a browser; see `browsers`.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from browsers import Window, browsing
from oidc_provider import CLIENT, CLIENT_SECRET
from scene import Scene
from signing_in import SIGNING_KEY, document
from tornado.httpclient import AsyncHTTPClient
from tornado.ioloop import IOLoop
from tornadoproxy_oidc import provider as provider_module
from tornadoproxy_oidc import sessions

from tornadoproxy.testing import RawResponse

HERE = Path(__file__).parent / "oidc_provider"
NODE = shutil.which("node")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (NODE and (HERE / "node_modules").exists()),
        reason="skipped: needs node, and oidc-provider installed with npm",
    ),
    pytest.mark.gen_test(timeout=50),  # a browser takes long to start while other tests run
]


class Company:
    """A provider, a proxy, and the browser of a person.

    :ivar issuer: of the provider.
    :ivar url: of the proxy.
    """

    def __init__(self, scene: Scene, tmp_path: Path, port: int) -> None:
        self.scene = scene
        self.port = port
        self.url = f"http://127.0.0.1:{self.port}"
        self.directory = tmp_path

    async def open(self) -> None:
        # first, since it skips the test where there is no browser
        self._browsing = browsing()
        self._browser = await self._browsing.__aenter__()
        self.node = await asyncio.create_subprocess_exec(
            *(str(NODE), str(HERE / "provider.mjs"), f"{self.url}/oauth/callback"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self.node.stdout is not None
        self.issuer = (await self.node.stdout.readline()).decode().strip()

    async def close(self) -> None:
        await self._browsing.__aexit__(None, None, None)
        self.node.kill()
        await self.node.communicate()

    async def start(self, **given: Any) -> None:
        settings = {
            "PORT": self.port,
            "OIDC_ISSUER": self.issuer,
            "OIDC_CLIENT_ID": CLIENT,
            "OIDC_CLIENT_SECRET": CLIENT_SECRET,
            "OIDC_PUBLIC_URL": self.url,
            "OIDC_SIGNING_KEY": SIGNING_KEY,
            "OIDC_DB": self.directory / "oidc.db",
            "OIDC_PARAMETERS": "prompt=consent",
            "OIDC_EMAIL_DOMAINS": "acme.example",
        }
        await self.scene.start(**{**settings, **given})

    async def control(self, what: str) -> None:
        client = AsyncHTTPClient()
        await client.fetch(f"{self.issuer}/control/{what}", method="POST", body=b"")

    async def post(self, path: str, **form: str) -> RawResponse:
        return await self.scene.ask(
            path,
            method="POST",
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            body=urlencode(form).encode(),
            token=None,
        )

    async def begin(self) -> dict[str, Any]:
        return document(await self.post("/oauth/device_authorization", surface="claude_code"))

    async def poll(self, begun: dict[str, Any]) -> RawResponse:
        grant = "urn:ietf:params:oauth:grant-type:device_code"
        code = begun["device_code"]
        return await self.post("/oauth/token", grant_type=grant, device_code=code)

    async def page(self) -> Any:  # Playwright's types need Playwright
        page = await self._browser.new_page()
        # the provider's own pages want fonts from elsewhere
        await page.route(
            lambda url: not url.startswith(("http://127.0.0.1", "http://localhost")),
            lambda route: route.abort(),
        )
        page.set_default_timeout(20_000)
        return page

    async def approve(self, begun: dict[str, Any], name: str = "ada") -> Any:
        """Do what a person does in the browser; return the last page."""
        page = await self.page()
        await page.goto(begun["verification_uri_complete"])
        assert begun["user_code"] in await page.inner_text("body")
        await page.click("button:has-text('Continue')")
        await self.log_in(page, name)
        await page.wait_for_url(f"{self.url}/oauth/callback*")
        return page

    async def log_in(self, page: Any, name: str) -> None:
        """Do what a person does at the provider."""
        await page.fill("input[name=login]", name)
        await page.fill("input[name=password]", "any")
        await page.click("button[type=submit]")
        await page.click("button:has-text('Continue')")


@pytest.fixture
def company(io_loop: IOLoop, scene: Scene, tmp_path: Path, free_port: int) -> Iterator[Company]:
    company = Company(scene, tmp_path, free_port)
    io_loop.run_sync(company.open)
    yield company
    io_loop.run_sync(company.close)


async def test_person_signs_in_by_browser_and_stays_signed_in(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    await company.start()
    begun = await company.begin()
    page = await company.approve(begun)
    assert "Return to your device, ada@acme.example" in await page.inner_text("body")
    cookies = await page.context.cookies(company.url)
    assert "tp-device" not in {cookie.get("name") for cookie in cookies}
    tokens = document(await company.poll(begun))
    assert (await company.scene.ask("/v1/models", token=tokens["access_token"])).status == 200
    record = next(each for each in company.scene.records.all if each.principal)
    assert (record.principal, record.groups) == ("ada", ("lab",))

    monkeypatch.setattr(sessions, "GRACE", -1)
    monkeypatch.setattr(provider_module, "RETRY", 0.0)
    await company.control("keys")
    for _ in range(2):  # the provider rotates its own refresh token, too
        response = await company.post(
            "/oauth/token", grant_type="refresh_token", refresh_token=tokens["refresh_token"]
        )
        assert response.status == 200, response.body
        tokens = document(response)

    await company.control("disable/ada")
    response = await company.post(
        "/oauth/token", grant_type="refresh_token", refresh_token=tokens["refresh_token"]
    )
    assert (response.status, document(response)["error"]) == (401, "invalid_grant")
    bearer = tokens["access_token"]
    assert (await company.scene.ask("/v1/models", token=bearer)).status == 401


async def test_person_types_the_code_and_denies(company: Company) -> None:
    await company.start()
    begun = await company.begin()
    page = await company.page()
    await page.goto(begun["verification_uri"])
    await page.fill("input[name=user_code]", begun["user_code"].replace("-", "").lower())
    await page.click("button:has-text('Deny')")
    assert await page.inner_text("h1") == "Denied"
    assert document(await company.poll(begun))["error"] == "access_denied"


async def test_form_on_another_site_approves_nothing(company: Company) -> None:
    await company.start()
    begun = await company.begin()
    page = await company.page()
    await page.goto(company.issuer.replace("127.0.0.1", "localhost") + "/.well-known/x")
    await page.set_content(
        f'<form method="post" action="{company.url}/device">'
        f'<input name="user_code" value="{begun["user_code"]}"><button>Win</button></form>'
    )
    await page.click("text=Win")
    await page.wait_for_selector("text=came from another site")
    assert document(await company.poll(begun))["error"] == "authorization_pending"


async def test_person_of_another_domain_is_told_why(company: Company) -> None:
    await company.start(OIDC_EMAIL_DOMAINS="other.example")
    begun = await company.begin()
    page = await company.approve(begun)
    assert "of a domain that is not accepted here" in await page.inner_text("body")
    assert document(await company.poll(begun))["error"] == "access_denied"


async def test_person_signs_in_to_the_console_and_out(company: Company) -> None:
    await company.start(
        CONSOLE="yes", BUDGETS_DB=company.directory / "b.db", OIDC_ADMIN_GROUPS="lab"
    )
    window = Window(page := await company.page())
    await page.goto(f"{company.url}/console/health")
    host = company.issuer.removeprefix("http://")
    await window.shoot("sign-in-by-provider")
    assert window.faults == []
    await page.click(f"text=Sign in with {host}")
    await company.log_in(page, "ada")
    await page.wait_for_url(f"{company.url}/console/health")
    window.faults.clear()  # those of the provider's pages
    assert await page.inner_text("form.who span") == "ada · administrator"
    found = await page.context.cookies(f"{company.url}/console/")
    cookies = {each["name"]: each for each in found}
    session = cookies["tornadoproxy_console"]
    assert (session["sameSite"], session["httpOnly"]) == ("Strict", True)
    await page.goto(f"{company.url}/console/spend")
    await page.fill("#amount", "5")
    await page.click("button:has-text('Set a limit')")
    await page.wait_for_selector("text=Saved.")
    assert window.faults == []

    # the browser sends no cookie along a link of another site, and keeps it
    await page.goto(company.issuer.replace("127.0.0.1", "localhost") + "/.well-known/x")
    await page.set_content(f'<a href="{company.url}/console/spend">Spend</a>')
    await page.click("text=Spend")
    await page.wait_for_selector("h1:has-text('Sign in')")
    await page.goto(f"{company.url}/console/spend")
    assert await page.inner_text("h1") == "Spend"

    await page.click("text=Sign out")
    await page.wait_for_selector("h1:has-text('Sign in')")
    await page.goto(f"{company.url}/console/health")
    assert await page.inner_text("h1") == "Sign in"


async def test_form_on_another_site_begins_no_sign_in_to_the_console(company: Company) -> None:
    await company.start(CONSOLE="yes")
    page = await company.page()
    await page.goto(company.issuer.replace("127.0.0.1", "localhost") + "/.well-known/x")
    await page.set_content(
        f'<form method="post" action="{company.url}/console/sign-in/oidc">'
        "<button>Win</button></form>"
    )
    await page.click("text=Win")
    await page.wait_for_selector("text=This form does not belong to your session")
    assert await page.context.cookies(company.url) == []

"""The web console without a browser: sign-in, sessions, forms, headers, and what it shows."""

from __future__ import annotations

import re
from collections import Counter
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import pytest
from budget_team import ADMIN, READER
from console_site import CANARY, FORM, ConsoleSite
from tls import OwnTLS
from tornadoproxy_console import sessions, texts
from tornadoproxy_console import site as console
from tornadoproxy_console.site import own_path

from tornadoproxy import Page, PageRequest, PageResponse, Secret, hookimpl
from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY, request_bytes

pytest_plugins = ("console_site",)


async def test_without_the_setting_there_is_no_console(site: ConsoleSite) -> None:
    proxy = await site.start(CONSOLE=None)
    assert "console" not in dict(proxy.lines)
    assert (await site.visitor().get("/")).status == 401


# -- signing in


async def test_admin_and_person_sign_in_and_out(site: ConsoleSite) -> None:
    await site.start()
    key = await site.key("ada", groups=["engines"])
    for secret, path, seen in (
        (ADMIN, "/health", 'ops<span class="role"> · administrator</span>'),
        (READER, "/health", 'viewer<span class="role"> · read-only</span>'),
        (key, "/me", "ada"),
    ):
        visitor = site.visitor()
        assert (await visitor.get("/me")).header("location") is None
        assert "<h1>Sign in</h1>" in visitor.page
        response = await visitor.sign_in(secret)
        assert (response.status, response.header("location")) == (303, "/console/")
        assert (await visitor.get("/")).status == 200
        assert f"<span>{seen}</span>" in visitor.page
        assert (await visitor.get(path)).status == 200
        assert secret not in visitor.page
        cookie = visitor.cookie
        assert (await visitor.post("/sign-out")).status == 303
        assert visitor.cookie == ""
        visitor.cookie = cookie
        await visitor.get(path)
        assert "<h1>Sign in</h1>" in visitor.page, "the session has ended, not the cookie alone"


async def test_wrong_key_is_refused(site: ConsoleSite) -> None:
    await site.start()
    for key in ("", "wrong", ADMIN[:-1], "tp-000000000000-x", "ü", "a\nb", "a" * 9000):
        visitor = site.visitor()
        response = await visitor.sign_in(key)
        assert response.status == 401, key
        assert "This key is unknown" in visitor.page
        assert visitor.cookie == ""
        assert not key or key not in visitor.page


async def test_address_with_many_wrong_keys_is_refused(site: ConsoleSite) -> None:
    await site.start()
    key = await site.key()
    for number in range(10):
        assert (await site.visitor().sign_in(f"wrong {number}")).status == 401
    visitor = site.visitor()
    assert (await visitor.sign_in(key)).status == 429
    assert "Too many wrong keys from this address: try again in" in visitor.page


async def test_without_admin_keys_everybody_else_signs_in(site: ConsoleSite) -> None:
    await site.start(ADMIN_KEY=None, ADMIN_READ_KEY=None, AUTH_TOKEN=TEST_TOKEN)
    assert (await site.visitor().sign_in(ADMIN)).status == 401
    visitor = site.visitor()
    assert (await visitor.sign_in(TEST_TOKEN)).status == 303
    assert (await visitor.get("/")).status == 200
    assert "Spend and limits" in visitor.page


async def test_anonymous_identity_is_no_sign_in(site: ConsoleSite) -> None:
    await site.start(KEYS_DB=None, AUTH_TOKEN=None, ALLOW_ANONYMOUS=None)
    assert (await site.visitor().sign_in("anything")).status == 401


@pytest.mark.parametrize(
    ("following", "location"),
    [
        ("/health", "/health"),
        ("/people/a%20b", "/people/a%20b"),
        *(
            (path, "/")
            for path in (
                *("", "//evil.example", "https://evil.example", "/\\evil.example", "/a//b"),
                *("/a?b", "javascript:alert(1)", "/\r\nSet-Cookie: x=y", "/\u2028", "x"),
            )
        ),
    ],
)
def test_sign_in_leads_to_own_pages_alone(following: str, location: str) -> None:
    assert own_path(following) == location


async def test_page_asked_for_follows_the_sign_in(site: ConsoleSite) -> None:
    await site.start()
    visitor = site.visitor()
    assert (await visitor.get("/health", follow=False)).header("location") == (
        "/console/sign-in?next=/health"
    )
    await visitor.get("/health")
    assert 'name="next" value="/health"' in visitor.page
    response = await visitor.sign_in(ADMIN, "/health")
    assert response.header("location") == "/console/health"
    assert (await visitor.sign_in(ADMIN, "//evil.example")).header("location") == "/console/"


# -- sessions


async def test_session_cookie_is_strict_and_new_with_each_sign_in(site: ConsoleSite) -> None:
    await site.start(TRUSTED_PROXIES="127.0.0.1")
    visitor = site.visitor()
    visitor.cookie = f"{sessions.COOKIE}=fixed-by-somebody-else"
    response = await visitor.sign_in(ADMIN)
    cookie = response.header("set-cookie") or ""
    assert re.fullmatch(
        r"tornadoproxy_console=[\w-]{43}; Path=/console; Max-Age=43200; HttpOnly; SameSite=Strict",
        cookie,
    )
    earlier = visitor.cookie
    response = await visitor.post(
        "/sign-in",
        {"key": ADMIN},
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Prefix", "/proxy"),
    )
    cookie = response.header("set-cookie") or ""
    assert cookie.endswith(
        "; Path=/proxy/console; Max-Age=43200; HttpOnly; SameSite=Strict; Secure"
    )
    assert response.header("location") == "/proxy/console/"
    assert visitor.cookie != earlier
    visitor.cookie = earlier
    await visitor.get("/health")
    assert "<h1>Sign in</h1>" in visitor.page, "a new sign-in ends the earlier session"


async def test_request_without_a_cookie_removes_none(site: ConsoleSite) -> None:
    """A browser that follows a link of another site sends no strict cookie, and keeps it."""
    await site.start()
    response = await site.visitor().get("/health", follow=False)
    assert (response.status, response.header("set-cookie")) == (303, None)


async def test_session_cookie_is_secure_under_tls(site: ConsoleSite, own_tls: OwnTLS) -> None:
    await site.start(**own_tls.settings)
    client = await site.raw(ssl=own_tls.trusting)
    body = urlencode({"key": ADMIN}).encode()
    await client.send(request_bytes("POST", "/console/sign-in", [FORM], body=body))
    response = await client.response()
    assert response.status == 303
    assert (response.header("set-cookie") or "").endswith("; HttpOnly; SameSite=Strict; Secure")
    await client.close()


async def test_session_ends_when_its_key_is_revoked(site: ConsoleSite) -> None:
    proxy = await site.start()
    key = await site.key()
    person, administrator = site.visitor(), site.visitor()
    await person.sign_in(key)
    await administrator.sign_in(ADMIN)
    assert (await person.get("/me")).status == 200
    (document,) = (await site.call("GET", "/api_keys"))["data"]
    await site.call("POST", f"/api_keys/{document['id']}", {"status": "archived"})
    proxy.reload(ADMIN_KEY="x" * 32)
    for visitor in (person, administrator):
        await visitor.get("/")
        assert "<h1>Sign in</h1>" in visitor.page
        assert visitor.cookie == ""


async def test_session_ends_after_its_lifetime(
    site: ConsoleSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "LIFETIME", 0.0)
    await site.start()
    visitor = site.visitor()
    await visitor.sign_in(ADMIN)
    await visitor.get("/health")
    assert "<h1>Sign in</h1>" in visitor.page


def test_sessions_use_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MOST", 2)
    kept = sessions.Sessions()
    tokens = [kept.begin(sessions.holder_of(Secret("x")), is_admin_key=False) for _ in range(3)]
    assert [kept.find(token) is not None for token in tokens] == [False, True, True]


async def test_sign_ins_of_one_person_end_no_other_session(
    site: ConsoleSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MOST", 3)
    await site.start()
    administrator, ada = site.visitor(), await site.key("ada")
    await administrator.sign_in(ADMIN)
    people = [site.visitor() for _ in range(4)]
    for person in people:
        await person.sign_in(ada)
    await administrator.get("/health")
    assert "<h1>Health</h1>" in administrator.page
    shown = []
    for person in people:
        await person.get("/me")
        shown.append("<h1>Me</h1>" in person.page)
    assert shown == [False, False, True, True]


# -- requests of other sites


async def test_form_of_another_site_is_refused(site: ConsoleSite) -> None:
    await site.start()
    visitor = site.visitor()
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
        response = await visitor.post("/sign-in", {"key": ADMIN}, ("Origin", origin))
        assert response.status == 403
    assert (
        await visitor.post("/sign-in", {"key": ADMIN}, ("Origin", "http://127.0.0.1"))
    ).status == 303
    await visitor.get("/health")
    page = visitor.page
    for token in ("", "x", "é"):
        assert (await visitor.post("/sign-out", token=token)).status == 403
        assert "does not belong to your session" in visitor.page
    visitor.page = page
    assert (await visitor.post("/sign-out", {}, ("Origin", "https://evil.example"))).status == 403
    visitor.page = page
    assert (await visitor.post("/sign-out")).status == 303


async def test_every_response_forbids_frames_and_foreign_content(site: ConsoleSite) -> None:
    await site.start()
    visitor = site.visitor()
    await visitor.sign_in(ADMIN)
    for path in ("/", "/sign-in", "/health", "/nothing", "/static/console.css", "/static/x"):
        response = await visitor.get(path, follow=False)
        assert {name: response.header(name) for name in console.HEADERS} == console.HEADERS
        assert (response.header("content-security-policy") or "").startswith("default-src 'self';")
        cached = path == "/static/console.css"
        assert (response.header("cache-control") == "no-store") != cached
        assert not re.search(r"<script>|<style|\son\w+=|\sstyle=|javascript:", visitor.page)


async def test_unknown_page_is_404(site: ConsoleSite) -> None:
    await site.start()
    visitor = site.visitor()
    await visitor.sign_in(ADMIN)
    for path in ("/nothing", "/me/x", "/static/site.py", "/pages/v1/x", "/pages/ready"):
        assert (await visitor.get(path)).status == 404, path
        assert "There is no such page." in visitor.page


async def test_person_sees_no_page_for_administrators(site: ConsoleSite) -> None:
    await site.start(plugins=[Rooms()])
    visitor = site.visitor()
    await visitor.sign_in(await site.key())
    for path in ("/health", "/pages/rooms", *ADMIN_PATHS):
        assert (await visitor.get(path)).status == 404
    assert "Rooms" not in visitor.page


ADMIN_PATHS: tuple[str, ...] = ()


# -- pages


class Rooms:
    """A plugin with a page in the console's navigation."""

    def __init__(self) -> None:
        self.asked: list[PageRequest] = []

    @hookimpl
    def pages(self) -> tuple[Page, ...]:
        def serve(request: PageRequest) -> PageResponse:
            self.asked.append(request)
            return PageResponse(b"<p>Three rooms</p>", "text/html")

        return (Page("/rooms", serve, title=f"Rooms {CANARY}"),)


async def test_page_of_a_plugin_is_in_the_frame(site: ConsoleSite) -> None:
    rooms = Rooms()
    await site.start(plugins=[rooms])
    visitor = site.visitor()
    await visitor.sign_in(ADMIN)
    assert (await visitor.get("/pages/rooms?floor=2")).status == 200
    assert "<p>Three rooms</p>" in visitor.page
    assert 'href="/console/pages/rooms" aria-current="page">Rooms &lt;img' in visitor.page
    (asked,) = rooms.asked
    assert asked.identity is not None
    assert (asked.identity.principal, asked.query) == ("admin-key:ops", {"floor": ("2",)})


async def test_health_shows_the_state_and_no_secret(site: ConsoleSite) -> None:
    secret = "a-password-of-a-setting"
    await site.start(
        HTTPS_PROXY=f"http://user:{secret}@127.0.0.1:9",
        OTEL_EXPORTER_OTLP_HEADERS=f"authorization={secret}",
    )
    visitor = site.visitor()
    await visitor.sign_in(ADMIN)
    await visitor.get("/health")
    text = visitor.page
    for shown in ("LEDGER_DB", "a web console at /console/", "set, not shown", "inactive"):
        assert shown in text
    assert not any(
        secret in text for secret in (secret, ADMIN, READER, TEST_TOKEN, TEST_UPSTREAM_KEY)
    )


async def test_me_shows_only_the_persons_own_usage(site: ConsoleSite) -> None:
    await site.start()
    ada, bob = await site.key("ada"), await site.key("bob")
    await site.call("POST", "/spend_limits", {"scope": {"type": "organization"}, "amount": "200"})
    await site.spend(ada, 25)
    await site.spend(bob, 75)
    visitor = site.visitor()
    await visitor.sign_in(ada)
    assert (await visitor.get("/me")).status == 200
    assert "$0.26" in visitor.page, "25 cents, and a cent of input"
    assert "$1.74 left of $2.00" in visitor.page
    assert "bob" not in visitor.page
    assert "$0.76" not in visitor.page
    assert "ANTHROPIC_BASE_URL=http://127.0.0.1" in visitor.page


async def test_me_without_stores_says_so(site: ConsoleSite) -> None:
    await site.start(LEDGER_DB=None, BUDGETS_DB=None)
    visitor = site.visitor()
    await visitor.sign_in(await site.key())
    await visitor.get("/me")
    assert "This proxy has no ledger: LEDGER_DB is not set." in visitor.page
    assert "This proxy has no budgets: BUDGETS_DB is not set." in visitor.page


async def test_names_are_text(site: ConsoleSite) -> None:
    await site.start()
    for name in (CANARY, "\"'><svg onload=alert(1)>", "a&amp;b"):
        visitor = site.visitor()
        await visitor.sign_in(await site.key(name))
        assert (await visitor.get("/me")).status == 200
        assert name not in visitor.page
        assert name in unescape(visitor.page)


def test_each_text_is_used() -> None:
    folder = Path(texts.__file__).parent
    files = [*folder.glob("*.py"), *folder.glob("templates/*")]
    written = "".join(file.read_text() for file in files)
    names = [name for name in vars(texts) if name.isupper()]
    assert len(names) > 100
    words = Counter(re.findall(r"\w+", written))
    assert [name for name in names if words[name] < 2] == []

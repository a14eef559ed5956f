"""Open mode: which anonymous requests a web page may have sent, and are refused."""

from __future__ import annotations

import pytest
from tornado.httputil import HTTPHeaders

from tornadoproxy import Denied
from tornadoproxy.protocol.browser_guard import check_not_from_web_page

ALLOWED = frozenset({"claude.example", "192.0.2.7", "2001:db8::7"})


def check(*lines: tuple[str, str]) -> None:
    headers = HTTPHeaders()
    for name, value in lines:
        headers.add(name, value)
    check_not_from_web_page(headers, ALLOWED)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "LocalHost:8000",
        "localhost.",
        "localhost.:8000",
        "127.0.0.1",
        "127.0.0.1:8000",
        "127.1.2.3:8000",
        "[::1]",
        "[::1]:8000",
        "claude.example",
        "Claude.Example:443",
        "claude.example.",
        "192.0.2.7:8000",
        "[2001:db8::7]:8000",
    ],
)
def test_a_host_of_ours_is_served(host: str) -> None:
    check(("Host", host))


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "evil-localhost",
        "127.0.0.1.evil.example",
        "127.0.0.1.nip.io:8000",
        "claude.example.evil.example",
        "sub.claude.example",
        "0.0.0.0:8000",
        "[::]:8000",
        "192.0.2.8",
        "[2001:db8::8]",
        "169.254.169.254",
        "10.0.0.1",
        "2130706433",
        "127.1",
    ],
)
def test_another_host_is_refused(host: str) -> None:
    """A page may have its own name point to a loopback address: DNS rebinding."""
    with pytest.raises(Denied) as raised:
        check(("Host", host))
    assert raised.value.status == 403
    for way_out in ("localhost", "ALLOWED_HOSTS", "AUTH_TOKEN"):
        assert way_out in raised.value.message


def test_a_client_of_http_1_0_may_name_no_host() -> None:
    """No browser sends such a request."""
    check()


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("localhost", "http://localhost"),
        ("LOCALHOST:8000", "http://localhost:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("claude.example", "https://claude.example"),
    ],
)
def test_a_page_of_ours_is_served(host: str, origin: str) -> None:
    check(("Host", host), ("Origin", origin), ("Sec-Fetch-Site", "same-origin"))


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://evil.example",
        "http://localhost",
        "http://localhost:3000",
        "http://127.0.0.1:8000",
        "http://localhost:8000.evil.example",
        "http://evil.example/localhost:8000",
        "http://evil.example?http://localhost:8000",
        "http://localhost:8000, http://evil.example",
        "null",
        "file://",
        "chrome-extension://abcdef",
        "localhost:8000",
        "",
        "http://[",
        "http://[::1",
        "://",
        "\xff",
    ],
)
@pytest.mark.parametrize("host", ["localhost:8000", None])
def test_a_page_of_another_origin_is_refused(host: str | None, origin: str) -> None:
    lines = [("Origin", origin)] if host is None else [("Host", host), ("Origin", origin)]
    with pytest.raises(Denied):
        check(*lines)


def test_one_origin_of_several_is_enough_to_refuse() -> None:
    for origins in (["http://localhost", "http://evil.example"], ["null", "http://localhost"]):
        with pytest.raises(Denied):
            check(("Host", "localhost"), *(("Origin", origin) for origin in origins))


@pytest.mark.parametrize("site", ["none", "same-origin"])
def test_what_the_user_began_is_served(site: str) -> None:
    check(("Host", "localhost"), ("Sec-Fetch-Site", site))


@pytest.mark.parametrize("site", ["cross-site", "same-site", "of-tomorrow", ""])
def test_what_another_site_began_is_refused(site: str) -> None:
    """Browsers send no Origin with a plain GET, an image's say, but they do say this."""
    with pytest.raises(Denied):
        check(("Host", "localhost"), ("Sec-Fetch-Site", site))


def test_an_allowed_host_does_not_allow_its_pages_elsewhere() -> None:
    with pytest.raises(Denied):
        check(("Host", "localhost:8000"), ("Origin", "https://claude.example"))

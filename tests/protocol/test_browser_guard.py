"""The refusal of anonymous requests that a web page may have sent."""

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
        *("localhost", "LocalHost:8000", "localhost.", "localhost.:8000"),
        *("127.0.0.1", "127.1.2.3:8000", "[::1]", "[::1]:8000"),
        *("Claude.Example:443", "claude.example.", "192.0.2.7:8000", "[2001:db8::7]:8000"),
    ],
)
def test_loopback_or_allowed_host_is_accepted(host: str) -> None:
    check(("Host", host))


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example:8000", "localhost.evil.example", "evil-localhost", "notlocalhost"),
        *("127.0.0.1.evil.example", "127.0.0.1.nip.io:8000", "claude.example.evil.example"),
        *("sub.claude.example", "0.0.0.0:8000", "[::]:8000", "192.0.2.8", "[2001:db8::8]"),
        *("169.254.169.254", "10.0.0.1", "2130706433", "0", "127.1"),
    ],
)
def test_other_host_is_refused(host: str) -> None:
    """DNS rebinding: a page may point its own name to a loopback address."""
    with pytest.raises(Denied) as caught:
        check(("Host", host))
    assert caught.value.status == 403
    for remedy in ("localhost", "ALLOWED_HOSTS", "AUTH_TOKEN"):
        assert remedy in caught.value.message


def test_http_1_0_request_without_host_is_accepted() -> None:
    check()


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("LOCALHOST", "http://localhost"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("claude.example", "https://claude.example"),
    ],
)
def test_own_origin_is_accepted(host: str, origin: str) -> None:
    check(("Host", host), ("Origin", origin), ("Sec-Fetch-Site", "same-origin"))


@pytest.mark.parametrize(
    "origin",
    [
        *("http://evil.example", "https://claude.example", "http://localhost"),
        *("http://localhost:3000", "http://127.0.0.1:8000", "http://localhost:8000.evil.example"),
        *("http://evil.example/localhost:8000", "http://evil.example?http://localhost:8000"),
        *("http://localhost:8000, http://evil.example", "localhost:8000", "null", "", "file://"),
        *("chrome-extension://abcdef", "http://[", "http://[::1", "://", "\xff"),
    ],
)
def test_other_origin_is_refused(origin: str) -> None:
    for host in ([("Host", "localhost:8000")], []):
        with pytest.raises(Denied, match="serves no other site's pages"):
            check(*host, ("Origin", origin))


def test_one_other_origin_among_several_is_refused() -> None:
    for origins in (["http://localhost", "http://evil.example"], ["null", "http://localhost"]):
        with pytest.raises(Denied):
            check(("Host", "localhost"), *(("Origin", origin) for origin in origins))


@pytest.mark.parametrize(
    ("site", "refused"),
    [
        *(("none", False), ("same-origin", False)),
        *((site, True) for site in ("cross-site", "same-site", "of-tomorrow", "")),
    ],
)
def test_request_begun_by_other_site_is_refused(site: str, *, refused: bool) -> None:
    """Browsers send no Origin with a plain GET, such as an image's, but they send this."""
    lines = ("Host", "localhost"), ("Sec-Fetch-Site", site)
    if refused:
        with pytest.raises(Denied):
            check(*lines)
    else:
        check(*lines)

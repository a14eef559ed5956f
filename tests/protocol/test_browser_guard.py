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
        *("localhost", "LocalHost:8000", "localhost.:8000", "127.1.2.3:8000", "[::1]"),
        *("Claude.Example:443", "192.0.2.7:8000", "[2001:db8::7]:8000"),
    ],
)
def test_loopback_or_allowed_host_is_accepted_with_its_own_origin(host: str) -> None:
    check(("Host", host), ("Sec-Fetch-Site", "none"))
    for own in (f"http://{host.lower()}", f"https://{host.lower()}"):
        check(("Host", host), ("Origin", own), ("Sec-Fetch-Site", "same-origin"))
    check()  # HTTP/1.0 has no Host


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io:8000"),
        *("sub.claude.example", "0.0.0.0:8000", "[::]:8000", "192.0.2.8", "2130706433", "127.1"),
    ],
)
def test_other_host_is_refused(host: str) -> None:
    """DNS rebinding: a page may point its own name to a loopback address."""
    with pytest.raises(Denied, match=r"localhost.*ALLOWED_HOSTS.*AUTH_TOKEN") as caught:
        check(("Host", host))
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "line",
    [
        *(("Origin", each) for each in ("null", "", "http://[", "://", "\xff", "localhost:8000")),
        *(("Origin", f"http://{each}") for each in ("evil.example", "localhost", "localhost:3000")),
        ("Origin", "http://localhost:8000.evil.example"),
        ("Origin", "http://evil.example?http://localhost:8000"),
        ("Origin", "http://localhost:8000, http://evil.example"),
        # browsers send no Origin with a plain GET, such as an image's, but they send this
        *(("Sec-Fetch-Site", site) for site in ("cross-site", "same-site", "")),
    ],
)
def test_request_of_another_site_is_refused(line: tuple[str, str]) -> None:
    for host in ([("Host", "localhost:8000")], []):
        with pytest.raises(Denied, match="serves no other site's pages"):
            check(*host, line)

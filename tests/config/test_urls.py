"""Base URLs and origins: normalized, and refused if ambiguous."""

from __future__ import annotations

import re

import pytest

from tornadoproxy import BaseURL, parsers


@pytest.mark.parametrize(
    ("texts", "url", "authority"),
    [
        ("https://a.com https://a.com/ https://a.com:443 HTTPS://A.COM.", "https://a.com", "a.com"),
        ("http://h:80", "http://h", "h"),
        ("http://h:443", "http://h:443", "h:443"),
        ("http://[0:0::1]", "http://[::1]", "[::1]"),
        ("http://[::1]:9/a", "http://[::1]:9/a", "[::1]:9"),
        ("https://h/A/%C3%BC/~x;y=1/", "https://h/A/%C3%BC/~x;y=1", "h"),
        ("https://h/v1/account", "https://h/v1/account", "h"),
        ("https://h/v10", "https://h/v10", "h"),
    ],
)
def test_base_url_is_normalized(texts: str, url: str, authority: str) -> None:
    for text in texts.split():
        parsed = parsers.base_url(text)
        assert (str(parsed), parsed.authority) == (url, authority)
        assert parsed.origin == f"{parsed.scheme}://{authority}"
        assert parsers.base_url(str(parsed)) == parsed
    assert parsers.base_url("https://[::1]/a/b/") == BaseURL("https", "::1", 443, "/a/b")


NO_HOST = r"""
    https:// https:///a https://h: https://h:x https://h:123456 https://::1 https://[::1
    https://[h] https://[127.0.0.1] https://[fe80::1%25eth0] https://1.2.3 https://a\b https://-
"""


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ("https://ü.example https://h/ü", "must be ASCII"),
        ("h //h ftp://h https:/h https:h /a", "must begin with https:// or"),
        ("https://h?a=b https://h/#a https://h/a?", "neither a query nor a fragment"),
        ("https://u@h https://u:p@h https://@h", "must contain no user or password"),
        (NO_HOST, "must name a host, and perhaps a port"),
        ("https://h:0 https://h:65536", "must have a port from 1 to 65535"),
        (r'https://h/a\b https://h/%zz https://h/% https://h/"', "must contain only characters"),
        ("https://h/a%2Fb https://h/a%5cb", "no encoded slash or backslash"),
        ("https://h//a https://h/a//b", "must contain no double slash"),
        ("https://h/. https://h/../a https://h/a/%2e%2E https://h/.%2e/a", "contain no . or .. as"),
        ("https://h/v1 https://h/v1/ https://h/a/v1", "must not end in /v1: every request's path"),
        ("https://h/v1/messages", "must not end in /v1/messages"),
    ],
)
def test_base_url_ambiguous_is_refused(texts: str, told: str) -> None:
    for text in texts.split():
        with pytest.raises(ValueError, match=re.escape(told)):
            parsers.base_url(text)


@pytest.mark.parametrize("text", ["https://a b", "https://h\n", "https://h/\x7f"])
def test_base_url_with_spaces_or_controls_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must not contain spaces or control characters"):
        parsers.base_url(text)


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        (" https://a.example \t,http://b.example", ("https://a.example", "http://b.example")),
        ("HTTPS://App.Example.COM:443", ("https://app.example.com",)),
        ("http://app.example.com:443", ("http://app.example.com:443",)),
        ("http://[0:0:0:0:0:0:0:1]", ("http://[::1]",)),
    ],
)
def test_origins_become_what_browsers_send(text: str, origins: tuple[str, ...]) -> None:
    assert parsers.origins(text) == origins


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ("app.example.com a.example:3000 //a.example ftp://a.example null", "must be origins such"),
        ("https://a.example/ https://a.example?x https://a.example#x", "must be origins such as"),
        ("https:// https://a.example: https://a..example https://::1", "must name a host"),
        ("https://a.example:65536", "must have a port from 1 to 65535"),
        ("https://word@a.example https://x:word@a.example", "must contain no user or password"),
        ("* https://* https://*.example.com", "must name each origin in full"),
    ],
)
def test_origin_that_no_browser_sends_is_refused(texts: str, told: str) -> None:
    for text in texts.split():
        for given in (text, f"https://a.example {text}"):
            with pytest.raises(ValueError, match=f"^{told}") as caught:
                parsers.origins(given)
            assert "word@" not in str(caught.value)

"""The client's address, scheme and prefix, behind a trusted proxy and without one."""

from __future__ import annotations

import pytest
from tornado.httputil import HTTPHeaders

from tornadoproxy import parsers
from tornadoproxy.protocol.client_address import client_address, client_prefix, client_scheme

TRUSTED = parsers.networks("10.0.0.0/8, 192.0.2.1, 2001:db8::/32")
PROXY, STRANGER = "10.0.0.1", "203.0.113.1"


def forwarded(*lines: str, name: str = "X-Forwarded-For") -> HTTPHeaders:
    headers = HTTPHeaders()
    for line in lines:
        headers.add(name, line.strip())
    return headers


@pytest.mark.parametrize(
    ("address", "lines"),
    [
        (PROXY, []),
        ("203.0.113.9", ["  203.0.113.9\t"]),
        # entries left of the first untrusted address are not trusted
        ("203.0.113.9", ["6.6.6.6, 203.0.113.9", "10.0.0.2,192.0.2.1"]),
        ("203.0.113.9", ["<script>, 203.0.113.9, 2001:db8::5"]),
        ("10.0.0.3", ["10.0.0.3, 10.0.0.2"]),
        # the forms that load balancers send
        ("203.0.113.9", ["[::ffff:203.0.113.9]:80"]),
        ("203.0.113.9", ["6.6.6.6, 203.0.113.9:1, 10.0.0.2:2, [2001:db8::5]:3, ::ffff:10.0.0.3"]),
        ("2001:db9::9", ["[2001:db9::9]"]),
        ("2001:db9::9", ["2001:DB9:0::0:9"]),
        ("fe80::1", ["fe80::1%eth0"]),
        # neither the load balancer's own address nor an entry left of the invalid one
        *(("unknown", [entry]) for entry in ("", "_hidden", "0x0a000001", "010.0.0.1")),
        *(("unknown", [f"203.0.113.9{end}"]) for end in (", ", ", unknown, 10.0.0.2", "%eth0")),
        *(("unknown", [f"203.0.113.9{end}"]) for end in (":123456", ":http", "99")),
        ("unknown", ["2001:db9::9]:1234"]),
    ],
)
def test_forwarded_address_is_the_last_untrusted_one(lines: list[str], address: str) -> None:
    assert client_address(PROXY, forwarded(*lines), TRUSTED) == address


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("10.255.0.1", "203.0.113.9"),
        ("192.0.2.1", "203.0.113.9"),
        ("::ffff:10.0.0.1", "203.0.113.9"),
        ("2001:db8::1%2", "203.0.113.9"),
        *((peer, peer) for peer in (STRANGER, "192.0.2.2", "2001:db9::1")),
    ],
)
def test_forwarded_address_of_peer_outside_networks_is_ignored(peer: str, address: str) -> None:
    assert client_address(peer, forwarded("203.0.113.9"), TRUSTED) == address


@pytest.mark.parametrize(
    ("peer", "address"),
    [("::ffff:127.0.0.1", "127.0.0.1"), ("FE80::0:1%eth0", "fe80::1"), ("", "unknown")],
)
def test_peer_address_without_trust_is_in_its_shortest_form(peer: str, address: str) -> None:
    assert client_address(peer, forwarded("203.0.113.9"), ()) == address


def test_networks_may_be_written_as_ipv4_mapped() -> None:
    mapped = parsers.networks("::ffff:10.0.0.0/104 ::ffff:192.0.2.1")
    assert mapped == parsers.networks("10.0.0.0/8 192.0.2.1")


def test_other_address_headers_are_ignored() -> None:
    headers = HTTPHeaders({"Forwarded": "for=203.0.113.9", "X-Real-IP": "203.0.113.9"})
    assert client_address(PROXY, headers, TRUSTED) == PROXY


@pytest.mark.parametrize(
    ("lines", "scheme"),
    [
        (["HTTPS"], "https"),
        (["https,http"], "http"),
        (["http", "https"], "https"),
        *(([line], None) for line in ("ftp", "https, ", "")),
        ([], None),
    ],
)
def test_forwarded_scheme_is_the_last_valid_one(lines: list[str], scheme: str | None) -> None:
    headers = forwarded(*lines, name="X-Forwarded-Proto")
    for own in ("http", "https"):
        assert client_scheme(own, PROXY, headers, TRUSTED) == (scheme or own)
        assert client_scheme(own, STRANGER, headers, TRUSTED) == own
        assert client_scheme(own, PROXY, headers, ()) == own


@pytest.mark.parametrize(
    ("lines", "prefix"),
    [
        ([], ""),
        (["/a/b-c/%7Ed/"], "/a/b-c/%7Ed"),
        (["/spoofed, /claude"], "/claude"),
        (["/spoofed", "/claude"], "/claude"),
        *(([line], "") for line in ("/", "claude", "//evil.example", '/a"b', "/a?b", "/a\\b")),
    ],
)
def test_forwarded_prefix_is_the_last_valid_path(lines: list[str], prefix: str) -> None:
    headers = forwarded(*lines, name="X-Forwarded-Prefix")
    assert client_prefix(PROXY, headers, TRUSTED) == prefix
    assert client_prefix(STRANGER, headers, TRUSTED) == ""
    assert client_prefix(PROXY, headers, ()) == ""

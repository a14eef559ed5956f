"""Who a request comes from: the peer, or whom a trusted proxy names."""

from __future__ import annotations

import pytest
from tornado.httputil import HTTPHeaders

from tornadoproxy import parsers
from tornadoproxy.protocol.client_address import client_address, client_prefix, client_scheme

TRUSTED = parsers.networks("10.0.0.0/8, 192.0.2.1, 2001:db8::/32")


def forwarded(*lines: str, name: str = "X-Forwarded-For") -> HTTPHeaders:
    headers = HTTPHeaders()
    for line in lines:
        headers.add(name, line)
    return headers


class TestClientAddress:
    @pytest.mark.parametrize(
        ("lines", "address"),
        [
            ([], "10.0.0.1"),
            (["203.0.113.9"], "203.0.113.9"),
            (["  203.0.113.9\t"], "203.0.113.9"),
            (["2001:db9::9"], "2001:db9::9"),
            # what stands left of the first stranger is that stranger's word
            (["6.6.6.6, 203.0.113.9"], "203.0.113.9"),
            (["127.0.0.1,203.0.113.9"], "203.0.113.9"),
            (["6.6.6.6", "203.0.113.9"], "203.0.113.9"),
            (["6.6.6.6", "203.0.113.9, 10.0.0.2"], "203.0.113.9"),
            (["6.6.6.6, 203.0.113.9", "10.0.0.2, 192.0.2.1"], "203.0.113.9"),
            (["203.0.113.9, 2001:db8::5, 10.9.9.9"], "203.0.113.9"),
            # proxies all the way
            (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            # the forms that balancers send
            (["203.0.113.9:1234"], "203.0.113.9"),
            (["[2001:db9::9]:1234"], "2001:db9::9"),
            (["[2001:db9::9]"], "2001:db9::9"),
            (["::ffff:203.0.113.9"], "203.0.113.9"),
            (["[::ffff:203.0.113.9]:80"], "203.0.113.9"),
            (["2001:DB9:0::0:9"], "2001:db9::9"),
            (["fe80::1%eth0"], "fe80::1"),
            (
                ["6.6.6.6, 203.0.113.9:1, 10.0.0.2:2, [2001:db8::5]:3, ::ffff:10.0.0.3"],
                "203.0.113.9",
            ),
            (["<script>, 203.0.113.9"], "203.0.113.9"),
            # nobody's: neither the balancer's own address nor what stands left of it
            (["unknown"], "unknown"),
            ([""], "unknown"),
            (["203.0.113.9, "], "unknown"),
            (["203.0.113.9, unknown"], "unknown"),
            (["203.0.113.9, unknown, 10.0.0.2"], "unknown"),
            (["_hidden"], "unknown"),
            (["203.0.113.9:123456"], "unknown"),
            (["203.0.113.9:http"], "unknown"),
            (["2001:db9::9]:1234"], "unknown"),
            (["203.0.113.9%eth0"], "unknown"),
            (["203.0.113.999"], "unknown"),
            (["0x0a000001"], "unknown"),
            (["010.0.0.1"], "unknown"),
        ],
    )
    def test_behind_a_trusted_proxy(self, lines: list[str], address: str) -> None:
        headers = forwarded(*(line.strip() for line in lines))
        assert client_address("10.0.0.1", headers, TRUSTED) == address

    @pytest.mark.parametrize(
        "peer", ["10.255.0.1", "192.0.2.1", "2001:db8:1::1", "::ffff:10.0.0.1", "2001:db8::1%2"]
    )
    def test_any_trusted_network_will_do(self, peer: str) -> None:
        assert client_address(peer, forwarded("203.0.113.9"), TRUSTED) == "203.0.113.9"

    @pytest.mark.parametrize("peer", ["203.0.113.1", "192.0.2.2", "2001:db9::1", "::1"])
    def test_a_stranger_is_not_believed(self, peer: str) -> None:
        assert client_address(peer, forwarded("127.0.0.1"), TRUSTED) == peer

    @pytest.mark.parametrize(
        ("peer", "address"),
        [("::ffff:127.0.0.1", "127.0.0.1"), ("FE80::0:1%eth0", "fe80::1"), ("", "unknown")],
    )
    def test_peer_address_is_in_its_shortest_form(self, peer: str, address: str) -> None:
        assert client_address(peer, forwarded(), ()) == address

    def test_trusted_network_may_be_written_as_ipv4_mapped(self) -> None:
        trusted = parsers.networks("::ffff:10.0.0.0/104 ::ffff:192.0.2.1")
        assert trusted == parsers.networks("10.0.0.0/8 192.0.2.1")

    def test_nobody_is_trusted_unless_named(self) -> None:
        assert client_address("127.0.0.1", forwarded("203.0.113.9"), ()) == "127.0.0.1"

    def test_other_headers_are_not_looked_at(self) -> None:
        headers = HTTPHeaders({"Forwarded": "for=203.0.113.9", "X-Real-IP": "203.0.113.9"})
        assert client_address("10.0.0.1", headers, TRUSTED) == "10.0.0.1"


class TestClientScheme:
    @pytest.mark.parametrize(
        ("lines", "scheme"),
        [
            ([], "http"),
            (["https"], "https"),
            (["HTTPS"], "https"),
            (["http"], "http"),
            (["http, https"], "https"),
            (["https,http"], "http"),
            (["http", "https"], "https"),
            (["ftp"], "http"),
            (["https, "], "http"),
            (["javascript"], "http"),
            ([""], "http"),
        ],
    )
    def test_behind_a_trusted_proxy(self, lines: list[str], scheme: str) -> None:
        headers = forwarded(*(line.strip() for line in lines), name="X-Forwarded-Proto")
        assert client_scheme("http", "10.0.0.1", headers, TRUSTED) == scheme

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_a_proxy_that_says_nothing(self, scheme: str) -> None:
        assert client_scheme(scheme, "10.0.0.1", HTTPHeaders(), TRUSTED) == scheme

    def test_may_be_lower_than_the_connections(self) -> None:
        headers = forwarded("http", name="X-Forwarded-Proto")
        assert client_scheme("https", "10.0.0.1", headers, TRUSTED) == "http"

    @pytest.mark.parametrize("peer", ["203.0.113.1", "", "unix"])
    def test_a_stranger_is_not_believed(self, peer: str) -> None:
        headers = forwarded("https", name="X-Forwarded-Proto")
        assert client_scheme("http", peer, headers, TRUSTED) == "http"

    def test_nobody_is_trusted_unless_named(self) -> None:
        headers = forwarded("https", name="X-Forwarded-Proto")
        assert client_scheme("http", "10.0.0.1", headers, ()) == "http"


class TestClientPrefix:
    @pytest.mark.parametrize(
        ("lines", "prefix"),
        [
            ([], ""),
            (["/claude"], "/claude"),
            (["/a/b-c/%7Ed/"], "/a/b-c/%7Ed"),
            (["/spoofed, /claude"], "/claude"),
            (["/spoofed", "/claude"], "/claude"),
            (["/"], ""),
            (["claude"], ""),
            (["//evil.example"], ""),
            (['/a"b'], ""),
            (["/a b"], ""),
            (["/a?b"], ""),
            (["/a\\b"], ""),
        ],
    )
    def test_trusted_proxy_names_path_it_took_off(self, lines: list[str], prefix: str) -> None:
        headers = forwarded(*lines, name="X-Forwarded-Prefix")
        assert client_prefix("10.0.0.1", headers, TRUSTED) == prefix
        assert client_prefix("203.0.113.1", headers, TRUSTED) == ""
        assert client_prefix("10.0.0.1", headers, ()) == ""

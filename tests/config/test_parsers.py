"""Parsers of settings: what each accepts and refuses."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest
import trustme
from given import CANARY

from tornadoproxy import Secret, parsers
from tornadoproxy.config import responses_settings
from tornadoproxy.config.urls import EgressProxy

LONGEST_HOST = ".".join(["a" * 63] * 4)[:253]


@pytest.mark.parametrize(
    ("parse", "values"),
    [
        (parsers.text, {"a b": "a b"}),
        (parsers.date, {"2026-10-21": "2026-10-21"}),
        (parsers.integer(0, 65_535), {"0": 0, "65535": 65_535}),
        (parsers.integer(), {"-3": -3}),
        (parsers.seconds(), {"0": 0.0, ".5": 0.5, "600": 600.0, "31536000": 31_536_000.0}),
        (parsers.size, {"1": 1, "1b": 1, "2kB": 2048, "2k": 2048, "1TB": 1 << 40}),
        (parsers.size, {"32MB": 32 << 20, "32 MiB": 32 << 20, "1.5 gib": 3 << 29}),
        (parsers.boolean, {"1": True, "TRUE": True, "yes": True, "On": True}),
        (parsers.boolean, {"0": False, "false": False, "No": False, "off": False}),
        (parsers.choice("a", "b"), {"B": "b"}),
        (parsers.words, {"": (), "a, b  c,,\td": ("a", "b", "c", "d")}),
        (parsers.secret, {"a,b": Secret("a,b"), "ü": Secret("ü"), "\udcff": Secret(b"\xff")}),
        (parsers.secrets, {"a  b,c": (Secret("a"), Secret("b,c"))}),
        (parsers.networks, {"": (), "127.0.0.1": (ip_network("127.0.0.1/32"),)}),
        (
            parsers.networks,
            {"10.0.0.0/8, fd00::/8": (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))},
        ),
        (parsers.host, {"127.0.0.1": "127.0.0.1", "::": "::", "[::1]": "::1", "0:0::1": "::1"}),
        (
            parsers.host,
            {"Proxy.Example.": "proxy.example", "p_1": "p_1", LONGEST_HOST: LONGEST_HOST},
        ),
        (parsers.hosts, {"A.example [::1]": ("a.example", "::1")}),
        (parsers.listen_address, {"unix:/" + "x" * 106: "unix:/" + "x" * 106}),
        (parsers.egress_proxy, {"": None, "http://[::1]:1": EgressProxy("::1", 1)}),
        (parsers.egress_proxy, {"p.example:3128": EgressProxy("p.example", 3128)}),
        (parsers.egress_proxy, {"HTTP://p.example/": EgressProxy("p.example", 80)}),
        (parsers.egress_proxy, {"http://u:p%40%3a@p:1": EgressProxy("p", 1, Secret("u:p@:"))}),
    ],
)
def test_parser_accepts(parse: Callable[[str], object], values: dict[str, object]) -> None:
    for text, value in values.items():
        assert parse(text) == value
        assert type(parse(text)) is type(value)


NOT_NUMBERS = ["", "-1", "1_0", "٣", "1e3", "1 2", "9" * 400]
NOT_HOSTS = [
    *("", "a b", "*", "a:80", "127.0.0.1:80", "300.0.0.1", "127.1", "http://a", "[a]", ":::"),
    *("-a", "a-", "a..b", ".", "a" * 64, f"{LONGEST_HOST}a"),
]


@pytest.mark.parametrize(
    ("parse", "texts", "told"),
    [
        (parsers.text, ["a\nb", "a\0b"], "must be one line"),
        (parsers.date, ["2023-6-1", "latest", "2023-06-01\n"], "a date such as 2023-06-01"),
        (
            parsers.integer(0, 65_535),
            [*NOT_NUMBERS, "65536", "1.5", "0x1"],
            "must be a whole number from 0 to 65535, not ",
        ),
        (parsers.integer(minimum=1), ["0"], "must be a whole number of at least 1, not '0'"),
        (parsers.integer(maximum=1), ["2"], "must be a whole number of at most 1, not '2'"),
        (
            parsers.seconds(),
            [*NOT_NUMBERS, "nan", "inf", "-inf", "10s", "1,5", "31536000.1"],
            "must be a number of seconds from 0 to 31536000, without a unit, not ",
        ),
        (parsers.seconds(minimum=0.001), ["0.0001"], "from 0.001 to 31536000"),
        (
            parsers.size,
            [*NOT_NUMBERS, "0", "0.9", "inf", "nan", "MB", "1 PB", "1 M B"],
            "must be a number of bytes such as 1048576, 32MB or 1.5GB, not ",
        ),
        (parsers.boolean, ["", "2", "truee"], "must be yes or no, not "),
        (parsers.choice("a", "b"), ["", "c", "a b"], "must be one of a, b, not "),
        (responses_settings.store, ["no", "None", "yes", "0"], "must be memory, off, a file or "),
        (parsers.words, ["a\nb"], "must be one line"),
        (parsers.secret, ["a b", "a\nb"], "must be one value, without spaces inside it"),
        (parsers.secret, ["a\0b", "a\x7f"], "must contain no control characters"),
        (parsers.secrets, ["a b\x01"], "must contain no control characters"),
        (parsers.networks, ["10.0.0.1/8"], "host bits: write 10.0.0.0/8, not '10.0.0.1/8'"),
        (
            parsers.networks,
            ["10.0.0.0/33", "proxy.example", "::1, x"],
            "must be IP addresses or networks such as 10.0.0.0/8, not ",
        ),
        (parsers.host, NOT_HOSTS, "must be a host name or an IP address, without "),
        (parsers.hosts, ["a.example, b.example:80"], "not 'b.example:80'"),
        (
            parsers.listen_address,
            ["unix:", "unix:relative", "unix:/" + "x" * 107],
            "must be unix: and an absolute path of at most 107 bytes",
        ),
        (parsers.egress_proxy, ["https://p", "socks5://p"], "must begin with http://: other kinds"),
        (
            parsers.egress_proxy,
            ["http://p.example/x", "http://p.example?x", "http://a b"],
            "must be http://host:port, perhaps with user:password@",
        ),
        (parsers.egress_proxy, ["http://u:%0a@p"], "no control characters in its user"),
        (parsers.egress_proxy, ["http://", "http://:1", "http://p:x"], "must name a host"),
    ],
)
def test_parser_refuses(parse: Callable[[str], object], texts: list[str], told: str) -> None:
    for text in texts:
        with pytest.raises(ValueError, match=re.escape(told)):
            parse(text)


@pytest.mark.parametrize(
    ("content", "secrets"),
    [
        (b"\xef\xbb\xbf  one \r\n\n", [b"one"]),
        (b"\xff\xfe,\n", [b"\xff\xfe,"]),
        (b"one\ntwo three\n", [b"one", b"two", b"three"]),
    ],
)
def test_secrets_file_is_read(tmp_path: Path, content: bytes, secrets: list[bytes]) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    assert [each.reveal() for each in parsers.secrets_file(str(path))] == secrets
    if len(secrets) == 1:
        assert parsers.secret_file(str(path)).reveal() == secrets[0]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "names an empty file: write the secret into it"),
        (b"\xef\xbb\xbf \n", "names an empty file: write the secret into it"),
        (f"{CANARY}\0".encode(), "must name a text file: its secrets must contain no"),
        (f"{CANARY} {CANARY}".encode(), "must name a file that holds one value, without"),
        (CANARY.encode() * 8192, "must name a file that holds a secret, but the file is"),
    ],
)
def test_secret_file_without_a_secret_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(told)) as raised:
        parsers.secret_file(str(path))
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["your-secret-token-here", "YOUR-KEY", "sk-ant-your-key", "ops=change-me", "…"]
)
def test_placeholder_is_refused_by_every_parser_of_secrets(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secret"
    path.write_text(text)
    parse: Callable[[str], object]
    for parse, value in (
        (parsers.secret, text),
        (parsers.secrets, f"{CANARY} {text}"),
        (parsers.secret_file, str(path)),
    ):
        with pytest.raises(ValueError, match="the documentation's placeholder"):
            parse(value)


@pytest.mark.parametrize("parse", [parsers.secrets_file, parsers.readable_file])
def test_file_that_cannot_be_read_is_refused(
    tmp_path: Path, parse: Callable[[str], object]
) -> None:
    os.mkfifo(tmp_path / "pipe")  # which is not waited for
    for name, reason in (
        ("absent", "No such file or directory"),
        ("", "Is a directory"),
        ("a\0b", "it is not a path"),
        ("pipe", "Not a regular file"),
    ):
        with pytest.raises(ValueError, match=f"must name a readable file.*: {reason}$"):
            parse(f"{tmp_path}/{name}")


def test_certificates_file_holds_certificates(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    assert parsers.certificates_file(str(path)) == path
    path.write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    with pytest.raises(ValueError, match="must name a PEM file with certificates"):
        parsers.certificates_file(str(path))

"""A batch's results_url: its origin becomes the proxy's, and no other byte changes."""

from __future__ import annotations

import json

import pytest

from tornadoproxy.protocol.results_url import PATH_PREFIX, rewrite

ORIGIN = "https://claude.example:8443"
UPSTREAM = "https://api.anthropic.com"
PATH = f"{PATH_PREFIX}/msgbatch_01/results"


def batch(url: object, indent: int | None = None) -> bytes:
    document = {"id": "msgbatch_01", "results_url": url, "x": "é 😀"}
    return json.dumps(document, indent=indent, ensure_ascii=False).encode()


@pytest.mark.parametrize("origin", [UPSTREAM, "http://[::1]:9", "https://gateway.example/a/prefix"])
@pytest.mark.parametrize("indent", [None, 2])
def test_results_url_gets_the_proxys_origin(origin: str, indent: int | None) -> None:
    for path in (PATH, f"{PATH}?a=b&c=%2F"):
        assert rewrite(batch(origin + path, indent), ORIGIN) == batch(ORIGIN + path, indent)


def test_results_urls_of_a_compact_list_are_rewritten() -> None:
    def page(origin: str) -> bytes:
        urls = [f"{origin}{PATH_PREFIX}/msgbatch_0{number}/results" for number in range(3)]
        entries = [{"results_url": url} for url in [*urls, None]]
        return json.dumps({"data": entries}, separators=(",", ":")).encode()

    assert rewrite(page(UPSTREAM), ORIGIN) == page(ORIGIN)


@pytest.mark.parametrize(
    "body",
    [
        *(batch(url) for url in (None, f"{UPSTREAM}/v1/elsewhere", PATH, "ftp://a.example" + PATH)),
        batch([UPSTREAM + PATH]),
        json.dumps({"other_url": UPSTREAM + PATH}).encode(),
        # JSON within a string is text
        json.dumps({"x": batch(UPSTREAM + PATH).decode()}).encode(),
        b'{"results_url": "https://api.anthropic.com", "x": "%b"}' % PATH.encode(),
        b'{"results_url": "https://api.anthropic.com\\"%b"}' % PATH.encode(),
        b"\xff\x00 results_url",
    ],
)
def test_other_bodies_stay_unchanged(body: bytes) -> None:
    assert rewrite(body, ORIGIN) == body


def test_origin_is_inserted_literally() -> None:
    assert rb"http://\1\g<0>/v1/" in rewrite(batch(UPSTREAM + PATH), r"http://\1\g<0>")

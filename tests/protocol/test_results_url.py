"""A batch's results_url: its origin becomes the proxy's, and not a byte beside it changes."""

from __future__ import annotations

import json

import pytest

from tornadoproxy.protocol.results_url import PATH_PREFIX, rewrite

ORIGIN = "https://claude.example:8443"
PATH = "/v1/messages/batches/msgbatch_01/results"


def batch(url: str | None, **more: object) -> dict[str, object]:
    return {"id": "msgbatch_01", "type": "message_batch", **more, "results_url": url, "x": "é 😀"}


@pytest.mark.parametrize(
    "url",
    [
        f"https://api.anthropic.com{PATH}",
        f"http://127.0.0.1:9000{PATH}",
        f"http://[::1]:9000{PATH}",
        f"https://gateway.example/with/a/prefix{PATH}",
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_the_origin_becomes_the_proxys(url: str, indent: int | None) -> None:
    body = json.dumps(batch(url), indent=indent, ensure_ascii=False).encode()
    expected = json.dumps(batch(ORIGIN + PATH), indent=indent, ensure_ascii=False).encode()
    assert rewrite(body, ORIGIN) == expected


def test_a_query_stays() -> None:
    body = json.dumps(batch(f"https://api.anthropic.com{PATH}?a=b&c=%2F")).encode()
    assert json.loads(rewrite(body, ORIGIN))["results_url"] == f"{ORIGIN}{PATH}?a=b&c=%2F"


def test_without_blanks() -> None:
    body = b'{"results_url":"https://api.anthropic.com%b"}' % PATH.encode()
    assert rewrite(body, ORIGIN) == b'{"results_url":"%b%b"}' % (ORIGIN.encode(), PATH.encode())


def test_each_of_a_list() -> None:
    def page(origin: str) -> bytes:
        urls = [f"{origin}/v1/messages/batches/msgbatch_0{number}/results" for number in range(3)]
        return json.dumps(
            {"data": [batch(url) for url in [*urls, None]], "has_more": False}
        ).encode()

    assert rewrite(page("https://api.anthropic.com"), ORIGIN) == page(ORIGIN)


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(batch(None)).encode(),
        json.dumps(batch("https://api.anthropic.com/v1/elsewhere")).encode(),
        json.dumps(batch(PATH)).encode(),
        json.dumps(batch("ftp://api.anthropic.com" + PATH)).encode(),
        json.dumps({"other_url": "https://api.anthropic.com" + PATH}).encode(),
        json.dumps({"results_url": ["https://api.anthropic.com" + PATH]}).encode(),
        # a JSON document within a string is text
        json.dumps({"x": json.dumps(batch("https://api.anthropic.com" + PATH))}).encode(),
        b'{"results_url": "https://api.anthropic.com", "x": "%b"}' % PATH.encode(),
        b'{"results_url": "https://api.anthropic.com\\"%b"}' % PATH.encode(),
        b'{"results_url": "https://api.anthropic.com',
        b"",
        b"\xff\x00 results_url",
    ],
)
def test_nothing_else_changes(body: bytes) -> None:
    assert rewrite(body, ORIGIN) == body


def test_an_origin_is_taken_literally() -> None:
    body = json.dumps(batch("https://api.anthropic.com" + PATH)).encode()
    assert rb"http://\1\g<0>/v1/" in rewrite(body, r"http://\1\g<0>")


def test_the_prefix_is_the_path_of_batches() -> None:
    assert PATH.startswith(PATH_PREFIX + "/")

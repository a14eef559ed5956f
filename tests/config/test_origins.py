"""The origins of ``ALLOWED_ORIGINS``, as browsers write them."""

from __future__ import annotations

import pytest

from tornadoproxy import parsers


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        ("https://app.example.com", ("https://app.example.com",)),
        ("https://a.example,http://b.example", ("https://a.example", "http://b.example")),
        (" https://a.example \t http://b.example", ("https://a.example", "http://b.example")),
        ("HTTPS://App.Example.COM", ("https://app.example.com",)),
        ("https://app.example.com:443", ("https://app.example.com",)),
        ("http://app.example.com:80", ("http://app.example.com",)),
        ("http://app.example.com:443", ("http://app.example.com:443",)),
        ("http://127.0.0.1:8080", ("http://127.0.0.1:8080",)),
        ("http://[0:0:0:0:0:0:0:1]", ("http://[::1]",)),
        ("https://xn--bcher-kva.example", ("https://xn--bcher-kva.example",)),
    ],
)
def test_origins_become_what_browsers_send(text: str, origins: tuple[str, ...]) -> None:
    assert parsers.origins(text) == origins


MALFORMED = """
    app.example.com localhost:3000 https:// https://app.example.com/ https://app.example.com/path
    https://app.example.com?x https://app.example.com#x https://app.example.com:
    https://app.example.com:0 https://app.example.com:65536 https://app.example.com:x
    https://app..example.com https://bücher.example https://[::1 https://::1 https:app.example.com
    //app.example.com ftp://app.example.com file:// null
"""


@pytest.mark.parametrize("text", MALFORMED.split())
def test_anything_else_is_refused(text: str) -> None:
    for each in (text, f"https://a.example {text}"):
        with pytest.raises(ValueError, match=r"^must (be origins such as|name a host|have a port)"):
            parsers.origins(each)


@pytest.mark.parametrize("text", ["https://word@app.example.com", "https://x:word@app.example.com"])
def test_password_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must contain no user or password") as caught:
        parsers.origins(text)
    assert "word@" not in str(caught.value)


@pytest.mark.parametrize("text", ["*", "https://*", "https://*.example.com", "https://a.example *"])
def test_wildcard_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(ValueError, match=r"must name each origin.*any web page"):
        parsers.origins(text)

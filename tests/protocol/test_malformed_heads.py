"""Malformed and ambiguous heads of requests, none of which is parsed."""

from __future__ import annotations

import pytest

from tornadoproxy.protocol.request_framing import MalformedRequest, parse_head

TOKEN = b"Authorization: Bearer x\r\n"
HEAD = b"POST /v1/messages HTTP/1.1\r\nHost: a\r\n" + TOKEN
HEADS = {
    "length and chunked": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked and length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "one length twice": HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "a list of lengths": HEAD + b"Content-Length: 5, 5\r\n\r\n",
    "a list with spaces": HEAD + b"Content-Length:  5 , 5\r\n\r\n",
    "a list with two lengths": HEAD + b"Content-Length: 5,6\r\n\r\n",
    "length with a sign": HEAD + b"Content-Length: +5\r\n\r\n",
    "negative length": HEAD + b"Content-Length: -5\r\n\r\n",
    "hexadecimal length": HEAD + b"Content-Length: 0x5\r\n\r\n",
    "length with an underscore": HEAD + b"Content-Length: 1_0\r\n\r\n",
    "length with a space within": HEAD + b"Content-Length: 5 5\r\n\r\n",
    "length in other digits": HEAD + b"Content-Length: \xb2\r\n\r\n",
    "length in a float": HEAD + b"Content-Length: 5.0\r\n\r\n",
    "empty length": HEAD + b"Content-Length:\r\n\r\n",
    "length beyond 64 bits": HEAD + b"Content-Length: 99999999999999999999\r\n\r\n",
    "xchunked": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n",
    "chunked in two lines": HEAD
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked and another line": HEAD
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n",
    "identity": HEAD + b"Transfer-Encoding: identity\r\n\r\n",
    "identity with a length": HEAD + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\n",
    "chunked, identity": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n",
    "gzip, chunked": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "chunked with a parameter": HEAD + b"Transfer-Encoding: chunked;q=1\r\n\r\n",
    "chunked behind a vertical tab": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n",
    "quoted chunked": HEAD + b'Transfer-Encoding: "chunked"\r\n\r\n',
    "empty coding": HEAD + b"Transfer-Encoding:\r\n\r\n",
    "chunked in HTTP/1.0": HEAD.replace(b"/1.1", b"/1.0") + b"Transfer-Encoding: chunked\r\n\r\n",
    "a folded line": HEAD + b"X: a\r\n b\r\n\r\n",
    "a folded coding": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n",
    "a first line that is folded": b"POST /v1/messages HTTP/1.1\r\n X: y\r\nHost: a\r\n"
    + TOKEN
    + b"\r\n",
    "bare LF everywhere": b"POST /v1/messages HTTP/1.1\nHost: a\n\n",
    "bare LF after one line": HEAD + b"X: y\nTransfer-Encoding: chunked\r\n\r\n",
    "bare LF after the request line": HEAD.replace(b"/1.1\r\n", b"/1.1\n") + b"\r\n",
    "bare LF for the blank line": HEAD + b"X: y\r\n\n",
    "bare CR within a value": HEAD + b"X: y\rTransfer-Encoding: chunked\r\n\r\n",
    "bare CR before a line's end": HEAD + b"X: y\r\r\n\r\n",
    "space before the colon": HEAD + b"Content-Length : 5\r\n\r\n",
    "tab before the colon": HEAD + b"Transfer-Encoding\t: chunked\r\n\r\n",
    "no colon": HEAD + b"Content-Length 5\r\n\r\n",
    "no name": HEAD + b": 5\r\n\r\n",
    "NUL in a name": HEAD + b"Content-Length\x00: 5\r\n\r\n",
    "NUL in a value": HEAD + b"X: a\x00b\r\n\r\n",
    "a control character in a value": HEAD + b"X: a\x07b\r\n\r\n",
    "DEL in a value": HEAD + b"X: a\x7fb\r\n\r\n",
    "no Host": b"POST /v1/messages HTTP/1.1\r\n" + TOKEN + b"\r\n",
    "two Hosts": HEAD + b"Host: b\r\n\r\n",
    "one Host twice": HEAD + b"Host: a\r\n\r\n",
    "a list of Hosts": HEAD.replace(b"Host: a", b"Host: a, b") + b"\r\n",
    "Host with a path": HEAD.replace(b"Host: a", b"Host: a/b") + b"\r\n",
    "Host with a user": HEAD.replace(b"Host: a", b"Host: a@b") + b"\r\n",
    "HTTP/2.0": HEAD.replace(b"HTTP/1.1", b"HTTP/2.0") + b"\r\n",
    "HTTP/1.2": HEAD.replace(b"HTTP/1.1", b"HTTP/1.2") + b"\r\n",
    "HTTP/1.10": HEAD.replace(b"HTTP/1.1", b"HTTP/1.10") + b"\r\n",
    "http/1.1": HEAD.replace(b"HTTP/1.1", b"http/1.1") + b"\r\n",
    "no version": HEAD.replace(b" HTTP/1.1", b"") + b"\r\n",
    "a space after the version": HEAD.replace(b"HTTP/1.1", b"HTTP/1.1 ") + b"\r\n",
    "two spaces": HEAD.replace(b" HTTP/1.1", b"  HTTP/1.1") + b"\r\n",
    "a tab": HEAD.replace(b" HTTP/1.1", b"\tHTTP/1.1") + b"\r\n",
    "a space in the target": HEAD.replace(b" HTTP/1.1", b" x HTTP/1.1") + b"\r\n",
    "NUL in the target": HEAD.replace(b" HTTP/1.1", b"\x00 HTTP/1.1") + b"\r\n",
    "a method that is no token": HEAD.replace(b"POST", b"PO(ST") + b"\r\n",
    "a byte beyond ASCII in the target": HEAD.replace(b" HTTP/1.1", b"\xc3\xa9 HTTP/1.1") + b"\r\n",
    "a byte beyond ASCII in the query": HEAD.replace(b" HTTP/1.1", b"?\xff HTTP/1.1") + b"\r\n",
    "DEL in the target": HEAD.replace(b" HTTP/1.1", b"\x7f HTTP/1.1") + b"\r\n",
}

NOT_REQUESTS = {
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\n",
    "a space": b" \r\n\r\n",
    "a word": b"POST\r\n\r\n",
    "a space first": b" POST /v1/messages HTTP/1.1\r\nHost: a\r\n\r\n",
    "noise": b"\xff" * 100 + b"\r\n\r\n",
    "a response": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("fault", HEADS | NOT_REQUESTS)
def test_malformed_head_is_refused(fault: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        parse_head((HEADS | NOT_REQUESTS)[fault])
    assert caught.value.status == 400


def test_target_beyond_ascii_is_refused_with_a_hint() -> None:
    with pytest.raises(MalformedRequest, match="send it percent-encoded"):
        parse_head(HEADS["a byte beyond ASCII in the target"])

"""Request smuggling: what two servers could read in two ways never goes upstream.

Each case is a client's bytes with a well-formed request behind them, the sentinel. A case that is
in doubt is refused, and with it everything behind: whether the sentinel is a request or part of
a body is just what nobody can tell. A case that is in no doubt goes upstream as the one request
that it is, and the sentinel as the next.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from strict_reading import Request, read
from upstream_record import check_clean, settled

from tornadoproxy.testing import (
    TEST_TOKEN,
    bytes_response,
    request_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawConnection,
        RawResponse,
        ScriptedUpstream,
    )

pytestmark = pytest.mark.usefixtures("no_errors_logged")

TARGET, CHAT = b"/v1/messages", b"/openai/v1/chat/completions"
TOKEN = b"Authorization: Bearer %b\r\n" % TEST_TOKEN.encode()
LINES = b"Host: a\r\n" + TOKEN
START = b"POST %b HTTP/1.1\r\n" % TARGET
HEAD = START + LINES
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

# what an attacker would like to have read as a request
SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\n" + LINES + b"\r\n"
SENTINEL = request_bytes("GET", "/v1/sentinel", token=TEST_TOKEN)

OK = bytes_response(b"ok")


@dataclass(frozen=True)
class Case:
    """What a client sends, and what has to become of it.

    :ivar answers: the statuses of the answers to it, in order.
    :ivar forwarded: what goes upstream whole.
    :ivar goes_on: whether the sentinel is served on the same connection, or the connection ends.
    """

    sent: bytes
    responses: tuple[int, ...]
    forwarded: tuple[Request, ...] = ()
    goes_on: bool = False


def refused(sent: dict[str, bytes]) -> dict[str, Case]:
    """In doubt: 400, nothing of it goes upstream whole, and nothing behind it is looked at."""
    return {name: Case(each, (400,)) for name, each in sent.items()}


def served(sent: bytes, body: bytes = b"", method: str = "POST", *, goes_on: bool = True) -> Case:
    """In no doubt: one request with just that body."""
    return Case(sent, (200,), (Request(method, TARGET.decode(), body),), goes_on)


def answered(sent: bytes, status: int) -> Case:
    """In no doubt, but not for the upstream: the proxy's own answer, and the next request."""
    return Case(sent, (status,), goes_on=True)


def head_with(*lines: bytes, start: bytes = START) -> bytes:
    return start + LINES + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


# -- Content-Length against Transfer-Encoding

LENGTH, CODING = b"Content-Length: 5", b"Transfer-Encoding: chunked"
LAST_CHUNK = b"0\r\n\r\n"
HTTP_1_0 = START.replace(b"1.1", b"1.0")

BOTH = refused(
    {
        "length, coding": head_with(LENGTH, CODING) + LAST_CHUNK + SMUGGLED,
        "coding, length": head_with(CODING, LENGTH) + LAST_CHUNK + SMUGGLED,
        "length, coding, length": head_with(LENGTH, CODING, LENGTH) + LAST_CHUNK,
        "coding, length, coding": head_with(CODING, LENGTH, CODING) + LAST_CHUNK,
        "length 0 and coding": head_with(b"Content-Length: 0", CODING) + LAST_CHUNK,
        "coding and length 0": head_with(CODING, b"Content-Length: 0") + LAST_CHUNK + SMUGGLED,
        "a length of all that follows": head_with(
            b"Content-Length: %d" % len(LAST_CHUNK + SMUGGLED), CODING
        )
        + LAST_CHUNK
        + SMUGGLED,
        "lines far apart": head_with(LENGTH, *[b"X: y"] * 50, CODING) + LAST_CHUNK,
        "names in other cases": head_with(b"CONTENT-LENGTH: 5", b"transfer-encoding: CHUNKED")
        + LAST_CHUNK,
        "a malformed length and coding": head_with(b"Content-Length: x", CODING) + LAST_CHUNK,
        "a length and a coding that is not known": head_with(LENGTH, b"Transfer-Encoding: x")
        + LAST_CHUNK,
        "a length and an empty coding": head_with(LENGTH, b"Transfer-Encoding:") + LAST_CHUNK,
        "a length and identity": head_with(LENGTH, b"Transfer-Encoding: identity") + b"hello",
        "both, and the coding named by Connection": head_with(
            LENGTH, CODING, b"Connection: transfer-encoding"
        )
        + LAST_CHUNK,
        "both, and the length named by Connection": head_with(
            LENGTH, CODING, b"Connection: content-length"
        )
        + LAST_CHUNK,
        "both in a GET": head_with(LENGTH, CODING).replace(b"POST", b"GET") + LAST_CHUNK,
        "coding in HTTP/1.0": head_with(CODING, start=HTTP_1_0) + LAST_CHUNK,
        "coding in HTTP/1.0 that is kept": head_with(
            CODING, b"Connection: keep-alive", start=HTTP_1_0
        )
        + LAST_CHUNK,
        "both in HTTP/1.0": head_with(LENGTH, CODING, start=HTTP_1_0) + LAST_CHUNK,
    }
)

# -- Content-Length alone; each is followed by what is a request to who reads 5

LENGTHS = {
    "a sign": b"+5",
    "a minus": b"-5",
    "minus nothing": b"-0",
    "a hexadecimal prefix": b"0x5",
    "an octal prefix": b"0o5",
    "hexadecimal digits": b"a",
    "a fraction": b"5.0",
    "an exponent": b"5e0",
    "an underscore": b"0_5",
    "a blank within": b"0 5",
    "a comma": b"5,",
    "a comma before": b",5",
    "the same twice": b"5,5",
    "the same twice with blanks": b"5 ,\t5",
    "two of a kind": b"5, 6",
    "two, the first zero": b"0, 5",
    "quotes": b'"5"',
    "apostrophes": b"'5'",
    "a parameter": b"5;x=y",
    "a vertical tab before": b"\x0b5",
    "a vertical tab behind": b"5\x0b",
    "a form feed": b"\x0c5",
    "a NUL": b"5\x00",
    "a bare CR": b"5\r",
    "a bare CR before": b"\r5",
    "a no-break space": b"\xa05",
    "a superscript": b"\xb2",
    "fullwidth digits": "\uff15".encode(),
    "Arabic digits": "\u0665".encode(),
    "nothing": b"",
    "blanks": b" \t ",
    "a word": b"five",
    "chunked": b"chunked",
    "what 64 bits take for 5": b"18446744073709551621",
    "what 32 bits and a sign do not hold, and more": b"9" * 40,
    "what Python does not read": b"9" * 5000,
    "all zeros and a sign": b"+0",
}
FIVE = refused(
    {
        **{
            f"a length with {what}": head_with(b"Content-Length: " + value) + b"hello" + SMUGGLED
            for what, value in LENGTHS.items()
        },
        "two lengths": head_with(LENGTH, b"Content-Length: 6") + b"hello" + SMUGGLED,
        "one length twice": head_with(LENGTH, LENGTH) + b"hello" + SMUGGLED,
        "one length twice in other cases": head_with(LENGTH, b"content-length: 5") + b"hello",
        "lengths 5 and 05": head_with(LENGTH, b"Content-Length: 05") + b"hello" + SMUGGLED,
        "a length and an empty one": head_with(LENGTH, b"Content-Length:") + b"hello" + SMUGGLED,
        "two lengths in HTTP/1.0": head_with(LENGTH, b"Content-Length: 6", start=HTTP_1_0)
        + b"hello"
        + SMUGGLED,
        "two lengths in a GET": head_with(LENGTH, b"Content-Length: 0").replace(b"POST", b"GET")
        + b"hello"
        + SMUGGLED,
    }
)

# -- Transfer-Encoding alone

CODINGS = {
    "nothing": b"",
    "blanks": b" \t",
    "identity": b"identity",
    "another": b"gzip",
    "one more": b"gzip, chunked",
    "one behind": b"chunked, identity",
    "chunked twice": b"chunked, chunked",
    "a comma": b"chunked,",
    "a comma before": b",chunked",
    "a letter more": b"xchunked",
    "a letter more behind": b"chunkedx",
    "a word more": b"x chunked",
    "a word behind": b"chunked x",
    "a letter less": b"chunke",
    "a blank within": b"chun ked",
    "a semicolon": b"chunked;",
    "a parameter": b"chunked;q=1",
    "quotes": b'"chunked"',
    "apostrophes": b"'chunked'",
    "brackets": b"(chunked)",
    "a vertical tab before": b"\x0bchunked",
    "a vertical tab behind": b"chunked\x0b",
    "a form feed": b"\x0cchunked",
    "a backspace": b"x\x08chunked",
    "a NUL": b"chunked\x00",
    "a NUL before": b"\x00chunked",
    "a bare CR": b"chunked\r",
    "a bare CR before": b"\rchunked",
    "a no-break space": b"\xa0chunked",
    "a next-line character": b"chunked\x85",
    "a Kelvin sign": "chun\u212aed".encode(),  # in lower case it is a k
    "a colon": b": chunked",
    "an equals sign": b"=chunked",
}
CODED = refused(
    {
        **{
            f"a coding with {what}": head_with(b"Transfer-Encoding: " + value)
            + LAST_CHUNK
            + SMUGGLED
            for what, value in CODINGS.items()
        },
        "chunked in two lines": head_with(CODING, CODING) + LAST_CHUNK + SMUGGLED,
        "chunked, then identity": head_with(CODING, b"Transfer-Encoding: identity") + LAST_CHUNK,
        "identity, then chunked": head_with(b"Transfer-Encoding: identity", CODING) + LAST_CHUNK,
        "chunked, then a lie": head_with(CODING, b"Transfer-encoding: cow") + LAST_CHUNK,
        "chunked, then nothing": head_with(CODING, b"Transfer-Encoding:") + LAST_CHUNK,
    }
)

# -- header lines

FIELDS = refused(
    {
        "a blank before the colon": head_with(b"Transfer-Encoding : chunked") + LAST_CHUNK,
        "a tab before the colon": head_with(b"Content-Length\t: 5") + b"hello" + SMUGGLED,
        "a CR before the colon": head_with(b"Content-Length\r: 5") + b"hello" + SMUGGLED,
        "a vertical tab before the colon": head_with(b"Content-Length\x0b: 5") + b"hello",
        "a NUL before the colon": head_with(b"Content-Length\x00: 5") + b"hello" + SMUGGLED,
        "a NUL first": head_with(b"\x00Content-Length: 5") + b"hello" + SMUGGLED,
        "a blank within a name": head_with(b"Content Length: 5") + b"hello" + SMUGGLED,
        "a blank first": head_with(b" Content-Length: 5") + b"hello" + SMUGGLED,
        "a tab first": head_with(b"\tTransfer-Encoding: chunked") + LAST_CHUNK,
        "a vertical tab first": head_with(b"\x0bTransfer-Encoding: chunked") + LAST_CHUNK,
        "a quoted name": head_with(b'"Content-Length": 5') + b"hello" + SMUGGLED,
        "a name beyond ASCII": head_with("Cöntent-Length: 5".encode()) + b"hello" + SMUGGLED,
        "a no-break space in a name": head_with(b"Content-Length\xa0: 5") + b"hello" + SMUGGLED,
        "no name": head_with(b": 5") + SMUGGLED,
        "no colon": head_with(b"Content-Length 5") + b"hello" + SMUGGLED,
        "an equals sign for a colon": head_with(b"Content-Length=5") + b"hello" + SMUGGLED,
        "an answer's first line": head_with(b"HTTP/1.1 200 OK") + SMUGGLED,
        "another request line": head_with(b"GET /v1/smuggled HTTP/1.1") + SMUGGLED,
        "a folded coding": head_with(b"Transfer-Encoding:\r\n chunked") + LAST_CHUNK,
        "a folded coding with a tab": head_with(b"Transfer-Encoding:\r\n\tchunked") + LAST_CHUNK,
        "a coding folded into another line": head_with(b"X: y\r\n Transfer-Encoding: chunked")
        + LAST_CHUNK,
        "a coding that goes on in the next line": head_with(CODING + b"\r\n , identity")
        + LAST_CHUNK,
        "a length that goes on in the next line": head_with(LENGTH + b"\r\n 0") + b"hello",
        "a folded request line": START + b" X: y\r\n" + LINES + b"\r\n" + SMUGGLED,
        "a folded line of blanks": head_with(b"X: y\r\n \t") + SMUGGLED,
        "a NUL in a value": head_with(b"X: a\x00b") + SMUGGLED,
        "a bell in a value": head_with(b"X: a\x07b") + SMUGGLED,
        "a DEL in a value": head_with(b"X: a\x7fb") + SMUGGLED,
        "a vertical tab in a value": head_with(b"X: a\x0bb") + SMUGGLED,
    }
)

# -- ends of lines

ENDS = refused(
    {
        "bare LF everywhere": HEAD.replace(b"\r\n", b"\n") + b"\n" + SMUGGLED,
        "bare LF after the request line": START[:-2] + b"\n" + LINES + b"\r\n" + SMUGGLED,
        "bare LF after a header line": HEAD + b"X: y\n" + CODING + b"\r\n\r\n" + LAST_CHUNK,
        "bare LF after the last header line": HEAD + b"X: y\n\r\n" + SMUGGLED,
        "bare LF for the blank line": HEAD + b"X: y\r\n\n" + SMUGGLED,
        "two bare LFs at the end": HEAD + b"X: y\n\n" + SMUGGLED,
        "bare LF within a value": head_with(b"X: a\n b") + SMUGGLED,
        "bare LF first": b"\n" + HEAD + b"\r\n" + SMUGGLED,
        "LF, CR": HEAD + b"X: y\n\r" + CODING + b"\r\n\r\n" + LAST_CHUNK,
        "bare CR after the request line": START[:-2] + b"\r" + LINES + b"\r\n" + SMUGGLED,
        "bare CR after a header line": HEAD + b"X: y\r" + CODING + b"\r\n\r\n" + LAST_CHUNK,
        "bare CR before a line's end": head_with(b"X: y\r") + SMUGGLED,
        "bare CR within a value": head_with(b"X: a\rb") + SMUGGLED,
        "bare CR first in a value": head_with(b"X:\ry") + SMUGGLED,
        "bare CR first in a line": head_with(b"\r" + CODING) + LAST_CHUNK + SMUGGLED,
        "bare CR for a name": head_with(b"\r: y") + SMUGGLED,
        "bare CR before the request line": b"\r" + HEAD + b"\r\n" + SMUGGLED,
        "bare CRs at the end": HEAD + b"X: y\r\r\r\n\r\n" + SMUGGLED,
        "a line of one CR at the end": HEAD + b"X: y\r\n\r\r\n\r\n" + SMUGGLED,
    }
)

# -- request lines


def started(line: bytes) -> bytes:
    return line + b"\r\n" + LINES + b"\r\n" + SMUGGLED


STARTS = refused(
    {
        "HTTP/0.9": b"GET /v1/messages\r\n",
        "HTTP/0.9 with a head": started(b"GET /v1/messages"),
        "HTTP/0.9 with a number": started(b"GET /v1/messages HTTP/0.9"),
        "HTTP/1.2": started(b"POST /v1/messages HTTP/1.2"),
        "HTTP/2.0": started(b"POST /v1/messages HTTP/2.0"),
        "HTTP/1": started(b"POST /v1/messages HTTP/1"),
        "HTTP/1.10": started(b"POST /v1/messages HTTP/1.10"),
        "HTTP/01.1": started(b"POST /v1/messages HTTP/01.1"),
        "HTTP/1,1": started(b"POST /v1/messages HTTP/1,1"),
        "HTTP/+1.1": started(b"POST /v1/messages HTTP/+1.1"),
        "HTTP/1.1 and a letter": started(b"POST /v1/messages HTTP/1.1x"),
        "http/1.1": started(b"POST /v1/messages http/1.1"),
        "HTTPS/1.1": started(b"POST /v1/messages HTTPS/1.1"),
        "another protocol": started(b"DESCRIBE /v1/messages RTSP/1.0"),
        "no protocol": started(b"POST /v1/messages /1.1"),
        "digits beyond ASCII": started("POST /v1/messages HTTP/\uff11.\uff11".encode()),
        "a blank in the protocol": started(b"POST /v1/messages HTTP /1.1"),
        "a blank behind": started(b"POST /v1/messages HTTP/1.1 "),
        "a tab behind": started(b"POST /v1/messages HTTP/1.1\t"),
        "two protocols": started(b"POST /v1/messages HTTP/1.1 HTTP/1.1"),
        "two blanks before the target": started(b"POST  /v1/messages HTTP/1.1"),
        "two blanks behind the target": started(b"POST /v1/messages  HTTP/1.1"),
        "tabs for blanks": started(b"POST\t/v1/messages\tHTTP/1.1"),
        "vertical tabs for blanks": started(b"POST\x0b/v1/messages\x0bHTTP/1.1"),
        "a form feed for a blank": started(b"POST /v1/messages\x0cHTTP/1.1"),
        "a bare CR for a blank": started(b"POST /v1/messages\rHTTP/1.1"),
        "a no-break space for a blank": started(b"POST /v1/messages\xa0HTTP/1.1"),
        "a blank first in the request line": started(b" POST /v1/messages HTTP/1.1"),
        "a blank in the target": started(b"POST /v1/messages x HTTP/1.1"),
        "a NUL in the target": started(b"POST /v1/messages\x00 HTTP/1.1"),
        "a tab in the target": started(b"POST /v1/messages\tx HTTP/1.1"),
        "a DEL in the target": started(b"POST /v1/messages\x7f HTTP/1.1"),
        "a request line in the target": started(
            b"POST /v1/messages HTTP/1.1\rHost: b\rX: /v1/messages HTTP/1.1"
        ),
        "a NUL in the method": started(b"PO\x00ST /v1/messages HTTP/1.1"),
        "a colon in the method": started(b"POST: /v1/messages HTTP/1.1"),
        "a method beyond ASCII": started("PÖST /v1/messages HTTP/1.1".encode()),
        "a quoted method": started(b'"POST" /v1/messages HTTP/1.1'),
        "no method": started(b" /v1/messages HTTP/1.1"),
        "no target": started(b"POST  HTTP/1.1"),
        "a method alone": started(b"POST"),
        "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04" + bytes(5),
        "an answer": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" + SMUGGLED,
    }
)

# -- Host

HOSTS = {
    "a list": b"a, b",
    "a blank": b"a b",
    "a path": b"a/b",
    "a user": b"user@a",
    "a scheme": b"http://a",
    "a query": b"a?b",
    "a fragment": b"a#b",
    "a backslash": b"a\\b",
    "quotes": b'"a"',
    "angle brackets": b"<a>",
    "braces": b"{a}",
    "a caret": b"a^b",
    "a bar": b"a|b",
    "a backtick": b"a`b",
    "a NUL": b"a\x00",
    "a tab": b"a\tb",
    "a vertical tab": b"a\x0b",
    "a bare CR": b"a\rb",
    "a letter beyond ASCII": "ä".encode(),
    "half an escape": b"a%2",
    "a port that is none": b"a:" + b"9" * 5000,
}
HOSTED = refused(
    {
        **{
            f"Host with {what}": HEAD.replace(b"Host: a", b"Host: " + value) + b"\r\n" + SMUGGLED
            for what, value in HOSTS.items()
        },
        "no Host": START + TOKEN + b"\r\n" + SMUGGLED,
        "two Hosts": head_with(b"Host: b") + SMUGGLED,
        "one Host twice": head_with(b"Host: a") + SMUGGLED,
        "one Host twice in other cases": head_with(b"HOST: a") + SMUGGLED,
        "a second Host that is empty": head_with(b"Host:") + SMUGGLED,
        "a folded Host": START + b"Host:\r\n a\r\n" + TOKEN + b"\r\n" + SMUGGLED,
        "Host with a blank before the colon": START + b"Host : a\r\n" + TOKEN + b"\r\n" + SMUGGLED,
        "two Hosts in HTTP/1.0": head_with(b"Host: b", start=HTTP_1_0) + SMUGGLED,
        "an absolute target and two Hosts": head_with(
            b"Host: b", start=b"GET http://a/v1/messages HTTP/1.1\r\n"
        )
        + SMUGGLED,
    }
)

# -- chunks: all but one thing of each is as it has to be

CHUNKS = {
    "a sign": b"+5\r\nhello\r\n",
    "a minus": b"-5\r\nhello\r\n",
    "a prefix": b"0x5\r\nhello\r\n",
    "an h": b"5h\r\nhello\r\n",
    "an underscore": b"0_5\r\nhello\r\n",
    "a fraction": b"5.0\r\nhello\r\n",
    "quotes": b'"5"\r\nhello\r\n',
    "a comma": b"5,\r\nhello\r\n",
    "a blank before": b" 5\r\nhello\r\n",
    "a blank behind": b"5 \r\nhello\r\n",
    "a tab before": b"\t5\r\nhello\r\n",
    "a tab behind": b"5\t\r\nhello\r\n",
    "a vertical tab": b"5\x0b\r\nhello\r\n",
    "a NUL": b"5\x00\r\nhello\r\n",
    "a bare CR": b"5\r\r\nhello\r\n",
    "a bare CR alone": b"5\rXhello\r\n",
    "a bare LF": b"5\nhello\r\n",
    "LF, CR": b"5\n\rhello\r\n",
    "fullwidth digits": "\uff15".encode() + b"\r\nhello\r\n",
    "Arabic digits": "\u0665".encode() + b"\r\nhello\r\n",
    "a superscript": b"\xb2\r\nhe\r\n",
    "letters beyond hexadecimal": b"g\r\nhello\r\n",
    "no size": b"\r\nhello\r\n",
    "blanks for a size": b"  \r\nhello\r\n",
    "what 64 bits take for 5": b"10000000000000005\r\nhello\r\n",
    "what 32 bits take for 5, and more": b"f" * 20 + b"100000005\r\nhello\r\n",
    "one byte too many": b"5\r\nhello!\r\n",
    "one byte too few": b"6\r\nhello\r\n",
    "a line end too many": b"5\r\nhello\r\n\r\n",
    "no end of the data": b"5\r\nhello",
    "a bare LF behind the data": b"5\r\nhello\n",
    "a bare CR behind the data": b"5\r\nhello\rX",
    "LF, CR behind the data": b"5\r\nhello\n\r",
    "two CRs behind the data": b"5\r\nhello\r\r\n",
    "an extension": b"5;x=y\r\nhello\r\n",
    "an extension without a value": b"5;x\r\nhello\r\n",
    "an extension without a name": b"5;\r\nhello\r\n",
    "an extension in quotes": b'5;x="y"\r\nhello\r\n',
    "an extension with blanks": b"5 ; x = y\r\nhello\r\n",
    "an extension with a bare LF": b"5;\nxx\r\nhello\r\n",
    "an extension with a bare CR": b"5;x\rxx\r\nhello\r\n",
    "an extension with a NUL": b"5;\x00\r\nhello\r\n",
    "an extension with a line end in quotes": b'5;x="\r\nhello"\r\n',
}
ENDS_OF_CHUNKS = {
    "minus nothing": b"-0\r\n\r\n",
    "a prefix of zeros": b"0X0\r\n\r\n",
    "an extension of the last chunk": b"5\r\nhello\r\n0;x=y\r\n\r\n",
    "a trailer": b"5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    "a trailer with a length": b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    "a trailer with a coding": b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a trailer with a Host": b"5\r\nhello\r\n0\r\nHost: b\r\n\r\n",
    "a trailer that is folded": b"5\r\nhello\r\n0\r\n X: y\r\n\r\n",
    "a trailer with a NUL": b"5\r\nhello\r\n0\r\nX: \x00\r\n\r\n",
    "a bare LF behind the last size": b"5\r\nhello\r\n0\n\r\n",
    "a bare LF at the end": b"5\r\nhello\r\n0\r\n\n",
    "a bare CR at the end": b"5\r\nhello\r\n0\r\n\rX",
    "a sign of the last chunk": b"5\r\nhello\r\n-0\r\n\r\n",
    # the next request's lines stand where the trailers would
    "no end at all": b"5\r\nhello\r\n0\r\n",
    "no last chunk": b"5\r\nhello\r\n",
}
CHUNKED_BODIES = refused(
    {
        **{
            f"chunks with {what}": CHUNKED + sent + LAST_CHUNK + SMUGGLED
            for what, sent in CHUNKS.items()
        },
        **{
            f"chunks that end with {what}": CHUNKED + sent + SMUGGLED
            for what, sent in ENDS_OF_CHUNKS.items()
        },
    }
)

# -- what is in no doubt, however odd

CHUNK_OF_A_REQUEST = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
LENGTH_OF_A_REQUEST = b"Content-Length: %d" % len(SMUGGLED)
CUT = len(b"GET ")


def with_method(method: bytes, *lines: bytes) -> bytes:
    return head_with(*lines).replace(b"POST", method)


PLAIN = {
    "a request in a body": served(head_with(LENGTH_OF_A_REQUEST) + SMUGGLED, SMUGGLED),
    "a request in a chunk": served(CHUNKED + CHUNK_OF_A_REQUEST, SMUGGLED),
    "a request in a GET's body": served(
        with_method(b"GET", LENGTH_OF_A_REQUEST) + SMUGGLED, SMUGGLED, "GET"
    ),
    "a request in a GET's chunk": served(
        with_method(b"GET", CODING) + CHUNK_OF_A_REQUEST, SMUGGLED, "GET"
    ),
    "a request in a HEAD's body": served(
        with_method(b"HEAD", LENGTH_OF_A_REQUEST) + SMUGGLED, SMUGGLED, "HEAD"
    ),
    "a request in a HEAD's chunk": served(
        with_method(b"HEAD", CODING) + CHUNK_OF_A_REQUEST, SMUGGLED, "HEAD"
    ),
    "a request in a DELETE's body": served(
        with_method(b"DELETE", LENGTH_OF_A_REQUEST) + SMUGGLED, SMUGGLED, "DELETE"
    ),
    "a request in an OPTIONS' body": served(
        with_method(b"OPTIONS", LENGTH_OF_A_REQUEST) + SMUGGLED, SMUGGLED, "OPTIONS"
    ),
    "the last chunk in a body": served(head_with(LENGTH) + LAST_CHUNK, LAST_CHUNK),
    "the last chunk in a chunk": served(
        CHUNKED + b"5\r\n" + LAST_CHUNK + b"\r\n0\r\n\r\n", LAST_CHUNK
    ),
    "no body": served(HEAD + b"\r\n"),
    "a length of nothing": served(head_with(b"Content-Length: 0")),
    "a length of nothing many times over": served(head_with(b"Content-Length: 00000")),
    "leading zeros": served(head_with(b"Content-Length: 0005") + b"hello", b"hello"),
    "blanks around a length": served(head_with(b"Content-Length: \t5 \t") + b"hello", b"hello"),
    "no blank before a length": served(head_with(b"Content-Length:5") + b"hello", b"hello"),
    "names and codings in capitals": served(head_with(b"TRANSFER-ENCODING: CHUNKED") + LAST_CHUNK),
    "blanks around a coding": served(head_with(b"Transfer-Encoding:\tchunked \t") + LAST_CHUNK),
    "names that only look like it": served(
        head_with(b"Content_Length: 5", b"Transfer_Encoding: chunked", b"X-Content-Length: 5")
    ),
    "a value that looks like it": served(
        head_with(b"X: Transfer-Encoding: chunked", b"Y: Content-Length: 5")
    ),
    "TE and Trailer, which are no framing": served(
        head_with(b"TE: chunked, trailers", b"Trailer: Content-Length", LENGTH) + b"hello",
        b"hello",
    ),
    "chunk sizes in every shape": served(
        CHUNKED + b"A\r\n0123456789\r\na\r\n0123456789\r\n0005\r\nhello\r\n000\r\n\r\n",
        b"0123456789" * 2 + b"hello",
    ),
    "a line end before the request line": served(b"\r\n" + HEAD + b"\r\n"),
    "HTTP/1.0": served(head_with(LENGTH, start=HTTP_1_0) + b"hello", b"hello", goes_on=False),
    "HTTP/1.0 that would be kept": served(
        head_with(LENGTH, b"Connection: keep-alive", start=HTTP_1_0) + b"hello",
        b"hello",
        goes_on=False,
    ),
    "HTTP/1.0 without Host": served(HTTP_1_0 + TOKEN + b"\r\n", goes_on=False),
    "the last request of a connection": served(
        head_with(LENGTH, b"Connection: close") + b"hello", b"hello", goes_on=False
    ),
    "an empty Host": served(HEAD.replace(b"Host: a", b"Host:") + b"\r\n"),
    "bytes beyond ASCII": served(head_with(b"X: \xff\x80")),
    "a body that comes unasked": served(
        head_with(LENGTH_OF_A_REQUEST, b"Expect: 100-continue") + SMUGGLED, SMUGGLED
    ),
    "chunks that come unasked": served(
        head_with(CODING, b"Expect: 100-Continue") + CHUNK_OF_A_REQUEST, SMUGGLED
    ),
    "an expectation without a body": served(head_with(b"Expect: 100-continue")),
    "an expectation of HTTP/1.0": served(
        head_with(LENGTH, b"Expect: 100-continue", start=HTTP_1_0) + b"hello",
        b"hello",
        goes_on=False,
    ),
    "Connection names Content-Length": served(
        head_with(LENGTH_OF_A_REQUEST, b"Connection: content-length") + SMUGGLED, SMUGGLED
    ),
    "Connection names Transfer-Encoding": served(
        head_with(CODING, b"Connection: Transfer-Encoding") + CHUNK_OF_A_REQUEST, SMUGGLED
    ),
    "Connection names what the proxy sets": served(
        head_with(
            b"Connection: host, x-api-key, authorization, via, anthropic-version, expect, cookie",
            b"X-Api-Key: " + TEST_TOKEN.encode(),
            b"Cookie: a=b",
        )
    ),
    "an upgrade to WebSocket": served(
        with_method(
            b"GET",
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            b"Sec-WebSocket-Version: 13",
        ),
        method="GET",
    ),
    "an upgrade to HTTP/2": served(
        head_with(
            LENGTH_OF_A_REQUEST,
            b"Connection: Upgrade, HTTP2-Settings",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAMAAABkAAQAAP__",
        )
        + SMUGGLED,
        SMUGGLED,
    ),
}

ABSOLUTE = b"POST http://a/v1/messages HTTP/1.1\r\n"
TARGETS = {
    "CONNECT": answered(head_with(start=b"CONNECT a:443 HTTP/1.1\r\n"), 405),
    "CONNECT with a body": answered(
        head_with(LENGTH_OF_A_REQUEST, start=b"CONNECT a:443 HTTP/1.1\r\n") + SMUGGLED, 405
    ),
    "TRACE with a body": answered(with_method(b"TRACE", LENGTH_OF_A_REQUEST) + SMUGGLED, 405),
    "a method that nobody has": answered(with_method(b"FROB", LENGTH_OF_A_REQUEST) + SMUGGLED, 405),
    "a method in lower case": answered(with_method(b"post", LENGTH_OF_A_REQUEST) + SMUGGLED, 405),
    "the whole server": answered(head_with(start=b"OPTIONS * HTTP/1.1\r\n"), 400),
    "an absolute target": answered(head_with(LENGTH_OF_A_REQUEST, start=ABSOLUTE) + SMUGGLED, 400),
    "an absolute target with another Host": answered(
        head_with(CODING, start=ABSOLUTE.replace(b"//a", b"//b")) + CHUNK_OF_A_REQUEST, 400
    ),
    "a dot segment with a body": answered(
        head_with(LENGTH_OF_A_REQUEST, start=b"POST /v1/../x HTTP/1.1\r\n") + SMUGGLED, 400
    ),
    "a wrong token with a body": answered(
        head_with(LENGTH_OF_A_REQUEST, b"X-Api-Key: wrong") + SMUGGLED, 401
    ),
    "a wrong token with chunks": answered(
        head_with(CODING, b"X-Api-Key: wrong") + CHUNK_OF_A_REQUEST, 401
    ),
    "a page that is not there, with chunks": answered(
        head_with(CODING, start=b"POST /nowhere HTTP/1.1\r\n") + CHUNK_OF_A_REQUEST, 404
    ),
}
MODELS = Request("GET", "/v1/models", b"")
SEQUENCES = {
    "a probe with a body": Case(
        head_with(LENGTH_OF_A_REQUEST, start=b"GET /health HTTP/1.1\r\n") + SMUGGLED, (413,)
    ),
    "a body longer than its length": Case(
        head_with(b"Content-Length: %d" % CUT) + SMUGGLED,
        (200, 400),
        (Request("POST", TARGET.decode(), SMUGGLED[:CUT]),),
    ),
    "two good ones and one in doubt": Case(
        request_bytes("GET", "/v1/models", token=TEST_TOKEN) * 2
        + head_with(LENGTH, CODING)
        + LAST_CHUNK
        + SMUGGLED,
        (200, 200, 400),
        (MODELS, MODELS),
    ),
    "a good one and chunks in doubt": Case(
        request_bytes("GET", "/v1/models", token=TEST_TOKEN) + CHUNKED + b"5 \r\nhello\r\n",
        (200, 400),
        (MODELS,),
    ),
    "a chunked body with more behind it": Case(
        CHUNKED + b"5\r\nhello\r\n0\r\n\r\nX" + SMUGGLED,
        (200, 405),
        (Request("POST", TARGET.decode(), b"hello"),),
        goes_on=True,
    ),
}

REFUSED = {
    **BOTH,
    **FIVE,
    **CODED,
    **FIELDS,
    **ENDS,
    **STARTS,
    **HOSTED,
    **CHUNKED_BODIES,
}
CORPUS = {**REFUSED, **PLAIN, **TARGETS, **SEQUENCES}


# -- what becomes of them


class Checker:
    """Sends cases to a proxy, and compares what its upstream received."""

    def __init__(self, raw: OpenRaw, upstream: ScriptedUpstream) -> None:
        self._raw = raw
        self._upstream = upstream
        self._other: RawConnection | None = None

    async def check(self, case: Case, pieces: list[bytes], target: bytes = TARGET) -> None:
        upstream = self._upstream
        upstream.script(*[OK] * 10)
        before = len(upstream.requests)
        client = await self._raw()
        try:
            await send(client, [*pieces[:-1], pieces[-1] + SENTINEL])
            await self._check_responses(client, case, target)
        finally:
            await client.close()
            await self._still_serves()

        received = upstream.requests[before:]
        whole, cut = await settled(received)
        expected = [*case.forwarded, *([Request("GET", "/v1/sentinel", b"")] * case.goes_on)]
        assert whole == [*expected, Request("GET", "/v1/after", b"")]
        reading = read(case.sent + SENTINEL)
        assert [each for each in expected if each not in reading.whole] == []
        for each in cut:
            assert reading.broken is not None
            assert (each.method, each.target) == (reading.broken.method, reading.broken.target)
            assert reading.broken.body.startswith(each.body)
        for request in received:
            check_clean(request, f"127.0.0.1:{upstream.port}")

    async def _check_responses(self, client: RawConnection, case: Case, target: bytes) -> None:
        for status in case.responses:
            response = await client.response(to_head=case.sent.startswith(b"HEAD "))
            assert response.status == status
        if case.goes_on:
            assert (await client.response()).body == b"ok"
            return
        await ended(client, orderly=status == 400)
        if status == 400:
            check_error(response, case.sent.replace(TARGET, target))

    async def _still_serves(self) -> None:
        """A good request works; and had more gone upstream, it would be there by now."""
        if self._other is None:
            self._other = await self._raw()
        await self._other.send(request_bytes("GET", "/v1/after", token=TEST_TOKEN))
        assert (await self._other.response()).body == b"ok"


async def send(client: RawConnection, pieces: list[bytes]) -> None:
    """Send each piece so that it is read by itself."""
    try:
        for piece in pieces:
            await client.send(piece)
            # the loop looks at its sockets between two turns, and the proxy is in the same one
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    except ConnectionError:
        pass  # refused already; the answer tells


async def ended(client: RawConnection, *, orderly: bool) -> None:
    """The proxy ends the connection, and sends nothing more.

    :param orderly: without a reset for what it does not read, which could overtake the answer.
    """
    try:
        async with asyncio.timeout(5):
            assert await client.read() == b""
    except ConnectionResetError:
        assert not orderly


def check_error(response: RawResponse, sent: bytes) -> None:
    """An error in the shape of its path's dialect, and the end of the connection announced."""
    assert response.header("Content-Type") == "application/json"
    assert response.header("Connection") == "close"
    document = json.loads(response.body)
    assert document["error"]["message"]
    path = re.match(rb"[!-~]+ (/[!-~]*) ", sent)
    if path is None:  # then there is none whose dialect it could be
        return
    if path[1].startswith(b"/openai/"):
        assert document["error"].keys() == {"message", "type", "param", "code"}
        assert (response.header("X-Request-Id") or "").startswith("req_")
    else:
        assert document["type"] == "error"
        assert document["request_id"] == response.header("Request-Id")


def whole(sent: bytes) -> Iterator[bytes]:
    yield sent


def byte_by_byte(sent: bytes) -> Iterator[bytes]:
    for start in range(len(sent)):
        yield sent[start : start + 1]


def at_each_line_end(sent: bytes) -> Iterator[bytes]:
    """Before, within and behind each CR and LF."""
    yield from re.split(rb"(?<=[\r\n])|(?=[\r\n])", sent)


@pytest.mark.parametrize(
    "split", [whole, at_each_line_end, pytest.param(byte_by_byte, marks=pytest.mark.long)]
)
async def test_only_what_is_in_no_doubt_goes_upstream(
    split: Callable[[bytes], Iterable[bytes]],
    raw: OpenRaw,
    proxy: Proxy,
    upstream: ScriptedUpstream,
    subtests: pytest.Subtests,
) -> None:
    checker = Checker(raw, upstream)
    for name, case in CORPUS.items():
        with subtests.test(name):
            await checker.check(case, [*split(case.sent)])


@pytest.mark.parametrize("split", [whole, pytest.param(byte_by_byte, marks=pytest.mark.long)])
async def test_what_is_in_doubt_is_refused_in_the_other_dialect(
    split: Callable[[bytes], Iterable[bytes]],
    raw: OpenRaw,
    proxy: Proxy,
    upstream: ScriptedUpstream,
    subtests: pytest.Subtests,
) -> None:
    """There nothing goes upstream before it is whole: no part of it either."""
    checker = Checker(raw, upstream)
    for name, case in REFUSED.items():
        with subtests.test(name):
            count = len(upstream.requests)
            await checker.check(case, [*split(case.sent.replace(TARGET, CHAT))], CHAT)
            assert len(upstream.requests) == count + 1


def test_the_corpus_is_one() -> None:
    """The strictest reading finds no request in what is to be refused, and each of the others."""
    assert len(CORPUS) == sum(
        map(len, (BOTH, FIVE, CODED, FIELDS, ENDS, STARTS, HOSTED, CHUNKED_BODIES))
    ) + sum(map(len, (PLAIN, TARGETS, SEQUENCES)))
    for name, case in REFUSED.items():
        assert read(case.sent + SENTINEL).whole == (), name
    for name, case in {**PLAIN, **TARGETS}.items():
        reading = read(case.sent + SENTINEL)
        assert len(reading.whole) == 1 + case.goes_on, name
        assert reading.broken is None

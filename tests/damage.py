"""Damages good bytes, the same way for the same seed."""

from __future__ import annotations

import random

SIGNS = [
    *(b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\x00", b" ", b"\t", b"\x0b", b"\x7f", b"\x80", b"\xff"),
    *(b":", b";", b",", b'"', b"\\", b"/", b"//", b"?", b"#", b"%", b"%2e", b"%2f", b"..", b"/../"),
    *(b"0", b"-1", b"+", b"0x", b"9" * 30, b"1.0", b"HTTP/1.1", b"GET / HTTP/1.1\r\n"),
    *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Host: b\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"0\r\n\r\n"),
    *(b"{", b"}", b"[", b"]", b"null", b"true", b"1e999", b"NaN", b"\\ud800", b"\\u0000", b'""'),
]


def damaged(data: bytes, pick: random.Random, others: list[bytes]) -> bytes:
    """`data` with one to five faults."""
    for _ in range(pick.choice((1, 1, 1, 2, 3, 5))):
        at, until = sorted(pick.randrange(len(data) + 1) for _ in range(2))
        until = min(until, at + pick.choice((1, 1, 4, 20, 200)))
        match pick.randrange(10):
            case 0 if data:
                at = pick.randrange(len(data))
                data = data[:at] + bytes([data[at] ^ (1 << pick.randrange(8))]) + data[at + 1 :]
            case 1:
                data = data[:at] + pick.randbytes(1) + data[until:]
            case 2 | 3 | 4:
                data = data[:at] + pick.choice(SIGNS) + data[at:]
            case 5:
                data = data[:at] + data[until:]
            case 6:
                data = data[:until] + data[at:]
            case 7:
                data = data[:at] + data[at:until].swapcase() + data[until:]
            case 8:
                other = pick.choice(others)
                data = data[:at] + other[pick.randrange(len(other)) :]
            case 9:
                lines = data.split(b"\r\n")
                pick.shuffle(lines)
                data = pick.choice((data[:at], b"\r\n".join(lines)))
    return data

"""Server-sent events on their way through: where one ends, and how to cut in. Sans-io.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

PING = b'event: ping\ndata: {"type": "ping"}\n\n'

_NEWLINES = (b"\n", b"\r")
_BLANK_LINES = (b"\n\n", b"\r\r", b"\r\n\r\n")


class EventBoundary:
    """Follows a stream of events and knows whether it stands between two of them."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b"\n\n"

    def feed(self, chunk: bytes) -> None:
        """Take note of what went out."""
        self._tail = chunk[-4:] if len(chunk) >= 4 else (self._tail + chunk)[-4:]

    @property
    def between_events(self) -> bool:
        """Whether the last event is whole."""
        return self._tail.endswith(_BLANK_LINES)

    def discard(self) -> bytes:
        """What makes clients ignore an event that was cut off, so that another can follow.

        Nothing can be taken back, but the last ``event`` field names the event, and a ``ping`` is
        the one whose data no client looks at: some parse that of any other name, known or not.
        Before it, a character cut in half is made whole, since some decode strictly, and the line
        is ended.
        """
        if self.between_events:
            return b""
        mend = b"" if self._tail.endswith(_NEWLINES) else _rest_of_character(self._tail) + b"\n"
        return mend + b"event: ping\n\n"


def _rest_of_character(tail: bytes) -> bytes:
    """Continuation bytes for a UTF-8 character that `tail` ends within (RFC 3629 §3)."""
    for length in range(1, min(len(tail), 3) + 1):
        lead = tail[-length]
        if lead < 0x80:
            return b""
        if lead >= 0xC0:
            whole = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return _fitting(lead, length)[: whole - length]
    return b""


def _fitting(lead: int, length: int) -> bytes:
    # E0 and F0 forbid a low second byte, ED and F4 a high one; later bytes are free
    second = {0xE0: 0xA0, 0xF0: 0x90}.get(lead, 0x80)
    return bytes((second, 0x80, 0x80))[length - 1 :]

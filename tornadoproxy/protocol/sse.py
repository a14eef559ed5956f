"""Server-sent events on their way through: where one ends, and how to cut in. Sans-io.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

from tornadoproxy.errors import UpstreamProtocolError

MAX_EVENT = 16 * 1024 * 1024
"""The longest event that is taken apart, in bytes: a tool's result can be in one."""

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


class EventReader:
    """Takes a stream of events apart, at whatever points it was split.

    Only the data of each event is handed out: for Anthropic's events, its kind is in it. Data of
    an event that never ended is not, as the standard has it.
    """

    __slots__ = ("_after_cr", "_pending", "_size")

    def __init__(self) -> None:
        self._pending: list[bytes] = []  # of an event that is not whole: joined once, when it is
        self._size = 0
        self._after_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of each event that is whole with this piece.

        :raises UpstreamProtocolError: an event is longer than `MAX_EVENT`.
        """
        if self._after_cr or b"\r" in piece:
            piece = self._with_plain_newlines(piece)
        # an end that two pieces share is seen by the last byte of the one before
        seam = self._pending[-1][-1:] if self._pending else b""
        self._pending.append(piece)
        self._size += len(piece)
        if b"\n\n" not in piece and not (seam == b"\n" and piece.startswith(b"\n")):
            if self._size > MAX_EVENT:
                raise UpstreamProtocolError("The upstream sent an event without an end.")
            if not piece:
                self._pending.pop()
            return []
        *events, rest = b"".join(self._pending).split(b"\n\n")
        self._pending, self._size = [rest] if rest else [], len(rest)
        return [data for data in map(_data, events) if data]

    def _with_plain_newlines(self, piece: bytes) -> bytes:
        if not piece:
            return piece  # the line feed that belongs to a carriage return may come next
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        self._after_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data(event: bytes) -> bytes:
    start = event.find(b"\ndata:")
    if start >= 0 and event.find(b"\n", start + 1) < 0 and not event.startswith(b"data:"):
        return event[start + 6 :].strip()  # one line of data, and the last: as upstream has it
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)

"""Server-sent events: where one ends, how to insert an error, and their data. Sans-io.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

from tornadoproxy.errors import UpstreamProtocolError

MAX_EVENT = 16 * 1024 * 1024
"""The longest event that is read, in bytes: a tool's result can be in one event."""

_NEWLINES = (b"\n", b"\r")
_BLANK_LINES = (b"\n\n", b"\r\r", b"\r\n\r\n")


class EventBoundary:
    """Position in a stream of events: between two events, or within one."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b"\n\n"

    def feed(self, chunk: bytes) -> None:
        """Record what was sent."""
        self._tail = chunk[-4:] if len(chunk) >= 4 else (self._tail + chunk)[-4:]

    @property
    def between_events(self) -> bool:
        """Whether the last event is complete."""
        return self._tail.endswith(_BLANK_LINES)

    def discard(self) -> bytes:
        """Return bytes that make clients ignore a cut event, so that another event can follow.

        The last ``event`` field names an event, so the cut event becomes a ``ping``: the only one
        whose data no client parses. Before that field, a cut UTF-8 character is completed, since
        some clients decode strictly, and the line is ended.
        """
        if self.between_events:
            return b""
        mend = b"" if self._tail.endswith(_NEWLINES) else _rest_of_character(self._tail) + b"\n"
        return mend + b"event: ping\n\n"


def _rest_of_character(tail: bytes) -> bytes:
    """Return the missing bytes of a UTF-8 character that `tail` ends within (RFC 3629 §3)."""
    for length in range(1, min(len(tail), 3) + 1):
        lead = tail[-length]
        if lead < 0x80:
            return b""
        if lead >= 0xC0:
            whole = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return _fitting(lead, length)[: whole - length]
    return b""


def _fitting(lead: int, length: int) -> bytes:
    # after E0 and F0 the second byte must be high, after ED and F4 low; later bytes can be any
    second = {0xE0: 0xA0, 0xF0: 0x90}.get(lead, 0x80)
    return bytes((second, 0x80, 0x80))[length - 1 :]


class EventReader:
    """Reader of the events' data in a stream that is split anywhere.

    It returns only the data, which for Anthropic's events includes the type. As the standard
    requires, an event without an end is not returned.
    """

    __slots__ = ("_after_cr", "_pending", "_size")

    def __init__(self) -> None:
        self._pending: list[bytes] = []  # pieces of an incomplete event, joined once it is complete
        self._size = 0
        self._after_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of each event that is complete with this piece.

        :raises UpstreamProtocolError: an event is longer than `MAX_EVENT`.
        """
        if self._after_cr or b"\r" in piece:
            piece = self._with_plain_newlines(piece)
        # the last byte of the piece before shows an end that two pieces share
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
            return piece  # the line feed after a carriage return may come next
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        self._after_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data(event: bytes) -> bytes:
    start = event.find(b"\ndata:")
    if start >= 0 and event.find(b"\n", start + 1) < 0 and not event.startswith(b"data:"):
        return event[start + 6 :].strip()  # the upstream's form: one line of data, at the end
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)

"""The event stream of AWS, decoded by botocore's parser, as server-sent events. Sans-io.

Each frame of Bedrock's streams holds one event of the Anthropic API, in base64; a frame of the kind
``exception`` is an error, and the last one.

Source: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ResponseStream.html
"""

from __future__ import annotations

import base64
import json
import re
import struct

from botocore.eventstream import EventStreamBuffer, EventStreamMessage, ParserError

from tornadoproxy import Dialect, ProxyError, UpstreamError
from tornadoproxy_aws.errors import status_of_event

CONTENT_TYPE = "application/vnd.amazon.eventstream"

MAX_FRAME = 16 * 1024 * 1024
"""The longest frame that is read, in bytes: a tool's result can be in one event."""

_type_at_first = re.compile(rb'\{"type":"([a-z_]+)"').match


class EventStreamDecoder:
    """The events of one response.

    :param request_id: of the response, for errors in it.
    """

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._frames = EventStreamBuffer()
        self._incomplete = 0
        self._failed = False

    def feed(self, chunk: bytes) -> bytes:
        """Return the events that are complete with `chunk`.

        :raises UpstreamError: the stream is no event stream, or a frame is longer than `MAX_FRAME`.
        """
        if self._failed:
            return b""
        self._frames.add_data(chunk)
        self._incomplete += len(chunk)
        events = bytearray()
        try:
            for frame in self._frames:
                self._incomplete -= frame.prelude.total_length
                events += self._event(frame)
        except (ParserError, ValueError, LookupError, TypeError, struct.error, RecursionError):
            raise UpstreamError("The upstream sent an event stream that cannot be read.") from None
        if self._incomplete > MAX_FRAME:
            raise UpstreamError("The upstream sent an event without an end.")
        return bytes(events)

    def end(self) -> bytes:
        """Return nothing.

        :raises UpstreamError: the stream ended within a frame.
        """
        if self._incomplete and not self._failed:
            raise UpstreamError("The upstream ended its response within an event.")
        return b""

    def _event(self, frame: EventStreamMessage) -> bytes:
        """Return one frame as a server-sent event; nothing for those that hold none."""
        if self._failed:
            return b""
        headers = frame.headers
        kind = headers.get(":message-type")
        if kind in ("exception", "error"):
            self._failed = True
            return _error(headers, frame.payload, self._request_id)
        if headers.get(":event-type") != "chunk":
            return b""
        data = base64.b64decode(json.loads(frame.payload)["bytes"])
        found = _type_at_first(data)
        if found is not None and b"\n" not in data and b"\r" not in data:
            return b"event: %b\ndata: %b\n\n" % (found[1], data)
        event = json.loads(data)
        name = event.get("type") if isinstance(event, dict) else None
        if not isinstance(name, str):
            return b""
        return b"event: %b\ndata: %b\n\n" % (name.encode(), json.dumps(event).encode())


def _error(headers: dict[str, str], payload: bytes, request_id: str) -> bytes:
    name = headers.get(":exception-type") or headers.get(":error-code") or ""
    try:
        message = json.loads(payload)["message"]
    except (ValueError, LookupError, TypeError):
        message = headers.get(":error-message")
    if not isinstance(message, str):
        message = f"The upstream failed: {name}"
    error = ProxyError(message, status=status_of_event(name))
    return Dialect.ANTHROPIC.stream_error(error, request_id)

"""What passes in one exchange, collected in the event loop: pieces of bodies up to a limit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tornadoproxy import IncomingRequest, Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tornadoproxy import RequestRecord

MARGIN = 4096
"""Bytes that are collected beyond the limit of a body, since a match may cross the limit."""

Lines = tuple[tuple[str, str], ...]

# a header that by its name carries a secret, although nobody declares it
_SECRET = re.compile(
    r"(^|-)(auth|authorization|cookie|credentials?|key|apikey|password|secret|signature|token)($|-)",
    re.IGNORECASE,
).search


class Headers(Protocol):
    """Headers, as an observer gets them."""

    def get_all(self) -> Iterable[tuple[str, str]]:
        """Return each line."""


class Body:
    """The beginning of a body.

    :param limit: the bytes to record.
    :ivar kept: those, and up to `MARGIN` behind them.
    :ivar size: bytes that have passed.
    """

    __slots__ = ("kept", "limit", "size")

    def __init__(self, limit: int) -> None:
        self.size = 0
        self.kept = bytearray()
        self.limit = limit

    def add(self, piece: bytes) -> None:
        """Take the next piece."""
        self.size += len(piece)
        left = self.limit + MARGIN - len(self.kept)
        if left:
            self.kept += piece[:left]


class Exchange(NamedTuple):
    """A request and its response; ``status`` is ``None`` if there was none."""

    method: str
    path: str
    request_headers: Lines
    request: Body
    status: int | None
    response_headers: Lines
    response: Body


class Capture(Observer):
    """The observer of one exchange.

    :param hidden: names of request headers that are not kept.
    :param max_body: the bytes to record of each body.
    :param take: called with the exchange and its record when it has ended.
    """

    def __init__(
        self,
        request: IncomingRequest,
        hidden: frozenset[str],
        max_body: int,
        take: Callable[[Exchange, RequestRecord], None],
    ) -> None:
        self._method, self._path = request.method, request.path
        lines = request.headers.get_all()
        self._request_headers = _kept(line for line in lines if line[0] not in hidden)
        self._take = take
        self._status: int | None = None
        self._response_headers: Lines = ()
        self._request, self._response = Body(max_body), Body(max_body)

    def request_body(self, chunk: bytes) -> None:
        self._request.add(chunk)

    def response_began(self, status: int, headers: Headers) -> None:
        self._status = status
        self._response_headers = _kept(headers.get_all())

    def response_body(self, chunk: bytes) -> None:
        self._response.add(chunk)

    def ended(self, record: RequestRecord) -> None:
        exchange = Exchange(
            self._method,
            self._path,
            self._request_headers,
            self._request,
            self._status,
            self._response_headers,
            self._response,
        )
        self._take(exchange, record)


def _kept(lines: Iterable[tuple[str, str]]) -> Lines:
    return tuple((name, value) for name, value in lines if not _SECRET(name))

"""The observers of one request. A start loads this only for a plugin that observes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornado.web import OutputTransform

from tornadoproxy.plugin.failures import OurOwnError
from tornadoproxy.protocol.headers import request_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tornado.httputil import HTTPHeaders

    from tornadoproxy.plugin.failures import Teller
    from tornadoproxy.plugin.request import Identity, IncomingRequest, RequestRecord


class Observer:
    """The observer of one request; a plugin's own is a subclass.

    The bytes are those between the client and this proxy: before a translation of the request, and
    after that of the response. Each method must be sync and must not block; what one raises is
    logged, and the others are called nevertheless.
    """

    def request_body(self, chunk: bytes) -> None:
        """Take a piece of the request's body."""

    def response_began(self, status: int, headers: HTTPHeaders) -> None:
        """Take the status and the headers of the response; `headers` cannot be changed."""

    def response_body(self, chunk: bytes) -> None:
        """Take a piece of the response's body, as it is written to the client."""

    def ended(self, record: RequestRecord) -> None:
        """Take the record, once, when the request has ended in any way."""


class Observers(OutputTransform):
    """The observers of one request. It sees the response as one of Tornado's transforms.

    :param observers: each after its plugin's name.
    :param bodyless: the client gets no body, since it has asked with HEAD.
    """

    def __init__(
        self, observers: list[tuple[str, Observer]], teller: Teller, *, bodyless: bool
    ) -> None:
        self._observers = observers
        self._teller = teller
        self._bodyless = bodyless

    def request_body(self, chunk: bytes) -> None:
        """See `Observer.request_body`."""
        self._tell("request_body", chunk)

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        # a copy that cannot be changed: the response does not depend on who observes it
        self._tell("response_began", status_code, request_headers(headers.get_all()))
        return status_code, headers, self.transform_chunk(chunk, finishing)

    def transform_chunk(self, chunk: bytes, finishing: bool) -> bytes:
        if chunk and not self._bodyless:
            self._tell("response_body", chunk)
        return chunk

    def ended(self, record: RequestRecord) -> None:
        """See `Observer.ended`."""
        self._tell("ended", record)

    def _tell(self, method: str, *what: object) -> None:
        for plugin, observer in self._observers:
            self._teller.tell(plugin, f"observe ({method})", getattr(observer, method), *what)


def observers_of(
    calls: Iterable[tuple[str, Callable[..., object]]],
    request: IncomingRequest,
    identity: Identity,
    credential_headers: frozenset[str],
    teller: Teller,
) -> Observers | None:
    """Return the observers of a request; ``None`` if no plugin observes it.

    :param calls: the functions of the hook, each after its plugin's name.
    """
    found: list[tuple[str, Observer]] = []
    for plugin, observe in calls:
        observer = teller.tell(plugin, "observe", observe, request, identity, credential_headers)
        if isinstance(observer, Observer):
            found.append((plugin, observer))
        elif observer is not None:
            wrong = OurOwnError(f"its {type(observer).__name__} is not an Observer")
            teller.count_failure(plugin, "observe", wrong)
    return Observers(found, teller, bodyless=request.method == "HEAD") if found else None

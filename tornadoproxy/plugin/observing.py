"""The observers of one request: see the hook ``observe``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornado.web import OutputTransform

if TYPE_CHECKING:
    from collections.abc import Callable

    from tornado.httputil import HTTPHeaders

    from tornadoproxy.plugin.request import RequestRecord


class Observer:
    """The observer of one request; a plugin's own is a subclass.

    The bytes are those between the client and this proxy: before a translation of the request, and
    after that of the response. Each method must be sync and must not block; what one raises is
    logged, and the others are called nevertheless.
    """

    def request_body(self, chunk: bytes) -> None:
        """Take a piece of the request's body."""

    def response_began(self, status: int, headers: HTTPHeaders) -> None:
        """Take the head of the response; `headers` must not be changed."""

    def response_body(self, chunk: bytes) -> None:
        """Take a piece of the response's body, as it is written to the client."""

    def ended(self, record: RequestRecord) -> None:
        """Take the record, once, when the request has ended in any way."""


class Observers(OutputTransform):
    """The observers of one request. It sees the response as one of Tornado's transforms.

    :param count_failure: called with plugin, hook and what an observer raised.
    """

    def __init__(
        self,
        observers: list[tuple[str, Observer]],
        count_failure: Callable[[str, str, BaseException], None],
    ) -> None:
        self._observers = observers
        self._count_failure = count_failure

    def request_body(self, chunk: bytes) -> None:
        """See `Observer.request_body`."""
        self._tell("request_body", chunk)

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        self._tell("response_began", status_code, headers)
        return status_code, headers, self.transform_chunk(chunk, finishing)

    def transform_chunk(self, chunk: bytes, finishing: bool) -> bytes:
        if chunk:
            self._tell("response_body", chunk)
        return chunk

    def ended(self, record: RequestRecord) -> None:
        """See `Observer.ended`."""
        self._tell("ended", record)

    def _tell(self, method: str, *what: object) -> None:
        for plugin, observer in self._observers:
            try:
                getattr(observer, method)(*what)
            except BaseException as error:
                self._count_failure(plugin, f"observe ({method})", error)

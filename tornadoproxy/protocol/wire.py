"""How an upstream differs from the Anthropic API on the wire: what a `Wire` changes. Sans-io.

A request to an upstream is an `OutgoingRequest` in the form of the Anthropic API. The upstream's
`Wire` changes it to the upstream's own form, and the response back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from types import NoneType
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from tornadoproxy.errors import ProxyError
from tornadoproxy.protocol.dialects import Dialect, error_of
from tornadoproxy.protocol.headers import is_field
from tornadoproxy.protocol.json_codec import loads

if TYPE_CHECKING:
    from collections.abc import Awaitable

_METHOD = r"[A-Z-]+"
_TARGET = r"/[!-~]*"  # RFC 9112 §3.2.1, a little wider
_SHOWN = r"[!-+\--~]{1,100}"  # in a header, between commas


_Lines = Iterable[tuple[str, str]]


def _value_of(lines: _Lines, name: str) -> str | None:
    values = [value for each, value in lines if each.lower() == name.lower()]
    return ",".join(values) if values else None


def _changed(lines: _Lines, added: _Lines, without: Iterable[str]) -> list[tuple[str, str]]:
    gone = {name.lower() for name in (*without, *(name for name, _ in added))}
    return [*(each for each in lines if each[0].lower() not in gone), *added]


class OutgoingRequest(Struct, frozen=True, kw_only=True):
    """A request to one upstream, before it is sent; ``msgspec.structs.replace`` changes a copy.

    The core adds ``Host``, ``Via``, the framing of the body and the upstream's API key afterwards,
    unless there is a header of that key's name.

    :param upstream: the upstream's name.
    :param method: ``POST``.
    :param target: path and query; the prefix of the upstream's base URL is put before it.
    :param headers: pairs of name and value, without the client's credentials and without headers
        that end at this proxy.
    :param body: the whole body; ``None`` if it is streamed, and cannot be changed.
    :param ignored: names of fields and features that were left out; the client is told them in
        ``x-tornadoproxy-ignored``.
    """

    upstream: str
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | None
    ignored: tuple[str, ...] = ()

    __repr__ = object.__repr__  # a header may hold a credential

    def header(self, name: str) -> str | None:
        """Return the value of the header `name`, its lines joined; ``None`` if there is none."""
        return _value_of(self.headers, name)

    def with_headers(
        self, *added: tuple[str, str], without: tuple[str, ...] = ()
    ) -> tuple[tuple[str, str], ...]:
        """Return the headers with `added` ones, which replace those of the same names.

        :param without: the names of headers to leave out.
        """
        return tuple(_changed(self.headers, added, without))

    @property
    def shown_ignored(self) -> str:
        """`ignored` as the value of a header, without names that cannot be in one."""
        return ", ".join(name for name in self.ignored[:50] if re.fullmatch(_SHOWN, name))


def is_sendable(request: OutgoingRequest) -> bool:
    """Whether a request that a plugin has made is HTTP: Python checks no type."""
    try:
        msgspec.convert(asdict(request), OutgoingRequest, builtin_types=(bytes,))
    except msgspec.ValidationError:
        return False
    return (
        isinstance(request.body, (bytes, NoneType))
        and re.fullmatch(_METHOD, request.method) is not None
        and re.fullmatch(_TARGET, request.target) is not None
        and all(is_field(name, value) for name, value in request.headers)
    )


class ResponseHead(NamedTuple):
    """The status and header fields of a response, in the order and the case of the wire.

    :param ends_with_connection: the end of file ends the body (RFC 9112 §6.3, the last rule).
    """

    status: int
    reason: str
    fields: list[tuple[str, str]]
    ends_with_connection: bool = False

    def header(self, name: str) -> str | None:
        """Return the value of the header `name`, its lines joined; ``None`` if there is none."""
        return _value_of(self.fields, name)

    def with_fields(
        self, *added: tuple[str, str], without: tuple[str, ...] = ()
    ) -> list[tuple[str, str]]:
        """Return the header fields with `added` ones, which replace those of the same names.

        :param without: the names of fields to leave out.
        """
        return _changed(self.fields, added, without)


class ResponseDecoder(Protocol):
    """Turns the body of one response into what the Anthropic API would send.

    Its memory must be bounded, whatever the upstream sends.
    """

    def feed(self, chunk: bytes) -> bytes:
        """Return what follows from `chunk`; it may be nothing.

        :raises UpstreamError: the upstream's body is not what it should be.
        """

    def end(self) -> bytes:
        """Return the rest, since the upstream's body has ended.

        :raises UpstreamError: it ended too early.
        """


_MESSAGES = ("message", "Message", "error")


class ErrorDecoder:
    """A `ResponseDecoder` for errors: the Anthropic API's form, with the upstream's own message.

    An error that has this form already stays as it is, byte for byte. Other forms are those of
    clouds: ``{"error": {"message": …}}``, alone or in a list, and ``{"message": …}``.

    :param head: of the response; its ``request-id`` becomes the error's.
    """

    MAX_BODY = 256 * 1024
    """The longest error that is read, in bytes."""

    def __init__(self, head: ResponseHead) -> None:
        self._status = head.status
        self._request_id = head.header("request-id") or ""
        self._body = bytearray()

    @classmethod
    def of(cls, head: ResponseHead) -> tuple[ResponseHead, ErrorDecoder]:
        """Return what `Wire.read` returns for the head of an error that has no content coding."""
        fields = head.with_fields(("Content-Type", "application/json"), without=("Content-Length",))
        return head._replace(fields=fields), cls(head)

    def feed(self, chunk: bytes) -> bytes:
        """See `ResponseDecoder`."""
        self._body += chunk[: self.MAX_BODY - len(self._body)]
        return b""

    def end(self) -> bytes:
        """See `ResponseDecoder`."""
        body = bytes(self._body)
        try:
            document = loads(body)
        except (ValueError, RecursionError):
            document = None
        if isinstance(document, dict) and document.get("type") == "error":
            kind, message = error_of(document)
            if kind and message:
                return body
        message = self.message_of(document) or self._without_message()
        error = ProxyError(message, status=self._status)
        return Dialect.ANTHROPIC.error_body(error, self._request_id)

    def message_of(self, document: object) -> str | None:
        """Return the message in a decoded body, if there is one.

        A subclass may find it elsewhere. One about a model that is absent has to contain "model",
        so that another upstream is asked.
        """
        if isinstance(document, list) and document:
            document = document[0]
        if not isinstance(document, dict):
            return None
        _, message = error_of(document)
        message = message or next((document[name] for name in _MESSAGES if name in document), None)
        return message if isinstance(message, str) else None

    def _without_message(self) -> str:
        if self._status == 413:
            return "Request exceeds the maximum size"  # the API's own words, which clients know
        return f"The upstream responded with status {self._status}."


class Wire:
    """The Anthropic API as it is, and the base of upstreams that differ from it.

    A wire serves all requests to its upstream, several at once. It holds no state of a request:
    that belongs into the decoder which `read` returns.
    """

    needs_body = False
    """Whether `prepare` needs the body. If so, each body of what the wire `serves` is held until it
    is whole, and can be no larger than 32 MB; otherwise `OutgoingRequest.body` may be ``None``."""

    def serves(self, method: str, path: str) -> bool:
        """Return whether the upstream has this method and path; the path is without its query."""
        return True

    def prepare(self, request: OutgoingRequest) -> OutgoingRequest | Awaitable[OutgoingRequest]:
        """Return the request in the upstream's form, signed if it has to be.

        It must not block: what loads credentials is awaited.

        :raises InvalidRequest: the upstream cannot be asked for this; the message says what to do.
        :raises UpstreamError: there is no credential at present; another upstream is tried.
        """
        return request

    def read(
        self, request: OutgoingRequest, head: ResponseHead
    ) -> tuple[ResponseHead, ResponseDecoder | None]:
        """Return the head of a response as the Anthropic API would send it.

        :param request: what `prepare` returned, without headers and body.
        :return: with the head, the decoder of the body, unless the body is as it should be. The
            head must not announce a length or a coding that does not hold for decoded bytes.
        """
        return head, None

    async def load_credential(self) -> None:
        """Load the upstream's credential, so that ``check --online`` shows whether there is one.

        :raises UpstreamError: it cannot be loaded.
        """

    async def renew_credential(self) -> bool:
        """Load the upstream's credential anew, since the upstream refused it (401 or 403).

        :return: whether there is another one: then the request is sent again, once.
        """
        return False


ANTHROPIC = Wire()
"""The Anthropic API as it is."""

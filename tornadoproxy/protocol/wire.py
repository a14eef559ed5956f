"""How an upstream differs from the Anthropic API on the wire: what a `Wire` changes. Sans-io.

A request to an upstream is an `OutgoingRequest` in the form of the Anthropic API. The upstream's
`Wire` changes it to the upstream's own form, and the response back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Awaitable


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
        lines = [value for each, value in self.headers if each.lower() == name.lower()]
        return ",".join(lines) if lines else None

    def with_headers(
        self, *added: tuple[str, str], without: tuple[str, ...] = ()
    ) -> tuple[tuple[str, str], ...]:
        """Return the headers with `added` ones, which replace those of the same names.

        :param without: the names of headers to leave out.
        """
        gone = {name.lower() for name in (*without, *(name for name, _ in added))}
        return (*(each for each in self.headers if each[0].lower() not in gone), *added)


class ResponseHead(NamedTuple):
    """The status and header fields of a response, in the order and the case of the wire.

    :param ends_with_connection: the end of file ends the body (RFC 9112 §6.3, the last rule).
    """

    status: int
    reason: str
    fields: list[tuple[str, str]]
    ends_with_connection: bool = False


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


class Wire:
    """The Anthropic API as it is, and the base of upstreams that differ from it.

    A wire serves all requests to its upstream, several at once. It holds no state of a request:
    that belongs into the decoder which `read` returns.
    """

    needs_body = False
    """Whether `prepare` needs the body. If so, every body is held until it is whole, and can be no
    larger than 32 MB; otherwise `OutgoingRequest.body` may be ``None``."""

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

    async def renew_credential(self) -> bool:
        """Load the upstream's credential anew, since the upstream refused it (401 or 403).

        :return: whether there is another one: then the request is sent again, once.
        """
        return False


ANTHROPIC = Wire()
"""The Anthropic API as it is."""

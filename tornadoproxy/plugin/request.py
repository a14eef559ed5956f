"""One request as plugins see it.

`IncomingRequest` is what is known while it is being decided, `Identity` is whom it comes from, and
`RequestRecord` is what became of it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from tornadoproxy.errors import AuthenticationFailed
from tornadoproxy.protocol.usage import ModelUsage, Usage
from tornadoproxy.secret import Secret

if TYPE_CHECKING:
    from tornado.httputil import HTTPHeaders

    from tornadoproxy.protocol.dialects import Dialect

MAX_API_KEY_LINES = 8


# HTTP's own (RFC 9110 §5.6.3); to str.strip(), the last bytes of "à" and "Å" are blanks as well
_BLANKS = " \t"


class Outcome(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"
    """The answer went out whole, be it the upstream's own error."""
    DENIED = "denied"
    """Refused by this proxy before anything went upstream."""
    FAILED = "failed"
    """The upstream, or the proxy, broke: an error of ours, or an answer cut short."""
    ABANDONED = "abandoned"
    """The client left first."""
    DRAINED = "drained"
    """The proxy stopped first: ``DRAIN_TIMEOUT`` was over."""


class Identity(Struct, frozen=True):
    """Who a request comes from, as an authenticator vouches for it.

    :param principal: a name for logs and limits; never the credential.
    :param anonymous: nobody in particular. The core lets anonymous requests in only through a
        loopback or configured ``Host``, and never from a web page of another origin.
    :param groups: the groups that the principal belongs to.
    """

    principal: str
    anonymous: bool = False
    groups: tuple[str, ...] = ()


class IncomingRequest(Struct, frozen=True):
    """A request's head as plugins see it. Not to be changed.

    :param method: as sent: ``POST``.
    :param path: as sent, without the query, not decoded.
    :param headers: case-insensitive, repeated lines kept (``headers.get_list(name)``); to change
        them is a `TypeError`.
    :param remote_ip: the client's address, in its shortest form; behind a trusted proxy, the one
        that it reports; ``unknown`` if that is no address, which must pass for nobody's.
    :param dialect: the API that the path belongs to.
    """

    method: str
    path: str
    headers: HTTPHeaders
    remote_ip: str
    dialect: Dialect

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # Any: msgspec's signature
        """What a debugger shows: all but the headers, which hold the credential."""
        return [(name, getattr(self, name)) for name in self.__struct_fields__ if name != "headers"]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"

    def candidates(self) -> tuple[Secret, ...]:
        """The credentials that the request presents; one that is right is enough.

        A non-empty ``x-api-key`` takes precedence: with one present, ``Authorization`` is not
        looked at. Several ``x-api-key`` lines are all candidates, at most eight of them. The
        scheme ``Bearer`` is case-insensitive, blanks around a credential are not part of it, and
        a comma inside it is.

        :raises AuthenticationFailed: there are several ``Authorization`` lines, and they differ.
        """
        lines = self.headers.get_list("X-Api-Key")[:MAX_API_KEY_LINES]
        keys = tuple(
            Secret(key.encode("latin-1")) for line in lines if (key := line.strip(_BLANKS))
        )
        if keys:
            return keys
        authorization = self.headers.get_list("Authorization")
        if not authorization:
            return ()
        if authorization.count(authorization[0]) < len(authorization):
            raise AuthenticationFailed(
                "There are several Authorization headers, and they differ: send one."
            )
        scheme, _, token = authorization[0].strip(_BLANKS).partition(" ")
        token = token.strip(_BLANKS)
        if scheme.lower() != "bearer" or not token:
            return ()
        return (Secret(token.encode("latin-1")),)

    def authentication_failed(
        self, wanted: str = "a token or key of this proxy, not one of the upstream"
    ) -> AuthenticationFailed:
        """Return the 401 for a request whose credential is missing, unreadable or unknown.

        :param wanted: the credential that would be accepted, as the client's user calls it.
        :raises AuthenticationFailed: there are several ``Authorization`` lines, and they differ.
        """
        if self.candidates():
            return AuthenticationFailed(f"The credential sent is not known here: send {wanted}.")
        if self.headers.get("Authorization", "").strip(_BLANKS):
            return AuthenticationFailed(
                f"The Authorization header holds no Bearer token: send {wanted}, as "
                "Authorization: Bearer."
            )
        return AuthenticationFailed(
            f"No credential was sent: send {wanted}, as the API key or as Authorization: Bearer."
        )


def presents_both_credentials(headers: HTTPHeaders) -> bool:
    """Return whether a request has a credential in ``x-api-key`` and in ``Authorization``.

    Claude Code sends what a key helper printed in both, and runs the helper again after a 401 that
    it may retry.
    """
    api_keys = headers.get_list("X-Api-Key")
    return "Authorization" in headers and any(line.strip(_BLANKS) for line in api_keys)


class RequestRecord(Struct, frozen=True, kw_only=True):
    """What became of one request. Holds no credential, no query string and no body.

    :param time: when its head was read, in seconds since the epoch.
    :param request_id: the id that the client saw: the upstream's, else the proxy's.
    :param principal: who asked; ``None`` if nobody was let in.
    :param groups: the groups that the principal belongs to.
    :param method: ``POST``.
    :param route: the path without its query.
    :param dialect: ``anthropic`` or ``openai``.
    :param scheme: ``http`` or ``https``; behind a trusted proxy, the one that it reports.
    :param remote_ip: the client's address; ``unknown`` if a trusted proxy reported none.
    :param status: the HTTP status sent; ``None`` if there was none.
    :param outcome: how it ended.
    :param error: what went wrong, in a few words; ``None`` if nothing did.
    :param requested_model: the model that the request names; ``None`` if it names none, or its
        body was not read: that of a relayed message is, where a plugin authorizes.
    :param model: the model that answered; after a fallback, the last one.
    :param usage: what the response reports that it used, on all models.
    :param cost: what that costs, in billionths of a US dollar, all models together; ``None`` if
        the price of any part of it is not known.
    :param stop_reason: why the model stopped, in Anthropic's words, whatever the dialect.
    :param bytes_in: request body bytes read from the client.
    :param bytes_out: response body bytes handed to the client's connection.
    :param duration: from the head's reading to the end, in seconds.
    :param time_to_first_byte: until the upstream's first body byte, or its head if it has no
        body, in seconds; ``None`` if there was none.
    :param time_to_first_token: until the first piece of a streamed answer's content, in seconds;
        ``None`` if there was none, or no stream.
    :param upstream_time: from the request's start upstream to the answer's end, in seconds.
    :param session_id: Claude Code's session.
    :param agent_id: Claude Code's agent within the session.
    :param parent_agent_id: the agent that started this one.
    :param traceparent: the client's trace context (https://www.w3.org/TR/trace-context/).
    :param tracestate: what goes with it.
    """

    time: float
    request_id: str
    principal: str | None
    groups: tuple[str, ...] = ()
    method: str
    route: str
    dialect: str
    scheme: str = "http"
    remote_ip: str
    status: int | None
    outcome: Outcome
    error: str | None
    requested_model: str | None = None
    model: str | None
    usage: Usage
    cost: int | None = None
    stop_reason: str | None = None
    bytes_in: int
    bytes_out: int
    duration: float
    time_to_first_byte: float | None
    time_to_first_token: float | None = None
    upstream_time: float | None
    session_id: str | None
    agent_id: str | None
    parent_agent_id: str | None
    traceparent: str | None = None
    tracestate: str | None = None

    def by_model(self) -> tuple[ModelUsage, ...]:
        """What each model used and cost, the one that answered first, then ``usage.others``.

        Where `cost` is not known, no part of it counts as known, so that parts add up to it.
        """
        others = self.usage.others
        if not others:
            return (ModelUsage(self.model, self.usage, self.cost),)
        own = self.cost
        if own is None:
            others = tuple(replace(other, cost=None) for other in others)
        else:
            own -= sum(other.cost or 0 for other in others)
        return (ModelUsage(self.model, replace(self.usage, others=()), own), *others)

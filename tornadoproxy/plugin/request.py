"""One request as plugins see it.

`IncomingRequest` is known while plugins decide, `Identity` says who sent it, `ModelRequest` what it
asks of a model, and `RequestRecord` how it ended.

Sources: https://docs.anthropic.com/en/api/messages (``model``, ``max_tokens``, ``stream``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from tornadoproxy.errors import AuthenticationFailed
from tornadoproxy.protocol.request_target import INPUT_TOKENS, of_responses
from tornadoproxy.protocol.usage import NOTHING_USED, ModelUsage, Usage
from tornadoproxy.secret import Secret

if TYPE_CHECKING:
    from tornado.httputil import HTTPHeaders

    from tornadoproxy.plugin.limits import Allowance
    from tornadoproxy.protocol.dialects import Dialect
    from tornadoproxy.protocol.request_fields import Fields

MAX_API_KEY_LINES = 8

ESTIMATED_OUTPUT = 32_000
"""The estimated output, in tokens, of a request without a limit."""

MAX_OUTPUT = 128_000
"""The longest response of any model, in tokens, where the model's own limit is not known.

Source: https://platform.claude.com/docs/en/about-claude/models/overview
"""

# optional whitespace of RFC 9110 §5.6.3; str.strip() would also cut the last bytes of "à" and "Å"
_BLANKS = " \t"

# These make the upstream run no model, whatever the body says. The ids of batches have no other
# characters, so that no other spelling of a path that spends gets through.
_UNSPENDING_METHODS = ("GET", "HEAD", "DELETE", "OPTIONS")
_UNSPENDING_PATHS = frozenset({"/v1/messages/count_tokens", "/v1/files"}) | INPUT_TOKENS
_CANCELED_BATCH = r"/v1/messages/batches/[A-Za-z0-9_-]+/cancel"


class Outcome(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"
    """The whole response was sent, including an error of the upstream's."""
    DENIED = "denied"
    """Refused by this proxy before anything went upstream."""
    FAILED = "failed"
    """The upstream or the proxy failed: an error of the proxy's, or a truncated response."""
    ABANDONED = "abandoned"
    """The client disconnected first."""
    DRAINED = "drained"
    """The proxy stopped first: ``DRAIN_TIMEOUT`` had passed."""


class Identity(Struct, frozen=True):
    """Who sent a request, as a plugin authenticated it.

    :param principal: a name for logs and limits, and the owner of stored responses; never the
        credential.
    :param anonymous: whether the client is unknown. The core accepts anonymous requests only with
        a loopback or configured ``Host``, and never from a web page of another origin.
    :param groups: the groups that the principal belongs to.
    :param body_sha256: the SHA-256 digest that the request's body must have, in hexadecimal, where
        the credential is valid for one body only; ``None`` for any body.
    :param admin_access: what its holder may do in the Admin API: ``write`` is everything, ``read``
        changes nothing; ``None`` is nothing.
    :param allowance: what the principal may use, besides what other plugins know; ``None`` is all.
    """

    principal: str
    anonymous: bool = False
    groups: tuple[str, ...] = ()
    body_sha256: str | None = None
    admin_access: Literal["write", "read"] | None = None
    allowance: Allowance | None = None


class IncomingRequest(Struct, frozen=True):
    """A request's method, path and headers as plugins see them. Read-only.

    :param method: as sent: ``POST``.
    :param path: as sent, without the query, not decoded.
    :param headers: case-insensitive, repeated lines kept (``headers.get_list(name)``); changing
        them raises `TypeError`.
    :param remote_ip: the client's address, in its shortest form; behind a trusted proxy, the one
        that it reports; ``unknown`` if that is not an address, which must match no client.
    :param dialect: the API that the path belongs to.
    :param is_page: whether a plugin's page serves it, so that nothing goes upstream.
    """

    method: str
    path: str
    headers: HTTPHeaders
    remote_ip: str
    dialect: Dialect
    is_page: bool = False

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # Any: msgspec's signature
        """Return all fields but the headers, which hold the credential, for debuggers."""
        return [(name, getattr(self, name)) for name in self.__struct_fields__ if name != "headers"]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"

    @property
    def costs_nothing(self) -> bool:
        """Whether the upstream certainly spends nothing on this request, whatever its body says.

        A plugin that limits spending or models can rely on it for requests without a
        `ModelRequest`. Every request that is not known to cost nothing counts as one that spends.
        """
        if self.method in _UNSPENDING_METHODS or self.path in _UNSPENDING_PATHS or self.is_page:
            return True
        if not self.path.endswith("/cancel"):
            return False
        # a response that is canceled is refused without the upstream
        is_of_response = len(of_responses(self.path) or ()) == 2
        return is_of_response or bool(re.fullmatch(_CANCELED_BATCH, self.path))

    def candidates(self) -> tuple[Secret, ...]:
        """Return the credentials that the request presents; one valid credential is enough.

        A non-empty ``x-api-key`` takes precedence: with it, ``Authorization`` is ignored. The
        first eight ``x-api-key`` lines are all candidates. The scheme ``Bearer`` is
        case-insensitive, whitespace around a credential is not part of it, and a comma inside it
        is.

        :raises AuthenticationFailed: there are several different ``Authorization`` lines.
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
        """Return the 401 for a request whose credential is missing, malformed or unknown.

        :param wanted: the credential that would be accepted, in the words of the client's user.
        :raises AuthenticationFailed: there are several different ``Authorization`` lines.
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

    Claude Code sends the output of a key helper in both, and runs the helper again after a 401
    that it may retry.
    """
    api_keys = headers.get_list("X-Api-Key")
    return "Authorization" in headers and any(line.strip(_BLANKS) for line in api_keys)


def _unknown(_model: str | None, _usage: Usage) -> None:
    return None


class ModelRequest(Struct, frozen=True):
    """The parameters of ``POST /v1/messages``, or of a chat completion or response of OpenAI's.

    :param model: the model, as sent upstream; ``None`` if the request names none.
    :param models: every model that the request can spend on, each once: `model`, those of
        ``fallbacks``, and those of tools such as the advisor. It includes `UNKNOWN_MODEL` if one
        cannot be read from the request, as with ``"fallbacks": "default"``. A plugin that allows
        only some models must compare all of them.
    :param max_tokens: the most output tokens, in any attempt; ``None`` without a limit.
    :param stream: whether the request asks for a stream.
    :param size: of the body, as received, in bytes.
    :param input_tokens: the estimated input.
    :param max_output: the longest response that its models give, in tokens.
    :param price: returns the cost of tokens; see the hook ``price``.
    """

    model: str | None
    models: tuple[str, ...]
    max_tokens: int | None
    stream: bool
    size: int
    input_tokens: int = 0
    max_output: int = MAX_OUTPUT
    price: Callable[[str | None, Usage], int | None] = _unknown

    @classmethod
    def of(
        cls,
        fields: Fields,
        size: int,
        max_output: int,
        price: Callable[[str | None, Usage], int | None],
    ) -> ModelRequest:
        """Return the parameters that the `fields` of a body name."""
        return cls(
            model=fields.model,
            models=fields.models,
            max_tokens=fields.max_tokens,
            stream=bool(fields.stream),
            size=size,
            input_tokens=fields.input_tokens,
            max_output=max_output,
            price=price,
        )

    @property
    def output_tokens(self) -> int:
        """The most output tokens, up to `max_output`; an estimate without a limit."""
        limit = ESTIMATED_OUTPUT if self.max_tokens is None else max(self.max_tokens, 0)
        return min(limit, self.max_output)

    @property
    def input_cost(self) -> int | None:
        """The estimated cost of its input, in billionths of a US dollar.

        That of the most expensive of `models`; ``None`` if the price of one is unknown.
        """
        return self.cost(Usage(input_tokens=self.input_tokens))

    @property
    def max_cost(self) -> int | None:
        """The estimated highest cost: its input and `output_tokens`."""
        return self.cost(Usage(input_tokens=self.input_tokens, output_tokens=self.output_tokens))

    def estimated_usage(self, record: RequestRecord) -> Usage:
        """Estimate the usage of this request, whose response reported none.

        The estimate is nothing if the request did not go upstream or the response is an error; the
        input alone if no response began, or if the upstream or the proxy cut it off; otherwise the
        input and `output_tokens`. A client that disconnects within a response is charged for all
        of it, because the client may have read all but its end.

        :param record: the record of this request.
        """
        if record.upstream_time is None or (record.status or 0) >= 400:
            return NOTHING_USED
        broken = record.outcome in (Outcome.FAILED, Outcome.DRAINED)
        if broken or record.time_to_first_byte is None:
            return Usage(self.input_tokens, 0)
        return Usage(self.input_tokens, self.output_tokens)

    def cost(self, usage: Usage) -> int | None:
        """Return the cost of `usage` on the most expensive of `models`.

        In billionths of a US dollar; ``None`` if the price of one of them is unknown.
        """
        highest = 0
        for model in self.models:
            cost = self.price(model, usage)
            if cost is None:
                return None
            highest = max(highest, cost)
        return highest


class RequestRecord(Struct, frozen=True, kw_only=True):
    """How one request ended. Holds no credential, no query string and no body.

    :param time: when its headers were read, in seconds since the epoch.
    :param request_id: the id sent to the client: the upstream's, else the proxy's.
    :param principal: who sent it; ``None`` if it was not authenticated.
    :param groups: the groups that the principal belongs to.
    :param method: ``POST``.
    :param route: the path without its query.
    :param dialect: ``anthropic`` or ``openai``.
    :param scheme: ``http`` or ``https``; behind a trusted proxy, the one that it reports.
    :param remote_ip: the client's address; ``unknown`` if a trusted proxy reported none.
    :param status: the HTTP status sent; ``None`` if none was.
    :param outcome: how it ended.
    :param error: what failed, in a few words; ``None`` if nothing did.
    :param requested_model: the model that the request names; ``None`` if it names none, or its
        body was not parsed: a relayed message's is, if a plugin implements ``authorize``.
    :param model: the model that responded; after a fallback, the last one.
    :param usage: the usage that the response reports, on all models.
    :param cost: of that usage, in billionths of a US dollar, on all models; ``None`` if the price
        of any part of it is unknown.
    :param stop_reason: why the model stopped, in Anthropic's words, in both API formats.
    :param bytes_in: request body bytes read from the client.
    :param bytes_out: response body bytes written to the client's connection.
    :param duration: from reading the headers to the end, in seconds.
    :param time_to_first_byte: until the upstream's first body byte, or its headers if it has no
        body, in seconds; ``None`` if there was none.
    :param time_to_first_token: until the first content of a streamed response, in seconds;
        ``None`` if there was none, or no stream.
    :param upstream_time: from the start of the upstream request to the end of its response, in
        seconds.
    :param session_id: Claude Code's session.
    :param agent_id: Claude Code's agent within the session.
    :param parent_agent_id: the agent that started this one.
    :param traceparent: the client's trace context (https://www.w3.org/TR/trace-context/).
    :param tracestate: of the same trace context.
    :param upstream: the upstream whose response was sent; ``None`` if none was.
    :param attempts: how many upstreams were asked.
    :param failed_attempts: why each of them failed that did not respond in the end:
        ``"eu: 529 overloaded_error"``.
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
    upstream: str | None = None
    attempts: int = 0
    failed_attempts: tuple[str, ...] = ()

    def by_model(self) -> tuple[ModelUsage, ...]:
        """Return usage and cost of each model: `model` first, then ``usage.others``.

        If `cost` is unknown, every part of it is, so that the parts add up to it.
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

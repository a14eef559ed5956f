"""What a request asks of a model, as plugins see it, and the permits that they grant.

Sources: https://docs.anthropic.com/en/api/messages (``model``, ``max_tokens``, ``stream``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import CO_COROUTINE
from typing import TYPE_CHECKING

from msgspec import Struct

from tornadoproxy.plugin.request import Outcome
from tornadoproxy.protocol.usage import Usage

if TYPE_CHECKING:
    from tornadoproxy.plugin.request import RequestRecord

    Settle = Callable[[RequestRecord], None]
    Tell = Callable[[str, str, Settle, RequestRecord], None]

UNTOLD_OUTPUT = 32_000
"""The estimated output, in tokens, of a request without a limit."""

MAX_OUTPUT = 128_000
"""The longest response of any model, in tokens, where the model's own limit is not known.

Source: https://platform.claude.com/docs/en/about-claude/models/overview
"""


def _unknown(_model: str | None, _usage: Usage) -> None:
    return None


def _is_async(function: object) -> bool:
    # a tenth of the time of inspect.iscoroutinefunction, once for each permit
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & CO_COROUTINE)


class ModelRequest(Struct, frozen=True):
    """The parameters of ``POST /v1/messages`` or a chat completion.

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

    @property
    def output_tokens(self) -> int:
        """The most output tokens, up to `max_output`; an estimate without a limit."""
        limit = UNTOLD_OUTPUT if self.max_tokens is None else max(self.max_tokens, 0)
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
            return Usage(0, 0)
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


class Permit(Struct, frozen=True):
    """A plugin's consent with consequences.

    :param settle: called exactly once with the request's record, when the request has ended in
        any way; also if another plugin refuses it. Must be sync and not block; what it raises is
        logged. It gives back what was reserved.
    :param withheld_headers: lower-case name prefixes of the upstream's response headers that this
        client does not get.
    :raises ValueError: a prefix is invalid, or `settle` is async.
    """

    settle: Callable[[RequestRecord], None] | None = None
    withheld_headers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if _is_async(self.settle):
            raise ValueError("settle must not be async: nothing awaits it, define it with def")
        if type(self.withheld_headers) is not tuple:
            raise ValueError("withheld_headers must be a tuple")
        for prefix in self.withheld_headers:
            # one in upper case would withhold nothing, an empty one every header
            if prefix != prefix.lower() or not prefix:
                raise ValueError(f"a prefix of withheld_headers is in lower case, not {prefix!r}")


class Permits:
    """The permits of one request, kept until it ends.

    :param tell: `Plugins.tell`, which calls ``settle``.
    :ivar withheld_headers: lower-case name prefixes of response headers to withhold.
    """

    __slots__ = ("_record", "_settlements", "_tell", "withheld_headers")

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._settlements: list[tuple[str, Settle]] = []
        self._record: RequestRecord | None = None
        self.withheld_headers: tuple[str, ...] = ()

    def add(self, plugin: str, result: object) -> bool:
        """Keep the result of `plugin` if it is a permit; return whether it is.

        If the request has ended already, the permit is settled immediately.
        """
        if not isinstance(result, Permit):
            return False
        self.withheld_headers += result.withheld_headers
        if result.settle is None:
            return True
        if self._record is None:
            self._settlements.append((plugin, result.settle))
        else:
            self._tell(plugin, "settle", result.settle, self._record)
        return True

    def settle(self, record: RequestRecord) -> None:
        """Settle every permit, since the request has ended. Never raises."""
        self._record = record
        for plugin, settle in self._settlements:
            self._tell(plugin, "settle", settle, record)
        self._settlements.clear()

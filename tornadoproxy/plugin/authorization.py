"""What a request asks of a model, as authorizers see it, and what they grant.

Sources: https://docs.anthropic.com/en/api/messages (``model``, ``max_tokens``, ``stream``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import CO_COROUTINE
from typing import TYPE_CHECKING

from msgspec import Struct

from tornadoproxy.protocol.usage import Usage

if TYPE_CHECKING:
    from tornadoproxy.plugin.request import RequestRecord

    Settle = Callable[[RequestRecord], None]
    Tell = Callable[[str, str, Settle, RequestRecord], None]

UNTOLD_OUTPUT = 32_000
"""The estimated output, in tokens, of a request that names no limit."""

MAX_OUTPUT = 128_000
"""The longest response of any model, in tokens, where the model's own limit is not known.

Source: https://platform.claude.com/docs/en/about-claude/models/overview
"""


def _unknown(_model: str | None, _usage: Usage) -> None:
    return None


def _is_async(function: object) -> bool:
    # a tenth of what inspect.iscoroutinefunction takes, for each request
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & CO_COROUTINE)


class ModelRequest(Struct, frozen=True):
    """What a request for a message asks for: ``POST /v1/messages``, or a chat completion.

    :param model: the model, as it goes upstream; ``None`` if the request names none.
    :param models: every model that the request can spend on, each once: `model`, those of
        ``fallbacks``, and those of tools such as the advisor. `UNKNOWN_MODEL` is among them if one
        cannot be read from the request, as with ``"fallbacks": "default"``. A plugin that permits
        some models only must compare all of them.
    :param max_tokens: the most tokens of a response, in any attempt; ``None`` without a limit.
    :param stream: whether the response is to be a stream.
    :param size: of the body, as it came, in bytes.
    :param input_tokens: an estimate of its input.
    :param max_output: the longest response that its models give, in tokens.
    :param price: what the plugins say that tokens cost; see the hook ``price``.
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
        """The most tokens of a response, at most `max_output`; an estimate without a limit."""
        limit = UNTOLD_OUTPUT if self.max_tokens is None else max(self.max_tokens, 0)
        return min(limit, self.max_output)

    @property
    def input_cost(self) -> int | None:
        """An estimate of what its input costs, in billionths of a US dollar.

        It is that of the dearest of `models`; ``None`` if the price of one is not known.
        """
        return self._dearest(Usage(input_tokens=self.input_tokens))

    @property
    def max_cost(self) -> int | None:
        """An estimate of the most that it costs: its input, and `output_tokens`."""
        return self._dearest(
            Usage(input_tokens=self.input_tokens, output_tokens=self.output_tokens)
        )

    def _dearest(self, usage: Usage) -> int | None:
        highest = 0
        for model in self.models:
            cost = self.price(model, usage)
            if cost is None:
                return None
            highest = max(highest, cost)
        return highest


class Permit(Struct, frozen=True):
    """An authorizer's consent that has consequences.

    :param settle: called exactly once with the request's record, when the request is over,
        whichever way; also if another authorizer refuses it. Must be sync and not block; what it
        raises is logged. What was reserved is given back here.
    :param withheld_headers: prefixes, in lower case, of the names of the upstream's headers that
        this client does not get.
    :raises ValueError: those are no such prefixes, or `settle` is async.
    """

    settle: Callable[[RequestRecord], None] | None = None
    withheld_headers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if _is_async(self.settle):
            raise ValueError("settle must not be async: nothing awaits it, define it with def")
        if type(self.withheld_headers) is not tuple:
            raise ValueError("withheld_headers must be a tuple")
        for prefix in self.withheld_headers:
            # it would withhold nothing, or everything
            if prefix != prefix.lower() or not prefix:
                raise ValueError(f"the prefix of a header's name is in lower case, not {prefix!r}")


class Permits:
    """The permits of one request, kept until it is over.

    :param tell: `Plugins.tell`, by which a permit's plugin learns that the request is over.
    :ivar withheld_headers: prefixes, in lower case, of the upstream's headers that do not go to
        the client.
    """

    __slots__ = ("_record", "_settlements", "_tell", "withheld_headers")

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._settlements: list[tuple[str, Settle]] = []
        self._record: RequestRecord | None = None
        self.withheld_headers: tuple[str, ...] = ()

    def add(self, plugin: str, response: object) -> bool:
        """Keep what `plugin` answered, if it is a permit; return whether it is.

        If the request is over already, it is settled at once.
        """
        if not isinstance(response, Permit):
            return False
        self.withheld_headers += response.withheld_headers
        if response.settle is None:
            return True
        if self._record is None:
            self._settlements.append((plugin, response.settle))
        else:
            self._tell(plugin, "settle", response.settle, self._record)
        return True

    def settle(self, record: RequestRecord) -> None:
        """Tell that the request is over. Never raises."""
        self._record = record
        for plugin, settle in self._settlements:
            self._tell(plugin, "settle", settle, record)
        self._settlements.clear()

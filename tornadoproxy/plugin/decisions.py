"""The deciding hooks: which results count, who awaits the plugins, and what plugins decide with."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from inspect import CO_COROUTINE
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from tornadoproxy.errors import Denied
from tornadoproxy.plugin.failures import OurOwnError, Watched
from tornadoproxy.plugin.limits import Allowance
from tornadoproxy.plugin.request import Identity
from tornadoproxy.plugin.responding import ModelResponse
from tornadoproxy.protocol.usage import UNKNOWN_MODEL
from tornadoproxy.protocol.wire import OutgoingRequest, is_sendable

if TYPE_CHECKING:
    from tornadoproxy.plugin.request import IncomingRequest, ModelRequest, RequestRecord

    Settle = Callable[[RequestRecord], None]
    Tell = Callable[[str, str, Settle, RequestRecord], object]

MAX_MODEL_NAME = 100
"""The longest name of a model in an error, in characters."""

# creating a skill runs no model; the ids of skills have no other characters
_SKILLS = r"/v1/skills(/[A-Za-z0-9_-]+/versions)?"
_HEADER = r"[A-Z][a-z0-9]*(-[A-Z0-9][a-z0-9]*)*"
_NO_HEADERS: Mapping[str, str] = {}
_SHA256 = r"[0-9A-Fa-f]{64}"  # compiled when it is used: few credentials have a digest

_Ended = tuple[object, BaseException | None]  # the result, and the exception instead of it

Asking = Generator[Watched, _Ended, Any]  # Any: a result that was accepted
"""A pass over the plugins: it yields each awaitable result, and is sent what that has become."""


class Question(Struct, frozen=True):
    """A deciding hook that the plugins are asked.

    :param hook: its name.
    :param first_counts: whether the first result decides; otherwise every plugin is asked.
    :param passes_on: whether each plugin gets the result of the one before as its last argument.
    :param result: what a result other than ``None`` must be, in words.
    :param unavailable: the client's message when a plugin failed.
    """

    hook: str
    first_counts: bool
    result: str
    unavailable: str
    passes_on: bool = False


WHO = Question(
    "authenticate",
    first_counts=True,
    result="an Identity with a principal",
    unavailable="Authentication is temporarily unavailable: try again.",
)
MAY_ENTER = Question(
    "admit",
    first_counts=False,
    result="a Permit",
    unavailable="Authorization is temporarily unavailable: try again.",
)
MAY = replace(MAY_ENTER, hook="authorize")
WHICH = Question(
    "allowed_models",
    first_counts=False,
    result="AllowedModels",
    unavailable="The models that you may use are temporarily unknown: try again.",
)
WHAT = Question(
    "respond",
    first_counts=True,
    result="a ModelResponse",
    unavailable="Whether this proxy responds itself cannot be decided: try again.",
)
WHERE = Question(
    "choose_upstream",
    first_counts=True,
    result="a list of names out of upstreams",
    unavailable="The choice of an upstream is temporarily unavailable: try again.",
)
HOW = Question(
    "prepare_request",
    first_counts=False,
    result="an OutgoingRequest with valid headers",
    unavailable="The request could not be prepared for the upstream: try again.",
    passes_on=True,
)


class Pass:
    """The rest of a pass over the plugins, from the first that has to be awaited.

    It is awaited once, or else left, since permits must be settled. What the plugin waits for goes
    on meanwhile; it ends if the awaiter is cancelled.
    """

    __slots__ = ("_asking", "_watched")

    def __init__(self, asking: Asking, watched: Watched) -> None:
        self._asking = asking
        self._watched = watched

    def __await__(self) -> Generator[Any, None, Any]:
        while True:
            ended = yield from self._watched.__await__()
            try:
                self._watched = self._asking.send(ended)
            except StopIteration as done:
                return done.value

    def leave(self) -> None:
        """Go on without an awaiter."""
        # whatever the task waits for keeps the task alive
        asyncio.ensure_future(self).add_done_callback(_ignore)


def _ignore(left: asyncio.Future[object]) -> None:
    if not left.cancelled():
        left.exception()  # asyncio would log it


def run(asking: Asking) -> Any | Pass:  # Any: what `asking` returns
    """Return what `asking` returns, or what to await for it once a plugin has to be awaited."""
    try:
        watched = next(asking)
    except StopIteration as done:
        return done.value
    return Pass(asking, watched)


def is_valid_identity(_plugin: str, result: object) -> bool:
    """Return whether `result` is a valid result of `WHO`."""
    return isinstance(result, Identity) and _fault_of(result) is None


def takes_rules(rules: list[AllowedModels], _plugin: str, result: object) -> bool:
    """Return whether `result` is a valid result of `WHICH`, and add it to `rules`."""
    if not isinstance(result, AllowedModels):
        return False
    rules.append(result)
    return True


def is_valid_response(_plugin: str, result: object) -> bool:
    """Return whether `result` is a valid result of `WHAT`."""
    return isinstance(result, ModelResponse)


def is_valid_route(upstreams: tuple[str, ...], _plugin: str, result: object) -> bool:
    """Return whether `result` is a valid result of `WHERE`.

    :param upstreams: the names that can be chosen.
    """
    # `in` compares, so that a name need not be hashable to be found wrong
    return (
        isinstance(result, (list, tuple))
        and bool(result)
        and all(name in upstreams for name in result)
    )


def is_valid_request(asked: OutgoingRequest, _plugin: str, result: object) -> bool:
    """Return whether `result` is a valid result of `HOW`.

    :param asked: the request as it would be sent; a body that is streamed stays so.
    """
    return (
        isinstance(result, OutgoingRequest)
        and is_sendable(result)
        and (result.body is None) == (asked.body is None)
    )


def invalid_result(question: Question, result: object) -> OurOwnError:
    """Return the failure of a plugin whose `result` is invalid."""
    if isinstance(result, Identity) and (fault := _fault_of(result)):
        return OurOwnError(fault)
    return OurOwnError(f"its {type(result).__name__} is neither None nor {question.result}")


def _fault_of(identity: Identity) -> str | None:
    """Return what is wrong with `identity`, without its values: they may be a credential."""
    principal: object = identity.principal
    anonymous: object = identity.anonymous
    groups: object = identity.groups
    allowance: object = identity.allowance
    if not isinstance(principal, str) or not principal:
        return "its Identity's principal must be a non-empty str"
    if not isinstance(anonymous, bool):
        return f"its Identity's anonymous must be a bool, not a {type(anonymous).__name__}"
    if allowance is not None and not isinstance(allowance, Allowance):
        return f"its Identity's allowance must be an Allowance, not a {type(allowance).__name__}"
    digest: object = identity.body_sha256
    if digest is not None and not (isinstance(digest, str) and re.fullmatch(_SHA256, digest)):
        return "its Identity's body_sha256 must be 64 hexadecimal digits"
    if identity.admin_access is not None and identity.admin_access not in ("write", "read"):
        return "its Identity's admin_access must be 'write', 'read' or None"
    if not isinstance(groups, tuple):
        return f"its Identity's groups must be a tuple of str, not a {type(groups).__name__}"
    if groups and not all(isinstance(group, str) and group for group in groups):
        return "its Identity's groups must be non-empty str"
    return None


class Permit(Struct, frozen=True):
    """A plugin's consent with consequences.

    :param settle: called exactly once with the request's record, when the request has ended in
        any way; also if another plugin refuses it. Must be sync and not block; what it raises is
        logged. It gives back what was reserved.
    :param withheld_headers: lower-case name prefixes of the upstream's response headers that this
        client does not get.
    :param added_headers: headers that a relayed response of status 200 has as well, in
        ``Http-Header-Case``; they replace the upstream's of the same name.
    :raises ValueError: a prefix or header is invalid, or `settle` is async.
    """

    settle: Callable[[RequestRecord], None] | None = None
    withheld_headers: tuple[str, ...] = ()
    added_headers: Mapping[str, str] = {}

    def __post_init__(self) -> None:
        if _is_async(self.settle):
            raise ValueError("settle must not be async: nothing awaits it, define it with def")
        if type(self.withheld_headers) is not tuple:
            raise ValueError("withheld_headers must be a tuple")
        for prefix in self.withheld_headers:
            # one in upper case would withhold nothing, an empty one every header
            if prefix != prefix.lower() or not prefix:
                raise ValueError(f"a prefix of withheld_headers is in lower case, not {prefix!r}")
        if self.added_headers:
            _check_headers(tuple(self.added_headers.items()))


@lru_cache(1024)  # plugins add the same headers to many responses
def _check_headers(headers: tuple[tuple[str, str], ...]) -> None:
    for name, value in headers:
        if not _is_header(name, value):
            raise ValueError(f"added_headers has an invalid header {name!r}")


def _is_header(name: str, value: str) -> bool:
    # a tab is printable in a header only
    printable = value.isascii() and value.replace("\t", "").isprintable()
    return printable and re.fullmatch(_HEADER, name) is not None


class AllowedModels:
    """The models that a client may use, for the hook `authorize`.

    The models of a request for a message are known, and of OpenAI's chat completions and responses.
    Of every other request only the headers are known, and its body may name models: a batch,
    ``/v1/complete``, a future endpoint, or another spelling of ``/v1/messages`` that the upstream
    accepts. Therefore a request is rejected unless it is known to run no model.

    :param patterns: of their names, as in a shell: ``claude-haiku-*``; at least one.
    :param holder: how an error begins, before the patterns: ``This key is for``.
    :ivar patterns: the patterns.
    """

    __slots__ = ("_holder", "_pattern", "patterns")

    def __init__(self, patterns: Sequence[str], holder: str) -> None:
        from fnmatch import translate  # few clients are restricted

        self.patterns = tuple(patterns)
        self._holder = holder
        self._pattern = re.compile("|".join(map(translate, patterns)))

    def allows(self, model: str) -> bool:
        """Return whether the client may use a model."""
        return self._pattern.match(model) is not None

    def check(self, request: IncomingRequest, model_request: ModelRequest | None) -> None:
        """Reject a request that may use other models.

        :raises Denied: 403, which names the allowed models.
        """
        if model_request is not None:
            if model_request.model is None:
                raise Denied(f"{self._listed()}, and the request names no model.")
            for model in model_request.models:
                if not self.allows(model):
                    raise Denied(f"{self._listed()}, and the request {_asks(model)}.")
        elif not request.costs_nothing and not re.fullmatch(_SKILLS, request.path):
            raise Denied(
                f"{self._listed()}: this path cannot be used, because models in the request's body "
                "are not checked. Instead of a batch, send messages one by one."
            )

    def _listed(self) -> str:
        kind = "model" if len(self.patterns) == 1 else "models"
        return f"{self._holder} the {kind} {', '.join(self.patterns)}"


def all_allow(rules: Iterable[AllowedModels], model: str) -> bool:
    """Return whether each of these rules allows a model."""
    return all(rule.allows(model) for rule in rules)


def _asks(model: str) -> str:
    if model == UNKNOWN_MODEL:
        return "may use a model that it does not name: remove thread, and list models in fallbacks"
    shown = model if model.isprintable() else model.encode("unicode_escape").decode("ascii")
    return f"asks for {shown[:MAX_MODEL_NAME]}"


class Permits:
    """The permits of one request, kept until it ends.

    :param tell: `Plugins.tell`, which calls ``settle``.
    :ivar withheld_headers: lower-case name prefixes of response headers to withhold.
    :ivar added_headers: response headers to add.
    """

    __slots__ = ("_record", "_settlements", "_tell", "added_headers", "withheld_headers")

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._settlements: list[tuple[str, Settle]] = []
        self._record: RequestRecord | None = None
        self.withheld_headers: tuple[str, ...] = ()
        self.added_headers: Mapping[str, str] = _NO_HEADERS

    def add(self, plugin: str, result: object) -> bool:
        """Keep the result of `plugin` if it is a permit; return whether it is.

        If the request has ended already, the permit is settled immediately.
        """
        if not isinstance(result, Permit):
            return False
        self.withheld_headers += result.withheld_headers
        if not self.added_headers:
            self.added_headers = result.added_headers
        elif result.added_headers:
            self.added_headers = {**self.added_headers, **result.added_headers}
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


def _is_async(function: object) -> bool:
    # a tenth of the time of inspect.iscoroutinefunction, once for each permit
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & CO_COROUTINE)

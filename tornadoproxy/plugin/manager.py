"""Calls the plugins' hooks, in order.

The calls are ours, and not pluggy's, since its own takes a coroutine for an answer, and lets one
failing plugin keep the rest from running. Which plugins there are, and in which order, is found in
`tornadoproxy.plugin.discovery`.

*Asking* (`Plugins.authenticate`, `Plugins.admit`, `Plugins.authorize`): one plugin after the other.
It fails closed: a plugin that raises, answers nonsense or is late refuses the request, and the next
is not asked. While all answer synchronously there is no coroutine. A hook that blocks is late as
well: it keeps every client waiting, and its answer does not count.

*Telling* (`Plugins.request_finished`, `Plugins.shutdown`): every plugin, each isolated.

A plugin that `configure` says is inactive is neither asked nor told.

A plugin fails by whatever it raises. `SystemExit` is meant for a program of its own and must not
end this one, nor may a `KeyboardInterrupt`: while the loop runs, the real one is a signal that it
takes.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from msgspec import structs
from msgspec.structs import replace

from tornadoproxy.config.core_settings import PLUGIN_TIMEOUT
from tornadoproxy.errors import ClientError, ConfigurationError, PluginFailed, ProxyError
from tornadoproxy.plugin.declarations import (
    check_unchanged,
    configure_all,
    credential_headers_of,
    pages_of,
)
from tornadoproxy.plugin.discovery import FoundPlugins, PluginCall, PluginInfo, find, in_order
from tornadoproxy.plugin.failures import (
    OurOwnError,
    discard,
    failure,
    faults_of,
    held_the_loop,
    log_failure,
    log_now_and_then,
    outcome,
)
from tornadoproxy.plugin.questions import (
    MAY,
    MAY_ENTER,
    WHO,
    Asking,
    Question,
    nonsense,
    run,
    vouches,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable
    from importlib.metadata import EntryPoint

    from tornadoproxy.config.setting import Setting
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.plugin.authorization import ModelRequest, Permits
    from tornadoproxy.plugin.pages import Page
    from tornadoproxy.plugin.request import Identity, IncomingRequest, RequestRecord
    from tornadoproxy.plugin.status import Status
    from tornadoproxy.protocol.usage import Usage

STARTUP_TIMEOUT = 30.0  # seconds, for each plugin
SHUTDOWN_TIMEOUT = 5.0  # seconds, for each plugin
MAX_COST = 2**63 - 1  # billionths of a US dollar: what a database can hold

_logger = logging.getLogger(__name__)


class Plugins:
    """The plugins of one proxy, in order. Made by `load`.

    :ivar failures: how often each plugin failed so that nothing came of it but a log line, by its
        name.
    :ivar refusals: how often each failed so that a request was refused.
    :ivar admits: whether `admit` has any plugin to ask.
    :ivar credential_headers: names of request headers that do not go upstream, in
        ``Http-Header-Case``.
    :ivar authorizes: whether `authorize` has anybody to ask.
    """

    def __init__(self, found: FoundPlugins) -> None:
        self.failures: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self._found = found
        self._infos = found.described()
        self._declared = tuple(found.settings)
        self._settings: Settings | None = None
        self._timeout = PLUGIN_TIMEOUT.default
        self._configurers = found.calls("configure")
        self._list_calls()
        self._unstarted = {starter.plugin for starter in self._starters}
        self._inactive: frozenset[str] = frozenset()
        self._pages: tuple[tuple[str, Page], ...] = ()
        self.credential_headers: frozenset[str] = frozenset()

    @classmethod
    def load(
        cls, disabled: Collection[str] = (), entry_points: Iterable[EntryPoint] | None = None
    ) -> Plugins:
        """Load and validate the plugins.

        :param disabled: names of those that are not even imported.
        :param entry_points: those to load, instead of the installed ones in the group
            ``tornadoproxy``.
        :raises ConfigurationError: with a line for each plugin that cannot be used, since it may
            be the one that was to keep people out; for each disabled one that does not exist; for
            two of one name; or because nobody authenticates.
        """
        found = find(disabled, entry_points)
        if found.faults:
            raise ConfigurationError(*found.faults)
        return cls(found)

    @classmethod
    def survey(
        cls, disabled: Collection[str] = (), entry_points: Iterable[EntryPoint] | None = None
    ) -> tuple[PluginInfo, ...]:
        """What `load` would find, described as `describe` does, then the broken ones."""
        return find(disabled, entry_points).described()

    def describe(self) -> tuple[PluginInfo, ...]:
        """The active plugins in the order asked, then the inactive, then the disabled ones."""
        return self._infos

    def pages(self) -> tuple[tuple[str, Page], ...]:
        """The plugins' own pages, each after its plugin's name; known once `configure` has run."""
        return self._pages

    def declared_settings(self) -> tuple[Setting[Any], ...]:  # Any: each has a type of its own
        """The settings that the plugins declare."""
        return self._declared

    def configure(self, settings: Settings) -> tuple[tuple[str, str], ...]:
        """Hand out the settings: at start, and again when they have been read anew.

        :return: the name and the line of each plugin that gave one.
        :raises ConfigurationError: with the faults of all plugins. If there were settings before,
            all plugins have been given those again.
        """
        first = self._settings is None
        try:
            lines, inactive = configure_all(self._configurers, settings)
            if first:
                self._leave_out(inactive)
                self._pages = pages_of(self._page_makers)
                self._infos = tuple(
                    replace(
                        info, pages=tuple(page for name, page in self._pages if name == info.name)
                    )
                    for info in self._infos
                )
            else:
                check_unchanged(self._inactive, inactive)
            # a request in flight may have one of those that were named before
            self.credential_headers |= credential_headers_of(self._header_namers)
        except ConfigurationError:
            if self._settings is not None:
                self._go_back_to(self._settings)
            raise
        self._settings = settings
        self._timeout = settings[PLUGIN_TIMEOUT]
        return lines

    async def startup(self, status: Callable[[], Status]) -> None:
        """Start the plugins in order.

        :param status: gives them the figures of the moment.
        :raises ConfigurationError: one failed; those that were started have been shut down.
        """
        for plugin, start in self._starters:
            error = await failure(partial(start, status), STARTUP_TIMEOUT)
            if error is not None:
                await self.shutdown()
                raise ConfigurationError(*faults_of(plugin, "startup", error)) from None
            self._unstarted.discard(plugin)

    async def shutdown(self) -> None:
        """Shut the plugins down, once, in the reverse order; not those that were never started."""
        while self._stoppers:
            plugin, stop = self._stoppers.pop()
            if plugin in self._unstarted:
                continue
            error = await failure(stop, SHUTDOWN_TIMEOUT)
            if error is not None:
                log_failure("plugin %r failed in shutdown: %s", plugin, error)

    def authenticate(self, request: IncomingRequest) -> Identity | Awaitable[Identity]:
        """Ask who a request comes from, until one plugin answers.

        :return: the identity; an awaitable of it as soon as one plugin has to be awaited.
        :raises ClientError: a plugin's own refusal; `AuthenticationFailed` if none answered.
        :raises PluginFailed: a plugin raised anything else, answered nonsense or was late.
        """
        return run(self._ask(WHO, self._authenticators, (request,), vouches))

    def admit(
        self, request: IncomingRequest, identity: Identity, permits: Permits
    ) -> Awaitable[object] | None:
        """Ask whether a request's body may be read; add to `permits` what the plugins grant.

        :return: an awaitable of that as soon as one plugin has to be awaited.
        :raises ClientError: a plugin's own refusal.
        :raises PluginFailed: a plugin raised anything else, answered nonsense or was late.
        """
        return run(self._ask(MAY_ENTER, self._admitters, (request, identity), permits.add))

    def authorize(
        self,
        request: IncomingRequest,
        identity: Identity,
        model_request: ModelRequest | None,
        permits: Permits,
    ) -> Awaitable[object] | None:
        """Ask whether a request may go on; what the plugins grant is added to `permits`.

        :return: an awaitable of that as soon as one plugin has to be awaited.
        :raises ClientError: a plugin's own refusal.
        :raises PluginFailed: a plugin raised anything else, answered nonsense or was late.
        """
        asked = (request, identity, model_request)
        return run(self._ask(MAY, self._authorizers, asked, permits.add))

    def price(self, model: str | None, usage: Usage) -> int | None:
        """What `usage` costs, in billionths of a US dollar; ``None`` if that is not known.

        `others` cost what `priced` found. If the cost of one part is not known, neither is the
        cost of the whole.
        """
        if not usage.others:
            return self._price_of_one(model, usage)
        own = self._price_of_one(model, structs.replace(usage, others=()))
        costs = [own, *(other.cost for other in usage.others)]
        known = [cost for cost in costs if cost is not None]
        return min(sum(known), MAX_COST) if len(known) == len(costs) else None

    def priced(self, usage: Usage) -> Usage:
        """`usage`, with what each of its `others` costs."""
        others = (
            structs.replace(other, cost=self._price_of_one(other.model, other.usage))
            for other in usage.others
        )
        return structs.replace(usage, others=tuple(others))

    def _price_of_one(self, model: str | None, usage: Usage) -> int | None:
        if model is None or (usage.input_tokens is None and usage.output_tokens is None):
            return None
        for plugin, ask in self._pricers:
            began = monotonic()
            try:
                cost = ask(model, usage)
            except BaseException as error:
                self.count_failure(plugin, "price", error)
                continue
            if (took := monotonic() - began) > self._timeout:
                self.count_failure(plugin, "price", held_the_loop(took, self._timeout))
                continue
            if type(cost) is int and cost >= 0:
                return cost
            if cost is not None:
                discard(cost)
                kind = type(cost).__name__
                failed = OurOwnError(f"its {kind} is neither None nor a whole number from 0 on")
                self.count_failure(plugin, "price", failed)
        return None

    def request_finished(self, record: RequestRecord) -> None:
        """Tell what became of a request. Never raises."""
        for plugin, function in self._observers:
            self.tell(plugin, "request_finished", function, record)

    def tell(
        self,
        plugin: str,
        hook: str,
        function: Callable[[RequestRecord], object],
        record: RequestRecord,
    ) -> None:
        """Call `function` with `record`; what goes wrong is `plugin`'s failure in `hook`."""
        began = monotonic()
        try:
            result = function(record)
        except BaseException as error:
            self.count_failure(plugin, hook, error)
            return
        if result is not None and inspect.isawaitable(result):
            discard(result)
            self.count_failure(plugin, hook, OurOwnError("an awaitable, which nobody awaits"))
        elif (took := monotonic() - began) > self._timeout:
            self.count_failure(plugin, hook, held_the_loop(took, self._timeout))

    def count_failure(self, plugin: str, hook: str, error: BaseException) -> None:
        """Count that `plugin` failed in `hook` so that nothing came of it, and log it."""
        self.failures[plugin] += 1
        log_now_and_then(f"plugin %r failed in {hook}", self.failures[plugin], plugin, error)

    def _ask(
        self,
        question: Question,
        calls: list[PluginCall],
        asked: tuple[IncomingRequest, *tuple[object, ...]],
        take: Callable[[str, object], bool],
    ) -> Asking:
        """Ask each plugin; yield what has to be awaited, and be sent what came of it.

        :param take: whether a plugin's answer is one; keeps it, if need be.
        :return: the first answer, if that counts.
        """
        for plugin, ask in calls:
            result: object = None
            failed: BaseException | None = None
            began = monotonic()
            try:
                result = ask(*asked)
            except BaseException as error:
                failed = error
            if (took := monotonic() - began) > self._timeout:
                take(plugin, result)  # it may be a permit, whose end must be told
                discard(result)
                failed = held_the_loop(took, self._timeout)
            elif result is None or take(plugin, result):
                pass
            elif inspect.isawaitable(result):
                # what comes too late to count may still be a permit, whose end must be told
                result, failed = yield outcome(result, self._timeout, late=partial(take, plugin))
                if result is not None and not take(plugin, result):
                    discard(result)
                    failed = nonsense(question, result)
            else:
                failed = nonsense(question, result)
            if failed is not None:
                # out here, so that the plugin's own exception does not come along as the context
                raise self._refusal(question, plugin, failed)
            if result is not None and question.first_counts:
                return result
        if question.first_counts:
            raise asked[0].authentication_failed()
        return None

    def _refusal(self, question: Question, plugin: str, error: BaseException) -> ProxyError:
        """What ends a request when `plugin` raised `error`: that, if it was meant to."""
        if isinstance(error, ClientError) and 400 <= error.status <= 599:
            return error
        self.refusals[plugin] += 1
        message = f"plugin %r failed in {question.hook}, request refused"
        log_now_and_then(message, self.refusals[plugin], plugin, error)
        return PluginFailed(question.unavailable, retry_after=1)

    def _list_calls(self, inactive: frozenset[str] = frozenset()) -> None:
        """List, for each hook, the implementations of the plugins that are not inactive."""

        def active(hook: str) -> list[PluginCall]:
            return [call for call in self._found.calls(hook) if call.plugin not in inactive]

        self._header_namers = active("credential_headers")
        self._page_makers = active("pages")
        self._starters = active("startup")
        self._authenticators = active("authenticate")
        self._admitters = active("admit")
        self._authorizers = active("authorize")
        self._pricers = active("price")
        self._observers = active("request_finished")
        self._stoppers = active("shutdown")
        self.admits = bool(self._admitters)
        self.authorizes = bool(self._authorizers)

    def _leave_out(self, inactive: frozenset[str]) -> None:
        """Neither ask nor tell those plugins from now on."""
        able = [call.plugin for call in self._authenticators]
        if inactive.issuperset(able):
            raise ConfigurationError(
                "No plugin authenticates requests, so nobody may be let in: these could, but their "
                f"settings are not set: {' '.join(able)}"
            )
        self._list_calls(inactive)
        self._inactive = inactive
        at_rest = [replace(each, state="inactive") for each in self._infos if each.name in inactive]
        others = [each for each in self._infos if each.name not in inactive]
        self._infos = in_order([*at_rest, *others])

    def _go_back_to(self, settings: Settings) -> None:
        try:
            configure_all(self._configurers, settings)
        except ConfigurationError as error:
            faults = "; ".join(error.faults)
            # TRY400 wants a traceback, which would say nothing more here
            _logger.error("the settings before are refused, too: %s", faults)  # noqa: TRY400

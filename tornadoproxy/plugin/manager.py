"""The plugins of one proxy, and the calls to their hooks.

The calls are ours and not pluggy's: pluggy takes a coroutine for a result, and one plugin's
exception keeps the others from running. `tornadoproxy.plugin.loading.discovery` finds the plugins
and their order.

*Asking* (`Plugins.authenticate`, `Plugins.admit`, `Plugins.authorize`): one plugin after the other,
failing closed: a plugin that raises, returns an invalid result or misses its deadline refuses the
request, and no other is asked. While all results are synchronous no coroutine is created. The
result of a hook that blocks the event loop for longer than its timeout does not count either.

*Telling* (`request_finished`, `database_status`, `shutdown`): every plugin, each isolated.

A plugin that `configure` declared inactive is neither asked nor told.
Any exception of a plugin is its failure. `SystemExit` must not end the proxy, nor a
`KeyboardInterrupt`: while the loop runs, the real one arrives as a signal.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from tornadoproxy.config.core_settings import PLUGIN_TIMEOUT
from tornadoproxy.config.upstreams import UpstreamsOrder
from tornadoproxy.errors import ConfigurationError
from tornadoproxy.plugin.asking import Asker
from tornadoproxy.plugin.decisions import (
    HOW,
    MAY,
    MAY_ENTER,
    WHAT,
    WHERE,
    WHICH,
    WHO,
    is_valid_identity,
    is_valid_request,
    is_valid_response,
    is_valid_route,
    run,
    takes_rules,
)
from tornadoproxy.plugin.declarations import (
    admin_apis_of,
    check_fixed,
    check_unchanged,
    checked_states,
    configure_again,
    configure_all,
    credential_headers_of,
    databases_of,
    pages_of,
    sign_in_ways_of,
    states_of,
    upstreams_of,
)
from tornadoproxy.plugin.failures import Teller, failure, faults_of, log_failure
from tornadoproxy.plugin.loading.discovery import FoundPlugins, PluginInfo, find, in_order
from tornadoproxy.plugin.pricing import Pricing
from tornadoproxy.plugin.web.running_proxy import RequestInFlight, RunningProxy
from tornadoproxy.protocol.headers import CLIENT_CREDENTIALS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence

    from tornadoproxy.config.setting import Setting
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.config.upstreams import Upstream
    from tornadoproxy.plugin.decisions import AllowedModels, Pass, Permits
    from tornadoproxy.plugin.hookspecs import DatabaseSetting, OpenDatabase
    from tornadoproxy.plugin.loading.entry_points import Point
    from tornadoproxy.plugin.loading.implementations import PluginCall
    from tornadoproxy.plugin.observing import Observers
    from tornadoproxy.plugin.request import Identity, IncomingRequest, ModelRequest, RequestRecord
    from tornadoproxy.plugin.responding import ModelResponse
    from tornadoproxy.plugin.status import Status
    from tornadoproxy.plugin.web.pages import Page
    from tornadoproxy.protocol.usage import Usage
    from tornadoproxy.protocol.wire import OutgoingRequest
    from tornadoproxy.storage.contract import DatabaseStatus

STARTUP_TIMEOUT = 30.0  # seconds, for each plugin
SHUTDOWN_TIMEOUT = 5.0  # seconds, for each plugin


class Plugins:
    """The plugins of one proxy, in order. Created by `load`.

    :ivar teller: tells plugins of what they observe.
    :ivar failures: failures by plugin that were only logged.
    :ivar refusals: failures by plugin that refused a request.
    :ivar admits: whether any plugin implements `admit`.
    :ivar authorizes: whether any plugin implements `authorize`.
    :ivar restricts: whether any plugin implements `allowed_models`.
    :ivar responds: whether any plugin implements `respond`.
    :ivar chooses: whether any plugin implements `choose_upstream`.
    :ivar prepares: whether any plugin implements `prepare_request`.
    :ivar observes: whether any plugin implements `observe`.
    :ivar upstreams: the upstreams of the settings and of the plugins, and their order.
    :ivar credential_headers: request headers that do not go upstream, in ``Http-Header-Case``.
    :ivar warnings: what the start warned of.
    :ivar in_flight: yields the requests in flight; set by the server.
    """

    def __init__(self, found: FoundPlugins) -> None:
        self._asker = Asker(PLUGIN_TIMEOUT.default)
        self.refusals = self._asker.refusals
        self.teller = Teller(PLUGIN_TIMEOUT.default)
        self.failures = self.teller.failures
        self._found = found
        self._infos = found.described()
        self._declared = tuple(found.settings)
        self._settings: Settings | None = None
        self._configurers = found.calls("configure")
        self._list_calls()
        self._unstarted = {plugin for plugin, _ in self._starters}
        self._inactive: frozenset[str] = frozenset()
        self._pages: tuple[tuple[str, Page], ...] = ()
        self.credential_headers: frozenset[str] = frozenset()
        self.upstreams: tuple[Upstream, ...] = ()
        self.upstreams_order = UpstreamsOrder()
        self._lines: tuple[tuple[str, str], ...] = ()
        self.warnings: tuple[str, ...] = ()
        self.in_flight: Callable[[], Iterator[RequestInFlight]] = lambda: iter(())

    @classmethod
    def load(
        cls, disabled: Collection[str] = (), entry_points: Iterable[Point] | None = None
    ) -> Plugins:
        """Load and validate the plugins.

        :param disabled: names of plugins that are not even imported.
        :param entry_points: plugins to load instead of the installed ones in the group
            ``tornadoproxy``.
        :raises ConfigurationError: with a line for each plugin that cannot be used, for each
            disabled one that does not exist, for two of one name, or because no plugin
            authenticates.
        """
        found = find(disabled, entry_points)
        if found.faults:
            raise ConfigurationError(*found.faults)
        return cls(found)

    def describe(self) -> tuple[PluginInfo, ...]:
        """Return the active plugins in the order asked, then the inactive, then the disabled."""
        return self._infos

    def pages(self) -> tuple[tuple[str, Page], ...]:
        """Return the plugins' pages with their plugins' names; known after `configure`."""
        return self._pages

    def declared_settings(self) -> tuple[Setting[Any], ...]:  # Any: each has a type of its own
        """Return the settings that the plugins declare."""
        return self._declared

    def databases(self) -> tuple[tuple[str, DatabaseSetting, OpenDatabase], ...]:
        """Return each plugin's name, and how to make what a setting of it names a `Database`.

        :raises ConfigurationError: with the faults of all plugins.
        """
        return databases_of(self._found.calls("databases"), self._declared)

    def configure(self, settings: Settings) -> tuple[tuple[str, str], ...]:
        """Give every plugin the settings, at start and after each reload.

        :return: the name and the line of each plugin that returned one.
        :raises ConfigurationError: with the faults of all plugins. On a reload, all plugins have
            been given the earlier settings again.
        """
        first = self._settings is None
        if self._settings is not None:
            active = (info for info in self._infos if info.state == "active")
            declared = [setting for info in active for setting in info.settings]
            check_fixed(self._settings, settings, declared)
        try:
            lines, inactive = configure_all(self._configurers, settings)
            if first:
                self._deactivate(inactive)
                self._pages = self._declared_pages()
                self._infos = tuple(
                    replace(
                        info, pages=tuple(page for name, page in self._pages if name == info.name)
                    )
                    for info in self._infos
                )
            else:
                check_unchanged(self._inactive, inactive)
            upstreams = upstreams_of(self._upstream_makers, settings)
            # earlier names stay: a request in flight may carry such a header
            self.credential_headers |= credential_headers_of(self._header_namers)
        except ConfigurationError:
            if self._settings is not None:
                configure_again(self._configurers, self._settings)
            raise
        self._settings = settings
        self._lines = lines
        self.upstreams, self.upstreams_order = upstreams
        timeout = settings[PLUGIN_TIMEOUT]
        self._asker.deadline.seconds = self.teller.timeout = self._pricing.timeout = timeout
        return lines

    async def startup(self, status: Callable[[], Status]) -> None:
        """Start the plugins in order.

        :param status: returns the current figures.
        :raises ConfigurationError: one failed; the plugins started before it have been shut down.
        """
        for plugin, start in self._starters:
            error = await failure(partial(start, status), STARTUP_TIMEOUT)
            if error is not None:
                await self.shutdown()
                raise ConfigurationError(*faults_of(plugin, "startup", error)) from None
            self._unstarted.discard(plugin)

    @property
    def shutdown_timeout(self) -> float:
        """How long `shutdown` may take, in seconds."""
        return SHUTDOWN_TIMEOUT * len(self._stoppers)

    async def shutdown(self) -> None:
        """Shut down the started plugins, once, in the reverse order."""
        while self._stoppers:
            plugin, stop = self._stoppers.pop()
            if plugin in self._unstarted:
                continue
            error = await failure(stop, SHUTDOWN_TIMEOUT)
            if error is not None:
                log_failure("plugin %r failed in shutdown: %s", plugin, error)

    def database_status(self) -> dict[str, tuple[DatabaseStatus, ...]]:
        """Return the state of the plugins' databases, by plugin."""
        states = {}
        for plugin, function in self._database_owners:
            try:
                states[plugin] = checked_states(function())
            except BaseException as error:
                self.teller.count_failure(plugin, "database_status", error)
        return states

    def authenticate(self, request: IncomingRequest) -> Identity | Awaitable[Identity]:
        """Ask who a request comes from, until one plugin returns an identity.

        :return: the identity; an awaitable of it once a plugin has to be awaited.
        :raises ClientError: a plugin's own refusal; `AuthenticationFailed` if all return ``None``.
        :raises PluginFailed: a plugin failed.
        """
        return run(self._asker.ask(WHO, self._authenticators, (request,), is_valid_identity))

    def admit(self, request: IncomingRequest, identity: Identity, permits: Permits) -> Pass | None:
        """Ask whether a request's body may be read; add the plugins' permits to `permits`.

        :return: an awaitable of that once a plugin has to be awaited.
        :raises ClientError: a plugin's own refusal.
        :raises PluginFailed: a plugin failed.
        """
        return run(self._asker.ask(MAY_ENTER, self._admitters, (request, identity), permits.add))

    def authorize(
        self,
        request: IncomingRequest,
        identity: Identity,
        model_request: ModelRequest | None,
        permits: Permits,
    ) -> Awaitable[object] | None:
        """Ask whether a request may go on; add the plugins' permits to `permits`.

        :return: an awaitable of that once a plugin has to be awaited.
        :raises ClientError: a plugin's own refusal.
        :raises PluginFailed: a plugin failed.
        """
        asked = (request, identity, model_request)
        return run(self._asker.ask(MAY, self._authorizers, asked, permits.add))

    def allowed_models(
        self, identity: Identity, rules: list[AllowedModels]
    ) -> Awaitable[object] | None:
        """Add to `rules` those of the plugins on the models of a client; see `authorize`."""
        return run(
            self._asker.ask(WHICH, self._restricters, (identity,), partial(takes_rules, rules))
        )

    def respond(
        self, request: IncomingRequest, identity: Identity, asked: ModelRequest, body: bytes
    ) -> Awaitable[ModelResponse | None] | ModelResponse | None:
        """Ask for a response in place of the upstream's; ``None`` if no plugin has one.

        :return: the response, or an awaitable; it raises as `authorize` does.
        """
        asking = (request, identity, asked, body)
        return run(self._asker.ask(WHAT, self._responders, asking, is_valid_response))

    def choose_upstream(
        self,
        request: IncomingRequest,
        identity: Identity,
        model_request: ModelRequest | None,
        upstreams: tuple[str, ...],
    ) -> Awaitable[Sequence[str] | None] | Sequence[str] | None:
        """Ask which upstreams a request may go to; ``None`` if no plugin has an opinion.

        :return: names out of `upstreams`, or an awaitable; it raises as `authorize` does.
        """
        asked = (request, identity, model_request, upstreams)
        return run(
            self._asker.ask(WHERE, self._choosers, asked, partial(is_valid_route, upstreams))
        )

    def prepare_request(
        self, request: IncomingRequest, identity: Identity, outgoing: OutgoingRequest
    ) -> Awaitable[OutgoingRequest] | OutgoingRequest:
        """Return what is sent in place of `outgoing`, or an awaitable; see `choose_upstream`."""
        asked = (request, identity, outgoing)
        return run(
            self._asker.ask(HOW, self._preparers, asked, partial(is_valid_request, outgoing))
        )

    def observe(self, request: IncomingRequest, identity: Identity) -> Observers | None:
        """Return the observers of a request; ``None`` if no plugin observes it. Never raises."""
        from tornadoproxy.plugin.observing import observers_of  # few proxies have an observer

        names = CLIENT_CREDENTIALS | self.credential_headers
        return observers_of(self._watchers, request, identity, names, self.teller)

    def price(self, model: str | None, usage: Usage) -> int | None:
        """Return the cost of `usage` in billionths of a US dollar; ``None`` if it is unknown.

        `others` cost what `priced` found. If the cost of one part is unknown, so is the whole.
        """
        return self._pricing.price(model, usage)

    def priced(self, usage: Usage) -> Usage:
        """Return `usage` with the cost of each of its `others`."""
        return self._pricing.priced(usage)

    def request_finished(self, record: RequestRecord) -> None:
        """Pass `record` to every observer. Never raises."""
        for plugin, function in self._observers:
            self.teller.tell(plugin, "request_finished", function, record)

    def _declared_pages(self) -> tuple[tuple[str, Page], ...]:
        ways = sign_in_ways_of(self._way_makers)
        proxy = RunningProxy(
            self.authenticate,
            lambda: self.in_flight(),
            self.pages,
            lambda: states_of(self._infos, dict(self._lines)),
            lambda: self.warnings,
            lambda: ways,
        )
        return pages_of(self._page_makers, partial(admin_apis_of, self._admin_api_makers), proxy)

    def _list_calls(self, inactive: frozenset[str] = frozenset()) -> None:
        """List, for each hook, the implementations of the plugins that are not inactive."""

        def active(hook: str) -> list[PluginCall]:
            return [call for call in self._found.calls(hook) if call[0] not in inactive]

        self._header_namers = active("credential_headers")
        self._page_makers = active("pages")
        self._admin_api_makers = active("admin_api")
        self._way_makers = active("sign_in_ways")
        self._starters = active("startup")
        self._authenticators = active("authenticate")
        self._admitters = active("admit")
        self._authorizers = active("authorize")
        self._upstream_makers = active("upstreams")
        self._restricters = active("allowed_models")
        self._responders = active("respond")
        self._choosers = active("choose_upstream")
        self._preparers = active("prepare_request")
        self._watchers = active("observe")
        self._pricing = Pricing(active("price"), self.teller.count_failure)
        self._observers = active("request_finished")
        self._stoppers = active("shutdown")
        self._database_owners = active("database_status")
        self.admits = bool(self._admitters)
        self.authorizes = bool(self._authorizers)
        self.restricts = bool(self._restricters)
        self.responds = bool(self._responders)
        self.chooses = bool(self._choosers)
        self.prepares = bool(self._preparers)
        self.observes = bool(self._watchers)

    def _deactivate(self, inactive: frozenset[str]) -> None:
        """Stop calling those plugins."""
        able = [plugin for plugin, _ in self._authenticators]
        if inactive.issuperset(able):
            raise ConfigurationError(
                "No plugin authenticates requests, so every request would be rejected: set the "
                f"settings of one of these plugins: {' '.join(able)}"
            )
        self._list_calls(inactive)
        self._inactive = inactive
        at_rest = [replace(each, state="inactive") for each in self._infos if each.name in inactive]
        others = [each for each in self._infos if each.name not in inactive]
        self._infos = in_order([*at_rest, *others])

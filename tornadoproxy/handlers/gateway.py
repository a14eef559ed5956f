"""The state of one running proxy, made once and passed to everything that needs it."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from tornadoproxy.config.chat_settings import (
    CHAT_CACHE,
    CHAT_DEFAULT_MAX_TOKENS,
    CHAT_DROP_SAMPLING,
    CHAT_MODELS,
    CHAT_PREFILL,
    CHAT_STRICT,
)
from tornadoproxy.config.core_settings import (
    ALLOWED_HOSTS,
    ALLOWED_ORIGINS,
    DATABASE_TIMEOUT,
    HOST,
    MAX_CONCURRENT_REQUESTS,
    MAX_HELD_BODIES,
    MAX_QUEUED_REQUESTS,
    MODELS,
    QUEUE_TIMEOUT,
)
from tornadoproxy.config.responses_settings import (
    OFF,
    RESPONSES_STORE,
    RESPONSES_STORE_SIZE,
    RESPONSES_STORE_TTL,
)
from tornadoproxy.errors import ProxyError
from tornadoproxy.handlers.body_budget import BodyBudget
from tornadoproxy.plugin.request import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tornadoproxy.config.settings import Settings
    from tornadoproxy.handlers.admission import Admission, FairThread
    from tornadoproxy.handlers.exchange import Exchange
    from tornadoproxy.handlers.openai.database_store import DatabaseStore
    from tornadoproxy.handlers.openai.response_store import ResponseStore
    from tornadoproxy.openai.chat_completions import Options
    from tornadoproxy.plugin.manager import Plugins
    from tornadoproxy.plugin.web.running_proxy import RequestInFlight
    from tornadoproxy.storage.contract import DatabaseStatus
    from tornadoproxy.upstream.model_list import ModelList
    from tornadoproxy.upstream.pool import UpstreamPool

_ID_BYTES = 12
_IDS_AT_ONCE = 256


def request_ids() -> Iterator[str]:
    """Yield ids for requests, without end, that cannot be guessed.

    The system provides many at once: to ask it for each takes longer than all the rest.
    """
    while True:
        drawn = os.urandom(_ID_BYTES * _IDS_AT_ONCE).hex()
        for start in range(0, len(drawn), 2 * _ID_BYTES):
            yield "req_" + drawn[start : start + 2 * _ID_BYTES]


class Request(Protocol):
    """A request that is being served."""

    exchange: Exchange

    def snapshot(self) -> RequestInFlight:
        """Return its state at present."""

    def end(self, error: ProxyError | None = None, outcome: Outcome | None = None) -> None:
        """End it now."""


class InFlight(set[Request]):
    """The protected requests that have not ended, queued ones included."""

    def snapshots(self) -> Iterator[RequestInFlight]:
        """Yield the state of each request at present, the oldest first."""
        for request in sorted(self, key=lambda each: each.exchange.started_at):
            yield request.snapshot()

    def end_all(self) -> None:
        """End all of them now, since the process stops."""
        for request in list(self):
            stopping = ProxyError("The proxy is stopping. Try again.", status=503, retry_after=1)
            request.end(stopping, Outcome.DRAINED)


class Gateway:
    """The collaborators that serve the requests of one proxy. Each owns its own counters.

    :param instance: this process's name in ``Via``, by which it recognizes a request that loops.
    :ivar in_flight: the requests that have not ended.
    :ivar body_budget: the memory for request bodies.
    :ivar draining: whether the process is about to stop, so that it is no longer ready.
    """

    def __init__(self, *, settings: Settings, plugins: Plugins, instance: str) -> None:
        self.settings = settings
        self.plugins = plugins
        self.instance = instance
        self.request_ids = request_ids()
        self.in_flight = InFlight()
        self.body_budget = BodyBudget(settings[MAX_HELD_BODIES])
        self.draining = False
        self._database_store: DatabaseStore | None = None
        # a wildcard address is not a name of this host: browsers let any page reach http://0.0.0.0
        own = {settings[HOST].lower()} - {"0.0.0.0", "::"}  # noqa: S104  # not bound here
        self.allowed_hosts = frozenset(own.union(settings[ALLOWED_HOSTS]))
        self.allowed_origins = frozenset(settings[ALLOWED_ORIGINS])

    # the rest is not loaded at the start

    @cached_property
    def admission(self) -> Admission:
        """The places of requests: admits them up to a limit, and queues the others."""
        from tornadoproxy.handlers.admission import Admission

        return Admission(
            self.settings[MAX_CONCURRENT_REQUESTS],
            max_waiting=self.settings[MAX_QUEUED_REQUESTS],
            timeout=self.settings[QUEUE_TIMEOUT],
        )

    @cached_property
    def body_thread(self) -> FairThread:
        """The thread that parses and translates bodies that would block the event loop."""
        from tornadoproxy.handlers.admission import FairThread

        return FairThread()

    @cached_property
    def upstreams(self) -> UpstreamPool:
        """The upstreams that requests can go to; they are not loaded at the start."""
        from tornadoproxy.upstream.pool import UpstreamPool

        plugins = self.plugins
        return UpstreamPool(self.settings, plugins.upstreams, plugins.upstreams_order)

    @cached_property
    def routes_by_body(self) -> bool:
        """Whether the body of a request for a model decides where it goes, or may be changed."""
        has_one_way = self.upstreams.sole is not None and not self.plugins.prepares
        return not has_one_way or bool(self.settings[MODELS])

    @cached_property
    def models(self) -> ModelList:
        """The upstreams' models."""
        from tornadoproxy.upstream.model_list import ModelList

        return ModelList(self._get)

    @cached_property
    def chat_options(self) -> Options:
        """How chat completions are translated; the translation is not loaded at the start."""
        from tornadoproxy.openai.chat_completions import Options

        return Options(
            default_max_tokens=self.settings[CHAT_DEFAULT_MAX_TOKENS],
            models={**self.settings[MODELS], **self.settings[CHAT_MODELS]},
            strict=self.settings[CHAT_STRICT],
            drop_sampling=self.settings[CHAT_DROP_SAMPLING],
            prefill=self.settings[CHAT_PREFILL],
            cache=self.settings[CHAT_CACHE],
        )

    @cached_property
    def response_store(self) -> ResponseStore | None:
        """What keeps responses for later requests; ``None`` if they are not kept."""
        if self._database_store is not None or self.settings[RESPONSES_STORE] == OFF:
            return self._database_store
        from tornadoproxy.handlers.openai.memory_store import MemoryStore

        size, lifetime = self.settings[RESPONSES_STORE_SIZE], self.settings[RESPONSES_STORE_TTL]
        return MemoryStore(size, lifetime, self.body_thread)

    def database_status(self) -> dict[str, tuple[DatabaseStatus, ...]]:
        """Return the state of the databases, by plugin; responses have one as a plugin would."""
        states = self.plugins.database_status()
        if self._database_store is not None:
            states = {"responses": (self._database_store.status,), **states}
        return states

    async def start(self) -> None:
        """Open the database of responses, if they are kept in one.

        :raises ConfigurationError: it cannot be used.
        """
        where = self.settings[RESPONSES_STORE]
        if isinstance(where, str):
            return
        from tornadoproxy.handlers.openai.database_store import DatabaseStore

        store = DatabaseStore(where, self.settings[RESPONSES_STORE_TTL])
        await store.start(self.settings[DATABASE_TIMEOUT])
        self._database_store = store

    def reload(self, settings: Settings) -> None:
        """Use other tokens and keys from now on; requests in flight keep theirs.

        :raises ConfigurationError: a plugin refuses them; nothing has changed.
        """
        self.plugins.configure(settings)
        self.settings = settings
        self.upstreams.load(settings, self.plugins.upstreams, self.plugins.upstreams_order)
        vars(self).pop("routes_by_body", None)

    async def close(self) -> None:
        """Release the thread, connections and the database, once no request is left."""
        for name in ("body_thread", "models", "upstreams"):
            if name in vars(self):
                getattr(self, name).close()
        if self._database_store is not None:
            await self._database_store.close()

    async def _get(self, path: str) -> tuple[int, bytes]:
        """Get the models, from the first upstream that lists them and can be used."""
        target = self.upstreams.lister()
        if target is None:
            return 200, self.upstreams.models_of_settings()
        status, body = await target.ask(path, instance=self.instance)
        refusal = target.check_key(status)
        if refusal is not None:
            raise refusal
        return status, body

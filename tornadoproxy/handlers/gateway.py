"""The state of one running proxy, made once and passed to everything that needs it."""

from __future__ import annotations

import logging
import secrets
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from tornadoproxy.config.core_settings import (
    ALLOWED_HOSTS,
    ALLOWED_ORIGINS,
    CHAT_CACHE,
    CHAT_DEFAULT_MAX_TOKENS,
    CHAT_DROP_SAMPLING,
    CHAT_MODELS,
    CHAT_PREFILL,
    CHAT_STRICT,
    HOST,
    MAX_CONCURRENT_REQUESTS,
    MAX_HELD_BODIES,
    MAX_QUEUED_REQUESTS,
    QUEUE_TIMEOUT,
)
from tornadoproxy.config.upstream_key import upstream_credential, upstream_key_fault
from tornadoproxy.errors import CredentialRefused, ProxyError
from tornadoproxy.handlers.admission import Admission, FairThread
from tornadoproxy.handlers.body_budget import BodyBudget
from tornadoproxy.plugin.request import Outcome
from tornadoproxy.upstream.model_list import ModelList

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tornadoproxy.config.settings import Settings
    from tornadoproxy.openai.chat_completions import Options
    from tornadoproxy.plugin.manager import Plugins
    from tornadoproxy.upstream.client import UpstreamClient

logger = logging.getLogger(__name__)

_ID_BYTES = 12
_IDS_AT_ONCE = 256


def request_ids() -> Iterator[str]:
    """Yield ids for requests, without end, that cannot be guessed.

    The system provides many at once: to ask it for each takes longer than all the rest.
    """
    while True:
        drawn = secrets.token_hex(_ID_BYTES * _IDS_AT_ONCE)
        for start in range(0, len(drawn), 2 * _ID_BYTES):
            yield "req_" + drawn[start : start + 2 * _ID_BYTES]


class Request(Protocol):
    """A request that is being served."""

    def end(self, error: ProxyError | None = None, outcome: Outcome | None = None) -> None:
        """End it now."""


class InFlight(set[Request]):
    """The protected requests that have not ended, queued ones included."""

    def end_all(self) -> None:
        """End all of them now, since the process stops."""
        for request in list(self):
            stopping = ProxyError("The proxy is stopping. Try again.", status=503, retry_after=1)
            request.end(stopping, Outcome.DRAINED)


class UpstreamKey:
    """The proxy's own credential at the upstream, and whether the upstream accepts it.

    :ivar header: the request header that carries it, as name and value.
    """

    def __init__(self, settings: Settings) -> None:
        self.load(settings)

    def load(self, settings: Settings) -> None:
        """Take the key of `settings`."""
        self.header = upstream_credential(settings)
        self._settings = settings
        self._is_refused = False

    def check(self, status: int) -> CredentialRefused | None:
        """Return the error for a response that refuses the key, and log the first one.

        It is logged again after the key was reloaded, or after the upstream accepted it.

        :param status: the response's.
        """
        if status == 401:
            if not self._is_refused:
                self._is_refused = True
                logger.error(
                    "%s, then reload or restart; requests fail with 502 until then",
                    upstream_key_fault(self._settings),
                )
            return CredentialRefused()
        if self._is_refused and status < 400:
            self._is_refused = False
        return None


class Gateway:
    """The collaborators that serve the requests of one proxy. Each owns its own counters.

    :param instance: this process's name in ``Via``, by which it recognizes a request that loops.
    :ivar in_flight: the requests that have not ended.
    :ivar admission: admits requests up to a limit, and queues the others.
    :ivar body_budget: the memory for request bodies.
    :ivar body_thread: parses and translates bodies that would block the event loop.
    :ivar models: the upstream's models.
    :ivar upstream_key: the proxy's own credential.
    :ivar draining: whether the process is about to stop, so that it is no longer ready.
    """

    def __init__(self, *, settings: Settings, plugins: Plugins, instance: str) -> None:
        self.settings = settings
        self.plugins = plugins
        self._upstream: UpstreamClient | None = None
        self.instance = instance
        self.request_ids = request_ids()
        self.in_flight = InFlight()
        self.admission = Admission(
            settings[MAX_CONCURRENT_REQUESTS],
            max_waiting=settings[MAX_QUEUED_REQUESTS],
            timeout=settings[QUEUE_TIMEOUT],
        )
        self.body_budget = BodyBudget(settings[MAX_HELD_BODIES])
        self.body_thread = FairThread()
        self.models = ModelList(self._get)
        self.upstream_key = UpstreamKey(settings)
        self.draining = False
        # a wildcard address is not a name of this host: browsers let any page reach http://0.0.0.0
        own = {settings[HOST].lower()} - {"0.0.0.0", "::"}  # noqa: S104  # not bound here
        self.allowed_hosts = frozenset(own.union(settings[ALLOWED_HOSTS]))
        self.allowed_origins = frozenset(settings[ALLOWED_ORIGINS])

    @property
    def upstream(self) -> UpstreamClient:
        """The client to the upstream; it is not loaded at the start, since probes need none."""
        if self._upstream is None:
            from tornadoproxy.upstream.client import UpstreamClient

            self._upstream = UpstreamClient(force_instance=True, settings=self.settings)
        return self._upstream

    @cached_property
    def chat_options(self) -> Options:
        """How chat completions are translated; the translation is not loaded at the start."""
        from tornadoproxy.openai.chat_completions import Options

        return Options(
            default_max_tokens=self.settings[CHAT_DEFAULT_MAX_TOKENS],
            models=self.settings[CHAT_MODELS],
            strict=self.settings[CHAT_STRICT],
            drop_sampling=self.settings[CHAT_DROP_SAMPLING],
            prefill=self.settings[CHAT_PREFILL],
            cache=self.settings[CHAT_CACHE],
        )

    def reload(self, settings: Settings) -> None:
        """Use other tokens and keys from now on; requests in flight keep theirs.

        :raises ConfigurationError: a plugin refuses them; nothing has changed.
        """
        self.plugins.configure(settings)
        self.settings = settings
        self.upstream_key.load(settings)

    def close(self) -> None:
        """Release the thread and the upstream's connections, once no request is left."""
        self.body_thread.close()
        self.models.close()
        if self._upstream is not None:
            self._upstream.close()

    async def _get(self, path: str) -> tuple[int, bytes]:
        status, body = await self.upstream.ask(self.settings, path, instance=self.instance)
        refusal = self.upstream_key.check(status)
        if refusal is not None:
            raise refusal
        return status, body

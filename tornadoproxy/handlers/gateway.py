"""The state of one running proxy, made once and passed to all that need it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
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
    UPSTREAM_BASE_URL,
)
from tornadoproxy.config.upstream_key import upstream_key_fault
from tornadoproxy.errors import CredentialRefused
from tornadoproxy.handlers.admission import Admission, FairThread
from tornadoproxy.handlers.body_budget import BodyBudget
from tornadoproxy.handlers.request_ids import request_ids
from tornadoproxy.openai.chat_completions import Options
from tornadoproxy.upstream.client import ask, upstream_credential
from tornadoproxy.upstream.connector import Origin
from tornadoproxy.upstream.model_list import ModelList

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tornadoproxy.config.settings import Settings
    from tornadoproxy.plugin.manager import Plugins
    from tornadoproxy.plugin.request import Outcome
    from tornadoproxy.upstream.client import UpstreamClient

logger = logging.getLogger(__name__)


class InFlight(Protocol):
    """A request that is being served."""

    def cut(self, outcome: Outcome) -> None:
        """End it now, in a way that its client cannot take for a clean end."""


@dataclass(eq=False)
class Gateway:
    """Settings, plugins and upstream of one proxy, and what is going on in it.

    :param instance: this process's name in ``Via``, by which it knows a request that comes back.
    :param request_ids: of this proxy's own, one for each request.
    :param in_flight: the protected requests that are not over, those that wait included.
    :param body_thread: reads and translates bodies that would hold the event loop.
    :param draining: no longer ready: the process is about to stop.
    :ivar credential_refused: whether the upstream answered 401 since it last accepted the key.
    """

    settings: Settings
    plugins: Plugins
    upstream: UpstreamClient
    instance: str
    request_ids: Iterator[str] = field(default_factory=request_ids, repr=False)
    in_flight: set[InFlight] = field(default_factory=set, repr=False)
    body_thread: FairThread = field(default_factory=FairThread, repr=False)
    draining: bool = False
    credential: tuple[str, str] | None = field(init=False, repr=False)
    credential_refused: bool = field(init=False)
    models: ModelList = field(init=False, repr=False)
    chat_options: Options = field(init=False)
    origin: Origin = field(init=False)
    allowed_hosts: frozenset[str] = field(init=False)
    allowed_origins: frozenset[str] = field(init=False)
    admission: Admission = field(init=False, repr=False)
    body_budget: BodyBudget = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._take_key()
        base = self.settings[UPSTREAM_BASE_URL]
        self.origin = Origin(base.scheme, base.host, base.port)
        self.models = ModelList(self._get)
        self.chat_options = Options(
            default_max_tokens=self.settings[CHAT_DEFAULT_MAX_TOKENS],
            models=self.settings[CHAT_MODELS],
            strict=self.settings[CHAT_STRICT],
            drop_sampling=self.settings[CHAT_DROP_SAMPLING],
            prefill=self.settings[CHAT_PREFILL],
            cache=self.settings[CHAT_CACHE],
        )
        # a wildcard address is no name of ours: browsers let any page reach http://0.0.0.0
        own = {self.settings[HOST].lower()} - {"0.0.0.0", "::"}  # noqa: S104  # not bound here
        self.allowed_hosts = frozenset(own.union(self.settings[ALLOWED_HOSTS]))
        self.allowed_origins = frozenset(self.settings[ALLOWED_ORIGINS])
        self.body_budget = BodyBudget(self.settings[MAX_HELD_BODIES])
        self.admission = Admission(
            self.settings[MAX_CONCURRENT_REQUESTS],
            max_waiting=self.settings[MAX_QUEUED_REQUESTS],
            patience=self.settings[QUEUE_TIMEOUT],
        )

    def reload(self, settings: Settings) -> None:
        """Go on with other tokens and keys; requests in flight keep theirs.

        :raises ConfigurationError: a plugin refuses them; all is as it was.
        """
        self.plugins.configure(settings)
        self.settings = settings
        self._take_key()

    def _take_key(self) -> None:
        self.credential = upstream_credential(self.settings)
        self.credential_refused = False

    def refuse_credential(self) -> CredentialRefused:
        """Return the error for an upstream's 401, and log the first one.

        It is logged again after the key was reloaded, or after the upstream accepted it.
        """
        if not self.credential_refused:
            self.credential_refused = True
            logger.error(
                "%s, then reload or restart; requests fail with 502 until then",
                upstream_key_fault(self.settings),
            )
        return CredentialRefused()

    async def _get(self, path: str) -> tuple[int, bytes]:
        status, body = await ask(self.upstream, self.settings, path, instance=self.instance)
        if status == 401:
            raise self.refuse_credential()
        return status, body

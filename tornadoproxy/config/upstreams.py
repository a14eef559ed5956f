"""An upstream: its name, how it is reached, and which models it serves."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec import Struct

from tornadoproxy.config.core_settings import (
    HTTPS_PROXY,
    UPSTREAM_API_KEYS,
    UPSTREAM_AUTH_SCHEME,
    UPSTREAM_BASE_URL,
    UPSTREAM_CA_FILE,
    UPSTREAM_CONNECT_TIMEOUT,
    UPSTREAM_FIRST_BYTE_TIMEOUT,
    UPSTREAM_IDLE_TIMEOUT,
)
from tornadoproxy.config.upstream_key import upstream_key, upstream_key_variable
from tornadoproxy.protocol.wire import ANTHROPIC, Wire

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from tornadoproxy.config.setting import Setting
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.config.urls import BaseURL, EgressProxy
    from tornadoproxy.secret import Secret

DEFAULT = "default"
"""The name of the upstream of ``UPSTREAM_BASE_URL``."""

_NO_MODELS: Mapping[str, str] = MappingProxyType({})


class Upstream(Struct, frozen=True, kw_only=True):
    """One way to reach Claude. What is ``None`` is as the settings of the proxy say.

    :param name: in logs, metrics and ``x-tornadoproxy-upstream``; unique.
    :param base_url: what ``UPSTREAM_BASE_URL`` is for the default upstream.
    :param kind: the kind of upstream that it was declared as, for people.
    :param api_key: sent in the header that `auth_scheme` names; ``None`` sends none.
    :param key_source: which setting names that key, or what `wire` authenticates by, for people.
    :param auth_scheme: ``x-api-key`` or ``bearer``.
    :param wire: how its requests and responses differ from the Anthropic API's.
    :param weight: its share of the sessions, in relation to the other upstreams' weights.
    :param models: what each model that it serves is called there, by the name in requests. A name
        may contain one ``*``, which stands for any text, also in what it is called there. Empty:
        it serves all models, by their own names.
    :param max_concurrent: requests in flight at once; further ones go to other upstreams.
    :param connect_timeout: in seconds, like the other two timeouts.
    :param ca_file: PEM file of the authorities that its certificate may be from.
    :param egress_proxy: the proxy through which it is reached.
    """

    name: str
    base_url: BaseURL
    kind: str = "anthropic"
    api_key: Secret | None = None
    key_source: str | None = None
    auth_scheme: str = "x-api-key"
    wire: Wire = ANTHROPIC
    weight: float = 1.0
    models: Mapping[str, str] = _NO_MODELS
    max_concurrent: int | None = None
    connect_timeout: float | None = None
    first_byte_timeout: float | None = None
    idle_timeout: float | None = None
    ca_file: Path | None = None
    egress_proxy: EgressProxy | None = None

    @property
    def is_plain(self) -> bool:
        """Whether its requests and responses cross this proxy as they are."""
        return self.wire is ANTHROPIC and not self.models and self.max_concurrent is None

    def model(self, name: str) -> str | None:
        """Return what the model `name` is called there; ``None`` if it is not served."""
        if not self.models:
            return name
        if name in self.models:
            return self.models[name]
        for pattern, there in self.models.items():
            before, star, after = pattern.partition("*")
            middle = name.removeprefix(before).removesuffix(after)
            if star and name == f"{before}{middle}{after}":
                return there.replace("*", middle)
        return None

    def key_fault(self) -> str:
        """Return what a 401 means: which setting is wrong, and what to do."""
        if self.key_source is not None:
            return f"{self.key_source}: the upstream refused this key (status 401): replace it"
        unset = "UPSTREAM_API_KEY" if self.name == DEFAULT else f"api_key of {self.name!r}"
        return f"{unset} is not set, and the upstream requires a credential (status 401): set it"

    def settings(self, settings: Settings) -> Settings:
        """Return `settings` with how this upstream is reached in place of the default one."""
        own: dict[Setting[Any], Any] = {  # Any: each has a type of its own
            UPSTREAM_CONNECT_TIMEOUT: self.connect_timeout,
            UPSTREAM_FIRST_BYTE_TIMEOUT: self.first_byte_timeout,
            UPSTREAM_IDLE_TIMEOUT: self.idle_timeout,
            UPSTREAM_CA_FILE: self.ca_file,
            HTTPS_PROXY: self.egress_proxy,
        }
        return settings.replace(
            {
                UPSTREAM_BASE_URL: self.base_url,
                **{setting: value for setting, value in own.items() if value is not None},
            }
        )


class UpstreamsOrder(Struct, frozen=True):
    """How an upstream is chosen.

    :param listed: the first upstream that can be used serves all; otherwise all do, by weight.
    :param sticky: the requests of one session stay on one upstream as long as it can be used.
    :param pinned: the upstream for files, batches and whatever else it keeps; ``None``: each is
        looked for where it was made.
    """

    listed: bool = False
    sticky: bool = True
    pinned: str | None = None


class UpstreamStatus(Struct, frozen=True):
    """The figures of one upstream.

    :param state: ``well``, ``resting`` or ``probing``.
    :param in_flight: its requests that have not ended.
    :param attempts: requests sent to it, by result: a status such as ``200``, or what failed.
    :param rests: how often it began to rest.
    :param rests_for: how much longer it rests, in seconds.
    :param first_byte_time: the time until its responses began, in seconds, all together.
    :param responses: the responses that began.
    """

    name: str
    kind: str
    state: str
    in_flight: int
    attempts: dict[str, int]
    rests: int
    rests_for: float
    first_byte_time: float
    responses: int


def default_upstreams(settings: Settings) -> tuple[Upstream, ...]:
    """Return the upstream of ``UPSTREAM_BASE_URL``; one for each of ``UPSTREAM_API_KEYS``."""
    base_url, scheme = settings[UPSTREAM_BASE_URL], settings[UPSTREAM_AUTH_SCHEME]
    keys = settings[UPSTREAM_API_KEYS]
    if not keys:
        return (
            Upstream(
                name=DEFAULT,
                base_url=base_url,
                api_key=upstream_key(settings),
                key_source=upstream_key_variable(settings),
                auth_scheme=scheme,
            ),
        )
    return tuple(
        Upstream(
            name=f"{DEFAULT}-{number}",
            base_url=base_url,
            api_key=key,
            key_source=f"key {number} of {UPSTREAM_API_KEYS.name}",
            auth_scheme=scheme,
        )
        for number, key in enumerate(keys, 1)
    )

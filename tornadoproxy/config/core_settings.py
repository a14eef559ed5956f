"""The core's settings, each declared once."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tornadoproxy.config import chat_settings, parsers, responses_settings
from tornadoproxy.config.setting import Setting
from tornadoproxy.config.urls import BaseURL

if TYPE_CHECKING:
    from pathlib import Path

    from tornadoproxy.config.toml_file import TomlFile
    from tornadoproxy.config.urls import EgressProxy
    from tornadoproxy.protocol.client_address import IPNetwork
    from tornadoproxy.secret import Secret, SecretURL

# zero would expire at once, while some readers take it for "no timeout"
_timeout = parsers.seconds(minimum=0.001)

HOST: Setting[str] = Setting(
    "HOST",
    parsers.listen_address,
    default="127.0.0.1",
    help=(
        "address to listen on: IPv4, IPv6, a host name, or unix:/path for a Unix socket. "
        "0.0.0.0 listens on all interfaces by IPv4, :: by IPv4 and IPv6."
    ),
)
PORT: Setting[int] = Setting(
    "PORT",
    parsers.integer(0, 65_535),
    default=8000,
    help="TCP port to listen on; 0 picks a free one. Not used with a Unix socket.",
)
UPSTREAM_BASE_URL: Setting[BaseURL] = Setting(
    "UPSTREAM_BASE_URL",
    parsers.base_url,
    default=BaseURL("https", "api.anthropic.com", 443),
    help="URL that requests are relayed to. A path prefix is kept; /v1 is not part of it.",
)
UPSTREAM_ALLOW_CLEARTEXT: Setting[bool] = Setting(
    "UPSTREAM_ALLOW_CLEARTEXT",
    parsers.boolean,
    default=False,
    help=(
        "allow an http:// UPSTREAM_BASE_URL on another machine or container. The key and all "
        "messages cross that network unencrypted."
    ),
)
UPSTREAM_API_KEY: Setting[Secret | None] = Setting(
    "UPSTREAM_API_KEY",
    parsers.secret,
    default=None,
    help="API key sent upstream in place of the client's credential",
    secret=True,
    fallbacks=("ANTHROPIC_API_KEY",),
)
UPSTREAM_API_KEY_FILE: Setting[Secret | None] = Setting(
    "UPSTREAM_API_KEY_FILE",
    parsers.secret_file,
    default=None,
    help="file that holds the upstream's API key, instead of UPSTREAM_API_KEY. Reloaded on SIGHUP.",
)
UPSTREAM_API_KEYS: Setting[tuple[Secret, ...]] = Setting(
    "UPSTREAM_API_KEYS",
    parsers.secrets,
    default=(),
    help=(
        "several API keys for UPSTREAM_BASE_URL, separated by spaces, instead of UPSTREAM_API_KEY. "
        "Each is an upstream of its own, from default-1 on. Reloaded on SIGHUP."
    ),
    secret=True,
)
UPSTREAMS_FILE: Setting[TomlFile | None] = Setting(
    "UPSTREAMS_FILE",
    parsers.toml_file,
    default=None,
    help=(
        "TOML file with an [[upstream]] for each way to reach Claude, instead of "
        "UPSTREAM_BASE_URL and UPSTREAM_API_KEY. Reloaded on SIGHUP."
    ),
)
MODELS: Setting[Mapping[str, str]] = Setting(
    "MODELS",
    parsers.pairs,
    default=MappingProxyType({}),
    help=(
        "upstream models for the names that clients send, such as 'fast=claude-haiku-4-5 "
        "*=claude-sonnet-5-5'; * is any other name that is not Claude's. CHAT_MODELS comes first "
        "for OpenAI clients."
    ),
    blank=True,
    no_flag=True,
)
READY_NEEDS_UPSTREAM: Setting[bool] = Setting(
    "READY_NEEDS_UPSTREAM",
    parsers.boolean,
    default=False,
    help="let /ready respond with 503 while every upstream rests after failures",
)
UPSTREAM_AUTH_SCHEME: Setting[str] = Setting(
    "UPSTREAM_AUTH_SCHEME",
    parsers.choice("x-api-key", "bearer"),
    default="x-api-key",
    help="header that carries the key upstream: x-api-key, or bearer for Authorization: Bearer",
)
UPSTREAM_CONNECT_TIMEOUT: Setting[float] = Setting(
    "UPSTREAM_CONNECT_TIMEOUT",
    _timeout,
    default=10.0,
    help="seconds to connect to the upstream, TLS handshake included",
)
UPSTREAM_FIRST_BYTE_TIMEOUT: Setting[float] = Setting(
    "UPSTREAM_FIRST_BYTE_TIMEOUT",
    _timeout,
    default=600.0,
    help="seconds the upstream may take to begin its response before the request fails",
)
UPSTREAM_IDLE_TIMEOUT: Setting[float] = Setting(
    "UPSTREAM_IDLE_TIMEOUT",
    _timeout,
    default=600.0,
    help="seconds a response may be silent before it is aborted",
)
UPSTREAM_KEEPALIVE_TIMEOUT: Setting[float] = Setting(
    "UPSTREAM_KEEPALIVE_TIMEOUT",
    parsers.seconds(),
    default=60.0,
    help="seconds an idle upstream connection is kept for the next request; 0 keeps none",
)
UPSTREAM_CA_FILE: Setting[Path | None] = Setting(
    "UPSTREAM_CA_FILE",
    parsers.certificates_file,
    default=None,
    help="PEM file with the certificate authorities to trust upstream, instead of the system's",
)
HTTPS_PROXY: Setting[EgressProxy | None] = Setting(
    "HTTPS_PROXY",
    parsers.egress_proxy,
    default=None,
    help="http:// proxy through which an https upstream is reached",
    secret=True,
    fallbacks=("https_proxy",),
    blank=True,
)
NO_PROXY: Setting[tuple[str, ...]] = Setting(
    "NO_PROXY",
    parsers.words,
    default=(),
    help=(
        "hosts reached without HTTPS_PROXY: names, domains such as .corp.example or "
        "*.corp.example, addresses, networks, or * for all"
    ),
    fallbacks=("no_proxy",),
    blank=True,
)
MAX_CONNECTIONS: Setting[int] = Setting(
    "MAX_CONNECTIONS",
    parsers.integer(0, 1_000_000),
    default=0,
    help=(
        "client connections open at once; 0 is half of the limit of open files, at most 20,000. "
        "At the limit, the connection that has been idle or unauthenticated longest is closed."
    ),
)
MAX_CONCURRENT_REQUESTS: Setting[int] = Setting(
    "MAX_CONCURRENT_REQUESTS",
    parsers.integer(1, 1_000_000),
    default=10_000,
    help="requests in flight at once; further ones are queued",
)
QUEUE_TIMEOUT: Setting[float] = Setting(
    "QUEUE_TIMEOUT",
    parsers.seconds(),
    default=5.0,
    help=(
        "seconds a request may be queued before it is rejected with 529 and retry-after; 0 "
        "disables queueing"
    ),
)
MAX_QUEUED_REQUESTS: Setting[int] = Setting(
    "MAX_QUEUED_REQUESTS",
    parsers.integer(1, 100_000),
    default=1_000,
    help="requests queued at once; further ones are rejected with 529",
)
MAX_HELD_BODIES: Setting[int] = Setting(
    "MAX_HELD_BODIES",
    parsers.size,
    default=512 << 20,
    help=(
        "bytes of memory for buffered request bodies. One principal may use half of it; a body "
        "that does not fit is rejected with 529."
    ),
)
MAX_HEADER_SIZE: Setting[int] = Setting(
    "MAX_HEADER_SIZE",
    parsers.size,
    default=64 << 10,
    help="bytes of a request's first line and headers; more is rejected with 431",
)
MAX_BODY_SIZE: Setting[int] = Setting(
    "MAX_BODY_SIZE",
    parsers.size,
    default=500 << 20,
    help=(
        "bytes of a request body, such as 1048576, 32MB or 1.5GB (binary multiples); more is "
        "rejected with 413"
    ),
)
CLIENT_IDLE_TIMEOUT: Setting[float] = Setting(
    "CLIENT_IDLE_TIMEOUT",
    _timeout,
    default=75.0,
    help=(
        "seconds between two requests on a connection, and for a request's headers to arrive. "
        "Keep it above the idle timeout of a load balancer in front: often 60, Google Cloud's "
        "600."
    ),
)
CLIENT_BODY_TIMEOUT: Setting[float] = Setting(
    "CLIENT_BODY_TIMEOUT",
    _timeout,
    default=60.0,
    help="seconds a client may be silent within its request body",
)
MIN_BODY_RATE: Setting[int] = Setting(
    "MIN_BODY_RATE",
    parsers.integer(0, 1_000_000_000),
    default=500,
    help=(
        "bytes per second that a request body must average after CLIENT_BODY_TIMEOUT seconds; a "
        "slower one is rejected with 408. 0 disables the check."
    ),
)
SHUTDOWN_DELAY: Setting[float] = Setting(
    "SHUTDOWN_DELAY",
    parsers.seconds(),
    default=0.0,
    help=(
        "seconds requests are still accepted after a stop signal while /ready returns 503, so "
        "that load balancers stop sending them. DRAIN_TIMEOUT begins afterwards."
    ),
)
DRAIN_TIMEOUT: Setting[float] = Setting(
    "DRAIN_TIMEOUT",
    parsers.seconds(),
    default=30.0,
    help=(
        "seconds requests in flight may take to finish after a stop signal. Many orchestrators "
        "kill after 30: raise their limit along with this one."
    ),
)
PLUGIN_TIMEOUT: Setting[float] = Setting(
    "PLUGIN_TIMEOUT",
    _timeout,
    default=10.0,
    help="seconds a plugin may take to decide on a request before it is rejected with 503",
)
DATABASE_TIMEOUT: Setting[float] = Setting(
    "DATABASE_TIMEOUT",
    _timeout,
    default=0.25,
    help="seconds a PostgreSQL or Redis server may take for a statement of a running proxy",
)
SHARED_LIMITS: Setting[SecretURL | None] = Setting(
    "SHARED_LIMITS",
    parsers.redis_url,
    default=None,
    help=(
        "redis:// or rediss:// URL of a server, or redis+cluster:// of a cluster, that counts "
        "limits for several proxies together; without it, each proxy has limits of its own"
    ),
    secret=True,
)
SHARED_LIMITS_FAILURE: Setting[str] = Setting(
    "SHARED_LIMITS_FAILURE",
    parsers.choice("refuse", "local"),
    default="refuse",
    help=(
        "what happens to limited requests while that server cannot be used: refuse (503), or local "
        "(each proxy limits them by itself)"
    ),
)
DISABLED_PLUGINS: Setting[tuple[str, ...]] = Setting(
    "DISABLED_PLUGINS",
    parsers.words,
    default=(),
    help="names of plugins that are not loaded, separated by commas or spaces",
    blank=True,
)
TLS_CERT: Setting[Path | None] = Setting(
    "TLS_CERT",
    parsers.readable_file,
    default=None,
    help="PEM file with this server's certificate and its chain; turns TLS on",
)
TLS_KEY: Setting[Path | None] = Setting(
    "TLS_KEY",
    parsers.readable_file,
    default=None,
    help="PEM file with the unencrypted private key of TLS_CERT",
)
TRUSTED_PROXIES: Setting[tuple[IPNetwork, ...]] = Setting(
    "TRUSTED_PROXIES",
    parsers.networks,
    default=(),
    help=(
        "addresses or networks of the proxies in front, whose X-Forwarded-For, "
        "X-Forwarded-Proto and X-Forwarded-Prefix are trusted"
    ),
    blank=True,
)
ALLOWED_HOSTS: Setting[tuple[str, ...]] = Setting(
    "ALLOWED_HOSTS",
    parsers.hosts,
    default=(),
    help="host names, without port, that anonymous requests may address besides loopback",
    blank=True,
)
ALLOWED_ORIGINS: Setting[tuple[str, ...]] = Setting(
    "ALLOWED_ORIGINS",
    parsers.origins,
    default=(),
    help=(
        "origins of web pages that may use the proxy from a browser (CORS), such as "
        "https://app.example.com"
    ),
    blank=True,
)
LOG_LEVEL: Setting[str] = Setting(
    "LOG_LEVEL",
    parsers.choice("debug", "info", "warning", "error"),
    default="info",
    help="lowest level that is logged: debug, info, warning or error",
)
DEFAULT_ANTHROPIC_VERSION: Setting[str] = Setting(
    "DEFAULT_ANTHROPIC_VERSION",
    parsers.date,
    default="2023-06-01",
    help="anthropic-version for a client that sends none",
)
SSE_KEEPALIVE_INTERVAL: Setting[float] = Setting(
    "SSE_KEEPALIVE_INTERVAL",
    parsers.seconds(),
    default=0.0,
    help=(
        "seconds of upstream silence after which the proxy sends a ping into a stream; 0 "
        "disables it"
    ),
)
REWRITE_RESULTS_URL: Setting[bool] = Setting(
    "REWRITE_RESULTS_URL",
    parsers.boolean,
    default=False,
    help="rewrite the results_url of a batch to lead through this proxy",
)
REUSE_PORT: Setting[bool] = Setting(
    "REUSE_PORT",
    parsers.boolean,
    default=False,
    help="let several processes listen on the same port and share its connections",
)

CORE_SETTINGS: tuple[Setting[Any], ...] = (
    *(value for value in tuple(globals().values()) if isinstance(value, Setting)),
    *(value for value in vars(chat_settings).values() if isinstance(value, Setting)),
    *(value for value in vars(responses_settings).values() if isinstance(value, Setting)),
)
"""All settings of the core: those above, then those of OpenAI's APIs, in their order."""

RELOADABLE: tuple[Setting[Any], ...] = (
    UPSTREAM_API_KEY,
    UPSTREAM_API_KEY_FILE,
    UPSTREAM_API_KEYS,
    UPSTREAMS_FILE,
    LOG_LEVEL,
)
"""The core's settings that SIGHUP reloads; plugins reload all of theirs."""

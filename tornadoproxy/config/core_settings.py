"""The core's settings, each declared once."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tornadoproxy.config import parsers
from tornadoproxy.config.setting import Setting
from tornadoproxy.config.urls import BaseURL

if TYPE_CHECKING:
    from pathlib import Path

    from tornadoproxy.config.urls import EgressProxy
    from tornadoproxy.protocol.client_address import IPNetwork
    from tornadoproxy.secret import Secret

# a timeout of zero would be over before it begins, and means "none" to some readers
_timeout = parsers.seconds(minimum=0.001)

HOST: Setting[str] = Setting(
    "HOST",
    parsers.listen_address,
    default="127.0.0.1",
    help=(
        "The address to listen on: IPv4, IPv6, a host name, or unix:/path for a Unix socket. "
        "0.0.0.0 listens on all interfaces by IPv4, :: by IPv4 and IPv6."
    ),
)
PORT: Setting[int] = Setting(
    "PORT",
    parsers.integer(0, 65_535),
    default=8000,
    help="The port to listen on; 0 takes a free one. Not used for a Unix socket.",
)
UPSTREAM_BASE_URL: Setting[BaseURL] = Setting(
    "UPSTREAM_BASE_URL",
    parsers.base_url,
    default=BaseURL("https", "api.anthropic.com", 443),
    help="Where requests are relayed to. A path prefix is kept; /v1 is not part of it.",
)
UPSTREAM_ALLOW_CLEARTEXT: Setting[bool] = Setting(
    "UPSTREAM_ALLOW_CLEARTEXT",
    parsers.boolean,
    default=False,
    help=(
        "Whether UPSTREAM_BASE_URL may be http:// to another machine or container: the key and all "
        "messages cross that network unencrypted."
    ),
)
UPSTREAM_API_KEY: Setting[Secret | None] = Setting(
    "UPSTREAM_API_KEY",
    parsers.secret,
    default=None,
    help="The key that the upstream gets, in place of the client's credential.",
    secret=True,
    fallbacks=("ANTHROPIC_API_KEY",),
)
UPSTREAM_API_KEY_FILE: Setting[Secret | None] = Setting(
    "UPSTREAM_API_KEY_FILE",
    parsers.secret_file,
    default=None,
    help="A file that holds the upstream's key, instead of UPSTREAM_API_KEY. Read again on SIGHUP.",
)
UPSTREAM_AUTH_SCHEME: Setting[str] = Setting(
    "UPSTREAM_AUTH_SCHEME",
    parsers.choice("x-api-key", "bearer"),
    default="x-api-key",
    help="How the key is sent upstream: x-api-key, or bearer for Authorization: Bearer.",
)
UPSTREAM_CONNECT_TIMEOUT: Setting[float] = Setting(
    "UPSTREAM_CONNECT_TIMEOUT",
    _timeout,
    default=10.0,
    help="Seconds to connect to the upstream, TLS included.",
)
UPSTREAM_FIRST_BYTE_TIMEOUT: Setting[float] = Setting(
    "UPSTREAM_FIRST_BYTE_TIMEOUT",
    _timeout,
    default=600.0,
    help="Seconds that the upstream may take to begin its answer.",
)
UPSTREAM_IDLE_TIMEOUT: Setting[float] = Setting(
    "UPSTREAM_IDLE_TIMEOUT",
    _timeout,
    default=600.0,
    help="Seconds that the upstream may be silent within its answer.",
)
UPSTREAM_KEEPALIVE_TIMEOUT: Setting[float] = Setting(
    "UPSTREAM_KEEPALIVE_TIMEOUT",
    parsers.seconds(),
    default=60.0,
    help="Seconds that an idle upstream connection is kept for the next request; 0 keeps none.",
)
UPSTREAM_CA_FILE: Setting[Path | None] = Setting(
    "UPSTREAM_CA_FILE",
    parsers.certificates_file,
    default=None,
    help="A PEM file with the authorities to trust upstream, instead of the system's.",
)
HTTPS_PROXY: Setting[EgressProxy | None] = Setting(
    "HTTPS_PROXY",
    parsers.egress_proxy,
    default=None,
    help="The http:// proxy through which an https upstream is reached.",
    secret=True,
    fallbacks=("https_proxy",),
    blank=True,
)
NO_PROXY: Setting[tuple[str, ...]] = Setting(
    "NO_PROXY",
    parsers.words,
    default=(),
    help=(
        "Hosts that are reached without HTTPS_PROXY: names, domains as .corp.example or "
        "*.corp.example, addresses, networks, or * for all."
    ),
    fallbacks=("no_proxy",),
    blank=True,
)
MAX_CONNECTIONS: Setting[int] = Setting(
    "MAX_CONNECTIONS",
    parsers.integer(0, 1_000_000),
    default=0,
    help=(
        "Connections from clients at once; 0 is half of the limit of open files, 20,000 at most. "
        "At the limit, the one that has been idle or unauthenticated longest makes room."
    ),
)
MAX_CONCURRENT_REQUESTS: Setting[int] = Setting(
    "MAX_CONCURRENT_REQUESTS",
    parsers.integer(1, 1_000_000),
    default=10_000,
    help="Requests in flight at once; one more waits for its turn.",
)
QUEUE_TIMEOUT: Setting[float] = Setting(
    "QUEUE_TIMEOUT",
    parsers.seconds(),
    default=5.0,
    help=(
        "Seconds that a request waits for its turn, then it is answered 529 with retry-after; 0 "
        "is not at all."
    ),
)
MAX_QUEUED_REQUESTS: Setting[int] = Setting(
    "MAX_QUEUED_REQUESTS",
    parsers.integer(1, 100_000),
    default=1_000,
    help="Requests that wait for their turn at once, before any more are answered 529.",
)
MAX_HELD_BODIES: Setting[int] = Setting(
    "MAX_HELD_BODIES",
    parsers.size,
    default=512 << 20,
    help=(
        "The most memory for request bodies that are held, of which one principal gets half at "
        "most; a body without room is answered 529."
    ),
)
MAX_HEADER_SIZE: Setting[int] = Setting(
    "MAX_HEADER_SIZE",
    parsers.size,
    default=64 << 10,
    help="The largest head of a request, its first line and headers; a larger one is answered 431.",
)
MAX_BODY_SIZE: Setting[int] = Setting(
    "MAX_BODY_SIZE",
    parsers.size,
    default=500 << 20,
    help="The largest request body, as 1048576 or 32MB or 1.5GB (binary multiples).",
)
CLIENT_IDLE_TIMEOUT: Setting[float] = Setting(
    "CLIENT_IDLE_TIMEOUT",
    _timeout,
    default=75.0,
    help=(
        "Seconds between two requests on a connection, and for a request's head to arrive. Keep it "
        "above the idle timeout of a load balancer in front: often 60, Google Cloud's 600."
    ),
)
CLIENT_BODY_TIMEOUT: Setting[float] = Setting(
    "CLIENT_BODY_TIMEOUT",
    _timeout,
    default=60.0,
    help="Seconds that a client may be silent within its request body.",
)
MIN_BODY_RATE: Setting[int] = Setting(
    "MIN_BODY_RATE",
    parsers.integer(0, 1_000_000_000),
    default=500,
    help=(
        "Bytes a second that a request body must arrive with on average after CLIENT_BODY_TIMEOUT "
        "seconds, else it is answered 408; 0 disables it."
    ),
)
SHUTDOWN_DELAY: Setting[float] = Setting(
    "SHUTDOWN_DELAY",
    parsers.seconds(),
    default=0.0,
    help=(
        "Seconds that requests are still accepted when the process is told to stop, while /ready "
        "answers 503, so that load balancers stop sending them; DRAIN_TIMEOUT begins after it."
    ),
)
DRAIN_TIMEOUT: Setting[float] = Setting(
    "DRAIN_TIMEOUT",
    parsers.seconds(),
    default=30.0,
    help=(
        "Seconds that requests in flight get when the process is told to stop. Many orchestrators "
        "kill after 30: raise theirs with this one."
    ),
)
PLUGIN_TIMEOUT: Setting[float] = Setting(
    "PLUGIN_TIMEOUT",
    _timeout,
    default=10.0,
    help="Seconds that a plugin may take to decide on a request; then it is answered 503.",
)
DISABLED_PLUGINS: Setting[tuple[str, ...]] = Setting(
    "DISABLED_PLUGINS",
    parsers.words,
    default=(),
    help="Names of plugins that are not even imported, separated by commas or blanks.",
    blank=True,
)
TLS_CERT: Setting[Path | None] = Setting(
    "TLS_CERT",
    parsers.readable_file,
    default=None,
    help="A PEM file with this server's certificate and its chain: listens with TLS.",
)
TLS_KEY: Setting[Path | None] = Setting(
    "TLS_KEY",
    parsers.readable_file,
    default=None,
    help="A PEM file with the private key, not encrypted, of TLS_CERT.",
)
TRUSTED_PROXIES: Setting[tuple[IPNetwork, ...]] = Setting(
    "TRUSTED_PROXIES",
    parsers.networks,
    default=(),
    help=(
        "Addresses or networks of the proxies in front, whose X-Forwarded-For, X-Forwarded-Proto "
        "and X-Forwarded-Prefix are believed."
    ),
    blank=True,
)
ALLOWED_HOSTS: Setting[tuple[str, ...]] = Setting(
    "ALLOWED_HOSTS",
    parsers.hosts,
    default=(),
    help="Host names, without port, that anonymous requests may be addressed to besides loopback.",
    blank=True,
)
ALLOWED_ORIGINS: Setting[tuple[str, ...]] = Setting(
    "ALLOWED_ORIGINS",
    parsers.origins,
    default=(),
    help="Web pages that may use the proxy from a browser (CORS), as https://app.example.com.",
    blank=True,
)
LOG_LEVEL: Setting[str] = Setting(
    "LOG_LEVEL",
    parsers.choice("debug", "info", "warning", "error"),
    default="info",
    help="How much is logged: debug, info, warning or error.",
)
DEFAULT_ANTHROPIC_VERSION: Setting[str] = Setting(
    "DEFAULT_ANTHROPIC_VERSION",
    parsers.date,
    default="2023-06-01",
    help="The anthropic-version for a client that sends none.",
)
SSE_KEEPALIVE_INTERVAL: Setting[float] = Setting(
    "SSE_KEEPALIVE_INTERVAL",
    parsers.seconds(),
    default=0.0,
    help="Seconds of upstream silence after which a stream gets a ping of our own; 0 is never.",
)
REWRITE_RESULTS_URL: Setting[bool] = Setting(
    "REWRITE_RESULTS_URL",
    parsers.boolean,
    default=False,
    help="Whether a batch's results_url is made to lead through this proxy.",
)
REUSE_PORT: Setting[bool] = Setting(
    "REUSE_PORT",
    parsers.boolean,
    default=False,
    help="Whether several processes may listen on the same port, and share its connections.",
)

CHAT_MODELS: Setting[Mapping[str, str]] = Setting(
    "CHAT_MODELS",
    parsers.pairs,
    default=MappingProxyType({}),
    help=(
        "Upstream's models for the names that OpenAI clients send, as in "
        "'gpt-5=claude-opus-5-5 *=claude-sonnet-5-5'; * is any other name that is not Claude's."
    ),
    blank=True,
)
CHAT_DEFAULT_MAX_TOKENS: Setting[int | None] = Setting(
    "CHAT_DEFAULT_MAX_TOKENS",
    parsers.integer(minimum=1),
    default=None,
    help=(
        "The most tokens of a chat completion whose request names no limit, in place of the "
        "model's own maximum (32000 where the upstream's list of models does not name it)."
    ),
)
CHAT_STRICT: Setting[bool] = Setting(
    "CHAT_STRICT",
    parsers.boolean,
    default=False,
    help=(
        "Whether a chat completion that asks for what has no counterpart is refused, instead of "
        "the field being dropped and named in x-tornadoproxy-ignored."
    ),
)
CHAT_DROP_SAMPLING: Setting[bool] = Setting(
    "CHAT_DROP_SAMPLING",
    parsers.boolean,
    default=False,
    help=(
        "Whether temperature, top_p and top_k of a chat completion are dropped, instead of the "
        "request going out with the last anthropic-version that takes them."
    ),
)
CHAT_PREFILL: Setting[bool] = Setting(
    "CHAT_PREFILL",
    parsers.boolean,
    default=False,
    help=(
        "Whether the model continues an assistant message that stands last, which models since "
        "Claude 4.6 refuse, instead of being asked for a new message as OpenAI's models are."
    ),
)
CHAT_CACHE: Setting[str] = Setting(
    "CHAT_CACHE",
    parsers.choice("auto", "always", "off"),
    default="auto",
    help=(
        "When a chat completion without any cache_control is cached: auto (if it has tools or an "
        "assistant message), always, or off."
    ),
)

CORE_SETTINGS: tuple[Setting[Any], ...] = tuple(
    value for value in tuple(globals().values()) if isinstance(value, Setting)
)
"""All of the above, in their order."""

RELOADABLE: tuple[Setting[Any], ...] = (UPSTREAM_API_KEY, UPSTREAM_API_KEY_FILE, LOG_LEVEL)
"""The core's settings that SIGHUP changes; plugins take all of theirs in again."""

"""The check of the core's settings for values that are individually valid but contradictory."""

from __future__ import annotations

import ipaddress
import ssl
from typing import TYPE_CHECKING

from tornadoproxy.config.core_settings import (
    HOST,
    PORT,
    REUSE_PORT,
    TLS_CERT,
    TLS_KEY,
    UPSTREAM_ALLOW_CLEARTEXT,
    UPSTREAM_API_KEY,
    UPSTREAM_API_KEY_FILE,
    UPSTREAM_API_KEYS,
    UPSTREAM_BASE_URL,
    UPSTREAMS_FILE,
)
from tornadoproxy.config.upstream_key import upstream_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tornadoproxy.config.settings import Settings
    from tornadoproxy.config.upstreams import Upstream


def contradictions(settings: Settings) -> tuple[str, ...]:
    """Return a fault for each contradiction; opens no socket."""
    return (
        *_of_listening(settings),
        *_of_tls(settings),
        *_of_upstream_key(settings),
    )


def _of_listening(settings: Settings) -> Iterator[str]:
    if settings[HOST].startswith("unix:") and settings[REUSE_PORT]:
        yield "REUSE_PORT needs a port, but HOST is a Unix socket: give each process its own file"


def _of_tls(settings: Settings) -> Iterator[str]:
    certificate, key = settings[TLS_CERT], settings[TLS_KEY]
    if certificate and key:
        reason = _not_loadable(certificate, key)
        if reason:
            yield f"TLS_CERT and TLS_KEY must be a certificate and its key in PEM: {reason}"
    elif certificate:
        yield "TLS_CERT is set without TLS_KEY: set both, or neither to listen without TLS"
    elif key:
        yield "TLS_KEY is set without TLS_CERT: set both, or neither to listen without TLS"


def _not_loadable(certificate: Path, key: Path) -> str | None:
    def no_password() -> str:
        # without this, OpenSSL would prompt on the terminal
        raise ValueError("the key is encrypted: remove its passphrase")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, no_password)
    except ssl.SSLError as error:
        return f"{error.reason or 'they cannot be loaded'}".replace("_", " ").lower()
    except ValueError as error:
        return str(error)
    return None


def _of_upstream_key(settings: Settings) -> Iterator[str]:
    keys = (UPSTREAM_API_KEY, UPSTREAM_API_KEY_FILE, UPSTREAM_API_KEYS)
    given = [each.name for each in keys if settings[each] and settings.variable(each) == each.name]
    base_url = settings[UPSTREAM_BASE_URL]
    if settings[UPSTREAMS_FILE] is not None:
        given += [UPSTREAM_BASE_URL.name] if settings.variable(UPSTREAM_BASE_URL) else []
        for name in given:
            yield f"{name} and UPSTREAMS_FILE are both set: put it into the file, and unset {name}"
    elif len(given) > 1:
        yield f"{' and '.join(given)} are both set: unset one of them"
    elif not given and upstream_key(settings) is None and base_url == UPSTREAM_BASE_URL.default:
        yield (
            f"{base_url} needs a key: set UPSTREAM_API_KEY or ANTHROPIC_API_KEY, "
            "or UPSTREAM_BASE_URL for another upstream, or try `python -m tornadoproxy demo`"
        )


def of_upstream(settings: Settings, upstream: Upstream) -> Iterator[str]:
    """Yield a fault for each contradiction between `settings` and one upstream."""
    own = settings[HOST]
    base_url = upstream.base_url
    name = UPSTREAM_BASE_URL.name
    if settings[UPSTREAMS_FILE] is not None:
        name = f"base_url of the upstream {upstream.name!r}"
    is_local = _on_this_machine(base_url.host)
    is_own = base_url.host == own or (is_local and _on_this_machine(own))
    if is_own and base_url.port == settings[PORT]:
        yield (
            f"{name} is {base_url}, where this proxy itself listens: set it to the API, or set "
            "another PORT"
        )
    elif base_url.scheme == "http" and not (is_local or settings[UPSTREAM_ALLOW_CLEARTEXT]):
        # on a private network or under a container's name, others can listen as well
        yield (
            f"{name} is {base_url}: the key and all messages would leave this machine "
            "unencrypted; use https://, or set UPSTREAM_ALLOW_CLEARTEXT=yes if nobody else uses "
            "that network"
        )


def _on_this_machine(host: str) -> bool:
    """Return whether `host` is loopback or a wildcard address; no name is resolved."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified

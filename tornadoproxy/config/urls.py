"""URLs, origins and hosts, parsed so that they have one interpretation only."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from tornadoproxy.secret import Secret

_DEFAULT_PORTS = {"http": 80, "https": 443}
# compiled when they are used: few settings are set
_HOST_NAME = (
    r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_AUTHORITY = r"(?:\[([^\[\]%]+)\]|([^\[\]:]+))(?::([0-9]{1,5}))?"
_URL_PATH = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*"


class BaseURL(Struct, frozen=True):
    """The base URL of an HTTP service.

    :param scheme: ``http`` or ``https``.
    :param host: a host name in lower case, an IPv4 address, or an IPv6 address without brackets.
    :param port: the scheme's default port if the URL has none.
    :param prefix: the path in front of every request's: empty, or ``/a/b`` without a final slash.
    """

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @property
    def authority(self) -> str:
        """Host and port for the ``Host`` header, without the scheme's default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme and authority: ``https://api.anthropic.com``."""
        return f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        return self.origin + self.prefix


class EgressProxy(Struct, frozen=True):
    """An HTTP proxy to the upstream, used with ``CONNECT``.

    :param host: a host name, an IPv4 address, or an IPv6 address without brackets.
    :param credentials: ``user:password``, decoded, for ``Proxy-Authorization: Basic``; ``None`` if
        the proxy needs none.
    """

    host: str
    port: int
    credentials: Secret | None = None


def host(value: str) -> str:
    """Parse a host name into lower case, an IPv4 address, or an IPv6 address without brackets."""
    try:
        bracketed = re.fullmatch(r"\[(.*:.*)\]", value)
        return _host(bracketed[1] if bracketed else value)
    except ValueError:
        raise ValueError(
            f"must be a host name or an IP address, without scheme and port, not {value!r}"
        ) from None


def base_url(value: str) -> BaseURL:
    """Parse an http or https URL, perhaps with a path prefix: ``https://gateway.example/anthropic``.

    Ambiguous parts are refused: user and password, query, fragment, dot segments, empty segments,
    encoded slashes, spaces, non-ASCII characters.
    """
    if not value.isascii():
        raise ValueError("must be ASCII: percent-encode the path and write the host in punycode")
    if not value.isprintable() or " " in value:
        raise ValueError("must not contain spaces or control characters: percent-encode them")
    scheme, colon, rest = value.partition("://")
    scheme = scheme.lower()
    if not colon or scheme not in _DEFAULT_PORTS:
        raise ValueError("must begin with https:// or http://, such as https://api.anthropic.com")
    if "?" in rest or "#" in rest:
        raise ValueError("must have neither a query nor a fragment: end it before the ? or #")
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        raise ValueError("must contain no user or password: remove the part before the @")
    name, port = _split_authority(authority, _DEFAULT_PORTS[scheme])
    return BaseURL(scheme, name, port, _prefix(slash + path))


def egress_proxy(value: str) -> EgressProxy | None:
    """Parse an http proxy: ``http://user:password@proxy.example:3128``; an empty text is ``None``.

    User and password are percent-encoded. Without a scheme, http is assumed.
    """
    # no message repeats the text, which may contain a password
    if not value:
        return None
    scheme, colon, rest = value.partition("://")
    if not colon:
        scheme, rest = "http", value
    if scheme.lower() != "http":
        raise ValueError("must begin with http://: other kinds of proxies are not supported")
    userinfo, at, authority = rest.removesuffix("/").rpartition("@")
    if re.search(r"[\x00-\x20\x7f/?#]", rest.removesuffix("/")):
        raise ValueError("must be http://host:port, perhaps with user:password@ before the host")
    credentials = unquote_to_bytes(userinfo.encode("utf-8", "surrogateescape"))
    if re.search(rb"[\x00-\x1f\x7f]", credentials):
        raise ValueError("must contain no control characters in its user and password")
    name, port = _split_authority(authority, _DEFAULT_PORTS["http"])
    return EgressProxy(name, port, Secret(credentials) if at else None)


def origin(word: str) -> str:
    """Parse the origin of a web page into the form that a browser sends (RFC 6454 §6.2).

    That is lower case, without the scheme's default port.
    """
    if "*" in word:
        raise ValueError(
            "must name each origin in full, such as https://app.example.com: a * would let "
            "any web page use this proxy"
        )
    if "@" in word:
        raise ValueError("must contain no user or password: remove the part before the @")
    scheme, _, authority = word.partition("://")
    scheme = scheme.lower()
    if scheme not in _DEFAULT_PORTS or re.search("[/?#]", authority):
        raise ValueError(
            "must be origins such as https://app.example.com or http://localhost:3000, with no "
            f"more than scheme, host and port, not {word!r}"
        )
    name, port = _split_authority(authority, _DEFAULT_PORTS[scheme])
    return BaseURL(scheme, name, port).origin


def _host(value: str) -> str:
    if ":" in value:
        return str(ipaddress.IPv6Address(value))
    name = value.lower().removesuffix(".")
    if name.replace(".", "").isdecimal():
        return str(ipaddress.IPv4Address(name))
    if not re.fullmatch(_HOST_NAME, name):
        raise ValueError
    return name


def _split_authority(authority: str, default_port: int) -> tuple[str, int]:
    matched = re.fullmatch(_AUTHORITY, authority)
    if not matched:
        raise ValueError("must name a host, and perhaps a port: https://host:port")
    try:
        name = str(ipaddress.IPv6Address(matched[1])) if matched[1] else _host(matched[2])
    except ValueError:
        raise ValueError("must name a host, and perhaps a port: https://host:port") from None
    port = int(matched[3] or default_port)
    if not 0 < port < 65_536:
        raise ValueError("must have a port from 1 to 65535")
    return name, port


def _prefix(path: str) -> str:
    prefix = path.rstrip("/")
    if not prefix:
        return prefix
    if not re.fullmatch(_URL_PATH, prefix):
        raise ValueError("must contain only characters that are allowed in a URL's path")
    if re.search(r"%(2f|5c)", prefix, re.IGNORECASE):
        raise ValueError("must contain no encoded slash or backslash")
    segments = prefix.split("/")[1:]
    if "" in segments:
        raise ValueError("must contain no double slash")
    if any(re.sub("%2e", ".", each, flags=re.IGNORECASE) in (".", "..") for each in segments):
        raise ValueError("must contain no . or .. as a part of its path")
    if prefix.endswith(("/v1", "/v1/messages")):
        raise ValueError(
            f"must not end in {prefix[prefix.rindex('/v1') :]}: every request's path begins with "
            "/v1 already, remove it"
        )
    return prefix

"""URLs, origins and hosts: from their text to values that have one reading."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from tornadoproxy.secret import Secret

_DEFAULT_PORTS = {"http": 80, "https": 443}
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_HOST_NAME = re.compile(
    r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_AUTHORITY = re.compile(r"(?:\[([^\[\]%]+)\]|([^\[\]:]+))(?::([0-9]{1,5}))?")
_URL_PATH = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")


class BaseURL(Struct, frozen=True):
    """The URL below which an HTTP service lives.

    :param scheme: ``http`` or ``https``.
    :param host: a host name in lower case, an IPv4 address, or an IPv6 address without brackets.
    :param port: always a number; the scheme's own where the URL names none.
    :param prefix: the path before every request's own: empty, or ``/a/b`` without a slash at the
        end.
    """

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @property
    def authority(self) -> str:
        """Host and port for the ``Host`` header: the scheme's own port left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme and authority: ``https://api.anthropic.com``."""
        return f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        return self.origin + self.prefix


class EgressProxy(Struct, frozen=True):
    """An HTTP proxy on the way out, asked by ``CONNECT``.

    :param host: a host name, an IPv4 address, or an IPv6 address without brackets.
    :param port: its port.
    :param credentials: ``user:password``, decoded, as ``Proxy-Authorization: Basic`` wants it
        before base64; ``None`` if the proxy asks for none.
    """

    host: str
    port: int
    credentials: Secret | None = None


def host(value: str) -> str:
    """A host name in lower case, an IPv4 address, or an IPv6 address without brackets."""
    try:
        bracketed = re.fullmatch(r"\[(.*:.*)\]", value)
        return _host(bracketed[1] if bracketed else value)
    except ValueError:
        raise ValueError(
            f"must be a host name or an IP address, without scheme and port, not {value!r}"
        ) from None


def base_url(value: str) -> BaseURL:
    """An http or https URL, perhaps with a path prefix: ``https://gateway.example/anthropic``.

    Whatever would make two readers disagree about where it leads is refused: user and password,
    query, fragment, dot segments, empty segments, encoded slashes, blanks, non-ASCII characters.
    """
    if not value.isascii():
        raise ValueError("must be ASCII: write the path percent-encoded and the host in punycode")
    if re.search(r"[\x00-\x20\x7f]", value):
        raise ValueError("must not hold blanks or control characters: write them percent-encoded")
    scheme, colon, rest = value.partition("://")
    scheme = scheme.lower()
    if not colon or scheme not in _DEFAULT_PORTS:
        raise ValueError("must begin with https:// or http://, as https://api.anthropic.com does")
    if "?" in rest or "#" in rest:
        raise ValueError("must have neither a query nor a fragment: end it before the ? or #")
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        raise ValueError("must hold no user or password: take out what stands before the @")
    name, port = _split_authority(authority, _DEFAULT_PORTS[scheme])
    return BaseURL(scheme, name, port, _prefix(slash + path))


def egress_proxy(value: str) -> EgressProxy | None:
    """An http proxy: ``http://user:password@proxy.example:3128``; an empty text is ``None``.

    User and password are percent-encoded. Without a scheme, http is meant.
    """
    # nothing of the text is repeated: it may hold a password
    if not value:
        return None
    scheme, colon, rest = value.partition("://")
    if not colon:
        scheme, rest = "http", value
    if scheme.lower() != "http":
        raise ValueError("must begin with http://: no other kind of proxy is known")
    userinfo, at, authority = rest.removesuffix("/").rpartition("@")
    if re.search(r"[\x00-\x20\x7f/?#]", rest.removesuffix("/")):
        raise ValueError("must be http://host:port, perhaps with user:password@ before the host")
    credentials = unquote_to_bytes(userinfo.encode("utf-8", "surrogateescape"))
    if _CONTROLS.search(credentials.decode("latin-1")):
        raise ValueError("must hold no control characters in its user and password")
    name, port = _split_authority(authority, _DEFAULT_PORTS["http"])
    return EgressProxy(name, port, Secret(credentials) if at else None)


def origin(word: str) -> str:
    """The origin of a web page as a browser sends it in ``Origin`` (RFC 6454 §6.2).

    It is in lower case, without the scheme's own port.
    """
    if "*" in word:
        raise ValueError(
            "must name each origin in full, such as https://app.example.com: with a * in it, "
            "pages of strangers could use this proxy, too"
        )
    if "@" in word:
        raise ValueError("must hold no user or password: take out what stands before the @")
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
    if re.fullmatch(r"[0-9.]+", name):
        return str(ipaddress.IPv4Address(name))
    if not _HOST_NAME.fullmatch(name):
        raise ValueError
    return name


def _split_authority(authority: str, default_port: int) -> tuple[str, int]:
    matched = _AUTHORITY.fullmatch(authority)
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
    if not _URL_PATH.fullmatch(prefix):
        raise ValueError("must hold no character that does not belong in a URL's path")
    if re.search(r"%(2f|5c)", prefix, re.IGNORECASE):
        raise ValueError("must hold no encoded slash or backslash")
    segments = prefix.split("/")[1:]
    if "" in segments:
        raise ValueError("must hold no double slash")
    if any(re.sub("%2e", ".", each, flags=re.IGNORECASE) in (".", "..") for each in segments):
        raise ValueError("must hold no . or .. as a part of its path")
    if prefix.endswith(("/v1", "/v1/messages")):
        raise ValueError(
            f"must not end in {prefix[prefix.rindex('/v1') :]}: every request's path begins with "
            "/v1 already, leave it out"
        )
    return prefix

"""Parsers of settings: a function, or a function that returns one, for each kind of value.

A parser gets the text of a setting, stripped, and returns the value. It raises `ValueError` with
the end of a sentence that begins with the variable's name and says what to do: ``must be a whole
number from 0 to 65535, not 'x'``. Parsers of secrets, and of values that may contain one, never
repeat the text; for a secret setting, no message with a quotation is shown.

Plugins use them for their settings::

    from tornadoproxy import Setting, parsers

    TEAM = Setting("TEAM", parsers.text, default="", help="team that is named in the log")

A parser gets an empty text only if its setting has ``blank=True``.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import ssl
import stat
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from tornadoproxy.config.urls import (
    BaseURL,
    EgressProxy,
    base_url,
    egress_proxy,
    host,
    origin,
)
from tornadoproxy.secret import Secret, SecretURL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tornadoproxy.config.toml_file import TomlFile
    from tornadoproxy.protocol.client_address import IPNetwork

N = TypeVar("N", int, float)

__all__ = [
    "BaseURL",
    "EgressProxy",
    "base_url",
    "boolean",
    "certificates_file",
    "choice",
    "database",
    "date",
    "egress_proxy",
    "host",
    "hosts",
    "integer",
    "listen_address",
    "networks",
    "number",
    "origins",
    "pairs",
    "path",
    "readable_file",
    "redis_url",
    "seconds",
    "secret",
    "secret_file",
    "secrets",
    "secrets_file",
    "size",
    "text",
    "toml_file",
    "words",
]

A_YEAR = 31_536_000.0
MAX_SECRET_FILE_SIZE = 65_536

_MAX_SOCKET_PATH = 107  # unix(7): sun_path, with the NUL behind it
# compiled when they are used: few settings are set
_INTEGER = r"[+-]?[0-9]{1,18}"
_DECIMAL = r"[+-]?([0-9]{1,18}(\.[0-9]*)?|\.[0-9]+)"
_SIZE = r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(?:([kmgt]?)(?:i?b)?)"
_CONTROLS = r"[\x00-\x1f\x7f]"
_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_MULTIPLES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
BOOLEANS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}
"""What the words for yes and no mean, in lower case."""


def text(value: str) -> str:
    """Parse one line of text."""
    if re.search(_CONTROLS, value):
        raise ValueError("must be one line, without control characters")
    return value


def path(value: str) -> Path:
    """Parse the path of a file that need not exist."""
    return _path(text(value))


def database(value: str) -> Path | SecretURL:
    """Parse the path of an SQLite file, which need not exist, or a ``postgresql://`` URL."""
    scheme, colon, _ = text(value).partition("://")
    if not colon:
        return _path(value)
    if scheme not in ("postgresql", "postgres"):
        raise ValueError("must be the path of an SQLite file, or a URL that begins postgresql://")
    return SecretURL(value)


def redis_url(value: str) -> SecretURL:
    """Parse the URL of a Redis or Valkey server, or of a cluster of them."""
    kinds = ("redis", "redis+sentinel", "redis+cluster")
    schemes = (*kinds, *(each.replace("redis", "rediss") for each in kinds), "unix")
    if text(value).partition("://")[0] not in schemes or "://" not in value:
        raise ValueError(f"must begin with {', '.join(f'{each}://' for each in schemes)}")
    return SecretURL(value)


def date(value: str) -> str:
    """Parse the date of an API version: ``2023-06-01``."""
    if not re.fullmatch(_DATE, value):
        raise ValueError(f"must be a date such as 2023-06-01, not {value!r}")
    return value


def integer(minimum: int | None = None, maximum: int | None = None) -> Callable[[str], int]:
    """Return a parser of whole numbers from `minimum` to `maximum`, both included."""
    wanted = f"must be a whole number{_limits(minimum, maximum)}"
    return _numeric(int, _INTEGER, wanted, minimum, maximum)


def number(minimum: float | None = None, maximum: float | None = None) -> Callable[[str], float]:
    """Return a parser of numbers from `minimum` to `maximum`, both included; never infinite."""
    wanted = f"must be a number{_limits(minimum, maximum)}"
    return _numeric(float, _DECIMAL, wanted, minimum, maximum)


def seconds(minimum: float = 0.0, maximum: float = A_YEAR) -> Callable[[str], float]:
    """Return a parser of seconds, such as ``10`` or ``0.5``; never infinite, never negative."""
    wanted = f"must be a number of seconds{_limits(minimum, maximum)}, without a unit"
    return _numeric(float, _DECIMAL, wanted, minimum, maximum)


def size(value: str) -> int:
    """Parse a number of bytes, at least one: ``1048576``, ``1024kB``, ``32 MiB``, ``1.5GB``.

    Multiples are binary, with or without an ``i``: 1 kB is 1024 bytes.
    """
    matched = re.fullmatch(_SIZE, value, re.IGNORECASE)
    number = float(matched[1]) * _MULTIPLES[matched[2].lower()] if matched else 0
    if number < 1:
        raise ValueError(f"must be a number of bytes such as 1048576, 32MB or 1.5GB, not {value!r}")
    return int(number)


def boolean(value: str) -> bool:
    """Parse ``1``, ``true``, ``yes``, ``on``, or ``0``, ``false``, ``no``, ``off``, in any case."""
    try:
        return BOOLEANS[value.lower()]
    except KeyError:
        raise ValueError(f"must be yes or no, not {value!r}") from None


def choice(*options: str) -> Callable[[str], str]:
    """Return a parser of one of `options`, in lower case; the text may be in any case."""

    def parse(value: str) -> str:
        if value.lower() not in options:
            raise ValueError(f"must be one of {', '.join(options)}, not {value!r}")
        return value.lower()

    return parse


def words(value: str) -> tuple[str, ...]:
    """Parse words separated by commas or spaces."""
    return tuple(text(value.replace(",", " ").replace("\t", " ")).split())


def pairs(value: str) -> Mapping[str, str]:
    """Parse ``name=value`` pairs separated by spaces or commas into a read-only mapping."""
    found: dict[str, str] = {}
    for word in words(value):
        name, equals, meaning = word.partition("=")
        if not name or not equals or not meaning:
            raise ValueError(f"must be pairs such as name=value, separated by spaces, not {word!r}")
        if name in found:
            raise ValueError(f"must have one value for {name}, not several")
        found[name] = meaning
    return MappingProxyType(found)


def secret(value: str) -> Secret:
    """Parse one credential, without spaces or control characters, as a header requires."""
    found = secrets(value)
    if len(found) > 1:
        raise ValueError("must be one value, without spaces inside it")
    return found[0]


def secrets(value: str) -> tuple[Secret, ...]:
    """Parse one or more credentials separated by spaces: several are valid during a rotation.

    A comma is part of a credential.
    """
    return _secrets(value.encode("utf-8", "surrogateescape"), "must")


def secret_file(value: str) -> Secret:
    """Read one credential from the file at a path, stripped of spaces and line ends."""
    found = secrets_file(value)
    if len(found) > 1:
        raise ValueError("must name a file that holds one value, without spaces inside it")
    return found[0]


def secrets_file(value: str) -> tuple[Secret, ...]:
    """Read one or more credentials, separated by spaces or line ends, from the file at a path."""
    # the path is never shown: it may be the credential itself, by mistake
    try:
        with _open(value) as file:
            content = file.read(MAX_SECRET_FILE_SIZE + 1)
    except (OSError, ValueError) as error:
        raise ValueError(f"must name a readable file: {_reason(error)}") from None
    if len(content) > MAX_SECRET_FILE_SIZE:
        raise ValueError("must name a file that holds a secret, but the file is over 64 kB")
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise ValueError("names an empty file: write the secret into it")
    return _secrets(content, "must name a text file: its secrets must")


def readable_file(value: str) -> Path:
    """Parse the path of a file that this process can read."""
    try:
        _open(value).close()
    except (OSError, ValueError) as error:
        raise ValueError(f"must name a readable file, not {value!r}: {_reason(error)}") from None
    return _path(value)


def certificates_file(value: str) -> Path:
    """Parse the path of a PEM file with at least one certificate."""
    path = readable_file(value)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(f"must name a PEM file with certificates, not {value!r}") from None
    return path


def toml_file(value: str) -> TomlFile:
    """Read the TOML file at a path."""
    from tornadoproxy.config.toml_file import read  # few settings name such a file

    return read(readable_file(value))


def networks(value: str) -> tuple[IPNetwork, ...]:
    """Parse IP addresses or networks, separated by commas or spaces: ``10.0.0.0/8, ::1``."""
    return tuple(_network(word) for word in words(value))


def listen_address(value: str) -> str:
    """Parse a host as `host` does, or ``unix:/path`` for the file of a Unix socket."""
    if not value.startswith("unix:"):
        return host(value)
    path = text(value).removeprefix("unix:")
    if not path.startswith("/") or len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise ValueError(
            f"must be unix: and an absolute path of at most {_MAX_SOCKET_PATH} bytes, not {value!r}"
        )
    return value


def hosts(value: str) -> tuple[str, ...]:
    """Parse host names or IP addresses without ports, separated by commas or spaces."""
    return tuple(host(word) for word in words(value))


def origins(value: str) -> tuple[str, ...]:
    """Parse origins of web pages, separated by commas or spaces: ``https://app.example.com``."""
    return tuple(origin(word) for word in words(value))


NEVER_QUOTE = frozenset({secret, secrets, secret_file, secrets_file, base_url, egress_proxy})
"""The parsers whose messages contain no part of the text."""


def _limits(minimum: float | None, maximum: float | None) -> str:
    if minimum is not None and maximum is not None:
        return f" from {minimum:.15g} to {maximum:.15g}"
    if minimum is not None:
        return f" of at least {minimum:.15g}"
    return f" of at most {maximum:.15g}" if maximum is not None else ""


def _numeric(
    convert: Callable[[str], N],
    pattern: str,
    wanted: str,
    minimum: float | None,
    maximum: float | None,
) -> Callable[[str], N]:
    def parse(value: str) -> N:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{wanted}, not {value!r}")
        number = convert(value)
        if not _within(number, minimum, maximum):
            raise ValueError(f"{wanted}, not {value!r}")
        return number

    return parse


def _within(number: float, minimum: float | None, maximum: float | None) -> bool:
    return (minimum is None or number >= minimum) and (maximum is None or number <= maximum)


def _secrets(content: bytes, must: str) -> tuple[Secret, ...]:
    found = content.split()
    if any(byte < 0x20 or byte == 0x7F for word in found for byte in word):
        raise ValueError(f"{must} contain no control characters")
    if any(map(_is_placeholder, found)):
        raise ValueError(
            "is still the documentation's placeholder: replace it with a secret of your own"
        )
    return tuple(Secret(word) for word in found)


def _is_placeholder(word: bytes) -> bool:
    """Return whether `word` is a placeholder of this project's documentation.

    It may follow a name and ``=``, or the prefix ``sk-ant-``.
    """
    name, equals, value = word.lower().partition(b"=")
    text = value if equals and name.isalpha() else word.lower().removeprefix(b"sk-ant-")
    if text in (b"...", "…".encode()):
        return True
    begins_so = text.startswith((b"your-", b"changeme", b"change-me"))
    return begins_so and text.replace(b"-", b"").isalpha()


def _path(value: str) -> Path:
    from pathlib import Path  # most starts name no file

    return Path(value)


def _open(value: str) -> BinaryIO:
    """Open a file, but no pipe, which blocks and cannot be reloaded on SIGHUP.

    :raises OSError: it cannot be opened.
    :raises ValueError: `value` is not a path.
    """
    mode = os.stat(value).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "Not a regular file")
    return open(value, "rb")


def _reason(error: OSError | ValueError) -> str:
    """Return why a file cannot be opened, without its path."""
    return (error.strerror if isinstance(error, OSError) else None) or "it is not a path"


def _network(word: str) -> IPNetwork:
    try:
        network = ipaddress.ip_network(word)
    except ValueError:
        pass
    else:
        # client addresses that are IPv4-mapped are compared as IPv4
        mapped = network.version == 6 and network.network_address.ipv4_mapped
        if mapped and network.prefixlen >= 96:
            return ipaddress.ip_network((mapped, network.prefixlen - 96))
        return network
    try:
        meant = ipaddress.ip_network(word, strict=False)
    except ValueError:
        raise ValueError(
            f"must be IP addresses or networks such as 10.0.0.0/8, not {word!r}"
        ) from None
    raise ValueError(f"must be networks without host bits: write {meant}, not {word!r}")

"""The upstream's names of tools: one name for a tool and its namespace."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tornadoproxy.openai.reading import MAX_TOOL_NAME

if TYPE_CHECKING:
    from tornadoproxy.openai.responses.translation import Origin

_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_-]")
_DIGITS = 12  # of a hash: enough to tell a request's tools apart


def upstream_name(name: str, namespace: str | None = None) -> str:
    """Return the upstream's name for a tool, the same in every request.

    A name that the upstream refuses, as it is too long or has other characters, gets a hash.
    """
    exact = f"{namespace}__{name}" if namespace else name
    readable = _NOT_IN_A_NAME.sub("_", exact)
    if readable == exact and 0 < len(exact) <= MAX_TOOL_NAME:
        return exact
    return _hashed(readable, exact)


def name_among(origin: Origin, offered: Mapping[str, Origin]) -> str:
    """Return the upstream's name of a client's tool beside those that are `offered`.

    A tool whose `upstream_name` an offered tool has gets a hash: a function ``a__b``, for example,
    beside the function ``b`` of the namespace ``a``.
    """
    name = upstream_name(origin.name, origin.namespace)
    if offered.get(name, origin) == origin:
        return name
    return _hashed(name, f"{origin.kind.name} {origin.namespace} {origin.name}")


def _hashed(readable: str, exact: str) -> str:
    digest = hashlib.sha256(exact.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    return f"{readable[: MAX_TOOL_NAME - _DIGITS - 1]}_{digest}"

"""Which request targets may go upstream. Pure.

A target goes upstream as it came: nothing is decoded, joined or normalised. So whatever another
server could take for a way out of ``/v1/`` is refused here, before anything is sent.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from tornadoproxy.errors import InvalidRequest

RELAY = "/v1/"
PROBES = ("/", "/api/hello", "/health", "/ready")

# some clients add /v1 to a base URL that ends in it, others leave it out where it belongs
CHAT = re.compile("/openai(?:/v1){0,2}/chat/completions")
MODELS = re.compile("/openai(?:/v1){0,2}/models(?:/.+)?")

SAMPLES = (
    *PROBES,
    *(
        f"/v1/{path}"
        for path in ("messages", "messages/count_tokens", "messages/batches", "models")
    ),
    *(f"/v1/{path}" for path in ("files", "complete", "organizations/me", "x", "x/y")),
    *(f"/openai/v1/{path}" for path in ("chat/completions", "models", "models/x")),
)
"""Paths of every kind, by which a pattern that takes some of them is found out."""

_MESSAGES = "/v1/messages"

# what some servers leave out when they look for a path's route: a segment's parameters, and blanks
# and control characters (a route that ends in "$" matches before the end of a line)
_IGNORED = re.compile(r"/?;[^/]*|[\x00-\x20\x7f-\xa0]")


def is_served(path: str) -> bool:
    """Whether the proxy serves `path`, which is as it came, if no plugin does."""
    return (
        path.startswith(RELAY)
        or path in PROBES
        or CHAT.fullmatch(path) is not None
        or MODELS.fullmatch(path) is not None
    )


def check_target(target: str) -> None:
    """Refuse a request target that is ambiguous or would leave its path prefix.

    :param target: the request target as it was on the wire (RFC 9112 §3.2).
    :raises InvalidRequest: it is not in origin-form, or its path has a dot segment, an encoded
        slash, backslash or dot segment, a backslash, a double slash, or a fragment.
    """
    path = target.partition("?")[0]
    if not path.startswith("/"):
        raise InvalidRequest("Send the path alone as the request target, without scheme and host.")
    if "//" in path:
        raise InvalidRequest("The request path has a double slash: send it with single ones.")
    if "\\" in path or "#" in target:
        raise InvalidRequest(
            "The request path has a backslash or a '#', which no path of this API has."
        )
    if "%" in path or "/." in path:
        _check_segments(path)


def asks_a_model(method: str, path: str) -> bool:
    """Whether a request below ``/v1/`` is one for a message, to any server that may judge it.

    :param path: without its query, not decoded.
    """
    if method != "POST":
        return False
    return path == _MESSAGES or _IGNORED.sub("", unquote(path)).rstrip("/").lower() == _MESSAGES


def _check_segments(path: str) -> None:
    plain = path.lower().replace("%2e", ".").replace("%3b", ";")
    if "%2f" in plain or "%5c" in plain:
        raise InvalidRequest("The request path has an encoded slash or backslash.")
    # some servers cut a segment's parameters off before they resolve it: "..;x" is ".." to them
    if any(segment.partition(";")[0] in {".", ".."} for segment in plain.split("/")):
        raise InvalidRequest("The request path has a '.' or '..' segment: send it resolved.")

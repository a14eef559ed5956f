"""Request targets: which are served here, which may go upstream, and which ask a model. Pure.

A target goes upstream unchanged: nothing is decoded, joined or normalized. So every target that
another server could read as a path outside ``/v1/`` is refused before anything is sent.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from tornadoproxy.errors import InvalidRequest

RELAY = "/v1/"
MODELS_PATH = "/v1/models"
PROBES = frozenset({"/", "/api/hello", "/health", "/ready"})

# some clients add /v1 to a base URL that already ends in it, others leave it out
_OPENAI = ("/openai", "/openai/v1", "/openai/v1/v1")
CHAT = frozenset(f"{prefix}/chat/completions" for prefix in _OPENAI)
INPUT_TOKENS = frozenset(f"{prefix}/responses/input_tokens" for prefix in _OPENAI)

OF_RESPONSE = ("cancel", "input_items")
"""What can be requested of one response, below its path."""

SAMPLES = (
    *PROBES,
    *(
        f"/v1/{path}"
        for path in ("messages", "messages/count_tokens", "messages/batches", "models")
    ),
    *(f"/v1/{path}" for path in ("files", "complete", "organizations/me", "x", "x/y")),
    *(f"/openai/v1/{path}" for path in ("chat/completions", "models", "models/x", "responses")),
    *(f"/openai/v1/responses/{path}" for path in ("compact", "input_tokens", "x", "x/input_items")),
)
"""Paths of every kind, which show whether a plugin's pattern matches paths of the proxy."""

_MESSAGES = "/v1/messages"

# Characters that some servers ignore in routing: the parameters of a segment, and blanks and
# control characters (a regular expression that ends in "$" also matches before a line feed).
# Compiled when it is used: few paths need it.
_IGNORED = r"/?;[^/]*|[\x00-\x20\x7f-\xa0]"


def is_served(path: str) -> bool:
    """Whether the proxy itself serves `path`, which is not decoded."""
    return (
        path.startswith(RELAY)
        or path in PROBES
        or path in CHAT
        or is_of_models(path)
        or of_responses(path) is not None
    )


def is_of_models(path: str) -> bool:
    """Whether `path` is that of OpenAI's list of models, or of one of them."""
    prefix, models, name = path.partition("/models")
    return prefix in _OPENAI and models != "" and (not name or (name[0] == "/" and name != "/"))


def of_responses(path: str) -> tuple[str, ...] | None:
    """Return the segments of `path` below OpenAI's ``/responses``; ``None`` if it is another path.

    There are none of ``/responses`` itself, one of a response, and two of what a response has.
    """
    prefix, responses, below = path.partition("/responses")
    if prefix not in _OPENAI or not responses:
        return None
    first, *segments = below.split("/")
    if first or "" in segments or len(segments) > 2:
        return None
    return None if segments[1:] and segments[1] not in OF_RESPONSE else tuple(segments)


def check_target(target: str) -> None:
    """Refuse a request target that is ambiguous or would leave its path prefix.

    :param target: the request target as received (RFC 9112 §3.2).
    :raises InvalidRequest: it is not in origin-form or has a fragment, or its path has a dot
        segment, a backslash, a double slash, or an encoded slash, backslash or dot segment.
    """
    path = target.partition("?")[0]
    if not path.startswith("/"):
        raise InvalidRequest("Send the path alone as the request target, without scheme and host.")
    if "//" in path:
        raise InvalidRequest("The request path has a double slash: send it with single ones.")
    if "\\" in path or "#" in target:
        raise InvalidRequest(
            "The request path has a backslash or a '#': no path of this API has one, so remove it."
        )
    if "%" in path or "/." in path:
        _check_segments(path)


def asks_a_model(method: str, path: str) -> bool:
    """Whether any server could route a request below ``/v1/`` to the messages API.

    :param path: the path without its query, not decoded.
    """
    if method != "POST":
        return False
    return path == _MESSAGES or re.sub(_IGNORED, "", unquote(path)).rstrip("/").lower() == _MESSAGES


def _check_segments(path: str) -> None:
    plain = path.lower().replace("%2e", ".").replace("%3b", ";")
    if "%2f" in plain or "%5c" in plain:
        raise InvalidRequest("The request path has an encoded slash or backslash: remove it.")
    # some servers remove a segment's parameters before they resolve it: they read "..;x" as ".."
    if any(segment.partition(";")[0] in {".", ".."} for segment in plain.split("/")):
        raise InvalidRequest("The request path has a '.' or '..' segment: send it resolved.")

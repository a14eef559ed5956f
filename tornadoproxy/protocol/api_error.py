"""Reads an error of the Anthropic API.

Source: https://docs.anthropic.com/en/api/errors
"""

from __future__ import annotations

import json


def read_error(body: bytes) -> tuple[str | None, str | None]:
    """Return the type and the message of the error that `body` is; ``None`` for what it lacks."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None, None
    return error_of(document)


def error_of(document: object) -> tuple[str | None, str | None]:
    """Return the same of a body, or of an event of a stream, that is decoded already."""
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        return None, None
    kind, message = error.get("type"), error.get("message")
    return (
        kind if isinstance(kind, str) else None,
        # half of a surrogate pair, which JSON can express, has no place in UTF-8
        message.encode(errors="replace").decode() if isinstance(message, str) else None,
    )

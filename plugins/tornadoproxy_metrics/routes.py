"""Tells the few kinds of routes apart, so that a client cannot make a time series for each path."""

from __future__ import annotations

_OPENAI = ("/openai", "/openai/v1", "/openai/v1/v1")  # some clients leave /v1 out, or double it

_EXACT = {
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "count_tokens",
    "/v1/messages/batches": "batches",
    "/v1/files": "files",
    "/v1/models": "models",
    **{f"{base}/chat/completions": "chat_completions" for base in _OPENAI},
    **{f"{base}/models": "models" for base in _OPENAI},
}
_BELOW = {
    "/v1/messages/batches/": "batches",
    "/v1/files/": "files",
    "/v1/models/": "models",
    **{f"{base}/models/": "models" for base in _OPENAI},
}


def route_class(path: str) -> str:
    """The kind of route that a request's path is; ``other`` if it is none of those known."""
    known = _EXACT.get(path)
    if known is not None:
        return known
    for prefix, name in _BELOW.items():
        if path.startswith(prefix):
            return name
    return "other"

"""The kinds of routes, so that a client cannot create a time series for each path."""

from __future__ import annotations

_OPENAI = ("/openai", "/openai/v1", "/openai/v1/v1")  # some clients omit or double /v1

_EXACT = {
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "count_tokens",
    "/v1/messages/batches": "batches",
    "/v1/files": "files",
    "/v1/models": "models",
    **{f"{base}/chat/completions": "chat_completions" for base in _OPENAI},
    **{f"{base}/models": "models" for base in _OPENAI},
    **{f"{base}/responses": "responses" for base in _OPENAI},
    **{f"{base}/responses/compact": "responses" for base in _OPENAI},
    **{f"{base}/responses/input_tokens": "count_tokens" for base in _OPENAI},
}
_BELOW = {
    "/v1/messages/batches/": "batches",
    "/v1/files/": "files",
    "/v1/models/": "models",
    **{f"{base}/models/": "models" for base in _OPENAI},
    **{f"{base}/responses/": "stored_responses" for base in _OPENAI},
}


def route_class(path: str) -> str:
    """Return the kind of route of a path; ``other`` for all further paths."""
    known = _EXACT.get(path)
    if known is not None:
        return known
    for prefix, name in _BELOW.items():
        if path.startswith(prefix):
            return name
    return "other"

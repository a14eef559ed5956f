"""The paths that the proxy itself serves. Pure."""

from __future__ import annotations

import re

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


def is_served(path: str) -> bool:
    """Whether the proxy serves `path`, which is as it came, if no plugin does."""
    return (
        path.startswith(RELAY)
        or path in PROBES
        or CHAT.fullmatch(path) is not None
        or MODELS.fullmatch(path) is not None
    )

"""Whether a key that is for some models only may make a request.

Which models a request for a message or a chat completion can spend on is known. Of every other
request only the head is, and its body may name models: those of a batch, of ``/v1/complete``, of an
endpoint that is yet to come, or of a path that the upstream reads as ``/v1/messages`` although it
is spelt in another way. So what is not known to run no model is refused.
"""

from __future__ import annotations

import re

from tornadoproxy import UNKNOWN_MODEL, Denied, IncomingRequest, ModelRequest

MAX_NAME = 100
"""How much of a model's name is told, in characters."""

# the names of skills have no other characters
_SKILLS = re.compile(r"/v1/skills(/[A-Za-z0-9_-]+/versions)?").fullmatch


def check(
    allowed: re.Pattern[str],
    patterns: tuple[str, ...],
    request: IncomingRequest,
    model_request: ModelRequest | None,
) -> None:
    """Refuse what a key must not do.

    :param allowed: matches the models that it may use.
    :param patterns: the same, to be told.
    :raises Denied: 403, which says what it may.
    """
    if model_request is not None:
        if model_request.model is None:
            raise Denied(f"This key is for {_told(patterns)}, and the request names no model.")
        for model in model_request.models:
            if not allowed.match(model):
                raise Denied(f"This key is for {_told(patterns)}, and the request {_asks(model)}.")
    elif not request.costs_nothing and not _SKILLS(request.path):
        raise Denied(
            f"This key is for {_told(patterns)}: it cannot be used here, since the models that the "
            "request's body may name are not looked for. This includes batches: send messages one "
            "by one."
        )


def _asks(model: str) -> str:
    if model == UNKNOWN_MODEL:
        return "may use a model that it does not name: remove thread, and list models in fallbacks"
    shown = model if model.isprintable() else model.encode("unicode_escape").decode("ascii")
    return f"asks for {shown[:MAX_NAME]}"


def _told(patterns: tuple[str, ...]) -> str:
    kind = "model" if len(patterns) == 1 else "models"
    return f"the {kind} {', '.join(patterns)}"

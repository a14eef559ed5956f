"""The check of a request with a key that is restricted to some models.

The models of a request for a message are known, and of OpenAI's chat completions and responses. Of
every other request only the headers are known, and its body may name models: a batch,
``/v1/complete``, a future endpoint, or another spelling of ``/v1/messages`` that the upstream
accepts. Therefore a request is rejected unless it is known to run no model.
"""

from __future__ import annotations

import re

from tornadoproxy import UNKNOWN_MODEL, Denied, IncomingRequest, ModelRequest

MAX_NAME = 100
"""The longest name of a model in an error, in characters."""

# creating a skill runs no model; the ids of skills have no other characters
_SKILLS = re.compile(r"/v1/skills(/[A-Za-z0-9_-]+/versions)?").fullmatch


def check(
    allowed: re.Pattern[str],
    patterns: tuple[str, ...],
    request: IncomingRequest,
    model_request: ModelRequest | None,
) -> None:
    """Reject a request that may use other models than the key's.

    :param allowed: a pattern of the key's models.
    :param patterns: the same for the error.
    :raises Denied: 403, which names the key's models.
    """
    if model_request is not None:
        if model_request.model is None:
            raise Denied(f"This key is for {_listed(patterns)}, and the request names no model.")
        for model in model_request.models:
            if not allowed.match(model):
                raise Denied(
                    f"This key is for {_listed(patterns)}, and the request {_asks(model)}."
                )
    elif not request.costs_nothing and not _SKILLS(request.path):
        raise Denied(
            f"This key is for {_listed(patterns)}: it cannot be used here, because models in the "
            "request's body are not checked. Instead of a batch, send messages one by one."
        )


def _asks(model: str) -> str:
    if model == UNKNOWN_MODEL:
        return "may use a model that it does not name: remove thread, and list models in fallbacks"
    shown = model if model.isprintable() else model.encode("unicode_escape").decode("ascii")
    return f"asks for {shown[:MAX_NAME]}"


def _listed(patterns: tuple[str, ...]) -> str:
    kind = "model" if len(patterns) == 1 else "models"
    return f"the {kind} {', '.join(patterns)}"

"""Whether a key that is for some models only may make a request.

Which model a request for a message or a chat completion asks for is known. Of every other request
only the head is, and its body may name models: those of a batch, of ``/v1/complete``, of an
endpoint that is yet to come, or of a path that the upstream reads as ``/v1/messages`` although it
is spelt in another way. So what is not known to run no model is refused.
"""

from __future__ import annotations

import re

from tornadoproxy import Denied, IncomingRequest, ModelRequest

_RUNS_NO_MODEL = ("GET", "HEAD", "DELETE", "OPTIONS")
# counting tokens runs no model; the names of files, batches and skills have no other characters
_HARMLESS = re.compile(
    r"/v1/messages/count_tokens"
    r"|/v1/messages/batches/[A-Za-z0-9_-]+/cancel"
    r"|/v1/files"
    r"|/v1/skills(/[A-Za-z0-9_-]+/versions)?"
).fullmatch


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
        model = model_request.model
        if model is None or not allowed.match(model):
            asked = "no model" if model is None else "another one"
            raise Denied(f"This key is for {_told(patterns)}, and the request names {asked}.")
    elif request.method not in _RUNS_NO_MODEL and not _HARMLESS(request.path):
        raise Denied(
            f"This key is for {_told(patterns)}: it cannot be used here, since the models that the "
            "request's body may name are not looked for. This includes batches: send messages one "
            "by one."
        )


def _told(patterns: tuple[str, ...]) -> str:
    kind = "model" if len(patterns) == 1 else "models"
    return f"the {kind} {', '.join(patterns)}"

"""What a request asks of the upstreams: which of them can serve it, and when it may move on.

A request for a model can be served by any upstream that has the model. Files, batches and whatever
else an upstream keeps are only where they were made; so a request that names one goes there.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tornadoproxy.upstream.pool import UpstreamPool
    from tornadoproxy.upstream.target import Target

_COUNT = "/v1/messages/count_tokens"
_ANYWHERE = re.compile(rf"/v1/messages/?|{_COUNT}/?|/v1/complete/?|/v1/models(/.*)?").fullmatch

# ids as the API makes them: file_011C…, msgbatch_013Z…, skill_01…, container_01…
_ID = re.compile(r"[a-z]+_[A-Za-z0-9]{8,64}")
_ID_IN_BODY = re.compile(
    rb'"(?:file_id|container|id)"\s*:\s*"((?:file|container)_[A-Za-z0-9]{8,64})"'
)

_FINDS = frozenset({"GET", "HEAD", "DELETE"})


class Moves(Enum):
    """When a request moves on to another upstream."""

    NEVER = auto()
    """What it names may be on this one alone, or its body is streamed."""
    TO_FIND = auto()
    """After 404: it names something that one of the upstreams has made."""
    ON_FAILURE = auto()
    """Whenever the upstream cannot serve it."""


def names_a_model(method: str, path: str) -> bool:
    """Whether the body of a request below ``/v1/`` names a model, which decides where it goes."""
    return method == "POST" and path.rstrip("/") in ("/v1/messages", _COUNT)


def keeps(path: str) -> bool:
    """Whether what the path leads to is kept by one upstream."""
    return _ANYWHERE(path) is None


def targets_of(
    pool: UpstreamPool, method: str, path: str, model: str | None, session: str, body: bytes | None
) -> tuple[Sequence[Target], Moves]:
    """Return the upstreams that may be asked, in order, and when the request moves on.

    :param session: what is common to the requests that should stay on one upstream.
    :param body: ``None`` if it is streamed.
    :raises NotFound: no upstream serves the path or the model.
    """
    serving = pool.serving(method, path, model)
    if keeps(path):
        holder = pool.holder(_ID.findall(path))
        if holder is not None and holder in serving:
            return [holder], Moves.NEVER
        # everybody's files are on one upstream as long as it can be used, so that lists are whole
        ordered = pool.in_order(serving, "")
        finds = method in _FINDS and _ID.search(path) is not None
        return ordered, Moves.TO_FIND if finds else Moves.NEVER
    names = _ID_IN_BODY.findall(body) if body else ()
    if names:
        holder = pool.holder(name.decode() for name in names)
        if holder is not None and holder in serving:
            return [holder], Moves.NEVER
    return pool.in_order(serving, session), Moves.NEVER if body is None else Moves.ON_FAILURE


def made_id(body: bytes) -> str | None:
    """Return the id of what a response says was made."""
    found = re.search(rb'"id"\s*:\s*"([a-z]+_[A-Za-z0-9]{8,64})"', body)
    return None if found is None else found[1].decode()

"""The options of a translation, for what a request leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.protocol.body_fields import mapped

MAX_IGNORED = 32
"""The most names of dropped fields that are listed, since they go out in a header."""


@dataclass(frozen=True)
class Options:
    """How to translate where a request leaves it open.

    :param default_max_tokens: the limit if the client names none, in place of the model's own
        maximum, which may be lower.
    :param models: the upstream's name for each name that clients send; ``*`` stands for any other
        name that does not begin with ``claude``.
    :param strict: refuse a request that has fields to drop.
    :param drop_sampling: never send temperature, top_p or top_k.
    :param prefill: let the model continue an assistant message that stands last. Models since
        Claude 4.6 refuse that, and all models do together with thinking or structured output.
    :param cache: when to cache a request that marks nothing to be cached: ``auto`` (if another turn
        is likely), ``always`` or ``off``.
    """

    default_max_tokens: int | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False
    drop_sampling: bool = False
    prefill: bool = False
    cache: str = "auto"

    def model(self, name: str) -> str:
        """Return the upstream's name for the model that a client calls `name`."""
        return mapped(name, self.models)

    def listed(self, ignored: list[str]) -> tuple[str, ...]:
        """Return each dropped name once, `MAX_IGNORED` at most.

        :raises InvalidRequest: a name was dropped, and `strict` is set.
        """
        if not ignored:
            return ()
        names = tuple(dict.fromkeys(ignored))
        if self.strict:
            raise InvalidRequest(
                f"'{names[0]}' is not supported here, and CHAT_STRICT is on: leave it out.",
                param=names[0],
            )
        return names if len(names) <= MAX_IGNORED else (*names[:MAX_IGNORED], "more")

"""A guard: texts that must not leave are refused or masked before anything goes upstream.

It looks at what is about to be sent, so it sees messages of every API in one form. It fails closed:
what it cannot read it refuses.
"""

from __future__ import annotations

import json
import re
from typing import Any

from msgspec.structs import replace

from tornadoproxy import (
    INACTIVE,
    Denied,
    Inactive,
    InvalidRequest,
    OutgoingRequest,
    Setting,
    Settings,
    hookimpl,
    parsers,
)

MASK = "[masked]"

Patterns = tuple[re.Pattern[str], ...]


def _patterns(value: str) -> Patterns:
    """Parse regular expressions, separated by blanks."""
    found = []
    for text in value.split():
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise ValueError(f"must be regular expressions, not {text!r}: {error}") from None
        if pattern.search(""):
            raise ValueError(f"must not match an empty text, as {text!r} does")
        found.append(pattern)
    return tuple(found)


GUARD_REFUSE: Setting[Patterns] = Setting(
    "GUARD_REFUSE",
    _patterns,
    default=(),
    help=(
        "regular expressions, separated by blanks. A request with a match is refused. "
        "Write \\s for a blank."
    ),
)
GUARD_MASK: Setting[Patterns] = Setting(
    "GUARD_MASK",
    _patterns,
    default=(),
    help=f"regular expressions, as for GUARD_REFUSE. Each match is replaced by {MASK}",
)
GUARD_MESSAGE: Setting[str] = Setting(
    "GUARD_MESSAGE",
    parsers.text,
    default="This request contains what must not leave: remove it.",
    help="what a client is told whose request is refused",
)


class Guard:
    """The plugin."""

    def __init__(self) -> None:
        self._refuse: Patterns = ()
        self._mask: Patterns = ()
        self._message = GUARD_MESSAGE.default

    @hookimpl
    def declare_settings(self) -> tuple[Setting[Any], ...]:  # Any: each has a type of its own
        return GUARD_REFUSE, GUARD_MASK, GUARD_MESSAGE

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        self._refuse, self._mask = settings[GUARD_REFUSE], settings[GUARD_MASK]
        self._message = settings[GUARD_MESSAGE]
        if not (self._refuse or self._mask):
            return INACTIVE
        return f"refuses by {len(self._refuse)} and masks by {len(self._mask)} patterns"

    # last, so that it sees what other plugins have added
    @hookimpl(trylast=True)
    def prepare_request(self, outgoing: OutgoingRequest) -> OutgoingRequest | None:
        body = outgoing.body
        if body is None or outgoing.header("content-encoding") is not None:
            raise Denied("Uploads that cannot be checked are refused: send a smaller, plain one.")
        if not body:
            return None
        if not (outgoing.header("content-type") or "application/json").startswith(
            "application/json"
        ):
            self._check(body.decode(errors="replace"), *self._mask)
            return None
        try:
            document = json.loads(body, object_pairs_hook=_object)
        except (ValueError, RecursionError):
            raise InvalidRequest("The request body is not valid JSON.") from None
        masked = self._masked(document)
        if masked == document:
            return None  # byte for byte
        return replace(outgoing, body=json.dumps(masked, ensure_ascii=False).encode())

    def _check(self, text: str, *more: re.Pattern[str]) -> None:
        if any(pattern.search(text) for pattern in (*self._refuse, *more)):
            # never the text itself, which a log would keep
            raise Denied(self._message)

    def _masked(self, value: Any) -> Any:  # Any: JSON
        """Return `value` with its texts masked, names of fields included.

        :raises Denied: one of them is to be refused.
        """
        if isinstance(value, str):
            self._check(value)
            for pattern in self._mask:
                value = pattern.sub(MASK, value)
        elif isinstance(value, list):
            return [self._masked(each) for each in value]
        elif isinstance(value, dict):
            return {self._masked(name): self._masked(each) for name, each in value.items()}
        return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: JSON
    """Return an object; of a field that occurs twice, the upstream may read the other one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidRequest("The request body has a field twice: send it once.")
    return found

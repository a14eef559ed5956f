"""What a cloud does not take of a request: betas, fields, and the scope of prompt caches.

Clouds refuse these with 400, though most of them change nothing in a response. So they are left
out and named to the client, or the request is refused here; the upstream's entry says which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from msgspec import Struct

from tornadoproxy.config import parsers
from tornadoproxy.errors import InvalidRequest

if TYPE_CHECKING:
    from tornadoproxy.config.upstreams_file import UpstreamEntry

# an object of a few plain fields; a pattern that begins with plain text is ten times as fast
_cache_controls = re.compile(rb'"cache_control"\s*:\s*(\{[^{}]*\})')
_WITH_CACHE_CONTROL = ("system", "tools", "messages")
_CACHE_SCOPE = "cache_control.scope"


class Unsupported(Struct, frozen=True):
    """What one cloud does not take.

    :param cloud: its name, for people.
    :param betas: names of those that it takes; ``*`` stands for any text.
    :param fields: top-level fields of a body that it does not take; by default those about accounts
        and servers of the Anthropic API, which change nothing in a response.
    :param refuses: whether a request with any of these is refused; else they are left out.
    """

    cloud: str
    betas: tuple[str, ...]
    fields: tuple[str, ...] = ("billing_policy", "diagnostics", "service_tier", "speed")
    refuses: bool = False

    def for_entry(self, entry: UpstreamEntry) -> Unsupported:
        """Return what an entry says in ``betas``, ``unsupported_fields`` and ``unsupported``."""
        choice = parsers.choice("ignore", "refuse")
        return Unsupported(
            self.cloud,
            entry.read("betas", parsers.words, self.betas),
            entry.read("unsupported_fields", parsers.words, self.fields),
            entry.read("unsupported", choice, "ignore") == "refuse",
        )

    def takes_beta(self, name: str) -> bool:
        """Whether the cloud takes a beta."""
        patterns = (re.escape(each).replace(r"\*", ".*") for each in self.betas)
        return any(re.fullmatch(pattern, name) for pattern in patterns)

    def leave_out(
        self, fields: dict[str, bytes], betas: Iterable[str]
    ) -> tuple[list[str], list[str]]:
        """Remove from `fields` what the cloud does not take.

        :param fields: of the body, as `read_fields` returns them.
        :return: those of `betas` that it takes, and the names of all that is left out.
        :raises InvalidRequest: that is refused.
        """
        betas = dict.fromkeys(betas)
        taken = [name for name in betas if self.takes_beta(name)]
        ignored = [name for name in self.fields if fields.pop(name, None)]
        ignored += (name for name in betas if name not in taken)
        if _drop_cache_scopes(fields):
            ignored.append(_CACHE_SCOPE)
        if ignored and self.refuses:
            named = ", ".join(ignored)
            raise InvalidRequest(f"{self.cloud} does not support {named}: leave that out.")
        return taken, ignored


def _drop_cache_scopes(fields: dict[str, bytes]) -> bool:
    """Drop the scopes of prompt caches, which no cloud has; return whether there was one."""
    found = False
    for name in _WITH_CACHE_CONTROL:
        if b'"scope"' in fields.get(name, b""):
            without = _cache_controls.sub(_without_scope, fields[name])
            found = found or without != fields[name]
            fields[name] = without
    return found


def _without_scope(found: re.Match[bytes]) -> bytes:
    start = found.start()
    if found.string[start - 1 : start] == b"\\":  # within a string, where a quote is escaped
        return found[0]
    try:
        control = json.loads(found[1])
    except ValueError:
        return found[0]
    if control.get("type") != "ephemeral" or control.pop("scope", None) is None:
        return found[0]
    return b'"cache_control":' + json.dumps(control, separators=(",", ":")).encode()

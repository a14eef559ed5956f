"""What becomes of each field, item and tool of a request: one treatment each.

The tables of treatments are compared with the installed ``openai`` package by tests, and the
tables in the documentation are generated from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json


class Treatment(Enum):
    """The treatment of a field, an item, a tool or an event."""

    TRANSLATED = "translated"
    """It has a counterpart."""
    CARRIED = "carried"
    """It holds blocks of the upstream's, which go back unchanged."""
    STORED = "stored"
    """It names what the gateway has stored."""
    IGNORED = "ignored"
    """Dropped and named in ``x-tornadoproxy-ignored``; with ``CHAT_STRICT``, a 400."""
    REFUSED = "refused"
    """A 400 that names it, if Claude cannot do what it requests."""
    PASSED = "passed"
    """A field of Anthropic's API, which goes upstream unchanged."""
    SENT = "sent"
    """An event that the gateway sends."""
    NEVER_SENT = "never sent"
    """An event of a feature that the gateway does not offer."""


Table: TypeAlias = dict[str, tuple[Treatment, str]]
"""The treatment of each name, with a note for the documentation."""

PASSED = {
    "billing_policy": "",
    "cache_control": "caches the request up to its last block",
    "compaction": "",
    "container": "",
    "context_management": "",
    "diagnostics": "",
    "fallback_credit_token": "",
    "fallbacks": "",
    "inference_geo": "",
    "mcp_servers": "",
    "output_config": "merged with what the format and the reasoning effort become",
    "speed": "",
    "thinking": "replaces the thinking of the reasoning effort",
    "thread": "",
    "top_k": "",
}
"""The fields of Anthropic's API that a client of either of OpenAI's APIs can add."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def table(notes: Mapping[Treatment, Mapping[str, str]]) -> Table:
    """Return the treatment and note of each name, from the notes on the names of each treatment."""
    return {
        name: (treatment, note)
        for treatment, named in notes.items()
        for name, note in named.items()
    }


def header_name(name: str) -> str:
    """Return a dropped field's name for a header, where a name that does not fit is ``unknown``."""
    return name if _NAME.fullmatch(name) else "unknown"


def ignored_fields(document: Json, fields: Table, defaults: Mapping[str, object]) -> list[str]:
    """Return the names of the fields of `document` that `fields` ignores, for a header.

    :param defaults: values of fields that request nothing, so that they are not named.
    """
    return [
        header_name(name)
        for name, value in document.items()
        if value is not None
        and name in fields
        and fields[name][0] is Treatment.IGNORED
        and (name not in defaults or value != defaults[name])
    ]

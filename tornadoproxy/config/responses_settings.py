"""The core's settings of OpenAI's Responses API, each declared once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.config import parsers
from tornadoproxy.config.setting import Setting

if TYPE_CHECKING:
    from pathlib import Path

    from tornadoproxy.secret import SecretURL

MEMORY = "memory"
OFF = "off"


def store(value: str) -> str | Path | SecretURL:
    """Parse ``memory``, ``off``, or what `parsers.database` does.

    A word for yes or no is no file: an operator who means ``off`` must not find prompts on disk.
    """
    word = value.lower()
    if word in (MEMORY, OFF):
        return word
    if word in parsers.BOOLEANS or word == "none":
        raise ValueError(f"must be memory, off, a file or a postgresql:// URL, not {value!r}")
    return parsers.database(value)


RESPONSES_STORE: Setting[str | Path | SecretURL] = Setting(
    "RESPONSES_STORE",
    store,
    default=MEMORY,
    help=(
        "where prompts and responses of the Responses API are stored for later requests: memory "
        "(of this process), off, an SQLite file, created if missing, or a postgresql:// URL, which "
        "several proxies can share"
    ),
)
RESPONSES_STORE_SIZE: Setting[int] = Setting(
    "RESPONSES_STORE_SIZE",
    parsers.size,
    default=64 << 20,
    help=(
        "bytes that stored responses may take with RESPONSES_STORE=memory; at the limit, the "
        "principal that holds most loses its oldest response. A database has no limit."
    ),
)
RESPONSES_STORE_TTL: Setting[float] = Setting(
    "RESPONSES_STORE_TTL",
    parsers.seconds(minimum=1.0),
    default=2_592_000.0,
    help="seconds after which stored responses are deleted",
)
RESPONSES_WEB_SEARCH: Setting[str] = Setting(
    "RESPONSES_WEB_SEARCH",
    parsers.choice("upstream", "ignore"),
    default="upstream",
    help=(
        "who runs the web_search tool of the Responses API: upstream (which runs and charges the "
        "searches), or ignore (for an upstream without web search: the tool is left out and "
        "named in x-tornadoproxy-ignored)"
    ),
)

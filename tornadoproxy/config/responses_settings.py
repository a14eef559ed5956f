"""The core's settings of OpenAI's Responses API, each declared once."""

from __future__ import annotations

from tornadoproxy.config import parsers
from tornadoproxy.config.setting import Setting

MEMORY = "memory"
OFF = "off"

RESPONSES_STORE: Setting[str] = Setting(
    "RESPONSES_STORE",
    parsers.choice(MEMORY, OFF),
    default=MEMORY,
    help=(
        "where prompts and responses of the Responses API are kept for later requests: memory (of "
        "this process), or off"
    ),
)
RESPONSES_STORE_SIZE: Setting[int] = Setting(
    "RESPONSES_STORE_SIZE",
    parsers.size,
    default=64 << 20,
    help=(
        "bytes of memory for them. At the limit, the principal that holds most loses its oldest "
        "response."
    ),
)
RESPONSES_STORE_TTL: Setting[float] = Setting(
    "RESPONSES_STORE_TTL",
    parsers.seconds(minimum=1.0),
    default=2_592_000.0,
    help="seconds for which they are kept",
)
RESPONSES_WEB_SEARCH: Setting[str] = Setting(
    "RESPONSES_WEB_SEARCH",
    parsers.choice("upstream", "ignore"),
    default="upstream",
    help=(
        "what becomes of the web_search tool of the Responses API: upstream (which runs and "
        "charges the searches) or ignore (for an upstream without them: the tool is left out and "
        "named in x-tornadoproxy-ignored)"
    ),
)

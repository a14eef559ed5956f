"""The translation of the web search tool, which the upstream runs.

Sources: https://platform.openai.com/docs/guides/tools-web-search and
https://docs.anthropic.com/en/docs/agents-and-tools/tool-use/web-search-tool
"""

from __future__ import annotations

from tornadoproxy.openai.reading import Json, array, integer, obj, refuse, text
from tornadoproxy.openai.responses.action_tools import NAMES
from tornadoproxy.openai.responses.translation import ToolKind

TYPES = (
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
)
"""OpenAI's names for the tool."""

_VERSION = "web_search_20250305"  # the one that all models and clouds have
_DOMAINS = ("allowed_domains", "blocked_domains")
_LOCATION = ("city", "country", "region", "timezone")


def web_search_tool(given: Json, param: str, limit: object, ignored: list[str]) -> Json:
    """Return the upstream's web search for a client's.

    :param limit: the client's ``max_tool_calls``: the most searches, or ``None``.
    :param ignored: takes the names of what is dropped.
    :raises InvalidRequest: a field of it is invalid.
    """
    tool: Json = {"type": _VERSION, "name": NAMES[ToolKind.WEB_SEARCH]}
    if given.get("filters") is not None:
        tool |= _filters(obj(given["filters"], f"{param}.filters"), f"{param}.filters")
    if given.get("user_location") is not None:
        where = f"{param}.user_location"
        location = _location(obj(given["user_location"], where), where)
        if location:
            tool["user_location"] = {"type": "approximate", **location}
    if limit is not None:
        tool["max_uses"] = integer(limit, "max_tool_calls", 1)
    if given.get("search_context_size") not in (None, "medium"):
        ignored.append("tools.search_context_size")
    if given.get("search_content_types") not in (None, ["text"]):
        ignored.append("tools.search_content_types")
    return tool


def _filters(filters: Json, param: str) -> Json:
    found: Json = {}
    for name in _DOMAINS:
        if filters.get(name):
            domains = array(filters[name], f"{param}.{name}")
            found[name] = [
                text(each, f"{param}.{name}[{index}]") for index, each in enumerate(domains)
            ]
    if len(found) > 1:
        refuse(param, "must have either allowed_domains or blocked_domains")
    return found


def _location(location: Json, param: str) -> Json:
    """Return the parts of a location that say something: the upstream refuses empty ones."""
    found = {
        name: text(location[name], f"{param}.{name}").strip()
        for name in _LOCATION
        if location.get(name) is not None
    }
    return {name: place for name, place in found.items() if place}

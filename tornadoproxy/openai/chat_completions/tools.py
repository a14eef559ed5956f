"""The translation of the tools, legacy functions and tool choice of chat completions."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from tornadoproxy.openai.caching import cache_control
from tornadoproxy.openai.reading import Json, array, boolean, obj, one_of, refuse
from tornadoproxy.openai.tools import (
    Offer,
    allow_only,
    ask_instead,
    choose_by_word,
    choose_tool,
    distinct_tools,
    function_tool,
    name_among,
    offer_of_called,
)

if TYPE_CHECKING:
    from tornadoproxy.openai.models import Capabilities
    from tornadoproxy.openai.schema import Grammar

_FIELDS = frozenset({"function_call", "functions", "parallel_tool_calls", "tool_choice", "tools"})


def translate(
    document: Json,
    called: Collection[str],
    able: Capabilities,
    grammar: Grammar,
    ignored: list[str],
) -> Offer:
    """Translate a request's tools and its choice among them.

    :param called: the names of the tools that the conversation has called.
    :param grammar: fits the schemas of strict tools.
    :param ignored: takes the names of what is dropped.
    :raises InvalidRequest: a tool is invalid, or not a function; the choice is not one of them.
    """
    if not called and _FIELDS.isdisjoint(document):
        return Offer([])
    tools = distinct_tools(_listed_tools(document, ignored), able, grammar, ignored)
    param = "tool_choice" if document.get("tool_choice") is not None else "function_call"
    wanted = document.get(param)
    single = _at_most_one(document)
    if not tools:
        if wanted not in (None, "none", "auto"):
            refuse(param, "needs tools")
        return offer_of_called(called)
    offer = _choose(wanted, param, tools)
    if offer.is_forced and not able.forced_tools:
        ignored.append(param)
        offer = ask_instead(offer)
    if single:
        offer.limit_to_one_call()
    return offer


def uses_legacy_functions(document: Json) -> bool:
    """Whether the client sends ``functions``, so that it expects a ``function_call``."""
    return bool(document.get("functions")) and not document.get("tools")


def _listed_tools(document: Json, ignored: list[str]) -> list[Json]:
    tools = [
        _tool(tool, f"tools[{index}]", ignored)
        for index, tool in enumerate(_listed(document, "tools"))
    ]
    return tools + [
        function_tool(function, f"functions[{index}]")
        for index, function in enumerate(_listed(document, "functions"))
    ]


def _listed(document: Json, name: str) -> list[object]:
    return array(document[name], name) if document.get(name) is not None else []


def _tool(given: object, param: str, ignored: list[str]) -> Json:
    tool = obj(given, param)
    if tool.get("type") != "function":
        refuse(f"{param}.type", "must be function")
    function = function_tool(tool.get("function"), f"{param}.function")
    cached = cache_control(tool, param, ignored)
    cached = cached or cache_control(tool["function"], f"{param}.function", ignored)
    if cached is not None:
        function["cache_control"] = cached
    return function


def _choose(wanted: object, param: str, tools: list[Json]) -> Offer:
    if wanted is None:
        return Offer(tools)
    if isinstance(wanted, str):
        return choose_by_word(tools, wanted, param)
    wanted = obj(wanted, param)
    if param == "tool_choice":
        kind = one_of(wanted.get("type"), f"{param}.type", ("function", "allowed_tools"))
        if kind == "allowed_tools":
            return _allowed(wanted.get("allowed_tools"), f"{param}.allowed_tools", tools)
        param = f"{param}.function"
        wanted = obj(wanted.get("function"), param)
    return choose_tool(tools, wanted.get("name"), f"{param}.name")


def _allowed(allowed: object, param: str, tools: list[Json]) -> Offer:
    choice = obj(allowed, param)
    known = {tool["name"] for tool in tools}
    names: set[str] = set()
    for index, tool in enumerate(array(choice.get("tools"), f"{param}.tools")):
        where = f"{param}.tools[{index}]"
        function = obj(obj(tool, where).get("function"), f"{where}.function")
        names.add(name_among(known, function.get("name"), f"{where}.function.name"))
    return allow_only(tools, names, choice.get("mode"), param)


def _at_most_one(document: Json) -> bool:
    parallel = document.get("parallel_tool_calls")
    if parallel is None:
        return uses_legacy_functions(document)  # a message has one function_call
    return not boolean(parallel, "parallel_tool_calls")

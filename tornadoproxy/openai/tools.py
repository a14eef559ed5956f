"""Translates tools, the choice among them, and the legacy functions that came before them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tornadoproxy.openai.content import cache_control
from tornadoproxy.openai.reading import (
    Json,
    array,
    boolean,
    obj,
    one_of,
    refuse,
    text,
    tool_name,
)

if TYPE_CHECKING:
    from tornadoproxy.openai.capabilities import Capabilities
    from tornadoproxy.openai.schema import Grammar

MAX_STRICT = 20
"""Strict tools in a request, the upstream's limit; see `tornadoproxy.openai.schema`."""

_ANY_INPUT: Json = {"type": "object", "properties": {}}


@dataclass
class Offer:
    """The tools that a model is offered.

    :param tools: upstream's descriptions of them.
    :param choice: upstream's ``tool_choice``, if the client makes one.
    :param instruction: says to the model what the choice cannot.
    """

    tools: list[Json]
    choice: Json | None = None
    instruction: str | None = None

    @property
    def is_forced(self) -> bool:
        """Whether the model must call a tool."""
        return self.choice is not None and self.choice["type"] in {"any", "tool"}


_FIELDS = frozenset({"function_call", "functions", "parallel_tool_calls", "tool_choice", "tools"})


def translate(
    document: Json,
    called: Collection[str],
    able: Capabilities,
    grammar: Grammar,
    ignored: list[str],
) -> Offer:
    """Translate a request's tools and its choice among them.

    :param called: the names of tools that the conversation has called. Upstream wants tools
        wherever there are calls; OpenAI's API does not, so they are made up where there are none.
    :param grammar: fits the schemas of strict tools.
    :param ignored: takes the names of what is dropped.
    :raises InvalidRequest: a tool is wrong, or is not a function; the choice is none of them.
    """
    if not called and _FIELDS.isdisjoint(document):
        return Offer([], None)
    tools = _tools(document, able, grammar, ignored)
    param = "tool_choice" if document.get("tool_choice") is not None else "function_call"
    wanted = document.get(param)
    single = _at_most_one(document)
    if not tools:
        if wanted not in (None, "none", "auto"):
            refuse(param, "needs tools")
        made_up = [{"name": name, "input_schema": _ANY_INPUT} for name in dict.fromkeys(called)]
        return Offer(made_up, {"type": "none"} if made_up else None)
    offer = _choose(wanted, param, tools)
    if offer.is_forced and not able.forced_tools:
        ignored.append(param)
        offer = _asked_instead(offer)
    if single and (offer.choice is None or offer.choice["type"] != "none"):
        offer.choice = {**(offer.choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    return offer


def uses_legacy_functions(document: Json) -> bool:
    """Whether the client speaks of functions, and expects a ``function_call``."""
    return bool(document.get("functions")) and not document.get("tools")


def _tools(document: Json, able: Capabilities, grammar: Grammar, ignored: list[str]) -> list[Json]:
    listed = [
        _tool(tool, f"tools[{index}]", ignored)
        for index, tool in enumerate(_listed(document, "tools"))
    ]
    listed += [
        _function(function, f"functions[{index}]")
        for index, function in enumerate(_listed(document, "functions"))
    ]
    by_name: dict[str, Json] = {}
    for tool in listed:
        if by_name.setdefault(tool["name"], tool) != tool:
            refuse("tools", "must have different names")
    found = list(by_name.values())
    _constrain([tool for tool in found if tool.get("strict")], able, grammar, ignored)
    return found


def _constrain(
    strict: list[Json], able: Capabilities, grammar: Grammar, ignored: list[str]
) -> None:
    """Fit the schemas of `strict` tools; those that do not fit become plain tools."""
    left = MAX_STRICT if able.structured_outputs else 0
    for tool in strict:
        fitted = grammar.fit(tool["input_schema"]) if left else None
        if fitted is not None and fitted.get("type") == "object":
            tool["input_schema"] = fitted
            left -= 1
        else:
            del tool["strict"]
            ignored.append("tools.strict")


def _listed(document: Json, name: str) -> list[object]:
    return array(document[name], name) if document.get(name) is not None else []


def _tool(given: object, param: str, ignored: list[str]) -> Json:
    tool = obj(given, param)
    if tool.get("type") != "function":
        refuse(f"{param}.type", "must be function")
    function = _function(tool.get("function"), f"{param}.function")
    cached = cache_control(tool, param, ignored)
    cached = cached or cache_control(tool["function"], f"{param}.function", ignored)
    if cached is not None:
        function["cache_control"] = cached
    return function


def _function(function: object, param: str) -> Json:
    function = obj(function, param)
    tool: Json = {"name": tool_name(function.get("name"), f"{param}.name")}
    if function.get("description") is not None:
        tool["description"] = text(function["description"], f"{param}.description")
    tool["input_schema"] = _ANY_INPUT
    if function.get("parameters") is not None:
        parameters = obj(function["parameters"], f"{param}.parameters")
        if parameters.get("type", "object") != "object":
            refuse(f"{param}.parameters.type", "must be object")
        tool["input_schema"] = {"type": "object", **parameters}
    if function.get("strict") is not None:
        tool["strict"] = boolean(function["strict"], f"{param}.strict")
    return tool


def _choose(wanted: object, param: str, tools: list[Json]) -> Offer:
    if wanted is None:
        return Offer(tools)
    if isinstance(wanted, str):
        options = {"none": "none", "auto": "auto", "required": "any"}
        return Offer(tools, {"type": options[one_of(wanted, param, options)]})
    wanted = obj(wanted, param)
    if param == "tool_choice":
        kind = one_of(wanted.get("type"), f"{param}.type", ("function", "allowed_tools"))
        if kind == "allowed_tools":
            return _allowed(wanted.get("allowed_tools"), f"{param}.allowed_tools", tools)
        param = f"{param}.function"
        wanted = obj(wanted.get("function"), param)
    known = {tool["name"] for tool in tools}
    name = _name_among(known, wanted.get("name"), f"{param}.name")
    return Offer(tools, {"type": "tool", "name": name})


def _allowed(allowed: object, param: str, tools: list[Json]) -> Offer:
    choice = obj(allowed, param)
    mode = one_of(choice.get("mode"), f"{param}.mode", ("auto", "required"))
    known = {tool["name"] for tool in tools}
    names: set[str] = set()
    for index, tool in enumerate(array(choice.get("tools"), f"{param}.tools")):
        where = f"{param}.tools[{index}]"
        function = obj(obj(tool, where).get("function"), f"{where}.function")
        names.add(_name_among(known, function.get("name"), f"{where}.function.name"))
    if not names:
        refuse(f"{param}.tools", "must not be empty")
    kept = [tool for tool in tools if tool["name"] in names]
    return Offer(kept, {"type": "any" if mode == "required" else "auto"})


def _name_among(known: Collection[str], name: object, param: str) -> str:
    name = tool_name(name, param)
    if name not in known:
        refuse(param, f"({name}) must be that of one of the tools")
    return name


def _asked_instead(offer: Offer) -> Offer:
    """The offer to a model that cannot be forced to call a tool: it is asked to."""
    assert offer.choice is not None
    named = offer.choice.get("name")
    wish = f"Call the tool {named} now." if named else "Call at least one of the tools now."
    return Offer(offer.tools, {"type": "auto"}, wish)


def _at_most_one(document: Json) -> bool:
    # a function_call has room for one
    parallel = document.get("parallel_tool_calls")
    if parallel is None:
        return uses_legacy_functions(document)
    return not boolean(parallel, "parallel_tool_calls")

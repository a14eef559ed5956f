"""The translation of functions into tools, and of the choice among them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tornadoproxy.openai.reading import Json, boolean, obj, one_of, refuse, text, tool_name

if TYPE_CHECKING:
    from tornadoproxy.openai.models import Capabilities
    from tornadoproxy.openai.schema import Grammar

MAX_STRICT = 20
"""The upstream's limit of strict tools in a request; see `tornadoproxy.openai.schema`."""

_ANY_INPUT: Json = {"type": "object", "properties": {}}
_CHOICES = {"none": "none", "auto": "auto", "required": "any"}


@dataclass
class Offer:
    """The tools that a model is offered.

    :param tools: the upstream's descriptions of them.
    :param choice: the upstream's ``tool_choice``, if the client makes one.
    :param instruction: a sentence for the system prompt, which says what the choice cannot.
    """

    tools: list[Json]
    choice: Json | None = None
    instruction: str | None = None

    @property
    def is_forced(self) -> bool:
        """Whether the model must call a tool."""
        return self.choice is not None and self.choice["type"] in {"any", "tool"}

    def limit_to_one_call(self) -> None:
        """Allow one call at a time."""
        if self.choice is None or self.choice["type"] != "none":
            self.choice = {**(self.choice or {"type": "auto"}), "disable_parallel_tool_use": True}


def function_tool(function: object, param: str, name: str | None = None) -> Json:
    """Return the tool for a function: its name, description, parameters, and whether it is strict.

    :param name: the upstream's name of the tool, if not the function's own.
    :raises InvalidRequest: a field of it is invalid.
    """
    function = obj(function, param)
    tool: Json = {"name": name or tool_name(function.get("name"), f"{param}.name")}
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


def distinct_tools(
    listed: list[Json], able: Capabilities, grammar: Grammar, ignored: list[str]
) -> list[Json]:
    """Return each of the tools once, with strict tools fitted to the grammar; see `fit_strict`.

    :raises InvalidRequest: two different tools have one name.
    """
    by_name: dict[str, Json] = {}
    for tool in listed:
        if by_name.setdefault(tool["name"], tool) != tool:
            refuse("tools", "must have different names")
    found = list(by_name.values())
    fit_strict(found, able, grammar, ignored)
    return found


def fit_strict(tools: list[Json], able: Capabilities, grammar: Grammar, ignored: list[str]) -> None:
    """Fit the schemas of strict tools to the grammar; a tool that does not fit becomes a plain one.

    :param ignored: takes the names of what is dropped.
    """
    left = MAX_STRICT if able.structured_outputs else 0
    for tool in tools:
        if not tool.get("strict"):
            continue
        fitted = grammar.fit(tool["input_schema"]) if left else None
        if fitted is not None and fitted.get("type") == "object":
            tool["input_schema"] = fitted
            left -= 1
        else:
            del tool["strict"]
            ignored.append("tools.strict")


def offer_of_called(called: Collection[str]) -> Offer:
    """Return an offer with a tool of each name, none of which may be called.

    The upstream requires tools wherever the conversation has calls; OpenAI's APIs do not.
    """
    made_up = [{"name": name, "input_schema": _ANY_INPUT} for name in dict.fromkeys(called)]
    return Offer(made_up, {"type": "none"} if made_up else None)


def choose_tool(tools: list[Json], name: object, param: str) -> Offer:
    """Return an offer in which the model must call one tool."""
    known = {tool["name"] for tool in tools}
    return Offer(tools, {"type": "tool", "name": name_among(known, name, param)})


def choose_by_word(tools: list[Json], word: str, param: str) -> Offer:
    """Return an offer with the choice that ``none``, ``auto`` or ``required`` stands for."""
    return Offer(tools, {"type": _CHOICES[one_of(word, param, _CHOICES)]})


def allow_only(tools: list[Json], names: Collection[str], mode: object, param: str) -> Offer:
    """Return an offer of the tools that have one of the `names`; the others are left out.

    :param mode: ``auto``, or ``required`` if the model must call one of them.
    """
    choice = {"type": _CHOICES[one_of(mode, f"{param}.mode", ("auto", "required"))]}
    if not names:
        refuse(f"{param}.tools", "must not be empty")
    return Offer([tool for tool in tools if tool["name"] in names], choice)


def name_among(known: Collection[str], name: object, param: str) -> str:
    """Return `name`, which must be one of the `known` names of tools."""
    name = tool_name(name, param)
    if name not in known:
        refuse(param, f"({name}) must be the name of one of the tools")
    return name


def ask_instead(offer: Offer) -> Offer:
    """Return an offer that asks for a call, for a model that cannot be forced to make one."""
    assert offer.choice is not None
    named = offer.choice.get("name")
    wish = f"Call the tool {named} now." if named else "Call at least one of the tools now."
    return Offer(offer.tools, {"type": "auto"}, wish)

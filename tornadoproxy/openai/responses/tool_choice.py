"""The translation of the choice among a request's tools.

Source: https://platform.openai.com/docs/api-reference/responses/create (``tool_choice``)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tornadoproxy.openai.reading import MAX_QUOTED, Json, array, obj, one_of, refuse, text
from tornadoproxy.openai.responses.action_tools import NAMES
from tornadoproxy.openai.responses.translation import Origin, ToolKind
from tornadoproxy.openai.responses.web_search import TYPES as WEB_SEARCH_TYPES
from tornadoproxy.openai.tools import Offer, allow_only, choose_by_word
from tornadoproxy.openai.treatment import Table, Treatment

_NAMED = {"function": ToolKind.FUNCTION, "custom": ToolKind.CUSTOM}
_BUILT_IN = {name: kind for kind, name in NAMES.items()} | dict.fromkeys(
    WEB_SEARCH_TYPES, ToolKind.WEB_SEARCH
)
_REFUSED = (
    "code_interpreter",
    "computer",
    "computer_use",
    "computer_use_preview",
    "file_search",
    "image_generation",
    "mcp",
    "programmatic_tool_calling",
)

_TYPES = (*_NAMED, *_BUILT_IN)

CHOICES: Table = {
    "none": (Treatment.TRANSLATED, "same"),
    "auto": (Treatment.TRANSLATED, "same"),
    "required": (Treatment.TRANSLATED, "`any`"),
    "allowed_tools": (Treatment.TRANSLATED, "only these tools go upstream"),
    **dict.fromkeys(_TYPES, (Treatment.TRANSLATED, "`tool`, if it is offered")),
    **dict.fromkeys(_REFUSED, (Treatment.REFUSED, "the tool is refused, too")),
}
"""The treatment of each ``tool_choice``, with a note for the documentation."""


def choose(
    wanted: object,
    tools: list[Json],
    origins: Mapping[str, Origin],
    left_out: Collection[str],
    ignored: list[str],
) -> Offer:
    """Return the offer of `tools` with the client's choice among them.

    :param wanted: the client's ``tool_choice``.
    :param origins: the client's tool for each name of a tool.
    :param left_out: the types of tools that the client listed and that are not offered. To choose
        one of them has no effect.
    :raises InvalidRequest: the choice is invalid, or not one of the tools.
    """
    if wanted is None:
        return Offer(tools)
    if isinstance(wanted, str):
        offer = choose_by_word(tools, wanted, "tool_choice")
        if tools or not offer.is_forced:
            return offer
        if not left_out:
            refuse("tool_choice", "needs tools")
    else:
        choice = obj(wanted, "tool_choice")
        if choice.get("type") == "allowed_tools":
            return _allowed(choice, tools, origins, left_out)
        names = _names(choice, "tool_choice", origins, left_out)
        if names:
            return Offer(tools, {"type": "tool", "name": names[0]})
    ignored.append("tool_choice")
    return Offer(tools)


def _allowed(
    choice: Json, tools: list[Json], origins: Mapping[str, Origin], left_out: Collection[str]
) -> Offer:
    param = "tool_choice.tools"
    listed = array(choice.get("tools"), param)
    names: set[str] = set()
    for index, tool in enumerate(listed):
        where = f"{param}[{index}]"
        names.update(_names(obj(tool, where), where, origins, left_out))
    if listed and not names:  # all are left out
        return Offer(tools, {"type": "none"})
    return allow_only(tools, names, choice.get("mode"), "tool_choice")


def _names(
    tool: Json, param: str, origins: Mapping[str, Origin], left_out: Collection[str]
) -> list[str]:
    """Return the upstream's names of the tool that a client means; empty if it is left out."""
    kind = tool.get("type")
    if kind in _REFUSED:
        refuse(f"{param}.type", f"must not be {kind}: there is no such tool here; choose another")
    kind = one_of(kind, f"{param}.type", _TYPES)
    if kind in _BUILT_IN:
        found = [name for name, origin in origins.items() if origin.kind is _BUILT_IN[kind]]
        if not found and NAMES[_BUILT_IN[kind]] not in left_out:
            refuse(f"{param}.type", f"({kind}) must be the type of one of the tools")
        return found
    name = text(tool.get("name"), f"{param}.name")
    namespace = tool.get("namespace") or None
    same = [
        (upstream, origin.namespace)
        for upstream, origin in origins.items()
        if origin.kind is _NAMED[kind] and origin.name == name
    ]
    found = [upstream for upstream, own in same if own == namespace]
    if not found and namespace is None:  # OpenAI's own choice has no namespace
        found = [upstream for upstream, _ in same]
    if not found:
        refuse(f"{param}.name", f"({name[:MAX_QUOTED]}) must be the name of one of the tools")
    return found

"""The translation of a request's tools, and of its choice among them.

The theory. A client's tool is known by its `Origin`: its kind, name and namespace. The upstream has
one flat list, so each gets a unique name there, which leads from a call back to the client's tool.
Tools come from three places: the request, `additional_tools` items, and the outputs of searches for
tools. They are listed in that order, and a tool that is loaded again stays in its place. So the
list of one turn begins like that of the turn before, which prompt caching depends on.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from tornadoproxy.openai.caching import cache_control
from tornadoproxy.openai.reading import MAX_QUOTED, Json, array, boolean, obj, one_of, refuse, text
from tornadoproxy.openai.responses.action_tools import NAMES, action_tool
from tornadoproxy.openai.responses.names import name_among, upstream_name
from tornadoproxy.openai.responses.tool_choice import choose
from tornadoproxy.openai.responses.translation import Origin, ToolKind
from tornadoproxy.openai.responses.web_search import TYPES as WEB_SEARCH_TYPES
from tornadoproxy.openai.responses.web_search import web_search_tool
from tornadoproxy.openai.tools import Offer, ask_instead, fit_strict, function_tool
from tornadoproxy.openai.treatment import Table, Treatment

if TYPE_CHECKING:
    from tornadoproxy.openai.models import Capabilities
    from tornadoproxy.openai.schema import Grammar

_TRANSLATED = {
    "function": "a tool; `strict` as far as its schema allows it, and not by default",
    "custom": "a tool with one string, `input`; a grammar is described, but not enforced",
    "namespace": "its tools, under the name `namespace__tool`",
    "tool_search": "a tool, if the client executes it; else ignored: all tools are offered at once",
    "shell": "a tool that takes `commands`; containers are refused",
    "local_shell": "a tool that takes a `command`",
    "apply_patch": "a tool that takes one file and its diff, whose format is described",
    **dict.fromkeys(
        WEB_SEARCH_TYPES,
        "the upstream's web search; ignored with `RESPONSES_WEB_SEARCH=ignore`, and without "
        "`external_web_access`",
    ),
}

_NATIVE = "Anthropic's own can be used by POST /v1/messages"

_REFUSED = {
    "code_interpreter": f"runs in a container at OpenAI; {_NATIVE}",
    "computer": f"is a tool of OpenAI models only; {_NATIVE}",
    "computer_use_preview": f"is a tool of OpenAI models only; {_NATIVE}",
    "file_search": "searches files at OpenAI; offer a function that searches yours",
    "image_generation": "makes images with an OpenAI model; leave it out",
    "mcp": "connects from OpenAI; let the client connect, and offer its tools as functions",
    "programmatic_tool_calling": "runs programs at OpenAI; leave it out",
}

TOOLS: Table = {
    **{name: (Treatment.TRANSLATED, note) for name, note in _TRANSLATED.items()},
    **{name: (Treatment.REFUSED, note) for name, note in _REFUSED.items()},
}
"""The treatment of each type of tool, with a note for the documentation."""

_ACTIONS = {
    "tool_search": ToolKind.TOOL_SEARCH,
    "shell": ToolKind.SHELL,
    "local_shell": ToolKind.LOCAL_SHELL,
    "apply_patch": ToolKind.APPLY_PATCH,
}
_FIELDS = frozenset({"parallel_tool_calls", "tool_choice", "tools"})
_WEB_SEARCH = Origin(ToolKind.WEB_SEARCH, NAMES[ToolKind.WEB_SEARCH])

# Fields of functions and custom tools that say nothing to Claude, with values that request nothing.
_DROPPED: dict[str, tuple[object, ...]] = {
    "allowed_callers": (None, ["direct"]),
    "async": (None, False),
    "output_schema": (None,),
}

_INPUT: Json = {
    "type": "object",
    "properties": {
        "input": {"type": "string", "description": "The whole input of the tool, as it is."}
    },
    "required": ["input"],
    "additionalProperties": False,
}


class ToolOffer(NamedTuple):
    """The tools that a model is offered.

    :param origins: the client's tool for each name in the offer.
    """

    offer: Offer
    origins: dict[str, Origin]


def translate(
    document: Json,
    additional: Collection[tuple[object, str]],
    able: Capabilities,
    grammar: Grammar,
    ignored: list[str],
    *,
    web_search: bool,
) -> ToolOffer:
    """Translate a request's tools and its choice among them.

    :param additional: the tools that are listed in input items, each with its place in the request.
    :param grammar: fits the schemas of strict tools.
    :param ignored: takes the names of what is dropped.
    :param web_search: whether the upstream searches the web; otherwise that tool is ignored.
    :raises InvalidRequest: a tool is invalid or refused; the choice is not one of them.
    """
    if not additional and _FIELDS.isdisjoint(document):
        return ToolOffer(Offer([]), {})
    listing = _Listing(document.get("max_tool_calls"), ignored, web_search=web_search)
    if document.get("tools") is not None:
        for index, tool in enumerate(array(document["tools"], "tools")):
            listing.take(tool, f"tools[{index}]")
    for tool, param in additional:
        listing.take(tool, param, replaces=True)
    tools, origins = listing.finish()
    parallel = document.get("parallel_tool_calls")
    single = parallel is not None and not boolean(parallel, "parallel_tool_calls")
    wanted = document.get("tool_choice")
    offer = choose(wanted, tools, origins, listing.left_out, ignored)
    if not offer.tools:
        return ToolOffer(Offer([]), {})
    if offer.is_forced and not able.forced_tools:
        ignored.append("tool_choice")
        offer = ask_instead(offer)
    if single:
        offer.limit_to_one_call()
    # only now: tools that may not be called have no share in the limits
    fit_strict(offer.tools, able, grammar, ignored)
    return ToolOffer(offer, origins)


class _Listing:
    """The tools of a request, in order."""

    def __init__(self, limit: object, ignored: list[str], *, web_search: bool) -> None:
        self.left_out: set[str] = set()  # types of tools
        self._limit = limit
        self._ignored = ignored
        self._web_search = web_search
        self._tools: dict[Origin, Json] = {}
        self._namespaces: dict[str, str] = {}  # with their descriptions

    def take(self, given: object, param: str, *, replaces: bool = False) -> None:
        """Add a tool.

        :param replaces: whether it replaces a tool of the same name, which is otherwise an error.
        """
        tool = obj(given, param)
        kind = text(tool.get("type"), f"{param}.type")
        if kind in _REFUSED:
            refuse(f"{param}.type", f"must not be {kind}, which {_REFUSED[kind]}")
        if one_of(kind, f"{param}.type", _TRANSLATED) == "namespace":
            self._take_namespace(tool, param, replaces=replaces)
        elif kind in ("function", "custom"):
            self._take_named(tool, param, None, replaces=replaces)
        elif kind in WEB_SEARCH_TYPES:
            self._take_web_search(tool, param)
        elif kind == "tool_search" and tool.get("execution") != "client":
            self._leave_out(kind)
        else:
            origin = Origin(_ACTIONS[kind], NAMES[_ACTIONS[kind]])
            self._add(origin, action_tool(origin.kind, tool, param), param, replaces=True)

    def finish(self) -> tuple[list[Json], dict[str, Origin]]:
        """Return the upstream's tools, and the client's tool for each name."""
        origins: dict[str, Origin] = {}
        if _WEB_SEARCH in self._tools:  # the upstream knows it by this name only
            origins[_WEB_SEARCH.name] = _WEB_SEARCH
        for origin, tool in self._tools.items():
            tool["name"] = name_among(origin, origins)
            origins[tool["name"]] = origin
            described = self._namespaces.pop(origin.namespace or "", "")
            if described.strip():  # once, with the first tool
                prefix = upstream_name("", origin.namespace)
                lines = (f"About all tools {prefix}...: {described}", tool.get("description"))
                tool["description"] = "\n\n".join(line for line in lines if line)
        return list(self._tools.values()), origins

    def _take_namespace(self, namespace: Json, param: str, *, replaces: bool) -> None:
        name = _name(namespace, param)
        if namespace.get("description") is not None:
            self._namespaces[name] = text(namespace["description"], f"{param}.description")
        for index, tool in enumerate(array(namespace.get("tools"), f"{param}.tools")):
            where = f"{param}.tools[{index}]"
            tool = obj(tool, where)
            one_of(tool.get("type"), f"{where}.type", ("function", "custom"))
            self._take_named(tool, where, name, replaces=replaces)

    def _take_named(
        self, given: Json, param: str, namespace: str | None, *, replaces: bool
    ) -> None:
        name = _name(given, param)
        if given["type"] == "function":
            origin = Origin(ToolKind.FUNCTION, name, namespace)
            tool = function_tool(given, param, upstream_name(name, namespace))
        else:
            origin = Origin(ToolKind.CUSTOM, name, namespace)
            tool = self._custom(given, param, upstream_name(name, namespace))
        cached = cache_control(given, param, self._ignored)
        if cached is not None:
            tool["cache_control"] = cached
        self._ignored += [
            f"tools.{field}"
            for field, nothing in _DROPPED.items()
            if field in given and given[field] not in nothing
        ]
        self._add(origin, tool, param, replaces=replaces)

    def _custom(self, given: Json, param: str, name: str) -> Json:
        described = {"description": given.get("description"), "parameters": _INPUT}
        tool = function_tool(described, param, name)
        if given.get("format") is not None:
            expected = _format(obj(given["format"], f"{param}.format"), f"{param}.format")
            if expected:
                tool["description"] = "\n\n".join(filter(None, (tool.get("description"), expected)))
                self._ignored.append("tools.format")
        return tool

    def _take_web_search(self, given: Json, param: str) -> None:
        live = given.get("external_web_access")
        if not self._web_search or (
            live is not None and not boolean(live, f"{param}.external_web_access")
        ):
            self._leave_out("web_search")
        else:
            tool = web_search_tool(given, param, self._limit, self._ignored)
            self._add(_WEB_SEARCH, tool, param, replaces=True)

    def _leave_out(self, kind: str) -> None:
        self.left_out.add(kind)
        self._ignored.append(f"tools.{kind}")

    def _add(self, origin: Origin, tool: Json, param: str, *, replaces: bool) -> None:
        if not replaces and self._tools.get(origin, tool) != tool:
            refuse(
                f"{param}.name",
                f"({origin.name[:MAX_QUOTED]}) must differ from that of other tools",
            )
        self._tools[origin] = tool


def _name(tool: Json, param: str) -> str:
    name = text(tool.get("name"), f"{param}.name")
    if not name:
        refuse(f"{param}.name", "must not be empty")
    return name


def _format(given: Json, param: str) -> str:
    """Return the description of a custom tool's format; empty for any text."""
    if one_of(given.get("type"), f"{param}.type", ("text", "grammar")) == "text":
        return ""
    syntax = one_of(given.get("syntax"), f"{param}.syntax", ("lark", "regex"))
    definition = text(given.get("definition"), f"{param}.definition")
    kind = "this Lark grammar" if syntax == "lark" else "this regular expression as a whole"
    return f"The input must match {kind}:\n{definition}"

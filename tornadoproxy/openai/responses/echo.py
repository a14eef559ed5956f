"""The fields of a response that repeat its request, or that are the same in all responses.

Open Responses requires all of them, ``null`` where nothing is known.

Sources: https://platform.openai.com/docs/api-reference/responses/object and
https://www.openresponses.org/specification
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json

# Fields of a request that the response repeats as they are, and their values where it has none.
_REPEATED: dict[str, object] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "temperature": 1.0,
    "tool_choice": "auto",
    "top_p": 1.0,
}
_CONSTANT: dict[str, object] = {
    "object": "response",
    "background": False,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "service_tier": "default",
    "top_logprobs": 0,
    "truncation": "disabled",
}

_DEFAULTS: Json = {**_CONSTANT, **_REPEATED}
_NAMES = frozenset({*_REPEATED, "user"})

# What a client may leave out of a function, and read in the response all the same.
_FUNCTION: dict[str, object] = {"description": None, "parameters": None, "strict": False}


def echo(document: Json, reasoning: Json, text: Json, *, kept: bool) -> Json:
    """Return these fields for the response to a request that was translated, and is thus valid.

    :param reasoning: the ``effort`` and ``summary`` that count, of the request or an item in it.
    :param text: the ``format`` that counts, if any.
    :param kept: whether the response is stored.
    """
    fields = _DEFAULTS.copy()
    for name in _NAMES.intersection(document):
        if document[name] is not None:
            fields[name] = document[name]
    given = document.get("text") or {}
    verbosity = {"verbosity": given["verbosity"]} if given.get("verbosity") is not None else {}
    fields["reasoning"] = reasoning
    fields["store"] = kept
    fields["text"] = {"format": text.get("format") or {"type": "text"}, **verbosity}
    fields["tools"] = [_tool(tool) for tool in document.get("tools") or ()]
    return fields


def _tool(tool: Json) -> Json:
    if tool["type"] == "namespace":
        return {**tool, "tools": [_tool(each) for each in tool["tools"]]}
    if tool["type"] != "function":
        return tool
    given = {name: value for name, value in tool.items() if value is not None}
    return {**_FUNCTION, **given}

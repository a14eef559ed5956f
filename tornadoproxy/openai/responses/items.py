"""Input items: their types, and those that stand for what is stored.

Source: https://platform.openai.com/docs/api-reference/responses/create (``input``)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tornadoproxy.errors import InvalidRequest, NotFound
from tornadoproxy.openai.reading import MAX_QUOTED, Json, obj, refuse, text
from tornadoproxy.openai.treatment import Table, Treatment, table

_CALL = "a call of the tool"
_RESULT = "the call's result, first in the user's turn"

_TRANSLATED = {
    "message": "blocks of its role's turn; system and developer messages: `system`, see above",
    "function_call": _CALL,
    "function_call_output": _RESULT,
    "custom_tool_call": f"{_CALL}, with its text as `input`",
    "custom_tool_call_output": _RESULT,
    "tool_search_call": _CALL,
    "tool_search_output": f"{_RESULT}; its tools join `tools`",
    "shell_call": _CALL,
    "shell_call_output": _RESULT,
    "local_shell_call": _CALL,
    "local_shell_call_output": _RESULT,
    "apply_patch_call": _CALL,
    "apply_patch_call_output": _RESULT,
    "additional_tools": "its tools join `tools`",
    "configuration_update": "its effort and format replace the request's; the last one counts",
    "compaction_trigger": "a request for a summary; the response is one `compaction` item",
}

_CARRIED = {
    "reasoning": "the upstream's blocks in `encrypted_content`; ignored if missing or another's",
    "compaction": "the summary in `encrypted_content`, as a user message",
}

_STORED = {"item_reference": "the stored item of that `id`; unknown ones are refused"}

_IGNORED = {
    "web_search_call": "the `reasoning` item after it has its blocks; named only without that item"
}

_REFUSED = {
    "code_interpreter_call": "there is no code interpreter",
    "computer_call": "there is no computer tool",
    "computer_call_output": "there is no computer tool",
    "file_search_call": "there is no file search",
    "image_generation_call": "there is no image generation",
    "mcp_approval_request": "there is no MCP connection",
    "mcp_approval_response": "there is no MCP connection",
    "mcp_call": "there is no MCP connection",
    "mcp_list_tools": "there is no MCP connection",
    "program": "there is no programmatic tool calling",
    "program_output": "there is no programmatic tool calling",
}

ITEMS: Table = table(
    {
        Treatment.TRANSLATED: _TRANSLATED,
        Treatment.CARRIED: _CARRIED,
        Treatment.STORED: _STORED,
        Treatment.IGNORED: _IGNORED,
        Treatment.REFUSED: _REFUSED,
    }
)
"""The treatment of each type of item, with a note for the documentation."""


_MADE_ID = re.compile(r"item_(.+)_([0-9]{1,6})")


class Listed(NamedTuple):
    """An input item with its type and its place in the request."""

    item: Json
    kind: str
    param: str


def own_items(document: Json) -> list[Listed]:
    """Return the items in a request's ``input``; a string is one user message.

    :raises InvalidRequest: an item is not an object, or of a type that is refused.
    """
    given = document.get("input")
    if given is None:
        return []
    if isinstance(given, str):
        message = {"type": "message", "role": "user", "content": given}
        return [Listed(message, "message", "input")]
    if not isinstance(given, list):
        refuse("input", "must be a string or a list of items")
    found = []
    for index, item in enumerate(given):
        param = f"input[{index}]"
        found.append(Listed(item, item_type(item, param), param))
    return found


def resolved(own: Iterable[Listed], items: Mapping[str, Json], *, has_store: bool) -> list[Listed]:
    """Return a request's own items, with the stored ones in the place of references.

    :param items: the stored items by their ids.
    :raises NotFound: an item is not among them.
    """
    return [
        _stored(each, items, has_store=has_store) if each.kind == "item_reference" else each
        for each in own
    ]


def continued(document: Json, earlier: Iterable[Json] | None, *, has_store: bool) -> list[Listed]:
    """Return the items of the responses that a request continues.

    A compaction stands for what the model said and did before it.

    :param earlier: these items, if they are stored.
    :raises InvalidRequest: they are not.
    """
    param = "previous_response_id"
    if document.get(param) is None:
        return []
    previous = text(document[param], param)[:MAX_QUOTED]
    if earlier is None:
        raise InvalidRequest(
            f"Previous response with id '{previous}' not found. {_why_unknown(has_store)}: "
            "send the whole input instead.",
            param=param,
            code="previous_response_not_found",
        )
    found = [Listed(item, item_type(item, param), param) for item in earlier]
    compacted = max((at for at, each in enumerate(found) if each.kind == "compaction"), default=0)
    return [each for each in found[:compacted] if _outlives(each)] + found[compacted:]


def shown(item: Json, response_id: str, index: int) -> Json:
    """Return an input item as the list of a response's input items has it: whole, with an id.

    :param response_id: the id of the response.
    :param index: the item's place in the input.
    """
    kind = item_type(item, "input")
    whole = {**item, "type": kind}
    if not isinstance(item.get("id"), str) or not item["id"]:
        whole["id"] = made_id(response_id, index)
    if kind == "message":
        whole.setdefault("status", "completed")
        content = item.get("content")
        if isinstance(content, str):
            part: Json = {"type": "input_text", "text": content}
            if item["role"] == "assistant":
                part = {"type": "output_text", "text": content, "annotations": []}
            whole["content"] = [part]
    return whole


def made_id(response_id: str, index: int) -> str:
    """Return the id of an input item that came without one; see `place_of`."""
    return f"item_{response_id.removeprefix('resp_')}_{index}"


def place_of(item_id: str) -> tuple[str, int] | None:
    """Return the response and the place in its input that `made_id` made an id of, if it did."""
    made = _MADE_ID.fullmatch(item_id)
    return None if made is None else (f"resp_{made[1]}", int(made[2]))


def item_type(item: object, param: str) -> str:
    """Return the type of an input item; a message and a reference may come without one.

    :raises InvalidRequest: the type is unknown, or one that is refused.
    """
    item = obj(item, param)
    kind = item.get("type")
    if kind is None:
        if "role" in item:
            return "message"
        if item.keys() <= {"id", "type"} and "id" in item:
            return "item_reference"
    kind = text(kind, f"{param}.type")
    if kind in _REFUSED:
        refuse(param, f"(a {kind}) is not supported: {_REFUSED[kind]}; leave the item out")
    if kind not in ITEMS:
        refuse(f"{param}.type", f"({kind[:MAX_QUOTED]}) is not a known type of item")
    return kind


def _outlives(listed: Listed) -> bool:
    """Whether a compaction leaves an item as it is."""
    if listed.kind == "message":
        return bool(listed.item.get("role") != "assistant")
    return listed.kind in ("additional_tools", "configuration_update")


def _stored(listed: Listed, items: Mapping[str, Json], *, has_store: bool) -> Listed:
    param = f"{listed.param}.id"
    item_id = text(listed.item.get("id"), param)
    if item_id not in items:
        raise NotFound(
            f"Item with id '{item_id[:MAX_QUOTED]}' not found. {_why_unknown(has_store)}: "
            "set `store` to false in the client, so that it sends its items in full, "
            "or remove this item from the input.",
            error_type="invalid_request_error",
            param=param,
        )
    item = items[item_id]
    return Listed(item, item_type(item, listed.param), listed.param)


def _why_unknown(has_store: bool) -> str:
    if has_store:
        return "It is unknown, was not stored, or has expired"
    return "This proxy stores no responses (RESPONSES_STORE is off)"

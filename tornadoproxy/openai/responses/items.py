"""The treatment of each type of input item.

Source: https://platform.openai.com/docs/api-reference/responses/create (``input``)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.openai.reading import MAX_QUOTED, refuse, text
from tornadoproxy.openai.treatment import Table, Treatment, table

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json

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
    "reasoning": "the upstream's blocks in `encrypted_content`; ignored if missing or foreign",
    "compaction": "the summary in `encrypted_content`, as a message of the user's",
}

_STORED = {"item_reference": "the stored item of that `id`; unknown ones are refused"}

_IGNORED = {
    "web_search_call": "the `reasoning` item behind it has its blocks; named only without that item"
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


def item_type(item: Json, param: str) -> str:
    """Return the type of an input item; a message and a reference may come without one.

    :raises InvalidRequest: the type is unknown, or one that is refused.
    """
    given = item.get("type")
    if given is None:
        if "role" in item:
            return "message"
        if item.keys() <= {"id", "type"} and "id" in item:
            return "item_reference"
    kind = text(given, f"{param}.type")
    if kind in _REFUSED:
        refuse(param, f"(a {kind}) is not supported: {_REFUSED[kind]}; leave the item out")
    if kind not in ITEMS:
        refuse(f"{param}.type", f"({kind[:MAX_QUOTED]}) is not a type of items known here")
    return kind

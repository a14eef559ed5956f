"""Calls of tools and their outputs: input items into blocks, and blocks into output items.

The input of the upstream's call is the arguments of a function, an object with the text of a custom
tool, or the action of a built-in tool; see `action_tools`. An action's fields that are ``null`` are
left out in both directions.

A model may write an input that is not of the tool's form. Its item has the form all the same, with
what is missing left empty, so that the client can read it and report the mistake to the model.

Source: https://platform.openai.com/docs/api-reference/responses/object (``output``)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from tornadoproxy.openai.reading import Json, obj, text
from tornadoproxy.openai.responses.action_tools import NAMES
from tornadoproxy.openai.responses.custom_input import INPUT, InputText
from tornadoproxy.openai.responses.names import name_among
from tornadoproxy.openai.responses.translation import Origin, ToolKind
from tornadoproxy.openai.turns import call_input
from tornadoproxy.openai.writing import arguments, string
from tornadoproxy.protocol import json_codec

if TYPE_CHECKING:
    from msgspec import Raw

_OPERATIONS = ("update_file", "create_file", "delete_file")  # the first stands for any other

_NOTHING: tuple[object, ...] = (None, {})


class _Form(NamedTuple):
    """The items of the calls of one kind of tool.

    :param call: the type of a call's item.
    :param output: the type of its output's item.
    :param read: returns the input of the call in an item.
    :param write: returns the fields of an item for an input.
    """

    call: str
    output: str
    read: Callable[[Json, str], Json | Raw]
    write: Callable[[object], Json]


def call_of_item(
    item: Json, param: str, offered: Mapping[str, Origin] | None = None
) -> tuple[str, Json | Raw]:
    """Return the upstream's name of the tool that an item calls, and the call's input.

    :param item: of one of the types in `CALLS`.
    :param offered: the client's tool for each name of a tool that is offered.
    :raises InvalidRequest: the item is invalid.
    """
    kind = CALLS[item["type"]]
    if kind in NAMES:
        origin = Origin(kind, NAMES[kind])
    else:
        namespace = item.get("namespace")
        namespace = None if namespace is None else text(namespace, f"{param}.namespace")
        origin = Origin(kind, text(item.get("name"), f"{param}.name"), namespace)
    return name_among(origin, offered or {}), _FORMS[kind].read(item, param)


def item_of_call(
    origin: Origin, item_id: str, call_id: str, tool_input: object, status: str
) -> Json:
    """Return the output item for a call.

    :param tool_input: the input that the upstream sent: an object, or its JSON text as far as it
        was streamed.
    :param status: ``in_progress``, ``completed`` or ``incomplete``.
    """
    form = _FORMS[origin.kind]
    item: Json = {"type": form.call, "id": item_id, "call_id": call_id}
    if origin.kind not in NAMES:
        item["name"] = origin.name
        if origin.namespace is not None:
            item["namespace"] = origin.namespace
    if origin.kind is ToolKind.APPLY_PATCH and status == "incomplete":  # the type lacks it
        status = "in_progress"
    return {**item, "status": status, **form.write(tool_input)}


def _function_input(item: Json, param: str) -> Json | Raw:
    return call_input(item.get("arguments"), f"{param}.arguments")


def _function_fields(tool_input: object) -> Json:
    is_text = isinstance(tool_input, str)
    return {"arguments": tool_input if is_text else arguments(tool_input)}


def _custom_input(item: Json, param: str) -> Json:
    return {INPUT: text(item.get("input"), f"{param}.input")}


def _custom_fields(tool_input: object) -> Json:
    if isinstance(tool_input, str):
        return {"input": InputText().feed(tool_input)}
    return {"input": string(_object(tool_input).get(INPUT))}


def _search_input(item: Json, param: str) -> Json | Raw:
    given = item.get("arguments")
    return given if isinstance(given, dict) else call_input(given, f"{param}.arguments")


def _search_fields(tool_input: object) -> Json:
    return {"execution": "client", "arguments": _object(tool_input)}


def _action_input(name: str, *fields: str) -> Callable[[Json, str], Json]:
    """Return what reads the `fields` of the action `name` of an item."""

    def read(item: Json, param: str) -> Json:
        action = obj(item.get(name), f"{param}.{name}")
        return {field: action[field] for field in fields if action.get(field) not in _NOTHING}

    return read


def _shell_fields(tool_input: object) -> Json:
    given = _object(tool_input)
    limits = _numbers(given, "timeout_ms", "max_output_length")
    return {"action": {"commands": _texts(given.get("commands")), **limits}}


def _local_shell_fields(tool_input: object) -> Json:
    given = _object(tool_input)
    env = {name: each for name, each in _object(given.get("env")).items() if isinstance(each, str)}
    where = {name: given[name] for name in ("working_directory", "user") if string(given.get(name))}
    command = _texts(given.get("command"))
    limit = _numbers(given, "timeout_ms")
    return {"action": {"type": "exec", "command": command, "env": env, **where, **limit}}


def _patch_fields(tool_input: object) -> Json:
    given = _object(tool_input)
    kind = given.get("type")
    operation = {
        "type": kind if kind in _OPERATIONS else _OPERATIONS[0],
        "path": string(given.get("path")),
    }
    if operation["type"] != "delete_file":
        operation["diff"] = string(given.get("diff"))
    return {"operation": operation}


def _object(tool_input: object) -> Json:
    if isinstance(tool_input, str):
        try:
            tool_input = json_codec.loads(tool_input.encode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError):  # it was cut
            tool_input = None
    return tool_input if isinstance(tool_input, dict) else {}


def _texts(value: object) -> list[str]:
    """Return a list of texts; a text by itself is a list of one."""
    if isinstance(value, str):
        return [value]
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _numbers(given: Json, *names: str) -> Json:
    return {name: given[name] for name in names if type(given.get(name)) is int}


_FORMS = {
    ToolKind.FUNCTION: _Form(
        "function_call",
        "function_call_output",
        _function_input,
        _function_fields,
    ),
    ToolKind.CUSTOM: _Form(
        "custom_tool_call",
        "custom_tool_call_output",
        _custom_input,
        _custom_fields,
    ),
    ToolKind.TOOL_SEARCH: _Form(
        "tool_search_call",
        "tool_search_output",
        _search_input,
        _search_fields,
    ),
    ToolKind.SHELL: _Form(
        "shell_call",
        "shell_call_output",
        _action_input("action", "commands", "timeout_ms", "max_output_length"),
        _shell_fields,
    ),
    ToolKind.LOCAL_SHELL: _Form(
        "local_shell_call",
        "local_shell_call_output",
        _action_input("action", "command", "working_directory", "env", "user", "timeout_ms"),
        _local_shell_fields,
    ),
    ToolKind.APPLY_PATCH: _Form(
        "apply_patch_call",
        "apply_patch_call_output",
        _action_input("operation", "type", "path", "diff"),
        _patch_fields,
    ),
}

CALLS = {form.call: kind for kind, form in _FORMS.items()}
"""The kind of tool that each type of item calls."""

OUTPUTS = {form.output: kind for kind, form in _FORMS.items()}
"""The kind of tool whose output each type of item is."""

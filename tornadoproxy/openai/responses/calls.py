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

from tornadoproxy.openai.content import text_block
from tornadoproxy.openai.reading import Json, array, obj, text
from tornadoproxy.openai.responses import parts
from tornadoproxy.openai.responses.action_tools import NAMES
from tornadoproxy.openai.responses.custom_input import INPUT, InputText
from tornadoproxy.openai.responses.names import name_among, upstream_name
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
    :param result: returns the blocks of the output in an item.
    """

    call: str
    output: str
    read: Callable[[Json, str], Json | Raw]
    write: Callable[[object], Json]
    result: Callable[[Json, str, list[str]], list[Json]]


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
        given = item.get("namespace")
        namespace = "" if given is None else text(given, f"{param}.namespace")
        origin = Origin(kind, text(item.get("name"), f"{param}.name"), namespace or None)
    return name_among(origin, offered or {}), _FORMS[kind].read(item, param)


def output_of_item(item: Json, param: str, ignored: list[str]) -> list[Json]:
    """Return the blocks of a call's result.

    :param item: of one of the types in `OUTPUTS`.
    :param ignored: takes the names of what is dropped.
    :raises InvalidRequest: the item is invalid.
    """
    return _FORMS[OUTPUTS[item["type"]]].result(item, param, ignored)


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


def _content(item: Json, param: str, ignored: list[str]) -> list[Json]:
    return parts.blocks(item.get("output"), f"{param}.output", parts.IN_USER, ignored)


def _search_input(item: Json, param: str) -> Json | Raw:
    given = item.get("arguments")
    return given if isinstance(given, dict) else call_input(given, f"{param}.arguments")


def _search_fields(tool_input: object) -> Json:
    return {"execution": "client", "arguments": _object(tool_input)}


def _found_tools(item: Json, param: str, ignored: list[str]) -> list[Json]:
    """Return the names of the tools that a search has found; the tools themselves are offered."""
    names: list[str] = []
    for index, tool in enumerate(array(item.get("tools"), f"{param}.tools")):
        where = f"{param}.tools[{index}]"
        tool = obj(tool, where)
        if tool.get("type") == "namespace":
            namespace = text(tool.get("name"), f"{where}.name")
            within = array(tool.get("tools"), f"{where}.tools")
        else:
            namespace, within = None, [tool]
        for each in within:
            name = text(obj(each, where).get("name"), f"{where}.name")
            names.append(upstream_name(name, namespace))
    found = "These tools can be called now: " + ", ".join(names) if names else "No tool was found."
    return [text_block(found)]


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


def _shell_output(item: Json, param: str, ignored: list[str]) -> list[Json]:
    param = f"{param}.output"
    lines: list[str] = []
    for index, chunk in enumerate(array(item.get("output"), param)):
        where = f"{param}[{index}]"
        chunk = obj(chunk, where)
        output, errors = (
            text(chunk.get(each), f"{where}.{each}").removesuffix("\n")
            for each in ("stdout", "stderr")
        )
        outcome = obj(chunk.get("outcome"), f"{where}.outcome")
        lines += [output] if output else []
        lines += [f"stderr:\n{errors}"] if errors else []
        timed_out = outcome.get("type") == "timeout"
        lines.append("timed out" if timed_out else f"exit code: {outcome.get('exit_code')}")
    return _text("\n".join(lines))


def _local_shell_fields(tool_input: object) -> Json:
    given = _object(tool_input)
    env = {name: each for name, each in _object(given.get("env")).items() if isinstance(each, str)}
    where = {name: given[name] for name in ("working_directory", "user") if string(given.get(name))}
    command = _texts(given.get("command"))
    limit = _numbers(given, "timeout_ms")
    return {"action": {"type": "exec", "command": command, "env": env, **where, **limit}}


def _local_shell_output(item: Json, param: str, ignored: list[str]) -> list[Json]:
    return _text(text(item.get("output"), f"{param}.output"))


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


def _patch_output(item: Json, param: str, ignored: list[str]) -> list[Json]:
    given = item.get("output")
    lines = ["The patch failed."] if item.get("status") == "failed" else []
    lines += [] if given is None else [text(given, f"{param}.output")]
    return _text("\n".join(lines))


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


def _text(content: str) -> list[Json]:
    return [text_block(content)] if content.strip() else []


_FORMS = {
    ToolKind.FUNCTION: _Form(
        "function_call",
        "function_call_output",
        _function_input,
        _function_fields,
        _content,
    ),
    ToolKind.CUSTOM: _Form(
        "custom_tool_call",
        "custom_tool_call_output",
        _custom_input,
        _custom_fields,
        _content,
    ),
    ToolKind.TOOL_SEARCH: _Form(
        "tool_search_call",
        "tool_search_output",
        _search_input,
        _search_fields,
        _found_tools,
    ),
    ToolKind.SHELL: _Form(
        "shell_call",
        "shell_call_output",
        _action_input("action", "commands", "timeout_ms", "max_output_length"),
        _shell_fields,
        _shell_output,
    ),
    ToolKind.LOCAL_SHELL: _Form(
        "local_shell_call",
        "local_shell_call_output",
        _action_input("action", "command", "working_directory", "env", "user", "timeout_ms"),
        _local_shell_fields,
        _local_shell_output,
    ),
    ToolKind.APPLY_PATCH: _Form(
        "apply_patch_call",
        "apply_patch_call_output",
        _action_input("operation", "type", "path", "diff"),
        _patch_fields,
        _patch_output,
    ),
}

CALLS = {form.call: kind for kind, form in _FORMS.items()}
"""The kind of tool that each type of item calls."""

OUTPUTS = {form.output: kind for kind, form in _FORMS.items()}
"""The kind of tool whose output each type of item is."""

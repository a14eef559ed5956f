"""OpenAI's built-in tools that the client runs, offered to Claude as functions.

OpenAI's models know these tools, so a client names them without a schema or a description. Claude
gets both. The input of each function is the action of its call, so that calls are translated field
by field; see `calls`.

Sources: https://platform.openai.com/docs/guides/tools-shell,
https://platform.openai.com/docs/guides/tools-local-shell and
https://platform.openai.com/docs/guides/tools-apply-patch
"""

from __future__ import annotations

from tornadoproxy.openai.reading import Json, array, obj, refuse, text
from tornadoproxy.openai.responses.translation import ToolKind
from tornadoproxy.openai.tools import function_tool

NAMES = {
    ToolKind.TOOL_SEARCH: "tool_search",
    ToolKind.SHELL: "shell",
    ToolKind.LOCAL_SHELL: "local_shell",
    ToolKind.APPLY_PATCH: "apply_patch",
    ToolKind.WEB_SEARCH: "web_search",
}
"""The names of the tools that a client names by their type."""

_TEXT: Json = {"type": "string"}
_TEXTS: Json = {"type": "array", "items": _TEXT}
_MILLISECONDS: Json = {"type": "integer", "description": "The most milliseconds that it may run."}

_TOOL_SEARCH = "Searches for more tools, which can be called from then on."

_SHELL = (
    "Runs shell commands on the user's machine, in the order in which they are listed. Returns the"
    " output of each command, its errors, and its exit code or that it ran out of time."
)

_LOCAL_SHELL = (
    "Runs a command on the user's machine and returns its output. The command is a program with"
    ' its arguments; for the syntax of a shell, run one: ["bash", "-lc", "ls | wc -l"].'
)

# V4A, as the clients' own parsers read it: see `apply_diff` of OpenAI's Agents SDK.
_APPLY_PATCH = """\
Creates, updates or deletes one file of the user's workspace. Call it once for each file.

- create_file: `diff` is the content of the new file, with a + before each line, empty ones too.
- update_file: `diff` is the changes to the file, in the format V4A, described below.
- delete_file: has no `diff`.

A diff in the format V4A is one or more sections. A section begins with a line of @@ alone, or of
@@ and a space and a line of the file, such as the head of a class or function, from which on the
section is searched for; several such lines, one below the other, narrow the search down. The lines
after them are the section: a line to keep has a space before it, a line to remove has a -, a line
to add has a +. There are no line numbers. Show about three lines to keep before and after each
change, so that the place is found and found only once; they must be exactly those of the file,
blanks included. Sections stand in the order of the file and do not overlap. A section that ends
where the file ends can be closed with the line *** End of File. For example:

@@ class Greeter:
@@     def greet(self):
         name = self.name
-        print("Hi", name)
+        print("Hello", name)
         return name"""


def _closed(properties: Json, *required: str) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_ANY_QUERY = _closed({"query": {**_TEXT, "description": "What the tools are to do."}}, "query")

_SCHEMAS = {
    ToolKind.SHELL: _closed(
        {
            "commands": {**_TEXTS, "description": "The commands, run one after the other."},
            "timeout_ms": _MILLISECONDS,
            "max_output_length": {
                "type": "integer",
                "description": "The most characters of output that are returned.",
            },
        },
        "commands",
    ),
    ToolKind.LOCAL_SHELL: _closed(
        {
            "command": {**_TEXTS, "description": "The program and its arguments."},
            "working_directory": {**_TEXT, "description": "The directory to run it in."},
            "env": {
                "type": "object",
                "additionalProperties": _TEXT,
                "description": "Environment variables to set.",
            },
            "user": {**_TEXT, "description": "The user to run it as."},
            "timeout_ms": _MILLISECONDS,
        },
        "command",
    ),
    ToolKind.APPLY_PATCH: _closed(
        {
            "type": {"type": "string", "enum": ["create_file", "update_file", "delete_file"]},
            "path": {
                **_TEXT,
                "description": "The path of the file, relative to the root of the workspace.",
            },
            "diff": {**_TEXT, "description": "The content or the changes; see above."},
        },
        "type",
        "path",
    ),
}


_DESCRIPTIONS = {
    ToolKind.SHELL: _SHELL,
    ToolKind.LOCAL_SHELL: _LOCAL_SHELL,
    ToolKind.APPLY_PATCH: _APPLY_PATCH,
}


def action_tool(kind: ToolKind, given: Json, param: str) -> Json:
    """Return the function for a built-in tool that the client runs.

    :param given: the client's tool.
    :raises InvalidRequest: a field of it is invalid, or the tool is to run at OpenAI's.
    """
    if kind is ToolKind.TOOL_SEARCH:
        tool = {"description": _TOOL_SEARCH, "parameters": _ANY_QUERY}
        own = {name: given[name] for name in tool if given.get(name) is not None}
        return function_tool({**tool, **own}, param, NAMES[kind])
    described = _DESCRIPTIONS[kind]
    if given.get("environment") is not None:
        described += _skills(obj(given["environment"], f"{param}.environment"), param)
    return {"name": NAMES[kind], "description": described, "input_schema": _SCHEMAS[kind]}


def _skills(environment: Json, param: str) -> str:
    """Return the part of a shell's description that lists the skills of its environment."""
    if environment.get("type") != "local":
        refuse(
            f"{param}.environment.type",
            "must be local, so that the client runs the commands: there are no containers",
        )
    skills = environment.get("skills")
    if not skills:
        return ""
    lines = ["\n\nThese directories have instructions for some tasks, each in its SKILL.md:"]
    for index, skill in enumerate(array(skills, f"{param}.environment.skills")):
        where = f"{param}.environment.skills[{index}]"
        skill = obj(skill, where)
        name, described, path = (
            text(skill.get(each), f"{where}.{each}") for each in ("name", "description", "path")
        )
        lines.append(f"- {name} ({path}): {described}")
    return "\n".join(lines)

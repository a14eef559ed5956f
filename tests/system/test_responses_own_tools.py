# the framework is imported where it is installed
"""OpenAI's tools that the client runs, by the openai-agents framework against the real proxy.

A call of Claude's runs the tool, and goes back upstream unchanged with the tool's output.
"""

from __future__ import annotations

import pytest

pytest.importorskip("agents", reason="needs the frameworks of the extra clients")

from agents import (
    Agent,
    ApplyPatchOperation,
    ApplyPatchTool,
    CustomTool,
    LocalShellCommandRequest,
    LocalShellTool,
    OpenAIResponsesModel,
    Runner,
    ShellCallOutcome,
    ShellCommandOutput,
    ShellCommandRequest,
    ShellResult,
    ShellTool,
    Tool,
    apply_diff,
    set_tracing_disabled,
)
from agents.tool_context import ToolContext
from openai import AsyncOpenAI
from scene import Scene
from turns import THOUGHT, asked, blocks, call, script, text, turn

from tornadoproxy.testing import Document

pytestmark = [
    pytest.mark.long,
    pytest.mark.usefixtures("proxy"),
    pytest.mark.gen_test(timeout=30),
]

BEFORE = """\
class Other:
    def greet(self):
        print("Hi")

class Greeter:
    def greet(self):
        print("Hi")
"""


class Editor:
    """Applies changes to files that are kept in memory."""

    def __init__(self) -> None:
        self.files = {"a.py": BEFORE, "old.py": ""}

    def create_file(self, operation: ApplyPatchOperation) -> str:
        self.files[operation.path] = apply_diff("", operation.diff or "", mode="create")
        return "created"

    def update_file(self, operation: ApplyPatchOperation) -> str:
        before = self.files[operation.path]
        self.files[operation.path] = apply_diff(before, operation.diff or "")
        return "updated"

    def delete_file(self, operation: ApplyPatchOperation) -> str:
        del self.files[operation.path]
        return "deleted"


def run_shell(request: ShellCommandRequest) -> ShellResult:
    action = request.data.action
    ran = [
        ShellCommandOutput(stdout=f"ran {command}\n", outcome=ShellCallOutcome("exit", 0))
        for command in action.commands
    ]
    return ShellResult(output=ran, max_output_length=action.max_output_length)


def run_local_shell(request: LocalShellCommandRequest) -> str:
    return f"ran {request.data.action.command}"


async def run_code(context: ToolContext[object], code: str) -> str:
    return f"ran {code!r}"


@pytest.mark.parametrize(
    ("tool", "wanted", "output"),
    [
        (
            ShellTool(run_shell),
            call("shell", commands=["ls", "pwd"], timeout_ms=500),
            "ran ls\nexit code: 0\nran pwd\nexit code: 0",
        ),
        (LocalShellTool(run_local_shell), call("local_shell", command=["ls"]), "ran ['ls']"),
        (
            CustomTool("run", "Runs code.", run_code),
            call("run", input='print("é😀")\n'),
            "ran 'print(\"é😀\")\\n'",
        ),
    ],
    ids=["shell", "local_shell", "custom"],
)
async def test_agents_run_a_tool_of_openais(
    tool: Tool, wanted: Document, output: str, openai_client: AsyncOpenAI, scene: Scene
) -> None:
    set_tracing_disabled(True)
    agent = Agent("A", model=OpenAIResponsesModel("claude-opus-5-5", openai_client), tools=[tool])
    await script(scene, turn(THOUGHT, wanted), turn(text("Done.")))
    ran = await Runner.run(agent, "Do it")
    assert ran.final_output == "Done."
    first, second = asked(scene.upstream)
    assert [each["name"] for each in first["tools"]] == [wanted["name"]]
    assert blocks(second, "assistant") == [THOUGHT, wanted]
    (result,) = [each for each in blocks(second, "user") if each["type"] == "tool_result"]
    assert result["content"] == output


async def test_agents_apply_patches(openai_client: AsyncOpenAI, scene: Scene) -> None:
    set_tracing_disabled(True)
    editor = Editor()
    agent = Agent(
        "Editor",
        model=OpenAIResponsesModel("claude-opus-5-5", openai_client),
        tools=[ApplyPatchTool(editor)],
    )
    diff = (
        '@@ class Greeter:\n@@     def greet(self):\n-        print("Hi")\n+        print("Hello")'
    )
    patches = [
        call("apply_patch", 1, type="update_file", path="a.py", diff=diff),
        call("apply_patch", 2, type="create_file", path="new.py", diff="+a = 1\n+"),
        call("apply_patch", 3, type="delete_file", path="old.py"),
        call("apply_patch", 4, type="update_file", path="a.py", diff="@@\n-absent\n+x"),
    ]
    await script(scene, turn(*patches), turn(text("Done.")))
    ran = await Runner.run(agent, "Greet")
    assert ran.final_output == "Done."
    kept, _, changed = BEFORE.partition("class Greeter")
    expected = f"{kept}class Greeter{changed.replace('Hi', 'Hello')}"
    assert editor.files == {"a.py": expected, "new.py": "a = 1\n"}
    _, second = asked(scene.upstream)
    assert blocks(second, "assistant") == patches
    results = [each["content"] for each in blocks(second, "user") if each["type"] == "tool_result"]
    assert results[:3] == ["updated", "created", "deleted"]
    assert results[3].startswith("The patch failed.\n")

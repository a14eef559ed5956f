"""The real Codex CLI on a Claude model, against the real proxy: what a person gets done with it.

It runs where ``npm install --prefix tests/system/codex`` has been run, as ``.ci/run`` does. It
reaches loopback only: all else would go through an HTTPS proxy that is not there.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from program import printed_by
from scene import Scene
from turns import THOUGHT, asked, blocks, call, script, text, turn

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    Document,
    Proxy,
    Response,
    ScriptedUpstream,
    error_response,
    message_document,
    message_events,
    sse_response,
)

CODEX = Path(__file__).parent / "codex" / "node_modules" / ".bin" / "codex"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CODEX.exists(), reason="needs Codex, installed with npm"),
    pytest.mark.gen_test(timeout=60),  # it takes long to start while other tests run
]

MODEL = "claude-sonnet-5-5"


@dataclass
class Told:
    """What Codex printed: its events, and its exit status."""

    status: int
    events: list[Document]
    stderr: str = field(repr=False)

    @property
    def text(self) -> str:
        """Its last message."""
        said = [item["text"] for item in self.items("agent_message")]
        return said[-1] if said else ""

    def items(self, kind: str) -> list[Document]:
        return [
            event["item"]
            for event in self.events
            if event["type"] == "item.completed" and event["item"]["type"] == kind
        ]

    @property
    def errors(self) -> list[str]:
        return [event["message"] for event in self.events if event["type"] == "error"]


class Codex:
    """Codex in a directory and with a configuration of its own."""

    def __init__(self, directory: Path, proxy: Proxy) -> None:
        self.work = directory / "work"
        self.home = directory / "home"
        self.work.mkdir()
        self.home.mkdir()
        self.proxy = proxy

    async def __call__(
        self,
        prompt: str,
        *arguments: str,
        model: str = MODEL,
        config: str = "",
        provider: str = "proxy",
        name: str = "Claude",
    ) -> Told:
        """Run one prompt.

        :param arguments: further ones, such as ``resume --last``, before the prompt.
        :param config: further lines of its configuration.
        :param provider: that of the configuration, or one of Codex's own.
        :param name: of the provider of the configuration.
        """
        (self.home / "config.toml").write_text(
            f"""
model = "{model}"
model_provider = "{provider}"
openai_base_url = "{self.proxy.url}/openai/v1"
approval_policy = "never"
sandbox_mode = "danger-full-access"
{config}
[model_providers.proxy]
name = "{name}"
base_url = "{self.proxy.url}/openai/v1"
env_key = "PROXY_TOKEN"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 1
"""
        )
        process = await asyncio.create_subprocess_exec(
            *(str(CODEX), "exec", "--json", "--skip-git-repo-check", *arguments, prompt),
            cwd=self.work,
            env={
                "CODEX_HOME": str(self.home),
                "HOME": str(self.home),
                "PATH": os.environ["PATH"],
                "PROXY_TOKEN": TEST_TOKEN,
                "CODEX_API_KEY": TEST_TOKEN,
                "HTTPS_PROXY": "http://127.0.0.1:9",
                "NO_PROXY": "127.0.0.1",
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        printed, errors = await printed_by(process)
        events = [json.loads(line) for line in printed.splitlines() if line.startswith(b"{")]
        return Told(process.returncode or 0, events, errors.decode())


@pytest.fixture
def codex(tmp_path: Path, proxy: Proxy) -> Codex:
    return Codex(tmp_path, proxy)


def shell(command: str, number: int = 1) -> Document:
    return call("exec_command", number, cmd=command)


def results(document: Document) -> list[Document]:
    return [each for each in blocks(document, "user") if each["type"] == "tool_result"]


async def test_codex_prints_the_response(codex: Codex, scene: Scene) -> None:
    told = await codex("Say hello")
    assert (told.status, told.errors) == (0, [])
    assert "Say hello" in told.text
    (usage,) = [event["usage"] for event in told.events if event["type"] == "turn.completed"]
    assert usage["output_tokens"] > 0


async def test_codex_needs_no_provider_of_its_own(codex: Codex, scene: Scene) -> None:
    """The built-in one tries a WebSocket first, and takes 426 for an answer."""
    codex.proxy = await scene.start(CHAT_MODELS=f"*={MODEL}")
    told = await codex("Say hello", model="gpt-5.5", provider="openai")
    assert (told.status, told.errors) == (0, [])
    assert "Say hello" in told.text
    assert [(each.method, each.status) for each in scene.records.all] == [
        ("GET", 426),
        ("POST", 200),
    ]


async def test_codex_runs_commands_and_returns_thoughts_unchanged(
    codex: Codex, scene: Scene
) -> None:
    first = (THOUGHT, text("I look."), shell("echo one"), shell("echo two", 2))
    await script(scene, turn(*first), turn(text("Done.")))
    told = await codex("Look around")
    assert (told.status, told.text) == (0, "Done.")
    assert [item["exit_code"] for item in told.items("command_execution")] == [0, 0]
    before, after = asked(scene.upstream)
    assert blocks(after, "assistant") == [*first]
    assert [each["tool_use_id"] for each in results(after)] == ["toolu_01", "toolu_02"]
    assert "one" in json.dumps(results(after)[0]["content"])
    # what is cached: tools, system prompt and the messages so far are the same
    assert [before[name] for name in ("tools", "system")] == [after["tools"], after["system"]]
    assert after["messages"][: len(before["messages"])] == before["messages"]
    assert before["cache_control"] == after["cache_control"] == {"type": "ephemeral"}


PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP4z8CAFWEXHbQSACj/P8Fu7N9hAAAAAElFTkSu"
    "QmCC"
)
PATCH = "*** Begin Patch\n*** Add File: hello.txt\n+Grüße\n*** End Patch\n"


async def catalog(upstream: ScriptedUpstream, directory: Path) -> str:
    """Return the line of a configuration that names the catalog, which is made anew."""
    file = directory / "models.json"
    with file.open("wb") as written:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tornadoproxy", "codex-catalog"),
            cwd=directory,
            env={"UPSTREAM_BASE_URL": upstream.url, "UPSTREAM_API_KEY": TEST_UPSTREAM_KEY},
            stdout=written,
        )
        assert await process.wait() == 0
    return f'model_catalog_json = "{file}"'


@pytest.mark.parametrize("name", ["gpt-5.5", MODEL])
async def test_codex_applies_a_patch(name: str, codex: Codex, scene: Scene) -> None:
    """Codex has a tool for it with OpenAI's models, and with those of the catalog."""
    codex.proxy = await scene.start(CHAT_MODELS=f"*={MODEL}")
    listed = await catalog(scene.upstream, codex.home) if name == MODEL else ""
    await script(scene, turn(call("apply_patch", input=PATCH)), turn(text("Done.")))
    told = await codex("Patch it", model=name, config=listed)
    assert (told.status, told.text) == (0, "Done.")
    assert (codex.work / "hello.txt").read_text() == "Grüße\n"
    before, after = asked(scene.upstream)
    assert "start: begin_patch" in json.dumps(before["tools"])
    assert blocks(after, "assistant") == [call("apply_patch", input=PATCH)]
    assert "Success" in json.dumps(results(after))


MCP_SERVER = """
import json, pathlib, sys

NUMBERS = {"type": "object", "properties": {name: {"type": "number"} for name in "ab"}}
TOOL = {"name": "add_numbers", "description": "Add two numbers.", "inputSchema": NUMBERS}

for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    asked, params = message["method"], message.get("params", {})
    result = {}
    if asked == "initialize":
        result["protocolVersion"] = params["protocolVersion"]
        result["capabilities"] = {"tools": {}}
        result["serverInfo"] = {"name": "demo", "version": "1"}
    elif asked == "tools/list":
        result["tools"] = [TOOL]
    elif asked == "tools/call":
        total = sum(params["arguments"].values())
        result["content"] = [{"type": "text", "text": f"It is {total}."}]
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
    if asked == "tools/list":
        pathlib.Path(sys.argv[1]).touch()
"""


async def test_codex_calls_a_tool_of_an_mcp_server(codex: Codex, scene: Scene) -> None:
    server = codex.home / "server.py"
    server.write_text(MCP_SERVER)
    wanted = call("mcp__demo__add_numbers", 2, a=2, b=3)
    # Codex offers the tool from the first turn after it has been listed
    listed = codex.home / "listed"
    wait = shell(f"until [ -e {listed} ]; do sleep 0.1; done; sleep 0.5")
    await script(scene, turn(wait), turn(wanted), turn(text("Five.")))
    config = f'[mcp_servers.demo]\ncommand = "{sys.executable}"\nargs = ["{server}", "{listed}"]'
    told = await codex("What is 2 + 3?", config=config)
    assert (told.status, told.text) == (0, "Five.")
    (ran,) = told.items("mcp_tool_call")
    assert (ran["server"], ran["tool"], ran["status"]) == ("demo", "add_numbers", "completed")
    *_, last = asked(scene.upstream)
    assert blocks(last, "assistant")[-1] == wanted
    assert "It is 5." in json.dumps(results(last)[-1]["content"])


async def test_codex_runs_code_with_the_newest_names(codex: Codex, scene: Scene) -> None:
    """With the name of a GPT-6 model, Codex lists its tools in the input."""
    codex.proxy = await scene.start(CHAT_MODELS=f"*={MODEL}")
    code = (
        'const ran = await tools.exec_command({cmd: "echo o" + "ne"}); text(JSON.stringify(ran));'
    )
    wanted = call("functions__exec", input=code)
    await script(scene, turn(wanted), turn(text("Done.")))
    told = await codex("Run it", model="gpt-6.2-sol")
    assert (told.status, told.text) == (0, "Done.")
    _, after = asked(scene.upstream)
    assert blocks(after, "assistant") == [wanted]
    assert "one" in json.dumps(results(after))


async def test_codex_searches_its_tools(codex: Codex, scene: Scene) -> None:
    codex.proxy = await scene.start(CHAT_MODELS=f"*={MODEL}")
    search = call("tool_search", query="agent", limit=3)
    await script(scene, turn(search), turn(text("Done.")))
    told = await codex("Look for agents", model="gpt-5.5")
    assert (told.status, told.text) == (0, "Done.")
    before, after = asked(scene.upstream)
    offered = [{tool["name"] for tool in each["tools"]} for each in (before, after)]
    assert "multi_agent_v1__spawn_agent" in offered[1] - offered[0]
    assert blocks(after, "assistant") == [search]


async def test_codex_views_an_image(codex: Codex, scene: Scene) -> None:
    image = codex.work / "pixel.png"
    image.write_bytes(base64.b64decode(PIXEL))
    await script(scene, turn(call("view_image", path=str(image))), turn(text("A pixel.")))
    told = await codex("What is it?")
    assert (told.status, told.text) == (0, "A pixel.")
    _, after = asked(scene.upstream)
    (result,) = results(after)
    (shown,) = [each for each in result["content"] if each["type"] == "image"]
    assert shown["source"]["media_type"] == "image/png"


async def test_codex_resumes(codex: Codex, scene: Scene) -> None:
    await script(scene, turn(THOUGHT, text("Hello Ada.")), turn(text("You are Ada.")))
    await codex("I am Ada")
    told = await codex("Who am I?", "resume", "--last", model="claude-opus-5-5")
    assert (told.status, told.text) == (0, "You are Ada.")
    first, second = asked(scene.upstream)
    assert (first["model"], second["model"]) == (MODEL, "claude-opus-5-5")
    assert blocks(second, "assistant") == [THOUGHT, text("Hello Ada.")]


FULL: dict[str, Any] = {"usage": {"input_tokens": 300_000, "output_tokens": 20}}


@pytest.mark.parametrize("name", ["Claude", "OpenAI"])
async def test_codex_compacts(name: str, codex: Codex, scene: Scene) -> None:
    """By itself, or by a request of OpenAI's own if the provider has that name."""
    codex.proxy = await scene.start(CHAT_MODELS=f"*={MODEL}")
    await script(
        scene, turn(shell("echo a"), **FULL), turn(text("So far: echoed a.")), turn(text("Done."))
    )
    told = await codex("Echo", model="gpt-5.5", name=name)
    assert (told.status, told.text) == (0, "Done.")
    _, summing_up, last = asked(scene.upstream)
    assert [each["name"] for each in summing_up["tools"]].count("exec_command") == 1
    assert "So far: echoed a." in json.dumps(blocks(last, "user"))
    assert blocks(last, "assistant") == []


async def test_codex_retries_after_retry_after(codex: Codex, scene: Scene) -> None:
    busy = error_response(429, "rate_limit_error", "Slow down", [("retry-after", "1")])
    await script(scene, busy, turn(text("Now.")))
    told = await codex("Say hello")
    assert (told.status, told.text) == (0, "Now.")
    assert len(told.errors) == 1


async def test_codex_retries_a_cut_stream_without_partial_items(codex: Codex, scene: Scene) -> None:
    patch = call("apply_patch", input=PATCH)
    events = message_events(message_document(content=[patch], stop_reason="tool_use"))
    codex.proxy = await scene.start(CHAT_MODELS=f"*={MODEL}")
    await script(scene, sse_response(events[:-4], end="close"), turn(text("Done.")))
    told = await codex("Patch it", model="gpt-5.5")
    assert (told.status, told.text) == (0, "Done.")
    assert not (codex.work / "hello.txt").exists()


@pytest.mark.parametrize(
    ("said", "told_by"),
    [
        (
            turn(
                stop_reason="refusal",
                stop_details={"type": "refusal", "explanation": "I decline this."},
            ),
            "I decline this.",
        ),
        (
            error_response(400, "invalid_request_error", "prompt is too long: 1 > 0 tokens"),
            "ran out of room",
        ),
        (error_response(400, "invalid_request_error", "No such thing"), "No such thing"),
    ],
)
async def test_codex_shows_a_refusal_and_asks_once(
    said: Response, told_by: str, codex: Codex, scene: Scene
) -> None:
    await script(scene, said)
    told = await codex("Say hello")
    assert told.status == 1
    assert told_by in told.errors[-1]
    assert len(asked(scene.upstream)) == 1


async def test_codex_output_schema(codex: Codex, scene: Scene) -> None:
    schema = {
        "type": "object",
        "properties": {"total": {"type": "number"}},
        "required": ["total"],
        "additionalProperties": False,
    }
    file = codex.home / "schema.json"
    file.write_text(json.dumps(schema))
    await script(scene, turn(text('{"total":5}')))
    told = await codex("What is 2 + 3?", "--output-schema", str(file))
    assert (told.status, told.text) == (0, '{"total":5}')
    (only,) = asked(scene.upstream)
    assert only["output_config"]["format"] == {"type": "json_schema", "schema": schema}

"""The Vercel AI SDK and OpenAI's SDK for node with the Responses API, against the real proxy.

They run where node is, and where ``npm install --prefix tests/system/typescript`` has been run, as
``.ci/run`` does.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from program import printed_by
from scene import Scene
from turns import THOUGHT, asked, blocks, call, script, text, turn

from tornadoproxy.testing import TEST_TOKEN, Proxy, error_response

TYPESCRIPT = Path(__file__).parent / "typescript"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        shutil.which("node") is None or not (TYPESCRIPT / "node_modules").is_dir(),
        reason="needs node, and npm install --prefix tests/system/typescript",
    ),
    pytest.mark.gen_test(timeout=60),
]

ADD = call("add_numbers", a=2, b=3)
FIRST = (THOUGHT, text("Let me see."), ADD)


async def run(case: str, proxy: Proxy) -> Any:  # Any: the script's own report
    process = await asyncio.create_subprocess_exec(
        *("node", "responses.mjs", proxy.url, TEST_TOKEN, case),
        cwd=TYPESCRIPT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, errors = await printed_by(process)
    assert process.returncode == 0, errors.decode()
    return json.loads(printed)


@pytest.mark.parametrize("case", ["ai generate", "ai generate store:false"])
async def test_ai_sdk_runs_a_tool(case: str, proxy: Proxy, scene: Scene) -> None:
    await script(scene, turn(*FIRST), turn(text("It is 5.")))
    told = await run(case, proxy)
    assert (told["text"], told["finishReason"]) == ("It is 5.", "stop")
    assert told["total"] > 0
    _, second = asked(scene.upstream)
    assert blocks(second, "assistant") == [*FIRST]
    assert blocks(second, "user")[-1]["tool_use_id"] == ADD["id"]


@pytest.mark.parametrize("case", ["ai stream", "ai stream store:false"])
async def test_ai_sdk_streams(case: str, proxy: Proxy, scene: Scene) -> None:
    await script(scene, turn(*FIRST), turn(text("It is 5.")))
    told = await run(case, proxy)
    assert (told["text"], told["finishReason"]) == ("Let me see.It is 5.", "stop")
    assert {"text-delta", "tool-call", "tool-result", "finish"} <= set(told["kinds"])
    _, second = asked(scene.upstream)
    assert blocks(second, "assistant") == [*FIRST]


async def test_ai_sdk_gets_an_object(proxy: Proxy, scene: Scene) -> None:
    await script(scene, turn(text('{"total":5}')))
    assert await run("ai object", proxy) == {"total": 5}


async def test_openai_sdk_goes_on_by_response_id(proxy: Proxy, scene: Scene) -> None:
    await script(scene, turn(*FIRST), turn(text("It is 5.")))
    assert await run("openai loop", proxy) == {"text": "It is 5.", "status": "completed"}
    _, second = asked(scene.upstream)
    assert blocks(second, "assistant") == [*FIRST]


async def test_openai_sdk_streams(proxy: Proxy, scene: Scene) -> None:
    await script(scene, turn(*FIRST))
    told = await run("openai stream", proxy)
    assert told.pop("total") > 0
    assert told == {
        "first": "response.created",
        "last": "response.completed",
        "text": "Let me see.",
        "items": ["reasoning", "message", "function_call"],
    }


@pytest.mark.parametrize(
    ("case", "raised"), [("ai refused", "APICallError"), ("openai refused", "RateLimitError")]
)
async def test_errors_keep_status_and_message(
    case: str, raised: str, proxy: Proxy, scene: Scene
) -> None:
    await script(scene, error_response(429, "rate_limit_error", "Too many requests today"))
    name, status, message = await run(case, proxy)
    assert name.lstrip("_") == raised
    assert status == 429
    assert "Too many requests today" in message

"""A public conformance suite, llm-comply, against all three APIs of the real proxy."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest
from program import printed_by
from scene import Scene

from tornadoproxy.testing import TEST_TOKEN

pytest.importorskip("llm_comply", reason="needs the suite of the extra clients")

pytestmark = [pytest.mark.long, pytest.mark.gen_test(timeout=60)]

MODEL = "claude-sonnet-5-5"

# what is relayed unchanged: the scripted upstream leaves out fields that have no value
OF_THE_UPSTREAM = "is a required property,is not valid under any of the given schemas"


@pytest.mark.parametrize(
    ("form", "base", "model", "ignored", "passed"),
    [
        ("open-responses", "/openai/v1", MODEL, "", 12),
        # a name that has reasoning summaries is asked for one
        ("open-responses", "/openai/v1", "gpt-5", "", 13),
        ("openai-chat", "/openai/v1", MODEL, "", 8),
        ("anthropic", "/v1", MODEL, OF_THE_UPSTREAM, 8),
    ],
)
async def test_every_case_passes(
    form: str, base: str, model: str, ignored: str, passed: int, scene: Scene
) -> None:
    proxy = await scene.start(CHAT_MODELS=f"*={MODEL}")
    suite = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llm_comply.cli", "--json", "--format", form, "--model", model),
        *("--base-url", proxy.url + base, "--api-key", TEST_TOKEN),
        *(("--ignore", ignored) if ignored else ()),
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await printed_by(suite)
    summary = json.loads(printed)["summary"]
    assert (summary["failed"], summary["passed"]) == (0, passed), printed.decode()

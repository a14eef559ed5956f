"""The SDKs of both APIs through the real proxy; tests/handlers has chat completions in Python.

Those in TypeScript run where node is, and where ``npm install --prefix tests/system/typescript``
has been run, as ``.ci/run`` does.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic.types import MessageParam

from tornadoproxy.testing import TEST_TOKEN, Proxy, Records

MODEL = "claude-sonnet-5-5"
HELLO: list[MessageParam] = [{"role": "user", "content": "Grüße, 世界 und 😀!"}]
RESPONSE = "This is a scripted response, not Claude's. You said: Grüße, 世界 und 😀!"


async def test_create_returns_message_and_headers(
    anthropic_client: anthropic.AsyncAnthropic, records: Records
) -> None:
    raw = await anthropic_client.messages.with_raw_response.create(
        model=MODEL, max_tokens=100, system="Be brief.", messages=HELLO
    )
    assert raw.headers["anthropic-ratelimit-requests-limit"] == "4000"
    assert raw.headers["anthropic-organization-id"]
    message = await raw.parse()
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": RESPONSE}]
    assert (message.model, message.stop_reason) == (MODEL, "end_turn")
    record = await records.finished()
    assert (record.outcome, record.status, record.model) == ("completed", 200, MODEL)
    assert record.usage.input_tokens == message.usage.input_tokens
    assert record.usage.output_tokens == message.usage.output_tokens
    assert record.request_id == message._request_id == raw.headers["request-id"]


async def test_stream_accumulates_the_message(
    anthropic_client: anthropic.AsyncAnthropic, records: Records
) -> None:
    async with anthropic_client.messages.stream(
        model=MODEL, max_tokens=100, messages=HELLO
    ) as stream:
        texts = [text async for text in stream.text_stream]
        message = await stream.get_final_message()
    assert len(texts) > 5
    assert "".join(texts) == RESPONSE
    assert message.content[0].to_dict() == {"type": "text", "text": RESPONSE}
    assert message.stop_reason == "end_turn"
    record = await records.finished()
    assert record.usage.output_tokens == message.usage.output_tokens


async def test_models_tokens_and_batches(anthropic_client: anthropic.AsyncAnthropic) -> None:
    counted = await anthropic_client.messages.count_tokens(model=MODEL, messages=HELLO)
    assert counted.input_tokens > 0
    listed = [model.id async for model in anthropic_client.models.list(limit=3)]
    assert len(listed) == 4
    assert (await anthropic_client.models.retrieve(listed[3])).id == listed[3]
    with pytest.raises(anthropic.NotFoundError, match="no-such-model"):
        await anthropic_client.models.retrieve("no-such-model")
    batches = anthropic_client.messages.batches
    batch = await batches.create(
        requests=[
            {"custom_id": "one", "params": {"model": MODEL, "max_tokens": 100, "messages": HELLO}}
        ]
    )
    assert (await batches.retrieve(batch.id)).id == batch.id
    assert [each.id async for each in batches.list()] == [batch.id]


TYPESCRIPT = Path(__file__).parent / "typescript"


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("node") is None or not (TYPESCRIPT / "node_modules").is_dir(),
    reason="needs node, and npm install --prefix tests/system/typescript",
)
async def test_typescript_sdks_work_through_the_proxy(proxy: Proxy) -> None:
    ran = await asyncio.to_thread(
        subprocess.run,
        ["node", "clients.mjs", proxy.url, TEST_TOKEN],
        cwd=TYPESCRIPT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)  # Any: the script's own report
    for said in ("message", "messageStream", "completion", "chunks"):
        assert told[said].endswith("Hello"), said
    assert told["tokens"] > 0
    assert told["usage"] > 0
    assert told["bearer"] == told["defaultHeaders"] == "message"
    assert told["call"] == ["get_weather", {"city": "Bern"}]
    assert told["answered"] == "stop"
    assert "claude-sonnet-5-5" in told["models"]
    assert told["anthropicRefusal"] == ["AuthenticationError", 401, True]
    assert told["openaiRefusal"] == ["BadRequestError", 400, "n", True]

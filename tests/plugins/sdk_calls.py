"""The same calls of the package anthropic, by any client of it."""

from __future__ import annotations

import json
import re
from typing import Any

import anthropic

CALLS = (
    "create",
    "stream",
    "tools",
    "thinking",
    "beta",
    "count",
    "invalid",
    "invalid stream",
    "no model",
    "no model stream",
)


async def call(client: Any, name: str, model: str) -> object:  # Any: the clients share no type
    """Make one call, and return what comes of it, without ids."""
    try:
        result = await _result(client, name, model)
    except anthropic.APIStatusError as error:
        body: Any = error.body
        document = body[0] if isinstance(body, list) else body
        message = document["error"]["message"].removeprefix("model: ")
        return type(error).__name__, error.status_code, message
    document = result if isinstance(result, list) else result.to_dict()
    return json.loads(re.sub(r'"(id|signature)": "[^"]*"', '"id": ""', json.dumps(document)))


async def _result(client: Any, name: str, model: str) -> Any:
    asked: dict[str, Any] = {
        "model": "nobody" if name.startswith("no model") else model,
        "max_tokens": 0 if name.startswith("invalid") else 2000,
        "messages": [{"role": "user", "content": "Grüße, 世界 und 😀!"}],
    }
    messages = client.messages
    if name.endswith("stream"):
        async with messages.stream(**asked) as stream:
            return [event.to_dict() async for event in stream]
    match name:
        case "tools":
            tool = {"name": "look", "input_schema": {"type": "object", "properties": {}}}
            return await messages.create(**asked, tools=[tool], tool_choice={"type": "any"})
        case "thinking":
            thinking = {"type": "enabled", "budget_tokens": 1024}
            return await messages.create(**asked, thinking=thinking)
        case "beta":
            betas = ["context-management-2025-06-27"]
            return await client.beta.messages.create(**asked, betas=betas)
        case "count":
            del asked["max_tokens"]
            return await messages.count_tokens(**asked)
    return await messages.create(**asked)

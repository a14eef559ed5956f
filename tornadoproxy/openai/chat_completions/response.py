"""The translation of a complete message into a chat completion.

Thinking becomes ``reasoning_content`` and ``thinking_blocks``; see `thinking_blocks`.

Source: https://platform.openai.com/docs/api-reference/chat/object
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tornadoproxy.openai.chat_completions import thinking_blocks
from tornadoproxy.openai.message import read_message, refusal, token_counts
from tornadoproxy.openai.writing import arguments, encode, string

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json

_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def translate_response(
    body: bytes, *, legacy_functions: bool = False, created: int | None = None
) -> bytes:
    """Translate the body of a successful messages response into that of a chat completion."""
    message = read_message(body)
    return translate_message(message, legacy_functions=legacy_functions, created=created)


def translate_message(
    message: Json, *, legacy_functions: bool = False, created: int | None = None
) -> bytes:
    """Translate a message into the body of a chat completion.

    :param legacy_functions: return a call as ``function_call``; the request has ``functions``.
    :param created: the time in seconds since the epoch; by default, now.
    """
    response = _assistant(message, legacy_functions=legacy_functions)
    document = {
        "id": completion_id(message.get("id")),
        "object": "chat.completion",
        "created": int(time.time()) if created is None else created,
        "model": string(message.get("model")),
        "choices": [
            {
                "index": 0,
                "message": response,
                "logprobs": None,
                "finish_reason": finish_reason(
                    message.get("stop_reason"), legacy_functions=legacy_functions
                ),
            }
        ],
        "usage": usage(message.get("usage")),
    }
    return encode(document)


def completion_id(message_id: object) -> str:
    """Return the completion's id, which is derived from the message's."""
    return "chatcmpl-" + string(message_id).removeprefix("msg_")


def finish_reason(stop_reason: object, *, legacy_functions: bool) -> str:
    """Return OpenAI's finish reason; an unknown reason becomes ``stop``."""
    reason = _FINISH_REASONS.get(stop_reason, "stop") if isinstance(stop_reason, str) else "stop"
    return "function_call" if legacy_functions and reason == "tool_calls" else reason


def usage(reported: object) -> Json:
    """Return OpenAI's usage, the sum of all models; counts that are not reported are 0."""
    counts = token_counts(reported)
    account: Json = {
        "prompt_tokens": counts.input,
        "completion_tokens": counts.output,
        "total_tokens": counts.input + counts.output,
        "prompt_tokens_details": {
            "cached_tokens": counts.cached,
            "cache_write_tokens": counts.cache_written,
        },
    }
    if counts.reasoning is not None:
        account["completion_tokens_details"] = {"reasoning_tokens": counts.reasoning}
    return account


def _assistant(message: Json, *, legacy_functions: bool) -> Json:
    content = ""
    calls: list[Json] = []
    thoughts: list[Json] = []
    for block in message["content"]:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            content += string(block.get("text"))
        elif kind in ("thinking", "redacted_thinking"):
            thoughts.append(thinking_blocks.shown(block, len(content), len(calls)))
        elif kind == "tool_use" and not (legacy_functions and calls):
            calls.append(block)  # a message has one function_call
    response: Json = {
        "role": "assistant",
        "content": content or None,
        "refusal": refusal(message.get("stop_reason"), message.get("stop_details")),
    }
    readable = [each["thinking"] for each in thoughts if "thinking" in each]
    if readable:
        response["reasoning_content"] = "".join(readable)
    if thoughts:
        response["thinking_blocks"] = thoughts
    if calls and legacy_functions:
        response["function_call"] = _function(calls[0])
    elif calls:
        response["tool_calls"] = [
            {"id": string(call.get("id")), "type": "function", "function": _function(call)}
            for call in calls
        ]
    return response


def _function(call: Json) -> Json:
    return {"name": string(call.get("name")), "arguments": arguments(call.get("input"))}

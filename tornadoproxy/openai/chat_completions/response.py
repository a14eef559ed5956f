"""Translates an answer that is whole: a message into a chat completion.

Source: https://platform.openai.com/docs/api-reference/chat/object

Thinking comes back as ``reasoning_content`` and ``thinking_blocks``: see `thinking`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tornadoproxy.errors import UpstreamProtocolError
from tornadoproxy.openai.chat_completions import thinking_blocks
from tornadoproxy.openai.writing import arguments, encode, string
from tornadoproxy.protocol import json_codec
from tornadoproxy.protocol.usage_fields import read_usage

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
    """Translate the body of a successful messages answer: `read_message`, `translate_message`."""
    message = read_message(body)
    return translate_message(message, legacy_functions=legacy_functions, created=created)


def read_message(body: bytes) -> Json:
    """The message in the body of a successful messages answer.

    :raises UpstreamProtocolError: it is none.
    """
    try:
        message = json_codec.loads(body)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        raise UpstreamProtocolError("The upstream's answer is not a message.")
    return message


def translate_message(
    message: Json, *, legacy_functions: bool = False, created: int | None = None
) -> bytes:
    """Translate a message into the body of a chat completion.

    :param legacy_functions: tell a call as ``function_call``: the request named ``functions``.
    :param created: when, in seconds since the epoch; now if not given.
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
    """The completion's id, which follows from the message's."""
    return "chatcmpl-" + string(message_id).removeprefix("msg_")


def finish_reason(stop_reason: object, *, legacy_functions: bool) -> str:
    """One of OpenAI's reasons; a reason that is not known yet is a plain stop."""
    reason = _FINISH_REASONS.get(stop_reason, "stop") if isinstance(stop_reason, str) else "stop"
    return "function_call" if legacy_functions and reason == "tool_calls" else reason


def refusal(stop_reason: object, stop_details: object) -> str | None:
    """What is said of a refusal, if it is one."""
    if stop_reason != "refusal":
        return None
    details = stop_details if isinstance(stop_details, dict) else {}
    explanation = details.get("explanation")
    return explanation if isinstance(explanation, str) else "The model declined to answer."


def usage(told: object) -> Json:
    """OpenAI's account of the tokens, on all models together; what was not told counts as none."""
    told = told if isinstance(told, dict) else {}
    parts = read_usage(told).parts()
    read = sum(part.cache_read_input_tokens or 0 for part in parts)
    created = sum(part.cache_creation_input_tokens or 0 for part in parts)
    prompt = sum(part.input_tokens or 0 for part in parts) + read + created
    completion = sum(part.output_tokens or 0 for part in parts)
    account: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": created},
    }
    details = told.get("output_tokens_details")
    if isinstance(details, dict):
        account["completion_tokens_details"] = {
            "reasoning_tokens": _count(details, "thinking_tokens")
        }
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
            calls.append(block)  # a function_call has room for one
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


def _count(told: dict[str, Any], name: str) -> int:  # Any: JSON from upstream
    value = told.get(name)
    return value if isinstance(value, int) else 0

"""The messages of the Anthropic API, as documents and as events."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

Document = dict[str, Any]
"""A JSON object; its values may be anything."""

DEFAULT_MODEL = "claude-sonnet-5-5"

_CUMULATIVE = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
    "output_tokens_details",
    "iterations",
)
_STOP = ("stop_reason", "stop_sequence", "stop_details")
_TOKEN = re.compile(r"\s*\S+|\s+")
_MOST_DELTAS = 100
_THOUGHT = "The client expects a response. I am a script, so I repeat its last message."


def event(document: Document) -> bytes:
    """Return a server-sent event that is named by the document's ``type``."""
    data = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return f"event: {document['type']}\ndata: {data}\n\n".encode()


def message_document(text: str = "Hello!", **fields: Any) -> Document:  # JSON, as a `Document` has
    """Return a message of the API; `fields` replace its own."""
    document: Document = {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": DEFAULT_MODEL,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": _usage(input_tokens=10, cached=0, output_tokens=len(_tokens(text)), thought=0),
    }
    return {**document, **fields}


def message_events(document: Document) -> list[bytes]:
    """Return the events that stream a message, from ``message_start`` to ``message_stop``."""
    return [event(part) for part in _message_parts(document)]


def _message_parts(document: Document) -> Iterator[Document]:
    usage = document["usage"]
    at_first = [block["from"] for block in document["content"] if block["type"] == "fallback"][:1]
    begun = {
        **document,
        **(at_first[0] if at_first else {}),  # the model that was requested
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**usage, "output_tokens": 1},
    }
    begun["usage"].pop("iterations", None)
    yield {"type": "message_start", "message": begun}
    yield {"type": "ping"}
    for index, block in enumerate(document["content"]):
        empty, deltas = _deltas(block)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {name: document[name] for name in _STOP if name in document},
        "usage": {name: usage[name] for name in _CUMULATIVE if name in usage},
    }
    yield {"type": "message_stop"}


def _deltas(block: Document) -> tuple[Document, list[Document]]:
    """Return a content block as it starts, and the deltas that complete it."""
    match block["type"]:
        case "text":
            citations = block.get("citations")
            begun = {**block, "text": "", **({"citations": []} if citations else {})}
            return begun, [
                *({"type": "citations_delta", "citation": each} for each in citations or ()),
                *({"type": "text_delta", "text": piece} for piece in _pieces(block["text"])),
            ]
        case "thinking":
            deltas = [
                {"type": "thinking_delta", "thinking": piece}
                for piece in _pieces(block["thinking"])
            ]
            signature = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*deltas, signature]
        case "tool_use" | "server_tool_use":
            text = json.dumps(block["input"], ensure_ascii=False)
            # as in the API, the first fragment is empty, and the others end anywhere
            fragments = ["", *(text[start : start + 7] for start in range(0, len(text), 7))]
            return {**block, "input": {}}, [
                {"type": "input_json_delta", "partial_json": fragment} for fragment in fragments
            ]
        case _:
            return block, []


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text)


def _pieces(text: str) -> list[str]:
    """Return `text` in at most 100 pieces of whole words."""
    tokens = _tokens(text)
    size = -(-len(tokens) // _MOST_DELTAS) or 1
    return ["".join(tokens[start : start + size]) for start in range(0, len(tokens), size)]


def message_for(request: Document) -> Document:
    """Return the message that responds to a valid request."""
    thoughts = _thoughts(request)
    tool = _tool_to_call(request)
    stop_reason, stop_sequence = "end_turn", None
    if tool is not None:
        content = [{"type": "text", "text": f"I call {tool['name']}."}, _tool_use(tool, request)]
        stop_reason = "tool_use"
    else:
        text, stop_reason, stop_sequence = _stopped(_text(request), request)
        content = [{"type": "text", "text": text}]
    spoken = sum(len(_tokens(block.get("text") or json.dumps(block["input"]))) for block in content)
    thought = sum(len(_tokens(block["thinking"])) for block in thoughts)
    cached = input_tokens(request) // 2 if _mentions(request, "cache_control") else 0
    return message_document(
        model=request["model"],
        content=thoughts + content,
        stop_reason=stop_reason,
        stop_sequence=stop_sequence,
        usage=_usage(
            input_tokens=input_tokens(request) - cached,
            cached=cached,
            output_tokens=thought + spoken,
            thought=thought,
        ),
    )


def _thoughts(request: Document) -> list[Document]:
    if (request.get("thinking") or {}).get("type") not in {"enabled", "adaptive"}:
        return []
    signature = base64.b64encode(hashlib.sha512(_THOUGHT.encode()).digest()).decode()
    return [{"type": "thinking", "thinking": _THOUGHT, "signature": signature}]


def _text(request: Document) -> str:
    said = _said(request)
    form = (request.get("output_config") or {}).get("format")
    if form:
        return json.dumps(_example(form["schema"], said), ensure_ascii=False)
    results = blocks(request["messages"][-1], "tool_result")
    if results:
        said = " ".join(_content_text(block.get("content", "")) for block in results)
    who = "The tool said" if results else "You said"
    return f"This is a scripted response, not Claude's. {who}: {said}"


def _stopped(text: str, request: Document) -> tuple[str, str, str | None]:
    """Return `text` up to where it stops, the stop reason, and the stop sequence if any."""
    stops = [(text.find(stop), stop) for stop in request.get("stop_sequences") or ()]
    found, stop = min(((at, stop) for at, stop in stops if at >= 0), default=(len(text), None))
    tokens = _tokens(text[:found])
    if len(tokens) > request["max_tokens"]:
        return "".join(tokens[: request["max_tokens"]]), "max_tokens", None
    return text[:found], "end_turn" if stop is None else "stop_sequence", stop


def _tool_to_call(request: Document) -> Document | None:
    tools = request.get("tools") or []
    choice = request.get("tool_choice") or {"type": "auto"}
    if not tools or blocks(request["messages"][-1], "tool_result"):
        return None
    if choice["type"] == "tool":
        return next((tool for tool in tools if tool["name"] == choice["name"]), None)
    wanted = choice["type"] == "any" or (
        choice["type"] == "auto" and _said(request).startswith("tool:")
    )
    return tools[0] if wanted else None


def _tool_use(tool: Document, request: Document) -> Document:
    said = _said(request).removeprefix("tool:").strip()
    return {
        "type": "tool_use",
        "id": new_id("toolu"),
        "name": tool["name"],
        "input": _example(tool.get("input_schema") or {"type": "object"}, said),
    }


def _example(schema: Document, text: str) -> Any:  # a JSON value of any kind
    """Return a value that fits a simple JSON schema; its strings are `text`."""
    if schema.get("enum"):
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            properties = schema.get("properties") or {}
            return {name: _example(part, text) for name, part in properties.items()}
        case "array":
            return [_example(schema.get("items") or {}, text)]
        case "integer":
            return 1
        case "number":
            return 1.5
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return text


def _said(request: Document) -> str:
    """Return the text of the last user message."""
    users = [message for message in request["messages"] if message["role"] == "user"]
    return _content_text(users[-1]["content"]) if users else ""


def _content_text(content: str | list[Document]) -> str:
    if isinstance(content, str):
        return content
    return " ".join(block["text"] for block in content if block.get("type") == "text")


def blocks(message: Document, kind: str) -> list[Document]:
    content = message["content"]
    if isinstance(content, str):
        return []
    return [block for block in content if block.get("type") == kind]


def input_tokens(request: Document) -> int:
    parts = [request.get(name) for name in ("system", "tools", "messages")]
    return len(_tokens(json.dumps([part for part in parts if part])))


def _mentions(value: object, name: str) -> bool:
    if isinstance(value, dict):
        return name in value or any(_mentions(part, name) for part in value.values())
    return isinstance(value, list) and any(_mentions(part, name) for part in value)


def _usage(*, input_tokens: int, cached: int, output_tokens: int, thought: int) -> Document:
    usage: Document = {
        "input_tokens": input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }
    if thought:
        usage["output_tokens_details"] = {"thinking_tokens": thought}
    return usage


def new_id(kind: str) -> str:
    return f"{kind}_01{secrets.token_hex(11)}"

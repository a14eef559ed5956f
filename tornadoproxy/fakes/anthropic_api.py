"""A scripted upstream: what nothing is scripted for, it answers as the Anthropic API does.

It needs no key and no network, repeats what it is told, and says that it is not Claude::

    upstream = ScriptedUpstream()
    await upstream.start()
    upstream.script(error_response(529, "overloaded_error", "Overloaded"))  # the next request
    ...
    await upstream.stop()

What steers a message: ``stream``; ``thinking``; ``tool_choice`` any or tool, or a last user text
that begins with ``tool:``, calls a tool; ``output_config.format`` answers with JSON of that
schema; ``stop_sequences``; a small ``max_tokens``. A token is a word here. What the API refuses,
and a translation might get wrong, is refused in the API's shape.

Source: https://docs.anthropic.com/en/api. The server beneath, for which other answers are
written, is `tornadoproxy.fakes.http_server`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qsl, unquote

from tornadoproxy.fakes.http_server import (
    KEEP_BODY,
    Ending,
    Headers,
    ProtocolError,
    ReceivedRequest,
    Response,
    ScriptedServer,
    UpstreamExchange,
    bytes_response,
    header_lines,
    json_response,
    raw_response,
    response_head,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from ssl import SSLContext

__all__ = [
    "Ending",
    "Headers",
    "ProtocolError",
    "ReceivedRequest",
    "Response",
    "ScriptedServer",
    "ScriptedUpstream",
    "UpstreamExchange",
    "bytes_response",
    "error_response",
    "event",
    "json_response",
    "message_document",
    "message_events",
    "raw_response",
    "response_head",
    "silent_response",
    "sse_response",
]

Document = dict[str, Any]
"""A JSON object: what it holds may be anything."""

_ORGANIZATION = "00000000-5c41-4000-8000-000000000000"
_NO_SAMPLING_SINCE = "2026-10-21"
_MODELS = (
    ("claude-opus-5-5", "Claude Opus 5.5", "opus"),
    ("claude-sonnet-5-5", "Claude Sonnet 5.5", "sonnet"),
    ("claude-haiku-5-5", "Claude Haiku 5.5", "haiku"),
    ("claude-sonnet-4-5-20250929", "Claude Sonnet 4.5", "sonnet"),
)
_SAMPLING = frozenset({"temperature", "top_k", "top_p"})
_KNOWN_FIELDS = _SAMPLING | {
    "billing_policy",
    "cache_control",
    "compaction",
    "container",
    "context_management",
    "diagnostics",
    "fallback_credit_token",
    "fallbacks",
    "inference_geo",
    "max_tokens",
    "mcp_servers",
    "messages",
    "metadata",
    "model",
    "output_config",
    "output_format",
    "service_tier",
    "speed",
    "stop_sequences",
    "stream",
    "system",
    "thinking",
    "thread",
    "tool_choice",
    "tools",
}
_CUMULATIVE = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
    "output_tokens_details",
    "iterations",
)
_TOKEN = re.compile(r"\s*\S+|\s+")
_MOST_DELTAS = 100
_THOUGHT = "Somebody wants an answer. I am a script, so I repeat what I was told."


class ScriptedUpstream(ScriptedServer):
    """A `ScriptedServer` whose default answers are the Anthropic API's."""

    def __init__(
        self, *, ssl: SSLContext | None = None, delay: float = 0.0, keep_body: int = KEEP_BODY
    ) -> None:
        super().__init__(ssl=ssl, delay=delay, keep_body=keep_body)
        self._batches: dict[str, tuple[Document, bytes]] = {}

    async def default_response(self, exchange: UpstreamExchange) -> None:
        """Answer as the API does: messages, count_tokens, models, batches, and its errors."""
        await exchange.read_all()
        request_id = _new_id("req")
        headers = _api_headers(request_id)
        try:
            response = self._route(exchange.request, headers)
        except _Refusal as refusal:
            response = error_response(
                refusal.status, refusal.error_type, refusal.message, headers, request_id
            )
        await response(exchange)

    def _route(self, request: ReceivedRequest, headers: Headers) -> Response:
        _authenticate(request)
        method = "GET" if request.method == "HEAD" else request.method
        match [method, *(unquote(part) for part in request.path.split("/")[1:])]:
            case ["POST", "v1", "messages"]:
                return _message_response(_document(request), request, headers)
            case ["POST", "v1", "messages", "count_tokens"]:
                asked = _document(request)
                _validate({"max_tokens": 1, **asked}, request)
                return json_response({"input_tokens": _input_tokens(asked)}, headers=headers)
            case ["GET", "v1", "models"]:
                return json_response(
                    _page([_model(*row) for row in _MODELS], request), 200, headers
                )
            case ["GET", "v1", "models", name]:
                return json_response(_find_model(name), headers=headers)
            case ["POST", "v1", "messages", "batches"]:
                batch = self._new_batch(_document(request), request)
                return json_response(batch, headers=headers)
            case ["GET", "v1", "messages", "batches"]:
                batches = [batch for batch, _ in self._batches.values()]
                return json_response(_page(batches, request), 200, headers)
            case ["GET", "v1", "messages", "batches", name] if name in self._batches:
                return json_response(self._batches[name][0], headers=headers)
            case ["GET", "v1", "messages", "batches", name, "results"] if name in self._batches:
                lines = [*header_lines(headers), ("Content-Type", "application/x-jsonl")]
                return bytes_response(self._batches[name][1], lines)
        raise _Refusal(404, "not_found_error", f"Not found: {request.method} {request.path}")

    def _new_batch(self, asked: Document, request: ReceivedRequest) -> Document:
        requests = asked.get("requests")
        if not isinstance(requests, list) or not requests:
            _refuse_field("requests", "Field required")
        results = [_batch_result(item, request) for item in requests]
        succeeded = sum(result["result"]["type"] == "succeeded" for result in results)
        batch_id = _new_id("msgbatch")
        now = datetime.now(UTC)
        batch = {
            "id": batch_id,
            "type": "message_batch",
            "processing_status": "ended",
            "request_counts": {
                "processing": 0,
                "succeeded": succeeded,
                "errored": len(results) - succeeded,
                "canceled": 0,
                "expired": 0,
            },
            "created_at": _timestamp(now),
            "ended_at": _timestamp(now),
            "expires_at": _timestamp(now + timedelta(days=1)),
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": f"{self.url}/v1/messages/batches/{batch_id}/results",
        }
        lines = b"".join(json.dumps(result).encode() + b"\n" for result in results)
        self._batches[batch_id] = (batch, lines)
        return batch


def error_response(
    status: int,
    error_type: str,
    message: str,
    headers: Headers = (),
    request_id: str = "req_scripted",
) -> Response:
    """Reads the request, then answers with an error in the Anthropic API's shape."""
    lines = header_lines(headers)
    if not any(name.lower() == "request-id" for name, _ in lines):
        lines = [("request-id", request_id), *lines]
    return json_response(_error(error_type, message, request_id), status, lines)


def event(document: Document) -> bytes:
    """One server-sent event, named by the document's ``type``."""
    data = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return f"event: {document['type']}\ndata: {data}\n\n".encode()


def message_document(text: str = "Hello!", **fields: Any) -> Document:  # JSON, as a `Document` has
    """A message as the API answers it; `fields` replace its own."""
    document: Document = {
        "id": _new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": _MODELS[1][0],
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": _usage(input_tokens=10, cached=0, output_tokens=len(_tokens(text)), thought=0),
    }
    return {**document, **fields}


def message_events(document: Document) -> list[bytes]:
    """The events that stream a message, from ``message_start`` to ``message_stop``."""
    return [event(part) for part in _message_parts(document)]


def _message_parts(document: Document) -> Iterator[Document]:
    usage = document["usage"]
    at_first = [block["from"] for block in document["content"] if block["type"] == "fallback"][:1]
    begun = {
        **document,
        **(at_first[0] if at_first else {}),  # the model that was asked first
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
        "delta": {
            "stop_reason": document["stop_reason"],
            "stop_sequence": document["stop_sequence"],
        },
        "usage": {name: usage[name] for name in _CUMULATIVE if name in usage},
    }
    yield {"type": "message_stop"}


def _deltas(block: Document) -> tuple[Document, list[Document]]:
    """A content block as it starts, and the deltas that complete it."""
    match block["type"]:
        case "text":
            pieces = _pieces(block["text"])
            return {**block, "text": ""}, [
                {"type": "text_delta", "text": piece} for piece in pieces
            ]
        case "thinking":
            deltas = [
                {"type": "thinking_delta", "thinking": piece}
                for piece in _pieces(block["thinking"])
            ]
            signature = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*deltas, signature]
        case "tool_use":
            text = json.dumps(block["input"], ensure_ascii=False)
            # the API's first fragment is empty, and the others break anywhere
            fragments = ["", *(text[start : start + 7] for start in range(0, len(text), 7))]
            return {**block, "input": {}}, [
                {"type": "input_json_delta", "partial_json": fragment} for fragment in fragments
            ]
        case _:
            return block, []


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text)


def _pieces(text: str) -> list[str]:
    """`text` in pieces of whole words, not too many."""
    tokens = _tokens(text)
    size = -(-len(tokens) // _MOST_DELTAS) or 1
    return ["".join(tokens[start : start + size]) for start in range(0, len(tokens), size)]


def _message_response(asked: Document, request: ReceivedRequest, headers: Headers) -> Response:
    _validate(asked, request)
    reply = _reply(asked)
    if asked.get("stream"):
        return sse_response(message_events(reply), headers=headers)
    return json_response(reply, headers=headers)


def _reply(asked: Document) -> Document:
    """The message that answers a valid request."""
    thoughts = _thoughts(asked)
    tool = _tool_to_call(asked)
    stop_reason, stop_sequence = "end_turn", None
    if tool is not None:
        content = [{"type": "text", "text": f"I call {tool['name']}."}, _tool_use(tool, asked)]
        stop_reason = "tool_use"
    else:
        text, stop_reason, stop_sequence = _stopped(_text(asked), asked)
        content = [{"type": "text", "text": text}]
    spoken = sum(len(_tokens(block.get("text") or json.dumps(block["input"]))) for block in content)
    thought = sum(len(_tokens(block["thinking"])) for block in thoughts)
    cached = _input_tokens(asked) // 2 if _mentions(asked, "cache_control") else 0
    return message_document(
        model=asked["model"],
        content=thoughts + content,
        stop_reason=stop_reason,
        stop_sequence=stop_sequence,
        usage=_usage(
            input_tokens=_input_tokens(asked) - cached,
            cached=cached,
            output_tokens=thought + spoken,
            thought=thought,
        ),
    )


def _thoughts(asked: Document) -> list[Document]:
    if (asked.get("thinking") or {}).get("type") not in {"enabled", "adaptive"}:
        return []
    signature = base64.b64encode(hashlib.sha512(_THOUGHT.encode()).digest()).decode()
    return [{"type": "thinking", "thinking": _THOUGHT, "signature": signature}]


def _text(asked: Document) -> str:
    said = _said(asked)
    form = (asked.get("output_config") or {}).get("format")
    if form:
        return json.dumps(_example(form["schema"], said), ensure_ascii=False)
    results = _blocks(asked["messages"][-1], "tool_result")
    if results:
        said = " ".join(_content_text(block.get("content", "")) for block in results)
    who = "The tool said" if results else "You said"
    return f"This is a scripted answer, not Claude's. {who}: {said}"


def _stopped(text: str, asked: Document) -> tuple[str, str, str | None]:
    """`text` as far as it gets, the reason to stop there, and the stop sequence if one it was."""
    stops = [(text.find(stop), stop) for stop in asked.get("stop_sequences") or ()]
    found, stop = min(((at, stop) for at, stop in stops if at >= 0), default=(len(text), None))
    tokens = _tokens(text[:found])
    if len(tokens) > asked["max_tokens"]:
        return "".join(tokens[: asked["max_tokens"]]), "max_tokens", None
    return text[:found], "end_turn" if stop is None else "stop_sequence", stop


def _tool_to_call(asked: Document) -> Document | None:
    tools = asked.get("tools") or []
    choice = asked.get("tool_choice") or {"type": "auto"}
    if not tools or _blocks(asked["messages"][-1], "tool_result"):
        return None
    if choice["type"] == "tool":
        return next((tool for tool in tools if tool["name"] == choice["name"]), None)
    wanted = choice["type"] == "any" or (
        choice["type"] == "auto" and _said(asked).startswith("tool:")
    )
    return tools[0] if wanted else None


def _tool_use(tool: Document, asked: Document) -> Document:
    said = _said(asked).removeprefix("tool:").strip()
    return {
        "type": "tool_use",
        "id": _new_id("toolu"),
        "name": tool["name"],
        "input": _example(tool.get("input_schema") or {"type": "object"}, said),
    }


def _example(schema: Document, text: str) -> Any:  # a JSON value of any kind
    """A value that fits a simple JSON schema; its strings are `text`."""
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


def _said(asked: Document) -> str:
    """The last user message's text."""
    users = [message for message in asked["messages"] if message["role"] == "user"]
    return _content_text(users[-1]["content"]) if users else ""


def _content_text(content: str | list[Document]) -> str:
    if isinstance(content, str):
        return content
    return " ".join(block["text"] for block in content if block.get("type") == "text")


def _blocks(message: Document, kind: str) -> list[Document]:
    content = message["content"]
    if isinstance(content, str):
        return []
    return [block for block in content if block.get("type") == kind]


def _input_tokens(asked: Document) -> int:
    parts = [asked.get(name) for name in ("system", "tools", "messages")]
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


class _Refusal(Exception):
    def __init__(self, status: int, error_type: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.message = message


def _refuse(status: int, error_type: str, message: str) -> NoReturn:
    raise _Refusal(status, error_type, message)


def _refuse_field(name: str, complaint: str) -> NoReturn:
    _refuse(400, "invalid_request_error", f"{name}: {complaint}")


def _authenticate(request: ReceivedRequest) -> None:
    if not request.header("x-api-key") and not request.header("authorization"):
        _refuse(401, "authentication_error", "x-api-key header is required")


def _document(request: ReceivedRequest) -> Document:
    try:
        document = request.json()
    except ValueError as error:  # not JSON, not UTF-8, or longer than what is kept
        _refuse(400, "invalid_request_error", f"The request body is not usable: {error}")
    if not isinstance(document, dict):
        _refuse(400, "invalid_request_error", "Input should be a valid dictionary")
    return document


def _validate(asked: Document, request: ReceivedRequest) -> None:
    version = request.header("anthropic-version")
    if not version:
        _refuse_field("anthropic-version", "header is required")
    for name in ("model", "max_tokens", "messages"):
        if name not in asked:
            _refuse_field(name, "Field required")
    for name in sorted(asked.keys() - _KNOWN_FIELDS):
        _refuse_field(name, "Extra inputs are not permitted")
    _validate_scalars(asked, version)
    _validate_tools(asked)
    _validate_messages(asked["messages"])


def _validate_scalars(asked: Document, version: str) -> None:
    model, max_tokens = asked["model"], asked["max_tokens"]
    if not isinstance(model, str):
        _refuse_field("model", "Input should be a valid string")
    if not model.startswith("claude-"):
        _refuse(404, "not_found_error", f"model: {model}")
    if type(max_tokens) is not int or max_tokens < 1:
        _refuse_field("max_tokens", "Input should be a valid integer greater than 0")
    if type(asked.get("stream", False)) is not bool:
        _refuse_field("stream", "Input should be a valid boolean")
    for name in sorted(asked.keys() & _SAMPLING):
        if version >= _NO_SAMPLING_SINCE:
            _refuse_field(name, f"not supported since anthropic-version {_NO_SAMPLING_SINCE}")
        if type(asked[name]) not in {int, float}:
            _refuse_field(name, "Input should be a valid number")
    if not 0 <= asked.get("temperature", 1) <= 1:
        _refuse_field("temperature", "range: 0..1")
    for stop in asked.get("stop_sequences") or ():
        if not isinstance(stop, str) or not stop.strip():
            _refuse_field("stop_sequences", "each stop sequence must contain non-whitespace")
    thinking = asked.get("thinking") or {}
    if thinking.get("type") == "enabled":
        budget = thinking.get("budget_tokens")
        if type(budget) is not int or not 1024 <= budget < max_tokens:
            _refuse_field("thinking.enabled.budget_tokens", "must be from 1024 to below max_tokens")


def _validate_tools(asked: Document) -> None:
    names = [tool.get("name") for tool in asked.get("tools") or ()]
    if len(set(names)) < len(names):
        _refuse_field("tools", "Tool names must be unique")
    choice = asked.get("tool_choice")
    if choice and not names:
        _refuse_field("tool_choice", "may only be specified while providing tools")
    if choice and choice.get("type") not in {"auto", "any", "tool", "none"}:
        _refuse_field("tool_choice", "Input tag must be auto, any, tool or none")
    if choice and choice["type"] == "tool" and choice.get("name") not in names:
        _refuse_field("tool_choice", f"Tool {choice.get('name')!r} not found in provided tools")


def _validate_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        _refuse_field("messages", "at least one message is required")
    called: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        if not isinstance(message, dict) or message.get("role") not in {
            "user",
            "assistant",
            "system",
        }:
            _refuse_field(f"{where}.role", "Input should be user, assistant or system")
        _validate_content(message.get("content"), where)
        answered = [block["tool_use_id"] for block in _blocks(message, "tool_result")]
        if set(answered) != called or len(set(answered)) < len(answered):
            _refuse_field(where, "each tool_use needs one tool_result, in the next message")
        called = {block["id"] for block in _blocks(message, "tool_use")}
    if called:
        _refuse_field(where, "each tool_use needs one tool_result, in the next message")


def _validate_content(content: object, where: str) -> None:
    if not isinstance(content, str | list) or not content:
        _refuse_field(f"{where}.content", "Input should be text or content blocks")
    for block in content if isinstance(content, list) else ():
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            _refuse_field(f"{where}.content", "each content block needs a type")
        if block["type"] == "text" and not block.get("text"):
            _refuse_field(f"{where}.content", "text content blocks must be non-empty")


def _page(items: Sequence[Document], request: ReceivedRequest) -> Document:
    """One page of a list, as ``limit``, ``after_id`` and ``before_id`` ask for it."""
    query = dict(parse_qsl(request.target.partition("?")[2]))
    limit = query.get("limit", "20")
    if not re.fullmatch(r"[0-9]+", limit) or not 1 <= int(limit) <= 1000:
        _refuse_field("limit", "Input should be from 1 to 1000")
    ids = [item["id"] for item in items]
    start, stop = 0, len(ids)
    if query.get("after_id") in ids:
        start = ids.index(query["after_id"]) + 1
    if query.get("before_id") in ids:
        stop = ids.index(query["before_id"])
        start = max(start, stop - int(limit))
    page = items[start:stop][: int(limit)]
    return {
        "data": page,
        "has_more": len(page) < len(items[start:stop]),
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


def _model(model_id: str, name: str, line: str) -> Document:
    return {
        "type": "model",
        "id": model_id,
        "display_name": name,
        "created_at": "2025-09-29T00:00:00Z",
        "lifecycle": "active",
        "line": line,
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
    }


def _find_model(model_id: str) -> Document:
    for row in _MODELS:
        if row[0] == model_id:
            return _model(*row)
    _refuse(404, "not_found_error", f"model: {model_id}")


def _batch_result(item: Document, request: ReceivedRequest) -> Document:
    try:
        _validate(item["params"], request)
    except _Refusal as refusal:
        error = _error(refusal.error_type, refusal.message, _new_id("req"))
        result: Document = {"type": "errored", "error": error}
    else:
        result = {"type": "succeeded", "message": _reply(item["params"])}
    return {"custom_id": item["custom_id"], "result": result}


def _error(error_type: str, message: str, request_id: str) -> Document:
    return {
        "type": "error",
        "error": {"type": error_type, "message": message},
        "request_id": request_id,
    }


def _api_headers(request_id: str) -> list[tuple[str, str]]:
    reset = _timestamp(datetime.now(UTC) + timedelta(seconds=1))
    limits: Iterable[tuple[str, int]] = (
        ("requests", 4_000),
        ("tokens", 2_400_000),
        ("input-tokens", 2_000_000),
        ("output-tokens", 400_000),
    )
    return [
        ("Date", formatdate(usegmt=True)),
        ("request-id", request_id),
        ("anthropic-organization-id", _ORGANIZATION),
        *(
            (f"anthropic-ratelimit-{kind}-{what}", value)
            for kind, limit in limits
            for what, value in (
                ("limit", str(limit)),
                ("remaining", str(limit - 1)),
                ("reset", reset),
            )
        ),
    ]


def _new_id(kind: str) -> str:
    return f"{kind}_01{secrets.token_hex(11)}"


def _timestamp(time: datetime) -> str:
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")

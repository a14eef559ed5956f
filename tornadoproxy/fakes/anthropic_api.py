"""A scripted upstream: unless a test scripts a response, it responds as the Anthropic API does.

It needs no key and no network, repeats the user's text, and says that it is not Claude::

    upstream = ScriptedUpstream()
    await upstream.start()
    upstream.script(error_response(529, "overloaded_error", "Overloaded"))  # the next request
    ...
    await upstream.stop()

A request controls its message with ``stream``, ``thinking``, ``stop_sequences`` and a small
``max_tokens``, where a token is a word. ``tool_choice`` any or tool, or a last user text that
begins with ``tool:``, calls a tool. ``output_config.format`` returns JSON of that schema. Mistakes
that a translation might make are rejected with the API's errors.

Source: https://docs.anthropic.com/en/api. `tornadoproxy.fakes.http_server` is the server that it
extends.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

from tornadoproxy.fakes.anthropic_messages import (
    DEFAULT_MODEL,
    Document,
    input_tokens,
    message_events,
    message_for,
    new_id,
)
from tornadoproxy.fakes.anthropic_validation import (
    Refusal,
    authenticate,
    document_of,
    refuse,
    refuse_field,
    validate,
)
from tornadoproxy.fakes.exchange import KEEP_BODY
from tornadoproxy.fakes.http_message import Headers, header_lines
from tornadoproxy.fakes.http_server import ScriptedServer
from tornadoproxy.fakes.responses import bytes_response, json_response, sse_response

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from ssl import SSLContext

    from tornadoproxy.fakes.exchange import ReceivedRequest, UpstreamExchange
    from tornadoproxy.fakes.responses import Response

_ORGANIZATION = "00000000-5c41-4000-8000-000000000000"
_MODELS = (
    ("claude-opus-5-5", "Claude Opus 5.5", "opus"),
    (DEFAULT_MODEL, "Claude Sonnet 5.5", "sonnet"),
    ("claude-haiku-5-5", "Claude Haiku 5.5", "haiku"),
    ("claude-sonnet-4-5-20250929", "Claude Sonnet 4.5", "sonnet"),
)


class ScriptedUpstream(ScriptedServer):
    """A `ScriptedServer` whose default responses are those of the Anthropic API."""

    def __init__(
        self, *, ssl: SSLContext | None = None, delay: float = 0.0, keep_body: int = KEEP_BODY
    ) -> None:
        super().__init__(ssl=ssl, delay=delay, keep_body=keep_body)
        self._batches: dict[str, tuple[Document, bytes]] = {}

    async def default_response(self, exchange: UpstreamExchange) -> None:
        """Respond as the API does: messages, count_tokens, models, batches, and its errors."""
        await exchange.read_all()
        request_id = new_id("req")
        headers = _api_headers(request_id)
        try:
            response = self._route(exchange.request, headers)
        except Refusal as refusal:
            response = error_response(
                refusal.status, refusal.error_type, refusal.message, headers, request_id
            )
        await response(exchange)

    def _route(self, request: ReceivedRequest, headers: Headers) -> Response:
        authenticate(request)
        version = request.header("anthropic-version")
        method = "GET" if request.method == "HEAD" else request.method
        match [method, *(unquote(part) for part in request.path.split("/")[1:])]:
            case ["POST", "v1", "messages"]:
                return _message_response(document_of(request), version, headers)
            case ["POST", "v1", "messages", "count_tokens"]:
                document = document_of(request)
                validate({"max_tokens": 1, **document}, version)
                return json_response({"input_tokens": input_tokens(document)}, headers=headers)
            case ["GET", "v1", "models"]:
                return json_response(
                    _page([_model(*row) for row in _MODELS], request), 200, headers
                )
            case ["GET", "v1", "models", name]:
                return json_response(_find_model(name), headers=headers)
            case ["POST", "v1", "messages", "batches"]:
                batch = self._new_batch(document_of(request), version)
                return json_response(batch, headers=headers)
            case ["GET", "v1", "messages", "batches"]:
                batches = [batch for batch, _ in self._batches.values()]
                return json_response(_page(batches, request), 200, headers)
            case ["GET", "v1", "messages", "batches", name] if name in self._batches:
                return json_response(self._batches[name][0], headers=headers)
            case ["GET", "v1", "messages", "batches", name, "results"] if name in self._batches:
                lines = [*header_lines(headers), ("Content-Type", "application/x-jsonl")]
                return bytes_response(self._batches[name][1], lines)
        raise Refusal(404, "not_found_error", f"Not found: {request.method} {request.path}")

    def _new_batch(self, document: Document, version: str | None) -> Document:
        requests = document.get("requests")
        if not isinstance(requests, list) or not requests:
            refuse_field("requests", "Field required")
        results = [_batch_result(item, version) for item in requests]
        succeeded = sum(result["result"]["type"] == "succeeded" for result in results)
        batch_id = new_id("msgbatch")
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
    """Return a response that reads the request, then sends an error of the Anthropic API."""
    lines = header_lines(headers)
    if not any(name.lower() == "request-id" for name, _ in lines):
        lines = [("request-id", request_id), *lines]
    return json_response(_error(error_type, message, request_id), status, lines)


def _message_response(document: Document, version: str | None, headers: Headers) -> Response:
    validate(document, version)
    message = message_for(document)
    if document.get("stream"):
        return sse_response(message_events(message), headers=headers)
    return json_response(message, headers=headers)


def _page(items: Sequence[Document], request: ReceivedRequest) -> Document:
    """Return one page of a list, selected by ``limit``, ``after_id`` and ``before_id``."""
    query = dict(parse_qsl(request.target.partition("?")[2]))
    limit = query.get("limit", "20")
    if not re.fullmatch(r"[0-9]+", limit) or not 1 <= int(limit) <= 1000:
        refuse_field("limit", "Input should be from 1 to 1000")
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
    found = next((row for row in _MODELS if row[0] == model_id), None)
    if found is None:
        refuse(404, "not_found_error", f"model: {model_id}")
    return _model(*found)


def _batch_result(item: Document, version: str | None) -> Document:
    try:
        validate(item["params"], version)
    except Refusal as refusal:
        error = _error(refusal.error_type, refusal.message, new_id("req"))
        result: Document = {"type": "errored", "error": error}
    else:
        result = {"type": "succeeded", "message": message_for(item["params"])}
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


def _timestamp(time: datetime) -> str:
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")

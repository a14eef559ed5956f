"""The checks of the Anthropic API that a translated request might fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from tornadoproxy.fakes.anthropic_messages import Document, blocks

if TYPE_CHECKING:
    from tornadoproxy.fakes.exchange import ReceivedRequest

_NO_SAMPLING_SINCE = "2026-10-21"
_SAMPLING = frozenset({"temperature", "top_k", "top_p"})
KNOWN_FIELDS = _SAMPLING | {
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


class Refusal(Exception):
    """An error of the API in response to a request."""

    def __init__(self, status: int, error_type: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.message = message


def refuse(status: int, error_type: str, message: str) -> NoReturn:
    raise Refusal(status, error_type, message)


def refuse_field(name: str, complaint: str) -> NoReturn:
    refuse(400, "invalid_request_error", f"{name}: {complaint}")


def authenticate(request: ReceivedRequest) -> None:
    """Refuse a request without credential."""
    if not request.header("x-api-key") and not request.header("authorization"):
        refuse(401, "authentication_error", "x-api-key header is required")


def document_of(request: ReceivedRequest) -> Document:
    """Return the JSON object in the body of `request`."""
    try:
        document = request.json()
    except ValueError as error:  # not JSON, not UTF-8, or longer than KEEP_BODY
        refuse(400, "invalid_request_error", f"The request body is not usable: {error}")
    if not isinstance(document, dict):
        refuse(400, "invalid_request_error", "Input should be a valid dictionary")
    return document


def validate(document: Document, version: str | None) -> None:
    """Validate the body of a request for a message.

    :param version: the header ``anthropic-version``.
    :raises Refusal: the API would reject the request.
    """
    if not version:
        refuse_field("anthropic-version", "header is required")
    for name in ("model", "max_tokens", "messages"):
        if name not in document:
            refuse_field(name, "Field required")
    for name in sorted(document.keys() - KNOWN_FIELDS):
        refuse_field(name, "Extra inputs are not permitted")
    _validate_scalars(document, version)
    _validate_tools(document)
    _validate_messages(document["messages"])


def _validate_scalars(document: Document, version: str) -> None:
    model, max_tokens = document["model"], document["max_tokens"]
    if not isinstance(model, str):
        refuse_field("model", "Input should be a valid string")
    if not model.startswith("claude-"):
        refuse(404, "not_found_error", f"model: {model}")
    if type(max_tokens) is not int or max_tokens < 1:
        refuse_field("max_tokens", "Input should be a valid integer greater than 0")
    if type(document.get("stream", False)) is not bool:
        refuse_field("stream", "Input should be a valid boolean")
    for name in sorted(document.keys() & _SAMPLING):
        if version >= _NO_SAMPLING_SINCE:
            refuse_field(name, f"not supported since anthropic-version {_NO_SAMPLING_SINCE}")
        if type(document[name]) not in {int, float}:
            refuse_field(name, "Input should be a valid number")
    if not 0 <= document.get("temperature", 1) <= 1:
        refuse_field("temperature", "range: 0..1")
    for stop in document.get("stop_sequences") or ():
        if not isinstance(stop, str) or not stop.strip():
            refuse_field("stop_sequences", "each stop sequence must contain non-whitespace")
    thinking = document.get("thinking") or {}
    if thinking.get("type") == "enabled":
        budget = thinking.get("budget_tokens")
        if type(budget) is not int or not 1024 <= budget < max_tokens:
            refuse_field("thinking.enabled.budget_tokens", "must be from 1024 to below max_tokens")


def _validate_tools(document: Document) -> None:
    names = [tool.get("name") for tool in document.get("tools") or ()]
    if len(set(names)) < len(names):
        refuse_field("tools", "Tool names must be unique")
    choice = document.get("tool_choice")
    if choice and not names:
        refuse_field("tool_choice", "may only be specified while providing tools")
    if choice and choice.get("type") not in {"auto", "any", "tool", "none"}:
        refuse_field("tool_choice", "Input tag must be auto, any, tool or none")
    if choice and choice["type"] == "tool" and choice.get("name") not in names:
        refuse_field("tool_choice", f"Tool {choice.get('name')!r} not found in provided tools")


def _validate_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        refuse_field("messages", "at least one message is required")
    called: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        if not isinstance(message, dict) or message.get("role") not in {
            "user",
            "assistant",
            "system",
        }:
            refuse_field(f"{where}.role", "Input should be user, assistant or system")
        _validate_content(message.get("content"), where)
        answered = [block["tool_use_id"] for block in blocks(message, "tool_result")]
        if set(answered) != called or len(set(answered)) < len(answered):
            refuse_field(where, "each tool_use needs one tool_result, in the next message")
        called = {block["id"] for block in blocks(message, "tool_use")}
    if called:
        refuse_field(where, "each tool_use needs one tool_result, in the next message")


def _validate_content(content: object, where: str) -> None:
    if not isinstance(content, str | list) or not content:
        refuse_field(f"{where}.content", "Input should be text or content blocks")
    for block in content if isinstance(content, list) else ():
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            refuse_field(f"{where}.content", "each content block needs a type")
        if block["type"] == "text" and not block.get("text"):
            refuse_field(f"{where}.content", "text content blocks must be non-empty")

"""The usage, model and stop reason in a message or in an event of a stream.

A response may take several calls to models, and its ``usage`` says so in ``iterations``.

Sources:
https://platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool#usage-and-billing;
https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback (each attempt that had
output is billed at its own model's price, and one without output is not billed).
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec.structs import asdict, replace

from tornadoproxy.protocol import json_codec
from tornadoproxy.protocol.usage import NOTHING_REPORTED, ModelUsage, Usage

_MAX_COUNT = 2**63 - 1

S = TypeVar("S", bound=msgspec.Struct)

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=_MAX_COUNT)]


class _ByLifetime(msgspec.Struct):
    """Cache writes by lifetime."""

    ephemeral_1h_input_tokens: _Count | None = None


class _ServerTools(msgspec.Struct):
    """Calls of the API's own tools."""

    web_search_requests: _Count | None = None
    web_fetch_requests: _Count | None = None


class _Tokens(msgspec.Struct):
    """Token counts under the API's names."""

    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None
    cache_creation: _ByLifetime | None = None
    server_tool_use: _ServerTools | None = None


class Iteration(_Tokens):
    """One call to a model: an entry of ``iterations``."""

    type: str | None = None
    model: str | None = None


class Counts(_Tokens):
    """The ``usage`` of a message."""

    iterations: list[Iteration] | None = None


class _Hop(msgspec.Struct):
    model: str | None = None


class Block(msgspec.Struct):
    """The fields of a ``content_block`` that change what a stream spends."""

    type: str | None = None
    name: str | None = None
    to: _Hop | None = None


class _Delta(msgspec.Struct):
    stop_reason: str | None = None


class MessageFields(msgspec.Struct):
    """The fields of a message that are read."""

    model: str | None = None
    stop_reason: str | None = None
    usage: Counts | None = None


class Reported(MessageFields):
    """The fields of a message or of an event that are read."""

    message: MessageFields | None = None
    delta: _Delta | None = None
    content_block: Block | None = None


_PARTS: dict[str, type[msgspec.Struct]] = {
    "usage": Counts,
    "cache_creation": _ByLifetime,
    "server_tool_use": _ServerTools,
    "iterations": Iteration,
    "message": MessageFields,
    "delta": _Delta,
    "content_block": Block,
    "to": _Hop,
}

_decode = msgspec.json.Decoder(Reported).decode


def parse_reported(document: bytes | bytearray) -> Reported | None:
    """Read a JSON document; return ``None`` if it is not JSON."""
    try:
        return _decode(document)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass
    try:
        return _salvaged(json_codec.loads(document), Reported)
    except (ValueError, RecursionError):
        return None


def _salvaged(document: object, kind: type[S]) -> S:
    """Read the valid fields of `document` and skip the others."""
    found = kind()
    if not isinstance(document, dict):
        return found
    for name in kind.__struct_fields__:
        value = document.get(name)
        try:
            setattr(found, name, getattr(msgspec.convert({name: value}, kind), name))
        except (msgspec.ValidationError, UnicodeError):  # half of a surrogate pair
            if name in _PARTS and isinstance(value, dict):
                setattr(found, name, _salvaged(value, _PARTS[name]))
            elif name == "iterations" and isinstance(value, list):
                setattr(found, name, [_salvaged(each, Iteration) for each in value])
    return found


def updated(counts: _Tokens, before: Usage) -> Usage:
    """Return `before` with the counts that `counts` reports; the others stay."""
    tools = counts.server_tool_use
    by_lifetime = counts.cache_creation
    reported = Usage(
        counts.input_tokens,
        counts.output_tokens,
        counts.cache_read_input_tokens,
        counts.cache_creation_input_tokens,
        None if by_lifetime is None else by_lifetime.ephemeral_1h_input_tokens,
        None if tools is None else tools.web_search_requests,
        None if tools is None else tools.web_fetch_requests,
    )
    if before is NOTHING_REPORTED:
        return reported
    news = {name: count for name, count in asdict(reported).items() if count is not None}
    # message_delta has no lifetimes: what server tools add to a one-hour cache lasts an hour too
    written, for_an_hour = before.cache_creation_input_tokens, before.cache_creation_1h_input_tokens
    if for_an_hour and for_an_hour == written and reported.cache_creation_input_tokens is not None:
        news.setdefault("cache_creation_1h_input_tokens", reported.cache_creation_input_tokens)
    return replace(before, **news)


def with_iterations(top: Usage, iterations: list[Iteration], model: str | None) -> Usage:
    """Add to the top level's counts the calls that `iterations` reports besides.

    The top level has the ``message`` entries of the model that responded, and no others. A
    ``compaction`` is a separate call to that model. An entry of another model is separate as well,
    even if its type is unknown; but an attempt that declined without any output is not billed.
    Without a fallback, every ``message`` is in the top level, whatever alias of the model it names.

    :param model: the model that responded.
    """
    answered = [each.model for each in iterations if each.type == "fallback_message"]
    within: list[Iteration] = []
    others: list[ModelUsage] = []
    for each in iterations:
        if each.type == "fallback_message" or (
            each.type == "message" and (not answered or each.model in answered)
        ):
            within.append(each)
        elif each.type != "message" or each.output_tokens != 0:
            spent_on = model if each.type == "compaction" else each.model
            others.append(ModelUsage(spent_on, updated(each, NOTHING_REPORTED)))
    lifetimes = [each.cache_creation for each in within if each.cache_creation is not None]
    if within and len(lifetimes) == len(within):
        hourly = sum(each.ephemeral_1h_input_tokens or 0 for each in lifetimes)
        written = top.cache_creation_input_tokens or 0
        top = replace(top, cache_creation_1h_input_tokens=min(hourly, written))
    return replace(top, others=tuple(others)) if others else top


class Message(NamedTuple):
    """The model, stop reason and usage of a complete message."""

    model: str | None
    stop_reason: str | None
    usage: Usage


def read_message(message: dict[str, Any]) -> Message:  # Any: JSON
    """Read a complete message."""
    try:
        fields = msgspec.convert(message, MessageFields)
    except (msgspec.ValidationError, UnicodeError):
        fields = _salvaged(message, MessageFields)
    usage = NOTHING_REPORTED
    if fields.usage is not None:
        usage = updated(fields.usage, usage)
        if fields.usage.iterations:
            usage = with_iterations(usage, fields.usage.iterations, fields.model)
    return Message(fields.model, fields.stop_reason, usage)


def read_usage(usage: dict[str, Any]) -> Usage:  # Any: JSON
    """Read the ``usage`` of a complete message."""
    return read_message({"usage": usage}).usage

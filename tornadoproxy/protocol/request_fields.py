"""Model, limits and estimated input in the body of a messages request, for authorization.

A plugin that authorizes a request must see it as the upstream will. So a field that occurs twice is
refused, since parsers keep the first or the last, and so is a field in another case, since some
parsers ignore case (Go's: https://pkg.go.dev/encoding/json).

Only the top level of a body is decoded, and below it only the fields that can name a model:
``fallbacks``, ``tools``, and definitions of tools within ``messages``. So the work for each byte is
small and bounded, whatever a client sends. `read_request` may run in a thread: no single step of it
holds the interpreter for longer than 50 ms, for bodies of up to 32 MB.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Set
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Raw

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.protocol.body_fields import ANYTHING, ambiguous, members_of, signs
from tornadoproxy.protocol.usage import BYTES_PER_TOKEN, UNKNOWN_MODEL

MAX_MESSAGE_BODY = 32 * 1024 * 1024
"""The largest messages request that the proxy reads, in bytes: the upstream's own limit."""

MESSAGE_HINT = "a messages request can be no larger, MAX_BODY_SIZE may be lower"
"""What an error about that limit adds."""

NAMED_INPUT = 200_000
"""The estimated input, in tokens, of a request that names a file, a URL or an earlier request."""

MAX_MODELS = 32
"""The most models that are listed; further ones become one unknown model."""


class Fields(msgspec.Struct):
    """The fields of a request; ``None`` for those that it does not have.

    :param max_tokens: the highest limit of all attempts, those of ``fallbacks`` included.
    :param models: every model that the request can spend on, each once.
    :param input_tokens: the estimated input.
    """

    model: str | None
    max_tokens: int | None
    stream: bool | None
    models: tuple[str, ...]
    input_tokens: int


_decode_model = msgspec.json.Decoder(str | None).decode
_decode_max_tokens = msgspec.json.Decoder(int | None).decode
_decode_stream = msgspec.json.Decoder(bool | None).decode
_decode_tools = msgspec.json.Decoder(list[dict[str, Raw]] | None).decode

_NULL = Raw(b"null")
_KINDS = {
    "model": "a string",
    "max_tokens": "a whole number",
    "stream": "true or false",
    "tools": "a list of objects",
}
_READ = frozenset({"model", "max_tokens", "stream", "fallbacks", "messages", "thread", "tools"})

# Limits of the values below the top level that are decoded: 100,000 take 20 ms.
_MAX_NESTED = 4 * 1024 * 1024
_MAX_NESTED_SIGNS = 100_000

# stands for the fields of a value whose models cannot be read
_UNREADABLE: list[tuple[str, object]] = [("model", None)]

# bytes that are searched in one step, and the longest match
_STEP = 4 * 1024 * 1024
_OVERLAP = 1024


def _spelled(word: str) -> bytes:
    """Return a pattern of `word` within JSON, where any character may be escaped."""
    return b"".join(
        rb"(?:%c|\\u00%x[%x%X])" % (ord(each), ord(each) >> 4, ord(each) & 15, ord(each) & 15)
        for each in word
    )


# Few bodies contain one of these strings, or an escaped letter. Only these bodies are searched for
# all spellings.
_MARKED = re.compile(rb'"(?:file_id|tool_definition|url)"')
_ESCAPED = re.compile(rb"\\u00(?:5[fF]|6[1-9a-fA-F]|7[0-9aA])")
_NAMED_INPUT = re.compile(
    rb'"(?:%b"|%b"\s*:\s*"%b")' % (_spelled("file_id"), _spelled("type"), _spelled("url"))
)
_INLINE_TOOL = re.compile(rb'"%b"' % _spelled("tool_definition"))
_TO_INLINE_TOOLS = frozenset({"content", "tool", "tool_changes", "definition"})


def read_request(body: bytes) -> Fields:
    """Read the body of a messages request.

    :raises InvalidRequest: it is not JSON, is ambiguous, or is too complex.
    """
    try:
        members = _members(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        body = _repaired(body)
        try:
            members = _members(body)
        except msgspec.ValidationError:
            raise InvalidRequest("The request body must be a JSON object.") from None
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise InvalidRequest("The request body is not valid JSON.") from None
    name = "model"
    try:
        model = _decode_model(members.get(name, _NULL))
        name = "max_tokens"
        max_tokens = _decode_max_tokens(members.get(name, _NULL))
        name = "stream"
        stream = _decode_stream(members.get(name, _NULL))
        name = "tools"
        models = [UNKNOWN_MODEL if model is None else model]
        if name in members:
            models += _models_of_tools(bytes(members[name]))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise InvalidRequest(
            f"The request body cannot be read: {name} must be {_KINDS[name]}."
        ) from None
    if "fallbacks" in members:
        for field, value in _fallbacks(bytes(members["fallbacks"])):
            if field == "model":
                models.append(value if type(value) is str else UNKNOWN_MODEL)
            elif type(value) is int:
                max_tokens = max(value, max_tokens or 0)
            elif value is not None:
                raise InvalidRequest(
                    "The request body cannot be read: fallbacks.max_tokens must be a whole number."
                )
    continues = "thread" in members and _continues(bytes(members["thread"]))
    if continues:
        # the conversation that the upstream stores can have tools with their own models
        models.append(UNKNOWN_MODEL)
    marked = _has(_MARKED, body) or (rb"\u00" in body and _has(_ESCAPED, body))
    if marked and "messages" in members and _has(_INLINE_TOOL, body):
        models += _models(_nested(bytes(members["messages"]), {"model"}, _TO_INLINE_TOOLS))
    tokens = len(body) // BYTES_PER_TOKEN
    if tokens < NAMED_INPUT and (continues or (marked and _NAMED_INPUT.search(body))):
        tokens = NAMED_INPUT
    return Fields(
        model, max_tokens, stream, (models[0],) if len(models) == 1 else _each_once(models), tokens
    )


def _members(body: bytes) -> dict[str, Raw]:
    """Return the fields of the object in `body`.

    :raises InvalidRequest: a field occurs twice or in another case, or the body is too complex.
    :raises msgspec.DecodeError: it is not JSON, or not an object.
    """
    found = members_of(body)
    for name in found:
        if name not in _READ and name.casefold() in _READ:
            raise ambiguous()
    return found


def _repaired(body: bytes) -> bytes:
    """Convert a body that msgspec refuses to UTF-8 without halves of surrogate pairs.

    :raises InvalidRequest: the body is too large for the conversion.
    """
    if len(body) > ANYTHING:
        raise InvalidRequest("The request body is not valid JSON in UTF-8.")
    with suppress(UnicodeError):
        encoding = json.detect_encoding(body)
        body = body.decode(encoding, "surrogatepass").encode(errors="surrogatepass")
    return body.replace(b"\\ud", b"\\uf").replace(b"\\uD", b"\\uF")


def _models_of_tools(tools: bytes) -> list[str]:
    if not _is_simple(tools):
        return [UNKNOWN_MODEL]
    # the properties of a tool's schema are further below, whatever their names
    names: Set[str] = set().union(*_decode_tools(tools) or ())
    if "model" not in names and all(name.casefold() != "model" for name in names):
        return []
    return _models(_nested(tools, {"model"}))


def _fallbacks(fallbacks: bytes) -> list[tuple[str, object]]:
    """Return the models and limits in ``fallbacks``; ``"default"`` stands for any model."""
    if fallbacks == b"null":
        return []
    is_list = fallbacks.startswith(b"[")
    return _nested(fallbacks, {"model", "max_tokens"}) if is_list else _UNREADABLE


def _continues(thread: bytes) -> bool:
    """Whether a request continues a conversation that the upstream stores."""
    fields = _nested(thread, {"type", "previous_message_id"})
    return thread != b"null" and fields != [("type", "create")]


def _is_simple(raw: bytes) -> bool:
    return len(raw) <= _MAX_NESTED_SIGNS or (
        len(raw) <= _MAX_NESTED and signs(raw) <= _MAX_NESTED_SIGNS
    )


def _nested(raw: bytes, wanted: Set[str], way: Set[str] = frozenset()) -> list[tuple[str, object]]:
    """Return each field called `wanted`, in any case, with its value.

    The fields are those of the objects in `raw`, and of the objects that fields called `way` hold.
    """
    if not _is_simple(raw):
        return _UNREADABLE
    try:
        # objects as pairs, since a dict keeps only the last of two fields with one name
        values: list[Any] = [json.loads(raw, object_pairs_hook=tuple)]  # Any: JSON
    except (ValueError, RecursionError):
        return _UNREADABLE
    found = []
    for value in values:  # including those that the loop appends
        if type(value) is list:
            values += value
        elif type(value) is tuple:
            for name, inner in value:
                folded = name.casefold()
                if folded in wanted:
                    found.append((folded, inner))
                elif folded in way:
                    values.append(inner)
    return found


def _models(found: Iterable[tuple[str, object]]) -> list[str]:
    return [value if type(value) is str else UNKNOWN_MODEL for _, value in found]


def _each_once(models: list[str]) -> tuple[str, ...]:
    distinct = tuple(dict.fromkeys(models))
    return distinct if len(distinct) <= MAX_MODELS else (*distinct[:MAX_MODELS], UNKNOWN_MODEL)


def _has(pattern: re.Pattern[bytes], body: bytes) -> bool:
    if len(body) <= _STEP:
        return pattern.search(body) is not None
    return any(
        pattern.search(body, start, start + _STEP + _OVERLAP)
        for start in range(0, len(body), _STEP)
    )

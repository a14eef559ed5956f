"""Reads from a body what it asks of a model. Pure.

Whoever judges a request must read it as the upstream will. So what can be read in two ways is
refused: a name that stands there twice, of which parsers take the first or the last.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from tornadoproxy.errors import InvalidRequest


class Fields(msgspec.Struct):
    """What a body says of itself; ``None`` where it says nothing."""

    model: str | None = None
    max_tokens: int | None = None
    stream: bool | None = None


_decode = msgspec.json.Decoder(Fields).decode
_NAMES = Fields.__struct_fields__
_QUOTED = tuple(f'"{name}"'.encode() for name in _NAMES)
_ESCAPED_LETTERS = (rb"\u006", rb"\u007")  # nobody escapes them in good faith


class _Ambiguous(dict[str, Any]):  # Any: JSON
    """An object with one of the names twice."""


def read_fields(body: bytes) -> Fields:
    """What `body`, a messages request, says.

    :raises InvalidRequest: it is not JSON, or cannot be read in one way only.
    """
    try:
        fields = _decode(body)
    except (msgspec.DecodeError, UnicodeError):
        return _read_slowly(body)
    if any(body.count(name) > 1 for name in _QUOTED) or any(
        escape in body for escape in _ESCAPED_LETTERS
    ):
        return _read_slowly(body)
    return fields


def _read_slowly(body: bytes) -> Fields:
    try:
        document = json.loads(body, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON.") from None
    if not isinstance(document, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    if isinstance(document, _Ambiguous):
        names = " or ".join(_NAMES)
        raise InvalidRequest(f"The request body has {names} twice: send each once.")
    try:
        return msgspec.convert({name: document.get(name) for name in _NAMES}, Fields)
    except msgspec.ValidationError as error:
        # it names a type and a field, and quotes no value
        raise InvalidRequest(f"The request body cannot be judged: {error}.") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: JSON
    read = dict(pairs)
    names = [name for name, _ in pairs if name in _NAMES]
    return _Ambiguous(read) if len(names) != len(set(names)) else read

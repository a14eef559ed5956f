"""Reads from a body what it asks of a model. Pure.

Whoever judges a request must read it as the upstream will. So what can be read in two ways is
refused: a name that stands there twice, of which parsers take the first or the last; and one in
another case, which some parsers take for the same (Go's: https://pkg.go.dev/encoding/json).
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.usage import BYTES_PER_TOKEN


class Fields(msgspec.Struct):
    """What a body says of itself; ``None`` where it says nothing."""

    model: str | None = None
    max_tokens: int | None = None
    stream: bool | None = None


NAMED_INPUT = 200_000
"""How many tokens a request may send that names a file or a URL, for an estimate."""

_BY_URL = re.compile(rb'"type"\s*:\s*"url"')

_decode = msgspec.json.Decoder(Fields).decode
_NAMES = frozenset(Fields.__struct_fields__)

# Wherever a name could stand. Where case does not count, U+212A is a k, and U+017F an s.
_NAMED = re.compile(rb'"(model|max_to(?:k|\xe2\x84\xaa)ens|(?:s|\xc5\xbf)tream)"', re.IGNORECASE)
_ONCE = frozenset(name.encode() for name in _NAMES)
# A letter of a name that is escaped, or its _: nobody does that in good faith.
_ESCAPED = re.compile(rb"\\u(?:00[4-7]|017[fF]|212[aA])")


def read_fields(body: bytes) -> Fields:
    """What `body`, a messages request, says.

    :raises InvalidRequest: it is not JSON, or cannot be read in one way only.
    """
    try:
        fields = _decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _read_slowly(body)
    named = _NAMED.findall(body)
    if len(set(named)) < len(named) or not _ONCE.issuperset(named) or _ESCAPED.search(body):
        return _read_slowly(body)
    return fields


def _read_slowly(body: bytes) -> Fields:
    try:
        # objects as pairs: in a dict, the last of two of one name is left
        document: Any = json.loads(body, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON.") from None
    if not isinstance(document, tuple):
        raise InvalidRequest("The request body must be a JSON object.")
    pairs = [(name, value) for name, value in document if name.casefold() in _NAMES]
    fields = dict(pairs)
    if len(fields) < len(pairs) or not _NAMES.issuperset(fields):
        raise InvalidRequest(
            "The request body has a field twice, or in another case: send each of "
            f"{', '.join(Fields.__struct_fields__)} once, in lower case."
        )
    try:
        return msgspec.convert(fields, Fields)
    except msgspec.ValidationError as error:
        # it names a type and a field, and quotes no value
        raise InvalidRequest(f"The request body cannot be judged: {error}.") from None


def estimated_tokens(body: bytes) -> int:
    """How many tokens `body`, a messages request, sends; an estimate.

    What it only names (a file, a URL) may be as much as a model takes at all.
    """
    tokens = len(body) // BYTES_PER_TOKEN
    # find(): on bytes, ``in`` takes three times as long
    if body.find(b'"file_id"') >= 0 or (body.find(b'"url"') >= 0 and _BY_URL.search(body)):
        return max(tokens, NAMED_INPUT)
    return tokens

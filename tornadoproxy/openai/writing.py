"""JSON for clients, from values of the upstream's that can be of any type."""

from __future__ import annotations

import json
from json.encoder import encode_basestring
from typing import TYPE_CHECKING

from tornadoproxy.protocol import json_codec
from tornadoproxy.protocol.json_codec import escape_line_separators

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json

# made once: json.dumps makes an encoder for each call with other than its defaults
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def arguments(tool_input: object) -> str:
    """Return a tool's input as JSON text, the form of OpenAI's ``arguments``."""
    return _ENCODER.encode(tool_input or {})


def string(value: object) -> str:
    """Return `value` if it is a string, and an empty string otherwise."""
    return value if isinstance(value, str) else ""


def encode(document: Json) -> bytes:
    """Return JSON in UTF-8; half of a surrogate pair, which UTF-8 cannot encode, stays escaped."""
    try:
        return escape_line_separators(json_codec.dump(document))
    except UnicodeEncodeError:
        return json.dumps(document, separators=(",", ":")).encode()


def encode_string(value: str) -> bytes:
    """Return a JSON string in UTF-8; see `encode`."""
    try:
        written = encode_basestring(value).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()
    has_separators = "\x85" in value or "\u2028" in value or "\u2029" in value
    return escape_line_separators(written) if has_separators else written

"""The document that is written of one exchange: decoded, cut and redacted.

Rules see the text of a JSON document as readers do, without its escapes, and a stream as the
message that it is a stream of, since a match may be spread over its events.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tornadoproxy_recorder.capture import MARGIN
from tornadoproxy_recorder.streams import assembled

if TYPE_CHECKING:
    import re

    from tornadoproxy import RequestRecord
    from tornadoproxy_recorder.capture import Body, Exchange, Lines

VERSION = 1
REDACTED = "[redacted]"

Document = dict[str, Any]  # Any: JSON
Rules = tuple["re.Pattern[str]", ...]

_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def document_of(exchange: Exchange, record: RequestRecord, rules: Rules) -> Document:
    """Return what is written of an exchange."""
    return {
        "version": VERSION,
        "record": _plain(record),
        "request": {
            "method": exchange.method,
            "path": _redacted(exchange.path, rules),
            "headers": _headers(exchange.request_headers, rules),
            "body": _body(exchange.request, exchange.request_headers, rules),
        },
        "response": None
        if exchange.status is None
        else {
            "status": exchange.status,
            "headers": _headers(exchange.response_headers, rules),
            "body": _body(exchange.response, exchange.response_headers, rules),
        },
    }


def _plain(value: object) -> Any:  # Any: JSON
    """Return a record or a part of it as JSON has it."""
    if hasattr(value, "__struct_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _headers(lines: Lines, rules: Rules) -> list[list[str]]:
    return [[name, _redacted(value, rules)] for name, value in lines]


def _body(body: Body, lines: Lines, rules: Rules) -> Document:
    """Return a body: its ``text`` or, unless it is UTF-8, its ``base64``, and what was left out."""
    values = {name.lower(): value.strip().lower() for name, value in lines}
    data, shown = bytes(body.kept), Document(size=body.size)
    coding = values.get("content-encoding", "identity")
    if coding != "identity":
        decoded = _decompressed(data, coding, body.limit + MARGIN)
        if decoded is not None:
            data, shown["decoded"] = decoded, coding
        elif rules:
            return {**shown, "omitted": f"cannot be redacted: content-encoding {coding[:40]}"}
    is_cut = shown["truncated"] = max(body.size, len(data)) > body.limit
    text = _text_of(data)
    if text is None:
        hidden = _redacted(data.decode("latin-1"), rules, body.limit)
        return {**shown, "base64": base64.b64encode(hidden.encode("latin-1")).decode()}
    if rules and values.get("content-type", "").startswith("text/event-stream"):
        if is_cut:
            return {**shown, "omitted": "a stream over RECORD_MAX_BODY cannot be redacted"}
        text = json.dumps(assembled(text), ensure_ascii=False)
        shown["assembled"] = True
    if rules:
        text = _without_escapes(text, rules)
    end = (
        len(text.encode(errors="replace")[: body.limit].decode(errors="ignore")) if is_cut else None
    )
    return {**shown, "text": _redacted(text, rules, end)}


def _decompressed(data: bytes, coding: str, limit: int) -> bytes | None:
    """Return the beginning of a compressed body; ``None`` if it cannot be read here."""
    if coding not in _WINDOW_BITS:
        return None
    try:
        return zlib.decompressobj(_WINDOW_BITS[coding]).decompress(data, limit)
    except zlib.error:
        return None


def _text_of(data: bytes) -> str | None:
    """Return UTF-8 text, without a last character that is cut; ``None`` if it is none."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return data[: error.start].decode()
        return None


def _without_escapes(text: str, rules: Rules) -> str:
    """Return a JSON document whose texts are redacted, if one is; other text stays."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text
    changed = _redacted_value(document, rules)
    return text if changed == document else json.dumps(changed, ensure_ascii=False)


def _redacted_value(value: Any, rules: Rules) -> Any:  # Any: JSON
    if isinstance(value, str):
        return _redacted(value, rules)
    if isinstance(value, list):
        return [_redacted_value(each, rules) for each in value]
    if isinstance(value, Mapping):
        return {
            _redacted(name, rules): _redacted_value(each, rules) for name, each in value.items()
        }
    return value


def _redacted(text: str, rules: Rules, end: int | None = None) -> str:
    """Return the beginning of `text` with each match replaced, whole ones across the end included.

    :param end: where the beginning ends.
    """
    end = len(text) if end is None else end
    matches = sorted(found.span() for rule in rules for found in rule.finditer(text))
    pieces, at = [], 0
    for start, stop in matches:
        if start >= end:
            break
        if start >= at:
            pieces += [text[at:start], REDACTED]
        at = max(at, stop)
    return "".join([*pieces, text[at:end]])

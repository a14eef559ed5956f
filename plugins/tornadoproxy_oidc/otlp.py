"""The resource attributes of OTLP requests, in protobuf and JSON. Without I/O.

A request has resources, each with attributes, at the same place for metrics, logs and traces: in
protobuf ``repeated ResourceX = 1`` of ``Resource resource = 1`` of ``repeated KeyValue attributes =
1``; in JSON ``resourceMetrics`` and so on, or the names of protobuf, which parsers accept as well.
Everything else is kept as it is.

Sources: https://github.com/open-telemetry/opentelemetry-proto (``collector``, ``resource``),
https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding and
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

MAX_ADDED = 1024 * 1024
"""Bytes of attributes that are added to one request: each of its resources gets all of them."""

MAX_BODY = 1024 * 1024  # bytes
"""The largest request, decompressed."""

_RESOURCES = (
    *("resourceMetrics", "resourceLogs", "resourceSpans"),
    *("resource_metrics", "resource_logs", "resource_spans"),
)

# the types of a field on the wire
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT = 10  # bytes
# some parsers take a higher number for its last 32 bits, and so another field for the first one
_MAX_FIELD = (1 << 29) - 1

# each of these is field 1 of what it is in; a text is field 1 of a value, which is field 2
_FIRST, _SECOND = (1 << 3) | _DELIMITED, (2 << 3) | _DELIMITED


def decompressed(body: bytes, coding: str) -> bytes:
    """Return a request without its content coding.

    :param coding: the header ``Content-Encoding``; empty without one.
    :raises ValueError: it is no such coding, or one that OTLP has not, or the request is too large.
    """
    if coding in ("", "identity"):
        return body
    if coding != "gzip":
        raise ValueError("its Content-Encoding is not gzip")
    decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        found = decoder.decompress(body, MAX_BODY)
    except zlib.error:
        raise ValueError("it is no gzip") from None
    if not decoder.eof or decoder.unused_data:
        raise ValueError(f"it is cut off, or larger than {MAX_BODY} bytes")
    return found


def stamp_json(body: bytes, names: Collection[str], attributes: Mapping[str, str]) -> bytes:
    """Return a request whose resources have these attributes.

    :param names: of the attributes that are removed before.
    :raises ValueError: it is no such request, or has too many resources.
    """
    added = [{"key": name, "value": {"stringValue": text}} for name, text in attributes.items()]
    size = len(json.dumps(added))
    try:
        document = json.loads(body)
        found = [each for name in _RESOURCES for each in document.get(name, ())]
        _check_added(len(found) * size)
        for each in found:
            resource = each.setdefault("resource", {})
            given = resource.get("attributes", ())
            kept = [attribute for attribute in given if attribute.get("key") not in names]
            resource["attributes"] = kept + added
    except (AttributeError, TypeError, RecursionError):
        raise ValueError("it is no OTLP request in JSON") from None
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


def stamp_protobuf(body: bytes, names: Collection[str], attributes: Mapping[str, str]) -> bytes:
    """Return the same for a request in protobuf; see `stamp_json`."""
    removed = {name.encode() for name in names}
    added = b"".join(_attribute(name.encode(), text.encode()) for name, text in attributes.items())
    found = list(_fields(body))
    _check_added(len(added) * sum(each.number == 1 for each in found))
    return b"".join(
        _field(_FIRST, _with_attributes(each.value, removed, added))
        if each.number == 1
        else each.whole
        for each in found
    )


def _check_added(size: int) -> None:
    if size > MAX_ADDED:
        raise ValueError("it has too many resources")


def _with_attributes(data: bytes, removed: Collection[bytes], added: bytes) -> bytes:
    """Return a resource's metrics, logs or spans with other attributes of the resource."""
    found = list(_fields(data))
    resource = b"".join(each.value for each in found if each.number == 1)  # several are one
    kept = b"".join(
        each.whole
        for each in _fields(resource)
        if each.number != 1 or _key(each.value) not in removed
    )
    return _field(_FIRST, kept + added) + b"".join(each.whole for each in found if each.number != 1)


def _attribute(name: bytes, text: bytes) -> bytes:
    return _field(_FIRST, _field(_FIRST, name) + _field(_SECOND, _field(_FIRST, text)))


def _key(attribute: bytes) -> bytes:
    key = b""
    for each in _fields(attribute):
        if each.number == 1:
            key = each.value
    return key


class _Field(NamedTuple):
    """A field of a message.

    :param whole: the field as it is.
    :param value: what it holds; empty if that is a number.
    """

    number: int
    whole: bytes
    value: bytes


def _fields(data: bytes) -> Iterator[_Field]:
    """Yield the fields of a message.

    :raises ValueError: it is no message, or its field 1 is a number.
    """
    at = 0
    while at < len(data):
        begin = at
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        value = at
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _DELIMITED:
            size, value = _varint(data, at)
            at = value + size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:  # a group, which no message of OTLP has
            at = len(data) + 1
        is_first_a_number = number == 1 and kind != _DELIMITED
        if not 1 <= number <= _MAX_FIELD or at > len(data) or is_first_a_number:
            raise ValueError("it is no OTLP request in protobuf")
        yield _Field(number, data[begin:at], data[value:at] if kind == _DELIMITED else b"")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at `at`, and where it ends."""
    number = 0
    for shift, byte in enumerate(data[at : at + _MAX_VARINT]):
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return number, at + shift + 1
    raise ValueError("it is no OTLP request in protobuf")


def _field(tag: int, value: bytes) -> bytes:
    """Return a field that is bytes, with its length."""
    length, size = bytearray(), len(value)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((tag, *length, size)) + value

"""The top-level fields of a request's body: those that decide where it goes, and changes to them.

A field that occurs twice is refused, since parsers keep the first or the last. The work for each
byte is small and bounded; bodies over `IN_THREAD` are for a thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from tornadoproxy.errors import InvalidRequest

IN_THREAD = 256 * 1024
"""The largest body that the event loop reads or changes, in bytes: that takes at most 50 ms."""

MAX_OTHER_FIELDS = 1024 * 1024
"""The limit of all fields but ``messages``, ``system`` and ``tools`` together, in bytes."""

# Skipping nested lists takes 4 ns a byte, and text 0.2 ns. Bodies over 4 MB are mostly text or
# base64.
ANYTHING = 4 * 1024 * 1024
"""The largest body whose number of values does not matter, in bytes."""

_MAX_SIGNS = 2_000_000


class RoutingFields(msgspec.Struct, frozen=True):
    """The fields of a request that decide where it goes; ``None`` for those that cannot be read.

    :param model: as it is called upstream.
    :param user_id: of its metadata.
    :param requested: the model as the client called it.
    """

    model: str | None = None
    user_id: str | None = None
    requested: str | None = None


NOTHING_READ = RoutingFields()
"""What is known of a body that was not read."""


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _Fields(msgspec.Struct):
    model: Raw = Raw()
    metadata: Raw = Raw()


class _Large(msgspec.Struct):
    """The fields that can be large."""

    messages: Raw = Raw()
    system: Raw = Raw()
    tools: Raw = Raw()


_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_large = msgspec.json.Decoder(_Large).decode
_decode = msgspec.json.Decoder(_Fields).decode
_decode_name = msgspec.json.Decoder(str).decode
_decode_metadata = msgspec.json.Decoder(_Metadata | None).decode
_encode = msgspec.json.encode

_NAME = re.compile(rb'\s*[{,]\s*"[^"\\]*(?:\\.[^"\\]*)*"\s*:\s*')


def read_fields(body: bytes) -> dict[str, bytes]:
    """Return the fields of the JSON object `body`, in order, each value as it is written.

    None is decoded: a megabyte takes some 3 ms. With `write_fields` some can be changed, and all
    others stay as they are::

        fields = read_fields(body)
        fields["anthropic_version"] = b'"2026-10-21"'
        del fields["model"]
        body = write_fields(fields)

    :raises InvalidRequest: it is no JSON object, has a field twice, or is too complex.
    """
    members = _members_or_refusal(body)
    return {name: bytes(value) for name, value in members.items()}


def write_fields(fields: Mapping[str, bytes]) -> bytes:
    """Return the JSON object of these fields; each value is written as it is."""
    return _encode({name: Raw(value) for name, value in fields.items()})


def with_model(body: bytes, name: str) -> bytes:
    """Return `body` with `name` for its model; every other byte stays.

    :raises InvalidRequest: it has a field twice, or is too complex.
    """
    members = _members_or_refusal(body)
    named = _NAME.match(body, _starts(body, members)[[*members].index("model")])
    assert named is not None
    return b"%b%b%b" % (
        body[: named.end()],
        _encode(name),
        body[named.end() + len(members["model"]) :],
    )


def members_of(body: bytes) -> dict[str, Raw]:
    """Return the fields of the object in `body`.

    :raises InvalidRequest: a field occurs twice, or the body is too complex.
    :raises msgspec.DecodeError: it is not JSON, or not an object.
    """
    if len(body) > MAX_OTHER_FIELDS:
        _check_complexity(body)
    found = _decode_members(body)
    # The decoder keeps the last of two fields with one name. So the body has no field twice if it
    # consists of the fields that the decoder kept, in their order, and of nothing else. Most
    # clients send what the encoder makes of these, without whitespace: a fifth of the time.
    if len(body) > MAX_OTHER_FIELDS or _encode(found) != body:
        _starts(body, found)
    return found


def _starts(body: bytes, found: Mapping[str, Raw]) -> list[int]:
    """Return where the text of each field begins.

    :raises InvalidRequest: there is more than these fields.
    """
    place = 0
    starts = []
    for value in found.values():
        begin = _NAME.match(body, place)
        if begin is None or not body.startswith(value, begin.end()):
            raise ambiguous()
        starts.append(place)
        place = begin.end() + len(value)
    if b"".join(body[place:].split()) != (b"}" if found else b"{}"):
        raise ambiguous()
    return starts


def _members_or_refusal(body: bytes) -> dict[str, Raw]:
    try:
        return members_of(body)
    except msgspec.ValidationError:
        raise InvalidRequest("The request body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON in UTF-8.") from None


def ambiguous() -> InvalidRequest:
    """Return the error of a body that parsers read in different ways."""
    return InvalidRequest(
        "The request body has a field twice, or in another case: send each field once, in lower "
        "case."
    )


def signs(raw: bytes) -> int:
    """Return an upper bound of the number of values in `raw`."""
    # in three calls, since other threads can run between calls only
    return sum([raw.count(sign) for sign in (b",", b"[", b"{")])


def read_routing(body: bytes) -> RoutingFields:
    """Read the body of a messages request; what is wrong with it is for the upstream to say."""
    try:
        fields = _decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return NOTHING_READ
    model = _name_of(fields)
    return RoutingFields(model, _user_of(fields), model)


def routed(body: bytes, models: Mapping[str, str]) -> tuple[RoutingFields, bytes]:
    """Read a body as `read_routing` does; return it with the name that `models` give its model.

    :raises InvalidRequest: its model cannot be replaced.
    """
    routing = read_routing(body)
    if routing.model is None:
        return routing, body
    model = mapped(routing.model, models)
    if model == routing.model:
        return routing, body
    return replace(routing, model=model), with_model(body, model)


def mapped(name: str, models: Mapping[str, str]) -> str:
    """Return what ``MODELS`` or ``CHAT_MODELS`` says that a model is called upstream.

    ``*`` stands for any other name that does not begin with ``claude``.
    """
    if name in models:
        return models[name]
    return name if name.startswith("claude") else models.get("*", name)


def _check_complexity(body: bytes) -> None:
    """Refuse a body that would take too long to decode; its values are not decoded."""
    if len(body) > ANYTHING and signs(body) > _MAX_SIGNS:
        raise InvalidRequest(
            f"The request body has more than {_MAX_SIGNS} values: send fewer or smaller lists."
        )
    large = _decode_large(body)
    others = len(body) - len(large.messages) - len(large.system) - len(large.tools)
    if others > MAX_OTHER_FIELDS:
        raise InvalidRequest(
            "The fields of the request body other than messages, system and tools are larger than "
            f"{MAX_OTHER_FIELDS} bytes."
        )


def _name_of(fields: _Fields) -> str | None:
    try:
        return _decode_name(fields.model)
    except (msgspec.DecodeError, UnicodeError):
        return None


def _user_of(fields: _Fields) -> str | None:
    try:
        metadata = _decode_metadata(fields.metadata)
    except (msgspec.DecodeError, UnicodeError):
        return None
    return None if metadata is None else metadata.user_id

"""The model in the body of a request: what decides where it goes, and its replacement. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from tornadoproxy.errors import InvalidRequest


class RoutingFields(msgspec.Struct):
    """The fields of a request that decide where it goes; ``None`` for those that cannot be read."""

    model: str | None = None
    user_id: str | None = None


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _Fields(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw()
    metadata: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Fields).decode
_decode_name = msgspec.json.Decoder(str).decode
_decode_metadata = msgspec.json.Decoder(_Metadata | None).decode


def read_routing(body: bytes) -> RoutingFields:
    """Read the body of a messages request; what is wrong with it is for the upstream to say."""
    try:
        fields = _decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return RoutingFields()
    return RoutingFields(_name_of(fields), _user_of(fields))


def with_model(body: bytes, name: str) -> bytes:
    """Return `body` with `name` for its model; every other byte stays.

    :raises InvalidRequest: the name of that field is written with escapes.
    """
    spelled = bytes(_decode(body).model)
    replacement = msgspec.json.encode(name)
    for found in re.finditer(rb'"model"\s*:\s*' + re.escape(spelled), body):
        renamed = body[: found.end() - len(spelled)] + replacement + body[found.end() :]
        # not a field of the same name below the top level
        if bytes(_decode(renamed).model) == replacement:
            return renamed
    raise InvalidRequest("Write the name of the field model without escapes.", param="model")


def mapped(name: str, models: Mapping[str, str]) -> str:
    """Return what ``MODELS`` says that a model is called upstream.

    ``*`` stands for any other name that does not begin with ``claude``.
    """
    if name in models:
        return models[name]
    return name if name.startswith("claude") else models.get("*", name)


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

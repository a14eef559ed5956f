"""JSON from a client, read: bounded, strict, and with errors that name the parameter."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.protocol import json_codec

Json: TypeAlias = dict[str, Any]
"""A JSON object. Its values can be of any type, so each is validated before it is used."""

MAX_DEPTH = 200
"""The deepest nesting that is accepted. Real requests stay below twenty."""

MAX_VALUES = 200_000
"""The most values that are accepted, objects and lists included.

A short value takes tens of times its length in memory, so this bounds the memory, not the body's
length. That many values are decoded within 40 ms, during which no other thread runs.
"""

MAX_BACKSLASHES = 8_000_000
"""The most backslashes that are accepted: that many escapes are written within 40 ms."""

_STEP = 1024 * 1024
_NO_BACKSLASH = re.compile(rb"[^\\]")

MAX_TOOL_NAME = 128  # characters
_TOOL_NAME = re.compile(rf"[a-zA-Z0-9_-]{{1,{MAX_TOOL_NAME}}}")

MAX_QUOTED = 64
"""The most characters of a client's value that an error quotes."""


def parse(body: bytes) -> Json:
    """Return the JSON object in `body`.

    :raises InvalidRequest: it is not UTF-8, not JSON (``NaN`` is not), nested too deeply, of too
        many values, or not an object.
    """
    try:
        document = loads(body)
    except UnicodeDecodeError:
        raise InvalidRequest("The request body is not valid UTF-8.") from None
    except ValueError as error:
        raise InvalidRequest(f"The request body cannot be read as JSON: {error}.") from None
    if not isinstance(document, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return document


def loads(document: bytes, errors: str = "strict") -> object:
    """Return the value of a JSON document within the bounds.

    :param errors: see `bytes.decode`.
    :raises UnicodeDecodeError: it is not UTF-8.
    :raises ValueError: it is not JSON, or over a bound; the message says which.
    """
    at_most = _count_values(document)  # a cheap upper bound, low for most documents
    if at_most > MAX_VALUES and count_values(document, MAX_VALUES) > MAX_VALUES:
        raise ValueError(f"it holds more than {MAX_VALUES} values")
    if len(document) > MAX_BACKSLASHES and document.count(b"\\") > MAX_BACKSLASHES:
        raise ValueError(f"it holds more than {MAX_BACKSLASHES} backslashes")
    try:
        value: object = json_codec.loads_with(_DECODER, document, errors)
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise ValueError(reason) from None
    except UnicodeDecodeError:
        raise
    except ValueError as error:  # a constant, or a number that is too large
        raise ValueError(str(error).partition(";")[0]) from None
    if at_most > MAX_DEPTH:
        _check_depth(value)
    return value


def count_values(document: bytes, most: int) -> int:
    """Return how many values JSON has, or a number above `most` if it has more than that.

    It does so without the memory of decoding it, and in steps, since other threads can run between
    steps only.
    """
    values = start = in_string = 0
    while start < len(document) and values <= most:
        # no cut within an escape
        cut = _NO_BACKSLASH.search(document, start + _STEP)
        end = len(document) if cut is None else cut.end()
        if end - start > 2 * _STEP:
            return most + 1
        pieces = document[start:end].replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        values += _count_values(b"".join(pieces[in_string::2]))
        in_string ^= len(pieces) % 2 == 0
        start = end
    return values


def dump(document: Mapping[str, Any]) -> bytes:
    """Return `document` as JSON in UTF-8.

    Half of a surrogate pair becomes U+FFFD, since UTF-8 cannot encode it. Clients send it if they
    cut their history between the halves.
    """
    try:
        return json_codec.dump(document)
    except UnicodeEncodeError:
        return json_codec.dump(_without_halves(document))


def dump_each(documents: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Return each of the `documents` as JSON to be kept; see `dump`."""
    try:
        return json_codec.dump_each(documents)
    except UnicodeEncodeError:
        return [dump(each) for each in documents]


def text(value: object, param: str) -> str:
    """Return `value`, which must be a string."""
    if not isinstance(value, str):
        refuse(param, "must be a string")
    return value


def boolean(value: object, param: str) -> bool:
    """Return `value`, which must be true or false."""
    if not isinstance(value, bool):
        refuse(param, "must be true or false")
    return value


def integer(value: object, param: str, minimum: int) -> int:
    """Return `value`, which must be a whole number of at least `minimum`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        refuse(param, f"must be a whole number of at least {minimum}")
    return value


def number(value: object, param: str, minimum: float, maximum: float) -> float:
    """Return `value`, which must be a number from `minimum` to `maximum`."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        refuse(param, "must be a number")
    if not minimum <= value <= maximum:
        refuse(param, f"must be from {minimum:g} to {maximum:g}")
    return value


def obj(value: object, param: str) -> Json:
    """Return `value`, which must be an object."""
    if not isinstance(value, dict):
        refuse(param, "must be an object")
    return value


def array(value: object, param: str) -> list[Any]:
    """Return `value`, which must be a list."""
    if not isinstance(value, list):
        refuse(param, "must be a list")
    return value


def one_of(value: object, param: str, options: Collection[str]) -> str:
    """Return `value`, which must be one of `options`."""
    if not isinstance(value, str) or value not in options:
        refuse(param, f"must be one of {', '.join(options)}")
    return value


def tool_name(value: object, param: str) -> str:
    """Return `value`, which must be a name that the upstream accepts for a tool."""
    name = text(value, param)
    if not _TOOL_NAME.fullmatch(name):
        refuse(param, "must be 1 to 128 letters, digits, underscores or dashes")
    return name


def refuse(param: str, must: str) -> NoReturn:
    """Refuse the request because of one parameter."""
    raise InvalidRequest(f"'{param}' {must}.", param=param)


def _without_halves(value: Any) -> Any:  # Any: JSON
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_without_halves(name): _without_halves(each) for name, each in value.items()}
    return [_without_halves(each) for each in value] if isinstance(value, list) else value


def _count_values(structure: bytes) -> int:
    return structure.count(b",") + structure.count(b"[") + structure.count(b"{")


def _check_depth(value: object) -> None:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        children: list[object] = []
        for container in level:
            if isinstance(container, dict):
                children += [each for each in container.values() if isinstance(each, (dict, list))]
            elif isinstance(container, list):
                children += [each for each in container if isinstance(each, (dict, list))]
        if not children:
            return
        level = children
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)

"""The access log: one line for each request that has ended.

Texts that a client may choose (path, model, session ids) cannot forge a line or a field: each value
is cut at 256 characters and escaped unless it is printable ASCII; in text lines blanks, quotes and
backslashes are escaped as well.

In text lines the model is the one that responded, or else the requested one. Unknown values are
``-``, ``tokens`` are input + output, ``cache`` is read + created, blanks in an error are ``_``, and
rare fields are omitted. ``tokens`` and ``cache`` are those of the model that responded; ``others``
has the model and the tokens of each other call. ``cost`` is in US dollars for all calls, and
``partial`` marks a response that was cut off, so that more tokens may have been used.
JSON lines have every field, ``null`` if it is unknown, so that they can be loaded as columns.
Durations are in milliseconds, in JSON to a tenth.

A thread writes the lines, see `tornadoproxy.LineWriter`: a full disk or a stuck pipe costs lines,
but delays no request.
"""

from __future__ import annotations

import json
import os
import re
import time
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING

from tornadoproxy import (
    ConfigurationError,
    LineWriter,
    ModelUsage,
    RequestRecord,
    Setting,
    Settings,
    hookimpl,
    parsers,
    usd,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    _Form = tuple[Callable[[RequestRecord], bytes], Callable[[int], bytes]]
    """The functions that write a record, and the number of dropped lines."""

MAX_FIELD = 256  # characters
NANOS = 1_000_000_000  # in a dollar

_DESCRIPTORS = {"stdout": 1, "stderr": 2}
_JSON = json.JSONEncoder(separators=(",", ":"))
_PLAIN = rf"[!#-\[\]-~]{{1,{MAX_FIELD}}}"  # no blank, quote or \


def _destination(value: str) -> str:
    """Return ``stdout``, ``stderr``, ``off``, or a file's path."""
    if value.lower() in (*_DESCRIPTORS, "off"):
        return value.lower()
    # a path needs a slash, so that a misspelled word does not become a file
    if "/" not in value:
        raise ValueError(
            f"must be stdout, stderr, off, or a file's path such as ./access.log, not {value!r}"
        )
    return parsers.text(value)


ACCESS_LOG: Setting[str] = Setting(
    "ACCESS_LOG",
    _destination,
    default="stdout",
    help=(
        "destination of the access log: stdout, stderr, off, or a file, which is reopened on SIGHUP"
    ),
)
ACCESS_LOG_FORMAT: Setting[str] = Setting(
    "ACCESS_LOG_FORMAT",
    parsers.choice("text", "json"),
    default="text",
    help="format of the access log: text, or json for one object per line",
)


class AccessLog:
    """The plugin: it writes a line for each finished request to ``ACCESS_LOG``."""

    def __init__(self) -> None:
        self._destination = ACCESS_LOG.default
        self._form = _FORMS[ACCESS_LOG_FORMAT.default]
        self._writer: LineWriter | None = None
        self._started = False

    @hookimpl
    def declare_settings(self) -> tuple[Setting[str], ...]:
        return ACCESS_LOG, ACCESS_LOG_FORMAT

    @hookimpl
    def configure(self, settings: Settings) -> str:
        """Check the destination; on a reload, switch to it or reopen its file."""
        destination = settings[ACCESS_LOG]
        form = _FORMS[settings[ACCESS_LOG_FORMAT]]
        _check(destination)
        changed = (destination, form) != (self._destination, self._form)
        if self._started and (changed or "/" in destination):
            writer = _open(destination, form)
            self._close(timeout=0)  # its thread writes the rest; no request waits for it
            self._writer = writer
        self._destination = destination
        self._form = form
        return "off" if destination == "off" else f"a line for each request to {destination}"

    @hookimpl
    def startup(self) -> None:
        self._writer = _open(self._destination, self._form)
        self._started = True

    @hookimpl
    def request_finished(self, record: RequestRecord) -> None:
        if self._writer is not None:
            line, _ = self._form
            self._writer.write(partial(line, record))

    @hookimpl
    def shutdown(self) -> None:
        self._close(timeout=2)

    def _close(self, timeout: float) -> None:
        if self._writer is not None:
            self._writer.close(timeout)


def text_line(record: RequestRecord) -> bytes:
    """Return a record as text, fields separated by blanks, without the line end."""
    usage = record.usage
    line = (
        f"{_time(record.time)} {record.status or '-':>3} {record.outcome:<9} "
        f"{_known(record.method)} {_plain(record.route)} "
        f"{_known(record.principal)} {_known(record.model or record.requested_model)} "
        f"in={record.bytes_in} out={record.bytes_out} "
        f"ttfb={_milliseconds(record.time_to_first_byte)} "
        f"total={_milliseconds(record.duration)} "
        f"upstream={_milliseconds(record.upstream_time)} "
        f"tokens={_pair(usage.input_tokens, usage.output_tokens)}"
    )
    if usage.cache_read_input_tokens or usage.cache_creation_input_tokens:
        line += f" cache={_pair(usage.cache_read_input_tokens, usage.cache_creation_input_tokens)}"
    if usage.others:
        line += f" others={','.join(map(_other, usage.others))}"
    if record.cost is not None:
        line += f" cost=${usd(record.cost)}"
    if usage.partial:
        line += " partial"
    line += f" from={_known(record.remote_ip)} id={_plain(record.request_id)}"
    if record.session_id is not None:
        line += f" session={_plain(record.session_id)}"
    if record.agent_id is not None:
        line += f" agent={_plain(record.agent_id)}"
    if record.parent_agent_id is not None:
        line += f" parent={_plain(record.parent_agent_id)}"
    if record.failed_attempts:
        line += f" upstream={_plain(record.upstream or '-')} attempts={record.attempts}"
    if record.error is not None:
        line += f" error={_plain(record.error.replace(' ', '_'))}"
    return line.encode("ascii")


def json_line(record: RequestRecord) -> bytes:
    """Return a record as a JSON object, without the line end."""
    usage = record.usage
    return _JSON.encode(
        {
            "time": _time(record.time),
            "request_id": _cut(record.request_id),
            "principal": _cut(record.principal),
            "groups": [_cut(group) for group in record.groups],
            "method": _cut(record.method),
            "route": _cut(record.route),
            "dialect": record.dialect,
            "scheme": record.scheme,
            "remote_ip": _cut(record.remote_ip),
            "status": record.status,
            "outcome": record.outcome,
            "error": _cut(record.error),
            "requested_model": _cut(record.requested_model),
            **_used(ModelUsage(record.model, usage, record.cost)),
            "partial": usage.partial,
            "others": [_used(other) for other in usage.others],
            "stop_reason": _cut(record.stop_reason),
            "bytes_in": record.bytes_in,
            "bytes_out": record.bytes_out,
            "duration_ms": _tenths(record.duration),
            "time_to_first_byte_ms": _tenths(record.time_to_first_byte),
            "time_to_first_token_ms": _tenths(record.time_to_first_token),
            "upstream_time_ms": _tenths(record.upstream_time),
            "upstream": record.upstream,
            "attempts": record.attempts,
            "failed_attempts": [_cut(why) for why in record.failed_attempts],
            "session_id": _cut(record.session_id),
            "agent_id": _cut(record.agent_id),
            "parent_agent_id": _cut(record.parent_agent_id),
        }
    ).encode("ascii")


def _text_notice(count: int) -> bytes:
    return f"{_time(time.time())} {count} lines of this log were dropped".encode("ascii")


def _json_notice(count: int) -> bytes:
    return _JSON.encode({"time": _time(time.time()), "dropped_lines": count}).encode("ascii")


_FORMS: dict[str, _Form] = {
    "text": (text_line, _text_notice),
    "json": (json_line, _json_notice),
}


def _check(destination: str) -> None:
    """Refuse a file that cannot be written, without creating it."""
    if "/" not in destination:
        return
    folder = os.path.dirname(destination)
    if os.path.isdir(destination):
        raise ConfigurationError(f"ACCESS_LOG={destination} is a directory; set it to a file.")
    if not os.path.isdir(folder):
        raise ConfigurationError(
            f"ACCESS_LOG={destination}: there is no directory {folder}; create it."
        )
    if not os.access(destination if os.path.exists(destination) else folder, os.W_OK):
        raise ConfigurationError(
            f"ACCESS_LOG={destination} cannot be written: permission denied; allow writing it."
        )


def _open(destination: str, form: _Form) -> LineWriter | None:
    if destination == "off":
        return None
    _, notice = form
    try:
        if destination in _DESCRIPTORS:
            return LineWriter(_DESCRIPTORS[destination], notice=notice)
        # with O_NONBLOCK, opening a named pipe without a reader fails instead of waiting for one
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(destination, flags, 0o640)
    except OSError as error:
        raise ConfigurationError(
            f"ACCESS_LOG={destination} cannot be opened: {error.strerror}."
        ) from None
    try:
        return LineWriter(fd, notice=notice)
    finally:
        os.close(fd)


def _time(seconds: float) -> str:
    """Return a time as in RFC 3339, in UTC, to the millisecond."""
    whole, microseconds = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{_second(whole)}.{microseconds // 1000:03}Z"


@lru_cache(4)  # consecutive lines mostly share their second
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:-6]


@lru_cache(256)
def _known(value: str | None) -> str:
    """Return `_plain`, cached for values that many requests share."""
    return _plain(value)


@cache
def _plain_pattern() -> re.Pattern[str]:
    """Return `_PLAIN`, compiled with the first line and not at the start."""
    return re.compile(_PLAIN)


def _plain(value: str | None) -> str:
    """Return `value` as one printable word."""
    if value is None:
        return "-"
    if _plain_pattern().fullmatch(value):
        return value
    escaped = value[:MAX_FIELD].encode("unicode_escape").decode("ascii")
    return escaped.replace(" ", "\\x20").replace('"', "\\x22")[:MAX_FIELD] or '""'


def _cut(value: str | None) -> str | None:
    return None if value is None else value[:MAX_FIELD]


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f}ms"


def _tenths(seconds: float | None) -> float | None:
    """Return seconds as milliseconds, to a tenth."""
    return None if seconds is None else round(seconds * 1000, 1)


def _other(other: ModelUsage) -> str:
    usage = other.usage
    return f"{_known(other.model)}:{_pair(usage.input_tokens, usage.output_tokens)}"


def _used(part: ModelUsage) -> dict[str, str | float | None]:
    usage = part.usage
    return {
        "model": _cut(part.model),
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_input_tokens": usage.cache_read_input_tokens,
        "cache_creation_input_tokens": usage.cache_creation_input_tokens,
        "cache_creation_1h_input_tokens": usage.cache_creation_1h_input_tokens,
        "web_search_requests": usage.web_search_requests,
        "web_fetch_requests": usage.web_fetch_requests,
        "cost_usd": None if part.cost is None else part.cost / NANOS,
    }


def _pair(first: int | None, second: int | None) -> str:
    """Return two counts as ``1024+512``; ``?`` is an unknown one, ``-`` is two."""
    if first is None and second is None:
        return "-"
    return f"{'?' if first is None else first}+{'?' if second is None else second}"

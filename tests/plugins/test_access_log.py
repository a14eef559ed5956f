"""The plugin access_log: its lines and their destinations."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tornadoproxy_access_log import ACCESS_LOG, ACCESS_LOG_FORMAT, AccessLog, json_line, text_line

from tornadoproxy import ConfigurationError, ModelUsage, Outcome, RequestRecord, Settings, Usage
from tornadoproxy.testing import request_record

RECORD = request_record(
    time=1_796_000_000.1239,
    request_id="req_011",
    principal="token",
    groups=("staff",),
    model="claude-opus-4-5",
    usage=Usage(1024, 512, 2000, 0, 0, 1, 2),
    cost=18_420_001,
    stop_reason="end_turn",
    bytes_in=812,
    bytes_out=20_431,
    duration=8.12345,
    time_to_first_byte=0.41234,
    time_to_first_token=0.51234,
    upstream_time=8.12,
    session_id="5e55",
    agent_id="a1",
    parent_agent_id="a0",
)
NOTHING_KNOWN = request_record(
    principal=None,
    status=None,
    outcome=Outcome.ABANDONED,
    model=None,
    usage=Usage(),
    time_to_first_byte=None,
    upstream_time=None,
)
HOSTILE = [
    "two\r\nlines",
    "a blank",
    'a "quote"',
    '""',
    "a \\backslash\\n",
    "\x00\x1b[31mred\x7f\x85\u2028",
    "\U0001f600" * 300,
    "\udcff",
    "x 200 completed POST /v1/messages in=1 out=1",
    '","outcome":"completed","x":"',
    " " * 10_000,
    "",
]
TEXT_FIELDS = (
    "method", "route", "principal", "model", "remote_ip", "request_id", "session_id", "agent_id",
    "parent_agent_id", "error",
)  # fmt: skip


def settings(destination: object = "stdout", form: str = "text") -> Settings:
    return Settings.defaults(ACCESS_LOG, ACCESS_LOG_FORMAT).replace(
        {ACCESS_LOG: str(destination), ACCESS_LOG_FORMAT: form}
    )


def started(values: Settings) -> AccessLog:
    plugin = AccessLog()
    plugin.configure(values)
    plugin.startup()
    return plugin


def fault(destination: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        AccessLog().configure(settings(destination))
    (line,) = caught.value.faults
    assert line.startswith("ACCESS_LOG=")
    return line


def ids(content: str) -> list[str]:
    return re.findall(r" id=(\S+)", content)


def join_writers() -> None:
    """Wait for the threads of closed writers, which write their last lines."""
    for thread in threading.enumerate():
        if thread.name == "linewriter":
            thread.join()


def record(request_id: str) -> RequestRecord:
    return replace(RECORD, request_id=request_id)


# Lines


def test_text_line_of_a_whole_record() -> None:
    assert text_line(RECORD).decode() == (
        "2026-11-30T00:53:20.123Z 200 completed POST /v1/messages token claude-opus-4-5 "
        "in=812 out=20431 ttfb=412ms total=8123ms upstream=8120ms tokens=1024+512 cache=2000+0 "
        "cost=$0.018420001 from=127.0.0.1 id=req_011 session=5e55 agent=a1 parent=a0"
    )


def test_text_line_of_unknown_values() -> None:
    assert text_line(NOTHING_KNOWN).decode() == (
        "2026-11-30T00:53:20.000Z   - abandoned POST /v1/messages - - "
        "in=100 out=200 ttfb=- total=500ms upstream=- tokens=- from=127.0.0.1 id=req_1"
    )


SEVERAL = (ModelUsage("claude-opus-5-5", Usage(200, 50), cost=900), ModelUsage(None, Usage()))


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"model": None, "requested_model": "claude opus"}, r" claude\x20opus in="),
        ({"error": "it broke", "outcome": Outcome.FAILED}, " parent=a0 error=it_broke"),
        ({"usage": Usage(input_tokens=7), "cost": None}, " tokens=7+? from="),
        ({"usage": Usage(7, 3, partial=True), "cost": None}, " tokens=7+3 partial from="),
        ({"usage": Usage(7, 3, partial=True), "cost": 5_000_000}, " cost=$0.005 partial from="),
        ({"usage": Usage(1, 2, others=SEVERAL)}, "=1+2 others=claude-opus-5-5:200+50,-:- cost=$"),
    ],
    ids=str,
)
def test_text_line_of_other_values(changes: dict[str, Any], shown: str) -> None:
    assert shown in f"{text_line(replace(RECORD, **changes)).decode()}\n"


def test_json_line_has_the_usage_of_each_model() -> None:
    line = json.loads(json_line(replace(RECORD, usage=Usage(10, 1, others=SEVERAL))))
    first, second = line["others"]
    assert (first["model"], first["input_tokens"], first["cost_usd"]) == (
        *("claude-opus-5-5", 200, 9e-7),
    )
    assert set(second.values()) == {None}
    assert first.keys() <= line.keys()


def test_json_line_of_a_whole_record() -> None:
    assert json.loads(json_line(RECORD)) == {
        "time": "2026-11-30T00:53:20.123Z",
        "request_id": "req_011",
        "principal": "token",
        "groups": ["staff"],
        "method": "POST",
        "route": "/v1/messages",
        "dialect": "anthropic",
        "scheme": "http",
        "remote_ip": "127.0.0.1",
        "status": 200,
        "outcome": "completed",
        "error": None,
        "requested_model": None,
        "model": "claude-opus-4-5",
        "input_tokens": 1024,
        "output_tokens": 512,
        "cache_read_input_tokens": 2000,
        "cache_creation_input_tokens": 0,
        "cache_creation_1h_input_tokens": 0,
        "web_search_requests": 1,
        "web_fetch_requests": 2,
        "cost_usd": 0.018420001,
        "partial": False,
        "others": [],
        "stop_reason": "end_turn",
        "bytes_in": 812,
        "bytes_out": 20431,
        "duration_ms": 8123.4,
        "time_to_first_byte_ms": 412.3,
        "time_to_first_token_ms": 512.3,
        "upstream_time_ms": 8120.0,
        "upstream": None,
        "attempts": 0,
        "failed_attempts": [],
        "session_id": "5e55",
        "agent_id": "a1",
        "parent_agent_id": "a0",
    }


def test_json_line_has_every_field_of_a_record() -> None:
    fields = set(RequestRecord.__struct_fields__)
    fields |= set(Usage.__struct_fields__)
    fields -= {"usage", "traceparent", "tracestate"}
    for each in (RECORD, NOTHING_KNOWN):
        keys = [key.removesuffix("_ms").removesuffix("_usd") for key in json.loads(json_line(each))]
        assert sorted(keys) == sorted(fields)


@pytest.mark.parametrize("field", TEXT_FIELDS)
def test_value_cannot_forge_a_field_of_a_text_line(field: str) -> None:
    plain: dict[str, Any] = {"error": "x", field: "x"}
    expected = text_line(replace(RECORD, **plain)).decode().split(" ")
    for value in HOSTILE:
        line = text_line(replace(RECORD, **{**plain, field: value})).decode()
        assert line.isprintable()
        found = line.split(" ")
        assert len(found) == len(expected)
        changed = [at for at in range(len(found)) if found[at] != expected[at]]
        assert len(changed) <= 1
        for at in changed:
            key = expected[at].removesuffix("x")
            assert found[at].startswith(key)
            assert 0 < len(found[at].removeprefix(key)) <= 256


@pytest.mark.parametrize("field", [*TEXT_FIELDS, "stop_reason"])
def test_value_cannot_forge_a_field_of_a_json_line(field: str) -> None:
    for value in HOSTILE:
        hostile: dict[str, Any] = {field: value}
        line = json_line(replace(RECORD, **hostile)).decode("ascii")
        assert line.isprintable()
        assert json.loads(line) == {**json.loads(json_line(RECORD)), field: value[:256]}


def test_escaping_keeps_values_distinct() -> None:
    lines = [text_line(replace(RECORD, route=value)) for value in HOSTILE]
    assert len(set(lines)) == len(HOSTILE)
    escaped = text_line(replace(RECORD, route="a b"))
    assert escaped != text_line(replace(RECORD, route="a\\x20b"))


# Where they go


@pytest.mark.parametrize("value", ["STDERR", "off", "./log"])
def test_destination_is_parsed(value: str) -> None:
    assert ACCESS_LOG.parse(value) == value.lower()


@pytest.mark.parametrize("value", ["stdou", "none", "access.log"])
def test_destination_without_a_slash_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"^must be stdout, stderr, off, or a file's path"):
        ACCESS_LOG.parse(value)


def test_lines_are_appended_to_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(2):
        plugin = AccessLog()
        line = plugin.configure(settings(path, "json"))
        assert line == f"a line for each request to {path}"
        plugin.startup()
        plugin.request_finished(RECORD)
        plugin.shutdown()
    assert path.read_bytes() == (json_line(RECORD) + b"\n") * 2
    assert path.stat().st_mode & 0o137 == 0


def test_unwritable_path_is_refused(tmp_path: Path) -> None:
    assert "is a directory; set it to a file" in fault(tmp_path)
    assert f"there is no directory {tmp_path / 'missing'}" in fault(tmp_path / "missing" / "log")
    assert "there is no" in fault("/dev/null/log")


@pytest.fixture
def not_root() -> Iterator[None]:
    """Take root's permissions away, which `os.access` looks up by the real user."""
    user = os.getuid()
    if user == 0:
        os.setreuid(65_534, -1)
    yield
    os.setreuid(user, -1)


@pytest.mark.usefixtures("not_root")
def test_path_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").touch(mode=0o400)
    assert "permission denied" in fault(tmp_path / "log")
    tmp_path.chmod(0o500)
    assert "permission denied" in fault(tmp_path / "new")


def test_reload_reopens_a_rotated_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    plugin = started(settings(path))
    plugin.request_finished(record("before"))
    path.rename(tmp_path / "log.1")
    plugin.request_finished(record("between"))
    plugin.configure(settings(path))
    plugin.request_finished(record("after"))
    plugin.shutdown()
    join_writers()
    assert ids((tmp_path / "log.1").read_text()) == ["before", "between"]
    assert ids(path.read_text()) == ["after"]


def test_reload_to_another_destination_loses_no_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plugin = started(settings("stdout"))
    plugin.request_finished(record("1"))
    for request_id, values in (
        ("2", settings(tmp_path / "log", "json")),
        ("3", settings("stdout")),
        ("4", settings("stdout")),
        ("5", settings("off")),
        ("6", settings("stderr")),
    ):
        plugin.configure(values)
        plugin.request_finished(record(request_id))
    plugin.shutdown()
    join_writers()
    assert json.loads((tmp_path / "log").read_text())["request_id"] == "2"
    written = capfd.readouterr()
    assert (sorted(ids(written.out)), ids(written.err)) == (["1", "3", "4"], ["6"])


def test_refused_reload_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    plugin = started(settings(path))
    with pytest.raises(ConfigurationError):
        plugin.configure(settings(tmp_path / "missing" / "log", "json"))
    os.mkfifo(tmp_path / "fifo")  # which has no reader
    with pytest.raises(ConfigurationError, match=r"^ACCESS_LOG=\S+ cannot be opened: "):
        plugin.configure(settings(tmp_path / "fifo", "json"))
    plugin.request_finished(RECORD)
    plugin.shutdown()
    assert path.read_bytes() == text_line(RECORD) + b"\n"


@pytest.mark.parametrize("form", ["text", "json"])
def test_stuck_reader_costs_lines_that_are_counted(tmp_path: Path, form: str) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    plugin = started(settings(path, form))
    for _ in range(25_000):  # more than may wait and be on their way together
        plugin.request_finished(RECORD)
    os.set_blocking(reader, True)
    with open(reader, "rb") as file, ThreadPoolExecutor() as pool:
        reading = pool.submit(file.read)
        plugin.shutdown()
        lines = reading.result().splitlines()
    whole = json_line(RECORD) if form == "json" else text_line(RECORD)
    notices = [line for line in lines if line != whole]
    counts = {
        "text": rb"\S+Z (\d+) lines of this log were dropped",
        "json": rb'\{"time":"\S+Z","dropped_lines":(\d+)\}',
    }
    found = [re.fullmatch(counts[form], notice) for notice in notices]
    dropped = sum(int(each[1]) for each in found if each)
    assert dropped + len(lines) - len(notices) == 25_000

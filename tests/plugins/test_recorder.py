"""The plugin recorder: what it keeps, what it never keeps, and the command ``records``."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from recording import CHAT, EVENTS, MESSAGE, recorded, start
from scene import Scene
from tornadoproxy_recorder import files, writer
from tornadoproxy_recorder.capture import Capture, Exchange

from tornadoproxy import ConfigurationError, IncomingRequest, Observer
from tornadoproxy.testing import (
    TEST_TOKEN,
    Response,
    bytes_response,
    json_response,
    message_document,
    request_bytes,
    request_record,
    silent_response,
    sse_response,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "records"


# -- what is recorded


async def test_exchange_is_one_private_file_by_date_and_id(scene: Scene, directory: Path) -> None:
    proxy = await start(scene, directory)
    scene.upstream.script(
        json_response(message_document("Hello"), headers={"Request-Id": "a/../b"})
    )
    await scene.ask("/v1/messages", MESSAGE)
    (found,) = await recorded(proxy, directory)
    record = await scene.records.finished()
    (path,) = files.newest_first(directory)
    assert path.name.endswith("-a____b.json")
    assert path.parent.parent == directory
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (directory, path.parent, path)]
    assert modes == [0o700, 0o700, 0o600]
    assert os.listdir(path.parent) == [path.name]
    assert json.loads(found["request"]["body"]["text"]) == MESSAGE
    assert json.loads(found["response"]["body"]["text"])["content"][0]["text"] == "Hello"
    assert (found["request"]["method"], found["request"]["path"]) == ("POST", "/v1/messages")
    assert (found["response"]["status"], found["record"]["principal"]) == (200, "token")
    assert found["record"]["usage"]["input_tokens"] == record.usage.input_tokens
    assert found["record"]["time"] == record.time


@pytest.mark.parametrize("path", ["/v1/messages", CHAT])
async def test_no_credential_is_recorded(scene: Scene, directory: Path, path: str) -> None:
    proxy = await start(scene, directory)
    headers = [
        ("X-Badge", "canary-ada"),
        ("Cookie", "a=canary-1"),
        ("X-Api-Key", "canary-2"),
        ("AUTHORIZATION", "Bearer canary-3"),
        ("Proxy-Authorization", "Basic canary-4"),
        ("X-Their-Token", "canary-5"),
        ("api-key", "canary-6"),
        ("X-Kept", "kept"),
    ]
    scene.upstream.script(json_response(message_document("Hi"), headers={"X-Secret": "canary-7"}))
    await scene.ask(path, MESSAGE, headers=headers, token=None)
    (found,) = await recorded(proxy, directory)
    assert found["record"].pop("principal") == "canary-ada"
    assert ["X-Kept", "kept"] in found["request"]["headers"]
    assert "canary" not in json.dumps(found)


@pytest.mark.parametrize(
    ("variables", "badge", "path", "count"),
    [
        ({}, "ada", "/v1/messages", 1),
        ({"RECORD_PRINCIPALS": "ada, bob"}, "bob", CHAT, 1),
        ({"RECORD_PRINCIPALS": "ada"}, "bob", "/v1/messages", 0),
        ({"RECORD_RATE": 0}, "ada", "/v1/messages", 0),
        ({"METRICS": "yes"}, "ada", "/metrics", 0),
        ({}, "ada", "/v1/organizations/x", 0),
        ({}, "ada", "/nothing", 0),
    ],
)
async def test_recorded_is_what_was_asked_for(
    scene: Scene,
    directory: Path,
    variables: dict[str, object],
    badge: str,
    path: str,
    count: int,
) -> None:
    proxy = await start(scene, directory, **variables)
    method = "GET" if "m" in path[:3] or path == "/nothing" else "POST"
    await scene.ask(path, MESSAGE if method == "POST" else None, headers={"X-Badge": badge})
    assert len(await recorded(proxy, directory)) == count


BODIES: dict[str, tuple[bytes, Response, dict[str, object], dict[str, Any], dict[str, Any]]] = {
    "binary": (
        b"\xff\x00",
        bytes_response(b"%PDF\xfe"),
        {},
        {"base64": base64.b64encode(b"\xff\x00").decode(), "size": 2, "truncated": False},
        {"base64": base64.b64encode(b"%PDF\xfe").decode(), "size": 5, "truncated": False},
    ),
    "compressed": (
        b"{}",
        bytes_response(gzip.compress(b'{"a": 1}', mtime=0), {"Content-Encoding": "gzip"}),
        {},
        {"text": "{}", "size": 2, "truncated": False},
        {"text": '{"a": 1}', "size": 28, "truncated": False, "decoded": "gzip"},
    ),
    "of an unknown coding, with rules": (
        b"{}",
        bytes_response(b"secret-12345", {"Content-Encoding": "compress"}),
        {"RECORD_REDACT": "x"},
        {"text": "{}", "size": 2, "truncated": False},
        {"size": 12, "omitted": "cannot be redacted: content-encoding compress"},
    ),
    "a stream over the limit, with rules": (
        b"12345678",
        sse_response(EVENTS),
        {"RECORD_REDACT": "x", "RECORD_MAX_BODY": 5},
        {"text": "12345", "size": 8, "truncated": True},
        {"omitted": "a stream over RECORD_MAX_BODY cannot be redacted", "truncated": True},
    ),
    "not what its coding says": (
        b"{}",
        bytes_response(b"plain", {"Content-Encoding": "gzip"}),
        {},
        {"text": "{}", "size": 2, "truncated": False},
        {"text": "plain", "size": 5, "truncated": False},
    ),
    "truncated": (
        "äöü".encode(),
        bytes_response(b"0123456789"),
        {"RECORD_MAX_BODY": 5},
        {"text": "äö", "size": 6, "truncated": True},
        {"text": "01234", "size": 10, "truncated": True},
    ),
    "with escapes, in a field's name and value, and split": (
        b'{"M\\u00fcller": ["\\u0073ecret-12345", 1, "password\\": \\"p"]}',
        sse_response(EVENTS),
        {"RECORD_REDACT": r'Müller secret-\d+ password":\s"\S'},
        {"text": '{"[redacted]": ["[redacted]", 1, "[redacted]"]}', "size": 60, "truncated": False},
        {"assembled": True, "truncated": False},
    ),
    "binary, with rules": (
        b"\xffsecret-12345",
        bytes_response(b"secret-12345 and more"),
        {"RECORD_REDACT": r"secret-\d+"},
        {"base64": base64.b64encode(b"\xff[redacted]").decode(), "size": 13, "truncated": False},
        {"text": "[redacted] and more", "size": 21, "truncated": False},
    ),
}


@pytest.mark.parametrize("which", BODIES)
async def test_body_is_recorded(scene: Scene, directory: Path, which: str) -> None:
    body, response, variables, request_body, response_body = BODIES[which]
    proxy = await start(scene, directory, **variables)
    scene.upstream.script(response)
    await scene.ask("/v1/complete", body=body)
    (found,) = await recorded(proxy, directory)
    assert found["request"]["body"] == request_body
    shown = found["response"]["body"]
    assert {**shown, **response_body} == shown
    assert "RECORD_REDACT" not in variables or "secret-12345" not in str(shown)


@pytest.mark.parametrize("cut", [1, 7, 8, 12, 13, 20])
async def test_match_across_the_limit_is_not_recorded(
    scene: Scene, directory: Path, cut: int
) -> None:
    proxy = await start(scene, directory, RECORD_REDACT=r"secret-\d+", RECORD_MAX_BODY=cut)
    headers = {"X-Note": "a secret-12345"}
    await scene.ask("/v1/complete", body=b"secret-12345 " * 2000, headers=headers)
    (found,) = await recorded(proxy, directory)
    body = found["request"]["body"]
    assert body["truncated"]
    assert body["text"] == ("[redacted]" if cut < 13 else "[redacted] " + "[redacted]" * (cut > 13))
    assert ["X-Note", "a [redacted]"] in found["request"]["headers"]


async def test_client_that_leaves_is_recorded_without_response(
    scene: Scene, directory: Path
) -> None:
    proxy = await start(scene, directory)
    scene.upstream.script(silent_response())
    body = json.dumps(MESSAGE).encode()
    client = await scene.send(request_bytes("POST", "/v1/messages", (), body, token=TEST_TOKEN))
    await scene.upstream.received()
    await client.close()
    await scene.records.finished()
    (found,) = await recorded(proxy, directory)
    assert (found["response"], found["record"]["outcome"]) == (None, "abandoned")


# -- the start, the queue, the end


async def test_start_and_reload_say_loudly_what_is_recorded(
    scene: Scene, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = await start(scene, directory, RECORD_PRINCIPALS="ada bob", RECORD_RATE=0.25)
    told = f"prompts and responses of 0.25 of ada, bob are RECORDED in {directory}, for 7 days"
    assert ("recorder", told) in proxy.lines
    proxy.reload()
    proxy.reload(RECORD_PRINCIPALS="*", RECORD_RETENTION_DAYS="0")
    logged = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    everybody = f"prompts and responses of 0.25 of everybody are RECORDED in {directory}"
    assert logged == [told, f"{everybody}, and never deleted"]


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        ({"RECORD_PRINCIPALS": None}, "RECORD_DIR is set without RECORD_PRINCIPALS"),
        ({"RECORD_DIR": "/nowhere/records"}, "there is no directory /nowhere; create it."),
        ({"RECORD_DIR": "/etc/passwd"}, "RECORD_DIR=/etc/passwd is not a directory"),
        ({"RECORD_DIR": "/etc"}, "RECORD_DIR=/etc is open to other users of this machine"),
        ({"RECORD_RATE": "1.5"}, "RECORD_RATE"),
        ({"RECORD_REDACT": "a ("}, "RECORD_REDACT must be regular expressions, not '('"),
        ({"RECORD_REDACT": "a*"}, "RECORD_REDACT must not match an empty text, as 'a*' does"),
    ],
)
async def test_invalid_settings_are_refused(
    scene: Scene, directory: Path, variables: dict[str, object], fault: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        await start(scene, directory, **variables)
    assert fault in str(refused.value)
    assert not directory.exists()


async def test_directory_that_cannot_be_used_later_is_told(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(files, "delete_before", refuse)
    await start(scene, tmp_path / "records")
    while "expired records are not deleted" not in caplog.text:
        await asyncio.sleep(0)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigurationError, match="cannot be created: Permission denied"):
        await start(scene, tmp_path / "others")


async def test_expired_records_are_deleted(scene: Scene, directory: Path) -> None:
    old, other = directory / "2020-01-31", directory / "notes"
    for each in (directory, old, other):
        each.mkdir(mode=0o700)
        (each / "x.json").touch()
    await start(scene, directory)
    while old.exists():
        await asyncio.sleep(0)
    assert other.exists()


def exchange(take: Any, size: int = 10) -> None:
    request = IncomingRequest("POST", "/v1/x", _NO_HEADERS, "", None)  # type: ignore[arg-type]
    capture: Observer = Capture(request, frozenset(), size, take)
    capture.request_body(b"x" * size)
    capture.ended(request_record())


class _NoHeaders:
    def get_all(self) -> list[tuple[str, str]]:
        return []


_NO_HEADERS: Any = _NoHeaders()


def test_slow_disk_drops_and_a_full_one_fails_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_QUEUED", 3 * 5000)
    may_write = threading.Event()

    def write(written: Exchange, _: object) -> None:
        may_write.wait()
        raise OSError(28, "No space left on device", written.path)

    queue = writer.Writer(write)
    for _ in range(8):
        exchange(queue.put, size=500)
    assert queue.dropped == 5
    may_write.set()
    queue.close(10)
    exchange(queue.put)
    assert (queue.dropped, queue.failed) == (6, 3)
    dropped, failed = (
        [each for each in caplog.messages if what in each] for what in ("not recorded", "No space")
    )
    assert [each.split()[0] for each in (*dropped, *failed)] == ["1", "2", "4", "1", "2"]

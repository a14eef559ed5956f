"""Listening on a Unix socket: its clients, and its file."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from tornadoproxy import ConfigurationError, parsers
from tornadoproxy.cli import banner
from tornadoproxy.fakes.byte_stream import ByteStream
from tornadoproxy.testing import TEST_TOKEN, RawConnection, request_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from tornadoproxy.testing import (
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


async def connect(path: Path) -> RawConnection:
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_unix_connection(ByteStream, str(path))
    return RawConnection(stream)


async def get(path: Path, target: str, **headers: str) -> RawResponse:
    connection = await connect(path)
    response = await connection.ask(request_bytes("GET", target, headers))
    await connection.close()
    return response


@pytest.mark.parametrize(("trusted", "seen"), [("127.0.0.1", "203.0.113.9"), ("", "127.0.0.1")])
async def test_client_of_unix_socket_counts_as_loopback(
    start_proxy: StartProxy, records: Records, path: Path, trusted: str, seen: str
) -> None:
    proxy = await start_proxy(HOST=f"unix:{path}", TRUSTED_PROXIES=trusted)
    assert proxy.url == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    headers = {"X-Api-Key": TEST_TOKEN, "X-Forwarded-For": "203.0.113.9"}
    assert (await get(path, "/v1/models", **headers)).status == 200
    assert (await records.finished()).remote_ip == seen


async def test_unix_socket_without_token_is_open_mode(start_proxy: StartProxy, path: Path) -> None:
    proxy = await start_proxy(HOST=f"unix:{path}", AUTH_TOKEN=None)
    assert ("token", "ANYONE on this machine, as anonymous: no AUTH_TOKEN is set") in proxy.lines
    assert (await get(path, "/v1/models")).status == 200
    assert (await get(path, "/v1/models", Host="evil.example")).status == 403


async def test_stop_removes_socket_file_and_finishes_streams(
    start_proxy: StartProxy, upstream: ScriptedUpstream, path: Path
) -> None:
    proxy = await start_proxy(HOST=f"unix:{path}", DRAIN_TIMEOUT=60)
    may_end = asyncio.Event()

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, {"Content-Length": "2"})
        await exchange.send(b"a")
        await may_end.wait()
        await exchange.send(b"b")

    upstream.script(response)
    connection = await connect(path)
    await connection.send(request_bytes("GET", "/v1/x", token=TEST_TOKEN))
    await connection.head()
    drain = asyncio.create_task(proxy.server.drain())
    await asyncio.sleep(0)  # its first step
    assert not path.exists()
    await start_proxy(HOST=f"unix:{path}")  # a successor may listen at once
    may_end.set()
    assert await connection.read_until(b"b") == b"ab"
    await drain
    assert (await get(path, "/ready")).status == 200
    await connection.close()


async def test_stale_socket_file_is_replaced(start_proxy: StartProxy, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    await start_proxy(HOST=f"unix:{path}")
    assert (await get(path, "/health")).status == 200


async def test_socket_file_in_use_is_refused(start_proxy: StartProxy, path: Path) -> None:
    await start_proxy(HOST=f"unix:{path}")
    with pytest.raises(ConfigurationError) as caught:
        await start_proxy(HOST=f"unix:{path}")
    told = f"cannot listen on HOST unix:{path}: Address already in use; choose another path"
    assert caught.value.faults == (told,)
    assert (await get(path, "/health")).status == 200


async def test_other_file_in_place_of_socket_is_kept(start_proxy: StartProxy, path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ConfigurationError, match="a file that is not a socket exists there"):
        await start_proxy(HOST=f"unix:{path}")
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("suffix", "reuse_port", "fault"),
    [("/x", "no", "No such file or directory"), ("", "yes", "REUSE_PORT needs a port")],
)
async def test_unusable_unix_socket_is_refused(
    start_proxy: StartProxy, path: Path, suffix: str, reuse_port: str, fault: str
) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        await start_proxy(HOST=f"unix:{path}{suffix}", REUSE_PORT=reuse_port)


@pytest.mark.parametrize("value", ["unix:", "unix:socket", "unix:@x", f"unix:/{'x' * 107}"])
def test_invalid_unix_socket_path_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="must be unix: and an absolute path of at most 107 bytes"):
        parsers.listen_address(value)


async def test_line_to_paste_works_by_unix_socket(start_proxy: StartProxy, tmp_path: Path) -> None:
    path = tmp_path / "a socket"
    proxy = await start_proxy(HOST=f"unix:{path}")
    lines = banner.banner(proxy.settings, 0, [("address", proxy.url)], TEST_TOKEN)
    (line,) = [line for line in lines if line.lstrip().startswith("curl ")]
    words = shlex.split(line)
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    curl = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    out, _ = await curl.communicate()
    assert b"claude-" in out

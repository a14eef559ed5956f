"""Listening: at an address of either family, with TLS, and on a Unix socket."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import socket
import ssl
import stat
from pathlib import Path

import pytest
from held_stream import EVENTS, Stream, begin_stream, rest_of_stream
from scene import Scene
from tls import OwnTLS

from tornadoproxy import ConfigurationError
from tornadoproxy.cli import banner
from tornadoproxy.fakes.byte_stream import ByteStream
from tornadoproxy.testing import TEST_TOKEN, RawConnection, RawResponse, request_bytes

# -- addresses and TLS


@pytest.mark.parametrize(("host", "address"), [("::", "127.0.0.1"), ("::", "::1"), ("::1", "::1")])
async def test_host_listens_at_addresses_of_its_families(
    scene: Scene, host: str, address: str
) -> None:
    proxy = await scene.start(HOST=host)
    assert proxy.url == f"http://[{host}]:{proxy.port}"
    connection = await RawConnection.open(proxy.port, address)
    response = await connection.ask(request_bytes("GET", "/nothing", token=TEST_TOKEN))
    assert response.status == 404
    assert (await scene.records.finished()).remote_ip == address
    await connection.close()


async def test_client_whose_tls_fails_does_not_affect_others(scene: Scene, own_tls: OwnTLS) -> None:
    proxy = await scene.start(**own_tls.settings)
    assert proxy.url == f"https://127.0.0.1:{proxy.port}"
    with pytest.raises(ssl.SSLCertVerificationError):
        await scene.raw(ssl=ssl.create_default_context())
    plain = await scene.send(request_bytes("GET", "/health"))
    await plain.disconnected()
    connection = await scene.raw(ssl=own_tls.trusting)
    assert (await connection.ask(request_bytes("GET", "/health"))).status == 200


# -- a Unix socket


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
    scene: Scene, path: Path, trusted: str, seen: str
) -> None:
    proxy = await scene.start(HOST=f"unix:{path}", TRUSTED_PROXIES=trusted)
    assert proxy.url == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    headers = {"X-Api-Key": TEST_TOKEN, "X-Forwarded-For": "203.0.113.9"}
    assert (await get(path, "/v1/models", **headers)).status == 200
    assert (await scene.records.finished()).remote_ip == seen


async def test_unix_socket_without_token_is_open_mode(scene: Scene, path: Path) -> None:
    proxy = await scene.start(HOST=f"unix:{path}", AUTH_TOKEN=None)
    assert ("token", "ANYONE on this machine, as anonymous: no AUTH_TOKEN is set") in proxy.lines
    assert (await get(path, "/v1/models")).status == 200
    assert (await get(path, "/v1/models", Host="evil.example")).status == 403


async def test_stop_removes_socket_file_and_finishes_streams(scene: Scene, path: Path) -> None:
    proxy = await scene.start(HOST=f"unix:{path}", DRAIN_TIMEOUT=60)
    stream = Stream()
    scene.upstream.script(stream)
    connection = await connect(path)
    await begin_stream(connection)
    drain = asyncio.create_task(proxy.server.drain())
    await asyncio.sleep(0)  # its first step
    assert not path.exists()
    await scene.start(HOST=f"unix:{path}")  # a successor may listen at once
    stream.may_end.set()
    assert await rest_of_stream(connection) == b"".join(EVENTS[1:])
    await drain
    assert (await get(path, "/ready")).status == 200
    await connection.close()


async def test_stale_socket_file_is_replaced(scene: Scene, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    await scene.start(HOST=f"unix:{path}")
    assert (await get(path, "/health")).status == 200


async def test_unusable_socket_file_is_refused_and_kept(
    scene: Scene, path: Path, tmp_path: Path
) -> None:
    await scene.start(HOST=f"unix:{path}")
    (tmp_path / "file").write_text("precious")
    for name, reason in (
        ("socket", "Address already in use"),
        ("file", "a file that is not a socket exists there"),
        ("absent/x", "No such file or directory"),
    ):
        used = tmp_path / name
        with pytest.raises(ConfigurationError) as caught:
            await scene.start(HOST=f"unix:{used}")
        told = f"cannot listen on HOST unix:{used}: {reason}; choose another path"
        assert caught.value.faults == (told,)
    assert (await get(path, "/health")).status == 200
    assert (tmp_path / "file").read_text() == "precious"


async def test_line_to_paste_works_by_unix_socket(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "a socket"
    proxy = await scene.start(HOST=f"unix:{path}")
    lines = banner.banner(proxy.settings, 0, [("address", proxy.url)], TEST_TOKEN)
    (line,) = [line for line in lines if line.lstrip().startswith("curl ")]
    words = shlex.split(line)
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    curl = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    out, _ = await curl.communicate()
    assert b"claude-" in out

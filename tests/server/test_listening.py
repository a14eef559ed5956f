"""Listening: addresses of either family, TLS, Unix sockets, and the limit of connections."""

from __future__ import annotations

import asyncio
import resource
import shlex
import shutil
import socket
import ssl
import stat
from pathlib import Path

import pytest
from held_stream import EVENTS, REQUEST, Stream, begin_stream, rest_of_stream
from program import printed_by
from scene import Scene
from tls import OwnTLS

from tornadoproxy import ConfigurationError
from tornadoproxy.cli import banner
from tornadoproxy.fakes.byte_stream import ByteStream
from tornadoproxy.server import listener
from tornadoproxy.server.server import _raise_descriptor_limit
from tornadoproxy.testing import (
    TEST_TOKEN,
    RawConnection,
    RawResponse,
    request_bytes,
    silent_response,
)

HEALTH = request_bytes("GET", "/health")

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
    plain = await scene.send(HEALTH)
    await plain.disconnected()
    connection = await scene.raw(ssl=own_tls.trusting)
    assert (await connection.ask(HEALTH)).status == 200


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
    out, _ = await printed_by(curl)
    assert b"claude-" in out


# -- the limit of connections, and which connection makes room for the next


async def served(connection: RawConnection) -> None:
    """Use `connection`, which is open."""
    assert (await connection.ask(HEALTH)).status == 200


async def test_connection_idle_longest_makes_room(scene: Scene) -> None:
    await scene.start(MAX_CONNECTIONS=3)
    first, second, third = [await scene.raw() for _ in range(3)]
    for connection in (second, first, third, second):  # first and not second is idle longest
        await served(connection)
    fourth = await scene.raw()
    await served(fourth)
    await first.disconnected()
    for connection in (second, third, fourth):
        await served(connection)


BODY = {"Content-Length": "1000000"}
UNKNOWN = {
    "half a head": b"GET /v1/models HTTP/1.1\r\nX: ",
    "a probe's endless body": request_bytes("GET", "/ready", {"Transfer-Encoding": "chunked"}),
    "a body behind a 401": request_bytes("POST", "/v1/messages", BODY),
    "a body behind a 404": request_bytes("POST", "/nowhere", BODY, token=TEST_TOKEN),
}


@pytest.mark.parametrize("sent", UNKNOWN.values(), ids=UNKNOWN)
async def test_unauthenticated_connections_make_room(sent: bytes, scene: Scene) -> None:
    """In the order in which they came; an authenticated request stays."""
    proxy = await scene.start(MAX_CONNECTIONS=3)
    scene.upstream.script(silent_response())
    await scene.send(REQUEST)
    await scene.upstream.received()
    held = [await scene.raw() for _ in range(2)]
    for connection in held:
        await connection.send(sent + b"a" * 10)
    for _ in range(3):
        await served(await scene.raw())
    for connection in held:
        await connection.disconnected()
    assert proxy.server.status().upstream_connections == 1


async def test_silent_tls_handshakes_make_room(scene: Scene, own_tls: OwnTLS) -> None:
    proxy = await scene.start(MAX_CONNECTIONS=3, **own_tls.settings)
    silent = [await scene.raw() for _ in range(3)]
    for _ in range(4):
        await served(await scene.raw(ssl=own_tls.trusting))
    for connection in silent:
        await connection.disconnected()
    assert proxy.server.status().client_connections <= 3


async def test_authenticated_slow_body_makes_no_room(scene: Scene) -> None:
    await scene.start(MAX_CONNECTIONS=2)
    known = await scene.send(REQUEST[:-1])
    for _ in range(3):
        await served(await scene.raw())
    await known.send(REQUEST[-1:])
    assert (await known.response()).status == 400  # the upstream's: the body is not a message


async def test_served_request_makes_no_room_for_another(scene: Scene) -> None:
    """The next connection waits to be accepted until there is room."""
    await scene.start(MAX_CONNECTIONS=2)
    stream = Stream()
    scene.upstream.script(stream, silent_response())
    streaming, silent = await scene.raw(), await scene.raw()
    await begin_stream(streaming)
    await silent.send(REQUEST)
    await scene.upstream.received(2)
    third = await scene.raw()  # accepted by the system, but not yet by the proxy
    await third.send(REQUEST)
    stream.may_end.set()
    assert await rest_of_stream(streaming) == b"".join(EVENTS[1:])
    assert len(scene.upstream.requests) == 2
    await silent.close()
    assert (await third.response()).status == 400


async def test_closed_connections_leave_no_place_taken(scene: Scene) -> None:
    await scene.start(MAX_CONNECTIONS=2)
    for _ in range(10):
        left, reset, refused = await scene.raw(), await scene.raw(), await scene.raw()
        await left.close()
        await reset.reset()
        await refused.send(b"no\r\n\r\n")
        assert (await refused.response()).status == 400
        await refused.close()
    both = [await scene.raw(), await scene.raw()]
    for connection in (*both, *both):
        await served(connection)


async def test_connection_cancelled_while_opening_frees_its_place(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop may open it before it cancels the task that opens it."""
    monkeypatch.setattr(listener, "_GRACE", 0.0)
    proxy = await scene.start(MAX_CONNECTIONS=1)
    clients = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(10)]
    await served(await scene.raw())
    assert proxy.server.status().client_connections <= 1
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("files", "connections"), [(1024, 480), (1_048_576, 20_000), (resource.RLIM_INFINITY, 20_000)]
)
def test_default_of_max_connections_has_a_ceiling(
    files: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert _raise_descriptor_limit() == connections

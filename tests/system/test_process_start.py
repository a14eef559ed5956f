"""The start of the real program: its ``.env``, its address, its secrets."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from program import install, running

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    ScriptedServer,
    ScriptedUpstream,
    request_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MODELS = request_bytes("GET", "/v1/models", token=TEST_TOKEN)
CANARY = "sk-canary-key-51d0a7"


def without_privileges() -> tuple[str, ...]:
    """The command under which even root may not read every file, nor listen on every port."""
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv", path=f"{os.defpath}:/usr/sbin:/sbin")
    if setpriv is None:
        pytest.skip("setpriv is not installed, and root may do everything")
    return (setpriv, "--bounding-set=-net_bind_service,-dac_override,-dac_read_search")


# -- the .env file; tests/config/test_env_file.py has its formats


def directory(path: Path) -> None:
    path.mkdir()


def unreadable(path: Path) -> None:
    path.write_text(f"AUTH_TOKEN={CANARY}\n")
    path.chmod(0)


def huge(path: Path) -> None:
    path.write_bytes(b"no setting\n" * 1_000_000)


# each with what its one line says
SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a directory": (directory, "is not a regular file: replace or remove it"),
    "unreadable": (unreadable, "cannot be read (Permission denied): fix or remove it"),
    "huge": (huge, "is larger than 64 kB: shorten or remove it"),
}


@pytest.mark.parametrize("name", ["unreadable", "huge"])
async def test_unreadable_env_file_is_one_line_and_status_2(tmp_path: Path, name: str) -> None:
    spoil, told = SPOILT[name]
    spoil(tmp_path / ".env")
    wrapper = without_privileges() if name == "unreadable" else ()
    async with (
        ScriptedServer() as upstream,
        running(tmp_path, upstream, wrapper=wrapper) as program,
    ):
        assert await program.ended() == 2
    assert program.errors.all == [f"tornadoproxy: .env {told}"]
    assert program.output.all == []


async def test_env_file_unreadable_on_sighup_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    good = f"AUTH_TOKEN={TEST_TOKEN}\n"
    path.write_text(good)
    async with (
        ScriptedUpstream() as upstream,
        running(tmp_path, upstream, wrapper=without_privileges(), AUTH_TOKEN=None) as program,
    ):
        await program.port()
        for spoil, told in SPOILT.values():
            path.unlink()
            spoil(path)
            program.send_signal(signal.SIGHUP)
            await program.errors.wait_for(
                re.escape(f"SIGHUP: the settings stay as they were: .env {told}")
            )
            assert (await program.ask(MODELS)).status == 200
            assert (await program.ask(request_bytes("GET", "/v1/models"))).status == 401
            if path.is_dir():
                path.rmdir()
                path.touch()
        path.write_text(good)
        path.chmod(0o600)
        program.send_signal(signal.SIGHUP)
        await program.errors.wait_for("SIGHUP: reloaded secrets and the settings of plugins")
        assert (await program.ask(MODELS)).status == 200
    assert "Traceback" not in "\n".join(program.errors.all)


# -- the address


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        # TEST-NET-1 (RFC 5737) is nobody's
        ("192.0.2.1", "Cannot assign requested address"),
        # (RFC 6761) is no name; which of two errors it is depends on the resolver
        pytest.param("nowhere.invalid", "", marks=pytest.mark.long),
    ],
)
async def test_foreign_host_is_one_line_and_status_2(
    tmp_path: Path, host: str, reason: str
) -> None:
    async with ScriptedServer() as upstream, running(tmp_path, upstream, HOST=host) as program:
        assert await program.ended() == 2
    (line,) = program.errors.all
    assert line.startswith(f"tornadoproxy: cannot listen on HOST {host}, PORT 0: {reason}")
    assert line.endswith("; choose another PORT or HOST")


async def test_privileged_port_is_one_line_and_status_2(tmp_path: Path) -> None:
    first_free = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()
    if int(first_free) <= 80:
        pytest.skip("no port takes privileges here")
    async with (
        ScriptedServer() as upstream,
        running(tmp_path, upstream, wrapper=without_privileges(), PORT="80") as program,
    ):
        assert await program.ended() == 2
    assert program.errors.all == [
        "tornadoproxy: cannot listen on HOST 127.0.0.1, PORT 80: Permission denied; "
        "choose another PORT or HOST"
    ]


async def test_port_in_use_shuts_plugins_down(tmp_path: Path) -> None:
    install(
        tmp_path,
        "noting",
        """
import sys
from tornadoproxy import hookimpl

@hookimpl
async def startup():
    print("started", file=sys.stderr, flush=True)

@hookimpl
async def shutdown():
    print("shut down", file=sys.stderr, flush=True)
""",
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with (
            ScriptedServer() as upstream,
            running(tmp_path, upstream, PORT=str(port)) as program,
        ):
            assert await program.ended() == 2
    assert program.errors.all == [
        "started",
        "shut down",
        f"tornadoproxy: cannot listen on HOST 127.0.0.1, PORT {port}: Address already in use; "
        "choose another PORT or HOST",
    ]


# -- what everybody can read of a process


async def test_secrets_from_files_are_not_in_proc(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(TEST_UPSTREAM_KEY)
    (tmp_path / ".env").write_text(f"AUTH_TOKEN={TEST_TOKEN}\nUPSTREAM_API_KEY_FILE=key\n")
    async with (
        ScriptedUpstream() as upstream,
        running(
            tmp_path, upstream, "--drain-timeout", "1", AUTH_TOKEN=None, UPSTREAM_API_KEY=None
        ) as program,
    ):
        assert (await program.ask(MODELS)).status == 200
        process = Path(f"/proc/{program.process.pid}")
        arguments = (process / "cmdline").read_bytes().split(b"\0")
        assert arguments[1:] == [b"-m", b"tornadoproxy", b"--drain-timeout", b"1", b""]
        shown = (process / "environ").read_bytes()
        for path in process.glob("task/*/comm"):
            shown += path.read_bytes()
    for secret in (TEST_TOKEN, TEST_UPSTREAM_KEY):
        assert secret.encode() not in shown

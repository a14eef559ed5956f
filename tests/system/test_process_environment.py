"""What the real program finds: its port taken, its standard streams full or closed."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from pathlib import Path

import pytest
from program import install, running

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    RawConnection,
    ScriptedServer,
    ScriptedUpstream,
    request_bytes,
)

MODELS = request_bytes("GET", "/v1/models", token=TEST_TOKEN)


# -- the address

NOTING = """
from tornadoproxy import hookimpl

@hookimpl
def shutdown():
    import sys
    print("shut down", file=sys.stderr, flush=True)
"""


async def test_port_in_use_shuts_plugins_down(tmp_path: Path) -> None:
    install(tmp_path, "noting", NOTING)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with (
            ScriptedServer() as upstream,
            running(tmp_path, upstream, PORT=str(port)) as program,
        ):
            assert await program.ended() == 2
    told = f"cannot listen on HOST 127.0.0.1, PORT {port}: Address already in use; "
    told += "choose another PORT or HOST"
    assert program.errors.all == ["shut down", f"tornadoproxy: {told}"]


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
        shown = b"".join(path.read_bytes() for path in process.glob("task/*/comm"))
        shown += (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
    assert b"--drain-timeout" in shown
    for secret in (TEST_TOKEN, TEST_UPSTREAM_KEY):
        assert secret.encode() not in shown


# -- logs that cannot be written, because they are full or closed


async def listening(port: int) -> RawConnection:
    """Return a connection to `port`, as soon as the proxy listens there."""
    async with asyncio.timeout(15):
        while True:
            try:
                return await RawConnection.open(port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)  # nothing reports it from outside


async def check_it_serves(port: int) -> None:
    """Twenty requests of one connection are answered; each writes a line to both logs."""
    client = await listening(port)
    for _ in range(20):
        assert (await client.ask(MODELS)).status == 200
        # an unreadable request is a line in the log
        spoiler = await RawConnection.open(port)
        assert (await spoiler.ask(b"GET /v1/models HTTP/1.1\r\nx y: 1\r\n\r\n")).status == 400
        await spoiler.close()
    await client.close()


def closing(streams: str) -> list[str]:
    """The command that starts a program with these redirections of its standard streams."""
    return ["sh", "-c", f'exec "$@" {streams}', "sh"]


@pytest.mark.parametrize(
    "streams",
    [
        ">/dev/full 2>&1",
        *("2>&-", "<&- >&- 2>&-"),
        *(pytest.param(each, marks=pytest.mark.long) for each in ("<&-", ">&-", ">&- 2>&-")),
    ],
)
async def test_standard_streams_of_no_use_change_no_response(tmp_path: Path, streams: str) -> None:
    # a proxy that cannot log cannot tell its port
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with (
        ScriptedUpstream() as upstream,
        running(
            tmp_path, upstream, wrapper=closing(streams), PORT=str(port), LOG_LEVEL="debug"
        ) as program,
    ):
        await check_it_serves(port)
        # the access log is opened anew, where its descriptor may be another's by now
        (tmp_path / ".env").write_text("LOG_LEVEL=info\nACCESS_LOG_FORMAT=text\n")
        program.send_signal(signal.SIGHUP)
        await check_it_serves(port)
        program.send_signal(signal.SIGTERM)
        assert await program.ended() == 0
    # neither log is written where the other belongs
    records = [json.loads(line) for line in program.output.all]
    assert len(records) == (0 if re.search(r"(^| )>", streams) else 40)
    assert [line for line in program.errors.all if line.startswith("{")] == []
    assert ("stopping" in "\n".join(program.errors.all)) is ("2>" not in streams)


async def test_unwritable_start_error_keeps_status_2(tmp_path: Path) -> None:
    async with (
        ScriptedUpstream() as upstream,
        running(tmp_path, upstream, wrapper=closing("2>/dev/full"), PORT="none") as program,
    ):
        assert await program.ended() == 2
    assert program.output.all == []

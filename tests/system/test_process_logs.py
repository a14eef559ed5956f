"""Logs that cannot be written: full, closed, read by nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from program import Program, running

from tornadoproxy.testing import TEST_TOKEN, RawConnection, ScriptedUpstream, request_bytes

if TYPE_CHECKING:
    from pathlib import Path

MODELS = request_bytes("GET", "/v1/models", token=TEST_TOKEN)
CLOSING = ("sh", "-c", 'exec "$@" {}', "sh")  # starts a program without some of its streams


@contextmanager
def full() -> Iterator[int]:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def left() -> Iterator[int]:
    """A pipe whose reader went away."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


@contextmanager
def stuck() -> Iterator[int]:
    """A pipe that nobody reads, and that is full."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 1024)
    os.set_blocking(writer, True)
    try:
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


def free_port() -> int:
    """A port that was free a moment ago: one that cannot log cannot tell its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


async def listening(port: int) -> RawConnection:
    """A connection to `port`, as soon as somebody listens there."""
    async with asyncio.timeout(15):
        while True:
            try:
                return await RawConnection.open(port)
            except ConnectionRefusedError:
                # nothing tells of it from outside
                await asyncio.sleep(0.01)


async def check_it_serves(port: int, requests: int = 50) -> None:
    """Every request of one connection is answered; each writes a line to both logs."""
    client = await listening(port)
    for number in range(requests):
        await client.send(MODELS)
        response = await client.response()
        assert response.status == 200
        assert json.loads(response.body)["data"]
        # what cannot be read is told of in the log
        spoiler = await RawConnection.open(port)
        await spoiler.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nx y: %d\r\n\r\n" % number)
        assert (await spoiler.response()).status == 400
        await spoiler.close()
    await client.close()


async def check_it_stops(program: Program) -> None:
    program.send_signal(signal.SIGTERM)
    assert await program.ended() == 0


@pytest.mark.parametrize(
    "target",
    [
        full,
        left,
        # a few seconds are waited at the end for somebody to read after all
        pytest.param(stuck, marks=pytest.mark.long),
    ],
)
async def test_unwritable_logs_change_no_response(
    tmp_path: Path, target: type[contextlib.AbstractContextManager[int]]
) -> None:
    port = free_port()
    async with ScriptedUpstream() as upstream:
        with target() as stdout, target() as stderr:
            async with running(
                tmp_path,
                upstream,
                stdout=stdout,
                stderr=stderr,
                PORT=str(port),
                LOG_LEVEL="debug",
            ) as program:
                await check_it_serves(port)
                await check_it_stops(program)


@pytest.mark.parametrize(
    "closed",
    [
        "2>&-",
        "0<&- 1>&- 2>&-",
        *(pytest.param(each, marks=pytest.mark.long) for each in ("0<&-", "1>&-", "1>&- 2>&-")),
    ],
)
async def test_closed_standard_streams_change_no_response(tmp_path: Path, closed: str) -> None:
    wrapper = [each.format(closed) for each in CLOSING]
    port = free_port()
    async with (
        ScriptedUpstream() as upstream,
        running(tmp_path, upstream, wrapper=wrapper, PORT=str(port), LOG_LEVEL="debug") as program,
    ):
        await check_it_serves(port, 3)
        # the access log is opened anew, where its descriptor may be another's by now
        (tmp_path / ".env").write_text("LOG_LEVEL=info\nACCESS_LOG_FORMAT=text\n")
        program.send_signal(signal.SIGHUP)
        await check_it_serves(port, 3)
        await check_it_stops(program)
    # neither log is written where the other belongs
    records = [json.loads(line) for line in program.output.all]
    assert len(records) == (0 if "1>&-" in closed else 6)
    assert [line for line in program.errors.all if line.startswith("{")] == []
    assert ("stopping" in "\n".join(program.errors.all)) is ("2>&-" not in closed)


@pytest.mark.parametrize("stream", ["2>/dev/full", pytest.param("2>&-", marks=pytest.mark.long)])
async def test_unwritable_start_error_keeps_status_2(tmp_path: Path, stream: str) -> None:
    wrapper = [each.format(stream) for each in CLOSING]
    async with (
        ScriptedUpstream() as upstream,
        running(tmp_path, upstream, wrapper=wrapper, PORT="none") as program,
    ):
        assert await program.ended() == 2
    assert program.output.all == []


async def test_access_log_on_full_disk_changes_no_response(tmp_path: Path) -> None:
    async with (
        ScriptedUpstream() as upstream,
        running(tmp_path, upstream, ACCESS_LOG="/dev/full") as program,
    ):
        port = await program.port()
        await check_it_serves(port)
        program.send_signal(signal.SIGHUP)
        await program.errors.wait_for("SIGHUP: reloaded secrets and the settings of plugins")
        await check_it_serves(port)
        await check_it_stops(program)
    assert "Traceback" not in "\n".join(program.errors.all)


async def test_closed_log_pipe_changes_no_response(tmp_path: Path) -> None:
    (lines, stdout), (log, stderr) = os.pipe(), os.pipe()
    port = free_port()
    async with (
        ScriptedUpstream() as upstream,
        running(
            tmp_path,
            upstream,
            stdout=stdout,
            stderr=stderr,
            PORT=str(port),
            LOG_LEVEL="debug",
        ) as program,
    ):
        await check_it_serves(port, 5)
        for end in (lines, stdout, log, stderr):
            os.close(end)
        program.send_signal(signal.SIGPIPE)
        await check_it_serves(port)
        await check_it_stops(program)


@pytest.mark.parametrize("stream", [">/dev/full", pytest.param(">&-", marks=pytest.mark.long)])
async def test_unwritable_output_fails_a_command(tmp_path: Path, stream: str) -> None:
    wrapper = [each.format(stream) for each in CLOSING]
    async with (
        ScriptedUpstream() as upstream,
        running(tmp_path, upstream, "check", wrapper=wrapper) as program,
    ):
        status = await program.ended()
    # who has closed it wants none
    assert (status, program.errors.all) == (
        (0, [])
        if stream == ">&-"
        else (2, ["tornadoproxy: cannot write to standard output: No space left on device"])
    )
